"""Autostep: IDBD with normalised meta gradients and a bound on the effective step, for linear models."""

from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, gradients, require, settings_of
from continual_metaopt.optim.elementwise import Weightwise
from continual_metaopt.optim.peers.linear_input import LinearInput
from continual_metaopt.optim.registry import LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "autostep",
    "Autostep, for linear models and squared error",
    family="learned step sizes",
    space={"lr": (1e-4, 1e-1, "log"), "meta_lr": (1e-4, 1e-1, "log")},
    paper='Mahmood, Sutton, Degris, Pilarski, "Tuning-free step-size adaptation", ICASSP 2012, table 1',
)


class Autostep(Weightwise):
    """Learn a step size per weight of a linear model with half the squared error, f = ½ (y − wᵀx)² (Autostep).

    With δ = y − wᵀx, so that the gradient by wᵢ is −δ xᵢ, meta step size μ, time constant τ, trace h and normaliser v,
    in this order:

        vᵢ ← max(|δ xᵢ hᵢ|, vᵢ + αᵢ xᵢ² (|δ xᵢ hᵢ| − vᵢ) / τ)
        αᵢ ← αᵢ exp(μ δ xᵢ hᵢ / vᵢ)                where vᵢ > 0
        αᵢ ← αᵢ / max(Σⱼ αⱼ xⱼ², 1)
        wᵢ ← wᵢ + αᵢ δ xᵢ
        hᵢ ← hᵢ (1 − αᵢ xᵢ²) + αᵢ δ xᵢ

    δ xᵢ and xᵢ² come from gradients and forward pass as in ``IDBD``. Each output is a linear unit of its own; the sum
    runs over its weights and its bias.

    Args:
        model: a network whose one layer with trainable parameters is an ``nn.Linear``.
        lr: initial step size α₀.
        meta_lr: meta step size μ, the largest change of log α by a meta gradient.
        time_constant: samples τ over which the normaliser of meta gradients forgets.
        params: its parameters or param groups, with their own settings; None for all that are trainable.

    Raises:
        ValueError: the network is not linear, or a setting is out of range.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False)
        >>> optimizer = Autostep(model, lr=0.5)
        >>> (0.5 * (model(torch.tensor([[1.0, 2.0]])) - 1).square()).sum().backward()
        >>> optimizer.step()  # the effective step 0.5 (1 + 4) is more than 1
        >>> round(optimizer.step_size_report()["group0"], 4)
        0.2
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        *,
        meta_lr: float = 0.01,
        time_constant: float = 1e4,
        params: ParamsT | None = None,
    ) -> None:
        self.inputs = LinearInput(model)
        trainable = [param for param in model.parameters() if param.requires_grad]
        super().__init__(trainable if params is None else params, settings_of(locals()))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"inputs": self.inputs}

    def _check(self, group: Group) -> None:
        super()._check(group)
        require(group, "time_constant", group["time_constant"] > 0, "be positive")

    def _update(self, loss: Any) -> None:
        for group in self.param_groups:
            self.begin_update(group)
        self._update_weights()
        for group in self.param_groups:
            self.end_update(group)

    def _update_weights(self) -> None:
        learned = [
            (
                param,
                grad,
                self.inputs.curvature(param),
                self._prepared_state(param, "log_ratio", "trace", "normaliser"),
                group,
            )
            for group in self.param_groups
            for param, grad in gradients(self, group)
        ]
        effective_steps: list[Tensor] = []  # [outputs] each
        for param, grad, curvature, state, group in learned:
            step_size = _update_step_sizes(grad, curvature, state, group)
            effective_steps.append((step_size * curvature).reshape(param.shape[0], -1).sum(1))
        if not learned:
            return
        bound = sum(effective_steps[1:], effective_steps[0]).clamp(min=1)
        for param, grad, curvature, state, group in learned:
            shape = (-1, *[1] * (param.dim() - 1))
            state["log_ratio"].sub_(bound.log().view(shape))
            step_size = state["log_ratio"].exp().mul_(group["reference"])
            step = step_size * grad
            param.sub_(step)
            state["trace"].mul_(1 - step_size * curvature).sub_(step)


def _update_step_sizes(grad: Tensor, curvature: Tensor, state: dict[str, Tensor], group: Group) -> Tensor:
    """The first two lines of Autostep for one parameter, in place; returns the step sizes before they are bounded."""
    log_ratio, normaliser = state["log_ratio"], state["normaliser"]
    meta_gradient = -grad * state["trace"]
    size = meta_gradient.abs()
    forgetting = log_ratio.exp().mul_(group["reference"]).mul_(curvature).div_(group["time_constant"])
    normaliser.copy_((normaliser + forgetting * (size - normaliser)).maximum(size))
    seen = normaliser != 0  # elsewhere there was no meta gradient yet, and 0 / 0 is no change
    log_ratio.add_((meta_gradient / normaliser).where(seen, 0.0), alpha=group["meta_lr"])
    return log_ratio.exp().mul_(group["reference"])


autostep = learner_of(Autostep)
