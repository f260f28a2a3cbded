"""What a stream presents when, in a few arrays that can be drawn; needs neither torch nor Avalanche."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.samples import ImageSamples, Samples
from continual_metaopt.streams.stream import Stream

N_PORTIONS = 120  # of a course
IMAGES_PER_PORTION = 16  # from which the size of a change is measured
CHUNK = 2**16  # samples whose course is read at once


@dataclass(frozen=True)
class FirstSamples:
    """The first samples of an experience, which is numbered from 0, as a learner is given them.

    ``classes`` are the source's own names of their classes, None if these are not known.
    """

    experience: int
    first_step: int
    inputs: NDArray[np.float32]
    targets: NDArray[Any]
    classes: list[Any] | None


@dataclass(frozen=True)
class ImageCourse:
    """A stream of images in portions: P of them, each within one experience unless there are very many experiences.

    Attributes:
        edges: first step of each portion, and the length of the stream, [P + 1].
        classes: names of the K classes of the source that occur, in the order in which they first come in numbers.
        class_share: share of each class in each portion, [K, P].
        labels: label that most samples of a class have in the experience, [K, P]; −1 in portions without the class.
        relabelled: whether a class has other labels than its own number in the source.
        other_labels: share of each portion's samples with another label than that, [P].
        changes: least, mean and greatest number of the input changes in each portion, [3, P]; −1 stands for none.
        difference: mean absolute difference of a pixel from the image before its change, as share of the range, [P].
        seen_before: share of samples that came before, with the same change, [P].
    """

    edges: NDArray[np.int64]
    classes: list[Any]
    class_share: NDArray[np.float64]
    labels: NDArray[np.int64]
    relabelled: bool
    other_labels: NDArray[np.float64]
    changes: NDArray[np.float64]
    difference: NDArray[np.float64]
    seen_before: NDArray[np.float64]


def first_samples(stream: Stream, n_experiences: int = 10, n_samples: int = 10) -> list[FirstSamples]:
    """Read at most so many first samples of at most so many experiences, evenly chosen from first to last."""
    n = len(stream.train)
    names = _class_names(stream)
    found = []
    for number in np.unique(np.linspace(0, n - 1, min(n, n_experiences)).round().astype(int)).tolist():
        samples = stream.train[number]
        inputs, targets = samples.batch(slice(0, min(n_samples, len(samples))))
        known = isinstance(samples, ImageSamples)
        classes = [names[k] for k in samples.classes[:n_samples].tolist()] if known else None
        found.append(FirstSamples(number, stream.info.boundaries[number], inputs, targets, classes))
    return found


def image_course(stream: Stream) -> ImageCourse:
    """Compute what a stream of images presents over time."""
    labels = _joined(stream.train, "labels")
    known = all(isinstance(samples, ImageSamples) for samples in stream.train)
    numbers = _joined(stream.train, "classes") if known else labels
    change = _joined(stream.train, "change") if known else np.full(len(labels), -1)
    lengths = [len(samples) for samples in stream.train]
    names = _class_names(stream) if known else {k: k for k in np.unique(labels).tolist()}
    starts = np.cumsum([0, *lengths])
    counts = np.stack([np.bincount(numbers[a:b], minlength=max(names) + 1) for a, b in itertools.pairwise(starts)])
    present = _order_of_classes(counts)
    row_of = np.zeros(counts.shape[1], np.int64)
    row_of[present] = np.arange(len(present))
    rows = row_of[numbers]
    edges, experience = _portions(lengths, int(np.median((counts > 0).sum(axis=1))))
    share = np.stack([np.bincount(part, minlength=len(present)) / len(part) for part in np.split(rows, edges[1:-1])])
    usual = np.stack([_usual_labels(rows[a:b], labels[a:b], len(present)) for a, b in itertools.pairwise(starts)])
    other = labels != usual[np.repeat(np.arange(len(lengths)), lengths), rows]
    again = np.ones(len(labels), bool)
    if known:
        inputs = _joined(stream.train, "index").astype(np.int64) << 32 | (change.astype(np.int64) & 0xFFFFFFFF)
        again[np.unique(inputs, return_index=True)[1]] = False
    return ImageCourse(
        edges=edges,
        classes=[names[k] for k in present.tolist()],
        class_share=share.T,
        labels=np.where(share > 0, usual[experience], -1).T,
        relabelled=bool(((usual != present) & (usual >= 0)).any()),
        other_labels=np.add.reduceat(other, edges[:-1]) / np.diff(edges),
        changes=np.stack(
            [
                np.minimum.reduceat(change, edges[:-1]),
                np.add.reduceat(change, edges[:-1]) / np.diff(edges),
                np.maximum.reduceat(change, edges[:-1]),
            ]
        ),
        difference=_differences(stream.train, starts, edges, experience, change),
        seen_before=np.add.reduceat(again & known, edges[:-1]) / np.diff(edges),
    )


def course_changes(stream: Stream) -> NDArray[np.int64]:
    """Find the steps of a regression at which what is behind the samples differs from the step before.

    They are the starts of experiences if the stream tells nothing of its course.
    """
    if not stream.course:
        return np.array(stream.info.boundaries[1:], np.int64)
    n, changes = stream.info.for_learner.n_samples, []
    for start in range(0, n, CHUNK):
        for read in stream.course.values():
            values = read(max(start - 1, 0), min(start + CHUNK, n))
            differs = (values[1:] != values[:-1]).reshape(len(values) - 1, -1).any(axis=1)
            changes.append(max(start - 1, 0) + 1 + np.flatnonzero(differs))
    return np.unique(np.concatenate(changes))


def course_means(stream: Stream, end: int, n_portions: int) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Compute edges of equal portions of the samples before ``end``, [P + 1], and means of what is behind, [P, …]."""
    edges = equal_portions(end, n_portions)
    means = {
        name: np.stack([read(a, b).mean(axis=0) for a, b in itertools.pairwise(edges.tolist())])
        for name, read in stream.course.items()
    }
    return edges, means


