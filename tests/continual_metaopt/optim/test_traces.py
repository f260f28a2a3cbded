"""Exact traces against finite differences of runs with frozen quantities, special cases and unrolled runs."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from continual_metaopt.optim.base_updates import BASE_UPDATES, Direction
from continual_metaopt.optim.curvature import (
    Curvature,
    diagonal,
    gauss_newton,
    gauss_newton_diagonal,
    hessian,
    make_curvature,
)
from continual_metaopt.optim.meta_updates import META_UPDATES
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.traces import (
    UPDATE_ORDERS,
    MetaStep,
    TracedParameter,
    TraceRule,
    memory_needed,
)

from . import reference

Array = np.ndarray
EXACT = ("l", "2x2", "full")
VARIANTS = ("hessian_free", *EXACT)

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
    "weight": lambda p: [
        torch.arange(math.prod(p.shapes[0])).reshape(p.shapes[0]),
        math.prod(p.shapes[0]) + torch.arange(p.shapes[1][0]),
    ],
    "mixed": lambda p: [torch.tensor(0), 1 + torch.arange(p.shapes[1][0])],
    "unit": lambda p: [
        torch.arange(p.shapes[0][0]).reshape(-1, *(1,) * (len(p.shapes[0]) - 1)),
        p.shapes[0][0] + torch.arange(p.shapes[1][0]),
    ],
}


def quotient(direction: Direction) -> Tensor:
    denominator = 1.0 if direction.denominator is None else direction.denominator
    return direction.numerator / denominator / direction.divisor


# The optimizer, recorded


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
    gamma: float | tuple[float, ...] = 0.9  # of all log step sizes, or of each
    granularity: str = "tensor"
    kappa: float = 0.3
    curvature: str = "exact"
    lr: float | None = None
    meta_lr: float | None = None
    meta_every: int = 1

    @property
    def elementwise(self) -> bool:
        return self.variant == "hessian_free" or self.curvature == "diagonal"

    @property
    def eta(self) -> float:
        return META_LR[self.meta] if self.meta_lr is None else self.meta_lr

    @property
    def alpha(self) -> float:
        return LR[self.base] if self.lr is None else self.lr


def flat(tensors: list[Tensor]) -> Array:
    """Concatenates over parameters: [columns, n] of traces, [n] of others."""
    return torch.cat(tensors, dim=-1).detach().numpy().copy()


GROUPS: dict[str, Callable[[list[Tensor], float], Any]] = {
    "scalar": lambda params, lr: [{"params": [p], "step_sizes": "scalar"} for p in params],
    "tensor": lambda params, lr: [{"params": [p], "lr": lr * (1 + 0.35 * i)} for i, p in enumerate(params)],
    "unit": lambda params, lr: [{"params": params, "step_sizes": "node"}],
    "weight": lambda params, lr: [{"params": params, "step_sizes": "weight"}],
    "mixed": lambda params, lr: [
        {"params": params[:1]},
        {"params": params[1:], "step_sizes": "weight", "lr": 1.6 * lr},
    ],
}


def owners(p: Problem, s: Setting) -> Any:
    """For each weight the number of its log step size."""
    return flat([i.expand(x).flatten() for i, x in zip(GRANULARITIES[s.granularity](p), p.shapes, strict=True)])


def optimizer_of(params: list[Tensor], s: Setting) -> MetaOptimize:
    groups = GROUPS[s.granularity](params, s.alpha)
    if isinstance(s.gamma, tuple):
        for group, gamma in zip(groups, s.gamma, strict=True):
            group["gamma"] = gamma
    return MetaOptimize(
        groups,
        s.alpha,
        base=s.base,  # type: ignore[arg-type]
        meta=s.meta,  # type: ignore[arg-type]
        meta_lr=s.eta,
        gamma=s.gamma if isinstance(s.gamma, float) else 0.5,
        weight_decay=s.kappa,
        lr_bounds=(1e-10, 10.0),
        update_order=s.order,  # type: ignore[arg-type]
        meta_every=s.meta_every,
        trace=s.variant,  # type: ignore[arg-type]
        curvature=s.curvature,  # type: ignore[arg-type]
    )


def run(p: Problem, s: Setting, steps: int = STEPS, loss: Callable[[int, Tensor], Tensor] | None = None) -> Record:
    """A run of the optimizer itself; where it keeps a trace element by element, columns have 0 elsewhere."""
    params, record = p.parameters(), Record()
    optimizer = optimizer_of(params, s)
    m = 1 + int(owners(p, s).max())

    def note() -> Array:
        sizes = [torch.as_tensor(x, dtype=torch.float64).flatten() for x in optimizer.step_size_report().values()]
        record.weights.append(flat([w.flatten() for w in params]))
        record.log_step_sizes.append(torch.cat(sizes).log().numpy())
        group = optimizer.param_groups[0]
        meta_traces = group.get("meta_traces", {"log_step_size": torch.eye(m, dtype=torch.float64)})
        record.meta_traces.append(meta_traces["log_step_size"].numpy().copy())
        states = [optimizer.state[w] for w in params]
        none = [{"weights": torch.zeros(m, *w.shape, dtype=torch.float64)} for w in params]
        if s.variant == "hessian_free":
            traces = [{"weights": state["trace"].unsqueeze(0)} if "trace" in state else {} for state in states]
        else:
            traces = [state.get("traces", {}) for state in states]
            assert not any("trace" in state for state in states)
        traces = [trace or nothing for trace, nothing in zip(traces, none, strict=True)]
        columns = {
            name: flat([x[name].flatten(1) for x in traces])
            for name in {*traces[0]} - {"second", "curvature", "curvature_steps"}
        }
        if s.elementwise:
            columns = {name: x * (owners(p, s) == np.arange(m)[:, None]) for name, x in columns.items()}
        record.traces.append(columns)
        return columns["weights"]

    for t in range(steps):
        h = note()
        output = p.output(t, params)
        value = p.loss(t, output) if loss is None else loss(t, output)
        if s.variant == "hessian_free":
            optimizer.zero_grad()
            value.backward()
        optimizer.step(lambda value=value, output=output: (value, output))
        g = flat([w.grad.flatten() for w in params if w.grad is not None])
        record.gradients.append(g)
        record.meta_gradients.append(h @ g)
    note()
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
    shifted = {k: v[..., None, :] + 1j * TINY * moved.get(k, 0.0) if np.ndim(v) else v for k, v in state.items()}
    return np.imag(reference.BASES[base](shifted, g[..., None, :] + 1j * TINY * by, t)) / TINY


def rerun(p: Problem, s: Setting, record: Record, owner: Array, bumps: Array) -> tuple[Array, Array]:
    """Weights [t, run, n] and log step sizes [t, run, m] of runs in which β_τ is bumped by bumps[run, τ]."""
    runs, _, m = bumps.shape
    w = np.tile(record.weights[0], (runs, 1))
    beta = record.log_step_sizes[0] + bumps[:, 0]
    state: dict[str, Array] = {}
    meta_state: dict[str, Array] = {}
    pending = np.zeros_like(beta)
    h = np.zeros((runs, m, w.shape[1]))
    mask = owner == np.arange(m)[:, None]
    gamma = np.broadcast_to(s.gamma, m)[:, None]
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
        pending = pending + z
        change = np.zeros_like(beta)
        if (t + 1) % s.meta_every == 0:
            change = s.eta * reference.METAS[s.meta](meta_state, pending, (t + 1) // s.meta_every)
            pending = np.zeros_like(beta)
        new_beta = beta - change + bumps[:, t + 1]
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
            h = gamma * (h - a * (direction_moved + s.kappa * h)) - step[:, None] * spread
        w, beta = w - step, new_beta
        weights.append(w)
        betas.append(beta)
    return np.array(weights), np.array(betas)


def by_finite_differences(p: Problem, s: Setting, record: Record, size: float = 1e-5) -> list[Array]:
    """H_t [m, n] for t = 0 … T from the definition, and a check that the run without bumps is the recorded one."""
    owner = owners(p, s)
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
    gamma = np.broadcast_to(s.gamma, m)[:, None]
    for t in range(steps + 1):
        last = t - 1 if s.order == "base_first" else t  # the newest log step size that has moved w_t
        h = np.zeros_like(slopes[0, 0])
        if last >= 0:
            h = gamma**last * slopes[t, 0]
            for tau in range(1, last + 1):
                h = h + (1 - gamma) * gamma ** (last - tau) * slopes[t, tau]
        expected.append(h)
    return expected


def check_against_finite_differences(p: Problem, s: Setting) -> None:
    record = run(p, s)
    if isinstance(s.gamma, tuple):
        assert len(record.meta_gradients[0]) == len(s.gamma)
    for expected, moment in zip(by_finite_differences(p, s, record), record.traces, strict=True):
        np.testing.assert_allclose(moment["weights"], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max() + 1e-14)
    assert np.abs(expected).max() > 1e-3
    assert np.abs(record.log_step_sizes[-1] - record.log_step_sizes[0]).max() > 1e-4


def one_input_at_a_time() -> Problem:
    p = problem(n_hidden=0)
    p.x[:] = np.eye(4)[[2, 0, 2, 2]] * p.x
    return p


ALL = [
    Setting(base, meta, variant, order, gamma)
    for base, meta, variant, gamma, order in itertools.product(LR, META_LR, VARIANTS, (0.0, 0.9, 1.0), UPDATE_ORDERS)
]
# Every base, meta, variant, γ, order and granularity at least once.
PAIRS = [
    ("sgd", "sgd"),
    ("sgdm", "rmsprop"),
    ("rmsprop", "adam"),
    ("adamw", "adam"),
    ("lion", "lion"),
    ("sgdm_released", "rmsprop_released"),
    ("rmsprop_released", "adam_released"),
    ("adamw_released", "adam_released"),
]
COVER = (
    [
        (
            NETWORK if (i + j) % 3 else LINEAR,
            Setting(
                base,
                meta,
                variant,
                UPDATE_ORDERS[(i + j) % 2],
                (0.0, 0.9, 1.0)[(i + 2 * j) % 3],
                list(GROUPS)[(i + 2 * j) % 5],
                meta_every=1 + (i + j + 1) % 4 // 3,
            ),
        )
        for i, (base, meta) in enumerate(PAIRS)
        for j, variant in enumerate(VARIANTS)
    ]
    + [
        (NETWORK, Setting("adamw", "adam", variant, order, 0.9, granularity, meta_every=every))
        for variant, order, granularity, every in [
            ("hessian_free", "base_first", "weight", 2),
            ("l", "base_first", "weight", 2),
            ("2x2", "base_first", "tensor", 2),
            ("2x2", "meta_first", "mixed", 2),
            ("full", "base_first", "unit", 2),
            ("full", "meta_first", "tensor", 3),
        ]
    ]
    + [
        (NETWORK, Setting("sgdm", "adam", variant, order, (0.9, 0.5), "tensor"))
        for variant, order in zip(VARIANTS, UPDATE_ORDERS * 2, strict=True)
    ]
    + [
        (LINEAR, Setting("adamw", "adam", "2x2", granularity="scalar", curvature="gauss_newton")),
        (one_input_at_a_time(), Setting("adamw", "adam", "l", granularity="weight", curvature="diagonal")),
        (one_input_at_a_time(), Setting("rmsprop", "rmsprop", "2x2", granularity="weight", curvature="diagonal")),
    ]
)


def identifier(value: Any) -> str:
    if isinstance(value, Problem):
        return "network" if value.n_hidden else "linear"
    return f"{value.base}-{value.meta}-{value.variant}-{value.order}-{value.gamma}-{value.granularity}"


@pytest.mark.parametrize(("p", "s"), COVER, ids=identifier)
def test_traces_are_derivatives(p: Problem, s: Setting) -> None:
    check_against_finite_differences(p, s)


@pytest.mark.slow
@pytest.mark.parametrize("s", ALL, ids=identifier)
def test_traces_of_all_pairs_are_derivatives(s: Setting) -> None:
    check_against_finite_differences(NETWORK, s)


def h(record: Record) -> Array:
    return np.array([moment["weights"] for moment in record.traces])


def test_the_variants_differ() -> None:
    traces = [h(run(NETWORK, Setting("adamw", "adam", variant)))[-1] for variant in VARIANTS]
    for one, other in itertools.combinations(traces, 2):
        assert np.abs(one - other).max() > 1e-5


# Reductions


def assert_same_traces(p: Problem, settings: list[Setting], **options: Any) -> None:
    """The same trajectories and traces."""
    first, *others = [run(p, s, **options) for s in settings]
    assert np.abs(h(first)[-1]).max() > 1e-3
    for other in others:
        np.testing.assert_allclose(other.log_step_sizes, first.log_step_sizes, rtol=1e-12)
        np.testing.assert_allclose(h(other), h(first), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("order", UPDATE_ORDERS)
def test_lion_with_lion_needs_no_curvature(order: str) -> None:
    assert_same_traces(NETWORK, [Setting("lion", "lion", variant, order) for variant in VARIANTS])


@pytest.mark.parametrize("order", UPDATE_ORDERS)
@pytest.mark.parametrize("base", LR)
def test_with_lion_as_meta_update_the_larger_variants_are_l(base: str, order: str) -> None:
    assert_same_traces(NETWORK, [Setting(base, "lion", variant, order) for variant in VARIANTS[1:]])


def test_without_curvature_2x2_is_hessian_free() -> None:
    settings = [Setting("adamw", "adam", variant) for variant in ("hessian_free", "2x2")]

    def linear(t: int, output: Tensor) -> Tensor:
        return output * (1.0 + t)

    assert_same_traces(LINEAR, settings, loss=linear)


@pytest.mark.parametrize("base", LR)
def test_a_linear_loss_makes_l_hessian_free(base: str) -> None:
    settings = [Setting(base, "adam", variant) for variant in ("hessian_free", "l")]
    assert_same_traces(LINEAR, settings, loss=lambda t, output: output * math.cos(t + 1))


# The unrolled run, by automatic differentiation


def unroll(
    p: Problem, s: Setting, w: list[Tensor], states: list[dict[str, Any]], betas: Iterator[Tensor], steps: range
) -> Iterator[list[Tensor]]:
    """Weights before each of the steps and after the last, differentiable with respect to the log step sizes."""
    base, index = BASE_UPDATES[s.base](), GRANULARITIES[s.granularity](p)
    for t, beta in zip(steps, betas, strict=False):
        yield w
        if not w[0].requires_grad:
            w = [x.requires_grad_() for x in w]
        gradients = torch.autograd.grad(p.loss(t, p.output(t, w)), w, create_graph=True)
        states = [{k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()} for state in states]
        directions = [base.direction(state, g) for state, g in zip(states, gradients, strict=True)]
        states = [{k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()} for state in states]
        w = [
            x
            - beta.exp()[i]
            * (d.numerator.clone() / (1.0 if d.denominator is None else d.denominator) / d.divisor + s.kappa * x)
            for x, d, i in zip(w, directions, index, strict=True)
        ]
    yield w


@pytest.mark.parametrize("base", [base for base in LR if base != "lion"])
def test_l_without_discount_is_forward_mode_differentiation_of_the_run(base: str) -> None:
    s = Setting(base, "adam", "l", gamma=1.0)
    record = run(NETWORK, s)
    moved = torch.as_tensor(np.array(record.log_step_sizes) - record.log_step_sizes[0])
    first = torch.as_tensor(record.log_step_sizes[0]).requires_grad_()
    params = NETWORK.parameters()
    states = [BASE_UPDATES[base]().init(w.detach()) for w in params]
    *_, last = unroll(NETWORK, s, params, states, (first + change for change in moved), range(STEPS))
    weights = torch.cat([w.flatten() for w in last])
    np.testing.assert_allclose(weights.detach(), record.weights[-1], rtol=1e-10)
    jacobian = torch.stack([torch.autograd.grad(x, first, retain_graph=True)[0] for x in weights], dim=1)
    np.testing.assert_allclose(record.traces[-1]["weights"], jacobian, rtol=1e-9, atol=1e-12)


def forward_view(p: Problem, s: Setting, steps: int, first: Array) -> Array:
    """β after ``steps`` steps, if each β_t moves along the gradient of the discounted losses that it will lead to."""
    params = p.parameters()
    base, index = BASE_UPDATES[s.base](), GRANULARITIES[s.granularity](p)
    states = [base.init(w.detach()) for w in params]
    beta = torch.as_tensor(first)
    for t in range(steps):
        held = beta.clone().requires_grad_()
        future = unroll(p, s, [w.detach() for w in params], states, itertools.repeat(held), range(t, steps))
        next(future)
        weight = 1 - s.gamma if t else 1.0  # before the first step there was the initial β for ever
        losses = [
            weight * s.gamma ** (tau - t - 1) * p.loss(tau, p.output(tau, w))
            for tau, w in zip(range(t + 1, steps), future, strict=False)
        ]
        gradient = torch.autograd.grad(sum(losses), held)[0] if losses else torch.zeros_like(beta)
        g = torch.autograd.grad(p.loss(t, p.output(t, params)), params)
        with torch.no_grad():
            for w, state, g_w, i in zip(params, states, g, index, strict=True):
                w.sub_(beta.exp()[i] * (quotient(base.direction(state, g_w)) + s.kappa * w))
        beta = beta - s.eta * gradient
    return beta.numpy()


@pytest.mark.parametrize(("base", "gamma"), [("sgd", 0.9), ("adamw", 0.8), ("sgdm", 1.0)])
def test_the_backward_view_approaches_the_forward_view(base: str, gamma: float) -> None:
    steps = 8
    p = problem(n_hidden=2, steps=steps)
    gaps, moves = [], []
    for meta_lr in (0.04, 0.02, 0.01):
        s = Setting(base, "sgd", "l", gamma=gamma, meta_lr=meta_lr)
        betas = run(p, s, steps).log_step_sizes
        gaps.append(np.abs(betas[-1] - forward_view(p, s, steps, betas[0])).max())
        moves.append(np.abs(betas[-1] - betas[0]).max())
    assert gaps[0] > 1e-9
    assert gaps[-1] < 0.05 * moves[-1]
    for larger, smaller in itertools.pairwise(gaps):
        assert larger / smaller > 3  # second order: one for η itself, one for the difference between the views
    for larger, smaller in itertools.pairwise(moves):
        assert larger / smaller == pytest.approx(2, rel=0.2)


# Stand-ins for the Hessian


def classifier(seed: int = 3) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """A tanh network with 3 outputs on 2 samples: parameters, gradients' graph, loss and output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    params = [normal(4, 3).requires_grad_(), normal(3, 4).requires_grad_(), normal(5).requires_grad_()]
    output = torch.tanh(normal(2, 3) @ params[0].T) @ params[1].T  # the last parameter is not used
    loss = torch.nn.functional.cross_entropy(output, torch.tensor([0, 2]))
    return params, loss, output, normal(2, 4 * 3 + 3 * 4 + 5)


