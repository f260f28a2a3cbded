"""How a base update depends on its momentum: forward-mode derivatives of the update itself, the gradient held constant.

With β = logit ρ, momentum state m (with everything else that depends on ρ) and direction u of the base update, the
traces of w and m go on as a pair:

    (n, u̇) = derivative of (m, u) along (γ n, dρ/dβ);      h ← γ (1 − κ α) h − α u̇.

As g is a constant in Hessian-free MetaOptimize, w does not act on m, so that n needs no h.
"""

import functools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from continual_metaopt.optim.base_updates import BaseUpdate, Direction, ParamState


def direction_and_tangent(
    base: Any,
    state: ParamState,
    grad: Tensor,
    momentum: Tensor,
    slope: Tensor,
    tangents: dict[str, Tensor],
    gamma: float,
) -> tuple[Direction, Tensor]:
    """Give a base update's direction with a learned momentum, and its derivative along that momentum's trace.

    Args:
        base: the base update, which has ``with_momentum``.
        state: of the parameter, advanced as by ``base.direction``.
        grad: the gradient, a constant.
        momentum: ρ, which broadcasts against the parameter.
        slope: dρ/dβ, of the same shape.
        tangents: the trace n of each tensor of the state that depends on ρ; replaced by the new traces.
        gamma: discount γ of the traces.

    Returns:
        The direction, and u̇ of the parameter's shape.
    """
    _load_forward_mode()
    with forward_ad.dual_level():
        # aliases: an update in place reaches the state's memory, but leaves no derivative on the state's own tensors
        duals = {key: value.detach() if isinstance(value, Tensor) else value for key, value in state.items()}
        for key, tangent in tangents.items():
            duals[key] = forward_ad.make_dual(duals[key], gamma * tangent)
        updated: BaseUpdate = base.with_momentum(forward_ad.make_dual(momentum, slope))
        found = updated.direction(duals, grad)
        numerator, denominator, divisor = (_unpacked(part) for part in found)
        for key, value in duals.items():
            if isinstance(value, Tensor):
                primal, tangent = forward_ad.unpack_dual(value)
                if tangent is not None:
                    tangents[key] = tangent.expand_as(primal).clone()
                if not (isinstance(state.get(key), Tensor) and _same_memory(state[key], primal)):
                    state[key] = primal.clone()
            else:
                state[key] = value
    direction = Direction(numerator[0], denominator[0], divisor[0])
    quotient = direction.quotient()
    # by the quotient rule rather than on dual numbers, which are slow where a part has no derivative
    tangent = torch.zeros_like(quotient)
    if numerator[1] is not None:
        tangent += Direction(numerator[1], denominator[0], divisor[0]).quotient()
    for value, change in (denominator, divisor):
        if change is not None:
            tangent -= quotient * (change / value)
    return direction, tangent


@functools.cache
def _load_forward_mode() -> None:
    """Let torch load its rules of forward-mode differentiation, which uses what torch itself has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def _unpacked(part: Any) -> tuple[Any, Tensor | None]:
    """A part of a direction and its derivative, None where it does not depend on the momentum."""
    return tuple(forward_ad.unpack_dual(part)) if isinstance(part, Tensor) else (part, None)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape
