"""MetaOptimize against formulas, torch.optim, numbers worked out by hand, and the habits of torch optimizers."""

import copy
import io
import pickle
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual_metaopt.optim import base_updates
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.dynamic_parameters import follow_parameters
from continual_metaopt.optim.metaoptimize import LONG_TRACE, TRACE, MetaOptimize, NonFiniteMetaGradient
from continual_metaopt.optim.reference import MetaOptimize as PlainMetaOptimize

from . import reference

# Step sizes at which the problem below moves, but does not blow up.
LR = {
    "sgd": 0.05,
    "sgdm": 0.02,
    "rmsprop": 0.02,
    "adamw": 0.02,
    "lion": 0.02,
    "sgdm_released": 0.1,
    "rmsprop_released": 0.02,
    "adamw_released": 0.01,
}
META_LR = {"sgd": 0.05, "rmsprop": 0.05, "adam": 0.05, "lion": 0.05, "rmsprop_released": 0.05, "adam_released": 0.01}
BLOCKS = ["first", "second"]
VARIANTS: dict[str, dict[str, Any]] = {
    "auto": {"gamma": "auto"},
    "dutch": {"trace": "dutch"},
    "both": {"gamma": "auto", "trace": "dutch"},
}
# Every base and every meta update at least once.
PAIRS = [
    ("sgd", "sgd"),
    ("sgdm", "rmsprop"),
    ("rmsprop", "lion"),
    ("adamw", "adam"),
    ("lion", "lion"),
    ("sgdm_released", "rmsprop_released"),
    ("rmsprop_released", "adam_released"),
    ("adamw_released", "adam_released"),
]


def parameters(*values: Any, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.as_tensor(value, dtype=dtype).clone()) for value in values]


def step(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], *gradients: Any) -> None:
    """One step with given gradients; None means that the parameter has none."""
    for p, g in zip(params, gradients, strict=True):
        p.grad = None if g is None else torch.as_tensor(g, dtype=p.dtype).expand(p.shape).clone()
    optimizer.step()


def step_size(optimizer: MetaOptimize, block: str = "group0") -> float:
    return float(optimizer.step_size_report()[block])


class Problem:
    """A two-layer network and a new sample at each step; its two layers are the two groups."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        rng = np.random.default_rng(4)
        shapes = [[(3, 4), (4,)], [(4, 2), (2,), ()]]
        self.initial = [[rng.normal(0.0, 0.6, shape) for shape in group] for group in shapes]
        self.initial[1][2] = np.array(1.3)
        self.x = rng.normal(0.5, 1.0, (60, 3))
        self.y = rng.normal(1.0, 2.0, (60, 2))
        self.dtype = dtype
        self.params = [parameters(*group, dtype=dtype) for group in self.initial]

    def flat(self) -> list[nn.Parameter]:
        return [p for group in self.params for p in group]

    def loss(self, t: int) -> Tensor:
        (w1, b1), (w2, b2, s) = self.params
        x, y = (torch.as_tensor(a[t], dtype=self.dtype) for a in (self.x, self.y))
        return 0.5 * (s * (torch.tanh(x @ w1 + b1) @ w2) + b2 - y).square().sum()

    def run(self, optimizer: torch.optim.Optimizer, steps: range, without: Collection[str] = ()) -> None:
        """Take steps; the parameters of the blocks `without` get no gradient."""
        for t in steps:
            optimizer.zero_grad()
            self.loss(t).backward()
            for name, group in zip(BLOCKS, self.params, strict=True):
                for p in group if name in without else ():
                    p.grad = None
            optimizer.step()

    def gradient(self, t: int, weights: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        return reference.network_gradient(self.x[t], self.y[t], weights)


def learner(problem: Problem, base: str, meta: str, step_sizes: str = "group", /, **options: Any) -> MetaOptimize:
    groups = [{"params": ps, "name": name} for ps, name in zip(problem.params, BLOCKS, strict=True)]
    settings = {"base": base, "meta": meta, "meta_lr": META_LR[meta], "gamma": 0.9, "step_sizes": step_sizes}
    return MetaOptimize(groups, LR[base], **settings | options)


def learned(problem: Problem, optimizer: MetaOptimize) -> list[Tensor]:
    """All that a step changes and a user can see: weights, traces and step sizes."""
    reports = [optimizer.step_size_report(), *optimizer.meta_parameter_report().values()]
    report = [torch.as_tensor(value, dtype=torch.float64) for values in reports for value in values.values()]
    traces = [
        v for p in problem.flat() for k, v in optimizer.state[p].items() if k.startswith("trace") and "state" not in k
    ]
    return [tensor.detach().clone() for tensor in (*problem.flat(), *traces)] + report


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def assert_same_state(left: dict[str, Any], right: dict[str, Any]) -> None:
    """The same entries in two parameters' states."""
    assert left.keys() == right.keys()
    assert_same([torch.as_tensor(v) for v in left.values()], [torch.as_tensor(right[key]) for key in left])


# The formulas


