"""Parametrisations: the coordinate β in which a positive meta-parameter is learned, and how far it may go.

A learned value is kept as a reference, at which learning began, and an offset from it: β − β₀ in the logarithm (or, for
numbers between 0 and 1, in the logit), apart from β₀ because exp(log α₀) is not α₀ in floating point. References and
changes are numbers; offsets and values are numbers or tensors.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def clipped(x: Any, low: float, high: float) -> Any:
    """Bring a number or tensor within bounds."""
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)


@dataclass(frozen=True)
class Parametrisation:
    """How a meta update's change Δβ becomes a change of the value.

    Attributes:
        value: (reference, offset) → value.
        offset: (reference, value) → offset.
        slope: value → d value / dβ, with which β enters the traces.
        additive: whether β is the value itself, so that Δβ is added to it rather than to the offset.
    """

    value: Callable[[float, Any], Any]
    offset: Callable[[float, Any], Any]
    slope: Callable[[Any], Any]
    additive: bool = False

    def coordinate(self, reference: float, offset: Any) -> Any:
        """Give β itself: the value if the parametrisation is additive, else its logarithm."""
        return self.value(reference, offset) if self.additive else math.log(reference) + offset

    def moved(self, reference: float, offset: Any, change: Any, low: float, high: float) -> tuple[Any, Any]:
        """Give the new offset and value after a change of β, both within the bounds of the value."""
        if self.additive:
            value = clipped(self.value(reference, offset) + change, low, high)
            return self.offset(reference, value), value
        offset = clipped(offset + change, self.offset(reference, low), self.offset(reference, high))
        return offset, clipped(self.value(reference, offset), low, high)


def _exp(x: Any) -> Any:
    return x.exp() if isinstance(x, Tensor) else math.exp(x)


def _log(x: Any) -> Any:
    return x.log() if isinstance(x, Tensor) else math.log(x)


def _log_value(reference: float, offset: Any) -> Any:
    return reference * _exp(offset)


def _log_offset(reference: float, value: Any) -> Any:
    return _log(value / reference)


def _logit_value(reference: float, offset: Any) -> Any:
    return reference / (reference + (1 - reference) * _exp(-offset))


def _logit_offset(reference: float, value: Any) -> Any:
    return _log(value / (1 - value) * ((1 - reference) / reference))


def _one(value: Any) -> Any:
    return torch.ones_like(value) if isinstance(value, Tensor) else 1.0


LOG = Parametrisation(_log_value, _log_offset, lambda value: value)
LINEAR = Parametrisation(_log_value, _log_offset, _one, additive=True)
LOGIT = Parametrisation(_logit_value, _logit_offset, lambda value: value * (1 - value))

STEP_SIZE_PARAMETRISATIONS = {"log": LOG, "linear": LINEAR}
