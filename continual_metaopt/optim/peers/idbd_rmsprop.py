"""IDBD with RMSProp as base update: a step size for each weight, on top of a normalised gradient.

The rule below is derived here, in the way that IDBD is, and has not been compared with the report.
"""

from typing import Any

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import settings_of
from continual_metaopt.optim.elementwise import sqrt
from continual_metaopt.optim.peers.idbd import DeltaBarDelta, idbd_update
from continual_metaopt.optim.registry import LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "idbd_rmsprop",
    "IDBD with RMSProp as base update, a step size for each weight",
    family="learned step sizes",
    space={"lr": (1e-5, 1e-2, "log"), "meta_lr": (1e-4, 1e-1, "log")},
    paper=(
        'Javed, "Step-size adaptation for RMSProp", technical report, 2020, is what Sharifnassab et al. (arXiv '
        "2402.02342) name as IDBD's extension to another base update"
    ),
)


class RMSPropIDBD(DeltaBarDelta):
    """Learn a step size for each weight of any network, with RMSProp's steps.

    With gradient g, running mean v of g² and its bias-corrected v̂, the step is w ← w − α u with u = g / (√v̂ + ε). Its
    derivative by β = log α, with v taken to be independent of the weights, and g² for the diagonal of the Hessian as in
    ``NetworkIDBD``, is followed by a trace h:

        v ← ρ v + (1 − ρ) g²,    u = g / (√v̂ + ε)
        βᵢ ← βᵢ − θ gᵢ hᵢ                          with the old h
        wᵢ ← wᵢ − αᵢ uᵢ                            with the new α
        hᵢ ← hᵢ [1 − αᵢ gᵢ uᵢ]⁺ − αᵢ uᵢ            [·]⁺ is the positive part

    RMSProp is that of ``base_updates``: AdamW without momentum.

    Args:
        lr: initial step size α₀.
        meta_lr: meta step size θ.
        decay: ρ of the running mean of squared gradients.
        eps: ε, outside the root.
        max_change: largest change of β in one step; Sutton (1992) suggests 2. None for no limit.
        min_log_step_size: least β; Sutton suggests −10. None for no limit.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> RMSPropIDBD([w], lr=0.1).step()
        >>> round(w.item(), 4)
        0.9
    """

    not_negative = (*DeltaBarDelta.not_negative, "eps")
    below_one = ("decay",)
    keeps = (*DeltaBarDelta.keeps, "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        meta_lr: float = 0.01,
        decay: float = 0.999,
        eps: float = 1e-8,
        max_change: float | None = None,
        min_log_step_size: float | None = None,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    @staticmethod
    def move(
        w: Any,
        g: Any,
        log_ratio: Any,
        trace: Any,
        exp_avg_sq: Any,
        reference: float,
        meta_lr: float,
        decay: float,
        eps: float,
        max_change: float,
        least_ratio: float,
        step: int,
    ) -> Any:
        """Step along the normalised gradient."""
        exp_avg_sq = decay * exp_avg_sq + (1 - decay) * g * g
        u = g / (sqrt(exp_avg_sq) / sqrt(1 - decay**step) + eps)
        w, log_ratio, trace = idbd_update(w, g, u, g * u, log_ratio, trace, reference, meta_lr, max_change, least_ratio)
        return w, log_ratio, trace, exp_avg_sq


idbd_rmsprop = learner_of(
    RMSPropIDBD, "blockwise", docs={"step_sizes": "over which parameters the mean step sizes are reported."}
)
