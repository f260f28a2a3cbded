"""MetaOptimize as the optimizer of Avalanche's own strategies, and Avalanche's plugins in our learner."""

import random
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import (
    AGEMPlugin,
    EWCPlugin,
    GDumbPlugin,
    LwFPlugin,
    MASPlugin,
    ReplayPlugin,
    SupervisedPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.supervised import (
    AGEM,
    DER,
    ER_ACE,
    EWC,
    GEM,
    MAS,
    MIR,
    Cumulative,
    GDumb,
    ICaRL,
    LwF,
    Naive,
    Replay,
    SynapticIntelligence,
)
from avalanche.training.templates import BaseSGDTemplate
from torch import nn
from torch.utils.data import TensorDataset

from continual_metaopt.learner.online_learner import OnlineLearner, quiet_evaluator
from continual_metaopt.learner.plugins import KeepOptimizerState
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.streams import make_stream
from continual_metaopt.streams.benchmark import StreamBenchmark
from tests.continual_metaopt.conftest import small_network

LR = 1e-3

STRATEGIES: dict[str, Callable[..., BaseSGDTemplate]] = {
    "Naive": Naive,
    "Replay": partial(Replay, mem_size=20),
    "EWC": partial(EWC, ewc_lambda=1.0),
    "LwF": partial(LwF, alpha=1.0, temperature=2.0),
    "GDumb": partial(GDumb, mem_size=20),
    "SynapticIntelligence": partial(SynapticIntelligence, si_lambda=1.0),
    "AGEM": partial(AGEM, patterns_per_exp=8, sample_size=8),
    "GEM": partial(GEM, patterns_per_exp=8, memory_strength=0.5),
    "DER": partial(DER, mem_size=20),
    "ER_ACE": partial(ER_ACE, mem_size=20),
    "MAS": MAS,
    "MIR": partial(MIR, mem_size=20, subsample=8),
    "Cumulative": Cumulative,
}


@pytest.fixture(scope="module")
def two_halves() -> StreamBenchmark:
    """Digits of five classes, then of the other five."""
    return make_stream("class_split", classes_per_experience=5, samples_per_experience=24, labels="global", seed=1)


class Watch(SupervisedPlugin):
    """Notes what the optimizer knows when an experience ends, and again when the next one begins."""

    def __init__(self) -> None:
        super().__init__()
        self.at_end: list[Any] = []
        self.at_start: list[Any] = []

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if len(self.at_start) == len(self.at_end):
            self.at_start.append(knowledge(strategy))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.at_end.append(knowledge(strategy))


def knowledge(strategy: Any) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What each group has learned, and the trace of each parameter by its name."""
    optimizer = strategy.optimizer
    traces = {
        name: optimizer.state[param]["trace"].flatten().tolist()
        for name, param in strategy.model.named_parameters()
        if "trace" in optimizer.state.get(param, {})
    }
    groups = {group["name"]: (group["lr"], repr(group["learned"])) for group in optimizer.param_groups}
    return groups, traces


def train(
    name: str, benchmark: StreamBenchmark, mb_size: int, epochs: int, keep: bool, at_once: bool = False
) -> tuple[Any, Watch]:
    model, watch = small_network(), Watch()
    strategy = STRATEGIES[name](
        model=model,
        optimizer=MetaOptimize(blocks(model, "blockwise"), LR, meta_lr=0.02),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=mb_size,
        train_epochs=epochs,
        evaluator=quiet_evaluator(),
        plugins=[KeepOptimizerState(), watch] if keep else [watch],
    )
    torch.manual_seed(7)
    random.seed(7)
    for part in [benchmark.train_stream] if at_once else benchmark.train_stream:
        strategy.train(part, eval_streams=[])
    return strategy, watch


def assert_learned(strategy: Any) -> None:
    assert all(bool(torch.isfinite(param).all()) for param in strategy.model.parameters())
    step_sizes = strategy.optimizer.step_size_report()
    assert list(step_sizes) == ["1", "3"]
    assert all(0 < value < 1 and value != LR for value in step_sizes.values())
    changed = zip(strategy.model.parameters(), small_network().parameters(), strict=True)
    assert all(not after.equal(before) for after, before in changed)


@pytest.mark.parametrize(
    ("name", "mb_size", "epochs", "at_once"),
    [*((name, 5, 2, False) for name in STRATEGIES), *((name, 1, 1, True) for name in ("Naive", "Replay", "GDumb"))],
)
def test_every_strategy_learns_and_carries_over(
    two_halves: StreamBenchmark, name: str, mb_size: int, epochs: int, at_once: bool
) -> None:
    """With the plugin as without it, where plain Avalanche forgets nothing."""
    if name == "GEM" and find_spec("quadprog") is None:
        pytest.skip("Avalanche's GEM needs quadprog")
    strategies = []
    for keep in (False, True):
        strategy, watch = train(name, two_halves, mb_size, epochs, keep, at_once)
        assert_learned(strategy)
        (groups, traces), (groups_then, traces_then) = watch.at_end[0], watch.at_start[1]
        assert groups_then == groups
        assert list(traces) == ["1.weight", "1.bias", "3.weight", "3.bias"]
        assert all(any(trace) for trace in traces.values())
        # GDumb begins each experience with a new copy of the network; plain Avalanche forgets what it knew of the old
        assert traces_then == ({} if name == "GDumb" and not keep else traces)
        strategies.append(strategy)
    if name != "GDumb":
        plain, kept = strategies
        assert all(a.equal(b) for a, b in zip(plain.model.parameters(), kept.model.parameters(), strict=True))
        assert plain.optimizer.step_size_report() == kept.optimizer.step_size_report()


def digits_by_class(n_experiences: int) -> Any:
    """One of Avalanche's own benchmarks, of as many classes in each experience."""
    whole = make_stream("class_split", classes_per_experience=10, samples_per_experience=200, labels="global")
    samples = [whole.train_stream[0].dataset[i][:2] for i in range(200)]
    dataset = TensorDataset(torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples]))
    dataset.targets = dataset.tensors[1].tolist()
    return nc_benchmark(dataset, dataset, n_experiences, task_labels=False, seed=0)


