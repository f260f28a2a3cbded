"""The samples of one experience, as arrays: what a learner is given, without torch and Avalanche."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.images import ImageSet
from continual_metaopt.streams.input_changes import InputChange
from continual_metaopt.streams.lazy_images import ReadAhead
from continual_metaopt.streams.plan import Plan

BLOCK = 4096  # generated samples that are made together


class Samples(Protocol):
    """Consecutive samples of a stream."""

    def __len__(self) -> int: ...

    def batch(self, steps: slice) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the samples at some steps, counted from the first one of the experience.

        They are inputs, float32 [n, …] or, of symbols, int64 [n, …], and targets, int64 [n] for classes or float32
        [n, outputs], contiguous and the caller's own.
        """
        ...


class ImageSamples:
    """Images [C, H, W] scaled to [−1, 1] and integer labels: the samples of a plan at some steps.

    Held-out ones are not learned from; changes that are drawn anew for every sample differ then. Images that are not
    decoded are read by ``read_ahead``, in the plan's order.

    Attributes:
        index: position of each sample's image in the source's split, [n].
        labels: of each sample, [n].
        change: number of each sample's input change, [n]; −1 for none.

    Example:
        >>> from continual_metaopt.streams import plan_stream
        >>> inputs, labels = plan_stream("permuted_inputs").train[0].batch(slice(0, 3))
        >>> inputs.shape, labels.tolist()
        ((3, 1, 8, 8), [7, 5, 9])
    """

    def __init__(
        self,
        images: ImageSet,
        plan: Plan,
        steps: slice,
        input_change: InputChange | None = None,
        held_out: bool = False,
        read_ahead: ReadAhead | None = None,
    ) -> None:
        self.index, self.change, self.labels = plan.index[steps], plan.change[steps], plan.label[steps]
        self._images, self._steps = images, range(steps.start, steps.stop)  # shared by all experiences, not copied
        self._input_change, self._held_out, self._read_ahead = input_change, held_out, read_ahead

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return some of the images and their labels; see ``Samples``."""
        if self._read_ahead is None:
            images = self._images.x[self.index[steps]]
        else:
            images = self._read_ahead.read(self._steps[steps])
        change = self.change[steps]
        if self._input_change is not None and (change >= 0).any():
            presented = np.array(self._steps[steps], np.int64)
            images = self._input_change.apply(images, change, ~presented if self._held_out else presented)
        return _channels_first(images), self.labels[steps].astype(np.int64)

    def unchanged(self, steps: slice) -> NDArray[np.float32]:
        """Return some of the images as they were before their change, float32 [n, C, H, W]; see ``Samples``."""
        return _channels_first(self._images.x[self.index[steps]])

    @property
    def classes(self) -> NDArray[np.int64]:
        """Number of each sample's class in the source, whatever its label is here, [n]."""
        return self._images.y[self.index]


MakeSamples = Callable[[int, int], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Inputs, float32 [n, numbers], and targets, float32 [n, outputs], of a stream's samples from one number to before
another one; the caller's own."""


class GeneratedSamples:
    """Samples of a regression, made when they are asked for, so that a stream of any length takes little memory.

    Example:
        >>> part = GeneratedSamples(lambda a, b: (np.zeros((b - a, 1)), -np.arange(a, b)[:, None]), range(10, 20))
        >>> part.batch(slice(3, 5))[1].tolist()
        [[-13], [-14]]
    """

    def __init__(self, make: MakeSamples, steps: range) -> None:
        self._make, self._steps = make, steps

    def __len__(self) -> int:
        return len(self._steps)

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return some of the inputs and their targets; see ``Samples``."""
        wanted = self._steps[steps]
        if len(wanted) == 0:
            return self._make(0, 0)
        inputs, targets = self._make(min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1]) + 1)
        return np.ascontiguousarray(inputs[:: wanted.step]), np.ascontiguousarray(targets[:: wanted.step])


class Blocks:
    """Rows that are made in blocks of ``BLOCK``, the last of which is kept, so that any number takes little memory.

    Args:
        make: makes the block of a number, [BLOCK, columns], always the same one.

    Example:
        >>> Blocks(lambda number: np.full((BLOCK, 1), number)).rows(4095, 4097).tolist()
        [[0], [1]]
    """

    def __init__(self, make: Callable[[int], NDArray[Any]]) -> None:
        self._make, self._last = make, (-1, np.zeros(0))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return the rows from ``start`` to before ``stop``."""
        parts = []
        for number in range(start // BLOCK, max(-(-stop // BLOCK), start // BLOCK + 1)):
            if self._last[0] != number:
                self._last = number, self._make(number)
            parts.append(self._last[1][max(start - number * BLOCK, 0) : stop - number * BLOCK])
        return np.concatenate(parts)


def scale(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scale bytes to floats, (x − 0.5) / 0.5 for x in [0, 1], as the authors' released code does.

    Example:
        >>> scale(np.array([0, 51, 255], np.uint8))
        array([-1. , -0.6,  1. ], dtype=float32)
    """
    scaled = images.astype(np.float32)
    scaled /= 255
    scaled -= 0.5
    scaled /= 0.5
    return scaled


def _channels_first(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return scale(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