# Several learned things at once, for every base with a momentum to learn, and both parametrisations of the step size.
BEYOND_STEP_SIZES: list[tuple[str, str, str, str, dict[str, Any]]] = [
    (base, meta, step_sizes, order, {"learn": learn, "parametrisation": parametrisation})
    for base, meta, step_sizes, order, learn, parametrisation in [
        ("sgdm", "adam", "group", "base_first", ("lr", "weight_decay", "momentum"), "log"),
        # AdamW's first step does not depend on ρ, so that z is a rounding error then, which Adam would normalise
        ("adamw", "sgd", "scalar", "meta_first", ("lr", "weight_decay", "momentum"), "log"),
        ("adamw", "rmsprop_released", "weight", "base_first", ("momentum",), "log"),
        ("sgdm_released", "sgd", "node", "meta_first", ("momentum", "weight_decay"), "log"),
        ("adamw_released", "adam_released", "tensor", "base_first", ("lr", "momentum"), "log"),
        ("adamw_released", "rmsprop_released", "weight", "meta_first", ("lr", "weight_decay", "momentum"), "linear"),
        ("lion", "adam", "node", "base_first", ("weight_decay",), "log"),
        ("rmsprop", "lion", "group", "base_first", ("lr", "weight_decay"), "linear"),
        ("sgd", "adam", "weight", "meta_first", ("lr",), "linear"),
    ]
]

# Two horizons and revised weights, together in all ways, and each alone or in one of two blocks.
TWO_HORIZONS: list[tuple[str, str, str, str, dict[str, Any]]] = [
    (*(("sgdm", "rmsprop") if i % 4 in (0, 3) else ("adamw", "adam")), step_sizes, order, options)
    for i, (step_sizes, order, options) in enumerate(
        [
            (step_sizes, order, {"parametrisation": parametrisation, "trace": "dutch", "gammas": ("auto", "auto")})
            for step_sizes in ("scalar", "group", "tensor", "node", "weight")
            for order in ("base_first", "meta_first")
            for parametrisation in ("log", "linear")
        ]
        + [
            ("group", "base_first", {"gammas": ("auto", "auto")}),
            ("weight", "meta_first", {"gammas": ("auto", "auto"), "parametrisation": "linear"}),
            ("scalar", "meta_first", {"trace": "dutch"}),
            ("node", "base_first", {"trace": "dutch", "parametrisation": "linear"}),
            ("group", "meta_first", {"trace": "dutch", "gammas": ("auto", 0.8)}),
            ("tensor", "base_first", {"trace": "dutch", "gammas": ("auto", 0.8), "parametrisation": "linear"}),
        ]
    )
]


