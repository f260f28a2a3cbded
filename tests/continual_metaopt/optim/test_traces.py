"""Exact traces against finite differences of runs with frozen quantities, special cases, and automatic differentiation."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from continual_metaopt.optim.base_updates import BASE_UPDATES
from continual_metaopt.optim.curvature import (
    Curvature,
    diagonal,
    gauss_newton,
    gauss_newton_diagonal,
    hessian,
    hutchinson_diagonal,
    make_curvature,
)
from continual_metaopt.optim.meta_updates import META_UPDATES
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.traces import (
    UPDATE_ORDERS,
    VARIANTS,
    MetaStep,
    TracedParameter,
    TraceRule,
    check_memory,
    memory_needed,
)

from . import reference

Array = np.ndarray

LR = {
    "sgd": 0.1,
    "sgdm": 0.05,
    "rmsprop": 0.05,
    "adamw": 0.05,
    "lion": 0.05,
    "sgdm_released": 0.5,
    "rmsprop_released": 0.05,
    "adamw_released": 0.02,
}
META_LR = {"sgd": 0.1, "rmsprop": 0.1, "adam": 0.1, "lion": 0.1, "rmsprop_released": 0.1, "adam_released": 0.03}
STEPS = 4

# Problems: weights in one vector, gradients in NumPy (also of complex weights), the loss in torch.


@dataclass(frozen=True)
class Problem:
    """A stream of losses of a vector of weights, which consists of two parameters."""

    n_inputs: int
    n_hidden: int  # 0: a linear model
    x: Array = field(repr=False)
    y: Array = field(repr=False)
    initial: Array = field(repr=False)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        if self.n_hidden:
            return [(self.n_hidden, self.n_inputs), (self.n_hidden,)]
        return [(self.n_inputs - 1,), (1,)]

    def output(self, t: int, params: list[Tensor]) -> Tensor:
        x = torch.as_tensor(self.x[t])
        if self.n_hidden:
            return params[1] @ torch.tanh(params[0] @ x)
        return torch.cat(params) @ x

    def loss(self, t: int, output: Tensor) -> Tensor:
        return 0.5 * (output - self.y[t]) ** 2

    def gradient(self, w: Array, t: int) -> Array:
        """∇f_t at weights [..., n]."""
        x = self.x[t]
        if not self.n_hidden:
            return ((w @ x) - self.y[t])[..., None] * x
        split = self.n_hidden * self.n_inputs
        first, second = w[..., :split].reshape(*w.shape[:-1], self.n_hidden, self.n_inputs), w[..., split:]
        hidden = np.tanh(first @ x)
        error = ((second * hidden).sum(-1) - self.y[t])[..., None]
        inner = error * second * (1 - hidden**2)
        return np.concatenate([(inner[..., None] * x).reshape(*w.shape[:-1], split), error * hidden], axis=-1)

    def parameters(self) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in self.shapes]
        pieces = torch.as_tensor(self.initial).split(sizes)
        return [p.reshape(s).clone().requires_grad_() for p, s in zip(pieces, self.shapes, strict=True)]


def problem(n_hidden: int, steps: int = STEPS, seed: int = 5, noise: float = 0.3) -> Problem:
    rng = np.random.default_rng(seed)
    n_inputs = 2 if n_hidden else 4
    n_weights = n_hidden * n_inputs + n_hidden if n_hidden else n_inputs
    x = rng.normal(0.7, 0.6, (steps, n_inputs))
    return Problem(n_inputs, n_hidden, x, 2 + noise * rng.normal(size=steps), rng.normal(0.0, 0.8, n_weights))


NETWORK, LINEAR = problem(n_hidden=2), problem(n_hidden=0)

GRANULARITIES: dict[str, Callable[[Problem], list[Tensor]]] = {
    "scalar": lambda p: [torch.tensor(0), torch.tensor(0)],
    "tensor": lambda p: [torch.tensor(0), torch.tensor(1)],
    "node": lambda p: [
        torch.arange(p.shapes[0][0]).reshape(-1, *(1,) * (len(p.shapes[0]) - 1)),
        torch.tensor(p.shapes[0][0]),
    ],
    "weight": lambda p: [
        torch.arange(math.prod(p.shapes[0])).reshape(p.shapes[0]),
        math.prod(p.shapes[0]) + torch.arange(p.shapes[1][0]),
    ],
    "mixed": lambda p: [torch.tensor(0), 1 + torch.arange(p.shapes[1][0])],
}


# A learner that uses the traces as an optimizer does, recorded


@dataclass
class Record:
    """What a run went through; at t what held before step t, but z and g of the step itself."""

    weights: list[Array] = field(default_factory=list)
    log_step_sizes: list[Array] = field(default_factory=list)
    gradients: list[Array] = field(default_factory=list)
    meta_gradients: list[Array] = field(default_factory=list)
    traces: list[dict[str, Array]] = field(default_factory=list)  # columns × weights
    meta_traces: list[Array] = field(default_factory=list)


@dataclass(frozen=True)
class Setting:
    """All that defines a run."""

    base: str = "sgd"
    meta: str = "sgd"
    variant: str = "l"
    order: str = "base_first"
    gamma: float = 0.9
    granularity: str = "tensor"
    kappa: float = 0.3
    meta_decay: float = 0.0
    curvature: str = "exact"
    lr: float | None = None
    meta_lr: float | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def rule(self) -> TraceRule:
        return TraceRule(
            BASE_UPDATES[self.base](),
            META_UPDATES[self.meta](),
            self.variant,  # type: ignore[arg-type]
            self.order,  # type: ignore[arg-type]
            self.curvature,  # type: ignore[arg-type]
            **dict(self.options),
        )

    @property
    def eta(self) -> float:
        return META_LR[self.meta] if self.meta_lr is None else self.meta_lr

    @property
    def alpha(self) -> float:
        return LR[self.base] if self.lr is None else self.lr


def flat(tensors: list[Tensor]) -> Array:
    """Concatenates over parameters: [columns, n] of traces, [n] of others."""
    return torch.cat(tensors, dim=-1).detach().numpy().copy()


def run(p: Problem, s: Setting, steps: int = STEPS, loss: Callable[[int, Tensor], Tensor] | None = None) -> Record:
    rule, params, index = s.rule, p.parameters(), GRANULARITIES[s.granularity](p)
    m = 1 + max(int(i.max()) for i in index)
    traces = [rule.init_parameter(w, m) for w in params]
    meta_traces = rule.init_meta(m)
    states = [rule.base.init(w.detach()) for w in params]
    beta = math.log(s.alpha) + torch.linspace(0, 0.3, m, dtype=torch.float64)
    meta_states = [rule.meta.init() for _ in range(m)]
    record = Record()
    for t in range(steps):
        output = p.output(t, params)
        value = p.loss(t, output) if loss is None else loss(t, output)
        gradients = torch.autograd.grad(value, params, create_graph=True)
        curvature = None
        if s.variant != "hessian_free":
            curvature = make_curvature(s.curvature, params, gradients, value, output)  # type: ignore[arg-type]

        def traced(
            beta: Tensor,
            gradients: tuple[Tensor, ...] = gradients,
        ) -> list[TracedParameter]:
            return [
                TracedParameter(w, g, state, x, beta.exp()[i], i, s.kappa)
                for w, g, state, x, i in zip(params, gradients, states, traces, index, strict=True)
            ]

        z = rule.meta_gradients(traced(beta), m)
        record.weights.append(flat([w.flatten() for w in params]))
        record.log_step_sizes.append(beta.numpy().copy())
        record.gradients.append(flat([g.flatten() for g in gradients]))
        record.meta_gradients.append(z.numpy().copy())
        names = {"weights", *traces[0]} - {"second", "curvature", "curvature_steps"}
        record.traces.append({name: flat([x[name].flatten(1) for x in traces]) for name in names})
        record.meta_traces.append(meta_traces["log_step_size"].numpy().copy())

        stacked = {name: torch.tensor([state[name] for state in meta_states], dtype=torch.float64) for name in meta_states[0]}
        meta_step = MetaStep(stacked, z, s.eta, meta_traces, s.meta_decay)
        changes = [rule.meta.change(state, float(z_b), s.eta) for state, z_b in zip(meta_states, z, strict=True)]
        new_beta = (1 - s.eta * s.meta_decay) * beta + torch.tensor(changes, dtype=torch.float64)
        used = beta if s.order == "base_first" else new_beta
        rule.advance(traced(used), meta_step, s.gamma, curvature)
        beta = new_beta
        with torch.no_grad():
            for w, g, state, i in zip(params, gradients, states, index, strict=True):
                direction = rule.base.direction(state, g.detach())
                denominator = 1.0 if direction.denominator is None else direction.denominator
                alpha = used.exp()[i]
                w.sub_(alpha * (direction.numerator / denominator / direction.divisor + s.kappa * w))
    record.weights.append(flat([w.flatten() for w in params]))
    record.log_step_sizes.append(beta.numpy().copy())
    record.traces.append({name: flat([x[name].flatten(1) for x in traces]) for name in names})
    record.meta_traces.append(meta_traces["log_step_size"].numpy().copy())
    return record


# The independent check: re-run with bumped log step sizes, with what the variant takes to be constant frozen

NAMES_OF_STATE = {"m": ("exp_avg", "momentum_buffer"), "v": ("exp_avg_sq",)}
TINY = 1e-30


def sign_of_real(x: Array) -> Array:
    return np.sign(np.real(x))


def directional(base: str, state: dict[str, Array], g: Array, t: int, moved: dict[str, Array], by: Array) -> Array:
    """Derivative of the base update's direction along tangents of state and gradient, by a complex step."""
    if base == "lion":
        return np.zeros_like(by)
    shifted = {k: v[..., None, :] + 1j * TINY * moved[k] for k, v in state.items() if k in moved}
    return np.imag(reference.BASES[base](shifted, g[..., None, :] + 1j * TINY * by, t)) / TINY


