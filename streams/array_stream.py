"""A stream of the user's own arrays: vectors, series, images or anything else, in the order in which they come."""

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.array_files import PREFIX, read_arrays
from continual_metaopt.streams.plan import SAMPLE_ORDER, STATIONARY_ORDER, random_state
from continual_metaopt.streams.sources import SourceSpec, load_source
from continual_metaopt.streams.stream import (
    ExperienceInfo,
    LearnerInfo,
    Stream,
    StreamInfo,
    about_stream,
    fingerprint_of,
)

DEFINITION = "array_stream v1"
Task = Literal["classification", "regression"]


@about_stream(
    source="arrays of numbers, of any shape",
    changes="whatever changes in the arrays",
    when="at the boundaries that are given, or unknown",
    length="all samples of the arrays, once each",
    head="one output for each class, or for each target of a regression",
)
def array_stream(
    source: SourceSpec = "digits",
    *,
    boundaries: tuple[int, ...] = (),
    test_boundaries: tuple[int, ...] = (),
    task: Task | None = None,
    shuffle: bool = False,
    stationary: Literal["shuffled"] | None = None,
    seed: int = 0,
) -> Stream:
    """The user's own samples, in the order in which they stand in their arrays.

    Samples reach the network as they are, as 32-bit floats, so scale them before: a network learns best from numbers
    of about size 1. Samples of whose future nothing may be known are scaled by what came before them.

    Args:
        source: arrays (x, y) or (x, y, x_test, y_test); ``npz:FILE`` with arrays of these names, as numpy.savez writes
            it; or "digits", as vectors of 64 numbers. x has the shape [N, …]. y holds integers [N], which are classes,
            or floats [N] or [N, targets], which a regression predicts.
        boundaries: numbers of the samples at which experiences begin, without the first one. No learner is told. Left
            out, all samples are one experience.
        test_boundaries: the same of the held-out samples, one for each of ``boundaries``. Left out, each experience is
            tested on the held-out samples whose class occurs in it.
        task: "classification" or "regression"; by the type of y if not given.
        shuffle: put the samples of each experience in an order that the seed decides.
        stationary: "shuffled" puts all samples in one order that the seed decides, which takes the change away.
        seed: decides these orders.

    Raises:
        ValueError: arrays or boundaries do not fit each other, or hold other things than finite numbers.

    Example:
        >>> import numpy as np
        >>> x, y = np.arange(12.0).reshape(6, 2), np.array([5, 7, 5, 7, 7, 7])
        >>> stream = array_stream((x, y), boundaries=(4,))
        >>> stream.info.for_learner.n_outputs, [len(samples) for samples in stream.train]
        (2, [4, 2])
        >>> stream.train[1].batch(slice(0, 1))[0].tolist()
        [[8.0, 9.0]]
    """
    x, y, x_test, y_test = _checked(source, task)
    classes: list[Any] = []
    if y.dtype.kind in "biu":
        classes, y, y_test = _numbered(y, y_test)
    edges, test_edges = (
        _edges("boundaries", boundaries, len(x)),
        _edges("test_boundaries", test_boundaries, len(x_test)),
    )
    if test_boundaries and len(test_edges) != len(edges):
        raise ValueError(
            f"test_boundaries must be as many as boundaries, {len(boundaries)}, not {len(test_boundaries)}"
        )
    order = np.arange(len(x))
    if stationary == "shuffled":
        order = random_state(seed, STATIONARY_ORDER).permutation(order)
    elif stationary is not None:
        raise ValueError(f'stationary must be None or "shuffled" for arrays, not {stationary!r}')
    parts = [order[a:b] for a, b in itertools.pairwise(edges)]
    if shuffle:
        parts = [random_state(seed, SAMPLE_ORDER, k).permutation(part) for k, part in enumerate(parts)]
    if test_boundaries:
        test_parts = [np.arange(a, b) for a, b in itertools.pairwise(test_edges)]
    else:
        test_parts = [np.flatnonzero(np.isin(y_test, y[part])) if classes else np.arange(len(x_test)) for part in parts]
    content = _content_hash(x, y, x_test, y_test)
    digests = [np.asarray(part, "<i8").tobytes() for part in (*parts, edges, *test_parts)]
    info = StreamInfo(
        definition=DEFINITION,
        fingerprint=fingerprint_of(f"{DEFINITION}\n{content}\n{classes}\n", digests),
        source=source if isinstance(source, str) else "arrays",
        stationary=stationary,
        experiences=[
            ExperienceInfo([classes[k] for k in np.unique(y[part])] if classes else [], int(start), len(part), 0)
            for part, start in zip(parts, edges, strict=False)
        ],
        for_learner=LearnerInfo(
            n_outputs=len(classes) or y.shape[1],
            input_shape=x.shape[1:],
            task="classification" if classes else "regression",
            n_samples=len(x),
        ),
        source_hash=content[:32],
    )
    return Stream(
        info,
        train=[ArraySamples(x, y, part) for part in parts],
        test=[ArraySamples(x_test, y_test, part) for part in test_parts],
    )


