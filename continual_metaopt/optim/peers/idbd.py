"""IDBD: a step size for each weight of a linear model, learned by the delta-bar-delta rule in incremental form."""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, Weightwise, gradients, require, settings_of
from continual_metaopt.optim.peers.linear_input import LinearInput
from continual_metaopt.optim.registry import LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "idbd",
    "IDBD, for linear models and squared error",
    family="learned step sizes",
    space={"lr": (1e-3, 1e-1, "log"), "meta_lr": (1e-4, 1e-1, "log")},
    paper='Sutton, "Adapting Bias by Gradient Descent: An Incremental Version of Delta-Bar-Delta", AAAI 1992',
)


class DeltaBarDelta(Weightwise):
    """Learn step sizes by IDBD's rule; subclasses say along which direction steps are, and what its curvature is."""

    def _check(self, group: Group) -> None:
        super()._check(group)
        limit = group["max_change"]
        require(group, "max_change", limit is None or limit > 0, "be positive or None")

    def _update_weights(self) -> None:
        for group in self.param_groups:
            for param, grad in gradients(self, group):
                state = self._prepared_state(param, "log_ratio", "trace")
                idbd_update(param, grad, *self._direction(param, grad, group), state, group)

    @abstractmethod
    def _direction(self, param: Tensor, grad: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """The direction u of the step, and its curvature, as ``idbd_update`` takes them."""


class IDBD(DeltaBarDelta):
    """Learn a step size per weight of a linear model with half the squared error, f = ½ (y − wᵀx)² (IDBD).

    With δ = y − wᵀx, so that the gradient by wᵢ is −δ xᵢ, step sizes αᵢ = exp(βᵢ), meta step size θ and trace h:

        βᵢ ← βᵢ + θ δ xᵢ hᵢ                        with the old h
        wᵢ ← wᵢ + αᵢ δ xᵢ                          with the new α
        hᵢ ← hᵢ [1 − αᵢ xᵢ²]⁺ + αᵢ δ xᵢ            [·]⁺ is the positive part

    δ xᵢ is read off ``p.grad``, so that another loss is IDBD's only if it has the same gradient (``MSELoss`` has twice
    that). xᵢ² is taken from the network's forward pass; for the bias it is 1. Each output is a linear unit of its own.
    A mini-batch counts as one sample with the mean gradient and the mean of xᵢ².

    Args:
        model: a network whose one layer with trainable parameters is an ``nn.Linear``.
        lr: initial step size α₀. Sutton's experiment starts from 0.05.
        meta_lr: meta step size θ.
        max_change: largest change of β in one step; Sutton suggests 2. None for no limit.
        min_log_step_size: least β; Sutton suggests −10. None for no limit.
        params: its parameters or param groups, with their own "lr" and "meta_lr"; None for all that are trainable.

    Raises:
        ValueError: the network is not linear, or a setting is out of range.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> optimizer = IDBD(model, lr=0.1)
        >>> (0.5 * (model(torch.tensor([[1.0, 2.0]])) - 1).square()).sum().backward()
        >>> optimizer.step()
        >>> [round(weight, 6) for weight in model.weight[0].tolist()]
        [0.1, 0.2]
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.05,
        *,
        meta_lr: float = 0.01,
        max_change: float | None = None,
        min_log_step_size: float | None = None,
        params: ParamsT | None = None,
    ) -> None:
        self.inputs = LinearInput(model)
        trainable = [param for param in model.parameters() if param.requires_grad]
        super().__init__(trainable if params is None else params, settings_of(locals()))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"inputs": self.inputs}

    def _direction(self, param: Tensor, grad: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        return grad, self.inputs.curvature(param)


def idbd_update(
    param: Tensor, grad: Tensor, direction: Tensor, curvature: Tensor, state: dict[str, Any], group: Group
) -> None:
    """Make IDBD's update of one parameter, in place.

    Args:
        param: weights w.
        grad: gradient g, −δ x in a linear model, in the shape of w.
        direction: u of the step w ← w − α u; IDBD's is the gradient.
        curvature: approximate diagonal of the derivative of u by w, not negative, broadcast to the shape of w.
        state: "log_ratio" β − log(reference) and "trace" h, both in the shape of w.
        group: settings "meta_lr", "max_change" and "min_log_step_size", and the "reference" step size.
    """
    log_ratio, trace, reference = state["log_ratio"], state["trace"], group["reference"]
    change = (grad * trace).mul_(-group["meta_lr"])
    if group["max_change"] is not None:
        change.clamp_(-group["max_change"], group["max_change"])
    log_ratio.add_(change)
    if group["min_log_step_size"] is not None:
        log_ratio.clamp_(min=group["min_log_step_size"] - math.log(reference))
    step_size = torch.exp(log_ratio, out=change).mul_(reference)  # out: large tensors are slow to allocate
    step = step_size * direction
    param.sub_(step)
    shrinkage = torch.sub(1, step_size.mul_(curvature), out=step_size).clamp_(min=0)
    trace.mul_(shrinkage).sub_(step)


idbd = learner_of(IDBD)
