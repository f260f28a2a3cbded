"""From a stream's arrays to an Avalanche benchmark."""

from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

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

from continual_metaopt.streams.samples import Samples
from continual_metaopt.streams.stream import Stream, StreamInfo


class SampleDataset(Dataset[tuple[Tensor, Any]]):
    """A stream's samples as PyTorch's data sets give them: tensors, and integers for labels.

    Example:
        >>> from continual_metaopt.streams import plan_stream
        >>> image, label = SampleDataset(plan_stream("permuted_inputs").train[0])[0]
        >>> tuple(image.shape), label
        ((1, 8, 8), 7)
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        place = range(len(self))[i]
        (x,), (y,) = self.samples.batch(slice(place, place + 1))
        return torch.from_numpy(x), int(y) if y.ndim == 0 else torch.from_numpy(y)


class StreamBenchmark(CLScenario):
    """An Avalanche benchmark with ``train_stream`` and ``test_stream``, and ``info`` about the stream.

    Example:
        >>> from continual_metaopt.streams import plan_stream
        >>> benchmark = StreamBenchmark(plan_stream("class_split", classes_per_experience=5))
        >>> len(benchmark.train_stream), len(benchmark.train_stream[0].dataset)
        (2, 717)
    """

    info: StreamInfo

    def __init__(self, stream: Stream) -> None:
        classifies = stream.info.for_learner.task == "classification"
        wrap = _classification if classifies else _regression
        splits: dict[str, Any] = {"train": stream.train, "test": stream.test}
        datasets = {name: [wrap(samples) for samples in split] for name, split in splits.items()}
        benchmark = with_task_labels(benchmark_from_datasets(**datasets))
        super().__init__((with_classes_timeline(benchmark) if classifies else benchmark).streams.values())
        self.info = stream.info

    def __repr__(self) -> str:
        return f"StreamBenchmark({self.info!r})"

    def _repr_html_(self) -> str:
        return self.info._repr_html_()


def _classification(samples: Any) -> AvalancheDataset[Any]:
    """Add what Avalanche's strategies expect: targets, and a task label, the same for all samples."""
    attributes = [DataAttribute(samples.labels.tolist(), "targets"), _same_task(samples)]
    return TaskAwareSupervisedClassificationDataset([SampleDataset(samples)], data_attributes=attributes)


def _regression(samples: Samples) -> AvalancheDataset[Any]:
    return AvalancheDataset([SampleDataset(samples)], data_attributes=[_same_task(samples)])


def _same_task(samples: Samples) -> Any:
    # Avalanche looks at the first element of a ConstantSequence, which an empty split lacks
    labels = ConstantSequence(0, len(samples)) if len(samples) else []
    return DataAttribute(labels, "targets_task_labels", use_in_getitem=True)


def read_samples(dataset: Any, steps: slice) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read consecutive samples of any data set of tuples (input, target, …), many at once from this package's streams.

    ``steps`` start and stop within the data set. Returns inputs [n, …] and targets [n, …].
    """
    samples = samples_behind(dataset)
    if samples is not None:
        return samples.batch(steps)
    items = [dataset[i] for i in range(steps.start, steps.stop)]
    if not items:
        return np.zeros(0, np.float32), np.zeros(0, np.int64)
    inputs, targets = (np.stack([np.asarray(item[part]) for item in items]) for part in (0, 1))
    return inputs, targets


def samples_behind(dataset: Any) -> Samples | None:
    """Find the samples that an Avalanche data set presents, all of them, in order, and without transformations."""
    flat = getattr(dataset, "_flat_data", None)
    parts = getattr(flat, "_datasets", [])
    plain = all(_is_empty(getattr(flat, groups, None)) for groups in ("_transform_groups", "_frozen_transform_groups"))
    own = len(parts) == 1 and type(parts[0]) is SampleDataset
    return parts[0].samples if plain and own and getattr(flat, "_indices", 0) is None else None


def _is_empty(groups: Any) -> bool:
    # replace_current_transform_group() puts a transformation into groups that are called empty
    return type(groups) is EmptyTransformGroups and all(
        transform is None for transform in groups.transform_groups.values()
    )
