"""COCOB-Backprop: no step size at all, but bets on the gradient's sign."""

from typing import Any

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import settings_of
from continual_metaopt.optim.elementwise import Elementwise, log, maximum, where
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


class COCOB(Elementwise):
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
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> COCOB([w]).step()
        >>> round(w.item(), 4)
        0.99
    """

    not_negative = ("alpha", "weight_decay")
    positive = ("eps",)
    keeps = ("negative_gradients", "absolute_gradients", "largest_gradient", "reward", "moved")

    def __init__(self, params: ParamsT, *, alpha: float = 100.0, eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, settings_of(locals()))

    @staticmethod
    def move(
        w: Any,
        g: Any,
        negative_gradients: Any,
        absolute_gradients: Any,
        largest_gradient: Any,
        reward: Any,
        moved: Any,
        alpha: float,
        eps: float,
        weight_decay: float,
    ) -> Any:
        """Bet anew."""
        g = g + weight_decay * w
        largest_gradient = maximum(maximum(largest_gradient, abs(g)), eps)
        absolute_gradients = absolute_gradients + abs(g)
        reward = maximum(reward - g * moved, 0.0)
        negative_gradients = negative_gradients - g
        bet = negative_gradients * _bet_per_gradient(absolute_gradients, largest_gradient, reward, alpha)
        return w + (bet - moved), negative_gradients, absolute_gradients, largest_gradient, reward, bet

    @staticmethod
    def log_step_size(absolute_gradients: Any, largest_gradient: Any, reward: Any, alpha: float) -> Any:
        """Take the logarithm of what is bet for each gradient, which is −∞ before the first."""
        bet = _bet_per_gradient(absolute_gradients, largest_gradient, reward, alpha)
        return log(where(absolute_gradients > 0, bet, 0.0))

    @staticmethod
    def step_size() -> float:
        """Give that of weights which have had no gradient: they do not move."""
        return 0.0


def _bet_per_gradient(absolute_gradients: Any, largest_gradient: Any, reward: Any, alpha: float) -> Any:
    divisor = largest_gradient * maximum(absolute_gradients + largest_gradient, alpha * largest_gradient)
    return (largest_gradient + reward) / divisor


cocob = learner_of(COCOB)