def equal_portions(end: int, n_portions: int) -> NDArray[np.int64]:
    """Return the edges of equal portions of the steps before ``end``, at most so many, [P + 1].

    Example:
        >>> equal_portions(10, 4).tolist()
        [0, 2, 5, 8, 10]
    """
    return np.linspace(0, end, min(n_portions, end) + 1).round().astype(np.int64)


def consecutive(stream: Stream, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Read inputs and targets of the samples from ``start`` to before ``stop``, whatever experience they belong to."""
    parts = []
    for samples, first in zip(stream.train, stream.info.boundaries, strict=True):
        steps = slice(max(start - first, 0), min(stop - first, len(samples)))
        if steps.start < steps.stop:
            parts.append(samples.batch(steps))
    inputs, targets = zip(*parts, strict=True)
    return np.concatenate(inputs), np.concatenate(targets)


def _order_of_classes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort classes by the first experience that has at least half as many samples of them as any, then by number.

    Args:
        counts: samples of each class in each experience, [experiences, classes].
    """
    first = (counts * 2 >= counts.max(axis=0)).argmax(axis=0)
    present = np.flatnonzero(counts.any(axis=0))
    return present[np.argsort(first[present], kind="stable")]


def _portions(lengths: Sequence[int], n_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide a stream into portions: their edges, and the experience in which each begins.

    Portions of an experience have about 30 samples of each of so many classes, so that shares tell more than chance;
    but there are six of them where there is room, for what is gradual.
    """
    starts = np.cumsum([0, *lengths])
    n = len(lengths)
    if n > N_PORTIONS:
        experience = np.linspace(0, n, N_PORTIONS, endpoint=False).astype(np.int64)
        return np.append(starts[experience], starts[-1]), experience
    shortest = min(lengths)
    parts = max(1, min(N_PORTIONS // n, max(shortest // (30 * n_classes), min(6, shortest // 20))))
    edges = [np.linspace(a, b, parts, endpoint=False) for a, b in itertools.pairwise(starts)]
    return np.append(np.concatenate(edges).astype(np.int64), starts[-1]), np.arange(n).repeat(parts)


def _usual_labels(rows: NDArray[np.int64], labels: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """Find the most frequent label of each class; −1 for classes without samples."""
    pairs, counts = np.unique(np.stack([rows, labels]), axis=1, return_counts=True)
    usual = np.full(n_classes, -1)
    for i in np.argsort(counts, kind="stable")[::-1]:
        if usual[pairs[0, i]] < 0:
            usual[pairs[0, i]] = pairs[1, i]
    return usual


def _differences(
    train: Sequence[Samples],
    starts: NDArray[np.int64],
    edges: NDArray[np.int64],
    experience: NDArray[np.int64],
    change: NDArray[Any],
) -> NDArray[np.float64]:
    found = np.zeros(len(edges) - 1)
    for portion, number in enumerate(experience.tolist()):
        samples, first = train[number], int(edges[portion])
        last = min(int(edges[portion + 1]), first + IMAGES_PER_PORTION)
        if isinstance(samples, ImageSamples) and (change[first:last] >= 0).any():
            steps = slice(first - int(starts[number]), min(last - int(starts[number]), len(samples)))
            found[portion] = np.abs(samples.batch(steps)[0] - samples.unchanged(steps)).mean() / 2
    return found


def _class_names(stream: Stream) -> dict[int, Any]:
    """Look up the source's names of the classes that occur, by their numbers there."""
    names: dict[int, Any] = {}
    for samples, info in zip(stream.train, stream.info.experiences, strict=True):
        if isinstance(samples, ImageSamples):
            names |= zip(np.unique(samples.classes).tolist(), info.classes, strict=True)
    return names


def _joined(train: Sequence[Samples], attribute: str) -> NDArray[Any]:
    return np.concatenate([getattr(samples, attribute) for samples in train])
