"""Changes of the input: what a stream does to an image before a learner sees it.

All of them work on bytes in integer arithmetic, so that the same seed gives the same pixels on every platform.
"""

from collections.abc import Callable, Iterable, Iterator
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

    def content(self) -> bytes | Iterable[bytes]:
        """All that decides what the numbers mean, for the stream's fingerprint; at once or piece by piece."""
        ...


class PixelPermutations:
    """Permutes pixels, all channels of an image alike; change k is permutation k.

    Args:
        permutation: gives permutation k, int64 [H · W]: the pixel that comes to each place. As it may draw it when
            asked for, thousands of permutations need no memory.
        n_permutations: how many there are.
    """

    def __init__(self, permutation: Callable[[int], NDArray[np.int64]], n_permutations: int) -> None:
        self._permutation, self._n_permutations = permutation, n_permutations

    def apply(self, images: NDArray[np.uint8], change: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Permuted images; see ``InputChange``."""
        pixels = images.reshape(len(images), -1, images.shape[-1])
        numbers = np.unique(change)
        if len(numbers) == 1 and numbers[0] >= 0:  # as within an experience: no need to pick samples
            pixels = pixels.take(self._permutation(int(numbers[0])), axis=1)
        else:
            for number in numbers[numbers >= 0]:
                chosen = np.flatnonzero(change == number)
                pixels[chosen] = pixels[chosen].take(self._permutation(int(number)), axis=1)
        return pixels.reshape(images.shape)

    def content(self) -> Iterator[bytes]:
        """The permutations."""
        return (self._permutation(k).astype("<i8").tobytes() for k in range(self._n_permutations))
