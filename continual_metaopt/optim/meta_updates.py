"""Meta updates: how a log step size moves, given its meta gradient.

A meta update is a frozen dataclass of settings with ``init()`` for its state and ``change(state, gradient,
step_size)``, which advances the state and returns Δβ, the change of the log step size β = log α. States are
dictionaries of plain numbers, one per block of parameters.

Plain names follow ``torch.optim``; ``…Released`` names the MetaOptimize authors' released experiment code
(arXiv 2402.02342). In these rules z is the surrogate meta gradient of a block and η the meta step size.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from streams.registry import Registry

MetaState = dict[str, float]


class MetaUpdate(Protocol):
    """What MetaOptimize needs of a meta update."""

    def init(self) -> MetaState:
        """State of a block whose step size has not been changed yet."""
        ...

    def change(self, state: MetaState, gradient: float, step_size: float) -> float:
        """Advance ``state`` by one meta gradient and return the change of the log step size."""
        ...


META_UPDATES: Registry[type[MetaUpdate]] = Registry("meta update")


@META_UPDATES.register("sgd", "β ← β − η z")
@dataclass(frozen=True)
class SGD:
    """Gradient descent on the log step size."""

    def init(self) -> MetaState:
        """No state."""
        return {}

    def change(self, state: MetaState, gradient: float, step_size: float) -> float:
        """Return −η z."""
        return -step_size * gradient


@META_UPDATES.register("adam", "Adam on the log step size, as torch.optim.Adam")
@dataclass(frozen=True)
class Adam:
    """Adam in torch's form: Δβ = −η m̂ / (√v̂ + ε).

    Args:
        betas: decay of the first and second moment of the meta gradient.
        eps: ε, outside the root.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def init(self) -> MetaState:
        """Moments of zero, before the first step."""
        return {"step": 0, "exp_avg": 0.0, "exp_avg_sq": 0.0}

    def change(self, state: MetaState, gradient: float, step_size: float) -> float:
        """Return −η m̂ / (√v̂ + ε)."""
        beta1, beta2 = self.betas
        state["step"] += 1
        state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * gradient
        state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient * gradient
        mean = state["exp_avg"] / (1 - beta1 ** state["step"])
        square = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
        return -step_size * mean / (math.sqrt(square) + self.eps)


@META_UPDATES.register("rmsprop", "RMSProp on the log step size: Adam with β₁ = 0")
@dataclass(frozen=True)
class RMSProp:
    """Adam without momentum: Δβ = −η z / (√v̂ + ε).

    Args:
        beta: decay of the second moment of the meta gradient.
        eps: ε, outside the root.
    """

    beta: float = 0.999
    eps: float = 1e-8

    def init(self) -> MetaState:
        """A second moment of zero, before the first step."""
        return {"step": 0, "exp_avg_sq": 0.0}

    def change(self, state: MetaState, gradient: float, step_size: float) -> float:
        """Return −η z / (√v̂ + ε)."""
        state["step"] += 1
        state["exp_avg_sq"] = self.beta * state["exp_avg_sq"] + (1 - self.beta) * gradient * gradient
        square = state["exp_avg_sq"] / (1 - self.beta ** state["step"])
        return -step_size * gradient / (math.sqrt(square) + self.eps)


@META_UPDATES.register("lion", "the sign of a mixture of momentum and meta gradient")
@dataclass(frozen=True)
class Lion:
    """Lion: Δβ = −η sign(c m + (1−c) z), then m ← ρ m + (1−ρ) z.

    Args:
        betas: (c, ρ): weight of the momentum in the mixture, and decay of the momentum.
    """

    betas: tuple[float, float] = (0.9, 0.99)

    def init(self) -> MetaState:
        """A momentum of zero."""
        return {"exp_avg": 0.0}

    def change(self, state: MetaState, gradient: float, step_size: float) -> float:
        """Return −η times the sign of the mixture with the old momentum; 0 where the mixture is 0."""
        mix, decay = self.betas
        mixture = mix * state["exp_avg"] + (1 - mix) * gradient
        state["exp_avg"] = decay * state["exp_avg"] + (1 - decay) * gradient
        return -step_size * ((mixture > 0) - (mixture < 0))


@META_UPDATES.register("adam_released", "Adam as in the authors' released code: 10 × torch's step")
@dataclass(frozen=True)
class AdamReleased:
    """Adam of the released code: m ← ρ m + z (a sum), v ← λ v + z², Δβ = −η m / √(μ v + ε), μ = (1−λ)/(1−λᵗ).

    Args:
        momentum: ρ.
        normalizer: λ.
        eps: ε, inside the root.
    """

    momentum: float = 0.9
    normalizer: float = 0.999
    eps: float = 1e-10

    def init(self) -> MetaState:
        """Momentum and normaliser of zero, before the first step."""
        return {"step": 0, "exp_avg": 0.0, "exp_avg_sq": 0.0}

    def change(self, state: MetaState, gradient: float, step_size: float) -> float:
        """Return −η m / √(μ v + ε)."""
        denominator = _released_denominator(state, gradient, self.normalizer, self.eps)
        state["exp_avg"] = self.momentum * state["exp_avg"] + gradient
        return -step_size * state["exp_avg"] / denominator


@META_UPDATES.register("rmsprop_released", "RMSProp as in the authors' released code")
@dataclass(frozen=True)
class RMSPropReleased:
    """RMSProp of the released code: v ← λ v + z², Δβ = −η z / √(μ v + ε), μ = (1−λ)/(1−λᵗ).

    Args:
        normalizer: λ.
        eps: ε, inside the root.
    """

    normalizer: float = 0.999
    eps: float = 1e-10

    def init(self) -> MetaState:
        """A normaliser of zero, before the first step."""
        return {"step": 0, "exp_avg_sq": 0.0}

    def change(self, state: MetaState, gradient: float, step_size: float) -> float:
        """Return −η z / √(μ v + ε)."""
        return -step_size * gradient / _released_denominator(state, gradient, self.normalizer, self.eps)


def _released_denominator(state: MetaState, gradient: float, decay: float, eps: float) -> float:
    state["step"] += 1
    state["exp_avg_sq"] = decay * state["exp_avg_sq"] + gradient * gradient
    return math.sqrt((1 - decay) / (1 - decay ** state["step"]) * state["exp_avg_sq"] + eps)
