"""Meta updates: how a log step size moves, given its meta gradient.

A meta update is a frozen dataclass of settings with ``init()`` for its state and ``change(state, gradient,
step_size)``, which advances the state and returns Δβ, the change of the log step size β = log α. States are
dictionaries of numbers, one per block of parameters.

Each rule is written once, as a plain function of numbers (``…_rule``). The compiled engine compiles that function; step
sizes of single tensors, output units or weights give it tensors.

Plain names follow ``torch.optim``; ``…Released`` names the MetaOptimize authors' released experiment code
(arXiv 2402.02342). In these rules z is the surrogate meta gradient of a block and η the meta step size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from continual_metaopt.streams.registry import Registry

MetaState = dict[str, Any]  # numbers, or tensors where a block holds many step sizes

Numbers = tuple[Any, Any, Any, Any]  # Δβ and the new step, mean and square

Rule = Callable[[Any, Any, Any, Any, Any, Any, Any, Any], Numbers]


class MetaUpdate(Protocol):
    """What MetaOptimize needs of a meta update."""

    def init(self) -> MetaState:
        """Make the state of a block whose step size has not been changed yet."""
        ...

    def change(self, state: MetaState, gradient: Any, step_size: Any) -> Any:
        """Advance ``state`` by one meta gradient and return the change of the log step size."""
        ...


META_UPDATES: Registry[type[MetaUpdate]] = Registry("meta update")


def sgd_rule(
    step: Any, mean: Any, square: Any, gradient: Any, step_size: Any, beta1: Any, beta2: Any, eps: Any
) -> Numbers:
    """Return Δβ = −η z."""
    return -step_size * gradient, step, mean, square


def adam_rule(
    step: Any, mean: Any, square: Any, gradient: Any, step_size: Any, beta1: Any, beta2: Any, eps: Any
) -> Numbers:
    """Return Δβ = −η m̂ / (√v̂ + ε), in torch's form."""
    step = step + 1.0
    mean = beta1 * mean + (1.0 - beta1) * gradient
    square = beta2 * square + (1.0 - beta2) * gradient * gradient
    corrected_mean = mean / (1.0 - beta1**step)
    corrected_square = square / (1.0 - beta2**step)
    return -step_size * corrected_mean / (corrected_square**0.5 + eps), step, mean, square


def lion_rule(
    step: Any, mean: Any, square: Any, gradient: Any, step_size: Any, mix: Any, decay: Any, eps: Any
) -> Numbers:
    """Return Δβ = −η sign(c m + (1−c) z), then m ← ρ m + (1−ρ) z; 0 where the mixture is 0."""
    mixture = mix * mean + (1.0 - mix) * gradient
    mean = decay * mean + (1.0 - decay) * gradient
    return -step_size * ((mixture > 0) * 1.0 - (mixture < 0) * 1.0), step, mean, square


def adam_released_rule(
    step: Any, mean: Any, square: Any, gradient: Any, step_size: Any, momentum: Any, normalizer: Any, eps: Any
) -> Numbers:
    """Return Δβ = −η m / √(μ v + ε), with m ← ρ m + z, v ← λ v + z², μ = (1−λ)/(1−λᵗ)."""
    step = step + 1.0
    mean = momentum * mean + gradient
    square = normalizer * square + gradient * gradient
    bias_correction = (1.0 - normalizer) / (1.0 - normalizer**step)
    return -step_size * mean / (bias_correction * square + eps) ** 0.5, step, mean, square


class _Update:
    """A meta update from its rule and the three numbers that set it."""

    rule: Rule

    @property
    def constants(self) -> tuple[float, float, float]:
        """What the rule takes after gradient and step size."""
        raise NotImplementedError

    def init(self) -> MetaState:
        """Begin with no steps, and moments of zero."""
        return {"step": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}

    def change(self, state: MetaState, gradient: Any, step_size: Any) -> Any:
        """Advance ``state`` by one meta gradient and return the change of the log step size."""
        change, state["step"], state["exp_avg"], state["exp_avg_sq"] = type(self).rule(
            state["step"], state["exp_avg"], state["exp_avg_sq"], gradient, step_size, *self.constants
        )
        return change