def columns_of(params: list[Tensor], matrix: Tensor) -> list[Tensor]:
    sizes = [p.numel() for p in params]
    return [x.reshape(-1, *p.shape) for p, x in zip(params, matrix.split(sizes, dim=-1), strict=True)]


def explicit(params: list[Tensor], of: Tensor) -> Tensor:
    """Jacobian of a tensor, [numel, n]."""
    rows = [
        torch.autograd.grad(x, params, create_graph=True, allow_unused=True, materialize_grads=True)
        for x in of.flatten()
    ]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def full_gauss_newton(params: list[Tensor], loss: Tensor, output: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(loss, output, create_graph=True)
    jacobian = explicit(params, output)
    return (jacobian.T @ explicit([output], slope) @ jacobian).detach()


def test_products_with_hessian_and_gauss_newton_matrix() -> None:
    params, loss, output, matrix = classifier()
    gradients = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    columns = columns_of(params, matrix)
    flat_gradient = torch.cat([g.flatten() for g in gradients])
    for curvature, expected in [
        (hessian(gradients, params), explicit(params, flat_gradient).detach()),
        (gauss_newton(loss, output, params), full_gauss_newton(params, loss, output)),
    ]:
        products = torch.cat([x.flatten(1) for x in curvature.products(columns)], dim=1)
        torch.testing.assert_close(products, matrix @ expected)
        assert not curvature.is_diagonal


def test_many_columns_are_taken_in_parts() -> None:
    params, loss, _, matrix = classifier()
    gradients = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    curvature = hessian(gradients, params)
    many = curvature.products(columns_of(params, matrix.repeat(50, 1)))
    few = curvature.products(columns_of(params, matrix))
    for x, y in zip(many, few, strict=True):
        torch.testing.assert_close(x, y.repeat(50, *(1,) * (y.dim() - 1)))


def test_the_gauss_newton_diagonal_is_exact() -> None:
    params, loss, output, _ = classifier()
    entries = torch.cat([x.flatten() for x in gauss_newton_diagonal(loss, output, params)])
    torch.testing.assert_close(entries, full_gauss_newton(params, loss, output).diagonal())
    assert bool((entries >= 0).all())


def test_the_gauss_newton_matrix_of_a_linear_model_is_its_hessian() -> None:
    settings = [Setting("adamw", "adam", "2x2", curvature=kind) for kind in ("exact", "gauss_newton")]
    assert_same_traces(LINEAR, settings)


def test_a_diagonal_is_enough_where_no_weight_influences_another() -> None:
    """Of one input at a time, the Hessian is diagonal, and so are all exact traces of a linear model."""
    for variant, order in itertools.product(("l", "2x2"), UPDATE_ORDERS):
        s = Setting("adamw", "adam", variant, order, granularity="weight")
        assert_same_traces(one_input_at_a_time(), [s, replace(s, curvature="diagonal")])


# One step by hand


def one_step(rule: TraceRule, trace: float, curvature: Curvature, **options: Any) -> dict[str, Any]:
    """Traces of a single weight 3, with gradient 2 and step size 0.5, after a step."""
    traces = rule.init_parameter(torch.zeros(1, dtype=torch.float64), 1)
    traces["weights"].fill_(trace)
    meta_traces = rule.init_meta(1)
    parameter = TracedParameter(
        torch.tensor([3.0], dtype=torch.float64),
        torch.tensor([2.0], dtype=torch.float64),
        rule.base.init(torch.zeros(1, dtype=torch.float64)),
        traces,
        0.5,
        torch.tensor(0),
    )
    z = rule.meta_gradients([parameter], 1)
    rule.advance([parameter], MetaStep(dict(rule.meta.init()), z, 0.1, meta_traces, **options), 0.9, curvature)
    return {"z": z.item(), **traces, "log_step_size": meta_traces["log_step_size"]}


SGD = BASE_UPDATES["sgd"](), META_UPDATES["sgd"]()


def entry(value: float) -> Curvature:
    return diagonal([torch.tensor([value], dtype=torch.float64)])


@pytest.mark.parametrize(
    ("clip", "curvature", "factor"),
    [
        (None, 1.0, 0.5),  # 1 − α d
        (None, 6.0, -2.0),
        (None, -2.0, 2.0),
        ((0.0, 1.0), 6.0, 0.0),
        ((0.0, 1.0), -2.0, 1.0),
        ((0.0, 1.0), 1.0, 0.5),
        ((-0.5, 0.5), 6.0, -0.5),
    ],
)
@pytest.mark.parametrize("trace", [4.0, -4.0])
def test_the_decay_factor_can_be_clipped(
    trace: float, clip: tuple[float, float] | None, curvature: float, factor: float
) -> None:
    after = one_step(TraceRule(*SGD, "l", curvature="diagonal", clip=clip), trace, entry(curvature))
    assert after["z"] == 2.0 * trace
    assert after["weights"].item() == pytest.approx(0.9 * factor * trace - 0.5 * 2.0)


def test_a_step_size_that_is_not_updated_keeps_its_trace_but_for_the_discount() -> None:
    rule = TraceRule(*SGD, "2x2", curvature="diagonal")
    moved = one_step(rule, 4.0, entry(1.0))["log_step_size"].item()
    assert moved == pytest.approx(0.9 * (1 - 0.1 * 0.9 * 16.0) + 0.1)  # ∂β'/∂w γ H = −η H d γ H
    resting = one_step(rule, 4.0, entry(1.0), active=torch.tensor([False]))["log_step_size"]
    assert resting.item() == 1.0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("base", "meta"), [("adamw", "adam"), ("rmsprop", "rmsprop"), ("rmsprop_released", "adam")])
