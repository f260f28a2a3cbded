"""Diagnostics while strategies learn: their values, and that nothing else notices them."""

import inspect
import math
from typing import Any, get_args

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import dill
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from continual_metaopt.engines.torch_engine import accuracy
from continual_metaopt.learner.metrics import inside as d
from continual_metaopt.learner.metrics.diagnostics import (
    DistanceFromInitialisation,
    Plasticity,
    Representation,
    Retention,
    UpdateRatio,
    diagnostics,
    named_diagnostics,
)
from continual_metaopt.learner.metrics.names import Diagnostic
from continual_metaopt.learner.metrics.online import TraceCosine, online_metrics
from continual_metaopt.learner.online_learner import OnlineLearner, quiet_evaluator
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.streams import make_stream
from continual_metaopt.streams.benchmark import StreamBenchmark
from tests.continual_metaopt.conftest import Collector, exactly
from tests.continual_metaopt.learner.metrics.test_online import Curves, curves, naive
from tests.continual_metaopt.learner.parts import evaluator_of

ENGINES = ["torch", "fused", "compiled"]
SUFFIX = "/train_phase/train_stream"
BLOCKS = ["linear1", "linear2"]
OF_BLOCKS = ["WeightNorm", "GradientNorm", "DistanceFromInitialisation", "UpdateRatio", "TraceCosine"]
CURVES = {f"{quantity}/{block}" for quantity in OF_BLOCKS for block in BLOCKS} | {
    *("Plasticity", "DormantUnits", "DormantUnits/linear1", "EffectiveRank", "StableRank"),
    *("Retention", "Forgetting", "Retention/0", "Retention/1", "Retention/2"),
}


