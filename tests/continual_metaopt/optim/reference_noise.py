"""The noise of optimizers in NumPy and SciPy, with the integers of Python."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri


def mixed(x: int) -> int:
    """A step of SplitMix64."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def random_bits(seed: int, step: int, parameter: int, n: int) -> NDArray[np.uint64]:
    """32 bits for each of n positions, by ``triple32`` with additions after its first two factors."""
    stream = mixed((mixed((mixed(seed) + step) % 2**64) + parameter) % 2**64)
    x = np.arange(n, dtype=np.uint64)
    for shift, factor, added in (
        (17, 0xED5AD4BB, stream % 2**32),
        (11, 0xAC4C1B51, stream >> 32),
        (15, 0x31848BAB, 0),
        (14, 1, 0),
    ):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor) + np.uint64(added)) % np.uint64(2**32)
    return x


def noise(seed: int, step: int, parameter: int, n: int) -> NDArray[Any]:
    """Numbers from N(0, 1): where the first bit is 0, the others tell the upper tail, and else the lower one."""
    x = random_bits(seed, step, parameter, n)
    lower = x >= 2**31
    tail = (np.where(lower, 2**32 - 1 - x, x).astype(float) + 0.5) / 2**32
    return np.asarray(np.where(lower, ndtri(tail), -ndtri(tail)))
