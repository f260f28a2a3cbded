"""Base updates: how a weight moves, given its gradient and a step size.

A base update is a frozen dataclass of settings with two methods: ``init(param)`` makes the state of one parameter, and
``direction(state, grad)`` advances that state and returns the direction of the step. The weight then moves by

    Δw = α · (numerator / denominator) / divisor + α κ w,        w ← w − Δw,

with step size α and decoupled weight decay κ. Returning the parts rather than their quotient lets the caller apply them
with the same floating-point operations as ``torch.optim``, so that a fixed step size reproduces it bit for bit.

Where the step depends smoothly on the momentum ρ, ``with_momentum(ρ)`` is the same update with another one, which may
be a tensor that broadcasts against the parameter: that is how ρ can be learned. Lion has no such method, since its step
is a sign, whose derivative is 0.

Plain names follow ``torch.optim``. ``…Released`` names are the forms of the MetaOptimize authors' released experiment
code (Sharifnassab, Salehkaleybar, Sutton, arXiv 2402.02342). The paper does not say to which of the two its printed
hyper-parameters belong.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor

from continual_metaopt.optim.base_names import BASE_UPDATES as BASE_UPDATES

ParamState = dict[str, Any]  # tensors of the parameter's shape, and the number of steps


class Direction(NamedTuple):
    """Direction of a base update, (numerator / denominator) / divisor, of the parameter's shape.

    Tensors may be the state's own (never written by the caller). ``denominator`` None means 1. The divisor is a tensor
    only where the momentum is one.
    """

    numerator: Tensor
    denominator: Tensor | None = None
    divisor: Any = 1.0

    def quotient(self) -> Tensor:
        """Give the direction itself, a tensor of the parameter's shape."""
        direction = self.numerator if self.denominator is None else self.numerator / self.denominator
        return direction if isinstance(self.divisor, float) and self.divisor == 1.0 else direction / self.divisor


class BaseUpdate(Protocol):
    """What MetaOptimize needs of a base update."""

    def init(self, param: Tensor) -> ParamState:
        """Make the state of a parameter that has not been updated yet."""
        ...

    def direction(self, state: ParamState, grad: Tensor) -> Direction:
        """Advance ``state`` by one gradient and return the direction of the step."""
        ...


def zeros(param: Tensor) -> Tensor:
    """Make zeros in the shape, type, place and memory layout of a parameter."""
    return torch.zeros_like(param, memory_format=torch.preserve_format)


class _Update:
    """A base update, by the names of what it keeps of each parameter."""

    tensors: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[bool] = False

    def init(self, param: Tensor) -> ParamState:
        """Make the state of a parameter that has not been updated yet."""
        return ({"step": 0} if self.counts else {}) | {name: zeros(param) for name in self.tensors}


class _WithMomentum(_Update):
    """A base update whose momentum can be learned."""

    def with_momentum(self, momentum: Any) -> Self:
        """Make the same update with another momentum."""
        return replace(cast(Any, self), momentum=momentum)


@BASE_UPDATES.register("sgd", "w ← w − α g")
@dataclass(frozen=True)
class SGD(_Update):
    """Step along the gradient."""

    def direction(self, state: ParamState, grad: Tensor) -> Direction:
        """Return the gradient itself."""
        return Direction(grad)


@BASE_UPDATES.register("sgdm", "SGD with heavy-ball momentum, as torch.optim.SGD(momentum=0.9)")
@dataclass(frozen=True)
class SGDm(_WithMomentum):
    """Step along the momentum m ← ρ m + g (torch's form: a sum, not an average).

    Args:
        momentum: ρ.
    """

    momentum: float = 0.9

    tensors = ("momentum_buffer",)

    def direction(self, state: ParamState, grad: Tensor) -> Direction:
        """Return the new momentum."""
        return Direction(state["momentum_buffer"].mul_(self.momentum).add_(grad))


@BASE_UPDATES.register("adamw", "AdamW, as torch.optim.AdamW")
@dataclass(frozen=True)
class AdamW(_Update):
    """Step along m̂ / (√v̂ + ε), as ``torch.optim.AdamW`` (Loshchilov & Hutter 2019).

    Args:
        betas: decay of the first and second moment of the gradient.
        eps: ε, outside the root.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @property
    def momentum(self) -> float:
        """Decay of the first moment."""
        return self.betas[0]

    def with_momentum(self, momentum: Any) -> Self:
        """Make the same update with another decay of the first moment."""
        return replace(self, betas=(momentum, self.betas[1]))

    tensors = ("exp_avg", "exp_avg_sq")
    counts = True

    def direction(self, state: ParamState, grad: Tensor) -> Direction:
        """Return m / (√v̂ + ε), divided by the first moment's bias correction."""
        return _adam_direction(state, grad, self.betas, self.eps)


@BASE_UPDATES.register("rmsprop", "AdamW without momentum (β₁ = 0)")
@dataclass(frozen=True)
class RMSProp(_Update):
    """Step along g / (√v̂ + ε), bias-corrected: RMSProp as AdamW with β₁ = 0.

    Args:
        beta: decay of the second moment of the gradient.
        eps: ε, outside the root.
    """

    beta: float = 0.999
    eps: float = 1e-8

    tensors = ("exp_avg_sq",)
    counts = True

    def direction(self, state: ParamState, grad: Tensor) -> Direction:
        """Return g / (√v̂ + ε)."""
        return _adam_direction(state, grad, (0.0, self.beta), self.eps)