class ArraySamples:
    """Some samples of arrays, in an order; see ``streams.samples.Samples``.

    Example:
        >>> samples = ArraySamples(np.eye(3, dtype=np.float32), np.array([4, 5, 6]), np.array([2, 0]))
        >>> samples.batch(slice(0, 1))[1].tolist()
        [6]
    """

    def __init__(self, x: NDArray[np.float32], y: NDArray[Any], index: NDArray[np.integer]) -> None:
        self._x, self._y, self._index = x, y, index

    def __len__(self) -> int:
        return len(self._index)

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return some of the samples and their targets."""
        chosen = self._index[steps]
        return self._x[chosen], self._y[chosen]

    @property
    def labels(self) -> NDArray[Any]:
        """Target of each sample."""
        return self._y[self._index]


def _checked(source: SourceSpec, task: Task | None) -> tuple[NDArray[Any], ...]:
    """Samples as float32 [N, …], and targets as integers [N] or float32 [N, targets], learned from and held out."""
    arrays: Sequence[Any] = _arrays(source)
    if len(arrays) not in (2, 4):
        raise ValueError(f"a source of arrays is (x, y) or (x, y, x_test, y_test), not {len(arrays)} things")
    given: list[NDArray[Any]] = [np.asarray(array) for array in arrays]
    x, y = given[:2]
    held_out = given[2:] or [x[:0], y[:0]]
    if task == "regression" or (task is None and y.dtype.kind == "f"):
        y, held_out[1] = (of.reshape(len(of), math.prod(of.shape[1:])).astype(np.float32) for of in (y, held_out[1]))
    elif y.dtype.kind not in "biu" or y.ndim != 1:
        raise ValueError(f"classes must be integers of shape [N], not {y.dtype} of shape {y.shape}")
    for name, samples, targets in (("", x, y), ("_test", held_out[0], held_out[1])):
        if samples.dtype.kind not in "biuf" or samples.ndim < 2:
            raise ValueError(f"x{name} must hold numbers of shape [N, …], not {samples.dtype} of shape {samples.shape}")
        if len(samples) != len(targets):
            raise ValueError(f"x{name} has {len(samples)} samples, but y{name} has {len(targets)} targets")
        if samples.shape[1:] != x.shape[1:] or targets.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"x_test has the shape {samples.shape} and y_test {targets.shape}, which do not fit x and y"
            )
        if not (np.isfinite(samples).all() and np.isfinite(targets).all()):
            raise ValueError(
                f"x{name} or y{name} holds NaN or infinite numbers; leave these samples out or fill them in"
            )
    return x.astype(np.float32), y, held_out[0].astype(np.float32), held_out[1]


def _arrays(source: SourceSpec) -> Sequence[Any]:
    if not isinstance(source, str):
        return source
    if source == "digits":
        digits = load_source(source)
        splits = (
            (np.asarray(split.x).reshape(len(split.y), -1) / 255, split.y) for split in (digits.train, digits.test)
        )
        return [part for split in splits for part in split]
    if not source.startswith(PREFIX):
        raise ValueError(f"the source of array_stream is arrays, {PREFIX}FILE or digits, not '{source}'")
    return read_arrays(source)


def _numbered(y: NDArray[Any], y_test: NDArray[Any]) -> tuple[list[Any], NDArray[np.int64], NDArray[np.int64]]:
    """The classes that are learned, and each sample's place among them."""
    classes = np.unique(y)
    unknown = np.setdiff1d(y_test, classes)
    if len(unknown):
        raise ValueError(f"y_test has classes that y lacks: {unknown[:5].tolist()}")
    return classes.tolist(), np.searchsorted(classes, y), np.searchsorted(classes, y_test)


def _edges(name: str, boundaries: Sequence[int], n: int) -> list[int]:
    """The first sample of each experience, and the number of all samples."""
    edges = [0, *map(int, boundaries), n]
    if boundaries and any(a >= b for a, b in itertools.pairwise(edges)):
        raise ValueError(f"{name} must be rising numbers between 1 and {n - 1}, not {list(boundaries)}")
    return edges


def _content_hash(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.kind} {array.shape}".encode())
        digest.update(array.astype("<f4" if array.dtype.kind == "f" else "<i8").tobytes())
    return digest.hexdigest()
