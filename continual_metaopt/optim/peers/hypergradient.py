"""Hypergradient descent: one step size, moved by the product of successive gradients, in its additive form.

The derivative of the loss by the step size that was used last is h = −gᵀu, with gradient g and u the direction of the
last step, w ← w − α u; then α ← α − β h, and the new α is used at once. Nothing keeps α positive, as in the authors'
code. A param group has a step size of its own; the original has one group.
"""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import CheckedOptimizer, Group, gradients, require, settings_of
from continual_metaopt.optim.base_updates import zeros
from continual_metaopt.optim.registry import DECAY_IN_GRADIENT, LR, LearnerSpec, learner_of

SGD_HD = LearnerSpec(
    "sgd_hd",
    "SGD with hypergradient descent",
    family="learned step sizes",
    space={"lr": LR, "meta_lr": (1e-8, 1e-3, "log"), "weight_decay": DECAY_IN_GRADIENT},
    paper=(
        'Baydin, Cornish, Martínez Rubio, Schmidt, Wood, "Online Learning Rate Adaptation with Hypergradient '
        "Descent\", ICLR 2018, in the additive form of the authors' code"
    ),
)

ADAM_HD = LearnerSpec(
    "adam_hd",
    "Adam with hypergradient descent",
    family="learned step sizes",
    space={"lr": (1e-5, 1e-2, "log"), "meta_lr": (1e-10, 1e-5, "log"), "weight_decay": DECAY_IN_GRADIENT},
    paper=(
        'Baydin, Cornish, Martínez Rubio, Schmidt, Wood, "Online Learning Rate Adaptation with Hypergradient '
        "Descent\", ICLR 2018, in the additive form of the authors' code"
    ),
)


class HypergradientDescent(CheckedOptimizer):
    """Move each group's step size, then make the step; subclasses decide its direction."""

    not_negative: ClassVar[tuple[str, ...]] = ("lr", "meta_lr", "weight_decay")

    def _update(self, loss: Any) -> None:
        for group in self.param_groups:
            decay = group["weight_decay"]
            pairs = [(param, grad + decay * param if decay else grad) for param, grad in gradients(self, group)]
            products = [
                torch.dot(grad.flatten(), direction.flatten())
                for param, grad in pairs
                if (direction := self._last_direction(self.state[param], group)) is not None
            ]
            if products and group["meta_lr"]:
                group["lr"] = self._moved_step_size(group, sum(product.item() for product in products))
            for param, grad in pairs:
                param.sub_(self._next_direction(self.state[param], grad, group), alpha=group["lr"])

    def _moved_step_size(self, group: Group, product: float) -> float:
        """The group's new step size, from the product gᵀu over all its parameters."""
        return float(group["lr"] + group["meta_lr"] * product)

    @abstractmethod
    def _last_direction(self, state: dict[str, Any], group: Group) -> Tensor | None:
        """The direction of a parameter's last step, None before the first; nothing is changed."""

    @abstractmethod
    def _next_direction(self, state: dict[str, Any], grad: Tensor, group: Group) -> Tensor:
        """The direction of its next step; the state is brought up to date."""


class SGDHD(HypergradientDescent):
    """Learn by SGD with hypergradient descent of the step size (SGD-HD; with momentum, SGDN-HD).

    With β the meta step size, u the direction of the last step (the gradient, or the momentum buffer):

        α ← α + β gᵀu
        u ← g                                      or torch's SGD with momentum, dampening and Nesterov's form
        w ← w − α u

    The authors' code adds the weight decay to ``p.grad`` itself; here the gradient is left alone.

    Args:
        lr: initial step size α₀.
        meta_lr: meta step size β.
        momentum: of the buffer of gradients.
        dampening: the buffer takes 1 − dampening of each gradient, apart from the first.
        nesterov: Nesterov's form of momentum.
        weight_decay: factor on the weights in the gradient, coupled as in torch's SGD.

    Example:
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> optimizer = SGDHD([w], lr=0.1, meta_lr=0.01)
        >>> optimizer.step()
        >>> optimizer.step()  # the same gradient again: 0.1 + 0.01 · 2 · 2
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.14
    """

    below_one = ("momentum",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        meta_lr: float = 1e-6,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _check(self, group: Group) -> None:
        super()._check(group)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("nesterov needs a momentum, and dampening=0")

    def _last_direction(self, state: dict[str, Any], group: Group) -> Tensor | None:
        return state.get("direction")

    def _next_direction(self, state: dict[str, Any], grad: Tensor, group: Group) -> Tensor:
        direction = grad
        if momentum := group["momentum"]:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = grad.clone()
            else:
                state["momentum_buffer"].mul_(momentum).add_(grad, alpha=1 - group["dampening"])
            direction = state["momentum_buffer"]
            if group["nesterov"]:
                direction = grad.add(direction, alpha=momentum)
        state["direction"] = direction.clone()  # the gradient's memory is overwritten by the next one
        return direction


class AdamHD(HypergradientDescent):
    """Learn by Adam with hypergradient descent of the step size (Adam-HD).

    With β the meta step size and u the direction of the last step, bias correction included:

        α ← α + β gᵀu
        m ← β₁ m + (1 − β₁) g,    v ← β₂ v + (1 − β₂) g²
        u ← m / (√v + ε) · √(1 − β₂ᵗ) / (1 − β₁ᵗ)
        w ← w − α u

    The authors' code moves α within its loop over tensors, so that earlier tensors learn with a partly moved α, and the
    result depends on their order. Here α is moved once, by the product summed over all tensors of the group, before any
    weight is: the rule of the paper. With one tensor both are the same.

    Args:
        lr: initial step size α₀.
        meta_lr: meta step size β.
        betas: β₁ and β₂ of Adam.
        eps: ε of Adam.
        weight_decay: factor on the weights in the gradient, coupled as in torch's Adam.

    Example:
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> AdamHD([w], lr=0.1).step()
        >>> round(w.item(), 4)
        0.9
    """

    not_negative = (*HypergradientDescent.not_negative, "eps")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        meta_lr: float = 1e-8,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _check(self, group: Group) -> None:
        super()._check(group)
        require(group, "betas", all(0 <= beta < 1 for beta in group["betas"]), "both be at least 0 and below 1")

    def _last_direction(self, state: dict[str, Any], group: Group) -> Tensor | None:
        return self._direction(state, group) if "step" in state else None

    def _next_direction(self, state: dict[str, Any], grad: Tensor, group: Group) -> Tensor:
        if "step" not in state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = zeros(grad), zeros(grad)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        state["exp_avg"].mul_(beta1).add_(grad, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        return self._direction(state, group)

    @staticmethod
    def _direction(state: dict[str, Any], group: Group) -> Tensor:
        beta1, beta2 = group["betas"]
        correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        denominator: Tensor = state["exp_avg_sq"].sqrt().add_(group["eps"])
        return torch.div(state["exp_avg"], denominator, out=denominator).mul_(correction)


sgd_hd = learner_of(SGDHD, "scalar")
adam_hd = learner_of(AdamHD, "scalar")
