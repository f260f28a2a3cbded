"""Changes of the input: what a stream does to an image before a learner sees it.

All of them work on bytes in integer arithmetic, so that the same seed gives the same pixels on every platform.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class InputChange(Protocol):
    """Changes images; which change a sample gets is a number in the stream's plan."""

    def apply(self, images: NDArray[np.uint8], change: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Changed images.

        Args:
            images: uint8 [n, H, W, C]; may be changed in place.
            change: number of each image's change, [n]; images with −1 stay as they are.
        """
        ...

    def content(self) -> bytes:
        """All that decides what the numbers mean, for the stream's fingerprint."""
        ...


class PixelPermutations:
    """Permutes pixels, all channels of an image alike; change k is permutation k.

    Args:
        permutations: each int64 [H · W]: the pixel that comes to each place.
    """

    def __init__(self, permutations: Sequence[NDArray[np.int64]]) -> None:
        self._permutations = permutations

    def apply(self, images: NDArray[np.uint8], change: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Permuted images; see ``InputChange``."""
        pixels = images.reshape(len(images), -1, images.shape[-1])
        for number in np.unique(change[change >= 0]):
            chosen = change == number
            pixels[chosen] = pixels[chosen][:, self._permutations[number]]
        return pixels.reshape(images.shape)

    def content(self) -> bytes:
        """The permutations."""
        return b"".join(permutation.astype("<i8").tobytes() for permutation in self._permutations)
