"""ObGD: gradient descent with a bound on how far a step may overshoot."""

import math
from typing import Any, Literal

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import CheckedOptimizer, Group, gradients, require_known, settings_of
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

ERRORS = {
    "cross_entropy": lambda loss: -math.expm1(-loss),
    "squared_error": lambda loss: math.sqrt(2 * max(loss, 0.0)),
}


class ObGD(CheckedOptimizer):
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

    wants_loss = True

    def __init__(
        self, params: ParamsT, lr: float = 1.0, *, kappa: float = 2.0, error: ErrorOf = "cross_entropy"
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _step_size(self, group: Group) -> float:
        return float(group["lr"] / group["excess"])

    def _check(self, group: Group) -> None:
        super()._check(group)
        require_known("error", group["error"], ErrorOf)
        group.setdefault("excess", 1.0)

    def _update(self, loss: Any) -> None:
        error = ERRORS[self.param_groups[0]["error"]](loss_value(loss, "ObGD"))
        if error == 0:
            return
        pairs = [(group, list(gradients(self, group))) for group in self.param_groups]
        size = sum(group["lr"] * group["kappa"] * grad.abs().sum().item() for group, own in pairs for _, grad in own)
        excess = max(max(error, 1.0) * size / error, 1.0)
        for group, own in pairs:
            group["excess"] = excess
            for param, grad in own:
                param.sub_(grad, alpha=group["lr"] / excess)


def loss_value(loss: Any, who: str) -> float:
    """Give the number that a closure returned.

    Raises:
        ValueError: there was no closure, or it returned nothing.
    """
    if loss is None:
        raise ValueError(
            f"{who} needs the loss: call optimizer.step(closure) with a closure that returns it; "
            "after loss.backward(), optimizer.step(lambda: loss) does"
        )
    return float(loss)


obgd = learner_of(ObGD)
