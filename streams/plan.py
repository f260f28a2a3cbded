"""Plans: which sample a stream presents when, as what label, and through which change of its input."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Stationary = Literal["shuffled", "repeat", "frozen"]

# One independent sequence of random numbers per purpose, so that changing one choice leaves the others alone.
CLASS_ORDER, SAMPLE_ORDER, PERMUTATIONS, STATIONARY_ORDER, TRANSITIONS = range(5)
LABEL_PERMUTATIONS, LABEL_NOISE, TASK_ORDER = range(20, 23)
TRACKED_INPUTS, TRACKED_SIGNS, TRACKED_NOISE = range(100, 103)
INPUT_NOISE, CROPS = range(110, 112)
FIRST_BITS, FLIPPED_BITS, RANDOM_BITS, TARGET_NETWORK = range(120, 124)

PIECE = 2**20  # samples that are looked at together, so that long plans need little more memory than themselves

Integers = NDArray[np.integer]


def random_state(seed: int, purpose: int, index: int = 0, *indices: int) -> np.random.RandomState:
    """Seed NumPy's legacy generator, whose sequence is frozen: a seed means the same stream in every version.

    Example:
        >>> random_state(0, SAMPLE_ORDER, 2).permutation(5).tolist()
        [2, 0, 4, 1, 3]
    """
    return np.random.RandomState([seed, purpose, index, *indices])


def in_passes(members: Integers, n: int, state: np.random.RandomState) -> Integers:
    """Draw ``n`` ≥ 1 of the members in passes over all of them, each in a new random order.

    The first ones are the same for every ``n``.

    Example:
        >>> in_passes(np.arange(3), 7, random_state(0, SAMPLE_ORDER)).tolist()
        [0, 1, 2, 0, 1, 2, 2]
    """
    return np.concatenate([state.permutation(members)[: n - done] for done in range(0, n, len(members))])


@dataclass(frozen=True)
class Plan:
    """Which samples one split of a stream presents, in order; ``plan_of`` makes one.

    Attributes:
        index: position in the source's split, int32 [N].
        label: target that the learner is given, int32 [N].
        change: how the input is changed, int32 [N], as the stream's ``InputChange`` reads it; −1 for not at all.
        lengths: number of samples of each experience; their sum is N.

    Example:
        >>> plan_of([([3, 1], [0, 1], -1), ([3], [0], -1)]).boundaries
        [0, 2]
    """

    index: NDArray[np.int32]
    label: NDArray[np.int32]
    change: NDArray[np.int32]
    lengths: tuple[int, ...]

    @property
    def boundaries(self) -> list[int]:
        """First step of each experience."""
        return [0, *np.cumsum(self.lengths)[:-1].tolist()]

    def experiences(self) -> list[slice]:
        """List the steps of each experience."""
        return [slice(start, start + n) for start, n in zip(self.boundaries, self.lengths, strict=True)]

    def occurrence(self) -> NDArray[np.int32]:
        """Count how often each sample's input, the same image changed alike, came before, int32 [N]."""
        occurrence = np.empty(len(self.index), np.int32)
        n_images = int(self.index.max(initial=-1)) + 1
        n_at_once = max(1, n_images * PIECE // max(len(self.index), PIECE))  # images of about one piece of samples
        for first in range(0, n_images, n_at_once):
            steps = np.flatnonzero((self.index >= first) & (self.index < first + n_at_once))
            keys = self.index[steps].astype(np.int64) << 32 | (self.change[steps].astype(np.int64) & 0xFFFFFFFF)
            order = np.argsort(keys, kind="stable")
            place = np.arange(len(keys))
            is_first = np.diff(keys[order], prepend=-1) != 0
            occurrence[steps[order]] = place - np.maximum.accumulate(np.where(is_first, place, 0))
        return occurrence

    @cached_property
    def seen_before(self) -> tuple[int, ...]:
        """Number of samples of each experience whose input, the same image changed alike, came earlier."""
        again = self.occurrence() > 0
        return tuple(int(again[steps].sum()) for steps in self.experiences())

    def digest(self) -> bytes:
        """Hash everything in the plan, with the same result on every platform."""
        digest = hashlib.sha256()
        for values in (self.index, self.label, self.change, np.array(self.lengths), np.array(self.seen_before)):
            for start in range(0, len(values), PIECE):
                digest.update(values[start : start + PIECE].astype("<i8").tobytes())
        return digest.digest()


def plan_of(experiences: Iterable[tuple[Integers, Integers, int | Integers]]) -> Plan:
    """Join experiences, each (index, label, change) with one change for all its samples or one for each.

    Example:
        >>> plan_of([([3, 1], [0, 1], -1), ([3], [0], -1)]).seen_before
        (0, 1)
    """
    parts = [(index, label, np.broadcast_to(change, len(index))) for index, label, change in experiences]
    columns = zip(*parts, strict=True)
    index, label, change = (np.concatenate(column, dtype=np.int32, casting="unsafe") for column in columns)
    return Plan(index, label, change, tuple(len(index) for index, _, _ in parts))


def take(plan: Plan, order: Integers, lengths: tuple[int, ...]) -> Plan:
    """Make the plan that presents the samples at the positions ``order``, cut into experiences of ``lengths``."""
    return replace(plan, index=plan.index[order], label=plan.label[order], change=plan.change[order], lengths=lengths)
