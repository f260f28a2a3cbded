"""IDBD: a step size for each weight of a linear model, learned by the delta-bar-delta rule in incremental form."""

import math
from collections import ChainMap
from collections.abc import MutableMapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require, settings_of
from continual_metaopt.optim.elementwise import Weightwise, exp, log, maximum, minimum
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

    keeps: ClassVar[tuple[str, ...]] = ("log_ratio", "trace")

    def _check(self, group: Group) -> None:
        super()._check(group)
        limit = group["max_change"]
        require(group, "max_change", limit is None or limit > 0, "be positive or None")

    def numbers(self, group: Group) -> dict[str, float]:
        """Give limits where there are none, and the least β as a log ratio."""
        numbers = {"max_change": math.inf, "min_log_step_size": -math.inf} | super().numbers(group)
        return numbers | {"least_ratio": numbers["min_log_step_size"] - log(numbers["reference"])}


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
        >>> import torch
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

    def state_of(self, param: Tensor) -> MutableMapping[str, Any]:
        """Give what is kept for a parameter, and its curvature."""
        return ChainMap({"curvature": self.inputs.curvature(param)}, super().state_of(param))

    @staticmethod
    def move(
        w: Any,
        g: Any,
        curvature: Any,
        log_ratio: Any,
        trace: Any,
        reference: float,
        meta_lr: float,
        max_change: float,
        least_ratio: float,
    ) -> Any:
        """Step along the gradient."""
        return idbd_update(w, g, g, curvature, log_ratio, trace, reference, meta_lr, max_change, least_ratio)


def idbd_update(
    w: Any,
    g: Any,
    u: Any,
    curvature: Any,
    log_ratio: Any,
    trace: Any,
    reference: float,
    meta_lr: float,
    max_change: float,
    least_ratio: float,
) -> Any:
    """Make IDBD's update.

    Args:
        w: the weight.
        g: its gradient, −δ x in a linear model.
        u: direction of the step w ← w − α u; IDBD's is the gradient.
        curvature: approximate derivative of u by w, not negative.
        log_ratio: β − log(reference).
        trace: h.
        reference: step size that the log ratio refers to.
        meta_lr: meta step size θ.
        max_change: largest change of β.
        least_ratio: least log ratio.

    Returns:
        The new weight, log ratio and trace.
    """
    log_ratio = log_ratio + minimum(maximum(-meta_lr * (g * trace), -max_change), max_change)
    log_ratio = maximum(log_ratio, least_ratio)
    step_size = reference * exp(log_ratio)
    step = step_size * u
    return w - step, log_ratio, trace * maximum(1 - step_size * curvature, 0.0) - step


idbd = learner_of(IDBD)
