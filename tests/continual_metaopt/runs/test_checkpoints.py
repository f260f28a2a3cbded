"""Learners resume from checkpoints, Avalanche's and plain state dicts, on the same trajectory bit for bit."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

import continual_metaopt.learner.online_learner as learner_module
from continual_metaopt.engines.observations import Observations
from continual_metaopt.learner.strategy import MetaOptimizeStrategy
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.streams import make_stream
from tests.continual_metaopt.runs.conftest import portions_of

PORTION = 7
LENGTH = 40


class Stop(Exception):
    """Ends training in the middle."""


class SaveAndStop:
    """A recorder that saves the learner after some samples, and ends training."""

    def __init__(self, after: int, save: Any) -> None:
        self.after, self.save = after, save

    def observe(self, observations: Observations) -> None:
        if observations.next_step >= self.after:
            self.save()
            raise Stop


@contextmanager
def small_portions() -> Iterator[None]:
    with portions_of(PORTION), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(learner_module, "MAX_SAMPLES", PORTION)
        yield


@pytest.fixture(autouse=True)
def _smaller_portions() -> Iterator[None]:
    with small_portions():
        yield


def stream() -> Any:
    return make_stream("permuted_inputs", n_experiences=3, samples_per_experience=LENGTH)


def strategy(engine: Any, listening: bool, **options: Any) -> MetaOptimizeStrategy:
    torch.manual_seed(0)
    plugins = [Listener()] if listening else []
    return MetaOptimizeStrategy(model=MLP(hidden=(12,)), lr=1e-2, engine=engine, plugins=plugins, **options)


class Listener(SupervisedPlugin):
    """Makes the learner run all callbacks."""

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        pass


def outcome(learner: MetaOptimizeStrategy) -> list[Tensor]:
    numbers = [learner.n_samples, learner.n_correct, learner.clock.train_iterations]
    step_sizes = list(learner.optimizer.step_size_report().values())
    traces = [learner.optimizer.state[param]["trace"] for param in learner.model.parameters()]
    return [torch.tensor(numbers), torch.tensor(step_sizes, dtype=torch.float64), *traces, *learner.model.parameters()]


@pytest.mark.parametrize("engines", [("torch", "compiled"), ("compiled", "torch")], ids="-".join)
def test_another_engine_goes_on_from_a_checkpoint(engines: tuple[str, str], tmp_path: Path) -> None:
    from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint

    whole = strategy("torch", listening=False)
    whole.train(stream().train_stream)
    first = strategy(engines[0], listening=False)
    first.recorder = SaveAndStop(LENGTH + PORTION, lambda: save_checkpoint(first, tmp_path / "checkpoint"))
    with pytest.raises(Stop):
        first.train(stream().train_stream)
    second, start = maybe_load_checkpoint(strategy(engines[1], listening=False), tmp_path / "checkpoint")
    second.wanted_engine = engines[1]
    second.train(stream().train_stream[start:])

    assert second.engine["name"] == engines[1]
    for found, expected in zip(outcome(second), outcome(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


WAYS = [("torch", False), ("fused", False), ("fused", True), ("compiled", False)]


@pytest.fixture(scope="module", params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(way: tuple[str, bool]) -> list[Tensor]:
    with small_portions():
        learner = strategy(*way)
        learner.train(stream().train_stream)
    return outcome(learner)


@pytest.mark.parametrize("ended", [1, 2])
def test_avalanche_checkpoint_between_experiences(
    way: Any, uninterrupted: list[Tensor], ended: int, tmp_path: Path
) -> None:
    from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint

    first = strategy(*way)
    for experience in stream().train_stream[:ended]:
        first.train(experience)
        save_checkpoint(first, tmp_path / "checkpoint")
    second, start = maybe_load_checkpoint(strategy(*way), tmp_path / "checkpoint")
    assert start == ended
    second.train(stream().train_stream[start:])
    assert_same(outcome(second), uninterrupted)


@pytest.mark.parametrize("after", [PORTION, LENGTH, LENGTH + 2 * PORTION])
def test_avalanche_checkpoint_in_the_middle_of_an_experience(
    way: Any, uninterrupted: list[Tensor], after: int, tmp_path: Path
) -> None:
    from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint

    first = strategy(*way)
    first.recorder = SaveAndStop(after, lambda: save_checkpoint(first, tmp_path / "checkpoint"))
    with pytest.raises(Stop):
        first.train(stream().train_stream)
    assert (tmp_path / "checkpoint").stat().st_size < 100_000, "the checkpoint holds data sets"
    second, start = maybe_load_checkpoint(strategy(*way), tmp_path / "checkpoint")
    assert second.recorder is None
    assert start == (second.n_samples - 1) // LENGTH
    second.train(stream().train_stream[start:])
    assert_same(outcome(second), uninterrupted)


@pytest.mark.parametrize("after", [PORTION, LENGTH, LENGTH + 2 * PORTION])
def test_plain_state_dicts(way: Any, uninterrupted: list[Tensor], after: int) -> None:
    first = strategy(*way)
    saved: dict[str, Any] = {}

    def save() -> None:
        saved.update(
            copy.deepcopy({"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}),
            n_samples=first.n_samples,
            n_correct=first.n_correct,
        )

    first.recorder = SaveAndStop(after, save)
    with pytest.raises(Stop):
        first.train(stream().train_stream)
    second = strategy(*way)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    experience, within = divmod(saved["n_samples"], LENGTH)
    second.continue_from(saved["n_samples"], saved["n_correct"], within)
    second.train(stream().train_stream[experience:])
    assert_same(outcome(second), uninterrupted)


def test_an_interrupted_experience_begins_anew_in_the_same_process() -> None:
    learner = strategy("auto", listening=False)
    learner.recorder = SaveAndStop(PORTION, lambda: None)
    experience = stream().train_stream[0]
    with pytest.raises(Stop):
        learner.train(experience)
    learner.recorder = None
    learner.train(experience)
    assert learner.n_samples == PORTION + LENGTH


@pytest.mark.parametrize("listening", [False, True])
def test_evaluation_in_between_changes_nothing(listening: bool) -> None:
    benchmark = stream()
    plain, evaluated = strategy("auto", listening), strategy("auto", listening)
    plain.train(benchmark.train_stream)

    class Evaluate:
        def observe(self, observations: Observations) -> None:
            evaluated.eval(benchmark.test_stream[:1])

    # Avalanche forgets the current batch when it evaluates, so between portions only the loop without callbacks can
    if not listening:
        evaluated.recorder = Evaluate()
    for experience in benchmark.train_stream:
        evaluated.train(experience)
        evaluated.eval(benchmark.test_stream)
    assert_same([*plain.model.parameters()], [*evaluated.model.parameters()])
    assert plain.optimizer.step_size_report() == evaluated.optimizer.step_size_report()


def test_a_head_that_grows_while_it_is_evaluated_is_learned_from_then_on() -> None:
    from avalanche.models import IncrementalClassifier

    benchmark = make_stream("class_split", classes_per_experience=2, labels="global")
    model = nn.Sequential(nn.Flatten(), IncrementalClassifier(64, 2))
    learner = MetaOptimizeStrategy(model=model, lr=1e-2)
    learner.train(benchmark.train_stream[0])
    learner.eval(benchmark.test_stream)
    head = model[1].classifier.weight
    assert head.shape == (10, 64)
    assert any(param is head for group in learner.optimizer.param_groups for param in group["params"])
    trace = learner.optimizer.state[head]["trace"]
    assert trace.shape == head.shape
    assert trace.abs().sum() > 0
