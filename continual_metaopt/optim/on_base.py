"""Optimizers that add something of their own to a base update with a step size that is given from outside."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base_updates import BASE_UPDATES, BaseUpdate
from continual_metaopt.optim.checked_optimizer import CheckedOptimizer, require_not_negative
from continual_metaopt.optim.weightwise import Group, gradients
from continual_metaopt.streams.registry import unknown_name


class OnBase(CheckedOptimizer):
    """A base update w ← (1 − α κ) w − α u with its default settings, and room for more before and after it.

    By itself it is SGD, AdamW and the other base updates in torch's form.

    Args:
        params: tensors or param groups, as for any torch optimizer.
        lr: step size α.
        base: name of the base update that makes the direction u.
        weight_decay: decoupled weight decay κ.
        **settings: further settings of the param groups.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, params: ParamsT, lr: float, *, base: str, weight_decay: float, **settings: Any) -> None:
        super().__init__(params, {"lr": lr, "base": base, "weight_decay": weight_decay, **settings})

    def _check(self, group: Group) -> None:
        require_not_negative(group, "lr", "weight_decay")
        if group["base"] not in list(BASE_UPDATES):
            raise ValueError(unknown_name("base update", group["base"], list(BASE_UPDATES)))

    def _update(self, loss: Any) -> None:
        for group in self.param_groups:
            base = BASE_UPDATES[group["base"]]()
            for param, grad in gradients(self, group):
                self._move(param, self._gradient(param, grad, group), base, group)

    def _gradient(self, param: Tensor, grad: Tensor, group: Group) -> Tensor:
        """What the base update takes for the gradient."""
        return grad

    def _move(self, param: Tensor, grad: Tensor, base: BaseUpdate, group: Group) -> None:
        """Make one parameter's step, with torch's operations in torch's order."""
        state = self.state[param]
        if "base" not in state:
            state["base"] = base.init(param)
        numerator, denominator, divisor = base.direction(state["base"], grad)
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        if denominator is None:
            param.add_(numerator, alpha=-group["lr"] / divisor)
        else:
            param.addcdiv_(numerator, denominator, value=-group["lr"] / divisor)
