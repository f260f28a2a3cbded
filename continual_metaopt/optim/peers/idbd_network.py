"""IDBD for networks: its extension beyond linear models, with a diagonal in place of the Hessian.

Xu, van Hasselt, Silver, "Meta-Gradient Reinforcement Learning", NeurIPS 2018, is what Sharifnassab et al. (arXiv
2402.02342, appendix B.1) name as IDBD's extension to networks.
"""

from torch import nn
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.blocks import Granularity, blocks
from continual_metaopt.optim.peers.idbd import add_checked_group, idbd_update
from continual_metaopt.optim.weightwise import Group, Weightwise, gradients


class NetworkIDBD(Weightwise):
    """Learns a step size for each weight of any network.

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
        params: tensors or param groups, as for any torch optimizer.
        lr: initial step size α₀.
        meta_lr: meta step size θ.
        max_change: largest change of β in one step; Sutton (1992) suggests 2. None for no limit.
        min_log_step_size: least β; Sutton suggests −10. None for no limit.

    Raises:
        ValueError: a setting is out of range.
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
        defaults = {"lr": lr, "meta_lr": meta_lr, "max_change": max_change, "min_log_step_size": min_log_step_size}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters.

        Raises:
            ValueError: a setting is out of range.
        """
        add_checked_group(self, super().add_param_group, param_group)

    def _update(self) -> None:
        for group in self.param_groups:
            for param, grad in gradients(self, group):
                idbd_update(param, grad, grad, grad.square(), self._prepared_state(param, "trace"), group)


def idbd_network(
    model: nn.Module,
    *,
    lr: float = 0.01,
    meta_lr: float = 0.01,
    max_change: float | None = None,
    min_log_step_size: float | None = None,
    step_sizes: Granularity | list[list[str]] = "blockwise",
) -> NetworkIDBD:
    """IDBD for networks: a step size for each weight.

    Args:
        model: the network.
        lr: initial step size α₀.
        meta_lr: meta step size θ.
        max_change: largest change of a log step size at one sample; none if not given.
        min_log_step_size: least log step size; none if not given.
        step_sizes: over which parameters the mean step sizes are reported.
    """
    return NetworkIDBD(
        blocks(model, step_sizes),
        lr,
        meta_lr=meta_lr,
        max_change=max_change,
        min_log_step_size=min_log_step_size,
    )
