"""Hypergradient descent: one step size, moved by the product of successive gradients, in its additive form.

The derivative of the loss by the step size that was used last is h = −gᵀu, with gradient g and u the direction of the
last step, w ← w − α u; then α ← α − β h, and the new α is used at once. Nothing keeps α positive, as in the authors'
code. A param group has a step size of its own; the original has one group.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require, settings_of
from continual_metaopt.optim.elementwise import Elementwise, Reduction, sqrt
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


def _moved(lr: float, meta_lr: float, product: float) -> float:
    return lr + meta_lr * product


class HypergradientDescent(Elementwise):
    """Move each group's step size, then make the step; subclasses decide its direction u, and measure gᵀu."""

    not_negative: ClassVar[tuple[str, ...]] = ("lr", "meta_lr", "weight_decay")
    measures: ClassVar[dict[str, Reduction]] = {"product": "sum"}
    decides = ("lr",)
    decide: ClassVar[Callable[..., Any]] = staticmethod(_moved)


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
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> optimizer = SGDHD([w], lr=0.1, meta_lr=0.01)
        >>> optimizer.step()
        >>> optimizer.step()  # the same gradient again: 0.1 + 0.01 · 2 · 2
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.14
    """

    below_one = ("momentum",)
    keeps = ("direction", "momentum_buffer")

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

    @staticmethod
    def measure(w: Any, g: Any, direction: Any, weight_decay: float) -> Any:
        """Multiply the gradient by the last direction."""
        return (g + weight_decay * w) * direction

    @staticmethod
    def move(
        w: Any,
        g: Any,
        direction: Any,
        momentum_buffer: Any,
        lr: float,
        momentum: float,
        dampening: float,
        nesterov: float,
        weight_decay: float,
        step: int,
    ) -> Any:
        """Step as torch's SGD."""
        g = g + weight_decay * w
        direction = g
        if momentum > 0:
            momentum_buffer = momentum * momentum_buffer + (1 - dampening) * g
            if step == 1:
                momentum_buffer = g
            direction = momentum_buffer
            if nesterov:
                direction = g + momentum * momentum_buffer
        return w - lr * direction, direction, momentum_buffer


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
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> AdamHD([w], lr=0.1).step()
        >>> round(w.item(), 4)
        0.9
    """

    not_negative = (*HypergradientDescent.not_negative, "eps")
    keeps = ("exp_avg", "exp_avg_sq")

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

    def numbers(self, group: Group) -> dict[str, float]:
        """Give β₁ and β₂ as numbers."""
        return super().numbers(group) | dict(zip(("beta1", "beta2"), group["betas"], strict=True))

    @staticmethod
    def measure(
        w: Any,
        g: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
    ) -> Any:
        """Multiply the gradient by the last direction."""
        if step == 1:
            return 0.0 * g
        last = _adam_direction(exp_avg, exp_avg_sq, beta1, beta2, eps, step - 1)
        return (g + weight_decay * w) * last

    @staticmethod
    def move(
        w: Any,
        g: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        step: int,
    ) -> Any:
        """Step as Adam."""
        g = g + weight_decay * w
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        return w - lr * _adam_direction(exp_avg, exp_avg_sq, beta1, beta2, eps, step), exp_avg, exp_avg_sq


def _adam_direction(exp_avg: Any, exp_avg_sq: Any, beta1: float, beta2: float, eps: float, step: float) -> Any:
    correction = sqrt(1 - beta2**step) / (1 - beta1**step)
    return exp_avg / (sqrt(exp_avg_sq) + eps) * correction


sgd_hd = learner_of(SGDHD, "scalar")
adam_hd = learner_of(AdamHD, "scalar")
