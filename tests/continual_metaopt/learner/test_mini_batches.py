"""Learning from mini-batches: one update for several samples, each with a prediction and a loss of its own."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pytest
import torch
from avalanche.training.plugins import ReplayPlugin
from torch import nn

from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.compiled import learner as compiled_learner
from continual_metaopt.engines.torch_engine import losses_of
from continual_metaopt.learner import online_learner as learner_module
from continual_metaopt.learner.metrics.diagnostics import diagnostics
from continual_metaopt.learner.online_learner import OnlineLearner, quiet_evaluator
from continual_metaopt.learner.strategy import MetaOptimizeStrategy
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.runs import compiled_run, preparing
from continual_metaopt.runs import learner_run as running
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.run import run_one
from continual_metaopt.streams import make_stream, plan_stream
from tests.continual_metaopt.conftest import Collector, exactly, read_tables, small_network
from tests.continual_metaopt.learner.parts import Listening, stream_of
from tests.continual_metaopt.runs.test_checkpoints import SaveAndStop, Stop

SIZES = [1, 4, 7, 60]  # of which 7 leaves a smaller one at the end of an experience of 60
LENGTH = 60


def stream() -> Any:
    return make_stream("permuted_inputs", n_experiences=3, samples_per_experience=LENGTH, seed=3).train_stream


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    if name == "AdamW":
        return torch.optim.AdamW(model.parameters(), lr=3e-3)
    return MetaOptimize(blocks(model), 3e-3, meta_lr=0.02)


def plain_loop(optimizer_name: str, size: int, record_every: int) -> tuple[nn.Module, dict[str, list[Any]]]:
    """Mini-batches, written without anything of the learner's."""
    model = small_network()
    optimizer = optimizer_of(model, optimizer_name)
    seen: dict[str, list[Any]] = {"correct": [], "loss": [], "step_sizes": []}
    step = 0
    for experience in stream():
        samples = [experience.dataset[i] for i in range(len(experience.dataset))]
        while samples:
            batch, samples = samples[:size], samples[size:]
            x, y = torch.stack([x for x, *_ in batch]), torch.tensor([y for _, y, *_ in batch])
            optimizer.zero_grad()
            output = model(x)
            for row, label in zip(output.detach(), y.tolist(), strict=True):
                seen["correct"].append(row.tolist().index(max(row.tolist())) == label)
                seen["loss"].append(-row.log_softmax(0)[label].item())
            multiples = [s for s in range(step, step + len(batch)) if s % record_every == 0]
            if multiples and optimizer_name != "AdamW":
                sizes = optimizer.step_size_report().items()
                seen["step_sizes"] += [(multiples[0], block, value) for block, value in sizes]
            nn.functional.cross_entropy(output, y).backward()
            optimizer.step()
            step += len(batch)
    return model, seen