class Measures(Collector):
    """A recorder that keeps everything, also what is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, str, str | None, str, float]] = []

    def measure(self, rows: list[tuple[int, str, str | None, str, float]]) -> None:
        self.rows += rows


class ByHand(SupervisedPlugin):
    """Measures everything anew at every iteration, from copies, in the plainest way."""

    def __init__(self, threshold: float, probe: int) -> None:
        super().__init__()
        self.threshold, self.probe = threshold, probe
        self.values: dict[str, list[float]] = {}
        self.seen: list[Tensor] = []
        self.initial: dict[str, Tensor] = {}

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        model = strategy.model
        weights = {name: param.detach().clone() for name, param in model.named_parameters()}
        self.initial = self.initial or weights
        self.before = weights
        for block in BLOCKS:
            self.add(f"WeightNorm/{block}", length(weights, block))
            moved = {name: weight - self.initial[name] for name, weight in weights.items()}
            self.add(f"DistanceFromInitialisation/{block}", length(moved, block))
        if self.seen:
            with torch.no_grad():
                hidden = nn.Sequential(*list(model)[:-1])(torch.cat(self.seen)[-self.probe :])
            activity = hidden.abs().mean(dim=0)
            dormant = (activity / activity.mean() <= self.threshold).float().mean().item()
            self.add("DormantUnits", dormant)
            self.add("DormantUnits/linear1", dormant)
            values = torch.linalg.svd(hidden.double())[1]
            shares = values[values > 0] / values.sum()
            self.add("EffectiveRank", math.exp(-(shares * shares.log()).sum().item()))
            self.add("StableRank", (hidden.norm() ** 2 / values[0] ** 2).item())
        self.seen.append(strategy.mb_x.clone())
        self.loss_before = self.loss(strategy)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        gradients = {name: param.grad.clone() for name, param in strategy.model.named_parameters()}
        for block in BLOCKS:
            self.add(f"GradientNorm/{block}", length(gradients, block))

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.add("Plasticity", min(max(1 - self.loss(strategy) / self.loss_before, 0), 1))
        for block in BLOCKS:
            change = {name: param.detach() - self.before[name] for name, param in strategy.model.named_parameters()}
            self.add(f"UpdateRatio/{block}", length(change, block) / length(self.before, block))

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    @staticmethod
    def loss(strategy: Any) -> float:
        with torch.no_grad():
            return cross_entropy(strategy.model(strategy.mb_x), strategy.mb_y).item()


def length(tensors: dict[str, Tensor], block: str) -> float:
    return torch.cat([tensor.flatten() for name, tensor in tensors.items() if name.startswith(block)]).norm().item()


def network(seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP(hidden=[12])


def metaoptimize(model: nn.Module) -> MetaOptimize:
    return MetaOptimize(blocks(model, "blockwise"), 3e-3, meta_lr=0.02)


def learner_with(*metrics: Any, model: nn.Module | None = None, **options: Any) -> OnlineLearner:
    model = model or network()
    return OnlineLearner(model=model, optimizer=metaoptimize(model), evaluator=evaluator_of(*metrics), **options)


def by_name(strategy: Any) -> Curves:
    return {name.removesuffix(SUFFIX): points for name, points in curves(strategy).items()}


# --------------------------------------------------------------------------------------------------- values and place


@pytest.fixture(scope="module")
def reference(benchmark: StreamBenchmark) -> ByHand:
    by_hand, model = ByHand(threshold=0.3, probe=25), network()
    strategy = naive(model, metaoptimize(model), quiet_evaluator(), plugins=[by_hand])
    strategy.train(benchmark.train_stream, shuffle=False)
    return by_hand


@pytest.mark.parametrize("engine", ENGINES)
def test_values_are_those_of_a_plain_reference(benchmark: StreamBenchmark, reference: ByHand, engine: str) -> None:
    metrics = diagnostics(every=7, threshold=0.3, probe=25, retention=benchmark.test_stream)
    learner = learner_with(metrics, engine=engine)
    learner.train(benchmark.train_stream)
    assert learner.engine["name"] == engine
    ours = by_name(learner)

    assert set(ours) == CURVES
    for name, values in reference.values.items():
        late = len(values) == 179  # there is nothing to measure units on before the first sample
        expected = [(x, values[x - late]) for x in range(0, 180, 7) if x >= late]
        assert [x for x, _ in ours[name]] == [x for x, _ in expected], name
        tolerance = {"rel": 2e-3, "abs": 1 / 12 + 1e-3 if "Dormant" in name else 1e-5}
        assert [value for _, value in ours[name]] == pytest.approx([value for _, value in expected], **tolerance), name
    assert max(value for _, value in ours["DormantUnits"]) > 0
    assert [x for x, _ in ours["TraceCosine/linear1"]] == list(range(7, 180, 7))


def test_optimizers_that_differentiate_by_themselves_have_gradients(benchmark: StreamBenchmark) -> None:
    reference = ByHand(threshold=0.1, probe=20)
    learners = []
    for plugins in ([], [reference]):
        model = network()
        optimizer = MetaOptimize(blocks(model, "blockwise"), 3e-3, meta_lr=0.02, trace="l")
        metrics = diagnostics(every=20, plasticity=False)
        options: dict[str, Any] = {"evaluator": evaluator_of(metrics), "plugins": plugins}
        learners.append(OnlineLearner(model=model, optimizer=optimizer, **options))
        learners[-1].train(benchmark.train_stream[0])
    for learner in learners:
        values = [value for _, value in by_name(learner)["GradientNorm/linear1"]]
        assert values == pytest.approx(reference.values["GradientNorm/linear1"][::20])
    plain, listening = (list(learner.model.parameters()) for learner in learners)
    assert all(map(torch.equal, plain, listening))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_any_batch_size_and_optimizer(benchmark: StreamBenchmark, batch_size: int) -> None:
    reference = ByHand(threshold=0.1, probe=20)
    model = network()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.01, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch_size,
        train_epochs=2,
        plugins=[reference],
        evaluator=evaluator_of(diagnostics(every=3, threshold=0.1, probe=20)),
    )
    strategy.train(benchmark.train_stream[:1], shuffle=False)

    ours = by_name(strategy)
    n = 2 * math.ceil(60 / batch_size)
    for name, values in reference.values.items():
        late = len(values) == n - 1
        expected = [values[x - late] for x in range(0, n, 3) if x >= late]
        assert [value for _, value in ours[name]] == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    assert not [name for name in ours if name.startswith("TraceCosine")]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("every", [1, 40])
def test_what_is_learned_is_the_same_bit_for_bit(benchmark: StreamBenchmark, engine: str, every: int) -> None:
    learners, random = [], []
    measured = diagnostics(every=every, retention=benchmark.test_stream)
    for metrics in ([], [*measured, *online_metrics(every=every, trace_cosines=True, trace_norms=True)]):
        torch.manual_seed(5)
        learners.append(learner_with(*metrics, engine=engine, recorder=Measures()))
        torch.manual_seed(6)
        learners[-1].train(benchmark.train_stream[:2])
        random.append(torch.get_rng_state())
    plain, observed = learners

    assert torch.equal(*random)
    assert plain.engine == observed.engine
    assert plain.engine["name"] == engine
    for field in ("loss", "correct", "step_sizes", "measurements"):
        assert plain.recorder.all(field) == observed.recorder.all(field)  # type: ignore[union-attr]
    for ours, theirs in zip(observed.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.grad is None or engine != "compiled"
    assert plain.optimizer.step_size_report() == observed.optimizer.step_size_report()


def test_networks_that_draw_and_count_learn_the_same(benchmark: StreamBenchmark) -> None:
    """Dropout draws random numbers and batch normalisation counts, but not while something is measured."""

    def learned(metrics: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(0)
        layers = [nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 12), nn.Dropout(0.5), nn.ReLU(), nn.Linear(12, 10)]
        model = nn.Sequential(*layers)
        learner_with(*metrics, model=model).train(benchmark.train_stream)
        return model.state_dict(), torch.get_rng_state()

    (plain, plain_random), (observed, random) = learned([]), learned(diagnostics(every=10))
    assert torch.equal(plain_random, random)
    assert all(torch.equal(value, plain[name]) for name, value in observed.items())


def test_random_transformations_are_seen_as_they_were(benchmark: StreamBenchmark) -> None:
    """Samples that look different whenever they are read: units are measured on what was learned from."""

    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn_like(x)

    dataset = benchmark.train_stream[0].dataset.replace_current_transform_group((noisy, None))
    experience = benchmark_from_datasets(train=[dataset], test=[]).train_stream[0]
    found = []
    for engine in ("torch", "compiled"):
        torch.manual_seed(1)
        learner = learner_with(diagnostics(every=20, probe=10), engine=engine, recorder=Measures())
        torch.manual_seed(2)
        learner.train(experience)
        found.append((learner.recorder.all("loss"), by_name(learner)))  # type: ignore[union-attr]

    (torch_loss, ours), (compiled_loss, theirs) = found
    assert compiled_loss == pytest.approx(torch_loss, rel=1e-3)
    for name in ("EffectiveRank", "StableRank", "Plasticity"):
        assert [y for _, y in theirs[name]] == pytest.approx([y for _, y in ours[name]], rel=1e-2), name


def test_callbacks_run_beside_portions_of_compiled_code(benchmark: StreamBenchmark) -> None:
    """Another metric that makes Avalanche's loop run changes no value."""

    class Listens(SupervisedPlugin):
        def after_backward(self, strategy: Any, **kwargs: Any) -> None:
            pass

    def learner(*plugins: SupervisedPlugin) -> OnlineLearner:
        model = network()
        model.relu1 = nn.ELU()  # whose gradients are autograd's in short experiences
        metrics = diagnostics(every=9), online_metrics(every=4)
        return learner_with(*metrics, model=model, engine="fused", plugins=list(plugins))

    alone, listened = learner(), learner(Listens())
    for each in (alone, listened):
        each.train(benchmark.train_stream)
    assert curves(alone) == curves(listened)