def rerun(p: Problem, s: Setting, record: Record, owner: Array, bumps: Array) -> tuple[Array, Array]:
    """Weights [t, run, n] and log step sizes [t, run, m] of runs in which β_τ is bumped by bumps[run, τ]."""
    runs, _, m = bumps.shape
    w = np.tile(record.weights[0], (runs, 1))
    beta = record.log_step_sizes[0] + bumps[:, 0]
    state: dict[str, Array] = {}
    meta_state: dict[str, Array] = {}
    h = np.zeros((runs, m, w.shape[1]))
    mask = owner == np.arange(m)[:, None]
    weights, betas = [w], [beta]
    for t in range(len(record.gradients)):
        g = p.gradient(w, t)
        if s.variant == "hessian_free":
            g = np.broadcast_to(record.gradients[t], w.shape)
        if s.variant == "full":
            z = np.einsum("rmn,rn->rm", h, g)
        elif s.variant == "2x2":
            z = g @ record.traces[t]["weights"].T
        else:
            z = np.broadcast_to(record.meta_gradients[t], beta.shape)
        change = s.eta * reference.METAS[s.meta](meta_state, z, t + 1)
        new_beta = (1 - s.eta * s.meta_decay) * beta - change + bumps[:, t + 1]
        alpha = np.exp(beta if s.order == "base_first" else new_beta)[:, owner]
        if s.variant == "full":
            product = np.imag(p.gradient(w[:, None] + 1j * TINY * h, t)) / TINY
            frozen = {
                key: record.traces[t][name]
                for key, names in NAMES_OF_STATE.items()
                for name in names
                if name in record.traces[t] and key in state
            }
            direction_moved = directional(s.base, state, g, t + 1, frozen, product)
        direction = reference.BASES[s.base](state, g, t + 1)
        step = reference.weight_step(alpha, direction, s.kappa, w)
        if s.variant == "full":
            spread = record.meta_traces[t if s.order == "base_first" else t + 1] @ mask
            a = alpha[:, None]
            h = s.gamma * (h - a * (direction_moved + s.kappa * h)) - step[:, None] * spread
        w, beta = w - step, new_beta
        weights.append(w)
        betas.append(beta)
    return np.array(weights), np.array(betas)


