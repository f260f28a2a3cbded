"""Hessian-free MetaOptimize in plain float64 NumPy: every line is a formula, nothing is fast.

Symbols: w weights, g gradient, α step size, β = log α, κ decoupled weight decay, h trace (how w moves when all past β
are raised), z meta gradient, η meta step size, γ trace decay, t the number of the step, counted from 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
State = dict[str, Array]
Rule = Callable[[State, Array, int], Array]


def mean_correction(decay: float, t: int) -> float:
    """1 − decay^t: the total weight of the first t terms of an average that started at zero."""
    return 1 - decay**t


def sum_correction(decay: float, t: int) -> float:
    """μ_t = (1 − λ) / (1 − λ^t): turns a discounted sum of t terms into an average."""
    return (1 - decay) / (1 - decay**t)


# A rule maps a gradient (of the loss to the weights, or to the log step sizes) to a direction d. The base moves the
# weights by Δw = α (d + κ w), the meta update moves the log step sizes by η d.


def sgd(state: State, g: Array, t: int) -> Array:
    """d = g."""
    return g


def sgdm(state: State, g: Array, t: int, momentum: float = 0.9) -> Array:
    """m ← ρ m + g;  d = m."""
    state["m"] = momentum * state.get("m", 0.0) + g
    return state["m"]


def adam(state: State, g: Array, t: int, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Array:
    """m ← β₁ m + (1−β₁) g;  v ← β₂ v + (1−β₂) g²;  d = m/(1−β₁^t) / (sqrt(v/(1−β₂^t)) + ε)."""
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
    return (state["m"] / mean_correction(beta1, t)) / (np.sqrt(state["v"] / mean_correction(beta2, t)) + eps)


def rmsprop(state: State, g: Array, t: int) -> Array:
    """Adam with β₁ = 0: d = g / (sqrt(v/(1−β₂^t)) + ε)."""
    return adam(state, g, t, beta1=0.0)


def lion(state: State, g: Array, t: int, c: float = 0.9, momentum: float = 0.99) -> Array:
    """d = sign(c m + (1−c) g) with the old m, then m ← ρ' m + (1−ρ') g."""
    m = state.get("m", np.zeros_like(g))
    state["argument"] = c * m + (1 - c) * g
    state["m"] = momentum * m + (1 - momentum) * g
    return np.sign(state["argument"])


def sgdm_released(state: State, g: Array, t: int, momentum: float = 0.9) -> Array:
    """d = the old m, then m ← ρ m + (1−ρ) g."""
    m = state.get("m", np.zeros_like(g))
    state["m"] = momentum * m + (1 - momentum) * g
    return m


def rmsprop_released(state: State, g: Array, t: int, normalizer: float = 0.999, eps: float = 1e-10) -> Array:
    """v ← λ v + g²;  d = g / sqrt(μ_t v + ε)."""
    state["v"] = normalizer * state.get("v", 0.0) + g**2
    return g / np.sqrt(sum_correction(normalizer, t) * state["v"] + eps)


def adam_released(
    state: State, g: Array, t: int, momentum: float = 0.9, normalizer: float = 0.999, eps: float = 1e-10
) -> Array:
    """m ← ρ m + g;  v ← λ v + g²;  d = m / sqrt(μ_t v + ε)."""
    state["m"] = momentum * state.get("m", 0.0) + g
    state["v"] = normalizer * state.get("v", 0.0) + g**2
    return state["m"] / np.sqrt(sum_correction(normalizer, t) * state["v"] + eps)


BASES: dict[str, Rule] = {
    "sgd": sgd,
    "sgdm": sgdm,
    "rmsprop": rmsprop,
    "adamw": adam,
    "lion": lion,
    "sgdm_released": sgdm_released,
    "rmsprop_released": rmsprop_released,
    "adamw_released": adam_released,
}
METAS: dict[str, Rule] = {
    "sgd": sgd,
    "rmsprop": rmsprop,
    "adam": adam,
    "lion": lion,
    "rmsprop_released": rmsprop_released,
    "adam_released": adam_released,
}


def weight_step(alpha: float, direction: Array, kappa: float, w: Array) -> Array:
    """Δw = α (d + κ w), so that w ← w − Δw."""
    return alpha * (direction + kappa * w)


def next_trace(gamma: float, kappa: float, alpha: float, h: Array, step: Array) -> Array:
    """h ← γ (1 − κ α) h − Δw."""
    return gamma * (1 - kappa * alpha) * h - step


def meta_gradient(traces: list[Array], gradients: list[Array]) -> float:
    """z = Σ h_i g_i over a block."""
    return sum(float(np.sum(h * g)) for h, g in zip(traces, gradients, strict=True))


@dataclass(frozen=True)
class Block:
    """The weights that are configured together."""

    weights: list[Array]
    lr: float
    weight_decay: float
    gamma: float
    meta_lr: float


@dataclass(frozen=True)
class Moment:
    """Everything after one step; `meta_gradients` are those that the step used, with the trace from before it."""

    weights: list[list[Array]]
    traces: list[list[Array]]
    step_sizes: list[float]
    meta_gradients: list[float]
    sign_margin: float
    """Least |argument of a sign function| in this step, exact zeros left out; infinite where no sign is taken."""


Gradient = Callable[[int, list[list[Array]]], list[list[Array]]]


def trajectory(gradient: Gradient, blocks: list[Block], base: str, meta: str, steps: int, scalar: bool) -> list[Moment]:
    """Run MetaOptimize and record every step.

    Args:
        gradient: (number of the step from 0, weights by block) → gradients by block.
        blocks: One log step size is learned per block.
        base: Name of the update rule of the weights.
        meta: Name of the update rule of the log step sizes.
        steps: How many steps to take.
        scalar: Learn one log step size for all blocks together (they share `lr` and `meta_lr` then).
    """
    weights = [[np.array(w, dtype=np.float64) for w in block.weights] for block in blocks]
    traces = [[np.zeros_like(w) for w in ws] for ws in weights]
    base_states: list[list[State]] = [[{} for _ in ws] for ws in weights]
    owner = [0] * len(blocks) if scalar else list(range(len(blocks)))  # block → its log step size
    n_betas = max(owner) + 1
    betas = [float(np.log(blocks[owner.index(k)].lr)) for k in range(n_betas)]
    etas = [blocks[owner.index(k)].meta_lr for k in range(n_betas)]
    meta_states: list[State] = [{} for _ in betas]

    record = []
    for t in range(1, steps + 1):
        gradients = gradient(t - 1, weights)
        alphas = [float(np.exp(beta)) for beta in betas]
        zs = [
            sum(meta_gradient(traces[b], gradients[b]) for b in range(len(blocks)) if owner[b] == k)
            for k in range(n_betas)
        ]
        for b, block in enumerate(blocks):
            alpha = alphas[owner[b]]
            for i, g in enumerate(gradients[b]):
                direction = BASES[base](base_states[b][i], g, t)
                step = weight_step(alpha, direction, block.weight_decay, weights[b][i])
                weights[b][i] = weights[b][i] - step
                traces[b][i] = next_trace(block.gamma, block.weight_decay, alpha, traces[b][i], step)
        for k in range(n_betas):
            betas[k] -= etas[k] * float(METAS[meta](meta_states[k], np.asarray(zs[k]), t))

        states = [state for group in base_states for state in group] + meta_states
        arguments = np.concatenate([np.ravel(s["argument"]) for s in states if "argument" in s] or [np.zeros(0)])
        record.append(
            Moment(
                weights=[list(ws) for ws in weights],
                traces=[list(hs) for hs in traces],
                step_sizes=[float(np.exp(beta)) for beta in betas],
                meta_gradients=zs,
                sign_margin=float(np.min(np.abs(arguments[arguments != 0]), initial=np.inf)),
            )
        )
    return record


def network_gradient(x: Array, y: Array, weights: list[list[Array]]) -> list[list[Array]]:
    """Gradients of ½ |s · tanh(x W₁ + b₁) W₂ + b₂ − y|² for the blocks [[W₁, b₁], [W₂, b₂, s]], one sample."""
    (w1, b1), (w2, b2, s) = weights
    hidden = np.tanh(x @ w1 + b1)
    linear = hidden @ w2
    error = s * linear + b2 - y
    d_hidden = (s * w2 @ error) * (1 - hidden**2)
    return [
        [np.outer(x, d_hidden), d_hidden],
        [np.outer(hidden, s * error), error, np.asarray(error @ linear)],
    ]
