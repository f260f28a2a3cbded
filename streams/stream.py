"""A stream: what is presented when, as arrays, and everything that is known about it; needs no torch."""

import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.input_changes import InputChange
from continual_metaopt.streams.lazy_images import LazyImages, ReadAhead
from continual_metaopt.streams.plan import Plan, Stationary
from continual_metaopt.streams.samples import GeneratedSamples, ImageSamples, MakeSamples, Samples
from continual_metaopt.streams.shown import html_table
from continual_metaopt.streams.signatures import described_options, with_options
from continual_metaopt.streams.sources import MEMORY_LIMIT, SourceSpec, load_source
from continual_metaopt.streams.stationary import make_stationary
from continual_metaopt.streams.transitions import blur_boundaries

MOST_ROWS = 20  # experiences that are shown in a notebook, and classes of each
PORTION = 2**14  # samples of a regression that are made at once for the fingerprint


@dataclass(frozen=True)
class LearnerInfo:
    """All that a learner or a network may be sized from; nothing in it tells where an experience ends.

    Attributes:
        n_outputs: number of outputs of the network.
        input_shape: channels, height and width of images, or (numbers,); of text (2,), a symbol and its place.
        task: "classification" or "regression".
        n_samples: length of the stream.
        batch_size: number of samples that are learned from at once.
        input_type: "float32", or "int64" where inputs are symbols, which a network looks up.

    Example:
        >>> from continual_metaopt.streams import plan_stream
        >>> plan_stream("multi_epoch", epochs=2).info.for_learner.n_samples
        2800
    """

    n_outputs: int
    input_shape: tuple[int, ...]
    task: str
    n_samples: int
    batch_size: int = 1
    input_type: str = "float32"


@dataclass(frozen=True)
class ExperienceInfo:
    """One experience: the source's classes in it, its first step, its length, and samples met before."""

    classes: list[Any]
    first_step: int
    n_samples: int
    n_seen_before: int


@dataclass(frozen=True)
class StreamInfo:
    """Everything about a stream, for records and analysis; ``for_learner`` is what a learner may know.

    Attributes:
        definition: name and version of the stream's definition, such as "class_split v1".
        fingerprint: hash over all indices, labels and input changes and the source's stored bytes. Streams with equal
            fingerprints present equal samples in equal order.
        source: name of the source.
        stationary: None, "shuffled", "repeat" or "frozen".
        experiences: what each experience holds.
        for_learner: sizes.
        test_at: numbers of samples after which a run measures held-out accuracy, beside the ends of experiences.
        source_hash: hash over the source's stored bytes and labels; None for generated samples.
        splits: which files were taken for which split, in words; empty for sources where names do not decide it.
        bytes_per_sample: bytes of text that a sample stands for, on average; None where samples are no text.

    Example:
        >>> from continual_metaopt.streams import plan_stream
        >>> plan_stream("class_split", classes_per_experience=5).info.boundaries
        [0, 717]
    """

    definition: str
    fingerprint: str
    source: str
    stationary: Stationary | None
    experiences: list[ExperienceInfo]
    for_learner: LearnerInfo
    test_at: list[int] = field(default_factory=list)
    source_hash: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    bytes_per_sample: float | None = None

    def __post_init__(self) -> None:
        empty = [number for number, experience in enumerate(self.experiences) if experience.n_samples < 1]
        if empty or not self.experiences:
            what = f"experience {empty[0]} has no samples" if empty else "there is no experience"
            raise ValueError(f"{self.definition}: {what}; choose options of the stream that give each at least one")

    def __repr__(self) -> str:
        sizes, n = self.for_learner, len(self.experiences)
        variant = f", stationary: {self.stationary}" if self.stationary else ""
        shape, outputs = (
            " × ".join(map(str, sizes.input_shape)),
            f"{sizes.n_outputs} output{'s' * (sizes.n_outputs != 1)}",
        )
        return (
            f"StreamInfo({self.definition} of {self.source}{variant}: {sizes.n_samples:,} samples in {n:,} "
            f"experience{'s' * (n != 1)}, {sizes.task} of inputs {shape}, {outputs}; fingerprint {self.fingerprint})"
        )

    def _repr_html_(self) -> str:
        shown = self.experiences[:MOST_ROWS]
        columns = {
            "experience": range(len(shown)),
            "first step": [one.first_step for one in shown],
            "samples": [one.n_samples for one in shown],
            "classes": [", ".join(map(str, one.classes[:MOST_ROWS])) for one in shown],
        }
        more = len(self.experiences) - len(shown)
        return html_table(columns, repr(self)) + (f"<p>and {more:,} more experiences</p>" if more else "")

    @property
    def boundaries(self) -> list[int]:
        """First step of each experience."""
        return [experience.first_step for experience in self.experiences]

    def said_of_splits(self) -> str:
        """Say which files were taken for which split, in a line; empty if it is not a matter of names."""
        parts = "; ".join(f"{split}: {files}" for split, files in self.splits.items())
        return f"{self.source}: {parts}" if parts else ""

    def as_record(self) -> dict[str, Any]:
        """Describe the stream flatly, as a run directory keeps it."""
        return {
            "definition": self.definition,
            "fingerprint": self.fingerprint,
            "source": self.source,
            "source_hash": self.source_hash,
            "splits": self.splits,
            "stationary": self.stationary,
            "n_experiences": len(self.experiences),
            "boundaries": self.boundaries,
            "test_at": self.test_at,
            "bytes_per_sample": self.bytes_per_sample,
            **asdict(self.for_learner),
        }


