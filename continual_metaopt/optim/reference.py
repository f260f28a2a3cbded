"""MetaOptimize, Hessian-free, in plain NumPy with the paper's symbols: read this first (arXiv 2402.02342).

w weights, g gradient, α = exp(β) step size of a block of weights, κ decoupled weight decay, h trace: how w has moved
because of past β, discounted by γ. z meta gradient, η meta step size, t number of the step, from 1. A rule maps a
gradient to a direction d: of the loss by w for a base update, Δw = α (d + κ w), and by β for a meta update, Δβ = −η d.
Nothing here is fast; the tests compare ``MetaOptimize`` with it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
State = dict[str, Any]
Rule = Callable[..., Array]


def sgd(state: State, g: Array, t: int) -> Array:
    """Return d = g."""
    return g


def sgdm(state: State, g: Array, t: int, momentum: float = 0.9) -> Array:
    """Return d = m, with m ← ρ m + g."""
    state["m"] = momentum * state.get("m", 0.0) + g
    return np.asarray(state["m"])


def adam(state: State, g: Array, t: int, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Array:
    """Return d = m/(1−Π β₁) / (√(v/(1−β₂ᵗ)) + ε), with m ← β₁ m + (1−β₁) g and v ← β₂ v + (1−β₂) g²."""
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
    state["product"] = state.get("product", 1.0) * beta1
    return np.asarray((state["m"] / (1 - state["product"])) / (np.sqrt(state["v"] / (1 - beta2**t)) + eps))


def lion(state: State, g: Array, t: int, c: float = 0.9, momentum: float = 0.99) -> Array:
    """Return d = sign(c m + (1−c) g) with the old m;  then m ← ρ m + (1−ρ) g."""
    m = state.get("m", np.zeros_like(g))
    state["argument"], state["m"] = c * m + (1 - c) * g, momentum * m + (1 - momentum) * g
    return np.sign(state["argument"])


def sgdm_released(state: State, g: Array, t: int, momentum: float = 0.9) -> Array:
    """Return d = the old m, then m ← ρ m + (1−ρ) g. Released forms are those of the authors' experiment code."""
    m = state.get("m", np.zeros_like(g))
    state["m"] = momentum * m + (1 - momentum) * g
    return np.asarray(m)


def adam_released(state: State, g: Array, t: int, momentum: float = 0.9, lam: float = 0.999) -> Array:
    """Return d = m / √(μ v + 1e-10), with m ← ρ m + g, v ← λ v + g² and μ = (1−λ)/(1−λᵗ)."""
    state["m"] = momentum * state.get("m", 0.0) + g
    state["v"] = lam * state.get("v", 0.0) + g**2
    return np.asarray(state["m"] / np.sqrt((1 - lam) / (1 - lam**t) * state["v"] + 1e-10))


rmsprop, rmsprop_released = partial(adam, beta1=0.0), partial(adam_released, momentum=0.0)
BASES: dict[str, Rule] = {"sgd": sgd, "sgdm": sgdm, "rmsprop": rmsprop, "adamw": adam, "lion": lion}
BASES |= {"sgdm_released": sgdm_released, "rmsprop_released": rmsprop_released, "adamw_released": adam_released}
METAS: dict[str, Rule] = {"sgd": sgd, "rmsprop": rmsprop, "adam": adam, "lion": lion}
METAS |= {"rmsprop_released": rmsprop_released, "adam_released": adam_released}


class MetaOptimize:
    """Learn one step size for a block of weights, a list of arrays that ``step`` replaces.

    Example:
        >>> learner = MetaOptimize([np.array([2.0, -1.0])], 0.1, "sgd", "sgd", eta=0.5, gamma=0.9, kappa=0.5)
        >>> for g in ([1.0, 2.0], [3.0, -1.0]):
        ...     learner.step([np.array(g)])
        >>> learner.w[0].round(4), learner.alpha.round(6)  # worked out by hand in the tests
        (array([ 1.41  , -0.9925]), np.float64(0.125232))
    """

    def __init__(
        self, w: Sequence[Array], lr: float, base: str, meta: str, eta: float, gamma: float, kappa: float
    ) -> None:
        self.w, self.h, self.beta, self.t = list(w), [np.zeros_like(a) for a in w], np.log(lr), 0
        self.base, self.meta, self.eta, self.gamma, self.kappa = BASES[base], METAS[meta], eta, gamma, kappa
        self.base_states: list[State] = [{} for _ in w]
        self.meta_state: State = {}

    @property
    def alpha(self) -> Any:
        """The step size."""
        return np.exp(self.beta)

    def step(self, gradients: Sequence[Array]) -> None:
        """Make a base update of the weights, then a meta update of the log step size."""
        self.t, alpha = self.t + 1, self.alpha
        z = sum(np.sum(h * g) for h, g in zip(self.h, gradients, strict=True))
        for i, (w, g) in enumerate(zip(self.w, gradients, strict=True)):
            delta = alpha * (self.base(self.base_states[i], g, self.t) + self.kappa * w)
            self.h[i] = self.gamma * (1 - self.kappa * alpha) * self.h[i] - delta
            self.w[i] = w - delta
        self.beta = self.beta - self.eta * self.meta(self.meta_state, np.asarray(z), self.t)