def test_only_the_last_samples_are_kept(benchmark: StreamBenchmark) -> None:
    metric = Representation(1000, probe=5)
    for numbers in ([0, 1, 2], [3], [4, 5, 6], [7]):
        metric.take_inputs(torch.tensor(numbers, dtype=torch.float32)[:, None])
        assert sum(map(len, metric._seen)) < 5 + 3
    assert metric._last_inputs().flatten().tolist() == [3, 4, 5, 6, 7]
    again = Representation(1000, probe=5)
    again.restore(metric.state())
    assert torch.equal(again._last_inputs(), metric._last_inputs())
    metric.reset()
    assert metric.state() == {}


def test_samples_are_noted_without_copies(benchmark: StreamBenchmark) -> None:
    metric, batch = Representation(1000), torch.ones(4, 3)
    metric.take_inputs(batch)
    assert metric._seen[0].data_ptr() == batch.data_ptr()


def test_readings_can_be_chosen(benchmark: StreamBenchmark) -> None:
    learner = learner_with(Representation(50, ["stable_rank"]))
    learner.train(benchmark.train_stream)
    assert list(by_name(learner)) == ["StableRank"]
    assert learner.evaluator.metrics[0].result().keys() == {"StableRank"}


# ----------------------------------------------------------------------------------------------- weights that come late


