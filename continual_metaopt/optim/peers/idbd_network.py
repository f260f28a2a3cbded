"""IDBD for networks: its extension beyond linear models, with a diagonal in place of the Hessian."""

from typing import Any

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import settings_of
from continual_metaopt.optim.peers.idbd import DeltaBarDelta, idbd_update
from continual_metaopt.optim.registry import LR, LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "idbd_network",
    "IDBD for networks, a step size for each weight",
    family="learned step sizes",
    space={"lr": LR, "meta_lr": (1e-4, 1e-1, "log")},
    paper=(
        'Xu, van Hasselt, Silver, "Meta-Gradient Reinforcement Learning", NeurIPS 2018, is what Sharifnassab et '
        "al. (arXiv 2402.02342, appendix B.1) name as IDBD's extension to networks"
    ),
)


class NetworkIDBD(DeltaBarDelta):
    """Learn a step size for each weight of any network.

    As appendix B.1 of the MetaOptimize paper states it, with weightwise step sizes α = exp(β), gradient g, Hessian ∇²f
    and the Jacobian H of the weights by β, an n × n matrix:

        β ← β − θ Hᵀ g,    w ← w − α g,    H ← (I − α ∇²f) H − diag(α g)

    with the new α in the last two, and no discount. A matrix H does not fit into memory for a network. Here it is
    diagonal, a vector h, and so is the Hessian, as in IDBD; its diagonal is that of the outer product g gᵀ:

        βᵢ ← βᵢ − θ gᵢ hᵢ                          with the old h
        wᵢ ← wᵢ − αᵢ gᵢ                            with the new α
        hᵢ ← hᵢ [1 − αᵢ gᵢ²]⁺ − αᵢ gᵢ              [·]⁺ is the positive part

    For the log likelihood of a class, E[g gᵀ] under the network's own predictions is the Gauss–Newton matrix. For half
    the squared error g² = δ² (∂output/∂w)², which is δ² times IDBD's xᵢ² in a linear model: there, take ``IDBD``.

    Args:
        lr: initial step size α₀.
        meta_lr: meta step size θ.
        max_change: largest change of β in one step; Sutton (1992) suggests 2. None for no limit.
        min_log_step_size: least β; Sutton suggests −10. None for no limit.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> NetworkIDBD([w], lr=0.1).step()
        >>> round(w.item(), 4)
        0.8
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        *,
        meta_lr: float = 0.01,
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
        reference: float,
        meta_lr: float,
        max_change: float,
        least_ratio: float,
    ) -> Any:
        """Step along the gradient."""
        return idbd_update(w, g, g, g * g, log_ratio, trace, reference, meta_lr, max_change, least_ratio)


idbd_network = learner_of(
    NetworkIDBD, "blockwise", docs={"step_sizes": "over which parameters the mean step sizes are reported."}
)