@pytest.mark.parametrize(
    ("base", "meta", "step_sizes", "order", "options"),
    [
        pytest.param(*(base, meta, step_sizes, order, {}), marks=() if (base, meta) in PAIRS else pytest.mark.slow)
        for base in reference.BASES
        for meta in reference.METAS
        for step_sizes in ("scalar", "group", "tensor", "node", "weight", "mixed")
        for order in ("base_first", "meta_first")
    ]
    + BEYOND_STEP_SIZES
    + TWO_HORIZONS,
)
def test_every_pair_follows_the_formulas(
    base: str, meta: str, step_sizes: str, order: str, options: dict[str, Any]
) -> None:
    linear = options.get("parametrisation") == "linear"
    gammas = options.get("gammas", (0.9, 0.8))
    options = {name: value for name, value in options.items() if name != "gammas"}
    eta = META_LR[meta] * (LR[base] if linear else 1)  # Δβ is in units of the step size then
    eta /= 4 if "auto" in gammas else 1  # so that linear step sizes stay off their bounds
    first = {"lr": LR[base], "weight_decay": 0.01, "gamma": gammas[0], "meta_lr": eta}
    second = first | {"weight_decay": 0.1, "gamma": gammas[1]}
    if step_sizes != "scalar":
        second |= {"lr": 0.7 * LR[base], "meta_lr": 1.5 * eta}
    elif "weight_decay" in options.get("learn", ()):
        second |= {"weight_decay": 0.01}  # as it is shared
    granularities = ("scalar", "weight") if step_sizes == "mixed" else (step_sizes, step_sizes)
    problem = Problem()
    expected = reference.trajectory(
        problem.gradient,
        [
            reference.Block(weights, granularity=granularity, **settings)
            for weights, granularity, settings in zip(problem.initial, granularities, (first, second), strict=True)
        ],
        base,
        meta,
        steps=8,
        meta_first=order == "meta_first",
        linear=linear,
        learn=options.get("learn", ("lr",)),
        dutch=options.get("trace") == "dutch",
    )
    groups = [
        {"params": params, "name": name, "step_sizes": granularity} | settings
        for params, name, granularity, settings in zip(
            problem.params, BLOCKS, granularities, (first, second), strict=True
        )
    ]
    whole = "group" if step_sizes == "mixed" else step_sizes
    optimizer = MetaOptimize(groups, base=base, meta=meta, step_sizes=whole, update_order=order, **options)

    for t, moment in enumerate(expected):
        problem.run(optimizer, range(t, t + 1))
        for b, group in enumerate(problem.params):
            for p, w in zip(group, moment.weights[b], strict=True):
                np.testing.assert_allclose(p.detach(), w, rtol=1e-12, atol=1e-13)
            for kind, traces in moment.traces.items():
                for p, h in zip(group, traces[b], strict=True):
                    np.testing.assert_allclose(optimizer.state[p][TRACE[kind]], h, rtol=1e-11, atol=1e-13)
            several = granularities[b] in ("tensor", "node", "weight")
            for i, p in enumerate(group):
                state = optimizer.state[p]
                assert (LONG_TRACE in state) == (gammas[b] == "auto")
                if gammas[b] == "auto":
                    np.testing.assert_allclose(state[LONG_TRACE], moment.long_traces[b][i], rtol=1e-11, atol=1e-13)
                    record = state if several else optimizer.param_groups[0 if step_sizes == "scalar" else b]
                    sizes = record["learned"]["typical_sizes"]
                    known = moment.typical_sizes[(b, i) if several else "all" if step_sizes == "scalar" else b]
                    np.testing.assert_allclose(sizes["short_size"], known["short"], rtol=1e-11, atol=1e-13)
                    np.testing.assert_allclose(sizes["long_size"], known["long"], rtol=1e-11, atol=1e-13)
            for kind, values in moment.values.items():
                if several and kind in moment.traces:
                    every = torch.cat([torch.as_tensor(value).flatten() for value in values[b]])
                    means = logit_mean(every) if kind == "momentum" else every.log().mean().exp()
                    np.testing.assert_allclose(optimizer.param_groups[b][kind], means, rtol=1e-12)
                    name = BLOCKS[b]
                    report = optimizer.meta_parameter_report().get(name, {}) | {
                        "lr": optimizer.step_size_report()[name]
                    }
                    np.testing.assert_allclose(report[kind], every, rtol=1e-12)
                else:
                    np.testing.assert_allclose(optimizer.param_groups[b][kind], values[b][0], rtol=1e-12)
        if moment.meta_gradients:
            reported = sum(optimizer.meta_gradient_report().values())
            assert reported == pytest.approx(sum(z.sum() for z in moment.meta_gradients.values()), rel=1e-10, abs=1e-12)
    assert list(optimizer.step_size_report()) == (["all"] if step_sizes == "scalar" else BLOCKS)

    # The comparison says something only if all values moved, and is fair only if no sign hangs on a rounding error.
    for kind in expected[0].traces:
        for b in range(2):
            start, end = (np.concatenate([np.ravel(v) for v in m.values[kind][b]]) for m in (expected[0], expected[-1]))
            assert np.abs(end / start - 1).max() > 1e-4
    assert min(moment.sign_margin for moment in expected) > 1e-9


@pytest.mark.parametrize(("base", "meta"), PAIRS)
def test_the_plain_version_to_read_first_is_the_same(base: str, meta: str) -> None:
    problem = Problem()
    (block,) = problem.params[:1]
    plain = PlainMetaOptimize(problem.initial[0], LR[base], base, meta, eta=META_LR[meta], gamma=0.9, kappa=0.1)
    settings = {"base": base, "meta": meta, "meta_lr": META_LR[meta], "gamma": 0.9, "weight_decay": 0.1}
    optimizer = MetaOptimize(block, LR[base], **settings)
    for t in range(8):
        gradients = [np.cos(t + w) for w in plain.w]
        step(optimizer, block, *gradients)
        plain.step(gradients)
        for p, w, h in zip(block, plain.w, plain.h, strict=True):
            np.testing.assert_allclose(p.detach(), w, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(optimizer.state[p]["trace"], h, rtol=1e-11, atol=1e-13)
        assert step_size(optimizer) == pytest.approx(plain.alpha, rel=1e-12)
    assert plain.alpha != pytest.approx(LR[base], rel=1e-3)


def logit_mean(values: Tensor) -> Tensor:
    return values.logit().mean().sigmoid()


@pytest.mark.parametrize(
    ("base", "torch_class", "options", "weight_decay"),
    [
        ("adamw", torch.optim.AdamW, {}, 0.01),
        ("sgd", torch.optim.SGD, {}, 0.0),
        ("sgdm", torch.optim.SGD, {"momentum": 0.9}, 0.0),
        ("rmsprop", torch.optim.AdamW, {"betas": (0.0, 0.999)}, 0.01),
    ],
)
@pytest.mark.parametrize("schedule", [None, lambda t: 0.97**t], ids=["constant", "LambdaLR"])
@pytest.mark.parametrize("step_sizes", ["scalar", "group"])
def test_meta_lr_zero_is_torch_bit_for_bit(
    base: str,
    torch_class: type,
    options: dict[str, Any],
    weight_decay: float,
    schedule: Callable[[int], float] | None,
    step_sizes: str,
) -> None:
    def weights_after(make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]) -> tuple[list[Tensor], Any]:
        problem = Problem(torch.float32)
        lrs = (0.01, 0.003 if step_sizes == "group" else 0.01)
        optimizer = make([{"params": ps, "lr": lr} for ps, lr in zip(problem.params, lrs, strict=True)])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) if schedule else None
        for t in range(50):
            problem.run(optimizer, range(t, t + 1))
            if scheduler:
                scheduler.step()
        return problem.flat(), optimizer

    ours, optimizer = weights_after(
        lambda groups: MetaOptimize(groups, base=base, meta_lr=0, weight_decay=weight_decay, step_sizes=step_sizes)
    )
    theirs, _ = weights_after(lambda groups: torch_class(groups, weight_decay=weight_decay, **options))
    assert_same(ours, theirs)
    assert not any("trace" in optimizer.state[p] for p in ours)


