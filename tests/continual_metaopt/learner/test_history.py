"""``history`` of a learner: what it went through, in a data frame."""

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from continual_metaopt import MetaOptimizeStrategy, OnlineLearner
from continual_metaopt.networks.linear import LinearModel
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.streams import make_stream
from continual_metaopt.streams.benchmark import StreamBenchmark
from tests.continual_metaopt.conftest import Collector, exactly, small_network


def strategy(**options: Any) -> MetaOptimizeStrategy:
    settings = {"model": small_network(), "lr": 1e-3, "engine": "torch", "record_every": 20}
    return MetaOptimizeStrategy(**settings | options)


@pytest.mark.parametrize(("engine", "batch_size"), [("torch", 1), ("torch", 4), ("compiled", 1)])
def test_rows_are_what_a_recorder_is_given(benchmark: StreamBenchmark, engine: str, batch_size: int) -> None:
    collector = Collector()
    for one in (
        learner := strategy(engine=engine, batch_size=batch_size),
        strategy(recorder=collector, engine=engine, batch_size=batch_size),
    ):
        one.train(benchmark.train_stream)
    correct, loss = np.array(collector.all("correct"), float), np.array(collector.all("loss"))
    history = learner.history
    steps = history["step"].tolist()
    assert steps == [*range(0, 180, 20), 180]
    assert history["experience"].tolist() == [min(step // 60, 2) for step in steps]
    assert history["online_accuracy"].iloc[-1] == learner.online_accuracy
    for row, (before, step) in enumerate(itertools.pairwise(steps), start=1):
        assert history["online_accuracy"][row] == pytest.approx(correct[:step].mean())
        assert history["accuracy"][row] == pytest.approx(correct[before:step].mean())
        assert history["loss"][row] == pytest.approx(loss[before:step].mean())
    for block in learner.optimizer.step_size_report():
        recorded = [value for _, name, value in collector.all("step_sizes") if name == block]
        assert history[f"step_size/{block}"].tolist() == [*recorded, learner.optimizer.step_size_report()[block]]
    assert history.iloc[0][["online_accuracy", "accuracy", "loss"]].isna().all()


def test_it_grows_with_each_call_and_begins_empty(benchmark: StreamBenchmark) -> None:
    learner = strategy()
    assert len(learner.history) == 0
    assert list(learner.history)[:3] == ["step", "experience", "online_accuracy"]
    learner.train(benchmark.train_stream[0])
    first = learner.history
    learner.train(benchmark.train_stream[1])
    assert learner.history[:3].equals(first[:3])
    assert learner.history["step"].tolist() == [0, 20, 40, 60, 80, 100, 120]


def test_a_regression_has_no_accuracies_and_adagrad_its_step_size() -> None:
    stream = make_stream("tracking", n_samples=100, samples_per_experience=100).train_stream
    model = LinearModel()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    learner = OnlineLearner(model=model, optimizer=optimizer, criterion=HalfSquaredError(), record_every=50)
    learner.train(stream)
    assert list(learner.history) == ["step", "experience", "loss", "step_size/group0"]
    assert learner.history["step_size/group0"].tolist() == [0.1] * 3


def test_it_goes_into_checkpoints(benchmark: StreamBenchmark) -> None:
    learner = strategy()
    learner.train(benchmark.train_stream[0])
    again = pickle.loads(pickle.dumps(learner._history))
    assert again.frame({}).equals(copy.deepcopy(learner._history).frame({}))
    assert again.frame({})["step"].tolist() == learner.history["step"].tolist()
    assert "_history" in learner.__getstate__()


def test_a_recorder_takes_its_place() -> None:
    message = "no history is kept, because the learner was given a recorder, which has it"
    with pytest.raises(RuntimeError, match=exactly(message)):
        _ = strategy(recorder=Collector()).history
