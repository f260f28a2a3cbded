"""Changes of the input: what a stream does to an image before a learner sees it.

All of them work on bytes in integer arithmetic, so that the same seed gives the same pixels on every platform.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.plan import CROPS, INPUT_NOISE

Images = NDArray[np.uint8]


class InputChange(Protocol):
    """Changes images; which change a sample gets is a number in the stream's plan."""

    def apply(self, images: Images, change: NDArray[np.int32], steps: NDArray[np.int64]) -> Images:
        """Change images.

        Args:
            images: uint8 [n, H, W, C]; may be changed in place.
            change: number of each image's change, [n]; images with −1 stay as they are.
            steps: when each image is presented, [n]: 0, 1, … in the stream, −1, −2, … among its held-out samples. For
                changes that are drawn anew for every sample.
        """
        ...

    def content(self) -> bytes | Iterable[bytes]:
        """Tell all that decides what the numbers mean, for the stream's fingerprint; at once or piece by piece."""
        ...


class PixelPermutations:
    """Permutes pixels, all channels of an image alike; change k is permutation k.

    Args:
        permutation: gives permutation k, int64 [H · W]: the pixel that comes to each place. As it may draw it when
            asked for, thousands of permutations need no memory.
        n_permutations: how many there are.

    Example:
        >>> image = np.array([[1, 2], [3, 4]], np.uint8)[None, :, :, None]
        >>> turned = PixelPermutations(lambda k: np.array([2, 0, 3, 1]), 1)
        >>> turned.apply(image, np.array([0]), np.array([0])).ravel().tolist()
        [3, 1, 4, 2]
    """

    def __init__(self, permutation: Callable[[int], NDArray[np.int64]], n_permutations: int) -> None:
        self._permutation, self._n_permutations = permutation, n_permutations

    def apply(self, images: Images, change: NDArray[np.int32], steps: NDArray[np.int64]) -> Images:
        """Permute images; see ``InputChange``."""
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
        """Tell the permutations."""
        return (self._permutation(k).astype("<i8").tobytes() for k in range(self._n_permutations))


class Rotation:
    """Turns images about their centre, with bilinear interpolation; what comes from outside is black.

    Change k is an angle of k hundredths of a degree, counter-clockwise.

    Example:
        >>> image = np.array([[1, 2], [3, 4]], np.uint8)[None, :, :, None]
        >>> Rotation().apply(image, np.array([9000]), np.array([0]))[0, ..., 0].tolist()
        [[2, 4], [1, 3]]
    """

    STEPS_PER_DEGREE = 100
    FULL_TURN = 360 * STEPS_PER_DEGREE

    def apply(self, images: Images, change: NDArray[np.int32], steps: NDArray[np.int64]) -> Images:
        """Turn images; see ``InputChange``."""
        height, width, channels = images.shape[1:]
        for angle in np.unique(change[change >= 0]):
            chosen = change == angle
            # one row for each pixel, so that those of all images are gathered together
            pixels = images[chosen].reshape(-1, height * width, channels).transpose(1, 0, 2).reshape(height * width, -1)
            total = np.full(pixels.shape, HALF, np.uint32)
            for corner, weight in zip(*_corners(int(angle), height, width), strict=True):
                total += pixels.take(corner, axis=0) * weight[:, None]
            turned = (total >> 16).astype(np.uint8).reshape(height, width, -1, channels)
            images[chosen] = turned.transpose(2, 0, 1, 3)
        return images

    def content(self) -> bytes:
        """Tell what the numbers mean."""
        return b"rotation, hundredths of a degree"


HALF = 1 << 15  # of the sum of the weights of the four corners, for rounding


