"""Tracking: linear regression on a target that keeps changing, from Sutton's experiment of 1992 with IDBD.

Sutton, "Adapting Bias by Gradient Descent: An Incremental Version of Delta-Bar-Delta", AAAI 1992.
"""

import hashlib
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.options import require_at_least_one
from continual_metaopt.streams.plan import TRACKED_INPUTS, TRACKED_NOISE, TRACKED_SIGNS, Stationary, random_state
from continual_metaopt.streams.samples import BLOCK, Blocks
from continual_metaopt.streams.stationary import last_change
from continual_metaopt.streams.stream import Stream, about_stream, regression_stream

DEFINITION = "tracking v1"


@about_stream(
    source="generated: independent standard normal inputs",
    changes="the sign of one of the relevant inputs",
    when="every flip_every samples",
    length="n_samples",
    head="one output, the target of a regression",
)
def tracking(
    *,
    n_inputs: int = 20,
    n_relevant: int = 5,
    flip_every: int = 20,
    n_samples: int = 30_000,
    samples_per_experience: int = 1000,
    noise: float = 0.0,
    stationary: Stationary | None = None,
    frozen_after: int = 0,
    seed: int = 0,
) -> Stream:
    """The target is a sum of the first few inputs, each with a sign; every so often one of the signs flips.

    Inputs are independent and standard normal. All signs are +1 at first. The changes come far too often to be
    experiences: an experience is a mere portion of the stream, as marks for tables and figures. There are no held-out
    samples.

    Args:
        n_inputs: number of inputs.
        n_relevant: how many of them, the first ones, enter into the target.
        flip_every: number of samples after which one of the relevant inputs, drawn uniformly, changes its sign.
        n_samples: length of the stream.
        samples_per_experience: length of an experience; the last one may be shorter.
        noise: standard deviation of normal noise on the target.
        stationary: "repeat" never flips a sign, "frozen" none after the experience ``frozen_after``; inputs and noise
            go on being new.
        frozen_after: number of the last experience that brings a change, for "frozen".
        seed: decides inputs, flips and noise.

    Example:
        >>> stream = tracking(n_samples=60)
        >>> stream.course["sign of each relevant input"](0, 60)[::20].tolist()
        [[1, 1, 1, 1, 1], [1, -1, 1, 1, 1], [1, 1, 1, 1, 1]]
    """
    require_at_least_one(n_inputs=n_inputs, n_relevant=n_relevant, flip_every=flip_every, n_samples=n_samples)
    require_at_least_one(samples_per_experience=samples_per_experience)
    if n_relevant > n_inputs:
        raise ValueError(f"n_relevant must be at most n_inputs, {n_inputs}, not {n_relevant}")
    if not noise >= 0:
        raise ValueError(f"noise must not be negative, but is {noise}")
    if stationary == "shuffled":
        raise ValueError(
            "stationary='shuffled' is not possible: with signs in random order the target would be mere noise; use "
            "'repeat' or 'frozen'"
        )
    lengths = [min(samples_per_experience, n_samples - start) for start in range(0, n_samples, samples_per_experience)]
    last = last_change(stationary, frozen_after, len(lengths))
    n_changing = 1 if stationary == "repeat" else min((last + 1) * samples_per_experience, n_samples)
    signs = _signs(n_changing, n_relevant, flip_every, seed)
    tracked = _Tracked(signs, n_inputs, flip_every, n_samples, noise, seed)
    content = hashlib.sha256()
    for start in range(0, n_samples, BLOCK):
        content.update(tracked.signs(start, min(start + BLOCK, n_samples)).tobytes())
    return regression_stream(
        DEFINITION,
        tracked.make,
        lengths,
        content_hash=content.hexdigest(),
        stationary=stationary,
        course={"sign of each relevant input": tracked.signs},
    )


class _Tracked:
    """Makes the samples of a stream, with the signs of the relevant inputs between two flips, [stretches, relevant]."""

    def __init__(
        self, signs: NDArray[np.int8], n_inputs: int, flip_every: int, n_samples: int, noise: float, seed: int
    ) -> None:
        self._signs, self._flip_every, self._noise = signs, flip_every, noise
        self._inputs = _normal_numbers(random_state(seed, TRACKED_INPUTS), n_samples, n_inputs)
        self._noises = _normal_numbers(random_state(seed, TRACKED_NOISE), n_samples if noise else 0, 1)

    def signs(self, start: int, stop: int) -> NDArray[np.int8]:
        """Return the signs of the relevant inputs at samples, [n, relevant]."""
        stretches = (np.arange(start, stop) // self._flip_every).clip(max=len(self._signs) - 1)
        return self._signs[stretches]

    def make(self, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Make inputs and targets of the samples from ``start`` to before ``stop``."""
        inputs, signs = self._inputs.rows(start, stop).astype(np.float32), self.signs(start, stop)
        targets = np.zeros(stop - start)
        for relevant in range(signs.shape[1]):  # one by one, so that sums are rounded alike everywhere
            targets += signs[:, relevant] * inputs[:, relevant].astype(np.float64)
        if self._noise:
            targets += self._noise * self._noises.rows(start, stop)[:, 0]
        return inputs, targets.astype(np.float32)[:, None]


def _normal_numbers(state: np.random.RandomState, n_rows: int, n_columns: int) -> Blocks:
    """Draw rows of normal numbers one after the other, of which only the generator's states are kept."""
    states = []
    for _ in range(0, n_rows, BLOCK):
        states.append(state.get_state())
        state.standard_normal((BLOCK, n_columns))
    return Blocks(partial(_drawn, states, n_columns))


def _drawn(states: list[Any], n_columns: int, number: int) -> NDArray[np.float64]:
    state = np.random.RandomState()
    state.set_state(states[number])
    return state.standard_normal((BLOCK, n_columns))


def _signs(n_samples: int, n_relevant: int, flip_every: int, seed: int) -> NDArray[np.int8]:
    """Draw the sign of each relevant input from one flip to the next, within so many samples, [stretches, relevant]."""
    n_flips = (n_samples - 1) // flip_every
    flipped = random_state(seed, TRACKED_SIGNS).randint(n_relevant, size=n_flips, dtype=np.int64)
    signs = np.ones((n_flips + 1, n_relevant), np.int8)
    signs[np.arange(1, n_flips + 1), flipped] = -1
    return np.multiply.accumulate(signs, axis=0, dtype=np.int8)