@META_UPDATES.register("sgd", "β ← β − η z")
@dataclass(frozen=True)
class SGD(_Update):
    """Gradient descent on the log step size."""

    rule = staticmethod(sgd_rule)

    @property
    def constants(self) -> tuple[float, float, float]:
        """None of them is used."""
        return 0.0, 0.0, 0.0


@META_UPDATES.register("adam", "Adam on the log step size, as torch.optim.Adam")
@dataclass(frozen=True)
class Adam(_Update):
    """Adam in torch's form: Δβ = −η m̂ / (√v̂ + ε).

    Args:
        betas: decay of the first and second moment of the meta gradient.
        eps: ε, outside the root.
    """

    rule = staticmethod(adam_rule)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    @property
    def constants(self) -> tuple[float, float, float]:
        """Both decays and ε."""
        return *self.betas, self.eps


@META_UPDATES.register("rmsprop", "RMSProp on the log step size: Adam with β₁ = 0")
@dataclass(frozen=True)
class RMSProp(_Update):
    """Adam without momentum: Δβ = −η z / (√v̂ + ε).

    Args:
        beta: decay of the second moment of the meta gradient.
        eps: ε, outside the root.
    """

    rule = staticmethod(adam_rule)
    beta: float = 0.999
    eps: float = 1e-8

    @property
    def constants(self) -> tuple[float, float, float]:
        """No decay for the mean, the second moment's, and ε."""
        return 0.0, self.beta, self.eps


@META_UPDATES.register("lion", "the sign of a mixture of momentum and meta gradient")
@dataclass(frozen=True)
class Lion(_Update):
    """Lion: Δβ = −η sign(c m + (1−c) z), then m ← ρ m + (1−ρ) z.

    Args:
        betas: (c, ρ): weight of the momentum in the mixture, and decay of the momentum.
    """

    rule = staticmethod(lion_rule)
    betas: tuple[float, float] = (0.9, 0.99)

    @property
    def constants(self) -> tuple[float, float, float]:
        """The mixture's weight and the momentum's decay."""
        return *self.betas, 0.0


@META_UPDATES.register("adam_released", "Adam as in the authors' released code: 10 × torch's step")
@dataclass(frozen=True)
class AdamReleased(_Update):
    """Adam of the released code: m ← ρ m + z (a sum), v ← λ v + z², Δβ = −η m / √(μ v + ε), μ = (1−λ)/(1−λᵗ).

    Args:
        momentum: ρ.
        normalizer: λ.
        eps: ε, inside the root.
    """

    rule = staticmethod(adam_released_rule)
    momentum: float = 0.9
    normalizer: float = 0.999
    eps: float = 1e-10

    @property
    def constants(self) -> tuple[float, float, float]:
        """Momentum, normaliser and ε."""
        return self.momentum, self.normalizer, self.eps


@META_UPDATES.register("rmsprop_released", "RMSProp as in the authors' released code")
@dataclass(frozen=True)
class RMSPropReleased(_Update):
    """RMSProp of the released code: v ← λ v + z², Δβ = −η z / √(μ v + ε), μ = (1−λ)/(1−λᵗ).

    Args:
        normalizer: λ.
        eps: ε, inside the root.
    """

    rule = staticmethod(adam_released_rule)
    normalizer: float = 0.999
    eps: float = 1e-10

    @property
    def constants(self) -> tuple[float, float, float]:
        """No momentum, the normaliser and ε."""
        return 0.0, self.normalizer, self.eps


Meta = Literal["sgd", "rmsprop", "adam", "lion", "rmsprop_released", "adam_released"]
