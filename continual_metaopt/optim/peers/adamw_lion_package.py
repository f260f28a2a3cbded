"""MetaOptimize as its authors' package has it, ``MetaOptimize_AdamW_Lion_hg``: AdamW, with Lion as meta update."""

import math
from typing import Any, ClassVar

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require, settings_of
from continual_metaopt.optim.base_updates import AdamW
from continual_metaopt.optim.blocks import WITHIN_BLOCKS
from continual_metaopt.optim.elementwise import Elementwise, Reduction, sqrt
from continual_metaopt.optim.meta_updates import lion_rule
from continual_metaopt.optim.registry import DECOUPLED_DECAY, LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "adamw_lion_package",
    "MetaOptimize with AdamW and Lion as its authors' package has it",
    family="MetaOptimize",
    space={
        "lr": (1e-6, 1e-2, "log"),
        "meta_lr": (1e-4, 1e-2, "log"),
        "gamma": [0.99, 0.999, 0.9999, 1.0],
        "weight_decay": DECOUPLED_DECAY,
    },
    paper=(
        "`MetaOptimize_AdamW_Lion_hg` of the package `meta_optimize` by Sharifnassab et al. (arXiv 2402.02342), "
        "which is not the code that their experiments were made with"
    ),
)


EPS = AdamW().eps


class AdamWLionPackage(Elementwise):
    """Learn a step size per param group by AdamW and Lion, in the form of the authors' package.

    With m̂ and v̂ of Adam, momentum m̄ of the meta update, and everything on the right from before the step:

        w ← (1 − α κ) w − α m̂ / (√v̂ + ε)
        z = Σ h g                                              over the group
        h ← γ (1 − α κ) h + α g / (√v̂ + ε)
        m̄ ← ρ m̄ + (1 − ρ) z ;    log α ← log α + η sign(c m̄ + (1 − c) z)      with the new m̄

    Two things set it apart from ``MetaOptimize(base="adamw", meta="lion", gamma=γ, trace="hessian_free")``:

    - h takes in g / (√v̂ + ε) and not the step m̂ / (√v̂ + ε) that was taken.
    - Lion has its new momentum in the sign. That amounts to Lion's own form with another weight of the momentum,
      c ρ = 0.891 in place of c = 0.9: c (ρ m̄ + (1 − ρ) z) + (1 − c) z = c ρ m̄ + (1 − c ρ) z. So there is no meta
      update of that kind: ``Lion(betas=(c * ρ, ρ))`` is it.

    Against ``adamw_released``, the form of their experiments' code, the step is torch's and not 10 times as large.

    Known defects of the package, which are absent here: blocks are counted along the parameters that have a gradient,
    so that one without shifts all that come after it; block sizes that do not add up go unnoticed; it is no
    ``torch.optim.Optimizer`` and cannot be saved. Nothing keeps step sizes within bounds, there or here.

    Args:
        params: tensors or param groups, one per block.
        lr: initial step size α₀.
        meta_lr: meta step size η.
        gamma: discount γ.
        weight_decay: decoupled weight decay κ; their example has 0.1.
        betas: of AdamW.
        meta_betas: (c, ρ) of the meta update.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> AdamWLionPackage([w], lr=0.1).step()
        >>> round(w.item(), 4)
        0.9
    """

    positive = ("lr",)
    not_negative = ("meta_lr", "weight_decay")
    keeps = ("trace", "exp_avg", "exp_avg_sq")
    measures: ClassVar[dict[str, Reduction]] = {"product": "sum"}
    decides = ("lr", "rate", "meta_exp_avg")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        meta_lr: float = 1e-3,
        gamma: float = 0.9999,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        meta_betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _check(self, group: Group) -> None:
        super()._check(group)
        require(group, "gamma", 0 <= group["gamma"] <= 1, "be within 0 and 1")
        finer = group.get("step_sizes", "group") in WITHIN_BLOCKS
        require(group, "step_sizes", not finer, "be no finer than tensors")
        for name in ("betas", "meta_betas"):
            require(group, name, all(0 <= beta < 1 for beta in group[name]), "be two numbers of at least 0 and below 1")
        group.setdefault("rate", group["lr"])
        group.setdefault("meta_exp_avg", 0.0)

    def numbers(self, group: Group) -> dict[str, float]:
        """Give the settings of both updates as numbers."""
        names = ("beta1", "beta2", "meta_mix", "meta_decay")
        return super().numbers(group) | dict(zip(names, (*group["betas"], *group["meta_betas"]), strict=True))

    @staticmethod
    def measure(g: Any, trace: Any) -> Any:
        """Multiply the gradient by the trace."""
        return trace * g

    @staticmethod
    def decide(
        product: float, lr: float, meta_lr: float, meta_exp_avg: float, meta_mix: float, meta_decay: float
    ) -> tuple[float, float, float]:
        """Move the step size; the weights still move by the one before."""
        change, _, mean, _ = lion_rule(
            0.0, meta_exp_avg, 0.0, -product, meta_lr, meta_mix * meta_decay, meta_decay, 0.0
        )
        return lr * math.exp(change), lr, mean

    @staticmethod
    def move(
        w: Any,
        g: Any,
        trace: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        rate: float,
        gamma: float,
        weight_decay: float,
        beta1: float,
        beta2: float,
        step: int,
    ) -> Any:
        """Step as AdamW."""
        exp_avg = exp_avg + (1 - beta1) * (g - exp_avg)
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        denominator = sqrt(exp_avg_sq) / sqrt(1 - beta2**step) + EPS
        shrink = 1 - rate * weight_decay
        w = shrink * w - rate / (1 - beta1**step) * (exp_avg / denominator)
        return w, gamma * shrink * trace + rate * (g / denominator), exp_avg, exp_avg_sq


adamw_lion_package = learner_of(AdamWLionPackage, "scalar", hidden=("betas", "meta_betas"))
