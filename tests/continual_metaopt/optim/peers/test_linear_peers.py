"""IDBD and Autostep: hand-computed steps, the papers' rules in NumPy, inputs, settings, and Sutton's experiment."""

import copy
import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual_metaopt.contract import run_contract
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.networks.linear import LinearModel
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.optim.peers.autostep import Autostep
from continual_metaopt.optim.peers.idbd import IDBD
from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.optim.registry import make_optimizer
from continual_metaopt.streams import make_stream
from continual_metaopt.streams.benchmark import read_samples
from tests.continual_metaopt.conftest import Collector, exactly
from tests.continual_metaopt.optim.peers.peer_references import Samples, autostep, idbd, linear_samples, lms

KINDS: list[Any] = [IDBD, Autostep]


def linear(n_inputs: int, n_outputs: int = 1, bias: bool = False) -> nn.Sequential:
    return LinearModel(n_outputs, (n_inputs,), bias).double()


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: Any) -> float:
    """One step on a sample or mini-batch; returns the loss before it."""
    optimizer.zero_grad()
    inputs, targets = (torch.tensor(np.atleast_2d(values), dtype=torch.float64) for values in (x, y))
    loss: Tensor = HalfSquaredError()(model(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss.item()


def weight_step_sizes(optimizer: torch.optim.Optimizer, weight: Tensor) -> Tensor:
    """Step size of each weight of a parameter, after the last step."""
    (group,) = [group for group in optimizer.param_groups if any(weight is param for param in group["params"])]
    return torch.as_tensor(group["reference"] * optimizer.state[weight]["log_ratio"].exp())


@pytest.mark.parametrize(
    ("make", "reference"),
    [
        (partial(IDBD, lr=0.05, meta_lr=0.02), partial(idbd, step_size=0.05, meta=0.02)),
        (
            partial(IDBD, lr=0.02, meta_lr=0.9, max_change=0.01, min_log_step_size=-4.0),
            partial(idbd, step_size=0.02, meta=0.9, max_change=0.01, min_log_step_size=-4.0),
        ),
        (
            partial(Autostep, lr=0.03, meta_lr=0.1, time_constant=20.0),
            partial(autostep, step_size=0.03, meta=0.1, time_constant=20.0),
        ),
        (partial(IDBD, lr=0.05, meta_lr=0.0), partial(lms, step_size=0.05)),
    ],
)
def test_every_step_is_the_papers(make: Callable[..., Any], reference: Callable[..., Iterator[dict[str, Any]]]) -> None:
    samples = linear_samples(300, 6)
    model = linear(6)
    optimizer = make(model)
    weight = model.linear.weight
    for (x, y), expected in zip(samples, reference(samples), strict=True):
        loss = learn(model, optimizer, x, [[y]])
        assert loss == pytest.approx(expected["error"] ** 2 / 2, rel=1e-12, abs=1e-15)
        found = {
            "w": weight[0].detach(),
            "alpha": weight_step_sizes(optimizer, weight)[0],
            "h": optimizer.state[weight]["trace"][0],
        }
        for name, value in found.items():
            if name in expected:
                np.testing.assert_allclose(value, expected[name], rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_is_the_weight_of_an_input_that_is_always_one(kind: Any) -> None:
    with_bias, with_ones = linear(3, bias=True), linear(4)
    one, other = kind(with_bias, lr=0.3), kind(with_ones, lr=0.3)
    for x, y in linear_samples(50, 3):
        learn(with_bias, one, x, [[y]])
        learn(with_ones, other, np.append(x, 1.0), [[y]])
    layer = with_bias.linear
    found = torch.cat([layer.weight[0], layer.bias])
    torch.testing.assert_close(found, with_ones.linear.weight[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_each_output_is_a_linear_unit_of_its_own(kind: Any) -> None:
    both, single = linear(3, 2), linear(3)
    one, other = kind(both, lr=0.4), kind(single, lr=0.4)
    for x, y in linear_samples(50, 3):
        learn(both, one, x, [[7.0 - y, y]])
        learn(single, other, x, [[y]])
    torch.testing.assert_close(both.linear.weight[1], single.linear.weight[0], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(both.linear.weight[0], single.linear.weight[0], rtol=0.1)


def test_a_mini_batch_has_the_mean_of_squared_inputs_as_curvature() -> None:
    model = linear(2)
    optimizer = IDBD(model, lr=0.1, meta_lr=0.0)
    optimizer.state[model.linear.weight].update(
        log_ratio=torch.zeros(1, 2, dtype=torch.float64), trace=torch.ones(1, 2, dtype=torch.float64)
    )
    learn(model, optimizer, [[1.0, 2.0], [2.0, 0.0]], [[0.0], [0.0]])  # predicted right: no gradient
    assert optimizer.state[model.linear.weight]["trace"][0].tolist() == pytest.approx([0.75, 0.8])


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_without_gradient_leave_the_input_alone(kind: Any) -> None:
    model, twin = linear(2), linear(2)
    optimizer, other = kind(model), kind(twin)
    for x, y in linear_samples(5, 2):
        for net, opt, looks in ((model, optimizer, True), (twin, other, False)):
            opt.zero_grad()
            HalfSquaredError()(net(torch.tensor(x)[None]), torch.tensor([[y]])).backward()
            if looks:
                with torch.no_grad():
                    net(torch.full((7, 2), 100.0, dtype=torch.float64))
            opt.step()
    assert model.linear.weight.equal(twin.linear.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_is_fulfilled_on_linear_models(kind: Any) -> None:
    assert [finding for finding in run_contract(kind, linear=True).values() if finding] == []


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_on_in_another_network(kind: Any) -> None:
    samples = linear_samples(20, 3)
    model = linear(3)
    optimizer = kind(model, lr=0.2)
    for x, y in samples[:10]:
        learn(model, optimizer, x, [[y]])
    successor = linear(3)
    successor.load_state_dict(model.state_dict())
    resumed = kind(successor)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    copied, twin = copy.deepcopy((model, optimizer))
    for x, y in samples[10:]:
        for net, opt in ((model, optimizer), (successor, resumed), (copied, twin)):
            learn(net, opt, x, [[y]])
    assert successor.linear.weight.equal(model.linear.weight)
    assert copied.linear.weight.equal(model.linear.weight)
    assert step_sizes_of(resumed) == step_sizes_of(optimizer) == step_sizes_of(twin)


def test_writing_lr_rescales_all_step_sizes() -> None:
    model = linear(4)
    optimizer = IDBD(model, lr=0.05, meta_lr=0.1)
    for x, y in linear_samples(30, 4):
        learn(model, optimizer, x, [[y]])
    before = weight_step_sizes(optimizer, model.linear.weight)
    assert before.unique().numel() == 4
    optimizer.param_groups[0]["lr"] *= 0.5
    optimizer.param_groups[0]["meta_lr"] = 0.0
    learn(model, optimizer, np.ones(4), [[1.0]])
    torch.testing.assert_close(weight_step_sizes(optimizer, model.linear.weight), before / 2)


def test_groups_have_settings_of_their_own() -> None:
    model = linear(2, bias=True)
    layer = model.linear
    groups = [{"name": "weight", "params": [layer.weight], "lr": 0.2}, {"params": [layer.bias], "meta_lr": 0.0}]
    optimizer = IDBD(model, lr=0.1, params=groups)
    for x, y in linear_samples(5, 2):
        learn(model, optimizer, x, [[y]])
    report = optimizer.step_size_report()
    assert list(report) == ["weight", "group1"]
    assert report["group1"] == 0.1
    assert report["weight"] != 0.2


def test_networks_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    message = (
        "IDBD and Autostep are defined for linear models, one nn.Linear, but the layers with trainable parameters here "
        "are: 0 (Linear), 2 (Linear); for networks use idbd_network"
    )
    for kind in KINDS:
        with pytest.raises(ValueError, match=exactly(message)):
            kind(model)
    with pytest.raises(ValueError, match=r"here are: none;"):
        IDBD(nn.ReLU())


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (IDBD, {"lr": 0.0}, "lr must be positive, but is 0.0"),
        (Autostep, {"lr": math.inf}, "lr must be positive, but is inf"),
        (IDBD, {"meta_lr": -1.0}, "meta_lr must not be negative, but is -1.0"),
        (IDBD, {"max_change": 0.0}, "max_change must be positive or None, but is 0.0"),
        (Autostep, {"time_constant": 0.0}, "time_constant must be positive, but is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        kind(nn.Linear(2, 1), **settings)


def test_a_step_without_a_forward_pass_says_what_to_do() -> None:
    model = nn.Linear(2, 1)
    optimizer = IDBD(model)
    model.weight.grad = torch.ones_like(model.weight)
    message = (
        "the optimizer has seen no input of the network; run output = model(x) with gradients enabled, on the very "
        "model that the optimizer was made with, before loss.backward() and step()"
    )
    with pytest.raises(RuntimeError, match=exactly(message)):
        optimizer.step()


def test_a_step_size_set_to_nonsense_is_refused() -> None:
    model = linear(1)
    optimizer = IDBD(model)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=exactly("lr must not be negative, but is -1.0")):
        learn(model, optimizer, [1.0], [[1.0]])


def test_a_schedule_that_ends_at_0_keeps_the_proportions_of_step_sizes() -> None:
    model = linear(2)
    optimizer = IDBD(model, 0.01, meta_lr=0.1)
    for _ in range(5):
        learn(model, optimizer, [1.0, -3.0], [[1.0]])
    weight = next(model.parameters())
    group, before = optimizer.param_groups[0], weight_step_sizes(optimizer, weight)
    lr, weights, group["lr"] = group["lr"], weight.detach().clone(), 0.0
    learn(model, optimizer, [1.0, -3.0], [[1.0]])
    assert weight_step_sizes(optimizer, weight).sum() < 1e-29
    assert torch.equal(weight, weights)
    group["lr"], group["meta_lr"] = lr, 0.0
    learn(model, optimizer, [1.0, -3.0], [[1.0]])
    torch.testing.assert_close(weight_step_sizes(optimizer, weight), before, rtol=0.1, atol=0)


# ------------------------------------------------------------------------------------------- Sutton's experiment

N_BURN_IN, N_MEASURED = 20_000, 10_000


def tracking_samples(seed: int) -> Samples:
    n = N_BURN_IN + N_MEASURED
    benchmark = make_stream("tracking", seed=seed, n_samples=n, samples_per_experience=n)
    x, y = read_samples(benchmark.train_stream[0].dataset, slice(0, n))
    return [(inputs.astype(float), float(target)) for inputs, (target,) in zip(x, y, strict=True)]


def measured_error(steps: Iterator[dict[str, Any]]) -> float:
    errors = np.array([step["error"] for step in steps])
    assert len(errors) == N_BURN_IN + N_MEASURED
    return float((errors[N_BURN_IN:] ** 2).mean())


@pytest.mark.slow
def test_sutton_s_figures_on_the_tracking_stream() -> None:
    samples = tracking_samples(seed=0)
    fixed = {step_size: measured_error(lms(samples, step_size)) for step_size in (0.01, 0.03, 0.035, 0.04, 0.08)}
    assert min(fixed, key=fixed.__getitem__) in (0.03, 0.035, 0.04)
    assert 3.1 < min(fixed.values()) < 3.7
    learned = [measured_error(idbd(samples, 0.05, meta)) for meta in (0.005, 0.01, 0.02)]
    assert all(1.4 < error < 1.7 for error in learned)


@pytest.mark.slow
def test_our_idbd_on_our_stream_by_our_learner() -> None:
    """The optimizer gives what its reference does, and gives large step sizes to the inputs that matter."""
    benchmark = make_stream("tracking", seed=0)
    sizes = benchmark.info.for_learner
    model = LinearModel(sizes.n_outputs, sizes.input_shape, bias=False)
    optimizer = make_optimizer("idbd", model, lr=0.05, meta_lr=0.01)
    collector = Collector()
    learner = OnlineLearner(model=model, optimizer=optimizer, criterion=HalfSquaredError(), recorder=collector)
    learner.train(benchmark.train_stream)
    error = 2 * float(np.mean(collector.all("loss")[N_BURN_IN:]))
    assert error == pytest.approx(measured_error(idbd(tracking_samples(0), 0.05, 0.01)), rel=1e-3)
    assert 1.4 < error < 1.7
    assert set(collector.all("correct")) == {None}
    assert isinstance(optimizer, IDBD)
    step_sizes = weight_step_sizes(optimizer, model.linear.weight)[0]
    assert step_sizes[:5].min() > 0.05
    assert step_sizes[5:].max() < 0.02


@pytest.mark.slow
def test_a_large_meta_step_size_makes_idbd_diverge() -> None:
    with np.errstate(all="ignore"):
        error = measured_error(idbd(tracking_samples(seed=0), 0.05, 0.05))
    assert not error < 1e3