def test_weights_without_any_gradient_have_traces_of_zero(base: str, meta: str, variant: str) -> None:
    p = problem(n_hidden=0)
    p.x[:, 1] = 0.0
    record = run(p, Setting(base, meta, variant, granularity="weight", kappa=0.0))
    traces = h(record)[-1]
    assert np.isfinite(traces).all()
    assert np.abs(traces).max() > 1e-3
    assert not traces[:, 1].any()


@pytest.mark.parametrize("variant", EXACT)
def test_a_parameter_may_be_a_single_number(variant: str) -> None:
    rule = TraceRule(BASE_UPDATES["adamw"](), META_UPDATES["adam"](), variant)  # type: ignore[arg-type]
    results = []
    for shape in [(), (1, 1)]:
        w = torch.full(shape, 0.7, dtype=torch.float64, requires_grad=True)
        traces, meta_traces, state = rule.init_parameter(w, 1), rule.init_meta(1), rule.base.init(w.detach())
        for _ in range(3):
            (gradient,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
            parameter = TracedParameter(w, gradient, state, traces, 0.1, torch.tensor(0), 0.2)
            z = rule.meta_gradients([parameter], 1)
            step = MetaStep(dict(rule.meta.init()), z, 0.1, meta_traces)
            rule.advance([parameter], step, 0.9, hessian([gradient], [w]))
            assert traces["weights"].shape == (1, *shape)
        results.append(traces["weights"].flatten())
    assert torch.equal(*results)
    assert abs(results[0].item()) > 1e-3


@pytest.mark.parametrize("base", LR)
def test_advancing_writes_nothing_but_traces(base: str) -> None:
    rule = TraceRule(BASE_UPDATES[base](), META_UPDATES["adam"](), "full")
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    state = rule.base.init(w.detach())
    rule.base.direction(state, torch.tensor([0.3, 0.4]))
    gradients = torch.autograd.grad((w**4).sum(), w, create_graph=True)
    meta_state: dict[str, Any] = {"step": 3.0, "exp_avg": 0.1, "exp_avg_sq": 0.2}
    step = MetaStep(meta_state, torch.ones(1), 0.1, rule.init_meta(1))
    parameter = TracedParameter(w, gradients[0], state, rule.init_parameter(w, 1), 0.1, torch.tensor(0))
    before = copy.deepcopy([w.detach(), gradients[0].detach(), state, meta_state])
    rule.advance([parameter], step, 0.9, hessian(gradients, [w]))
    after = [w.detach(), gradients[0].detach(), state, meta_state]
    torch.testing.assert_close(after, before, rtol=0.0, atol=0.0)
    assert parameter.traces["weights"].dtype == torch.float32


@pytest.mark.parametrize("base", LR)
def test_base_updates_act_element_by_element(base: str) -> None:
    """What exact traces rely on."""
    rule = BASE_UPDATES[base]()
    gradients = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def directions(columns: slice) -> Tensor:
        state = rule.init(gradients[0, columns])
        return torch.stack([quotient(rule.direction(state, g[columns])) for g in gradients])

    pieces = torch.cat([directions(slice(0, 2)), directions(slice(2, 6))], dim=1)
    torch.testing.assert_close(directions(slice(0, 6)), pieces, rtol=0.0, atol=1e-15)


# Memory, and what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "L"}, "unknown trace 'L'. Did you mean 'l'? Known: 2x2, full, l"),
        ({"update_order": "base"}, "unknown order of updates 'base'. Did you mean 'base_first'?"),
        ({"smoothing": 1.0}, "smoothing must be at least 0 and below 1, but is 1.0"),
        ({"clip": (1.0, 0.0)}, "clip must be two finite numbers, the lower first, not (1.0, 0.0)"),
        ({"clip": (0.0, math.inf)}, "clip must be two finite numbers, the lower first, not (0.0, inf)"),
        ({"variant": "full", "curvature": "diagonal"}, 'trace="full" differentiates the Hessian, so it takes'),
        ({"variant": "full", "smoothing": 0.5}, 'trace="full" differentiates the Hessian, so it takes'),
        ({"variant": "full", "clip": (0.0, 1.0)}, 'trace="full" differentiates the Hessian, so it takes'),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        TraceRule(*SGD, **options)
    assert str(refused.value).startswith(message)


def test_missing_curvature_is_refused() -> None:
    with pytest.raises(ValueError, match='trace="full" needs third derivatives: use curvature="exact"'):
        one_step(TraceRule(*SGD, "full"), 1.0, Curvature(lambda columns: columns))


def test_a_missing_output_is_refused() -> None:
    params, loss, output, _ = classifier()
    gradients = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
    with pytest.raises(ValueError, match=r"unknown curvature 'exakt'\. Did you mean 'exact'\?"):
        make_curvature("exakt", params, gradients, loss)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"needs the network's output: let the closure return \(loss, output\)$"):
        make_curvature("gauss_newton", params, gradients, loss)
    with pytest.raises(ValueError, match='curvature="diagonal" needs the network\'s output'):
        make_curvature("diagonal", params, gradients, loss)
    assert make_curvature("diagonal", params, gradients, loss, output).is_diagonal


@pytest.mark.parametrize("variant", EXACT)
@pytest.mark.parametrize("curvature", ["exact", "diagonal"])
@pytest.mark.parametrize("base", LR)
def test_memory_is_what_is_kept(base: str, curvature: str, variant: str) -> None:
    if variant == "full" and curvature == "diagonal":
        return
    smoothing = 0.0 if variant == "full" else 0.5
    rule = TraceRule(BASE_UPDATES[base](), META_UPDATES["adam"](), variant, curvature=curvature, smoothing=smoothing)  # type: ignore[arg-type]
    params = [torch.zeros(3, 2), torch.zeros(5, dtype=torch.float64)]
    traces = [*(rule.init_parameter(p, 4) for p in params), rule.init_meta(4)]
    tensors = [x for kept in traces for x in kept.values() if isinstance(x, Tensor)]
    assert memory_needed(rule, params, 4) == sum(x.numel() * x.element_size() for x in tensors)
