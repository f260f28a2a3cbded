"""KeepOptimizerState and OnlineLearner keep what any optimizer has learned while a network grows."""

import copy
from collections.abc import Callable
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pytest
import torch
from avalanche.benchmarks import task_incremental_benchmark, with_classes_timeline
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.models.dynamic_modules import avalanche_model_adaptation
from avalanche.models.pnn import PNN
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.learner.online_learner import OnlineLearner, quiet_evaluator
from continual_metaopt.learner.plugins import KeepOptimizerState
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.streams import make_stream

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "scalar": lambda model: MetaOptimize(blocks(model, "scalar"), 1e-3, meta_lr=0.02),
    "blockwise": lambda model: MetaOptimize(blocks(model, "blockwise"), 1e-3, meta_lr=0.02),
    "layerwise": lambda model: MetaOptimize(blocks(model, "layerwise"), 1e-3, meta_lr=0.02),
    "torch Adam": lambda model: torch.optim.Adam(model.parameters(), 1e-3),
    "torch SGD": lambda model: torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9),
}


KINDS = ["plugin", "OnlineLearner"]


class Growing(nn.Module):
    """A network whose head gets an output for every class that it meets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
        self.head = IncrementalClassifier(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


class ManyHeads(MultiTaskModule):
    """A network with one head per task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
        self.heads = MultiHeadClassifier(8)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        out: Tensor = self.heads(self.features(x), task_labels)
        return out


def classes_by_twos() -> Any:
    """Of the first three experiences, each has a class with a higher number than all before, so that heads grow."""
    return make_stream("class_split", classes_per_experience=2, samples_per_experience=30, labels="global", seed=29)


def strategy_of(kind: str, model: nn.Module, optimizer: Optimizer) -> Any:
    if kind == "OnlineLearner":
        return OnlineLearner(model=model, optimizer=optimizer)
    plugins = [KeepOptimizerState()] if kind == "plugin" else []
    return Naive(model=model, optimizer=optimizer, train_mb_size=5, evaluator=quiet_evaluator(), plugins=plugins)


def tensors_of(optimizer: Optimizer, param: Tensor) -> dict[str, Tensor]:
    """The state that has the parameter's shape."""
    state = optimizer.state.get(param, {})
    return {
        key: value.clone() for key, value in state.items() if isinstance(value, Tensor) and value.shape == param.shape
    }


class AtStart(KeepOptimizerState.__bases__[0]):  # type: ignore[misc]
    """Notes the state of the head when learning begins in an experience."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[dict[str, Tensor]] = []
        self.steps: list[int] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.states.append(tensors_of(strategy.optimizer, strategy.model.head.classifier.weight))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_growing_head_keeps_what_was_learned(make: Callable[[nn.Module], Optimizer], kind: str) -> None:
    model = Growing()
    optimizer = make(model)
    strategy, watch = strategy_of(kind, model, optimizer), AtStart()
    strategy.plugins.insert(1, watch)
    ends = []
    for experience in classes_by_twos().train_stream[:3]:
        strategy.train(experience, eval_streams=[])
        ends.append((tensors_of(optimizer, model.head.classifier.weight), len(model.head.classifier.bias)))
    for (before, outputs), after in zip(ends[:-1], watch.states[1:], strict=True):
        assert before
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert after[key][:outputs].equal(value)
            assert not after[key][outputs:].any()
            assert value.any()
    held = [id(param) for group in optimizer.param_groups for param in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_step_sizes_of_a_growing_network_go_on_from_where_they_were(kind: str) -> None:
    model = Growing()
    optimizer = MetaOptimize(blocks(model), 1e-3, meta_lr=0.02)
    strategy = strategy_of(kind, model, optimizer)
    stream = classes_by_twos().train_stream
    strategy.train(stream[0], eval_streams=[])
    before = copy.deepcopy([group["learned"] for group in optimizer.param_groups])

    class Compare(KeepOptimizerState.__bases__[0]):  # type: ignore[misc]
        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            assert [group["learned"] for group in optimizer.param_groups] == before

    strategy.plugins.insert(1, Compare())
    strategy.train(stream[1], eval_streams=[])
    assert [group["learned"] for group in optimizer.param_groups] != before


@pytest.mark.parametrize(("name", "kind"), [(name, k) for name in ("layerwise", "torch Adam") for k in KINDS])
def test_a_state_that_was_loaded_before_the_first_training_survives(name: str, kind: str) -> None:
    make, stream = OPTIMIZERS[name], classes_by_twos().train_stream
    first = Growing()
    optimizer = make(first)
    strategy_of(kind, first, optimizer).train(stream[0], eval_streams=[])
    second = copy.deepcopy(first)
    successor = make(second)
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    known = tensors_of(successor, second.features[1].weight)
    strategy, watch = strategy_of(kind, second, successor), AtStart()
    strategy.plugins.insert(1, watch)
    strategy.train(stream[0], eval_streams=[])
    assert known
    assert watch.states[0].keys() == known.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_grows_during_evaluation_is_learned_at_once(kind: str) -> None:
    model = Growing()
    optimizer = OPTIMIZERS["blockwise"](model)
    strategy = strategy_of(kind, model, optimizer)
    benchmark = classes_by_twos()
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.eval(benchmark.test_stream)
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    assert len(model.head.classifier.bias) == 10
    assert held == set(map(id, model.parameters()))
    assert tensors_of(optimizer, model.head.classifier.weight)["trace"].any()


def task_by_task() -> Any:
    benchmark = with_classes_timeline(task_incremental_benchmark(classes_by_twos(), reset_task_labels=True))
    for experience in benchmark.train_stream:
        # Avalanche's heads index with it, which a set does not do
        experience.classes_in_this_experience = list(experience.classes_in_this_experience)
    return benchmark


@pytest.mark.parametrize(
    ("network", "name", "kind"),
    [
        *((ManyHeads, name, "plugin") for name in OPTIMIZERS),
        (ManyHeads, "layerwise", "OnlineLearner"),
        (lambda: PNN(1, 64, 6), "blockwise", "plugin"),
        (lambda: PNN(1, 64, 6), "torch Adam", "OnlineLearner"),
    ],
)
def test_new_parts_of_a_network_are_learned(network: Any, name: str, kind: str) -> None:
    model, make = network(), OPTIMIZERS[name]
    optimizer = make(model)
    strategy = strategy_of(kind, model, optimizer)
    for experience in task_by_task().train_stream[:3]:
        strategy.train(experience, eval_streams=[])
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    assert held == set(map(id, model.parameters()))
    assert all(bool(param.isfinite().all()) for param in model.parameters())
    assert len(optimizer.param_groups) == len(make(network()).param_groups)


def test_avalanche_by_itself_cannot_place_a_new_head_among_several_blocks() -> None:
    stream = task_by_task().train_stream
    for kind in ("plain", "plugin", "OnlineLearner"):
        model = ManyHeads()
        for experience in stream[:2]:
            avalanche_model_adaptation(model, experience)
        optimizer = OPTIMIZERS["layerwise"](model)
        strategy = strategy_of(kind, model, optimizer)
        if kind == "plain":
            with pytest.raises(AttributeError, match="No unique group found"):
                strategy.train(stream[2], eval_streams=[])
        else:
            strategy.train(stream[2], eval_streams=[])
            assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 4]