def test_one_group_may_learn_beside_one_that_does_not() -> None:
    problem = Problem()
    groups = [{"params": problem.params[0], "meta_lr": 0.0}, {"params": problem.params[1]}]
    optimizer = MetaOptimize(groups, 0.02, base="sgd", meta="lion", meta_lr=0.05)
    problem.run(optimizer, range(5))
    report = optimizer.step_size_report()
    assert list(report) == ["group0", "group1"]
    assert report["group0"] == 0.02
    assert report["group1"] != 0.02


# {(base, meta, η): [(gradients, then weights, traces and step size after the step), …]}
# Two weights, w = (2, −1), κ = 0.5, γ = 0.9, α = 0.1. The decay in the trace is γ (1 − κα) = 0.9 · 0.95 = 0.855. The
# first meta gradient is 0, as h is, so α changes in step 2 first. 1.999 = 1 + λ comes from μ₂ = (1 − λ) / (1 − λ²).
BY_HAND = {
    # Step 1: Δw = 0.1 · (1 + 1, 2 − 0.5) = (0.2, 0.15).
    # Step 2: z = −0.2·3 + −0.15·−1 = −0.45;  Δw = 0.1 · (3 + 0.9, −1 − 0.575) = (0.39, −0.1575);
    #         h = 0.855 · (−0.2, −0.15) − Δw = (−0.171 − 0.39, −0.12825 + 0.1575);  α = 0.1 exp(0.5 · 0.45).
    ("sgd", "sgd", 0.5): [
        ((1, 2), (1.8, -1.15), (-0.2, -0.15), 0.1),
        ((3, -1), (1.41, -0.9925), (-0.561, 0.02925), 0.1252322716),
    ],
    # Step 1: Δw = 0.1 · (1 + 1, 1 − 0.5) = (0.2, 0.05), as m/(1 − 0.9) = g.
    # Step 2: m = 0.09 · (3, 2) + 0.1 · (3, −2) = (0.57, −0.02), /0.19 = (3, −2/19), / |g| = (1, −1/19);
    #         Δw = 0.1 · (1 + 0.9, −1/19 − 0.525) = (0.19, −0.05776316);  z = −0.5;
    #         h = (−0.171 − 0.19, −0.04275 + 0.05776316);
    #         m̄ = −0.05 / 0.19;  v̄ = 0.25 / 1.999;  α = 0.1 exp(0.1 · 0.1/0.19 · sqrt(1.999)).
    ("adamw", "adam", 0.1): [
        ((3, 2), (1.8, -1.05), (-0.2, -0.05), 0.1),
        ((3, -2), (1.61, -0.9922368421), (-0.361, 0.0150131579), 0.1077252354),
    ],
    # The second gradient of the second weight tells the old momentum from the new one in the base:
    # 0.9 · 0.02 − 0.1 · 0.17 = 0.001 > 0, but with 0.99 · 0.02 − 0.01 · 0.17 = 0.0181: 0.01629 − 0.017 < 0.
    # Step 1: Δw = 0.1 · (1 + 1, 1 − 0.5) = (0.2, 0.05);  m = 0.01 · (1, 2).
    # Step 2: z = −0.2·3 + 0.05·0.17 = −0.5915;  Δw = 0.1 · (1 + 0.9, 1 − 0.525) = (0.19, 0.0475);
    #         h = (−0.171 − 0.19, −0.04275 − 0.0475);  α = 0.1 exp(0.1);  m̄ = −0.005915.
    # Step 3: z = 0.361·0.12 + 0.09025·0.08 = 0.05054; 0.9 · −0.005915 + 0.1 · 0.05054 = −0.0002695 < 0 (with the new
    #         m̄ = −0.00535045 it would be 0.0002386 > 0): α = 0.1 exp(0.2).
    #         m = 0.99 · (0.01, 0.02) + 0.01 · (3, −0.17) = (0.0399, 0.0181);  0.9 m + 0.1 g > 0 for the first weight
    #         (0.03591 − 0.012) and the second (0.01629 − 0.008);  Δw = 0.1 exp(0.1) · (1 + 0.805, 1 − 0.54875);
    #         h = 0.9 (1 − 0.05 exp(0.1)) · (−0.361, −0.09025) − Δw.
    ("lion", "lion", 0.1): [
        ((1, 2), (1.8, -1.05), (-0.2, -0.05), 0.1),
        ((3, -0.17), (1.61, -1.0975), (-0.361, -0.09025), 0.1105170918),
        ((-0.12, -0.08), (1.4105166493, -1.1473708377), (-0.5064298491, -0.1266074623), 0.1221402758),
    ],
    # Step 1: m = g, v = g²: Δw = (0.2, 0.05).
    # Step 2: m = 0.9 · (3, 2) + (3, −2) = (5.7, −0.2), / |g| = (1.9, −0.1);  Δw = 0.1 · (1.9 + 0.9, −0.1 − 0.525);
    #         z = −0.5;  h = (−0.171 − 0.28, −0.04275 + 0.0625);  m̄ = −0.5, v̄ = 0.25: α = 0.1 exp(0.1 sqrt(1.999)).
    ("adamw_released", "adam_released", 0.1): [
        ((3, 2), (1.8, -1.05), (-0.2, -0.05), 0.1),
        ((3, -2), (1.52, -0.9875), (-0.451, 0.01975), 0.1151869180),
    ],
}


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: "-".join(case[:2]))
def test_steps_worked_out_by_hand(case: tuple[str, str, float]) -> None:
    base, meta, meta_lr = case
    params = parameters([2.0], [-1.0])
    optimizer = MetaOptimize(params, 0.1, base=base, meta=meta, meta_lr=meta_lr, gamma=0.9, weight_decay=0.5)
    for gradients, weights, traces, expected_step_size in BY_HAND[case]:
        step(optimizer, params, *gradients)
        # Epsilons weigh up to ε / |z| = 2e-8 here, and the literals have ten decimals.
        assert [p.item() for p in params] == pytest.approx(weights, rel=1e-7)
        assert [optimizer.state[p]["trace"].item() for p in params] == pytest.approx(traces, rel=1e-6)
        assert step_size(optimizer) == pytest.approx(expected_step_size, rel=1e-7)


