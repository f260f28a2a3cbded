"""From a plan and a source to an Avalanche benchmark."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import streams.quiet_avalanche  # noqa: F401

import numpy as np
import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence, DataAttribute
from avalanche.benchmarks.utils.classification_dataset import TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.transform_groups import EmptyTransformGroups
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from streams.images import ImageSet, ImageSource
from streams.plan import Plan, Stationary
from streams.stationary import make_stationary


@dataclass(frozen=True)
class LearnerInfo:
    """All that a learner or a network may be sized from; nothing in it tells where an experience ends.

    Attributes:
        n_outputs: number of outputs of the network.
        input_shape: channels, height and width of images, or (numbers,).
        task: "classification" or "regression".
        n_samples: length of the stream.
    """

    n_outputs: int
    input_shape: tuple[int, ...]
    task: str
    n_samples: int


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
        stationary: None, "shuffled" or "repeat".
        experiences: what each experience holds.
        for_learner: sizes.
    """

    definition: str
    fingerprint: str
    source: str
    stationary: Stationary | None
    experiences: list[ExperienceInfo]
    for_learner: LearnerInfo

    @property
    def boundaries(self) -> list[int]:
        """First step of each experience."""
        return [experience.first_step for experience in self.experiences]

    def as_record(self) -> dict[str, Any]:
        """The flat description that a run directory keeps."""
        return {
            "definition": self.definition,
            "fingerprint": self.fingerprint,
            "source": self.source,
            "stationary": self.stationary,
            "n_experiences": len(self.experiences),
            "boundaries": self.boundaries,
            **asdict(self.for_learner),
        }


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Samples of one experience: float images [C, H, W] scaled to [−1, 1] and integer labels.

    Args:
        images: the source's split.
        plan: the stream's plan for that split.
        steps: which of the plan's samples.
        permutations: input permutations that ``plan.change`` refers to, each int64 [H · W].
    """

    def __init__(self, images: ImageSet, plan: Plan, steps: slice, permutations: Sequence[NDArray[np.int64]]) -> None:
        self._pixels = torch.from_numpy(images.x)  # shared by all experiences, not copied
        self._index, self._change, self._label = plan.index[steps], plan.change[steps], plan.label[steps]
        _, height, width, _ = images.x.shape
        # the last one leaves pixels in place: that is where a change of −1 points to
        self._permutations = [*map(torch.from_numpy, permutations), torch.arange(height * width)]
        self.targets = self._label.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self._pixels[int(self._index[i])].permute(2, 0, 1)
        if self._change[i] >= 0:
            image = image.flatten(1)[:, self._permutations[self._change[i]]].view(image.shape)
        return scale(image), self.targets[i]

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Many samples at once, bit for bit those that indexing gives one by one.

        Args:
            steps: which samples, counted from the first one of the experience.

        Returns:
            Images, float32 [n, C, H, W], and labels, int64 [n], both contiguous and the caller's own.
        """
        images = scale(torch.from_numpy(self._pixels.numpy()[self._index[steps]]).permute(0, 3, 1, 2))
        change = self._change[steps]
        if (change >= 0).any():
            places = torch.stack([self._permutations[k] for k in change])[:, None]  # [n, 1, H · W]
            images = images.flatten(2).gather(2, places.expand(-1, images.shape[1], -1)).view(images.shape)
        return images.numpy(), self._label[steps].copy()


class VectorDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples of one experience of a regression, as they are.

    Args:
        inputs: float32 [n, numbers].
        targets: float32 [n, outputs].
    """

    def __init__(self, inputs: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
        self._inputs, self._targets = torch.from_numpy(inputs), torch.from_numpy(targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self._inputs[i].clone(), self._targets[i].clone()

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Many samples at once, bit for bit those that indexing gives one by one.

        Args:
            steps: which samples, counted from the first one of the experience.

        Returns:
            Inputs [n, numbers] and targets [n, outputs], both contiguous and the caller's own.
        """
        return self._inputs[steps].numpy().copy(), self._targets[steps].numpy().copy()


def read_samples(dataset: Any, steps: slice) -> tuple[NDArray[Any], NDArray[Any]]:
    """Consecutive samples of any data set, many at once where it is an experience of this package's streams.

    Args:
        dataset: of tuples (input, target, …).
        steps: which samples; start and stop within the data set.

    Returns:
        Inputs [n, …] and targets [n, …].
    """
    samples = samples_behind(dataset)
    if samples is not None:
        return samples.batch(steps)
    items = [dataset[i] for i in range(steps.start, steps.stop)]
    if not items:
        return np.zeros(0, np.float32), np.zeros(0, np.int64)
    inputs, targets = (np.stack([np.asarray(item[part]) for item in items]) for part in (0, 1))
    return inputs, targets


def samples_behind(dataset: Any) -> ImageDataset | VectorDataset | None:
    """The samples that an Avalanche data set presents, all of them, in order, and without transformations."""
    flat = getattr(dataset, "_flat_data", None)
    parts = getattr(flat, "_datasets", [])
    plain = all(_is_empty(getattr(flat, groups, None)) for groups in ("_transform_groups", "_frozen_transform_groups"))
    own = len(parts) == 1 and type(parts[0]) in (ImageDataset, VectorDataset)
    return parts[0] if plain and own and getattr(flat, "_indices", 0) is None else None


def _is_empty(groups: Any) -> bool:
    # replace_current_transform_group() puts a transformation into groups that are called empty
    return type(groups) is EmptyTransformGroups and all(
        transform is None for transform in groups.transform_groups.values()
    )


