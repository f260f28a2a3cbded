"""SPS: stochastic Polyak step sizes."""

from typing import Any, ClassVar

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require, settings_of
from continual_metaopt.optim.elementwise import Elementwise, Reduction
from continual_metaopt.optim.registry import LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "sps",
    "SGD with stochastic Polyak step sizes",
    family="no step size to choose",
    space={"lr": (1e-3, 1e1, "log"), "c": [0.2, 0.5, 1.0, 2.0, 5.0]},
    paper=(
        'Loizou, Vaswani, Laradji, Lacoste-Julien, "Stochastic Polyak Step-size for SGD: An Adaptive Learning '
        'Rate for Fast Convergence", AISTATS 2021'
    ),
)


class SPS(Elementwise):
    """Step by SGD with the stochastic Polyak step size SPS_max, smoothed or with a fixed bound.

    With loss L of the sample, its least possible value L*, and gradient g over all groups:

        α = min((L − L*) / (c ‖g‖² + ε), b)
        w ← w − α g

    The bound b is 2^(1/n) times the last step size in the smoothed form that the paper takes for networks, so that
    the step size at most doubles in n samples; with ``smoothing=None`` it is the given step size. c = 0.5, n = 500
    (``n_batches_per_epoch`` there), a step size of 1 before the first sample and ε = 1e-8 are the authors' code's.

    In their code a sample with loss 0, or a gradient below 1e-8, makes the step size 0, and the smoothed form never
    leaves 0 again: 2^(1/n) · 0 = 0. Here such a sample moves no weights and leaves the last step size as it was. Their
    smoothed form takes L* for 0; here it counts in both.

    ``step`` wants a closure that returns the loss.

    Args:
        params: tensors or param groups, as for any torch optimizer; all have one step size.
        lr: step size before the first sample; without smoothing, the bound b.
        c: the larger, the shorter the steps.
        smoothing: samples n in which the step size at most doubles; None for a fixed bound.
        least_loss: L*, the least possible loss of a sample.
        eps: ε, added to the denominator.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> _ = SPS([w], lr=0.1, smoothing=1.0).step(lambda: 1.0)
        >>> round(w.item(), 4)
        0.6
    """

    positive = ("lr", "c")
    not_negative = ("eps",)
    measures: ClassVar[dict[str, Reduction]] = {"square": "sum"}
    decides = ("lr", "rate")
    over_all_groups = True
    wants_loss = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        *,
        c: float = 0.5,
        smoothing: float | None = 500.0,
        least_loss: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _check(self, group: Group) -> None:
        super()._check(group)
        smoothing = group["smoothing"]
        require(group, "smoothing", smoothing is None or smoothing > 0, "be positive or None")
        group.setdefault("bound", group["lr"])
        group.setdefault("rate", 0.0)

    def numbers(self, group: Group) -> dict[str, float]:
        """Give the settings of the first group, which count for all; no smoothing is 0."""
        return {"smoothing": 0.0} | super().numbers(self.param_groups[0])

    @staticmethod
    def measure(g: Any) -> Any:
        """Square the gradient."""
        return g * g

    @staticmethod
    def decide(
        loss: float, square: float, lr: float, bound: float, smoothing: float, c: float, least_loss: float, eps: float
    ) -> tuple[float, float]:
        """Give the step size, and that of this sample, which is 0 where nothing is to be learned."""
        gap = loss - least_loss
        if gap <= 0 or square < 1e-16:
            return lr, 0.0
        if smoothing > 0:
            bound = lr * 2 ** (1 / smoothing)
        lr = min(gap / (c * square + eps), bound)
        return lr, lr

    @staticmethod
    def move(w: Any, g: Any, rate: float) -> Any:
        """Step along the gradient."""
        return w - rate * g


sps = learner_of(SPS)