def test_distance_of_weights_that_grow() -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 1, bias=False)
            nn.init.constant_(self.head.weight, 1.0)

    class Strategy:
        model = Growing()

    metric = DistanceFromInitialisation(1)
    metric.before_training_exp(Strategy())
    Strategy.model.head.weight.data += 3.0
    grown = nn.Linear(2, 2, bias=False)
    grown.weight.data = torch.tensor([[4.0, 4.0], [7.0, 7.0]])
    Strategy.model.head = grown
    metric.before_training_exp(Strategy())
    grown.weight.data[1] += 4.0

    assert metric._initial["head.weight"].tolist() == [[1, 1], [7, 7]]
    ((_, params),) = d.parameter_blocks(Strategy.model).items()
    assert metric._measure_block(params) == pytest.approx(math.sqrt(2 * 9 + 2 * 16))


def test_blocks_of_zeros_have_no_ratio(benchmark: StreamBenchmark) -> None:
    model = network()
    for param in model.linear1.parameters():
        nn.init.zeros_(param)
    learner = learner_with(UpdateRatio(1000), model=model)
    learner.train(benchmark.train_stream)
    assert set(by_name(learner)) == {"UpdateRatio/linear2"}


# ------------------------------------------------------------------------------------------------------------ retention


def test_retention_and_forgetting(benchmark: StreamBenchmark) -> None:
    learner = learner_with(Retention(benchmark.test_stream))
    table = []
    for experience in benchmark.train_stream:
        learner.train(experience)
        table.append([accuracy(learner.model, test.dataset, learner.device) for test in benchmark.test_stream])

    ours = by_name(learner)
    assert ours["Retention/0"] == [(60, table[0][0]), (120, table[1][0]), (180, table[2][0])]
    assert ours["Retention/2"] == [(180, table[2][2])]
    assert ours["Retention"] == [(120, table[1][0]), (180, pytest.approx((table[2][0] + table[2][1]) / 2))]
    drops = [max(table[0][0], table[1][0]) - table[2][0], table[1][1] - table[2][1]]
    assert ours["Forgetting"] == [
        (120, pytest.approx(table[0][0] - table[1][0])),
        (180, pytest.approx(sum(drops) / 2)),
    ]


def test_pieces_of_experiences_have_no_retention(benchmark: StreamBenchmark) -> None:
    model = network()
    strategy = naive(model, metaoptimize(model), evaluator_of(Retention(benchmark.test_stream)))
    strategy.train(split_online_stream(benchmark.train_stream[:1], experience_size=20), eval_streams=[])
    assert curves(strategy) == {}