@pytest.mark.parametrize("keep", [False, True], ids=["plain", "KeepOptimizerState"])
def test_icarl(keep: bool) -> None:
    model, watch = small_network(), Watch()
    features, classifier = nn.Sequential(*model[:3]), model[3]
    parts = nn.Sequential(OrderedDict([("1", features), ("3", classifier)]))
    strategy = ICaRL(
        feature_extractor=features,
        classifier=classifier,
        optimizer=MetaOptimize(blocks(parts, "blockwise"), LR, meta_lr=0.02),
        memory_size=20,
        buffer_transform=None,
        fixed_memory=True,
        train_mb_size=10,
        train_epochs=2,
        eval_mb_size=50,
        evaluator=quiet_evaluator(),
        plugins=[KeepOptimizerState(), watch] if keep else [watch],
    )
    for experience in digits_by_class(2).train_stream:
        strategy.train(experience, eval_streams=[])
    assert_learned(strategy)
    assert watch.at_start[1] == watch.at_end[0]
    assert len(watch.at_end[0][1]) == 4


# ------------------------------------------------------------------------------------- Avalanche's plugins, our learner

PLUGINS: dict[str, Callable[[], SupervisedPlugin]] = {
    "Replay": lambda: ReplayPlugin(mem_size=10, batch_size=1, batch_size_mem=3),
    "EWC": lambda: EWCPlugin(ewc_lambda=1.0),
    "LwF": LwFPlugin,
    "GDumb": lambda: GDumbPlugin(mem_size=10),
    "SynapticIntelligence": lambda: SynapticIntelligencePlugin(si_lambda=1.0),
    "AGEM": lambda: AGEMPlugin(patterns_per_experience=8, sample_size=8),
    "MAS": MASPlugin,
}


# Naive's data loader draws a random number for each epoch and ours does not, so these find other numbers
DRAW_RANDOM_NUMBERS = {"Replay", "GDumb", "AGEM"}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_do_in_our_learner_what_they_do_in_naive(two_halves: StreamBenchmark, name: str) -> None:
    models, step_sizes = [], []
    for make in (
        lambda **options: OnlineLearner(engine="torch", **options),
        lambda **options: Naive(criterion=nn.CrossEntropyLoss(), evaluator=quiet_evaluator(), **options),
    ):
        model, watch = small_network(), Watch()
        optimizer = MetaOptimize(blocks(model, "blockwise"), LR, meta_lr=0.02)
        strategy = make(model=model, optimizer=optimizer, plugins=[KeepOptimizerState(), PLUGINS[name](), watch])
        torch.manual_seed(7)
        strategy.train(two_halves.train_stream, eval_streams=[], shuffle=False)
        assert_learned(strategy)
        assert watch.at_start[1] == watch.at_end[0]
        models.append(strategy.model)
        step_sizes.append(optimizer.step_size_report())
    if name not in DRAW_RANDOM_NUMBERS:
        assert all(a.equal(b) for a, b in zip(*(model.parameters() for model in models), strict=True))
        assert step_sizes[0] == step_sizes[1]
