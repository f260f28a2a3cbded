"""Prodigy: Adam whose step size is a growing estimate of the distance to the solution.

The rule is that of the authors' package ``prodigyopt`` 1.1, which the tests compare with.
"""

import math
from typing import Any, ClassVar

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require, settings_of
from continual_metaopt.optim.elementwise import Reduction, sqrt
from continual_metaopt.optim.peers.d_adaptation import EstimatedDistance, adam_rate, with_decay
from continual_metaopt.optim.registry import DECOUPLED_DECAY, INITIAL_DISTANCE, LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "prodigy",
    "Prodigy, Adam with an estimated step size",
    family="no step size to choose",
    space={"d_coef": [0.25, 0.5, 1.0, 2.0, 4.0], "d0": INITIAL_DISTANCE, "weight_decay": DECOUPLED_DECAY},
    paper='Mishchenko and Defazio (2024), "Prodigy: an expeditiously adaptive parameter-free learner"',
)


class Prodigy(EstimatedDistance):
    """Learn by Adam whose step size is a growing estimate of the distance to the solution.

    With gradient g over all groups, coupled weight decay included, initial weights w₀, and zeros at first:

        λ = d α                                    times √(1 − β₂ᵗ) / (1 − β₁ᵗ) with bias correction
        q ← β₃ q + (d / d₀) λ gᵀ(w₀ − w)
        m ← β₁ m + (1 − β₁) d g,    v ← β₂ v + (1 − β₂) d² g²
        s ← β₃ s + (d / d₀) λ g                    d in place of λ with ``safeguard_warmup``
        d̂ = c q / ‖s‖₁,    D ← max(D, d̂),    d ← min(D, r d)
        w ← (1 − λ κ) w − λ m / (√v + d ε)         λ with the old d, d ε with the new one

    D is d₀ at first, r the limit of growth, κ weight decay, decoupled unless asked otherwise. As long as d is d₀, it
    may grow to d̂ at once. With β₁ = 0, m is g times the new d. As long as all gradients have been 0, nothing happens.

    Args:
        lr: factor α on the step size, best left at 1.
        betas: β₁ and β₂ of Adam.
        beta3: decay of the running means behind the estimate; the root of β₂ if not given.
        eps: ε of Adam.
        weight_decay: of the weights.
        decouple: whether weight decay is decoupled, as in AdamW.
        use_bias_correction: whether Adam's bias correction is applied.
        safeguard_warmup: leaves ``lr`` out of the estimate's denominator.
        d0: first estimate of the distance.
        d_coef: factor on the estimate.
        growth_rate: largest factor by which it grows in one step; None for no limit.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> Prodigy([w], d0=0.01).step()
        >>> round(w.item(), 4)  # 1 - 0.01 · 0.1 / √0.001
        0.9684
    """

    positive = (*EstimatedDistance.positive, "eps", "d_coef")
    keeps = ("exp_avg", "exp_avg_sq", "s", "start")
    from_weights = ("start",)
    measures: ClassVar[dict[str, Reduction]] = {"progress": "sum", "size": "sum"}
    decides = ("d", "d_max", "d_before", "numerator", "n_steps", "rate")
    learned = ("d_before", "numerator", "n_steps", "rate")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float | None = None,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _check(self, group: Group) -> None:
        super()._check(group)
        require(group, "beta3", group["beta3"] is None or 0 <= group["beta3"] < 1, "be at least 0 and below 1, or None")
        group.setdefault("d_max", group["d0"])

    def numbers(self, group: Group) -> dict[str, float]:
        """Give β₃ as a number."""
        return {"beta3": math.sqrt(group["betas"][1])} | super().numbers(group)

    @staticmethod
    def measure(
        w: Any,
        g: Any,
        s: Any,
        start: Any,
        d: float,
        d0: float,
        lr: float,
        beta1: float,
        beta2: float,
        beta3: float,
        weight_decay: float,
        decouple: float,
        use_bias_correction: float,
        safeguard_warmup: float,
        n_steps: float,
    ) -> Any:
        """Multiply the gradient by the way back to the initial weights, and give the size of what s becomes."""
        g = with_decay(g, w, weight_decay, decouple)
        rate = adam_rate(d * lr, beta1, beta2, n_steps, use_bias_correction)
        return g * (start - w), abs(_next_sum(s, g, d, d0, rate, beta3, safeguard_warmup))

    @staticmethod
    def decide(
        progress: float,
        size: float,
        d: float,
        d0: float,
        d_max: float,
        d_coef: float,
        lr: float,
        beta1: float,
        beta2: float,
        beta3: float,
        use_bias_correction: float,
        numerator: float,
        n_steps: float,
        growth_rate: float,
    ) -> tuple[float, float, float, float, float, float]:
        """Let the estimate grow, and give that of before, and the step size with it."""
        if size == 0:
            return d, d_max, d, numerator, n_steps, 0.0
        rate = adam_rate(d * lr, beta1, beta2, n_steps, use_bias_correction)
        numerator = beta3 * numerator + d / d0 * rate * progress
        estimate, grown = d_coef * numerator / size, d
        if d == d0:
            grown = max(d, estimate)
        d_max = max(d_max, estimate)
        return min(d_max, grown * growth_rate), d_max, d, numerator, n_steps + 1, rate

    @staticmethod
    def move(
        w: Any,
        g: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        s: Any,
        start: Any,
        d: float,
        d0: float,
        d_before: float,
        rate: float,
        beta1: float,
        beta2: float,
        beta3: float,
        eps: float,
        weight_decay: float,
        decouple: float,
        safeguard_warmup: float,
    ) -> Any:
        """Step as Adam."""
        g = with_decay(g, w, weight_decay, decouple)
        exp_avg = beta1 * exp_avg + (d_before * (1 - beta1) if beta1 > 0 else d) * g
        exp_avg_sq = beta2 * exp_avg_sq + d_before * d_before * (1 - beta2) * g * g
        s = _next_sum(s, g, d_before, d0, rate, beta3, safeguard_warmup)
        if decouple > 0:
            w = w - weight_decay * rate * w
        return w - rate * exp_avg / (sqrt(exp_avg_sq) + d * eps), exp_avg, exp_avg_sq, s, start


def _next_sum(s: Any, g: Any, d: float, d0: float, rate: float, beta3: float, safeguard_warmup: float) -> Any:
    scale = d / d0 * rate
    if safeguard_warmup > 0:
        scale = d / d0 * d
    return beta3 * s + scale * g


prodigy = learner_of(Prodigy)
