"""What a learner observed: the contract between engines, learner and recorder."""

import math
from dataclasses import dataclass, field

MAX_SAMPLES = 1000
MAX_SECONDS = 0.5


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
    """

    experience: int
    first_step: int
    correct: list[bool | None] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    step_sizes: list[tuple[int, str, float]] = field(default_factory=list)
    measurements: list[tuple[int, str, str | None, str, float]] = field(default_factory=list)
    quantiles: dict[tuple[int, str], tuple[float, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def next_step(self) -> int:
        """Number of the sample that comes next."""
        return self.first_step + len(self.loss)


class Diverged(ArithmeticError):
    """Learning cannot go on: a loss or a meta gradient is NaN or infinite.

    Attributes:
        step: the sample at which it was seen; everything before it has been recorded.
        reason: a sentence.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"{reason} at sample {step}")
        self.step = step
        self.reason = reason


def check_finite(loss: float, step: int) -> None:
    """Stop at a loss that is not a number, before anything is learned from it.

    Raises:
        Diverged: the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise Diverged(step, f"the loss is {loss}")


def label_does_not_fit(label: int, n_outputs: int) -> str:
    """The message for a label beyond the network's outputs."""
    return (
        f"label {label} does not fit the network's {n_outputs} outputs; size the network with "
        'n_outputs=benchmark.info.for_learner.n_outputs, or number labels within experiences (labels="within")'
    )
