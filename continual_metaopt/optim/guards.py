"""Guards against step sizes that run away: bounds on a meta update, and on what the step after it does to the loss."""

import math
from typing import Any

from continual_metaopt.optim.parametrisations import clipped


def limited_change(change: Any, limit: float | None) -> Any:
    """A meta update's change Δβ, no larger than ``limit`` either way (Sutton 1992 takes 2); unchanged without one."""
    return change if limit is None else clipped(change, -limit, limit)


def overshoot(first_order_decreases: float, loss: float) -> float:
    """By how much step sizes exceed the bound on the effective step: they are to be divided by it, if it is above 1.

    The effective step is Σ α g u / (2 L), with step sizes α, gradient g, direction u of the base update and loss L:
    what the step takes off the loss to first order, as a multiple of what it would take off a quadratic loss with
    minimum 0 if it landed in the minimum. So 1 lands there, and 2 on the other side, where nothing is won. For a linear
    model with loss ½ δ² and SGD, g = u = −δ x, so that it is Σ α x², and M = max(Σ α x² / bound, 1) is Autostep's
    (Mahmood, Sutton, Degris, Pilarski, "Tuning-free step-size adaptation", ICASSP 2012), whose bound is 1. Weight decay
    does not count.

    Args:
        first_order_decreases: Σ α g u / bound over the step sizes concerned.
        loss: L, of the same samples as g, and of a kind that is never negative.

    Returns:
        M, at least 1; 1 where there is nothing to lose.

    Raises:
        ValueError: the loss is negative.
    """
    if loss < 0:
        raise ValueError(f"effective_step_bound compares steps with a loss that is never negative, but it is {loss}")
    if loss == 0 or not math.isfinite(first_order_decreases):
        return 1.0
    return max(first_order_decreases / (2 * loss), 1.0)