# How the forms and limits of the algorithm relate


def test_adamw_follows_its_released_form() -> None:
    """α_torch = 10 α_released, κ_torch = κ_released / 10, η_torch = 10 η_released.

    The released form does not correct the first moment for its start at zero. 300 steps without gradient make that
    correction 1 − 0.9³⁰⁰ = 1 − 2e-14. Epsilon weighs less than 1e-7, as gradients are near 100: the corrected root of
    the second moment is above sqrt(0.001) · 100 then, and that of the meta gradient above 0.03 · 0.1.
    """
    target = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
    runs = []
    for lr, options in (
        (0.01, {"base": "adamw", "meta": "adam", "weight_decay": 0.1, "meta_lr": 0.1}),
        (0.001, {"base": "adamw_released", "meta": "adam_released", "weight_decay": 1.0, "meta_lr": 0.01}),
    ):
        (p,) = params = parameters(torch.full((6,), 2.0))
        optimizer = MetaOptimize(params, lr, gamma=0.9, **options)
        start = step_size(optimizer)
        history = []
        for t in range(340):
            step(optimizer, params, 0.0 if t < 300 else 100 * (p.detach() - target * np.cos(t / 3)))
            history.append(torch.cat([p.detach(), torch.tensor([step_size(optimizer) / start])]))
        runs.append(torch.stack(history))
    assert abs(runs[0][-1, -1].log()) > 0.1
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("meta", reference.METAS)
@pytest.mark.parametrize("base", reference.BASES)
def test_zero_gradients_decay_weights_and_teach_nothing(base: str, meta: str) -> None:
    params = parameters([2.0, -1.0], 3.0)
    optimizer = MetaOptimize(params, 0.1, base=base, meta=meta, meta_lr=0.1, gamma=0.9, weight_decay=0.5)
    for t in range(1, 4):
        step(optimizer, params, 0.0, 0.0)
        np.testing.assert_allclose(params[0].detach(), np.array([2.0, -1.0]) * 0.95**t, rtol=1e-14)
        # h ← 0.9 · 0.95 h − 0.05 w
        expected = -0.05 * 3 * 0.95 ** (t - 1) * sum(0.9**k for k in range(t))
        assert optimizer.state[params[1]]["trace"].item() == pytest.approx(expected, rel=1e-14)
        assert step_size(optimizer) == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize("meta", reference.METAS)
def test_step_sizes_stay_in_bounds_and_come_back(meta: str) -> None:
    params = parameters(1.0)
    optimizer = MetaOptimize(
        params, 0.1, base="sgd", meta=meta, meta_lr=2.0, gamma=0.0, weight_decay=0.0, lr_bounds=(0.05, 0.2)
    )
    within = pytest.approx(0.125, abs=0.075 + 1e-12)
    for _ in range(20):  # the same gradient again and again: larger steps would have been better
        step(optimizer, params, 10.0)
        assert step_size(optimizer) == within
    assert step_size(optimizer) == pytest.approx(0.2, rel=1e-12)
    for t in range(60):  # back and forth: smaller ones
        step(optimizer, params, 10.0 * (-1) ** t)
        assert step_size(optimizer) == within
    assert step_size(optimizer) == pytest.approx(0.05, rel=1e-12)
    for _ in range(60):
        step(optimizer, params, 10.0)
    assert step_size(optimizer) == pytest.approx(0.2, rel=1e-12)