@dataclass(frozen=True)
class Stream:
    """A stream as arrays: what is known about it, and its training and held-out samples, one entry per experience.

    ``course`` is what changes behind the samples of a regression, by name: functions of two steps that give it for the
    samples from the first to before the second one, [n] or [n, parts]. No learner is told.

    Example:
        >>> from continual_metaopt.streams import plan_stream
        >>> [len(samples) for samples in plan_stream("class_split", classes_per_experience=5).train]
        [717, 721]
    """

    info: StreamInfo
    train: Sequence[Samples]
    test: Sequence[Samples]
    course: Mapping[str, Callable[[int, int], NDArray[Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class ImagePlan:
    """What a stream of images presents: the result of a function that ``image_stream`` decorates.

    Attributes:
        train: plan for the source's training split.
        test: plan for its test split, with as many experiences.
        n_outputs: number of different labels.
        input_change: what the plans' changes do to an image; None where inputs stay.
        batch_size: number of samples that are learned from at once.
        test_at: numbers of samples after which held-out accuracy is to be measured; whole batches.
        relabel: gives the training samples other labels once their order is final, also in stationary variants; None
            where labels stay as planned.
    """

    train: Plan
    test: Plan
    n_outputs: int
    input_change: InputChange | None = None
    batch_size: int = 1
    test_at: tuple[int, ...] = ()
    relabel: Callable[[Plan], Plan] | None = None

    def __post_init__(self) -> None:
        if any(n % self.batch_size for n in self.test_at):
            raise ValueError(f"test_at must be numbers of whole batches of {self.batch_size}, not {self.test_at}")


@dataclass(frozen=True)
class StreamAbout:
    """What a stream is, in short phrases for lists; a stream's function has it as its attribute ``about``.

    They say where inputs come from, what is different after a change, when it changes, how many samples there are, and
    what the outputs of the network stand for.
    """

    source: str
    changes: str
    when: str
    length: str
    head: str


Function = TypeVar("Function", bound=Callable[..., Any])


def about_stream(*, source: str, changes: str, when: str, length: str, head: str) -> Callable[[Function], Function]:
    """Say what a stream is, as its decorator; see ``StreamAbout`` for the phrases."""

    def attach(function: Function) -> Function:
        function.about = StreamAbout(source, changes, when, length, head)  # type: ignore[attr-defined]
        return function

    return attach


COMMON_OPTIONS = {
    "source": "of the images: digits, which needs no files; cifar100, cifar10, mnist, fashion_mnist, emnist or svhn; "
    "parquet:FILE_OR_FOLDER; folder:DIR; npz:FILE; in Python also arrays, see ``streams.sources.load_source``. Images "
    "are turned as their EXIF data says, unless the source begins with parquet+as_stored: or folder+as_stored:. With "
    "parquet+resize=32: or folder+resize=32:, the shorter side of each image is scaled to 32 pixels (or any size up to "
    "1024), and the middle square is kept.",
    "stationary": 'None, "shuffled", "repeat" or "frozen"; see ``streams.stationary``.',
    "frozen_after": 'number of the last experience that brings a change, for "frozen".',
    "transition_width": "number of samples over which neighbouring experiences are mixed; see ``streams.transitions``.",
    "data_root": "folder of torchvision's files.",
    "skip_unreadable": "go on without images that cannot be decoded.",
    "memory_limit": "bytes; of images in files that take up more when decoded, only those that come next are decoded.",
}
RAISES = "ValueError: an option's value is unknown or out of range, or the images do not fit it."


def image_stream(
    definition: str, *, changes: str = "", when: str = "", length: str = "", head: str = ""
) -> Callable[[Callable[..., ImagePlan]], Callable[..., Stream]]:
    """Make a stream of a function that plans one, as its decorator.

    The function is given the images and the seed, and options of its own as keyword arguments. The stream has these
    options, ``source`` instead of the images, and what all streams of images have in common: stationary variants,
    gradual transitions, and how the source is read. Its signature and docstring tell all of them.

    Args:
        definition: name and version of the stream's definition, such as "class_split v1"; the version is raised
            whenever the same options come to mean another stream.
        changes, when, length, head: phrases for lists, kept as the stream's attribute ``about``, a ``StreamAbout``.
    """

    def decorate(plan: Callable[..., ImagePlan]) -> Callable[..., Stream]:
        def make(
            source: SourceSpec = "digits",
            *,
            seed: int = 0,
            stationary: Stationary | None = None,
            frozen_after: int = 0,
            transition_width: int = 0,
            data_root: str | Path = "data",
            skip_unreadable: bool = False,
            memory_limit: int = MEMORY_LIMIT,
            **options: Any,
        ) -> Stream:
            if frozen_after != 0 and stationary != "frozen":
                raise ValueError(f"frozen_after={frozen_after} goes with stationary='frozen', not with {stationary!r}")
            images = load_source(source, data_root, skip_unreadable, memory_limit)
            planned = plan(images, seed, **options)
            train, test = planned.train, planned.test
            if stationary is not None:
                train, test = make_stationary(train, test, stationary, seed, frozen_after)
            train = blur_boundaries(train, transition_width, seed)
            if planned.relabel is not None:
                train = planned.relabel(train)
            planned = replace(planned, train=train, test=test)
            return _stream_of_images(definition, images, planned, stationary, memory_limit)

        common = inspect.signature(make).parameters  # before make takes the plan's annotations
        functools.update_wrapper(make, plan)
        own = list(inspect.signature(plan).parameters.values())[2:]  # without images and seed
        parameters = [common["source"], *own, *(p for name, p in common.items() if name not in ("source", "options"))]
        make.__signature__ = inspect.Signature(parameters, return_annotation=Stream)  # type: ignore[attr-defined]
        options = {name: words for name, words in described_options(plan).items() if name != "images"}
        doc = with_options(inspect.getdoc(plan) or "", {"source": ""} | options | COMMON_OPTIONS)
        make.__doc__ = doc if "\nRaises:\n" in doc else f"{doc}\n\nRaises:\n    {RAISES}"
        return about_stream(source="any images", changes=changes, when=when, length=length, head=head)(make)

    return decorate


def options_of_streams(streams: Mapping[str, Callable[..., Stream]]) -> str:
    """List the options of each stream, with its default and as its docstring describes it."""
    sections: dict[str, dict[str, str]] = {name: {} for name in [*streams, "all streams of images"]}
    for name, stream in streams.items():
        described = described_options(stream)
        for option, parameter in inspect.signature(stream).parameters.items():
            is_common = "source" in described and described[option] == COMMON_OPTIONS.get(option)
            default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            section = sections["all streams of images" if is_common else name]
            section[option] = f"- {option}{default}: {described.get(option, '')}"
    lines = []
    for name, options in sections.items():
        lines += ["", f"Options of {name}:"]
        for text in options.values():
            lines += textwrap.wrap(text, 112, initial_indent=" " * 4, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _stream_of_images(
    definition: str, source: ImageSource, planned: ImagePlan, stationary: Stationary | None, memory_limit: int
) -> Stream:
    samples: dict[str, list[ImageSamples]] = {}
    train = planned.train
    for name, images, plan in (("train", source.train, train), ("test", source.test, planned.test)):
        # one for all experiences, since it reads beyond the end of each
        read_ahead = ReadAhead(images.x, plan.index, memory_limit) if isinstance(images.x, LazyImages) else None
        samples[name] = [
            ImageSamples(images, plan, steps, planned.input_change, name == "test", read_ahead)
            for steps in plan.experiences()
        ]
    experiences = [
        ExperienceInfo(
            classes=[source.classes[label] for label in np.unique(source.train.y[train.index[steps]])],
            first_step=steps.start,
            n_samples=steps.stop - steps.start,
            n_seen_before=seen_before,
        )
        for steps, seen_before in zip(train.experiences(), train.seen_before, strict=True)
    ]
    content = [] if planned.input_change is None else planned.input_change.content()
    digests = [train.digest(), planned.test.digest(), *([content] if isinstance(content, bytes) else content)]
    info = StreamInfo(
        definition,
        fingerprint_of(f"{definition}\n{source.content_hash}\n", digests),
        source.name,
        stationary,
        experiences,
        LearnerInfo(planned.n_outputs, source.input_shape, "classification", len(train.index), planned.batch_size),
        list(planned.test_at),
        source.content_hash[:32],
        source.splits,
    )
    return Stream(info, samples["train"], samples["test"])


def fingerprint_of(description: str, parts: Iterable[bytes]) -> str:
    """Hash what describes a stream and the bytes of its parts, as 32 hexadecimal digits."""
    digest = hashlib.sha256(description.encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]


def regression_stream(
    definition: str,
    make: MakeSamples,
    lengths: Sequence[int],
    *,
    content_hash: str,
    stationary: Stationary | None = None,
    course: Mapping[str, Callable[[int, int], NDArray[Any]]] | None = None,
) -> Stream:
    """Make a stream of a regression, whose samples are made when they are asked for, without held-out samples.

    All samples are made once, a portion at a time, for the fingerprint.

    Args:
        definition: name and version, as for ``image_stream``.
        make: makes samples, always the same ones, of the ``stationary`` variant that is told.
        lengths: number of samples of each experience.
        content_hash: of what else describes the stream.
        course: what changes behind the samples; see ``Stream``.

    Example:
        >>> def count(start, stop):
        ...     return (np.arange(start, stop, dtype=np.float32)[:, None],) * 2
        >>> regression_stream("counting v1", count, [3, 2], content_hash="").train[1].batch(slice(0, 2))[1].tolist()
        [[3.0], [4.0]]
    """
    starts = np.cumsum([0, *lengths]).tolist()
    experiences = [range(start, start + n) for start, n in zip(starts, lengths, strict=False)]
    inputs, outputs = make(0, 0)
    info = StreamInfo(
        definition=definition,
        fingerprint=fingerprint_of(f"{definition}\n{content_hash}\n{list(lengths)}\n", _presented(make, starts[-1])),
        source="generated",
        stationary=stationary,
        experiences=[ExperienceInfo([], steps.start, len(steps), 0) for steps in experiences],
        for_learner=LearnerInfo(outputs.shape[1], inputs.shape[1:], "regression", starts[-1]),
    )
    return Stream(
        info,
        train=[GeneratedSamples(make, steps) for steps in experiences],
        test=[GeneratedSamples(make, range(0)) for _ in experiences],
        course=course or {},
    )


def _presented(make: MakeSamples, n: int) -> Iterator[bytes]:
    """Yield the bytes of ``n`` inputs, made a portion at a time, and then those of their targets."""
    targets = []
    for start in range(0, n, PORTION):
        portion = make(start, min(start + PORTION, n))
        yield portion[0].astype("<f4").tobytes()
        targets.append(portion[1].astype("<f4").tobytes())
    yield from targets
