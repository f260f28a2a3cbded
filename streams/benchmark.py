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
from avalanche.benchmarks.utils import ConstantSequence, DataAttribute
from avalanche.benchmarks.utils.classification_dataset import TaskAwareSupervisedClassificationDataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from streams.plan import Plan, Stationary
from streams.sources import ImageSet, ImageSource
from streams.stationary import make_stationary


@dataclass(frozen=True)
class LearnerInfo:
    """All that a learner or a network may be sized from; nothing in it tells where an experience ends.

    Attributes:
        n_outputs: number of outputs of the network.
        input_shape: channels, height and width.
        task: "classification".
        n_samples: length of the stream.
    """

    n_outputs: int
    input_shape: tuple[int, int, int]
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
        self._index = plan.index[steps].tolist()
        self._change = plan.change[steps].tolist()
        self._permutations = [torch.from_numpy(permutation) for permutation in permutations]
        self.targets = plan.label[steps].tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = self._pixels[self._index[i]].permute(2, 0, 1)
        if self._change[i] >= 0:
            image = image.flatten(1)[:, self._permutations[self._change[i]]].view(image.shape)
        return scale(image), self.targets[i]


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


def _avalanche_dataset(dataset: ImageDataset) -> TaskAwareSupervisedClassificationDataset:
    """Add what Avalanche's strategies expect: targets, and a task label, the same for all samples."""
    # Avalanche looks at the first element of a ConstantSequence, which a test split without these classes lacks
    task_labels = ConstantSequence(0, len(dataset)) if len(dataset) else []
    attributes = [
        DataAttribute(dataset.targets, "targets"),
        DataAttribute(task_labels, "targets_task_labels", use_in_getitem=True),
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
