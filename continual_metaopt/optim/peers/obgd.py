"""ObGD: gradient descent with a bound on how far a step may overshoot."""

import math
from typing import Any, ClassVar, Literal

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require_known, settings_of
from continual_metaopt.optim.elementwise import Elementwise, Reduction
from continual_metaopt.optim.registry import LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "obgd",
    "ObGD: gradient descent with a bound on overshooting",
    family="no step size to choose",
    space={"kappa": (0.1, 3.0, "log")},
    paper=(
        'Elsayed, Vasan, Mahmood, "Streaming Deep Reinforcement Learning Finally Works", 2024 (arXiv 2410.14606),'
        " without traces"
    ),
)

ErrorOf = Literal["cross_entropy", "squared_error"]


class ObGD(Elementwise):
    """Bound how far gradient descent may overshoot, in supervised learning (γ λ = 0).

    The original learns a value with error δ and trace z of its gradients, by w ← w + α δ z, where

        M = α κ max(|δ|, 1) ‖z‖₁,    α ← α / max(M, 1)

    Without a trace, z is the output's gradient and −δ z that of the loss, g; so ‖z‖₁ = ‖g‖₁ / |δ|. What |δ| is follows
    from the loss L, for single samples: its largest derivative by an output.

        half the squared error, one output:  |δ| = √(2 L)            the original exactly
        cross-entropy:                       |δ| = 1 − exp(−L)       one minus the probability of the label

    With several outputs, δ z is the sum over them of errors times gradients, and ‖g‖₁ / |δ| takes the place of ‖z‖₁.
    In the authors' code α and κ in M are those of the last param group; here each group counts with its own.
    A loss of 0 has no gradient, and nothing moves.

    ``step`` wants a closure that returns the loss.

    Args:
        lr: step size α where the bound does not bind.
        kappa: κ, above 1: a larger one means shorter steps.
        error: "cross_entropy" or "squared_error": what the loss is.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> _ = ObGD([w], error="squared_error").step(lambda: 2.0)
        >>> round(w.item(), 4)
        0.5
    """

    not_negative = ("lr",)
    positive = ("kappa",)
    measures: ClassVar[dict[str, Reduction]] = {"size": "sum"}
    decides = ("excess", "rate")
    over_all_groups = True
    wants_loss = True

    def __init__(
        self, params: ParamsT, lr: float = 1.0, *, kappa: float = 2.0, error: ErrorOf = "cross_entropy"
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _check(self, group: Group) -> None:
        super()._check(group)
        require_known("error", group["error"], ErrorOf)
        group.setdefault("excess", 1.0)
        group.setdefault("rate", 0.0)

    def numbers(self, group: Group) -> dict[str, float]:
        """Give what the loss is as a number."""
        return super().numbers(group) | {"squared_error": float(self.param_groups[0]["error"] == "squared_error")}

    @staticmethod
    def measure(g: Any, lr: float, kappa: float) -> Any:
        """Give the size of the gradient, as it counts in M."""
        return lr * kappa * abs(g)

    @staticmethod
    def decide(loss: float, size: float, squared_error: float, lr: float, excess: float) -> tuple[float, float]:
        """Give M, at least 1, and the step size of this sample."""
        error = math.sqrt(2 * max(loss, 0.0)) if squared_error > 0 else -math.expm1(-loss)
        if error == 0:
            return excess, 0.0
        excess = max(max(error, 1.0) * size / error, 1.0)
        return excess, lr / excess

    @staticmethod
    def move(w: Any, g: Any, rate: float) -> Any:
        """Step along the gradient."""
        return w - rate * g

    @staticmethod
    def step_size(lr: float, excess: float) -> float:
        """Give the step size of the last sample from which something was to be learned."""
        return lr / excess


obgd = learner_of(ObGD)