def test_the_bound_does_not_store_up_what_it_cut_off() -> None:
    params = parameters(1.0)
    optimizer = MetaOptimize(
        params, 0.1, base="sgd", meta="sgd", meta_lr=1.0, gamma=0.0, weight_decay=0.0, lr_bounds=(0.05, 0.2)
    )
    for gradient in (1.0, 100.0, 100.0, 100.0, 1.0):
        step(optimizer, params, gradient)
    assert step_size(optimizer) == pytest.approx(0.2, rel=1e-12)
    # h = −0.2 · 1, z = −0.2 · −1 = 0.2
    step(optimizer, params, -1.0)
    assert step_size(optimizer) == pytest.approx(0.2 * np.exp(-0.2), rel=1e-12)


# The habits of torch optimizers


@pytest.mark.parametrize(("base", "meta"), PAIRS)
def test_a_parameter_without_gradient_is_left_alone(base: str, meta: str) -> None:
    params, others = parameters([2.0, -1.0], [0.5]), parameters([2.0, -1.0], [0.5])
    together = MetaOptimize(params, 0.05, base=base, meta=meta, meta_lr=0.05, gamma=0.9)
    alone = MetaOptimize(others[:1], 0.05, base=base, meta=meta, meta_lr=0.05, gamma=0.9)
    for g in ([1.0, -2.0], [2.0, -1.0], [0.5, 1.0]):
        step(together, params, g, None)
        step(alone, others[:1], g)
    assert params[1].item() == 0.5
    assert not together.state.get(params[1])
    assert torch.equal(params[0], others[0])
    assert step_size(together) == step_size(alone)

    step(together, params, [1.0, 1.0], [3.0])
    state = copy.deepcopy(together.state[params[1]])
    weight = params[1].item()
    step(together, params, [1.0, 1.0], None)
    assert params[1].item() == weight
    assert_same_state(together.state[params[1]], state)


@pytest.mark.parametrize("meta", reference.METAS)
@pytest.mark.parametrize("without", [BLOCKS, BLOCKS[1:]], ids="-".join)
def test_a_block_without_any_gradient_is_left_alone(meta: str, without: list[str]) -> None:
    """Weights, traces, step size and meta momentum: nothing was seen from which anything could be learned."""
    problem = Problem()
    optimizer = learner(problem, "adamw", meta)
    problem.run(optimizer, range(5))
    before, optimizer_before = copy.deepcopy((problem, optimizer))
    problem.run(optimizer, range(5, 6), without)
    for b in map(BLOCKS.index, without):
        assert_same(problem.params[b], before.params[b])
        for p, q in zip(problem.params[b], before.params[b], strict=True):
            assert_same_state(optimizer.state[p], optimizer_before.state[q])
    unchanged, expected = optimizer.step_size_report(), optimizer_before.step_size_report()
    assert [unchanged[name] for name in without] == [expected[name] for name in without]


@pytest.mark.parametrize("step_sizes", ["scalar", "group"])
def test_writing_lr_rescales_the_step_size(step_sizes: str) -> None:
    problem = Problem()
    optimizer = learner(problem, "sgd", "lion", step_sizes)
    for group in optimizer.param_groups:
        group["lr"] = 0.0123  # nothing learned yet: exact
    assert set(optimizer.step_size_report().values()) == {0.0123}

    problem.run(optimizer, range(6))
    before = optimizer.step_size_report()
    assert all(abs(value / 0.0123 - 1) > 0.01 for value in before.values())
    before_step = [p.detach().clone() for p in problem.flat()]
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    after = optimizer.step_size_report()
    assert {name: float(value) / float(before[name]) for name, value in after.items()} == pytest.approx(
        dict.fromkeys(before, 0.5), rel=1e-12
    )
    # and the step is taken with it
    problem.run(optimizer, range(6, 7))
    for group, w in zip(optimizer.param_groups, (before_step[0], before_step[2]), strict=True):
        p = group["params"][0]
        alpha = float(after[group["name"] if step_sizes == "group" else "all"])
        torch.testing.assert_close(p.detach(), w - alpha * (p.grad + 0.01 * w), rtol=1e-12, atol=1e-14)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# Every rule and every kind of learned value, with each granularity; how a state is carried does not depend on them.
RESUMED: list[tuple[str, str, str, dict[str, Any]]] = [
    *((*pair, ("scalar", "group", "tensor", "node", "weight")[i % 5], {}) for i, pair in enumerate(PAIRS)),
    *(
        ("adamw", "adam", step_sizes, options)
        for options in VARIANTS.values()
        for step_sizes in ("scalar", "group", "node")
    ),
    *(
        ("sgdm", "adam", step_sizes, {"learn": ("lr", "weight_decay", "momentum"), "weight_decay": 0.1})
        for step_sizes in ("scalar", "weight")
    ),
    *(("adamw", "adam", each, {"learn": ("momentum",), "meta_every": 2}) for each in ("group", "tensor")),
]