def test_streams_without_held_out_samples_have_no_retention() -> None:
    tracking = make_stream("tracking", n_samples=200)
    model = nn.Linear(20, 1)
    optimizer = MetaOptimize(blocks(model, "scalar"), 1e-3)
    learner = OnlineLearner(
        model=model,
        optimizer=optimizer,
        criterion=nn.MSELoss(),
        evaluator=evaluator_of(diagnostics(every=50, retention=tracking.test_stream)),
    )
    learner.train(tracking.train_stream)
    names = {name.partition("/")[0] for name in by_name(learner)}
    assert names == {"Plasticity", *OF_BLOCKS}


# -------------------------------------------------------------------------------------------------- choice and records


def test_diagnostics_can_be_chosen() -> None:
    for name in get_args(Diagnostic):
        metrics = named_diagnostics([name], 10, ["a stream"])
        assert len(metrics) == 1
        assert metrics[0].every == 10 or name == "retention"
        assert metrics[0].is_recorded
    assert named_diagnostics([], 10, []) == []
    assert [type(metric) for metric in named_diagnostics(["trace_cosine", "plasticity"], 10, [])] == [
        Plasticity,
        TraceCosine,
    ]


def test_every_name_is_an_option() -> None:
    options = set(inspect.signature(diagnostics).parameters)
    assert set(get_args(Diagnostic)) == options - {"every", "threshold", "probe"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be at least 1, but is 0"),
        ({"probe": 0}, "probe must be at least 1, but is 0"),
        ({"threshold": -0.1}, "threshold must not be negative, but is -0.1"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        diagnostics(**options)


@pytest.mark.parametrize("engine", ENGINES)
def test_recorders_get_the_values(benchmark: StreamBenchmark, engine: str) -> None:
    learner = learner_with(
        diagnostics(every=50, retention=benchmark.test_stream), online_metrics(), engine=engine, recorder=Measures()
    )
    learner.train(benchmark.train_stream)
    rows = learner.recorder.rows  # type: ignore[union-attr]
    logged = by_name(learner)
    assert {quantity for _, quantity, *_ in rows} == {*get_args(Diagnostic), "forgetting"}
    values = {(quantity, block, statistic): [] for _, quantity, block, statistic, _ in rows}
    for step, quantity, block, statistic, value in rows:
        values[quantity, block, statistic].append((step, value))
    assert values["update_ratio", "linear1", "value"] == logged["UpdateRatio/linear1"]
    assert values["dormant_units", None, "value"] == logged["DormantUnits"]
    assert values["trace_cosine", "linear2", "value"] == logged["TraceCosine/linear2"]
    assert values["retention", None, "experience 1"] == logged["Retention/1"]
    assert values["forgetting", None, "value"] == logged["Forgetting"]


@pytest.mark.parametrize("kind", ["compiled", "Naive"])
def test_pickled_strategies_go_on_where_they_were(benchmark: StreamBenchmark, kind: str) -> None:
    def strategy() -> Any:
        metrics = diagnostics(every=25, probe=40)
        if kind != "Naive":
            return learner_with(*metrics, engine=kind)
        model = network()
        return naive(model, metaoptimize(model), evaluator_of(*metrics))

    whole, first = strategy(), strategy()
    for experience in benchmark.train_stream:
        whole.train(experience, shuffle=False)
    first.train(benchmark.train_stream[0], shuffle=False)
    second = dill.loads(dill.dumps(first))
    for experience in benchmark.train_stream[1:]:
        second.train(experience, shuffle=False)
    # Avalanche starts the optimizer anew after a checkpoint, but not ours
    if kind != "Naive":
        assert curves(second) == curves(whole)
    assert by_name(second)["DistanceFromInitialisation/linear1"][0] == (0, 0.0)