def by_finite_differences(p: Problem, s: Setting, record: Record, size: float = 1e-5) -> list[Array]:
    """H_t [m, n] for t = 0 … T from the definition, and a check that the run without bumps is the recorded one."""
    owner = flat(
        [i.expand(shape).flatten() for i, shape in zip(GRANULARITIES[s.granularity](p), p.shapes, strict=True)]
    )
    steps, m = len(record.gradients), len(record.meta_gradients[0])
    units = np.eye((steps + 1) * m).reshape(-1, steps + 1, m)
    weights, betas = rerun(p, s, record, owner, np.concatenate([size * units, -size * units, 0 * units[:1]]))
    np.testing.assert_allclose(weights[:, -1], record.weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(betas[:, -1], record.log_step_sizes, rtol=1e-9, atol=1e-12)
    count = len(units)
    slopes = ((weights[:, :count] - weights[:, count : 2 * count]) / (2 * size)).reshape(
        steps + 1, steps + 1, m, -1
    )  # t, τ, log step size, weight
    expected = []
    for t in range(steps + 1):
        last = t - 1 if s.order == "base_first" else t  # the newest log step size that has moved w_t
        h = np.zeros_like(slopes[0, 0])
        if last >= 0:
            h = s.gamma**last * slopes[t, 0]
            for tau in range(1, last + 1):
                h = h + (1 - s.gamma) * s.gamma ** (last - tau) * slopes[t, tau]
        expected.append(h)
    return expected


def check_against_finite_differences(p: Problem, s: Setting) -> None:
    record = run(p, s)
    mask = None
    if s.rule.elementwise:
        owner = flat([i.expand(x).flatten() for i, x in zip(GRANULARITIES[s.granularity](p), p.shapes, strict=True)])
        mask = owner == np.arange(len(record.meta_gradients[0]))[:, None]
    for expected, moment in zip(by_finite_differences(p, s, record), record.traces, strict=True):
        h = moment["weights"] if mask is None else moment["weights"] * mask
        np.testing.assert_allclose(h, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max() + 1e-14)
    assert np.abs(expected).max() > 1e-3