@pytest.mark.parametrize(("carry", "dtype"), [(copy.deepcopy, torch.float32), (through_a_file, torch.float64)])
@pytest.mark.parametrize(("base", "meta", "step_sizes", "options"), RESUMED)
def test_state_dict_continues_bit_for_bit(
    base: str,
    meta: str,
    step_sizes: str,
    options: dict[str, Any],
    carry: Callable[[dict[str, Any]], dict[str, Any]],
    dtype: torch.dtype,
) -> None:
    problem, resumed = Problem(dtype), Problem(dtype)
    optimizer = learner(problem, base, meta, step_sizes, **options)
    problem.run(optimizer, range(6))

    # What was configured comes from the state as well, as in torch.
    other = learner(resumed, base, meta, step_sizes, **{"gamma": 0.5, "meta_lr": 0.3, "weight_decay": 0.2} | options)
    other.load_state_dict(carry(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(problem.flat(), resumed.flat(), strict=True):
            q.copy_(p)
    assert_same(learned(resumed, other), learned(problem, optimizer))
    problem.run(optimizer, range(6, 12))
    resumed.run(other, range(6, 12))
    assert_same(learned(resumed, other), learned(problem, optimizer))


GROWING = [VARIANTS["both"], {"learn": ("lr", "weight_decay", "momentum"), "meta_every": 2}]


@pytest.mark.parametrize("options", GROWING, ids=str)
@pytest.mark.parametrize("granularity", ["group", "tensor", "node", "weight"])
def test_a_growing_head_keeps_what_is_known_of_its_old_part(granularity: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = MetaOptimize(blocks(model, "layerwise"), 0.01, step_sizes=granularity, meta_lr=0.1, **options)

    def learn() -> None:
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()

    learn()
    old, before = dict(model.named_parameters()), copy.deepcopy(optimizer.state[model[2].weight])
    of_group = copy.deepcopy(optimizer.param_groups[1]["learned"])
    model[2] = nn.Linear(4, 5)
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    now = optimizer.state[model[2].weight]
    assert now["trace"].shape == now["exp_avg"].shape == (5, 4)
    if granularity != "group":
        shape = {"tensor": (), "node": (5, 1), "weight": (5, 4)}[granularity]
        assert {now["learned"][key].shape for key in ("log_ratio", *({"pending"} & now["learned"].keys()))} == {shape}
        head = optimizer.step_size_report()["2"]
        assert isinstance(head, Tensor)
        if granularity != "tensor":
            reference_value = optimizer.param_groups[1]["learned"]["reference"]
            assert head[-1].item() == pytest.approx(reference_value, rel=1e-6) == 0.01
    assert_grown(before, now)
    assert optimizer.param_groups[1]["learned"] == of_group
    learn()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(torch.as_tensor(report).isfinite().all() for report in optimizer.step_size_report().values())


def assert_grown(before: Any, now: Any) -> None:
    """The old part as it was, and zero in the new one."""
    if isinstance(before, dict):
        assert before.keys() == now.keys()
        for key, value in before.items():
            assert_grown(value, now[key])
    elif isinstance(before, Tensor) and now.shape != before.shape:
        assert now[: len(before)].equal(before)
        assert not now[len(before) :].any()
    else:
        assert torch.equal(torch.as_tensor(before), torch.as_tensor(now))


@pytest.mark.parametrize(
    ("base", "meta", "named"),
    [("sgd", "adam", "SGD"), ("adamw", "lion", "Lion"), ("adamw_released", "adam", "AdamWReleased")],
)
def test_the_state_of_another_rule_is_refused(base: str, meta: str, named: str) -> None:
    problem, other = Problem(), Problem()
    optimizer = learner(problem, "adamw", "adam")
    problem.run(optimizer, range(3))
    with pytest.raises(ValueError, match=named):
        learner(other, base, meta).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("step_sizes", ["scalar", "group"])
@pytest.mark.parametrize(("base", "meta"), PAIRS)
def test_copies_continue_on_their_own(base: str, meta: str, step_sizes: str, clone: Callable[[Any], Any]) -> None:
    problem = Problem()
    optimizer = learner(problem, base, meta, step_sizes)
    problem.run(optimizer, range(5))
    before = learned(problem, optimizer)
    twin, twin_optimizer = clone((problem, optimizer))
    twin.run(twin_optimizer, range(5, 10))
    assert_same(learned(problem, optimizer), before)
    problem.run(optimizer, range(5, 10))
    assert_same(learned(twin, twin_optimizer), learned(problem, optimizer))


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned() -> None:
    problem, other = Problem(), Problem()
    optimizer, other_optimizer = learner(problem, "adamw", "adam"), learner(other, "adamw", "adam")
    for t in range(4):
        expected = problem.loss(t).item()

        def closure(t: int = t) -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(t)
            loss.backward()
            return loss

        assert optimizer.step(closure).item() == expected
    other.run(other_optimizer, range(4))
    assert_same(learned(problem, optimizer), learned(other, other_optimizer))
    assert optimizer.step() is None


@pytest.mark.parametrize(("base", "meta"), PAIRS)
def test_memory_layout_does_not_matter_and_is_kept(base: str, meta: str) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    strided = torch.zeros(4, 12, dtype=torch.float64)[:, ::2].copy_(values)
    layouts = [values.clone(), values.t().contiguous().t(), strided]
    assert [layout.is_contiguous() for layout in layouts] == [True, False, False]
    results = []
    gradients = torch.randn(6, 4, 6, generator=generator, dtype=torch.float64)
    for layout in layouts:
        p = nn.Parameter(layout)
        stride, pointer = p.stride(), p.data_ptr()
        optimizer = MetaOptimize([p], 0.02, base=base, meta=meta, meta_lr=0.05, gamma=0.9)
        for g in gradients:
            step(optimizer, [p], g)
        assert (p.stride(), p.data_ptr()) == (stride, pointer)
        results.append((p.detach(), optimizer.state[p]["trace"], step_size(optimizer)))
    for result in results[1:]:  # the sum in z may be taken in another order
        torch.testing.assert_close(result, results[0], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("meta_lr", [0.0, 0.05])
@pytest.mark.parametrize("base", reference.BASES)
def test_gradients_are_read_only_and_parameters_stay_where_they_are(base: str, meta_lr: float) -> None:
    problem = Problem()
    optimizer = learner(problem, base, "adam", meta_lr=meta_lr)
    pointers = [p.data_ptr() for p in problem.flat()]
    for t in range(3):
        optimizer.zero_grad()
        problem.loss(t).backward()
        gradients = [p.grad for p in problem.flat()]
        copies = [g.clone() for g in gradients]
        optimizer.step()
        assert_same(gradients, copies)
        assert all(p.grad is g for p, g in zip(problem.flat(), gradients, strict=True))
        # Nor are they kept in the state, where the next backward pass would write into them.
        kept = {v.data_ptr() for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)}
        assert not kept & {g.data_ptr() for g in gradients}
    assert [p.data_ptr() for p in problem.flat()] == pointers


def test_named_parameters_are_accepted() -> None:
    module = nn.Linear(3, 2)
    optimizer = MetaOptimize(module.named_parameters(), 0.01, base="sgd", meta="sgd")
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    assert list(optimizer.step_size_report()) == ["group0"]


def test_settings_of_an_object_take_effect() -> None:
    """Two steps of momentum 0.5 by hand: m = 1, then 0.5 + 1; w = −0.1 − 0.15."""
    params = parameters(0.0)
    optimizer = MetaOptimize(params, 0.1, base=base_updates.SGDm(momentum=0.5), meta_lr=0, weight_decay=0)
    for _ in range(2):
        step(optimizer, params, 1.0)
    assert params[0].item() == pytest.approx(-0.25, rel=1e-15)


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "adamv"}, r"(?is)(mean|nearest|closest).*adamw"),
        ({"meta": "adamm"}, r"(?is)(mean|nearest|closest).*adam"),
        ({"lr": 0.0}, r"lr"),
        ({"lr": -1e-3}, r"lr"),
        ({"lr": float("nan")}, r"lr"),
        ({"lr": 2.0}, r"lr"),
        ({"lr": 1e-12}, r"lr"),
        ({"gamma": -0.1}, r"gamma"),
        ({"gamma": 1.1}, r"gamma"),
        ({"gamma": float("nan")}, r"gamma"),
        ({"meta_lr": -1.0}, r"meta_lr"),
        ({"weight_decay": -0.1}, r"weight_decay"),
        ({"lr_bounds": (1.0, 1e-10)}, r"lr_bounds"),
        ({"lr_bounds": (0.0, 1.0)}, r"lr_bounds"),
        ({"step_sizes": "parameter"}, r"step.sizes.*parameter"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaOptimize(parameters(1.0), **options)


@pytest.mark.parametrize("options", [{"lr": 2.0}, {"gamma": 1.1}, {"meta_lr": -1.0}, {"weight_decay": -0.1}])
def test_wrong_settings_of_a_group_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MetaOptimize([{"params": parameters(1.0)} | options])


def test_scalar_step_size_needs_one_lr() -> None:
    groups = [{"params": parameters(1.0), "lr": 0.1}, {"params": parameters(1.0), "lr": 0.2}]
    with pytest.raises(ValueError, match=r"(?s)scalar.*lr|lr.*scalar"):
        MetaOptimize(groups, step_sizes="scalar")


@pytest.mark.parametrize("meta_lr", [0.0, 0.01])
def test_sparse_gradients_are_refused(meta_lr: float) -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = MetaOptimize(embedding.parameters(), meta_lr=meta_lr)
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)sparse"):
        optimizer.step()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("meta", reference.METAS)
def test_a_non_finite_meta_gradient_names_its_block(meta: str, value: float) -> None:
    body, head = parameters([1.0, 2.0]), parameters([1.0])
    groups = [{"params": body, "name": "body"}, {"params": head, "name": "head"}]
    optimizer = MetaOptimize(groups, 0.1, base="sgd", meta=meta)
    for _ in range(2):
        step(optimizer, body + head, 1.0, 1.0)
    with pytest.raises(NonFiniteMetaGradient, match="head") as caught:
        step(optimizer, body + head, 1.0, value)
    assert isinstance(caught.value, FloatingPointError)
    assert "body" not in str(caught.value)
    assert all(np.isfinite(float(value)) for value in optimizer.step_size_report().values())