@BASE_UPDATES.register("lion", "the sign of a mixture of momentum and gradient")
@dataclass(frozen=True)
class Lion(_Update):
    """Step along sign(c m + (1−c) g), then m ← ρ m + (1−ρ) g: Lion (Chen et al. 2023).

    Args:
        betas: (c, ρ): weight of the momentum in the direction, and decay of the momentum.
    """

    betas: tuple[float, float] = (0.9, 0.99)

    tensors = ("exp_avg",)

    def direction(self, state: ParamState, grad: Tensor) -> Direction:
        """Return the sign of the mixture with the old momentum."""
        mix, decay = self.betas
        momentum = state["exp_avg"]
        direction = (momentum * mix).add_(grad, alpha=1 - mix).sign_()
        momentum.mul_(decay).add_(grad, alpha=1 - decay)
        return Direction(direction)


@BASE_UPDATES.register("sgdm_released", "momentum as in the authors' released code: an average, one step late")
@dataclass(frozen=True)
class SGDmReleased(_WithMomentum):
    """Step along the old m, then m ← ρ m + (1−ρ) g: momentum of the released code.

    Args:
        momentum: ρ.
    """

    momentum: float = 0.9

    tensors = ("momentum_buffer",)

    def direction(self, state: ParamState, grad: Tensor) -> Direction:
        """Return the momentum from before this gradient."""
        old = state["momentum_buffer"].clone()
        momentum, rest = state["momentum_buffer"].mul_(self.momentum), 1 - self.momentum
        if isinstance(rest, Tensor):
            momentum.add_(grad * rest)
        else:
            momentum.add_(grad, alpha=rest)
        return Direction(old)


@BASE_UPDATES.register("rmsprop_released", "RMSProp as in the authors' released code")
@dataclass(frozen=True)
class RMSPropReleased(_Update):
    """Step along g / √(μ v + ε), with v ← λ v + g², μ = (1−λ)/(1−λᵗ): RMSProp of the released code.

    Args:
        normalizer: λ.
        eps: ε, inside the root.
    """

    normalizer: float = 0.999
    eps: float = 1e-10

    tensors = ("exp_avg_sq",)
    counts = True

    def direction(self, state: ParamState, grad: Tensor) -> Direction:
        """Return g / √(μ v + ε)."""
        return Direction(grad, _released_denominator(state, grad, self.normalizer, self.eps))


@BASE_UPDATES.register("adamw_released", "AdamW as in the authors' released code: 10 × torch's step")
@dataclass(frozen=True)
class AdamWReleased(_WithMomentum):
    """Step along m / √(μ v + ε), with m ← ρ m + g (a sum), v and μ as in RMSPropReleased.

    The same α makes a step 1/(1−ρ) = 10 times torch's: α_torch = 10 α and κ_torch = κ / 10 correspond.

    Args:
        momentum: ρ.
        normalizer: λ.
        eps: ε, inside the root.
    """

    momentum: float = 0.9
    normalizer: float = 0.999
    eps: float = 1e-10

    tensors = ("exp_avg", "exp_avg_sq")
    counts = True

    def direction(self, state: ParamState, grad: Tensor) -> Direction:
        """Return m / √(μ v + ε)."""
        denominator = _released_denominator(state, grad, self.normalizer, self.eps)
        return Direction(state["exp_avg"].mul_(self.momentum).add_(grad), denominator)


def _adam_direction(state: ParamState, grad: Tensor, betas: tuple[Any, float], eps: float) -> Direction:
    """The operations of torch's single-tensor Adam, in its order, so that results agree bit for bit.

    A first moment whose decay β₁ changes while it is learned lacks Π β₁ of its weight instead of β₁ᵗ.
    """
    beta1, beta2 = betas
    state["step"] += 1
    numerator = state["exp_avg"].lerp_(grad, 1 - beta1) if "exp_avg" in state else grad
    state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    if isinstance(beta1, Tensor):
        state["momentum_product"] = state.get("momentum_product", 1.0) * beta1
        bias_correction1 = 1 - state["momentum_product"]
    else:
        bias_correction1 = 1 - beta1 ** state["step"]
    bias_correction2 = 1 - beta2 ** state["step"]
    denominator = (state["exp_avg_sq"].sqrt() / bias_correction2**0.5).add_(eps)
    return Direction(numerator, denominator, bias_correction1)


def _released_denominator(state: ParamState, grad: Tensor, decay: float, eps: float) -> Tensor:
    state["step"] += 1
    state["exp_avg_sq"].mul_(decay).addcmul_(grad, grad)
    bias_correction = (1 - decay) / (1 - decay ** state["step"])
    return (state["exp_avg_sq"] * bias_correction).add_(eps).sqrt_()


Base = Literal[
    "sgd", "sgdm", "rmsprop", "adamw", "lion", "sgdm_released", "rmsprop_released", "adamw_released"
]  # fmt: skip
