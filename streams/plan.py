"""Plans: which sample a stream presents when, as what label, and through which change of its input."""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Stationary = Literal["shuffled", "repeat"]

# One independent sequence of random numbers per purpose, so that changing one choice leaves the others alone.
CLASS_ORDER, SAMPLE_ORDER, PERMUTATIONS, STATIONARY_ORDER = range(4)
TRACKED_INPUTS, TRACKED_SIGNS, TRACKED_NOISE = range(100, 103)


def random_state(seed: int, purpose: int, index: int = 0) -> np.random.RandomState:
    """NumPy's legacy generator, whose sequence is frozen: a seed means the same stream in every version."""
    return np.random.RandomState([seed, purpose, index])


@dataclass(frozen=True)
class Plan:
    """The samples of one split of a stream, in order.

    Attributes:
        index: position in the source's split, int64 [N].
        label: target that the learner is given, int64 [N].
        change: which input permutation the sample goes through, int64 [N]; −1 for none.
        lengths: number of samples of each experience; their sum is N.
        seen_before: number of samples per experience that came earlier with the same input.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    change: NDArray[np.int64]
    lengths: tuple[int, ...]
    seen_before: tuple[int, ...]

    @property
    def boundaries(self) -> list[int]:
        """First step of each experience."""
        return [0, *np.cumsum(self.lengths)[:-1].tolist()]

    def experiences(self) -> list[slice]:
        """The steps of each experience."""
        return [slice(start, start + n) for start, n in zip(self.boundaries, self.lengths, strict=True)]

    def digest(self) -> bytes:
        """Hash of everything in the plan, the same on every platform."""
        digest = hashlib.sha256()
        for values in (self.index, self.label, self.change, np.array(self.lengths), np.array(self.seen_before)):
            digest.update(values.astype("<i8").tobytes())
        return digest.digest()


def plan_of(experiences: list[tuple[NDArray[np.int64], NDArray[np.int64], int]]) -> Plan:
    """Join experiences, each (index, label, change), of samples that never come twice with the same input."""
    return Plan(
        index=np.concatenate([index for index, _, _ in experiences]),
        label=np.concatenate([label for _, label, _ in experiences]),
        change=np.concatenate([np.full(len(index), change) for index, _, change in experiences]),
        lengths=tuple(len(index) for index, _, _ in experiences),
        seen_before=(0,) * len(experiences),
    )


def take(plan: Plan, order: NDArray[np.int64], lengths: tuple[int, ...], seen_before: tuple[int, ...]) -> Plan:
    """The plan that presents the samples at the positions ``order``, cut into experiences of ``lengths``."""
    return replace(
        plan,
        index=plan.index[order],
        label=plan.label[order],
        change=plan.change[order],
        lengths=lengths,
        seen_before=seen_before,
    )
