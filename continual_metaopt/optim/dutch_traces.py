"""Traces that also revise the weights when a step size changes, as true online TD(λ) does for its own forward view.

The online forward view of MetaOptimize repeats the whole run whenever a loss arrives, with every past log step size β
as it would have been learned had that loss been known. The usual trace gives the last of those β, but leaves the
weights where the old step sizes had put them. Here the weights are revised too, to first order in the meta step size η.
``docs/dutch-traces.md`` derives the formulas and says what is exact.

``revise_weights`` does so for step sizes that any number of weights share, with any base and meta update;
``separate_traces``, ``revise`` and ``advance`` are more accurate for one step size per weight, SGD as base and meta
update, and a diagonal second derivative.

Sharifnassab, Salehkaleybar, Sutton, "MetaOptimize", arXiv 2402.02342, for the forward view; van Seijen, Sutton, "True
Online TD(λ)", ICML 2014, for the idea of revising.
"""

from typing import TypedDict

import torch
from torch import Tensor


class SeparateTraces(TypedDict):
    """Traces of weights that have a step size each, all of the weights' shape.

    Attributes:
        trace: H, how a weight moves when its past β are increased, discounted.
        moment: P, discounted product of how it moves for increases from one time and from the next time on.
        bend: J, how the trace itself moves when the past β are increased, discounted.
        bend_moment: S, discounted product of how the trace moves for an increase from the next time on and how the
            weight moves for one from that time on.
    """

    trace: Tensor
    moment: Tensor
    bend: Tensor
    bend_moment: Tensor


def revise_weights(weights: Tensor, trace: Tensor, change: float | Tensor) -> None:
    """Move weights in place to about where they would be, had their past step sizes been what they are now.

    To be called at the end of a step: the trace is the new one, which knows of this step's base update. It is right to
    first order in the change for γ = 1 and γ = 0, and in between as far as a product of means stands for the mean of
    products. Before the base update, with the old trace, the change is to be multiplied by γ.

    Args:
        weights: the weights of a block, changed in place.
        trace: their trace h, of the same shape.
        change: by how much the meta update has just changed the block's β: a number, or a tensor that broadcasts.
    """
    if isinstance(change, Tensor):
        weights.addcmul_(trace, change)
    else:
        weights.add_(trace, alpha=change)


def separate_traces(weights: Tensor) -> SeparateTraces:
    """Traces at the beginning, for weights that have a step size each."""
    return SeparateTraces(
        trace=torch.zeros_like(weights),
        moment=torch.zeros_like(weights),
        bend=torch.zeros_like(weights),
        bend_moment=torch.zeros_like(weights),
    )


def revise(traces: SeparateTraces, weights: Tensor, meta_parameters: Tensor, grad: Tensor, meta_lr: float) -> None:
    """Make the meta update of β by SGD, and revise weights and trace to what the new past β would have led to.

    All three are changed in place: β −= η H g, w −= η P g, H −= η S g. The gradient is then to be taken anew, at the
    revised weights, for the base update and ``advance``.

    Args:
        traces: the weights' traces.
        weights: the weights.
        meta_parameters: their β, of the same shape: log step sizes, or step sizes.
        grad: gradient g of the loss at the weights.
        meta_lr: meta step size η.
    """
    meta_parameters.addcmul_(traces["trace"], grad, value=-meta_lr)
    weights.addcmul_(traces["moment"], grad, value=-meta_lr)
    traces["trace"].addcmul_(traces["bend_moment"], grad, value=-meta_lr)


def advance(
    traces: SeparateTraces,
    grad: Tensor,
    step_size: Tensor,
    gamma: float,
    *,
    curvature: Tensor | float = 0.0,
    parametrisation: str = "log",
) -> None:
    """Take the base update w −= α g into the traces, in place.

    Args:
        traces: the weights' traces.
        grad: gradient g that the base update uses.
        step_size: step size α of each weight, that the base update uses.
        gamma: discount γ.
        curvature: diagonal of the loss's second derivative, x² for the squared error ½ (y − w·x)² of a linear model; 0
            treats gradients as constants (Hessian-free).
        parametrisation: "log" if β = log α is learned, "linear" if α itself is.

    Raises:
        ValueError: unknown parametrisation.
    """
    if parametrisation == "log":
        slope, second = step_size, step_size
    elif parametrisation == "linear":
        slope, second = torch.ones_like(step_size), torch.zeros_like(step_size)
    else:
        raise ValueError(f'parametrisation is "log" or "linear", not {parametrisation!r}')
    keep = 1 - step_size * curvature
    push = -slope * grad
    pull = slope * curvature
    trace, moment, bend, bend_moment = traces["trace"], traces["moment"], traces["bend"], traces["bend_moment"]
    discounted = gamma * trace
    bend_push = -second * grad - pull * discounted
    moved = keep * trace + push
    traces["bend_moment"] = gamma * (
        gamma * keep * (keep * bend_moment + push * bend)
        - pull * (keep * moment + push * discounted)
        + bend_push * moved
    )
    traces["bend"] = gamma * (gamma * keep * bend + bend_push - pull * discounted)
    traces["moment"] = gamma * (keep * keep * moment + keep * push * (trace + discounted) + push * push)
    traces["trace"] = keep * discounted + push
