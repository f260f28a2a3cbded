"""Mini-batches in the compiled engine, step by step against the torch engine."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from continual_metaopt import make_optimizer
from continual_metaopt.engines.compiled.engine import MOST_AT_ONCE, CompiledEngine, compiled_or_why_not
from continual_metaopt.engines.compiled.kernels import N_ROWS
from continual_metaopt.engines.observations import Observations
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from tests.continual_metaopt.conftest import Collector
from tests.continual_metaopt.engines.compiled.test_engine import (
    CNN_SHAPE,
    DOUBLE,
    NAN,
    SINGLE,
    Twins,
    cnn,
    made,
    metaoptimize,
    mlp,
    part,
    regression,
    samples,
)
from tests.continual_metaopt.learner.parts import stream_of

SIZES = [1, 3, 10, N_ROWS + 1]  # none of which divides the number of samples, but for the first
N = 64
OPTIMIZERS: dict[str, Any] = {
    "sgd": metaoptimize(base="sgd", meta="sgd", meta_lr=1e-3),
    "adamw": metaoptimize(base="adamw", weight_decay=0.1),
    "lion, one step size": metaoptimize(base="lion", meta="lion", step_sizes="scalar"),
    "two horizons, dutch": metaoptimize(gamma="auto", trace="dutch"),
    "rmsprop, dutch": metaoptimize(base="rmsprop", gamma=0.99, trace="dutch"),
    "fixed": metaoptimize(base="sgdm", meta_lr=0.0),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_agrees_with_the_torch_engine_step_by_step(optimizer: str, size: int) -> None:
    twins = Twins(cnn(), OPTIMIZERS[optimizer], batch_size=size)
    assert twins.learn(samples(N, CNN_SHAPE), record_every=7) is None
    twins.compare()
    steps = sorted({row[0] for row in twins.seen[0].step_sizes})
    assert steps == ([7 * i for i in range(10)] if size <= 7 else steps)
    assert len(steps) == min(10, -(-N // size))


def test_agrees_in_single_precision() -> None:
    twins = Twins(cnn(SINGLE), metaoptimize(gamma=0.99), rtol=1e-3, batch_size=10)
    assert twins.learn(samples(N, CNN_SHAPE, dtype=SINGLE)) is None
    twins.compare()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, nn.MSELoss, HalfSquaredError])
def test_losses_of_mini_batches_agree(criterion: Any, reduction: str) -> None:
    if criterion is HalfSquaredError and reduction == "sum":
        pytest.skip("there is no such loss")
    dataset = samples(N, (6,)) if criterion is nn.CrossEntropyLoss else regression(N, (6,))
    twins = Twins(mlp(), metaoptimize(), criterion(reduction=reduction), batch_size=10)
    assert twins.learn(dataset) is None
    twins.compare()


def frozen(name: str) -> nn.Module:
    model = cnn()
    model.get_parameter(name).requires_grad_(False)
    return model


@pytest.mark.parametrize("name", ["0.weight", "2.bias", "6.weight", "8.weight", "8.bias"])
def test_what_is_frozen_stays(name: str) -> None:
    twins = Twins(frozen(name), metaoptimize(), batch_size=3)
    before = twins.learners[1].model.get_parameter(name).clone()
    assert twins.learn(samples(N, CNN_SHAPE)) is None
    twins.compare()
    assert torch.equal(twins.learners[1].model.get_parameter(name), before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"lr": 1e-3}) for name in ("sgd_hd", "adam_hd", "torch:AdamW")),
        ("dog", {"reps_rel": 0.01}),  # which predicts with other weights
    ],
)
def test_passes_agree(name: str, options: dict[str, Any], size: int) -> None:
    found = []
    for engine in ("torch", "compiled"):
        model, collector = cnn(), Collector()
        optimizer = make_optimizer(name, model, **options)
        learner = OnlineLearner(
            model=model, optimizer=optimizer, engine=engine, batch_size=size, recorder=collector, record_every=7
        )
        learner.train(stream_of(samples(N, CNN_SHAPE).tensors, samples(N, CNN_SHAPE, seed=1).tensors))
        weights = torch.cat([param.detach().flatten() for param in model.parameters()]).tolist()
        rows = [*collector.all("step_sizes"), *collector.all("measurements")]
        numbers = [*collector.all("loss"), *weights, *(row[-1] for row in rows)]
        found.append((collector.all("correct"), [row[:-1] for row in rows], numbers))
    assert found[0][:2] == found[1][:2]
    assert found[1][2] == pytest.approx(found[0][2], rel=1e-9, abs=1e-12)


# ------------------------------------------------------------------------------------------------ what cannot go on


def stopped(dataset: TensorDataset, optimizer: Any = None, change: Any = None) -> tuple[str | None, int]:
    twins = Twins(cnn(), optimizer or metaoptimize(), batch_size=10)
    assert twins.learn(part(dataset, 0, 20)) is None
    if change is not None:
        twins.change(change)
    outcome = twins.learn(part(dataset, 20, N))
    return outcome, len(twins.seen[1])


def test_a_loss_that_is_not_finite_stops_at_the_first_sample_of_the_mini_batch() -> None:
    dataset = samples(N, CNN_SHAPE)
    dataset.tensors[0][37] = NAN
    assert stopped(dataset) == ("Diverged: the loss is nan at sample 30", 30)


def test_a_meta_gradient_that_is_not_finite_stops_at_the_first_sample_of_the_mini_batch() -> None:
    def spoil(model: nn.Module, optimizer: MetaOptimize) -> None:
        optimizer.state[model[8].weight]["trace"].fill_(torch.inf)

    outcome, n = stopped(samples(N, CNN_SHAPE), change=spoil)
    assert str(outcome).startswith("Diverged: the meta gradient of block '")
    assert n == 20


def test_a_label_that_does_not_fit_is_explained_before_its_mini_batch_is_learned() -> None:
    dataset = samples(N, CNN_SHAPE)
    dataset.tensors[1][37] = 3
    outcome, n = stopped(dataset)
    assert str(outcome).startswith("ValueError: label 3 does not fit")
    assert n == 30


# ------------------------------------------------------------------------------------------------------- portions


@pytest.mark.parametrize(("at_most", "expected"), [(1, 10), (10, 10), (11, 20), (1000, 64)])
def test_portions_end_with_a_mini_batch(at_most: int, expected: int) -> None:
    model, seen = cnn(), Observations(0, 0)
    engine = CompiledEngine(model, metaoptimize()(model), nn.CrossEntropyLoss(), CNN_SHAPE, 10)
    engine.learner._seconds_per_sample = 1e-9
    assert engine.learn(samples(N, CNN_SHAPE), 0, seen, 1, at_most) is (expected < N)
    assert len(seen) == expected


def test_a_mini_batch_may_have_more_samples_than_a_portion() -> None:
    twins = Twins(mlp(), metaoptimize(), batch_size=1500)
    assert twins.learn(samples(2000, (6,))) is None
    twins.compare()


@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_a_last_mini_batch_that_is_smaller_is_left_out_where_that_is_asked_for(engine: Any) -> None:
    model = cnn()
    learner = OnlineLearner(model=model, optimizer=metaoptimize()(model), engine=engine, batch_size=10)
    learner.train(stream_of(samples(N, CNN_SHAPE).tensors), drop_last=True)
    assert learner.n_samples == 60


@pytest.mark.parametrize("size", [MOST_AT_ONCE, MOST_AT_ONCE + 1])
@pytest.mark.parametrize("convolutional", [True, False])
def test_larger_mini_batches_are_compiled_where_there_are_convolutions(convolutional: bool, size: int) -> None:
    model = cnn() if convolutional else mlp()
    dataset = samples(size, CNN_SHAPE if convolutional else (6,))
    given = model, MetaOptimize(blocks(model), 1e-3), nn.CrossEntropyLoss(), dataset.tensors, size
    engine, why = compiled_or_why_not(*given)
    fits = convolutional or size == MOST_AT_ONCE
    reason = f"mini-batches of {size} without convolutions are faster with PyTorch's operations"
    assert why == (None if fits else reason)
    assert (engine is not None) == fits
    assert compiled_or_why_not(*given, only_if_faster=False)[1] is None


def test_networks_without_bias_and_of_odd_widths_agree() -> None:
    model = made(nn.Linear(21, 17, bias=False), nn.ReLU(), nn.Linear(17, 33), nn.Tanh(), nn.Linear(33, 3), dtype=DOUBLE)
    twins = Twins(model, metaoptimize(), batch_size=N_ROWS + 1)
    assert twins.learn(samples(N, (21,))) is None
    twins.compare()
