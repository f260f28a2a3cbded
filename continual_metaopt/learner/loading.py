"""The samples of an experience, one mini-batch after the other."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from avalanche.benchmarks import OnlineCLExperience
from torch import Tensor

from continual_metaopt.engines.undisturbed import random_numbers_kept
from continual_metaopt.streams.benchmark import samples_behind

READ_AT_ONCE = 32  # samples


def n_batches(n_samples: int, batch_size: int) -> int:
    """Number of mini-batches that samples are cut into, of which the last may be smaller."""
    return -(-n_samples // batch_size)


def first_batch(dataloader: Any) -> Sequence[Tensor]:
    """The first mini-batch, without drawing the random numbers that its transformations need."""
    with random_numbers_kept():
        batch: Sequence[Tensor] = next(iter(dataloader))
    return batch


def experience_number(experience: Any) -> int:
    """Number of an experience in its stream, for the record; for a piece of an experience, the number of the whole."""
    experience = experience.logging()  # the mode in which what is hidden from learners can be read
    if isinstance(experience, OnlineCLExperience):
        experience = experience.origin_experience.logging()
    number: int = experience.current_experience
    return number


class SampleLoader:
    """Presents a data set's samples in its order, as mini-batches, of which the last may be smaller.

    Args:
        dataset: tuples (input, target, …).
        first: number of the sample to begin with.
        drop_last: leave the last mini-batch out if it is smaller.
    """

    def __init__(self, dataset: Any, first: int = 0, batch_size: int = 1, drop_last: bool = False) -> None:
        self.dataset = dataset
        self.first = first
        self.batch_size = batch_size
        n = len(dataset)
        self.end = n - (n - first) % batch_size if drop_last else n

    def __len__(self) -> int:
        return n_batches(self.end - self.first, self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for start in range(self.first, self.end, self.batch_size):
            samples = [self.dataset[i] for i in range(start, min(start + self.batch_size, self.end))]
            yield [torch.stack([torch.as_tensor(value) for value in part]) for part in zip(*samples, strict=True)]


def read_samples(
    loader: SampleLoader, device: torch.device, take_inputs: Callable[[Tensor], None] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read inputs and targets on a device; ``take_inputs`` is given the inputs of each mini-batch as well."""
    for x, y in _read(loader, device):
        if take_inputs is not None:
            take_inputs(x)
        yield x, y


def _read(loader: SampleLoader, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Read several mini-batches at once where that gives the same samples."""
    samples, size = samples_behind(loader.dataset), loader.batch_size
    if samples is None:
        for x, y, *_ in loader:
            yield x.to(device), y.to(device)
        return
    # these samples are the same whenever they are read, and it takes less time to read some at once
    at_once = size * n_batches(READ_AT_ONCE, size)
    for start in range(loader.first, loader.end, at_once):
        batch = samples.batch(slice(start, min(start + at_once, loader.end)))
        inputs, targets = (torch.from_numpy(part).to(device).split(size) for part in batch)
        for x, y in zip(inputs, targets, strict=True):
            yield x.clone(), y  # in memory of its own, as if it had been read alone
