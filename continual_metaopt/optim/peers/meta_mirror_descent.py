"""Mirror descent of the step size: hypergradient descent in another geometry than that of differences.

It is not "Meta Mirror Descent" of Gao, Gouk, Lee, Hospedales (arXiv 2203.02711), which learns a Bregman divergence for
the weights offline, over many trainings of a task, and has no counterpart in one pass over a stream.
"""

import math
from typing import Any

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require, settings_of
from continual_metaopt.optim.peers.hypergradient import HypergradientDescent
from continual_metaopt.optim.registry import DECAY_IN_GRADIENT, LR, LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "meta_mirror_descent",
    "SGD with mirror descent of the step size",
    family="learned step sizes",
    space={"lr": LR, "meta_lr": (1e-5, 1e-1, "log"), "weight_decay": DECAY_IN_GRADIENT},
    paper=(
        "hypergradient descent (Baydin et al., ICLR 2018) with a step of mirror descent (Nemirovski, Yudin 1983; "
        "Beck, Teboulle, Operations Research Letters 31, 2003) in place of its additive one"
    ),
)

LOWEST, HIGHEST = 1e-10, 1e2


class MetaMirrorDescent(HypergradientDescent):
    """Move the step size of SGD by mirror descent along the hypergradient.

    With gradient g, gradient u at the last step and the link function φ(α) = (α^q − 1) / q, or log α for q = 0:

        φ(α) ← φ(α) + β gᵀu
        w ← w − α g

    q = 1 is hypergradient descent (SGD-HD), α ← α + β gᵀu; q = 0 is the exponentiated gradient, with entropy as mirror
    map, α ← α exp(β gᵀu); q = −1 has Burg's entropy, 1/α ← 1/α − β gᵀu. To first order α moves by β α^(1 − q) gᵀu, so
    that the smaller q, the more cautious it is at small step sizes. MetaOptimize with γ = 0 and SGD as base and meta
    update moves log α by β α gᵀu, gradient descent in the logarithm, which is q = −1 to first order.

    α stays within 1e-10 and 100, also where a step leaves the range of φ. The default of β is that of SGD-HD in
    relation to its initial step size.

    Args:
        params: tensors or param groups, as for any torch optimizer; each group has a step size.
        lr: initial step size α₀.
        meta_lr: meta step size β.
        q: geometry: 1 for differences, as in hypergradient descent, 0 for ratios.
        weight_decay: factor on the weights in the gradient, coupled as in torch's SGD.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> optimizer = MetaMirrorDescent([w], lr=0.1, meta_lr=0.05)
        >>> optimizer.step()
        >>> optimizer.step()  # the same gradient again: 0.1 exp(0.05 · 2 · 2)
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.1221
    """

    positive = ("lr",)
    keeps = ("direction",)

    def __init__(
        self, params: ParamsT, lr: float = 1e-3, *, meta_lr: float = 1e-3, q: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _check(self, group: Group) -> None:
        super()._check(group)
        require(group, "q", math.isfinite(group["q"]), "be finite")

    @staticmethod
    def measure(g: Any, w: Any, direction: Any, weight_decay: float) -> Any:
        """Multiply the gradient by the last one."""
        return (g + weight_decay * w) * direction

    @staticmethod
    def decide(lr: float, meta_lr: float, q: float, product: float) -> float:
        """Move the step size along its geometry."""
        if meta_lr == 0 or product == 0:
            return lr
        change = meta_lr * product
        step_size = max(lr, LOWEST)  # a schedule may end at 0
        if q == 0:
            return math.exp(min(max(math.log(step_size) + change, math.log(LOWEST)), math.log(HIGHEST)))
        power = step_size**q + q * change
        if power <= 0:
            return LOWEST if q > 0 else HIGHEST
        return math.exp(min(max(math.log(power) / q, math.log(LOWEST)), math.log(HIGHEST)))

    @staticmethod
    def move(w: Any, g: Any, direction: Any, lr: float, weight_decay: float) -> Any:
        """Step as SGD."""
        g = g + weight_decay * w
        return w - lr * g, g


meta_mirror_descent = learner_of(MetaMirrorDescent, "scalar")
