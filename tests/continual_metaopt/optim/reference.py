"""All options of Hessian-free MetaOptimize in plain float64 NumPy, with rules and symbols of ``optim.reference``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from continual_metaopt.optim.reference import BASES, METAS, State

Array = np.ndarray

# Keyword of the momentum ρ in the rules whose direction is a smooth function of it.
MOMENTUM = {"sgdm": "momentum", "adamw": "beta1", "sgdm_released": "momentum", "adamw_released": "momentum"}


def momentum_tangent(base: str, state: State, g: Array, t: int, rho: Array, slope: Array, gamma: float) -> Array:
    """Derivative of the direction along the momentum's traces n (of m) and p (of Π ρ), which advance; g is constant.

    To be called before the rule itself, with the state from before the step; ``slope`` is dρ/dβ.
    """
    m, n = state.get("m", 0.0), gamma * state.get("n", 0.0)
    if base == "sgdm":
        state["n"] = rho * n + slope * m
        return state["n"]
    if base == "sgdm_released":
        state["n"] = rho * n + slope * (m - g)
        return n + np.zeros_like(g)
    if base == "adamw_released":
        v = 0.999 * state.get("v", 0.0) + g**2
        state["n"] = rho * n + slope * m
        return state["n"] / np.sqrt((0.001 / (1 - 0.999**t)) * v + 1e-10)
    state["n"] = rho * n + slope * (m - g)
    product = state.get("product", 1.0)
    state["p"] = rho * gamma * state.get("p", 0.0) + slope * product
    weight = 1 - product * rho
    root = np.sqrt((0.999 * state.get("v", 0.0) + 0.001 * g**2) / (1 - 0.999**t)) + 1e-8
    return (state["n"] / weight + (rho * m + (1 - rho) * g) * state["p"] / weight**2) / root


def two_horizons(state: State, short: Array, long: Array, t: int) -> Array:
    """z = z_s − 0.3 â_s + 0.5 (â_s / â_l) z_l, where â is the mean of all |z| so far, discounted by 0.999."""
    for name, z in (("short", short), ("long", long)):
        state[name] = 0.999 * state.get(name, 0.0) + 0.001 * np.abs(z)
    mean_short, mean_long = (np.asarray(state[name] / (1 - 0.999**t)) for name in ("short", "long"))
    ratio = np.divide(mean_short, mean_long, out=np.zeros_like(mean_short), where=mean_long > 0)
    return short - 0.3 * mean_short + 0.5 * ratio * long


def weight_step(alpha: Array, direction: Array, kappa: Array, w: Array) -> Array:
    """Δw = α (d + κ w), so that w ← w − Δw."""
    return alpha * (direction + kappa * w)


def summed_to(shape: tuple[int, ...], product: Array) -> Array:
    """A product summed over the weights that share a number, given the shape that these numbers have."""
    for axis in range(product.ndim):
        if len(shape) == 0 or shape[axis] != product.shape[axis]:
            product = product.sum(axis=axis, keepdims=True)
    return product.reshape(shape)


def logit(x: Array) -> Array:
    return np.log(x / (1 - x))


@dataclass(frozen=True)
class Block:
    """The weights that are configured together; `momentum` is where learning ρ starts; γ may be "auto"."""

    weights: list[Array]
    lr: float
    weight_decay: float
    gamma: Any
    meta_lr: float
    granularity: str = "group"
    momentum: float = 0.9


@dataclass(frozen=True)
class Moment:
    """Everything after one step; `meta_gradients` are those that the step used, with the trace from before it."""

    weights: list[list[Array]]
    traces: dict[str, list[list[Array]]]
    """By what is learned, "lr", "weight_decay" or "momentum"; then by block and tensor."""
    long_traces: list[list[Array]]
    """Of the step sizes, with γ = 0.9999, where blocks have two horizons."""
    values: dict[str, list[list[Array]]]
    """Likewise the step size, weight decay or momentum, which broadcasts against the weights."""
    meta_gradients: dict[Any, Array]
    """Of the step sizes, one array for each that is learned apart, by its owner."""
    typical_sizes: dict[Any, State]
    """Likewise the running means of two horizons' meta gradients, before their correction."""
    sign_margin: float
    """Least |argument of a sign function| in this step, exact zeros left out; infinite where no sign is taken."""

    def numbers(self, kind: str = "lr") -> list[float]:
        """The values of one tensor of each block, where blocks have one value."""
        return [float(tensors[0]) for tensors in self.values[kind]]


Gradient = Callable[[int, list[list[Array]]], list[list[Array]]]


def own_shape(granularity: str, w: Array) -> tuple[int, ...]:
    """Shape of the numbers that are learned for a tensor of weights."""
    if granularity == "weight":
        return w.shape
    if granularity == "node" and w.ndim:
        return (w.shape[0], *(1,) * (w.ndim - 1))
    return ()


