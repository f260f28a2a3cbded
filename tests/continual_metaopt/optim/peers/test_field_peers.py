"""The field's optimizers: first steps by hand, NumPy references over 100 steps, the contract, growing heads, runs."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from continual_metaopt.contract import run_contract
from continual_metaopt.engines import torch_engine
from continual_metaopt.optim.controls.schedules import CosineRestarts, WarmUpCosine
from continual_metaopt.optim.dynamic_parameters import follow_parameters
from continual_metaopt.optim.peers.adamw_lion_package import AdamWLionPackage
from continual_metaopt.optim.peers.aruba import ARUBA
from continual_metaopt.optim.peers.cocob import COCOB
from continual_metaopt.optim.peers.d_adaptation import DAdaptAdaGrad, DAdaptAdam, DAdaptSGD
from continual_metaopt.optim.peers.distance_over_gradients import AveragedDoG, DoG
from continual_metaopt.optim.peers.exponentiated_gradient import ExponentiatedGradient
from continual_metaopt.optim.peers.hypergradient import SGDHD
from continual_metaopt.optim.peers.idbd_rmsprop import RMSPropIDBD
from continual_metaopt.optim.peers.l2_init import L2Init
from continual_metaopt.optim.peers.meta_mirror_descent import MetaMirrorDescent
from continual_metaopt.optim.peers.obgd import ObGD
from continual_metaopt.optim.peers.prodigy import Prodigy
from continual_metaopt.optim.peers.shrink_and_perturb import ShrinkAndPerturb
from continual_metaopt.optim.peers.sps import SPS
from continual_metaopt.optim.peers.upgd import UPGD
from continual_metaopt.optim.peers.vsgd import VSGD
from continual_metaopt.optim.peers.weight_clipping import WeightClipping
from continual_metaopt.optim.protocol import closure_for, step_sizes_of
from continual_metaopt.optim.registry import learner_factory
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.run import run_one
from tests.continual_metaopt.conftest import exactly, read_tables
from tests.continual_metaopt.optim.peers import field_references as references
from tests.continual_metaopt.optim.peers.field_references import Array, Problem

START = np.array([0.5, -1.0, 2.0, 0.1])
PROBLEM = Problem()


def parameters(sizes: Sequence[int]) -> list[nn.Parameter]:
    """START in pieces."""
    ends = np.cumsum([0, *sizes])
    return [nn.Parameter(torch.tensor(START[i:j])) for i, j in pairwise(ends)]


def weights(params: list[nn.Parameter]) -> Array:
    return np.concatenate([param.detach().numpy().ravel() for param in params])


def loss_graph(params: list[nn.Parameter], step: int) -> torch.Tensor:
    w = torch.cat([param.flatten() for param in params])
    distance = w - torch.tensor(PROBLEM.target(step, len(w)))
    return distance @ torch.tensor(PROBLEM.matrix(step, len(w))) @ distance / 2


def descend(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss = loss_graph(params, step)
    loss.backward(retain_graph=True)
    closure = closure_for(optimizer, loss, None)
    optimizer.step() if closure is None else optimizer.step(closure)


BOUNDARIES = {10, 40, 41, 80}
SEEDED = {"seed": 3}
GAINS: dict[str, Any] = {"lr": 0.05, "momentum": 0.5, "beta": 0.8, "gain_lr": 0.2, "scale_lr": 0.1}
GAINS |= {"gain_bounds": (0.25, 4.0), "scale_bounds": (0.5, 2.0)}
RULES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "upgd": (
        partial(UPGD, lr=0.03, weight_decay=0.2, beta_utility=0.9, sigma=0.5, **SEEDED),
        partial(references.upgd, lr=0.03, kappa=0.2, beta=0.9, sigma=0.5),
    ),
    "l2_init, sgd": (
        partial(L2Init, lr=0.1, base="sgd", pull=0.7),
        partial(references.l2_init, lr=0.1, base="sgd", pull=0.7),
    ),
    "l2_init, adamw": (
        partial(L2Init, lr=0.1, base="adamw", pull=0.7),
        partial(references.l2_init, lr=0.1, base="adamw", pull=0.7),
    ),
    "shrink_and_perturb, sgd": (
        partial(ShrinkAndPerturb, lr=0.1, base="sgd", weight_decay=0.3, sigma=0.5, **SEEDED),
        partial(references.shrink_and_perturb, lr=0.1, base="sgd", kappa=0.3, sigma=0.5),
    ),
    "shrink_and_perturb, adamw": (
        partial(ShrinkAndPerturb, lr=0.1, base="adamw", weight_decay=0.3, sigma=0.5, **SEEDED),
        partial(references.shrink_and_perturb, lr=0.1, base="adamw", kappa=0.3, sigma=0.5),
    ),
    "obgd, squared error": (
        partial(ObGD, lr=0.7, kappa=1.5, error="squared_error"),
        partial(references.obgd, lr=0.7, kappa=1.5, error="squared_error"),
    ),
    "obgd, cross-entropy": (
        partial(ObGD, lr=0.7, kappa=1.5),
        partial(references.obgd, lr=0.7, kappa=1.5, error="cross_entropy"),
    ),
    "sps": (partial(SPS, lr=0.1, c=0.4, smoothing=20), partial(references.sps, lr=0.1, c=0.4, smoothing=20)),
    "sps, bounded": (
        partial(SPS, lr=0.9, c=0.4, smoothing=None),
        partial(references.sps, lr=0.9, c=0.4, smoothing=None),
    ),
    "vsgd": (
        partial(VSGD, init_samples=7, slow_constant=3.0, outlier_level=1.5, eps=1e-6),
        partial(references.vsgd, init=7, slow=3.0, level=1.5, eps=1e-6),
    ),
    "cocob": (partial(COCOB, alpha=20.0), partial(references.cocob, alpha=20.0, eps=1e-8)),
    "exponentiated_gradient": (
        partial(ExponentiatedGradient, **GAINS),
        partial(references.exponentiated_gradient, lr=0.05, mu=0.5, gain_lr=0.2, scale_lr=0.1, normalized=True),
    ),
    "exponentiated_gradient, products": (
        partial(ExponentiatedGradient, **GAINS, normalized=False),
        partial(references.exponentiated_gradient, lr=0.05, mu=0.5, gain_lr=0.2, scale_lr=0.1, normalized=False),
    ),
    **{
        f"meta_mirror_descent, q = {q}": (
            partial(MetaMirrorDescent, lr=0.1, meta_lr=meta, q=q, weight_decay=0.1),
            partial(references.meta_mirror_descent, lr=0.1, meta=meta, q=q, kappa=0.1),
        )
        for q, meta in ((1.0, 0.01), (0.5, 0.02), (0.0, 0.05), (-1.0, 0.1))
    },
    "idbd_rmsprop": (
        partial(RMSPropIDBD, lr=0.1, meta_lr=0.1, decay=0.9, eps=1e-3),
        partial(references.idbd_rmsprop, lr=0.1, meta=0.1, rho=0.9, eps=1e-3),
    ),
    "aruba": (
        partial(ARUBA, lr=0.2, zeta=2.0, power=0.5),
        partial(references.aruba, lr=0.2, zeta=2.0, power=0.5, starts=BOUNDARIES),
    ),
    "adamw_lion_package": (
        partial(AdamWLionPackage, lr=0.02, meta_lr=0.05, gamma=0.9, weight_decay=0.3),
        partial(references.adamw_lion_package, lr=0.02, eta=0.05, gamma=0.9, kappa=0.3),
    ),
    "weight_clipping": (
        partial(WeightClipping, lr=0.1, base="adamw", bound=0.6),
        partial(references.weight_clipping, lr=0.1, base="adamw", bound=0.6),
    ),
    "cosine": (
        partial(WarmUpCosine, lr=0.2, n_samples=100, base="adamw", weight_decay=0.0, warmup=0.1, final=0.05),
        partial(references.cosine, lr=0.2, base="adamw", warm=10, final=0.05),
    ),
}


@pytest.mark.parametrize("sizes", [[4], [1, 3]], ids=str)
@pytest.mark.parametrize(("make", "reference"), RULES.values(), ids=RULES)
def test_a_hundred_steps_are_those_of_the_reference(
    make: Callable[..., Any], reference: Callable[..., Any], sizes: list[int]
) -> None:
    params = parameters(sizes)
    if make.func is WeightClipping:  # type: ignore[attr-defined]
        params = [nn.Parameter(param.detach()[:, None]) for param in params]  # a layer with one input
    optimizer = make(params)
    before_any = weights(params)
    planned = make.func in (WarmUpCosine, ARUBA)  # type: ignore[attr-defined]  # reports what comes next
    for step, (expected, step_size) in enumerate(reference(PROBLEM, START.copy(), 100, sizes)):
        if step in BOUNDARIES and hasattr(optimizer, "begin_experience"):
            optimizer.begin_experience()
        reported = step_sizes_of(optimizer)["group0"]
        descend(params, optimizer, step)
        np.testing.assert_allclose(weights(params), expected, rtol=1e-7, atol=1e-9)
        reported = reported if planned else step_sizes_of(optimizer)["group0"]
        np.testing.assert_allclose(reported, step_size, rtol=1e-6)
    assert np.abs(weights(params) - before_any).max() > 0.1, "the weights have hardly moved"


@pytest.mark.parametrize(
    ("kind", "settings", "samples", "expected"),
    [
        # samples are (gradient, loss); weights start from 1; more first steps are in the classes' docstrings
        (ObGD, {"error": "squared_error"}, [(0.25, 0.125)], [0.75]),
        (ObGD, {}, [(0.5, math.log(2))], [0.75]),
        (ObGD, {}, [(0, 0)], [1]),
        (SPS, {"lr": 0.1, "smoothing": 1.0}, [(0, 0), (2, 1)], [1, 0.6]),
        (MetaMirrorDescent, {"lr": 0.1, "meta_lr": 0.05, "q": -1.0}, [(2, 0), (3, 0)], [0.8, 0.8 - 3 / 9.7]),
        (
            WarmUpCosine,
            {"lr": 0.1, "n_samples": 4, "base": "sgd", "weight_decay": 0.0, "warmup": 0.5},
            [(1, 0)] * 5,
            [0.95, 0.85, 0.75, 0.7, 0.7],
        ),
    ],
)
def test_first_steps_by_hand(
    kind: Any, settings: dict[str, Any], samples: list[tuple[float, float]], expected: list[float]
) -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = kind([weight], **settings)
    for (gradient, loss), value in zip(samples, expected, strict=True):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step(partial(float, loss))
        assert weight.item() == pytest.approx(value, abs=1e-7)


def test_weights_are_clipped_by_their_layer_s_fan_in() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 1))
    optimizer = learner_factory("weight_clipping")(model, lr=0.1, base="sgd", bound=0.8)
    for param in model.parameters():
        param.grad = torch.full_like(param, -100.0)
    optimizer.step()
    convolution, normalisation, _, linear = model
    for layer, bound in ((convolution, 0.4), (linear, 0.8 / math.sqrt(2))):
        assert torch.cat([param.flatten() for param in layer.parameters()]).unique().item() == pytest.approx(bound)
    assert normalisation.weight.tolist() == [11.0, 11.0], "a normalisation has no fan in"


def test_vsgd_lands_in_the_minimum_of_a_quadratic_without_noise() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = VSGD([weight], init_samples=1, slow_constant=1.0, eps=1e-12)
    positions = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = weight.square().sum()
        optimizer.step(lambda loss=loss: loss)
        positions.append(weight.item())
    assert positions == [1.0, pytest.approx(0.0, abs=1e-9)]
    assert step_sizes_of(optimizer) == {"group0": pytest.approx(0.5)}


def test_a_saturated_sample_does_not_end_sps() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = SPS([weight], lr=0.1)
    for loss, gradient in ((1.0, 2.0), (0.0, 1e-9)):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step(partial(float, loss))
    assert step_sizes_of(optimizer) == {"group0": pytest.approx(0.1 * 2 ** (1 / 500))}


def test_a_step_size_stays_positive_whatever_the_geometry() -> None:
    for q, expected in ((1.0, 1e-10), (-1.0, 1e-10), (0.0, 1e-10)):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = MetaMirrorDescent([weight], lr=0.1, meta_lr=1e12, q=q)
        for gradient in (1.0, -1.0):
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
        assert step_sizes_of(optimizer)["group0"] == pytest.approx(expected, rel=0.01), q


@pytest.mark.parametrize(
    ("make", "like"),
    [
        (partial(L2Init, pull=0.0, weight_decay=0.1), partial(torch.optim.AdamW, weight_decay=0.1)),
        (partial(ShrinkAndPerturb, sigma=0.0, weight_decay=0.1), partial(torch.optim.AdamW, weight_decay=0.1)),
        (partial(WeightClipping, bound=1e9), partial(torch.optim.AdamW, weight_decay=0.0)),
        (CosineRestarts, torch.optim.AdamW),
        (partial(L2Init, pull=0.0, base="sgd"), torch.optim.SGD),
        (partial(MetaMirrorDescent, q=1.0, meta_lr=1e-4), partial(SGDHD, meta_lr=1e-4)),
        (
            partial(ExponentiatedGradient, gain_lr=0.0, scale_lr=0.0, momentum=0.5),
            partial(torch.optim.SGD, momentum=0.5),
        ),
        (partial(AdamWLionPackage, meta_lr=0.0, weight_decay=0.1), partial(torch.optim.AdamW, weight_decay=0.1)),
        (partial(RMSPropIDBD, meta_lr=0.0), partial(torch.optim.AdamW, betas=(0.0, 0.999), weight_decay=0.0)),
    ],
)
def test_what_is_left_without_the_addition(make: Callable[..., Any], like: Callable[..., Any]) -> None:
    params, others = parameters([1, 3]), parameters([1, 3])
    optimizer, plain = make(params, lr=0.05), like(others, lr=0.05)
    for step in range(30):
        descend(params, optimizer, step)
        descend(others, plain, step)
    np.testing.assert_allclose(weights(params), weights(others), rtol=1e-11)


def test_cocob_is_that_of_its_author_s_package() -> None:
    package = pytest.importorskip("parameterfree")
    params, others = parameters([1, 3]), parameters([1, 3])
    optimizer, original = COCOB(params, weight_decay=0.05), package.COCOB(others, weight_decay=0.05)
    for step in range(100):
        descend(params, optimizer, step)
        descend(others, original, step)
        np.testing.assert_allclose(weights(params), weights(others), rtol=1e-10)


def test_groups_have_settings_of_their_own() -> None:
    params, alone = parameters([1, 3]), parameters([1, 3])
    optimizer = L2Init([{"params": params[:1], "name": "a"}, {"params": params[1:], "pull": 0.0}], 0.1, pull=0.4)
    single = L2Init(alone[:1], 0.1, pull=0.4)
    plain = L2Init(alone[1:], 0.1, pull=0.0)
    for step in range(5):
        descend(params, optimizer, step)
        loss_graph(alone, step).backward()
        single.step()
        plain.step()
        single.zero_grad()
        plain.zero_grad()
    np.testing.assert_allclose(weights(params), weights(alone), rtol=1e-12)
    assert list(step_sizes_of(optimizer)) == ["a", "group1"]


@pytest.mark.parametrize("kind", [partial(UPGD, sigma=1.0), partial(ShrinkAndPerturb, sigma=1.0)])
def test_noise_is_the_optimizer_s_own(kind: Any) -> None:
    def moved(seed: int) -> Array:
        params = parameters([1, 3])
        optimizer = kind(params, lr=0.1, seed=seed)
        for step in range(3):
            descend(params, optimizer, step)
        return weights(params)

    state = torch.get_rng_state()
    first, again, other = moved(1), moved(1), moved(2)
    assert torch.get_rng_state().equal(state)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_the_noise_of_steps_differs() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = ShrinkAndPerturb([weight], lr=1.0, base="sgd", sigma=1.0, weight_decay=0.0)
    positions = []
    for _ in range(3):
        weight.grad = torch.zeros(1)
        optimizer.step()
        positions.append(weight.item())
    assert len(set(np.diff([0.0, *positions]))) == 3


def test_utilities_of_zero_are_no_reason_to_fail() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = UPGD([weight], lr=0.1, weight_decay=0.0, sigma=0.0)
    weight.grad = torch.zeros(3)
    optimizer.step()
    assert weight.tolist() == [1.0, 1.0, 1.0]


def test_cocob_leaves_weights_without_gradients_where_they_are() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = COCOB([weight])
    assert step_sizes_of(optimizer) == {"group0": 0.0}
    weight.grad = torch.tensor([0.0, 2.0])
    optimizer.step()
    assert weight.tolist() == [1.0, pytest.approx(0.99)]
    assert step_sizes_of(optimizer) == {"group0": pytest.approx(2 / (2 * 200))}


# --------------------------------------------------------------------------------------------- as the framework has it

OPTIONS: dict[str, dict[str, Any]] = {
    "idbd_rmsprop": {},
    "meta_mirror_descent": {"lr": 0.03},
    "exponentiated_gradient": {},
    "sps": {"lr": 0.1},
    "vsgd": {"init_samples": 2},
    "cocob": {},
    "obgd": {},
    "dog": {"reps_rel": 0.01},
    "ldog": {"reps_rel": 0.01, "averaging": None},
    "dadapt_sgd": {"d0": 1e-3},
    "dadapt_adam": {"d0": 1e-3, "growth_rate": 1.05},
    "dadapt_adagrad": {"d0": 1e-2},
    "prodigy": {"d0": 1e-4, "growth_rate": 1.02},
    "upgd": {"lr": 0.01},
    "l2_init": {},
    "shrink_and_perturb": {},
    "weight_clipping": {},
    "continual_backprop": {"replacement_rate": 0.05, "maturity": 3},
    "aruba_told": {"lr": 0.02, "zeta": 5.0},
    "adamw_lion_package": {"step_sizes": "layerwise"},
    "cosine": {"n_samples": 1000},
    "cosine_restarts_told": {},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_contract_is_fulfilled(name: str) -> None:
    made = partial(learner_factory(name), **OPTIONS[name])
    assert {wish: finding for wish, finding in run_contract(made).items() if finding} == {}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_new_class_starts_from_its_own_weights(name: str) -> None:
    """Nothing is NaN after a head has grown, and the new class's weights move by little in one step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2))
    optimizer = learner_factory(name)(model, **OPTIONS[name])

    def learn(n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            output = model(torch.randn(1, 4))
            loss = nn.functional.cross_entropy(output, torch.tensor([1]))
            loss.backward(retain_graph=True)
            closure = closure_for(optimizer, loss, output)
            optimizer.step() if closure is None else optimizer.step(closure)

    learn(20)
    old = dict(model.named_parameters())
    grown = nn.Linear(4, 3)
    model[0] = grown
    with torch.no_grad():
        grown.weight[:2], grown.bias[:2] = old["0.weight"], old["0.bias"]
        grown.weight.clamp_(-0.5, 0.5)  # where weight clipping has them
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    before = grown.weight[2].detach().clone()
    learn(1)
    change = (grown.weight[2] - before).detach().abs().max().item()
    assert change < 0.3
    learn(5)
    assert not grown.weight[2].equal(before)
    assert all(bool(param.isfinite().all()) for param in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_real_digits_are_learned_and_runs_resume(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "MAX_SAMPLES", 90)
    options = {key: value for key, value in OPTIONS[name].items() if key != "n_samples"}
    config = RunConfig(
        stream=Component(name="permuted_inputs", n_experiences=2, samples_per_experience=250),
        network=Component(name="mlp", hidden=[16]),
        learner=Component(name=name, **options),
    ).resolved()
    assert run_one(config, tmp_path / "whole") == "finished"
    calls = iter([False, False, True])
    assert run_one(config, tmp_path / "parts", should_stop=lambda: next(calls)) == "failed"
    assert run_one(config, tmp_path / "parts") == "finished"

    whole, parts = read_tables(tmp_path / "whole"), read_tables(tmp_path / "parts")
    assert all(whole[table].equals(parts[table]) for table in ("samples", "step_sizes", "experiences"))
    assert np.isfinite(whole["samples"]["loss"].to_numpy()).all()
    assert whole["samples"]["correct"].to_numpy(zero_copy_only=False).mean() > 0.15


# ----------------------------------------------------------------------------------------------------------- schedules


def test_a_cosine_restarts_where_it_is_told() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = CosineRestarts([weight], lr=1.0, final=0.5)
    seen: list[list[float]] = []
    for length in (2, 4, 0, 5):
        optimizer.begin_experience()
        seen.append([])
        for _ in range(length):
            seen[-1].append(step_sizes_of(optimizer)["group0"])
            weight.grad = torch.ones(1)
            optimizer.step()
    quarter = 0.75 + math.sqrt(0.125) / 2
    assert seen == [
        [1.0, 1.0],
        [1.0, pytest.approx(0.75), pytest.approx(0.5), pytest.approx(0.5)],
        [],
        [1.0, pytest.approx(quarter), pytest.approx(0.75), pytest.approx(1.5 - quarter), pytest.approx(0.5)],
    ]


def test_finer_step_sizes_than_the_package_has_are_refused() -> None:
    with pytest.raises(ValueError, match=exactly("step_sizes must be no finer than tensors, but is weight")):
        learner_factory("adamw_lion_package")(nn.Linear(2, 1), step_sizes="weight")


def test_aruba_s_step_sizes_change_where_it_is_told() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = ARUBA([weight], lr=0.5)
    optimizer.begin_experience()  # of the first one
    for gradient in (2.0, -1.0):
        weight.grad = torch.full_like(weight, gradient)
        assert step_sizes_of(optimizer) == {"group0": 0.5}
        optimizer.step()
    optimizer.begin_experience()
    expected = math.sqrt((0.25 + 0.5 * 0.25 + 0.25 / 2) / (1 + 5 + 1 / 2))
    assert step_sizes_of(optimizer) == {"group0": pytest.approx(expected)}
    optimizer.begin_experience()  # without a sample in between
    assert step_sizes_of(optimizer) == {"group0": pytest.approx(expected)}
    optimizer.step()
    assert weight.item() == pytest.approx(0.5 + expected)


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (UPGD, {"lr": -1.0}, "lr must not be negative, but is -1.0"),
        (UPGD, {"beta_utility": 1.0}, "beta_utility must be at least 0 and below 1, but is 1.0"),
        (L2Init, {"pull": -1.0}, "pull must not be negative, but is -1.0"),
        (ShrinkAndPerturb, {"sigma": math.inf}, "sigma must not be negative, but is inf"),
        (WeightClipping, {"bound": 0.0}, "bound must be positive, but is 0.0"),
        (ObGD, {"kappa": 0.0}, "kappa must be positive, but is 0.0"),
        (
            ObGD,
            {"error": "squared"},
            "unknown error 'squared'. Did you mean 'squared_error'? Known: cross_entropy, squared_error",
        ),
        (ARUBA, {"zeta": 0.0}, "zeta must be positive, but is 0.0"),
        (
            AdamWLionPackage,
            {"meta_betas": (1.0, 0.9)},
            "meta_betas must be two numbers of at least 0 and below 1, but is (1.0, 0.9)",
        ),
        (SPS, {"smoothing": 0.0}, "smoothing must be positive or None, but is 0.0"),
        (VSGD, {"init_samples": 0}, "init_samples must be at least 1, but is 0"),
        (COCOB, {"eps": 0.0}, "eps must be positive, but is 0.0"),
        (DoG, {"reps_rel": 0.0}, "reps_rel must be positive, but is 0.0"),
        (AveragedDoG, {"init_eta": 0.0}, "init_eta must be positive, but is 0.0"),
        (AveragedDoG, {"averaging": -1.0}, "averaging must not be negative, but is -1.0"),
        (DAdaptSGD, {"d0": 0.0}, "d0 must be positive, but is 0.0"),
        (DAdaptSGD, {"momentum": 1.0}, "momentum must be at least 0 and below 1, but is 1.0"),
        (DAdaptAdam, {"betas": (1.0, 0.9)}, "betas must both be at least 0 and below 1, but is (1.0, 0.9)"),
        (DAdaptAdaGrad, {"growth_rate": 0.0}, "growth_rate must be positive, but is 0.0"),
        (Prodigy, {"beta3": 1.0}, "beta3 must be at least 0 and below 1, or None, but is 1.0"),
        (
            ExponentiatedGradient,
            {"gain_bounds": (2.0, 3.0)},
            "gain_bounds must be two positive numbers around 1, but is (2.0, 3.0)",
        ),
        (MetaMirrorDescent, {"lr": 0.0}, "lr must be positive, but is 0.0"),
        (RMSPropIDBD, {"decay": 1.0}, "decay must be at least 0 and below 1, but is 1.0"),
        (WarmUpCosine, {"n_samples": 0}, "n_steps must be at least 1, but is 0"),
        (WarmUpCosine, {"n_samples": 9, "warmup": 1.0}, "warmup must be at least 0 and below 1, but is 1.0"),
        (CosineRestarts, {"final": 2.0}, "final must be within 0 and 1, but is 2.0"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        kind(parameters([4]), **settings)


def test_an_unknown_base_update_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^unknown base update 'adam'. Did you mean 'adamw'\? "):
        L2Init(parameters([4]), base="adam")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            SPS,
            "SPS needs the loss: call optimizer.step(closure) with a closure that returns it; "
            "after loss.backward(), optimizer.step(lambda: loss) does",
        ),
        (
            ObGD,
            "ObGD needs the loss: call optimizer.step(closure) with a closure that returns it; "
            "after loss.backward(), optimizer.step(lambda: loss) does",
        ),
        (
            VSGD,
            "VSGD needs the loss with its graph: in place of loss.backward() and optimizer.step(), call "
            "optimizer.step(lambda: loss)",
        ),
    ],
)
def test_a_missing_loss_is_asked_for(kind: Any, message: str) -> None:
    params = parameters([4])
    params[0].grad = torch.ones(4, dtype=torch.float64)
    with pytest.raises(ValueError, match=exactly(message)):
        kind(params).step()