@lru_cache(maxsize=128)
def _corners(angle: int, height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.uint32]]:
    """Find the four pixels that make each pixel of a turned image, [4, H · W], and their weights, which sum to 2^16.

    Coordinates are integers: sine and cosine in 2^−16, positions from the centre in half pixels, weights in 2^−8.
    """
    sine, cosine = fixed_sine(angle), fixed_sine(angle + Rotation.FULL_TURN // 4)
    down, right = np.meshgrid(2 * np.arange(height) - height + 1, 2 * np.arange(width) - width + 1, indexing="ij")
    from_right = cosine * right - sine * down + ((width - 1) << 16)
    from_down = sine * right + cosine * down + ((height - 1) << 16)
    corners, weights = [], []
    y, x = ((doubled + 256 >> 9).ravel() for doubled in (from_down, from_right))
    for dy, y_weight in ((0, 256 - (y & 255)), (1, y & 255)):
        for dx, x_weight in ((0, 256 - (x & 255)), (1, x & 255)):
            row, column = (y >> 8) + dy, (x >> 8) + dx
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            corners.append(np.where(inside, row * width + column, 0))
            weights.append(np.where(inside, y_weight * x_weight, 0))
    return np.array(corners, np.intp), np.array(weights, np.uint32)


def fixed_sine(angle: int) -> int:
    """Compute the sine of an angle in hundredths of a degree, in 2^−16."""
    return round(math.sin(math.radians(angle / Rotation.STEPS_PER_DEGREE)) * 65536)


class Brightness:
    """Multiplies pixels by a factor and cuts what is brighter than white; change k is a factor of k thousandths.

    Example:
        >>> image = np.array([[1, 200]], np.uint8)[None, :, :, None]
        >>> Brightness().apply(image, np.array([2000]), np.array([0])).ravel().tolist()
        [2, 255]
    """

    STEPS_PER_FACTOR = 1000

    def apply(self, images: Images, change: NDArray[np.int32], steps: NDArray[np.int64]) -> Images:
        """Make images darker or brighter; see ``InputChange``."""
        for factor in np.unique(change[change >= 0]):
            chosen = change == factor
            images[chosen] = _brighter(int(factor)).take(images[chosen])
        return images

    def content(self) -> bytes:
        """Tell what the numbers mean."""
        return b"brightness, thousandths"


@lru_cache(maxsize=1024)
def _brighter(factor: int) -> NDArray[np.uint8]:
    """Tabulate what becomes of each byte."""
    scale = Brightness.STEPS_PER_FACTOR
    return ((np.arange(256) * factor + scale // 2) // scale).clip(max=255).astype(np.uint8)


class Noise:
    """Adds normal noise to each pixel and channel, anew whenever an image is presented, and cuts what is out of range.

    Change k is a standard deviation of k hundredths of a byte. A sample's noise depends on the seed and on the sample's
    step alone.

    Example:
        >>> image = np.full((1, 1, 4, 1), 100, np.uint8)
        >>> Noise(0).apply(image, np.array([2000]), np.array([7])).ravel().tolist()
        [76, 100, 83, 73]
    """

    STEPS_PER_BYTE = 100

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def apply(self, images: Images, change: NDArray[np.int32], steps: NDArray[np.int64]) -> Images:
        """Add noise to images; see ``InputChange``."""
        for i in np.flatnonzero(change > 0):
            draws = _raw_draws(self._seed, INPUT_NOISE, int(steps[i]), -(-images[i].size // 4))
            noise = _quantiles_of_noise(int(change[i])).take(draws.view("<u2")[: images[i].size])
            noise += images[i].reshape(-1)
            images[i] = noise.clip(0, 255).reshape(images[i].shape)
        return images

    def content(self) -> bytes:
        """Tell the seed, and what the numbers mean."""
        return f"noise, hundredths of a byte, seed {self._seed}".encode()


@lru_cache(maxsize=64)
def _quantiles_of_noise(deviation: int) -> NDArray[np.int16]:
    """Scale normal quantiles at 2^16 points by a standard deviation in hundredths of a byte, rounded to bytes."""
    scale = 4096 * Noise.STEPS_PER_BYTE
    return ((2 * deviation * normal_quantiles() + scale) // (2 * scale)).astype(np.int16)


@lru_cache(maxsize=1)
def normal_quantiles() -> NDArray[np.int64]:
    """Compute the standard normal quantiles at (u + ½) / 2^16 for u = 0, 1, …, in 2^−12."""
    inverse = NormalDist().inv_cdf
    return np.array([round(4096 * inverse((u + 0.5) / 65536)) for u in range(65536)])


class CropAndFlip:
    """Moves an image by up to four pixels up or down and left or right, and mirrors every other one, anew each time.

    This is the usual augmentation of CIFAR: a random part of the image's size, of the image in a frame of four black
    pixels, and a mirror with probability ½. Change 0 does it. What happens depends on the seed and on the sample's step
    alone.

    Example:
        >>> images = np.array([[[1, 2], [3, 4]]] * 3, np.uint8)[..., None]
        >>> CropAndFlip(0).apply(images, np.array([0, 0, 0]), np.array([5, 15, 27])).reshape(3, 4).tolist()
        [[0, 0, 1, 2], [0, 0, 2, 1], [2, 0, 4, 0]]
    """

    FRAME = 4

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def apply(self, images: Images, change: NDArray[np.int32], steps: NDArray[np.int64]) -> Images:
        """Move and mirror images; see ``InputChange``."""
        height, width = images.shape[1:3]
        framed = np.pad(images, ((0, 0), (self.FRAME, self.FRAME), (self.FRAME, self.FRAME), (0, 0)))
        choices = np.array([2 * self.FRAME + 1, 2 * self.FRAME + 1, 2], np.uint64)  # places below and beside, mirrors
        for i in np.flatnonzero(change >= 0):
            down, right, mirrored = (_raw_draws(self._seed, CROPS, int(steps[i]), 3) % choices).tolist()
            part = framed[i, down : down + height, right : right + width]
            images[i] = part[:, ::-1] if mirrored else part
        return images

    def content(self) -> bytes:
        """Tell the seed, and what the numbers mean."""
        return f"crops of a frame of {self.FRAME} pixels, mirrored, seed {self._seed}".encode()


def _raw_draws(seed: int, purpose: int, step: int, n: int) -> NDArray[np.uint64]:
    """Draw numbers of 64 bits uniformly for one sample, little-endian."""
    # Philox counts blocks of four numbers; NumPy has frozen its sequence
    key, counter = (np.array(words, np.uint64) for words in ([seed, purpose], [0, step % 2**64, 0, 0]))
    return np.random.Philox(key=key, counter=counter).random_raw(n).astype("<u8")
