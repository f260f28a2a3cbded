"""Traces that also revise the weights when a step size changes, as true online TD(λ) does for its own forward view.

The online forward view of MetaOptimize repeats the whole run whenever a loss arrives, with every past log step size β
as it would have been learned had that loss been known. The usual trace gives the last of those β, but leaves the
weights where the old step sizes had put them. Here the weights are revised too, to first order in the meta step size η.
``docs/dutch-traces.md`` derives the formulas and says what is exact.

``revise_weights`` does so for step sizes that any number of weights share, with any base and meta update.

Sharifnassab, Salehkaleybar, Sutton, "MetaOptimize", arXiv 2402.02342, for the forward view; van Seijen, Sutton, "True
Online TD(λ)", ICML 2014, for the idea of revising.
"""

from torch import Tensor


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
