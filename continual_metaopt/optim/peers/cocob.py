"""COCOB-Backprop: no step size at all, but bets on the gradient's sign."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import CheckedOptimizer, Group, gradients, settings_of
from continual_metaopt.optim.protocol import geometric_mean_of_positive
from continual_metaopt.optim.registry import LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "cocob",
    "COCOB: coin betting, without step sizes",
    family="no step size to choose",
    space="it has no step size",
    paper=(
        'Orabona, Tommasi, "Training Deep Networks without Learning Rates Through Coin Betting", NeurIPS 2017, '
        "algorithm 2"
    ),
)

SUMS = ("negative_gradients", "absolute_gradients", "largest_gradient", "reward", "moved")


class COCOB(CheckedOptimizer):
    """Let each weight bet a share of what it has won so far (COCOB-Backprop).

    With gradient g and initial weight w₀, per weight, starting from L = ε and zeros:

        L ← max(L, |g|)                            the largest gradient
        G ← G + |g|
        R ← max(R − g (w − w₀), 0)                 what the bets have won
        θ ← θ − g
        w ← w₀ + θ / (L max(G + L, a L)) · (L + R)

    The state holds w − w₀ in place of w₀, so that weights which a growing head adds start from their own initial value;
    with every bet w moves by its change. In the author's package (``parameterfree``) a and ε are attributes of the
    optimizer, which its ``state_dict`` forgets; here they belong to the param groups. G is never forgotten: on a stream
    that changes, the shares that are bet become smaller and smaller.

    What ``step_size_report`` gives is the factor of θ, (L + R) / (L max(G + L, a L)), of weights that have had a
    gradient.

    Args:
        alpha: a, which limits the first bets.
        eps: ε, the first L: the least largest gradient.
        weight_decay: factor on the weights in the gradient, coupled as in the author's package.

    Example:
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> COCOB([w]).step()
        >>> round(w.item(), 4)
        0.99
    """

    not_negative = ("alpha", "weight_decay")
    positive = ("eps",)

    def __init__(self, params: ParamsT, *, alpha: float = 100.0, eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, settings_of(locals()))

    def _step_size(self, group: Group) -> float:
        states = [state for param in group["params"] if (state := self.state.get(param))]
        return geometric_mean_of_positive(
            torch.where(state["absolute_gradients"] > 0, _bet_per_gradient(state, group), 0.0) for state in states
        )

    def _update(self, loss: Any) -> None:
        for group in self.param_groups:
            for param, grad in gradients(self, group):
                state = self._prepared_state(param, *SUMS)
                if group["weight_decay"]:
                    grad = grad.add(param, alpha=group["weight_decay"])
                size = grad.abs()
                largest = state["largest_gradient"]
                torch.maximum(largest, size, out=largest).clamp_(min=group["eps"])
                state["absolute_gradients"].add_(size)
                state["reward"].addcmul_(grad, state["moved"], value=-1).clamp_(min=0)
                state["negative_gradients"].sub_(grad)
                bet = _bet_per_gradient(state, group).mul_(state["negative_gradients"])
                param.add_(torch.sub(bet, state["moved"], out=size))
                state["moved"].copy_(bet)


def _bet_per_gradient(state: dict[str, Any], group: Group) -> Tensor:
    largest: Tensor = state["largest_gradient"]
    limit = largest * group["alpha"]
    total = state["absolute_gradients"] + largest
    divisor = torch.maximum(total, limit, out=total).mul_(largest)
    return torch.add(largest, state["reward"], out=limit).div_(divisor)


cocob = learner_of(COCOB)
