"""The samples of one experience, as arrays: what a learner is given, without torch and Avalanche."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streams.images import ImageSet
from streams.input_changes import InputChange
from streams.lazy_images import ReadAhead
from streams.plan import Plan


class Samples(Protocol):
    """Consecutive samples of a stream."""

    def __len__(self) -> int: ...

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Some of the samples.

        Args:
            steps: which ones, counted from the first one of the experience.

        Returns:
            Inputs, float32 [n, …], and targets, int64 [n] for classes or float32 [n, outputs], contiguous and the
            caller's own.
        """
        ...


class ImageSamples:
    """Images [C, H, W] scaled to [−1, 1] and integer labels.

    Args:
        images: the source's split.
        plan: the stream's plan for that split.
        steps: which of the plan's samples.
        input_change: what the plan's changes do to an image.
        read_ahead: reads the images in the plan's order, where they are not decoded.
    """

    def __init__(
        self,
        images: ImageSet,
        plan: Plan,
        steps: slice,
        input_change: InputChange | None = None,
        read_ahead: ReadAhead | None = None,
    ) -> None:
        self._pixels = images.x  # shared by all experiences, not copied
        self._places, self._read_ahead = range(len(plan.index))[steps], read_ahead
        self._index, self._change, self.labels = plan.index[steps], plan.change[steps], plan.label[steps]
        self._input_change = input_change

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Some of the images and their labels; see ``Samples``."""
        if self._read_ahead is None:
            images = self._pixels[self._index[steps]]
        else:
            images = self._read_ahead.read(self._places[steps])
        change = self._change[steps]
        if self._input_change is not None and (change >= 0).any():
            images = self._input_change.apply(images, change)
        return scale(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), self.labels[steps].astype(np.int64)


class VectorSamples:
    """Inputs and targets of a regression, as they are.

    Args:
        inputs: float32 [n, numbers].
        targets: float32 [n, outputs].
    """

    def __init__(self, inputs: NDArray[np.float32], targets: NDArray[np.float32]) -> None:
        self._inputs, self._targets = inputs, targets

    def __len__(self) -> int:
        return len(self._targets)

    def batch(self, steps: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Some of the inputs and their targets; see ``Samples``."""
        return self._inputs[steps].copy(), self._targets[steps].copy()


def scale(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scale bytes to floats, (x − 0.5) / 0.5 for x in [0, 1], as the authors' released code does."""
    scaled = images.astype(np.float32)
    scaled /= 255
    scaled -= 0.5
    scaled /= 0.5
    return scaled