@pytest.mark.parametrize(
    ("size", "optimizer", "listening"),
    [
        (1, "MetaOptimize", False),
        *((size, "MetaOptimize", listening) for size in SIZES[1:] for listening in (False, True)),
        (7, "AdamW", False),
        (60, "AdamW", True),
    ],
)
def test_learns_as_a_plain_loop_over_mini_batches_does(size: int, optimizer: str, listening: bool) -> None:
    expected, seen = plain_loop(optimizer, size, record_every=10)
    model, collector = small_network(), Collector()
    learner = OnlineLearner(
        model=model,
        optimizer=optimizer_of(model, optimizer),
        engine="torch",
        batch_size=size,
        recorder=collector,
        record_every=10,
        plugins=[Listening()] if listening else [],
    )
    learner.train(stream())

    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert collector.all("correct") == seen["correct"]
    assert collector.all("loss") == pytest.approx(seen["loss"], rel=1e-5, abs=1e-6)
    if optimizer == "MetaOptimize":
        assert collector.all("step_sizes") == seen["step_sizes"]
        first_recorded = [step for step, *_ in seen["step_sizes"]][:: len(blocks(model))]
        assert first_recorded == (list(range(0, 180, 10)) if size <= 10 else [0, 60, 120])
        assert [step for step, *_ in collector.all("measurements")] == [step for step, *_ in seen["step_sizes"]]
    assert [(p.experience, step) for p in collector.portions for step in range(p.first_step, p.next_step)] == [
        (step // LENGTH, step) for step in range(180)
    ]
    assert learner.n_samples == 180
    assert learner.n_correct == sum(seen["correct"])
    assert learner.clock.train_iterations == 3 * -(-LENGTH // size)


@pytest.mark.parametrize("size", [7, 60])
def test_the_fused_engine_learns_the_same_up_to_rounding(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("continual_metaopt.engines.traced.traced_gradients.FEWEST_SAMPLES", 1)
    learners, collectors = [], []
    for engine in ("torch", "fused"):
        model, collector = small_network(), Collector()
        optimizer = optimizer_of(model, "MetaOptimize")
        learners.append(
            OnlineLearner(model=model, optimizer=optimizer, engine=engine, batch_size=size, recorder=collector)
        )
        learners[-1].train(stream())
        collectors.append(collector)
    assert learners[1].engine == {"name": "fused", "reason": "asked for; gradients by a traced graph"}
    assert collectors[1].all("loss") == pytest.approx(collectors[0].all("loss"), rel=1e-3, abs=1e-5)
    assert collectors[1].all("correct") == collectors[0].all("correct")
    for a, b in zip(*(learner.model.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_at_least_one_sample(size: int) -> None:
    with pytest.raises(ValueError, match=exactly(f"batch_size must be at least 1, but is {size}")):
        MetaOptimizeStrategy(model=small_network(), batch_size=size)


@pytest.mark.parametrize(
    ("criterion", "target", "expected"),
    [
        (HalfSquaredError(), [[0.0, 0.0], [1.0, 0.0]], [2.5, 12.5]),
        (nn.MSELoss(), [[0.0, 0.0], [1.0, 0.0]], [2.5, 12.5]),
        (nn.MSELoss(reduction="sum"), [[0.0, 0.0], [1.0, 0.0]], [5.0, 25.0]),
        (nn.functional.mse_loss, [[0.0, 0.0], [1.0, 0.0]], [7.5, 7.5]),  # which cannot tell
    ],
)
def test_losses_of_samples(criterion: Any, target: list[list[float]], expected: list[float]) -> None:
    output, targets = torch.tensor([[1.0, 2.0], [4.0, 4.0]]), torch.tensor(target)
    loss = criterion(output, targets)
    assert losses_of(criterion, output, targets, loss) == expected
    by_itself = [criterion(output[i : i + 1], targets[i : i + 1]).item() for i in range(2)]
    assert expected == by_itself or criterion is nn.functional.mse_loss
    assert getattr(criterion, "reduction", None) != "none"


def test_weighted_cross_entropy_cannot_tell_samples_apart() -> None:
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))
    output, target = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    loss = criterion(output, target)
    assert losses_of(criterion, output, target, loss) == [loss.item()] * 2


def test_a_regression_has_losses_and_nothing_that_is_correct() -> None:
    x, y = torch.ones(5, 1), torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = MetaOptimize(model.parameters(), 0.1, base="sgd", meta_lr=0.0, weight_decay=0.0)
    collector = Collector()
    learner = OnlineLearner(
        model=model, optimizer=optimizer, criterion=HalfSquaredError(), engine="torch", batch_size=2, recorder=collector
    )
    learner.train(stream_of((x, y)))
    # the weight is 0, then 0.1 · (1 + 2) / 2 = 0.15, then 0.15 + 0.1 · (2.85 + 3.85) / 2 = 0.485
    assert collector.all("correct") == [None] * 5
    expected = [0.5, 2.0, 2.85**2 / 2, 3.85**2 / 2, 4.515**2 / 2]
    assert collector.all("loss") == pytest.approx(expected, rel=1e-6)


def test_samples_of_a_replay_memory_do_not_count() -> None:
    model, collector = small_network(), Collector()
    learner = OnlineLearner(
        model=model,
        optimizer=optimizer_of(model, "AdamW"),
        batch_size=8,
        recorder=collector,
        plugins=[ReplayPlugin(mem_size=20, batch_size=8, batch_size_mem=3)],
    )
    learner.train(stream())
    assert learner.n_samples == len(collector.all("loss")) == 180


@pytest.fixture
def run_config(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run on a stream that says that samples come in mini-batches of 8, and portions of 20 samples."""

    def with_batches(*given: Any, **options: Any) -> Any:
        planned = plan_stream(*given, **options)
        for_learner = dataclasses.replace(planned.info.for_learner, batch_size=8)
        return dataclasses.replace(planned, info=dataclasses.replace(planned.info, for_learner=for_learner))

    for module in (preparing, compiled_run):
        monkeypatch.setattr(module, "plan_stream", with_batches)
    for module in (torch_engine, compiled_learner):
        monkeypatch.setattr(module, "MAX_SAMPLES", 20)
    return RunConfig(
        stream=Component(name="permuted_inputs", n_experiences=2, samples_per_experience=30),
        network=Component(name="mlp", hidden=[8]),
        learner=Component(name="metaoptimize", lr=3e-3, step_sizes="scalar"),
        record_every=10,
    ).resolved()


@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize("engine", ["fused", "compiled"])
def test_runs_take_the_batch_size_from_the_stream_and_can_be_resumed(
    run_config: RunConfig, engine: str, stop: int, tmp_path: Path
) -> None:
    run_config = run_config.model_copy(update={"engine": engine})
    assert run_one(run_config, tmp_path / "whole") == "finished"
    tables = read_tables(tmp_path / "whole")
    assert tables["samples"]["step"].to_pylist() == list(range(60))
    assert tables["samples"]["experience"].to_pylist() == [0] * 30 + [1] * 30
    assert tables["step_sizes"]["step"].to_pylist() == [0, 10, 20, 30, 40, 50]
    assert tables["experiences"]["n_samples"].to_pylist() == [30, 30]
    assert sum(tables["experiences"]["n_correct"].to_pylist()) == sum(tables["samples"]["correct"].to_pylist())
    assert read_json(tmp_path / "whole" / "config.json")["stream_info"]["batch_size"] == 8
    assert read_json(tmp_path / "whole" / "status.json")["engine"]["name"] == engine

    asked: list[None] = []
    stopped = run_one(run_config, tmp_path / "resumed", should_stop=lambda: asked.append(None) or len(asked) == stop)
    assert stopped == "failed"
    assert read_json(tmp_path / "resumed" / "status.json")["step"] == [16, 30, 46, 60][stop - 1]
    assert run_one(run_config, tmp_path / "resumed") == "finished"
    for name, table in read_tables(tmp_path / "resumed").items():
        assert table.equals(tables[name]), name


@pytest.mark.parametrize(("size", "listening"), [(8, False), (8, True), (30, False)])
def test_recorders_are_told_steps_in_samples(size: int, listening: bool) -> None:
    benchmark = make_stream("permuted_inputs", n_experiences=2, samples_per_experience=LENGTH)
    model, rows = small_network(), []
    learner = OnlineLearner(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.01),
        batch_size=size,
        evaluator=quiet_evaluator(*diagnostics(every=1, retention=benchmark.test_stream)),
        plugins=[Listening()] if listening else [],
        recorder=SimpleNamespace(observe=lambda observations: None, measure=rows.extend),
    )
    learner.train(benchmark.train_stream)
    starts = [first + n for first in (0, LENGTH) for n in range(0, LENGTH, size)]
    for quantity in ("weight_norm", "gradient_norm", "update_ratio", "plasticity"):
        assert sorted({step for step, name, *_ in rows if name == quantity}) == starts
    assert sorted({step for step, name, *_ in rows if name == "retention"}) == [LENGTH, 2 * LENGTH]


def test_diagnostics_of_runs_are_as_far_apart_as_asked_for(run_config: RunConfig, tmp_path: Path) -> None:
    """20 samples are two and a half mini-batches; there are four of 8, 8, 8 and 6 samples in an experience."""
    config = run_config.model_copy(update={"diagnostics": ("weight_norm",), "diagnostics_every": 20})
    run_one(config, tmp_path / "whole")
    table = read_tables(tmp_path / "whole")["measurements"].to_pandas()
    assert sorted(set(table[table.quantity == "weight_norm"].step)) == [0, 24, 46]


def test_a_resumed_run_counts_updates_as_before(run_config: RunConfig, tmp_path: Path) -> None:
    directory = running.RunDirectory(tmp_path)
    run = running.LearnerRun(run_config, directory, lambda done, total: None, lambda: False)
    run.n_samples, run.n_ended = 46, 1
    assert run._n_updates() == 4 + 2
    run.learner.continue_from(46, 0, 16, run._n_updates())
    assert run.learner.clock.train_iterations == 6


@pytest.mark.parametrize(("engine", "after"), [("torch", 8), ("fused", 36), ("torch", LENGTH), ("fused", LENGTH + 16)])
def test_goes_on_from_a_checkpoint_in_the_middle_of_an_experience(
    engine: Any, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint

    for module in (torch_engine, learner_module):
        monkeypatch.setattr(module, "MAX_SAMPLES", 8)

    def made() -> MetaOptimizeStrategy:
        return MetaOptimizeStrategy(model=small_network(), lr=1e-2, engine=engine, batch_size=8)

    whole, first = made(), made()
    collector = whole.recorder = Collector()
    whole.train(stream())
    assert [len(portion) for portion in collector.portions] == [8, 8, 8, 8, 8, 8, 8, 4] * 3

    first.recorder = SaveAndStop(after, lambda: save_checkpoint(first, tmp_path / "checkpoint"))
    with pytest.raises(Stop):
        first.train(stream())
    second, start = maybe_load_checkpoint(made(), tmp_path / "checkpoint")
    second.train(stream()[start:])
    assert all(torch.equal(a, b) for a, b in zip(second.model.parameters(), whole.model.parameters(), strict=True))
    assert (second.n_samples, second.n_correct) == (whole.n_samples, whole.n_correct)
    assert second.clock.train_iterations == whole.clock.train_iterations == 24
