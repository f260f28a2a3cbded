"""Networks whose outputs appear as classes do: growth, masks, what is kept, records, resumption, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from continual_metaopt.engines import torch_engine
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.learner.strategy import MetaOptimizeStrategy
from continual_metaopt.networks.growing_head import GrowingHead
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.run import run_one
from continual_metaopt.streams import make_stream
from continual_metaopt.streams.benchmark import StreamBenchmark
from tests.continual_metaopt.conftest import Collector, exactly, read_tables
from tests.continual_metaopt.networks.test_networks import LEARNING, NOT_COMPILED, make
from tests.continual_metaopt.runs.test_learner_run import stop_at

STREAM: dict[str, Any] = {
    "name": "class_split",
    "classes_per_experience": 2,
    "n_experiences": 3,
    "samples_per_experience": 20,
    "labels": "global",
}
CASES = [case for case in LEARNING if case != "linear"]


@pytest.fixture(scope="module")
def incremental() -> StreamBenchmark:
    """Experiences with the classes 1 and 4, 0 and 6, 9 and 3."""
    options = {name: value for name, value in STREAM.items() if name != "name"}
    return make_stream("class_split", seed=29, **options)


def head_of(model: nn.Module) -> GrowingHead:
    (head,) = (module for module in model.modules() if isinstance(module, GrowingHead))
    return head


class TestExperience:
    """What a head looks at."""

    __test__ = False

    def __init__(self, *classes: int) -> None:
        self.classes_in_this_experience = list(classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_growing_keeps_old_weights_and_masks_what_has_not_appeared(dtype: torch.dtype) -> None:
    head = GrowingHead(3).to(dtype)
    assert head(torch.ones(1, 3, dtype=dtype)).tolist() == [[-1000.0]]

    head.adaptation(TestExperience(1, 3))
    before, bias = head.classifier.weight.clone(), head.classifier.bias.clone()
    assert before.shape == (4, 3)
    head.adaptation(TestExperience(5))

    assert head.classifier.weight.dtype == head.classifier.bias.dtype == dtype
    assert head.classifier.weight.shape == (6, 3)
    assert head.classifier.weight[:4].equal(before)
    assert head.classifier.bias[:4].equal(bias)
    output = head(torch.ones(1, 3, dtype=dtype))
    assert (output == -1000.0).tolist() == [[True, False, True, False, True, False]]
    head.eval()
    head.adaptation(TestExperience(0, 6))  # only looked at
    assert (head(torch.ones(1, 3, dtype=dtype)) == -1000.0).tolist() == [[True, False, True, False, True, False, True]]


@pytest.mark.parametrize("case", CASES)
def test_every_network_can_grow(case: str, incremental: StreamBenchmark) -> None:
    model = make(case, growing_head=True)
    assert head_of(model).classifier.out_features == 1

    collector = Collector()
    learner = MetaOptimizeStrategy(model=model, lr=1e-3, recorder=collector, record_every=10)
    sizes = []
    for experience in incremental.train_stream:
        learner.train(experience)
        sizes.append(head_of(model).classifier.out_features)

    assert sizes == [5, 7, 10]
    assert learner.engine["name"] == "fused"
    assert head_of(model).active_units.tolist() == [1, 1, 0, 1, 1, 0, 1, 0, 0, 1]
    names = [group["name"] for group in learner.optimizer.param_groups]
    assert names == [block["name"] for block in blocks(make(case))]
    known = {id(param) for group in learner.optimizer.param_groups for param in group["params"]}
    assert known == {id(param) for param in model.parameters()}
    losses = collector.all("loss")
    assert all(sum(losses[i + 10 : i + 20]) < sum(losses[i : i + 10]) for i in (0, 20, 40))


def test_state_of_the_old_outputs_is_kept(incremental: StreamBenchmark) -> None:
    torch.manual_seed(0)
    model = MLP(growing_head=True)
    learner = MetaOptimizeStrategy(model=model, lr=1e-3, gamma=0.99, trace="hessian_free")
    learner.train(incremental.train_stream[0])
    weight = head_of(model).classifier.weight
    trace, step_sizes = learner.optimizer.state[weight]["trace"].clone(), learner.optimizer.step_size_report()
    seen = []

    class Look:
        def observe(self, observations: Any) -> None:
            if not seen:
                seen.extend(value for step, block, value in observations.step_sizes if block == "linear2")

    learner.recorder, learner.record_every = Look(), 10
    learner.train(incremental.train_stream[1])

    assert seen[0] == pytest.approx(step_sizes["linear2"])
    grown = learner.optimizer.state[head_of(model).classifier.weight]["trace"]
    assert grown.shape == (7, 128)
    assert not grown[:5].equal(trace)
    assert grown[[0, 6]].abs().sum() > 0
    assert grown[5].abs().sum() < grown[6].abs().sum() / 10  # a masked output has no gradient, only weight decay


@pytest.mark.parametrize("step_sizes", ["blockwise", "node", "weight"])
def test_engines_agree_while_the_head_grows(incremental: StreamBenchmark, step_sizes: Any) -> None:
    results = []
    for engine in ("torch", "fused") if step_sizes == "blockwise" else ("torch", "auto"):
        torch.manual_seed(3)
        model = MLP(hidden=(16,), growing_head=True)
        collector = Collector()
        learner = MetaOptimizeStrategy(
            model=model, lr=1e-3, step_sizes=step_sizes, engine=engine, recorder=collector, record_every=10
        )
        learner.train(incremental.train_stream)
        learner.eval(incremental.test_stream)
        results.append((collector.all("loss"), list(model.parameters())))

    (losses, weights), (their_losses, their_weights) = results
    assert losses == pytest.approx(their_losses, rel=1e-3)
    for ours, theirs in zip(weights, their_weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def config_of(**changes: Any) -> RunConfig:
    fields: dict[str, Any] = {
        "stream": Component(**STREAM),
        "network": Component(name="mlp", hidden=[8], growing_head=True),
        "learner": Component(name="metaoptimize", lr=3e-3),
        "seed": 29,
        "record_every": 10,
    }
    return RunConfig(**fields | changes).resolved()


@pytest.mark.parametrize("network", ["mlp", "paper_cnn", "lenet"])
def test_runs_can_have_growing_heads(tmp_path: Path, network: str) -> None:
    assert run_one(config_of(network=Component(name=network, growing_head=True)), tmp_path / "run") == "finished"

    status, tables = read_json(tmp_path / "run" / "status.json"), read_tables(tmp_path / "run")
    reason = NOT_COMPILED + "GrowingHead; gradients by autograd: the experience is too short for tracing"
    assert status["engine"] == {"name": "fused", "reason": reason}
    assert len(tables["samples"]) == 60
    assert all(accuracy is not None for accuracy in tables["experiences"]["test_accuracy"].to_pylist())


@pytest.mark.parametrize(
    ("portions", "learner"),
    [
        (3, {"name": "metaoptimize"}),
        (9, {"name": "metaoptimize"}),  # in the second experience, whose head is larger
        (9, {"name": "metaoptimize", "step_sizes": "weight"}),
        (9, {"name": "metaoptimize", "step_sizes": "node", "gamma": "auto", "trace": "dutch"}),
        (9, {"name": "metaoptimize", "trace": "l", "gamma": 0.99}),
        (9, {"name": "torch:Adam"}),
    ],
)
def test_an_interrupted_run_goes_on_with_the_head_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portions: int, learner: dict[str, Any]
) -> None:
    config = config_of(learner=Component(lr=3e-3, **learner))
    monkeypatch.setattr(torch_engine, "MAX_SAMPLES", 4)
    monkeypatch.setattr(torch_engine, "MAX_SECONDS", 60.0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_one(config, whole) == "finished"

    assert run_one(config, cut, should_stop=stop_at(portions)) == "failed"
    assert run_one(config, cut) == "finished"

    ours, theirs = read_tables(cut), read_tables(whole)
    for name in ("samples", "step_sizes", "experiences"):
        assert ours[name].equals(theirs[name]), name


def test_states_of_other_sizes_can_be_loaded() -> None:
    small, large = MLP(growing_head=True), MLP(growing_head=True)
    head_of(large).adaptation(TestExperience(2, 4))
    parameters = list(small.parameters())
    x = torch.randn(2, 1, 8, 8)

    small.load_state_dict(large.state_dict())

    assert small(x).equal(large(x))
    assert head_of(small).classifier.out_features == 5
    assert all(a is b for a, b in zip(small.parameters(), parameters, strict=True))
    large.load_state_dict(MLP(growing_head=True).state_dict())
    assert large(x).tolist() == [[-1000.0], [-1000.0]]


def test_experiences_without_classes_are_refused() -> None:
    message = (
        "a growing head grows with experiences that say which classes they have; use growing_head=False for "
        "regressions, and wrap pieces of experiences in Avalanche's with_classes_timeline"
    )
    benchmark = make_stream("tracking", n_samples=5)
    model = MLP(input_shape=benchmark.info.for_learner.input_shape, growing_head=True)
    learner = OnlineLearner(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1), criterion=nn.MSELoss())

    with pytest.raises(ValueError, match=exactly(message)):
        learner.train(benchmark.train_stream)
