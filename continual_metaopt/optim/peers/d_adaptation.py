"""D-Adaptation: SGD, Adam and AdaGrad whose step size is a growing estimate of the distance to the solution.

The rules are those of the authors' package ``dadaptation`` 3.2, which the tests compare with.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require, require_positive, settings_of
from continual_metaopt.optim.elementwise import Elementwise, Reduction, sqrt
from continual_metaopt.optim.registry import DECAY_IN_GRADIENT, INITIAL_DISTANCE, LearnerSpec, learner_of

DADAPT_SGD = LearnerSpec(
    "dadapt_sgd",
    "SGD with D-Adaptation",
    family="no step size to choose",
    space={"d0": INITIAL_DISTANCE, "weight_decay": DECAY_IN_GRADIENT},
    paper='Defazio and Mishchenko (2023), "Learning-rate-free learning by D-Adaptation"',
)

DADAPT_ADAM = LearnerSpec(
    "dadapt_adam",
    "Adam with D-Adaptation",
    family="no step size to choose",
    space={"d0": INITIAL_DISTANCE, "weight_decay": DECAY_IN_GRADIENT},
    paper='Defazio and Mishchenko (2023), "Learning-rate-free learning by D-Adaptation"',
)

DADAPT_ADAGRAD = LearnerSpec(
    "dadapt_adagrad",
    "AdaGrad with D-Adaptation",
    family="no step size to choose",
    space={"d0": INITIAL_DISTANCE, "weight_decay": DECAY_IN_GRADIENT},
    paper='Defazio and Mishchenko (2023), "Learning-rate-free learning by D-Adaptation"',
)

SMALLEST_SQUARE = 1e-6  # that AdaGrad's sums begin with


def d_times_lr(d: float, lr: float) -> float:
    """Give the step size d α; a bias correction is not in it."""
    return d * lr


class EstimatedDistance(Elementwise):
    """Estimate a distance d that all groups have in common, and that never falls.

    Attributes:
        learned: names of further entries of a group that are learned, 0 at first.
    """

    positive: ClassVar[tuple[str, ...]] = ("lr", "d0")
    not_negative: ClassVar[tuple[str, ...]] = ("weight_decay",)
    over_all_groups = True
    learned: ClassVar[tuple[str, ...]] = ()
    step_size: ClassVar[Callable[..., float]] = staticmethod(d_times_lr)

    def _check(self, group: Group) -> None:
        super()._check(group)
        if group["growth_rate"] is not None:
            require_positive(group, "growth_rate")
        if "betas" in group:
            require(group, "betas", all(0 <= beta < 1 for beta in group["betas"]), "both be at least 0 and below 1")
        group.setdefault("d", group["d0"])
        for name in self.learned:
            group.setdefault(name, 0.0)

    def numbers(self, group: Group) -> dict[str, float]:
        """Give no limit of growth as infinity, and β₁ and β₂ as numbers."""
        betas = dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))
        return {"growth_rate": math.inf} | super().numbers(group) | betas


class DAdaptSGD(EstimatedDistance):
    """Learn by SGD whose step size is a growing estimate of a distance, over the first gradient's norm.

    With gradient g over all groups, weight decay included, initial weights w₀, and s = 0 at first:

        λ = d α / ‖g₀‖                             g₀ is the first gradient, without weight decay
        q ← q + λ gᵀs
        s ← s + λ g
        d ← max(d, min(2 q / ‖s‖, r d))            r is the limit of growth
        w ← μ w + (1 − μ) (w₀ − s)

    A first gradient of 0, where the package divides by 0, is left out. The package adds weight decay to ``p.grad``
    itself; here the gradient is left alone.

    Args:
        lr: factor α on the step size, best left at 1.
        momentum: μ; 1 − the share of a new iterate in the weights.
        weight_decay: factor on the weights in the gradient.
        d0: first estimate of the distance.
        growth_rate: largest factor by which it grows in one step; None for no limit.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> DAdaptSGD([w], d0=0.1).step()
        >>> round(w.item(), 4)
        0.9
    """

    below_one = ("momentum",)
    keeps = ("s", "start")
    from_weights = ("start",)
    measures: ClassVar[dict[str, Reduction]] = {"progress": "sum", "square": "sum", "first_square": "sum"}
    decides = ("d", "numerator", "first_norm", "rate")
    learned = ("numerator", "first_norm", "rate")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        growth_rate: float | None = None,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    @staticmethod
    def measure(w: Any, g: Any, s: Any, d: float, lr: float, first_norm: float, weight_decay: float) -> Any:
        """Multiply the gradient by s, and square what s becomes; of the first gradient, its own squares."""
        decayed = g + weight_decay * w
        if first_norm > 0:
            progress = decayed * s
            new = s + d * lr / first_norm * decayed
            first = 0.0 * g
        else:
            progress = 0.0 * g
            new = decayed
            first = g * g
        return progress, new * new, first

    @staticmethod
    def decide(
        progress: float,
        square: float,
        first_square: float,
        d: float,
        lr: float,
        numerator: float,
        first_norm: float,
        growth_rate: float,
    ) -> tuple[float, float, float, float]:
        """Let the estimate grow, and give the step size of before."""
        if first_norm > 0:
            rate, norm = d * lr / first_norm, sqrt(square)
        else:
            first_norm = sqrt(first_square)
            if first_norm == 0:
                return d, numerator, first_norm, 0.0
            rate = d * lr / first_norm
            norm = rate * sqrt(square)
        numerator = numerator + rate * progress
        if norm > 0:
            d = max(d, min(2 * numerator / norm, d * growth_rate))
        return d, numerator, first_norm, rate

    @staticmethod
    def move(w: Any, g: Any, s: Any, start: Any, rate: float, momentum: float, weight_decay: float) -> Any:
        """Step by dual averaging, and average."""
        s = s + rate * (g + weight_decay * w)
        return momentum * w + (1 - momentum) * (start - s), s, start

    @staticmethod
    def step_size(d: float, lr: float, first_norm: float) -> float:
        """Give d α over the norm of the first gradient, and 0 before that is known."""
        return d * lr / first_norm if first_norm > 0 else 0.0


class DAdaptAdam(EstimatedDistance):
    """Learn by Adam whose step size is a growing estimate of the distance to the solution.

    With gradient g over all groups, coupled weight decay included, and zeros at first:

        λ = d α                                    times √(1 − β₂ᵗ) / (1 − β₁ᵗ) with bias correction
        q ← √β₂ q + (1 − √β₂) λ gᵀ(s / (√v + ε))   with the old v
        m ← β₁ m + (1 − β₁) λ g,    v ← β₂ v + (1 − β₂) g²
        s ← √β₂ s + (1 − √β₂) λ g
        d ← max(d, min(q / ((1 − √β₂) ‖s‖₁), r d)) r is the limit of growth
        w ← (1 − λ κ) w − m / (√v + ε)             κ is decoupled weight decay, 0 unless asked for

    As long as all gradients have been 0, nothing happens. The package adds weight decay to ``p.grad`` itself; here the
    gradient is left alone.

    Args:
        lr: factor α on the step size, best left at 1.
        betas: β₁ and β₂ of Adam.
        eps: ε of Adam.
        weight_decay: of the weights.
        decouple: whether weight decay is decoupled, as in AdamW.
        use_bias_correction: whether Adam's bias correction is applied.
        d0: first estimate of the distance.
        growth_rate: largest factor by which it grows in one step; None for no limit.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> DAdaptAdam([w], d0=0.01).step()
        >>> round(w.item(), 4)  # 1 - 0.1 · 0.01 · 2 / (√0.001 · 2)
        0.9684
    """

    positive = (*EstimatedDistance.positive, "eps")
    keeps = ("exp_avg", "exp_avg_sq", "s")
    measures: ClassVar[dict[str, Reduction]] = {"progress": "sum", "size": "sum"}
    decides = ("d", "numerator", "n_steps", "rate")
    learned = ("numerator", "n_steps", "rate")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = False,
        use_bias_correction: bool = False,
        d0: float = 1e-6,
        growth_rate: float | None = None,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    @staticmethod
    def measure(
        w: Any,
        g: Any,
        exp_avg_sq: Any,
        s: Any,
        d: float,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decouple: float,
        use_bias_correction: float,
        n_steps: float,
    ) -> Any:
        """Multiply the gradient by Adam's direction along s, and give the size of what s becomes."""
        g = with_decay(g, w, weight_decay, decouple)
        rate = adam_rate(d * lr, beta1, beta2, n_steps, use_bias_correction)
        return g * (s / (sqrt(exp_avg_sq) + eps)), abs(mean_of_root(s, rate * (1 - sqrt(beta2)), g, beta2))

    @staticmethod
    def decide(
        progress: float,
        size: float,
        d: float,
        lr: float,
        beta1: float,
        beta2: float,
        use_bias_correction: float,
        numerator: float,
        n_steps: float,
        growth_rate: float,
    ) -> tuple[float, float, float, float]:
        """Let the estimate grow, and give the step size of before."""
        if size == 0:
            return d, numerator, n_steps, 0.0
        rate = adam_rate(d * lr, beta1, beta2, n_steps, use_bias_correction)
        share = 1 - sqrt(beta2)
        numerator = sqrt(beta2) * numerator + share * (rate * progress)
        return max(d, min(numerator / (share * size), d * growth_rate)), numerator, n_steps + 1, rate

    @staticmethod
    def move(
        w: Any,
        g: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        s: Any,
        rate: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decouple: float,
    ) -> Any:
        """Step as Adam."""
        g = with_decay(g, w, weight_decay, decouple)
        exp_avg = beta1 * exp_avg + rate * (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        s = mean_of_root(s, rate * (1 - sqrt(beta2)), g, beta2)
        if decouple > 0:
            w = w - weight_decay * rate * w
        return w - exp_avg / (sqrt(exp_avg_sq) + eps), exp_avg, exp_avg_sq, s


def with_decay(g: Any, w: Any, weight_decay: float, decouple: float) -> Any:
    """Add weight decay to the gradient, unless it is decoupled."""
    if decouple == 0:
        g = g + weight_decay * w
    return g


def adam_rate(rate: float, beta1: float, beta2: float, n_steps: float, use_bias_correction: float) -> float:
    """Give the step size of Adam's next step, with bias correction if it is asked for."""
    if use_bias_correction > 0:
        rate = rate * sqrt(1 - beta2 ** (n_steps + 1)) / (1 - beta1 ** (n_steps + 1))
    return rate


def mean_of_root(mean: Any, scale: float, g: Any, beta2: float) -> Any:
    """Discount a mean by √β₂, and add to it a multiple of the gradient."""
    return sqrt(beta2) * mean + scale * g


class DAdaptAdaGrad(EstimatedDistance):
    """Learn by AdaGrad whose step size is a growing estimate of the distance to the solution.

    With gradient g over all groups, weight decay included, initial weights w₀, and zeros at first, but A = 1e-6:

        λ = d α
        A ← A + g²
        q ← q + λ² Σ g² / (√A + ε)
        s ← s + λ g
        d ← max(d, min((Σ s² / (√A + ε) − q) / ‖s‖₁, r d))
        w ← μ w + (1 − μ) (w₀ − s / (√A + ε))

    The sums over all weights are kept, and change with the weights that have a gradient. As long as all gradients have
    been 0, nothing happens. The state holds A − 1e-6, so that weights that a growing head adds begin as the others.

    Args:
        lr: factor α on the step size, best left at 1.
        momentum: μ; 1 − the share of a new iterate in the weights.
        weight_decay: factor on the weights in the gradient.
        eps: ε of AdaGrad.
        d0: first estimate of the distance.
        growth_rate: largest factor by which it grows in one step; None for no limit.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> DAdaptAdaGrad([w], d0=0.1).step()
        >>> round(w.item(), 4)
        0.9
    """

    below_one = ("momentum",)
    positive = (*EstimatedDistance.positive, "eps")
    keeps = ("squares", "s", "start")
    from_weights = ("start",)
    measures: ClassVar[dict[str, Reduction]] = {"scaled": "sum", "more_weighted": "sum", "more_size": "sum"}
    decides = ("d", "gradients", "weighted", "size", "rate")
    learned = ("gradients", "weighted", "size", "rate")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        eps: float = 1e-6,
        d0: float = 1e-6,
        growth_rate: float | None = None,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    @staticmethod
    def measure(w: Any, g: Any, squares: Any, s: Any, d: float, lr: float, eps: float, weight_decay: float) -> Any:
        """Scale the squared gradient, and tell how much s² / (√A + ε) and |s| grow."""
        g = g + weight_decay * w
        new, scale = s + d * lr * g, _scale(squares + g * g, eps)
        return g * g / scale, new * new / scale - s * s / _scale(squares, eps), abs(new) - abs(s)

    @staticmethod
    def decide(
        scaled: float,
        more_weighted: float,
        more_size: float,
        d: float,
        lr: float,
        gradients: float,
        weighted: float,
        size: float,
        growth_rate: float,
    ) -> tuple[float, float, float, float, float]:
        """Let the estimate grow, and give the step size of before."""
        rate, grown = d * lr, size + more_size
        if grown == 0:
            return d, gradients, weighted, size, 0.0
        gradients, weighted = gradients + rate * rate * scaled, weighted + more_weighted
        return max(d, min((weighted - gradients) / grown, d * growth_rate)), gradients, weighted, grown, rate

    @staticmethod
    def move(
        w: Any,
        g: Any,
        squares: Any,
        s: Any,
        start: Any,
        rate: float,
        momentum: float,
        weight_decay: float,
        eps: float,
    ) -> Any:
        """Step by AdaGrad's dual averaging, and average."""
        g = g + weight_decay * w
        squares = squares + g * g
        s = s + rate * g
        return momentum * w + (1 - momentum) * (start - s / _scale(squares, eps)), squares, s, start


def _scale(squares: Any, eps: float) -> Any:
    return sqrt(squares + SMALLEST_SQUARE) + eps


dadapt_sgd = learner_of(DAdaptSGD)
dadapt_adam = learner_of(DAdaptAdam)
dadapt_adagrad = learner_of(DAdaptAdaGrad)
