"""What is recorded of many step sizes at once."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

QUANTILES = (0.05, 0.25, 0.75, 0.95)
MAX_VALUES = 1_000_000  # of which quantiles are taken


def geometric_mean(values: Any) -> float:
    """Geometric mean of positive numbers in a tensor; a single number as it is."""
    if not _many(values):
        return float(values)
    return float(values.detach().double().log().mean().exp())


def quantiles_of(values: Any) -> tuple[float, ...] | None:
    """The quantiles of ``QUANTILES`` of numbers in a tensor, interpolated; None for a single number.

    Of more than a million numbers, a million or so are taken at equal distances.
    """
    if not _many(values):
        return None
    thinned = values.detach().flatten()[:: -(-values.numel() // MAX_VALUES)].double()
    return tuple(thinned.quantile(thinned.new_tensor(QUANTILES)).tolist())


def _many(values: Any) -> bool:
    return getattr(values, "ndim", 0) > 0


def geometric_mean_of_positive(tensors: "Iterable[Tensor]") -> float:
    """Geometric mean of all numbers above 0 in some tensors; 0 if there is none."""
    total, n = 0.0, 0
    for values in tensors:
        positive = values[values > 0].double()
        total, n = total + float(positive.log().sum()), n + positive.numel()
    return math.exp(total / n) if n else 0.0
