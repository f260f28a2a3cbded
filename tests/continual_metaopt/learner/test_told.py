"""Who is told what of a stream: experiences only learners that say so by name, its length those that ask for it."""

from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from torch import nn

from continual_metaopt.engines import torch_engine
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.optim.registry import (
    LEARNERS,
    is_told,
    known_of_the_stream,
    learner_factory,
    make_optimizer,
    register_learner,
)
from continual_metaopt.runs.components import Component, ConfigError
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.run import run_one
from continual_metaopt.streams.benchmark import StreamBenchmark
from tests.continual_metaopt.conftest import STREAM, exactly, read_tables, small_network


class Listener(torch.optim.SGD):
    """Counts steps, and notes after how many of them an experience began."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.01)
        self.param_groups[0]["n_steps"], self.param_groups[0]["begun"] = 0, []

    def step(self, closure: Any = None) -> None:
        super().step()
        self.param_groups[0]["n_steps"] += 1

    def begin_experience(self) -> None:
        self.param_groups[0]["begun"].append(self.param_groups[0]["n_steps"])


def listening(model: nn.Module) -> Listener:
    """A learner that would like to be told."""
    listener = Listener(model.parameters())
    MADE.append(listener)
    return listener


MADE: list[Listener] = []


def begun(listener: Listener) -> list[int]:
    return list(listener.param_groups[0]["begun"])


@pytest.mark.parametrize(("told", "expected"), [({}, []), ({"told": False}, []), ({"told": True}, [0, 60, 120])])
@pytest.mark.parametrize("plugins", [False, True], ids=["fast loop", "callbacks"])
def test_only_the_told_hear_where_experiences_begin(
    benchmark: StreamBenchmark, told: dict[str, bool], expected: list[int], plugins: bool
) -> None:
    model = small_network()
    strategy = OnlineLearner(model=model, optimizer=Listener(model.parameters()), **told)
    for experience in benchmark.train_stream:
        strategy.train(experience, num_workers=0, shuffle=plugins)  # shuffling goes through Avalanche's loader
    assert begun(strategy.optimizer) == expected


def test_pieces_of_an_experience_are_not_experiences(benchmark: StreamBenchmark) -> None:
    model = small_network()
    strategy = OnlineLearner(model=model, optimizer=Listener(model.parameters()), told=True)
    pieces = split_online_stream(benchmark.train_stream, experience_size=20)
    for experience in pieces:
        strategy.train(experience)
    assert begun(strategy.optimizer) == [0, 60, 120]


def test_an_optimizer_that_cannot_be_told_is_refused() -> None:
    model = small_network()
    message = "told=True needs an optimizer with begin_experience(), which SGD lacks"
    with pytest.raises(ValueError, match=exactly(message)):
        OnlineLearner(model=model, optimizer=torch.optim.SGD(model.parameters()), told=True)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("name", "expected"), [("listening", []), ("told", []), ("told_listening", []), ("listening_told", [0, 40, 80])]
)
def test_a_learner_s_name_decides_whether_it_is_told(
    name: str, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_learner(name, "an example")(listening)
    config = RunConfig(
        stream=Component(**STREAM), network=Component(name="mlp", hidden=[8]), learner=Component(name=name)
    ).resolved()
    assert run_one(config, tmp_path / "whole") == "finished"
    assert begun(MADE[-1]) == expected

    monkeypatch.setattr(torch_engine, "MAX_SAMPLES", 15)
    calls = iter([False, False, False, False, True])  # in the middle of the second experience
    assert run_one(config, tmp_path / "parts", should_stop=lambda: next(calls)) == "failed"
    assert run_one(config, tmp_path / "parts") == "finished"
    assert begun(MADE[-1]) == expected, "going on with an experience is not its beginning"


def test_who_listens_says_so_by_name() -> None:
    for name in LEARNERS:
        optimizer = make_optimizer(name, nn.Linear(2, 1), **known_of_the_stream(name, n_samples=10))
        assert hasattr(optimizer, "begin_experience") is is_told(name), name


def test_a_cosine_is_as_long_as_the_stream(tmp_path: Path) -> None:
    config = RunConfig(
        stream=Component(**STREAM),
        network=Component(name="mlp", hidden=[8]),
        learner=Component(name="cosine", lr=0.01, warmup=0.25),
        record_every=10,
    ).resolved()
    assert not {"n_samples", "batch_size"} & config.learner.options.keys()
    assert run_one(config, tmp_path) == "finished"
    found = read_tables(tmp_path)["step_sizes"]["step_size"].to_pylist()
    # 120 samples, of which 30 warm up
    assert found[:4] == [pytest.approx(0.01 * value) for value in (1 / 30, 11 / 30, 21 / 30, 1)]
    assert found[3:] == sorted(found[3:], reverse=True)
    assert len(found) == 12
    assert 0 < found[-1] < 0.0005


def test_a_cosine_counts_mini_batches() -> None:
    optimizer = make_optimizer("cosine", nn.Linear(2, 1), **known_of_the_stream("cosine", n_samples=100, batch_size=8))
    assert optimizer.param_groups[0]["n_steps"] == 13


def test_a_learner_that_does_not_ask_is_not_told_the_length() -> None:
    asking = [name for name in LEARNERS if "n_samples" in known_of_the_stream(name, n_samples=10)]
    assert asking == ["cosine"]
    assert "n_samples" not in learner_factory("fixed").__code__.co_varnames


def test_the_length_is_not_a_setting() -> None:
    config = RunConfig(learner=Component(name="cosine", n_samples=5))
    with pytest.raises(ConfigError, match=exactly("learner.n_samples: there is no such option")):
        config.resolved()