def scale(image: Tensor) -> Tensor:
    """Scale a uint8 image to floats, (x − 0.5) / 0.5 for x in [0, 1], as the authors' released code does."""
    return image.to(torch.float32, memory_format=torch.contiguous_format).div_(255).sub_(0.5).div_(0.5)


class StreamBenchmark(CLScenario):
    """An Avalanche benchmark with ``train_stream`` and ``test_stream``, and ``info`` about the stream."""

    def __init__(self, streams: Any, info: StreamInfo) -> None:
        super().__init__(streams)
        self.info = info


def build_benchmark(
    definition: str,
    source: ImageSource,
    train: Plan,
    test: Plan,
    *,
    n_outputs: int,
    seed: int,
    stationary: Stationary | None,
    permutations: Sequence[NDArray[np.int64]] = (),
) -> StreamBenchmark:
    """Turn plans into an Avalanche benchmark, after taking out the change if a stationary variant is asked for.

    Args:
        definition: name and version of the stream's definition.
        source: the images.
        train: plan for the source's training split.
        test: plan for its test split, with as many experiences.
        n_outputs: number of different labels.
        seed: of the stationary variant's order.
        stationary: None, "shuffled" or "repeat".
        permutations: the input permutations that the plans refer to.
    """
    if stationary is not None:
        train, test = make_stationary(train, test, stationary, seed)
    datasets = {
        name: [_avalanche_dataset(ImageDataset(images, plan, steps, permutations)) for steps in plan.experiences()]
        for name, images, plan in (("train", source.train, train), ("test", source.test, test))
    }
    experiences = [
        ExperienceInfo(
            classes=[source.classes[label] for label in np.unique(source.train.y[train.index[steps]])],
            first_step=steps.start,
            n_samples=steps.stop - steps.start,
            n_seen_before=seen_before,
        )
        for steps, seen_before in zip(train.experiences(), train.seen_before, strict=True)
    ]
    info = StreamInfo(
        definition=definition,
        fingerprint=_fingerprint(definition, source, (train, test), permutations),
        source=source.name,
        stationary=stationary,
        experiences=experiences,
        for_learner=LearnerInfo(n_outputs, source.input_shape, "classification", len(train.index)),
    )
    benchmark = with_classes_timeline(with_task_labels(benchmark_from_datasets(**datasets)))
    return StreamBenchmark(benchmark.streams.values(), info)


def build_regression(
    definition: str,
    inputs: NDArray[np.float32],
    targets: NDArray[np.float32],
    lengths: Sequence[int],
    *,
    content_hash: str,
) -> StreamBenchmark:
    """Turn the samples of a regression into an Avalanche benchmark without held-out samples.

    Args:
        definition: name and version of the stream's definition.
        inputs: float32 [n, numbers], in the order of the stream.
        targets: float32 [n, outputs].
        lengths: number of samples of each experience; their sum is n.
        content_hash: of what else describes the stream.
    """
    starts = np.cumsum([0, *lengths]).tolist()
    experiences = [slice(start, start + n) for start, n in zip(starts, lengths, strict=False)]
    datasets = {
        "train": [VectorDataset(inputs[steps], targets[steps]) for steps in experiences],
        "test": [VectorDataset(inputs[:0], targets[:0]) for _ in experiences],
    }
    digest = hashlib.sha256(f"{definition}\n{content_hash}\n{list(lengths)}\n".encode())
    for values in (inputs, targets):
        digest.update(values.astype("<f4").tobytes())
    info = StreamInfo(
        definition=definition,
        fingerprint=digest.hexdigest()[:32],
        source="generated",
        stationary=None,
        experiences=[ExperienceInfo([], steps.start, steps.stop - steps.start, 0) for steps in experiences],
        for_learner=LearnerInfo(targets.shape[1], inputs.shape[1:], "regression", len(inputs)),
    )
    parts = {name: [_with_task_label(dataset) for dataset in split] for name, split in datasets.items()}
    benchmark = with_task_labels(benchmark_from_datasets(**parts))
    return StreamBenchmark(benchmark.streams.values(), info)


def _with_task_label(dataset: VectorDataset) -> AvalancheDataset[Any]:
    task_labels = DataAttribute(_same_task(dataset), "targets_task_labels", use_in_getitem=True)
    return AvalancheDataset([dataset], data_attributes=[task_labels])


def _same_task(dataset: ImageDataset | VectorDataset) -> Any:
    """A task label for each sample, all alike."""
    # Avalanche looks at the first element of a ConstantSequence, which an empty split lacks
    return ConstantSequence(0, len(dataset)) if len(dataset) else []


def _avalanche_dataset(dataset: ImageDataset) -> TaskAwareSupervisedClassificationDataset:
    """Add what Avalanche's strategies expect: targets, and a task label, the same for all samples."""
    attributes = [
        DataAttribute(dataset.targets, "targets"),
        DataAttribute(_same_task(dataset), "targets_task_labels", use_in_getitem=True),
    ]
    return TaskAwareSupervisedClassificationDataset([dataset], data_attributes=attributes)


def _fingerprint(
    definition: str, source: ImageSource, plans: Sequence[Plan], permutations: Sequence[NDArray[np.int64]]
) -> str:
    digest = hashlib.sha256(f"{definition}\n{source.content_hash}\n".encode())
    for plan in plans:
        digest.update(plan.digest())
    for permutation in permutations:
        digest.update(permutation.astype("<i8").tobytes())
    return digest.hexdigest()[:32]