def trajectory(
    gradient: Gradient,
    blocks: list[Block],
    base: str,
    meta: str,
    steps: int,
    *,
    meta_first: bool = False,
    linear: bool = False,
    learn: tuple[str, ...] = ("lr",),
    dutch: bool = False,
) -> list[Moment]:
    """Run MetaOptimize and record every step.

    Args:
        gradient: (number of the step from 0, weights by block) → gradients by block.
        blocks: One log step size is learned per block, unless its granularity is finer. Blocks of granularity
            "scalar" share one (and `lr` and `meta_lr`).
        base: Name of the update rule of the weights.
        meta: Name of the update rule of the log step sizes.
        steps: How many steps to take.
        meta_first: Step with the step sizes from after the meta update.
        linear: Learn step sizes themselves rather than their logarithms.
        learn: What is learned.
        dutch: Move weights by h Δβ after the meta update, or by γ h Δβ with the old h if that comes first.
    """
    to_beta = {"lr": (lambda x: x) if linear else np.log, "weight_decay": np.log, "momentum": logit}
    to_value = {
        "lr": (lambda b: b) if linear else np.exp,
        "weight_decay": np.exp,
        "momentum": lambda b: 1 / (1 + np.exp(-b)),
    }
    weights = [[np.array(w, dtype=np.float64) for w in block.weights] for block in blocks]
    places = [(b, i) for b, ws in enumerate(weights) for i in range(len(ws))]
    traces = {kind: {place: np.zeros_like(weights[place[0]][place[1]]) for place in places} for kind in learn}
    long_traces = {place: np.zeros_like(weights[place[0]][place[1]]) for place in places}
    typical_sizes: dict[Any, State] = {}
    base_states: dict[tuple[int, int], State] = {place: {} for place in places}

    def owner(b: int, i: int) -> Any:
        """What is learned together has the same owner."""
        if blocks[b].granularity in ("scalar", "group"):
            return "all" if blocks[b].granularity == "scalar" else b
        return b, i

    betas: dict[str, dict[Any, Array]] = {kind: {} for kind in ("lr", "weight_decay", "momentum")}
    etas: dict[Any, float] = {}
    for b, i in places:
        start = {"lr": blocks[b].lr, "weight_decay": blocks[b].weight_decay, "momentum": blocks[b].momentum}
        for kind in betas:
            if kind in (*learn, "lr"):
                first = to_beta[kind](np.full(own_shape(blocks[b].granularity, weights[b][i]), start[kind]))
                betas[kind].setdefault(owner(b, i), first)
        etas.setdefault(owner(b, i), blocks[b].meta_lr)
    meta_states: dict[tuple[str, Any], State] = {(kind, k): {} for kind in learn for k in etas}

    def value(kind: str, b: int, i: int) -> Array:
        if kind in betas and owner(b, i) in betas[kind]:
            return to_value[kind](betas[kind][owner(b, i)])
        return np.asarray(blocks[b].weight_decay if kind == "weight_decay" else blocks[b].momentum)

    def gamma_of(b: int) -> float:
        return 0.99 if blocks[b].gamma == "auto" else float(blocks[b].gamma)

    record = []
    for t in range(1, steps + 1):
        gradients = gradient(t - 1, weights)
        zs: dict[tuple[str, Any], Array] = {}
        for kind in learn:
            for b, i in places:
                shape = own_shape(blocks[b].granularity, weights[b][i])
                part = summed_to(shape, traces[kind][b, i] * gradients[b][i])
                zs[kind, owner(b, i)] = zs.get((kind, owner(b, i)), 0.0) + part
        long_zs: dict[Any, Array] = {}
        for b, i in places:
            if blocks[b].gamma == "auto":
                part = summed_to(own_shape(blocks[b].granularity, weights[b][i]), long_traces[b, i] * gradients[b][i])
                long_zs[owner(b, i)] = long_zs.get(owner(b, i), 0.0) + part
        for k, long_z in long_zs.items():
            zs["lr", k] = two_horizons(typical_sizes.setdefault(k, {}), zs["lr", k], long_z, t)

        def make_meta_updates(zs: dict[tuple[str, Any], Array] = zs, t: int = t) -> None:
            before = dict(betas["lr"])
            for (kind, k), z in zs.items():
                direction = METAS[meta](meta_states[kind, k], np.asarray(z), t)
                betas[kind][k] = betas[kind][k] - etas[k] * direction
            for b, i in places if dutch else ():
                change = betas["lr"][owner(b, i)] - before[owner(b, i)]
                weights[b][i] = weights[b][i] + (gamma_of(b) if meta_first else 1.0) * change * traces["lr"][b, i]

        if meta_first:
            make_meta_updates()
        for b, i in places:
            g, w, gamma = gradients[b][i], weights[b][i], gamma_of(b)
            alpha, kappa, rho = (value(kind, b, i) for kind in ("lr", "weight_decay", "momentum"))
            state = base_states[b, i]
            tangent = np.zeros_like(w)
            options = {}
            if "momentum" in learn:
                tangent = momentum_tangent(base, state, g, t, rho, rho * (1 - rho), gamma)
                options = {MOMENTUM[base]: rho}
            step = weight_step(alpha, BASES[base](state, g, t, **options), kappa, w)
            increments = {
                "lr": -step / (alpha if linear else 1.0),
                "weight_decay": -alpha * kappa * w,
                "momentum": -alpha * tangent,
            }
            for kind in learn:
                traces[kind][b, i] = gamma * (1 - kappa * alpha) * traces[kind][b, i] + increments[kind]
            long_traces[b, i] = 0.9999 * (1 - kappa * alpha) * long_traces[b, i] - step / (alpha if linear else 1.0)
            weights[b][i] = w - step
        if not meta_first:
            make_meta_updates()

        states = [*base_states.values(), *meta_states.values()]
        arguments = np.concatenate([np.ravel(s["argument"]) for s in states if "argument" in s] or [np.zeros(0)])
        by_block = [range(len(ws)) for ws in weights]
        record.append(
            Moment(
                weights=[list(ws) for ws in weights],
                traces={
                    kind: [[traces[kind][b, i] for i in tensors] for b, tensors in enumerate(by_block)]
                    for kind in learn
                },
                long_traces=[[long_traces[b, i] for i in tensors] for b, tensors in enumerate(by_block)],
                values={
                    kind: [[value(kind, b, i) for i in tensors] for b, tensors in enumerate(by_block)]
                    for kind in ("lr", *learn)
                },
                meta_gradients={k: z for (kind, k), z in zs.items() if kind == "lr"},
                typical_sizes={k: dict(state) for k, state in typical_sizes.items()},
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
