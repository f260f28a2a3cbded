"""What a learner observed: the contract between engines, learner and recorder."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SAMPLES = 1000
MAX_SECONDS = 0.5
NOT_A_CLASS = -100  # label that PyTorch's losses leave out, where nobody has chosen another
WEIGHTS_CHECKED_EVERY = 1000  # samples; a loss can stay finite with weights that are not

Measurement = tuple[int, str, str | None, str, float]  # step, quantity, block or None, statistic, value


@dataclass
class Observations:
    """Consecutive samples, with the predictions that were made before learning from them.

    Attributes:
        experience: the experience they belong to.
        first_step: number of the first sample in the stream.
        correct: whether the largest output was at the label; None for regression.
        loss: of that prediction.
        step_sizes: (step, block, step size in force when the block learned from that sample), the geometric mean where
            a block holds many.
        quantiles: (step, block) → the quantiles of those step sizes, of blocks that hold many.
        measurements: (step, quantity, block or None, statistic, value).
        began: when the learner began with them, by ``time.monotonic``.
    """

    experience: int
    first_step: int
    correct: list[bool | None] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    step_sizes: list[tuple[int, str, float]] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    quantiles: dict[tuple[int, str], tuple[float, ...]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic, compare=False)

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def next_step(self) -> int:
        """Number of the sample that comes next."""
        return self.first_step + len(self.loss)


class Diverged(ArithmeticError):
    """Learning cannot go on: a loss, a meta gradient or a weight is NaN or infinite.

    Args:
        step: the sample at which it was seen; everything before it has been recorded.
        reason: a sentence.
        quantity: "loss", "meta_gradient" or "weights".
        block: whose meta gradient it is.

    Attributes:
        step, reason: as given.
        measurements: what is known of the learner at that sample, for the record. Whoever has its weights and its
            optimizer adds to it.
    """

    def __init__(self, step: int, reason: str, quantity: str, block: str | None = None) -> None:
        super().__init__(f"{reason} at sample {step}")
        self.step = step
        self.reason = reason
        self.measurements: list[Measurement] = [(step, "not_finite", block, quantity, 1.0)]


def recorded_steps(first: int, n: int, every: int) -> range:
    """Say at which of ``n`` steps, the first of which is ``first``, something is recorded: at multiples of ``every``.

    Example:
        >>> list(recorded_steps(95, 120, 50))
        [100, 150, 200]
    """
    return range(-(-first // every) * every, first + n, every)


def check_finite(loss: float, step: int) -> None:
    """Stop at a loss that is not a number, before anything is learned from it.

    Raises:
        Diverged: the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise Diverged(step, f"the loss is {loss}", "loss")


def weights_not_finite(step: int) -> Diverged:
    """What ends a learner whose weights are NaN or infinite, while its loss has not shown it yet."""
    return Diverged(step, "weights are not finite", "weights")


def weights_are_due(first: int, n: int) -> bool:
    """Whether the weights are to be checked after learning from ``n`` samples, beginning with number ``first``."""
    return first // WEIGHTS_CHECKED_EVERY != (first + n) // WEIGHTS_CHECKED_EVERY


def numbers_at_end(
    step: int,
    tensors: Iterable[tuple[str, str, NDArray[Any]]],
    step_sizes: dict[str, float],
    meta_gradients: dict[str, float],
) -> list[Measurement]:
    """What is recorded of a learner that has diverged.

    Args:
        step: the sample at which that was seen.
        tensors: name of a parameter, what it is ("weights", "gradient", or a name in the optimizer's state), numbers.
        step_sizes: block → its step size.
        meta_gradients: block → its last meta gradient.

    Returns:
        Rows of the table of measurements: "not_finite", how many numbers are NaN or infinite, where there are any;
        "largest", the largest finite magnitude; both by parameter, with what it is as the statistic. "step_size" and
        "meta_gradient" of each block, with the statistic "at_end".
    """
    rows: list[Measurement] = []
    for name, kind, numbers in tensors:
        finite = np.isfinite(numbers)
        n_bad = int(finite.size - finite.sum())
        if n_bad:
            rows.append((step, "not_finite", name, kind, float(n_bad)))
        if n_bad < finite.size:
            rows.append((step, "largest", name, kind, float(np.abs(numbers[finite]).max())))
    rows += [(step, "step_size", block, "at_end", value) for block, value in step_sizes.items()]
    return rows + [(step, "meta_gradient", block, "at_end", value) for block, value in meta_gradients.items()]


def label_does_not_fit(label: int, n_outputs: int) -> str:
    """The message for a label beyond the network's outputs."""
    return (
        f"label {label} does not fit the network's {n_outputs} outputs; size the network with "
        'n_outputs=benchmark.info.for_learner.n_outputs, or number labels within experiences (labels="within")'
    )
