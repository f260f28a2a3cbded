"""Bit flipping: slowly changing regression on the outputs of a fixed random network.

Dohare et al., "Loss of plasticity in deep continual learning", Nature 2024, and its code,
github.com/shibhansh/loss-of-plasticity, lop/slowly_changing_regression.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.options import require_at_least_one, require_between
from continual_metaopt.streams.plan import (
    FIRST_BITS,
    FLIPPED_BITS,
    RANDOM_BITS,
    STATIONARY_ORDER,
    TARGET_NETWORK,
    Stationary,
    random_state,
)
from continual_metaopt.streams.samples import BLOCK, Blocks
from continual_metaopt.streams.stationary import last_change
from continual_metaopt.streams.stream import Stream, about_stream, regression_stream

DEFINITION = "bit_flipping v1"


class _TargetNetwork(NamedTuple):
    """Units that are on where their inputs agree well enough with their weights, and a sum of units, each with a sign.

    Attributes:
        weights: +1 or −1, [inputs, units].
        thresholds: what the weighted sum of a unit's inputs has to reach, [units].
        signs: of the units in the sum, [units, 1].
        constant: added to the sum, +1 or −1.
    """

    weights: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    signs: NDArray[np.float32]
    constant: np.float32


@about_stream(
    source="generated: bits",
    changes="one of the slow bits of the input",
    when="every flip_every samples, which are an experience",
    length="n_samples",
    head="one output, the target of a regression",
)
def bit_flipping(
    *,
    n_inputs: int = 20,
    n_slow: int = 15,
    flip_every: int = 10_000,
    n_samples: int = 1_000_000,
    n_target_units: int = 100,
    agreement: float = 0.7,
    stationary: Stationary | None = None,
    frozen_after: int = 0,
    seed: int = 0,
) -> Stream:
    """Inputs are bits, some of which change rarely: a small network has to track what it cannot represent at once.

    The slow bits are random at first; then one of them, drawn uniformly, flips every ``flip_every`` samples. An
    experience is the time between two flips. The other bits are random in every sample. The target is a fixed random
    network's output: ±1 + Σ ±1 · unit, where a hidden unit is 1 if at least a share β, ``agreement``, of its inputs, a
    constant 1 among them, agree with its weights, which are random signs: x = 1 with +1, x = 0 with −1. Targets are
    whole numbers. There are no held-out samples.

    Defaults are those of the authors, who train one hidden layer of 5 units with batches of one and plot the squared
    error in bins of 20,000 samples; their data sets have 10 million samples. The constant is no input here, since
    networks have biases. The definition is the paper's. Their code differs from it in two ways: units whose constant
    has the weight −1 have a threshold that is 2 higher for 20 inputs, and without ``flip_one`` all slow bits are
    drawn anew at once.

    Args:
        n_inputs: number of input bits.
        n_slow: how many of them, the first ones, change slowly.
        flip_every: number of samples after which one of the slow bits flips.
        n_samples: length of the stream.
        n_target_units: number of hidden units of the network that makes the targets.
        agreement: share of inputs that have to agree with the weights of a unit that is on, β.
        stationary: "repeat" never flips a bit, "frozen" none after the experience ``frozen_after``; the random bits go
            on being new. "shuffled" gives every sample the slow bits of a time that is drawn uniformly.
        frozen_after: number of the last experience that brings a change, for "frozen".
        seed: decides bits, flips and targets.

    Example:
        >>> inputs, targets = bit_flipping(n_samples=30, flip_every=10).train[0].batch(slice(0, 4))
        >>> targets.ravel().tolist()
        [2.0, 1.0, 0.0, 3.0]
    """
    require_at_least_one(n_inputs=n_inputs, flip_every=flip_every, n_samples=n_samples, n_target_units=n_target_units)
    require_between(1, n_inputs, "n_inputs, {}", n_slow=n_slow)
    if not 0 < agreement <= 1:
        raise ValueError(f"agreement must be above 0 and at most 1, not {agreement}")
    lengths = [min(flip_every, n_samples - start) for start in range(0, n_samples, flip_every)]
    slow = _slow_bits(len(lengths), n_slow, seed)
    last = last_change(stationary, frozen_after, len(lengths))
    slow[last:] = slow[last]
    network = _target_network(n_inputs, n_target_units, agreement, seed)
    samples = _Flipping(slow, network, flip_every, n_samples, stationary == "shuffled", seed)
    return regression_stream(
        DEFINITION,
        samples.make,
        lengths,
        content_hash=_hash([slow, *(part.astype("<f4") for part in network)]),
        stationary=stationary,
        course={"slow bits": samples.slow},
    )


class _Flipping:
    """Makes the samples of a stream, with the slow bits of each experience, [experiences, bits]."""

    def __init__(
        self,
        slow: NDArray[np.uint8],
        network: _TargetNetwork,
        flip_every: int,
        n_samples: int,
        shuffled: bool,
        seed: int,
    ) -> None:
        self._slow, self._network, self._flip_every, self._n_samples = slow, network, flip_every, n_samples
        self._shuffled, self._seed = shuffled, seed
        self._inputs = Blocks(self._block)

    def slow(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the slow bits of samples, [n, bits]."""
        if self._shuffled:
            return self._inputs.rows(start, stop)[:, : self._slow.shape[1]].astype(np.uint8)
        return self._slow[np.arange(start, stop) // self._flip_every]

    def make(self, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Make inputs and targets of the samples from ``start`` to before ``stop``."""
        inputs = self._inputs.rows(start, stop)
        on = (inputs @ self._network.weights >= self._network.thresholds).astype(np.float32)
        return inputs, on @ self._network.signs + self._network.constant  # whole numbers, exact in any order

    def _block(self, number: int) -> NDArray[np.float32]:
        """Make the inputs of a block, [BLOCK, inputs]; beyond the end of the stream there are more."""
        times = np.arange(number * BLOCK, (number + 1) * BLOCK).clip(max=self._n_samples - 1)
        if self._shuffled:  # each sample has the slow bits of some other time
            state = random_state(self._seed, STATIONARY_ORDER, number)
            times = state.randint(self._n_samples, size=BLOCK, dtype=np.int64)
        n_fast = len(self._network.weights) - self._slow.shape[1]
        drawn = random_state(self._seed, RANDOM_BITS, number).bytes(BLOCK // 8 * n_fast)
        fast = np.unpackbits(np.frombuffer(drawn, np.uint8)).reshape(BLOCK, n_fast)
        return np.hstack([self._slow[times // self._flip_every], fast]).astype(np.float32)


def _slow_bits(n_experiences: int, n_slow: int, seed: int) -> NDArray[np.uint8]:
    """Draw the slow bits of each experience, [experiences, bits]."""
    bits = np.zeros((n_experiences, n_slow), np.uint8)
    bits[0] = random_state(seed, FIRST_BITS).randint(2, size=n_slow, dtype=np.int64)
    flipped = random_state(seed, FLIPPED_BITS).randint(n_slow, size=n_experiences - 1, dtype=np.int64)
    bits[np.arange(1, n_experiences), flipped] = 1
    return np.bitwise_xor.accumulate(bits, axis=0)


def _target_network(n_inputs: int, n_units: int, agreement: float, seed: int) -> _TargetNetwork:
    state = random_state(seed, TARGET_NETWORK)
    weights, constants, signs, constant = (
        2 * state.randint(2, size=shape, dtype=np.int64) - 1
        for shape in ((n_inputs, n_units), n_units, (n_units, 1), ())
    )
    # x agrees with a weight of −1 where it is 0: agreements = Σ w x + number of weights that are −1, constant included
    needed = math.ceil(agreement * (n_inputs + 1) - 1e-9)
    thresholds = needed - (weights == -1).sum(axis=0) - (constants == 1)
    return _TargetNetwork(
        weights.astype(np.float32), thresholds.astype(np.float32), signs.astype(np.float32), np.float32(constant)
    )


def _hash(arrays: Iterable[NDArray[np.generic] | np.generic]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
