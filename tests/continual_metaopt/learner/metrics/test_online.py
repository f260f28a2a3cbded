"""Metrics of learning online, in OnlineLearner and Avalanche's own strategies, and what each logger makes of them."""

import csv
import io
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import dill
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger, WandBLogger
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from continual_metaopt.learner.metrics import online as metrics_module
from continual_metaopt.learner.metrics.online import (
    MetaGradient,
    OnlineAccuracy,
    OnlineLoss,
    Readable,
    SlidingAccuracy,
    StepSize,
    TraceCosine,
    TraceNorm,
    online_metrics,
)
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.streams.benchmark import StreamBenchmark
from tests.continual_metaopt.conftest import Collector, exactly, small_network
from tests.continual_metaopt.learner.parts import evaluator_of, stream_of

TRAIN = "/train_phase/train_stream"
BLOCKS = ["1", "3"]  # the layers with parameters in the small network
EPOCH = {f"Top1_Acc_Epoch{TRAIN}/Task000", f"Loss_Epoch{TRAIN}/Task000"}
CURVES = EPOCH | {
    f"{name}{TRAIN}"
    for name in ["Top1_Acc_Online", "Loss_Online", "Top1_Acc_Window1000"]
    + [f"{quantity}/{block}" for quantity in ["StepSize", "MetaGradient"] for block in BLOCKS]
}

Curves = dict[str, list[tuple[int, float]]]


class Echo(nn.Module):
    """Predicts what it is shown: an input is the output it leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class BeforeUpdate(SupervisedPlugin):
    """Keeps copies of all gradients and traces, by iteration and parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[list[Tensor]] = []
        self.traces: list[list[Tensor]] = []

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        params = list(strategy.model.parameters())
        self.gradients.append([param.grad.clone() for param in params])
        state = strategy.optimizer.state
        self.traces.append([state[param]["trace"].clone() for param in params if "trace" in state[param]])


def echoed(*right: str) -> Any:
    """A stream of experiences in each of which Echo is right ("+") and wrong ("-") as given."""
    return stream_of(
        *((torch.eye(3)[[0] * len(marks)], torch.tensor([0 if m == "+" else 2 for m in marks])) for marks in right)
    )


LOSS = {"+": math.log(math.e + 2) - 1, "-": math.log(math.e + 2)}


def naive(model: nn.Module, optimizer: torch.optim.Optimizer, evaluator: EvaluationPlugin, **options: Any) -> Naive:
    return Naive(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), evaluator=evaluator, **options)


def learner_with(*metrics: Any, loggers: Any = (), step_sizes: Any = "group", **options: Any) -> OnlineLearner:
    model = small_network()
    return OnlineLearner(
        model=model,
        optimizer=MetaOptimize(blocks(model, "blockwise"), 3e-3, meta_lr=0.02, step_sizes=step_sizes),
        evaluator=evaluator_of(*metrics, loggers=loggers),
        **options,
    )


def curves(strategy: Any) -> Curves:
    collected = strategy.evaluator.get_all_metrics()
    return {name: list(zip(*points, strict=True)) for name, points in collected.items()}


def check_curve(curve: list[tuple[int, float]], expected: list[tuple[int, float]], rel: float = 1e-6) -> None:
    assert [x for x, _ in curve] == [x for x, _ in expected]
    assert [value for _, value in curve] == pytest.approx([value for _, value in expected], rel=rel)


# ------------------------------------------------------------------------------------------------- accuracy and loss


@pytest.mark.parametrize("strategy", ["OnlineLearner", "Naive"])
def test_values_by_hand(strategy: str) -> None:
    model = Echo()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    evaluator = evaluator_of(OnlineAccuracy(every=2), SlidingAccuracy(every=2, window=3), OnlineLoss(every=2))
    if strategy == "OnlineLearner":
        made: Any = OnlineLearner(model=model, optimizer=optimizer, evaluator=evaluator)
    else:
        made = naive(model, optimizer, evaluator)
    made.train(echoed("++-+-", "-+-"), eval_streams=[], shuffle=False)

    losses = [LOSS[mark] for mark in "++-+--+-"]
    seen = curves(made)
    # every second iteration, and where the experiences end, after 5 and 8; nothing before the first prediction
    check_curve(seen.pop(f"Top1_Acc_Online{TRAIN}"), [(2, 1), (4, 3 / 4), (5, 3 / 5), (6, 3 / 6), (8, 4 / 8)])
    check_curve(seen.pop(f"Top1_Acc_Window3{TRAIN}"), [(2, 1), (4, 2 / 3), (5, 1 / 3), (6, 1 / 3), (8, 1 / 3)])
    check_curve(seen.pop(f"Loss_Online{TRAIN}"), [(n, sum(losses[:n]) / n) for n in (2, 4, 5, 6, 8)])
    check_curve(seen.pop(f"Top1_Acc_Epoch{TRAIN}"), [(5, 3 / 5), (8, 1 / 3)])
    check_curve(seen.pop(f"Loss_Epoch{TRAIN}"), [(5, sum(losses[:5]) / 5), (8, sum(losses[5:]) / 3)])
    assert not seen


def test_every_sample_of_a_batch_counts_the_same() -> None:
    model = Echo()
    metrics = [OnlineAccuracy(every=1), SlidingAccuracy(every=1, window=3), OnlineLoss(every=1)]
    strategy = naive(model, torch.optim.SGD(model.parameters(), lr=0.0), evaluator_of(metrics), train_mb_size=4)
    strategy.train(echoed("++-+-", "-+-"), eval_streams=[], shuffle=False)

    losses = [LOSS[mark] for mark in "++-+--+-"]
    seen = curves(strategy)  # the batches have 4, 1 and 3 samples
    check_curve(seen[f"Top1_Acc_Online{TRAIN}"], [(1, 3 / 4), (2, 3 / 5), (3, 4 / 8)])
    check_curve(seen[f"Top1_Acc_Window3{TRAIN}"], [(1, 2 / 3), (2, 1 / 3), (3, 1 / 3)])
    check_curve(seen[f"Loss_Online{TRAIN}"], [(x, sum(losses[:n]) / n) for x, n in ((1, 4), (2, 5), (3, 8))])


@pytest.mark.parametrize("every", [1, 7])
def test_compiled_code_and_metrics_do_not_disturb_each_other(benchmark: StreamBenchmark, every: int) -> None:
    compiled = learner_with(online_metrics(every=every, window=30), engine="compiled")
    torch_alone = learner_with(online_metrics(every=every, window=30), engine="torch")
    unobserved = learner_with(engine="compiled")
    for learner in (compiled, torch_alone, unobserved):
        learner.train(benchmark.train_stream)

    ours, theirs = curves(compiled), curves(torch_alone)
    assert list(ours) == list(theirs)
    for name, points in theirs.items():
        assert [x for x, _ in ours[name]] == [x for x, _ in points], name
        assert [y for _, y in ours[name]] == pytest.approx([y for _, y in points], rel=1e-3, abs=1e-6), name
    assert compiled.n_correct == torch_alone.n_correct
    for seen, unseen in zip(compiled.model.parameters(), unobserved.model.parameters(), strict=True):
        assert torch.equal(seen, unseen)


@pytest.mark.parametrize("epochs", [1, 2])
def test_values_of_an_epoch_are_avalanches(benchmark: StreamBenchmark, epochs: int) -> None:
    seen = []
    for metrics in ([OnlineAccuracy(), OnlineLoss()], [accuracy_metrics(epoch=True), loss_metrics(epoch=True)]):
        model = small_network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        strategy = naive(model, optimizer, evaluator_of(*metrics), train_mb_size=8, train_epochs=epochs)
        strategy.train(benchmark.train_stream, eval_streams=[], shuffle=False)
        seen.append(curves(strategy))

    ours, avalanches = seen
    assert set(avalanches) == EPOCH
    for name, curve in avalanches.items():
        assert len(curve) == 3 * epochs
        check_curve(ours[name], curve)


def test_epochs_of_one_experience_follow_each_other() -> None:
    model = Echo()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    strategy = naive(model, optimizer, evaluator_of(OnlineAccuracy(every=3)), train_epochs=2)
    strategy.train(echoed("+-+"), eval_streams=[], shuffle=False)

    seen = curves(strategy)
    check_curve(seen[f"Top1_Acc_Online{TRAIN}"], [(3, 2 / 3), (6, 4 / 6)])  # the end of an epoch is not told twice
    check_curve(seen[f"Top1_Acc_Epoch{TRAIN}"], [(3, 2 / 3), (6, 2 / 3)])


def test_regression_has_a_loss_and_no_accuracy() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    learner = OnlineLearner(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.MSELoss(),
        evaluator=evaluator_of(online_metrics(every=2)),
    )
    learner.train(stream_of((torch.randn(4, 2), torch.randn(4, 1))))

    assert set(curves(learner)) == {f"{name}{TRAIN}" for name in ["Loss_Online", "Loss_Epoch", "StepSize/group0"]}


def test_little_is_kept_between_values(benchmark: StreamBenchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MAX_PENDING", 4)
    metric = OnlineAccuracy(every=10**9)
    lengths = []

    class Watch(SupervisedPlugin):
        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            lengths.append(len(metric._pending))

    learner = learner_with(metric, plugins=[Watch()])
    learner.train(benchmark.train_stream)

    assert max(lengths) == 3
    assert metric.result() == learner.online_accuracy


# ------------------------------------------------------------------------------------------------- blocks


def test_step_sizes_and_meta_gradients_are_those_that_the_learner_records(benchmark: StreamBenchmark) -> None:
    collector = Collector()
    learner = learner_with(StepSize(every=10), MetaGradient(every=10), recorder=collector, record_every=10)
    learner.train(benchmark.train_stream)

    seen = curves(learner)
    assert len(seen) == 4
    for block in BLOCKS:
        step_sizes = [(step, value) for step, name, value in collector.all("step_sizes") if name == block]
        final = (180, learner.optimizer.step_size_report()[block])
        assert seen[f"StepSize/{block}{TRAIN}"] == [*step_sizes, final]
        measured = [(step, value) for step, _, name, _, value in collector.all("measurements") if name == block]
        assert seen[f"MetaGradient/{block}{TRAIN}"] == measured
        assert len({value for _, value in measured}) == 18
    assert learner.evaluator.metrics[0].result() == learner.optimizer.step_size_report()


@pytest.mark.parametrize(
    ("step_sizes", "members"), [("group", {"1": [0, 1], "3": [2, 3]}), ("scalar", {"all": [0, 1, 2, 3]})]
)
def test_angles_and_norms_by_hand(benchmark: StreamBenchmark, step_sizes: Any, members: dict[str, list[int]]) -> None:
    before = BeforeUpdate()
    metrics = [TraceCosine(every=20), TraceNorm(every=20), MetaGradient(every=20)]
    learner = learner_with(metrics, plugins=[before], step_sizes=step_sizes)
    learner.train(benchmark.train_stream)

    seen = curves(learner)
    assert len(seen) == 3 * len(members)
    xs = range(20, 180, 20)  # at 0 there is no trace yet
    for block, indices in members.items():
        cosines, norms, products = [], [], []
        for x in xs:
            h = torch.cat([before.traces[x][i].double().flatten() for i in indices])
            g = torch.cat([before.gradients[x][i].double().flatten() for i in indices])
            products.append((x, float(h @ g)))
            norms.append((x, float(h.norm())))
            cosines.append((x, float(h @ g / h.norm() / g.norm())))
        check_curve(seen[f"TraceCosine/{block}{TRAIN}"], cosines, rel=1e-5)
        check_curve(seen[f"TraceNorm/{block}{TRAIN}"], norms)
        check_curve(seen[f"MetaGradient/{block}{TRAIN}"], [(0, 0.0), *products], rel=1e-5)
        assert all(0 < abs(cosine) < 1 for _, cosine in cosines)


def test_parameters_without_a_gradient_count_as_ones_whose_gradient_is_zero() -> None:
    used, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = MetaOptimize([{"name": "both", "params": [used, unused]}], 0.5, base="sgd", gamma=1.0, weight_decay=0.0)
    used.grad, unused.grad = torch.tensor([-2.0, 0.0]), torch.tensor([-4.0])
    optimizer.step()  # h = (1, 0, 2)
    used.grad, unused.grad = torch.tensor([3.0, 4.0]), None
    strategy = SimpleNamespace(optimizer=optimizer)

    assert TraceNorm()._measure(strategy) == {"both": pytest.approx(math.sqrt(5))}
    assert TraceCosine()._measure(strategy) == {"both": pytest.approx(3 / (5 * math.sqrt(5)))}

    used.grad = torch.zeros(2)
    assert TraceCosine()._measure(strategy) == {}


def test_cosines_do_not_exceed_one_by_rounding() -> None:
    param = nn.Parameter(torch.zeros(999))
    optimizer = MetaOptimize([param], 1e-3, base="sgd", gamma=1.0, weight_decay=0.0)
    strategy = SimpleNamespace(optimizer=optimizer)
    for seed in range(20):
        param.grad = torch.randn(999, generator=torch.Generator().manual_seed(seed))
        optimizer.state[param]["trace"] = 0.1 * param.grad
        assert TraceCosine()._measure(strategy)["group0"] == pytest.approx(1)
        assert TraceCosine()._measure(strategy)["group0"] <= 1


@pytest.mark.parametrize(
    ("optimizer", "step_sizes"),
    [
        (lambda model: torch.optim.Adam(model.parameters(), lr=1e-3), {"group0": 1e-3}),
        (lambda model: torch.optim.SGD(blocks(model, "blockwise"), lr=torch.tensor(0.5)), {"1": 0.5, "3": 0.5}),
        (lambda model: WithoutStepSize(model.parameters(), {}), {}),
        (lambda model: MetaOptimize(model.parameters(), 1e-3, meta_lr=0.0), {"group0": 1e-3}),
    ],
)
def test_what_an_optimizer_does_not_have_is_left_out(
    benchmark: StreamBenchmark, optimizer: Any, step_sizes: dict[str, float]
) -> None:
    model = small_network()
    evaluator = evaluator_of(online_metrics(every=3, trace_cosines=True, trace_norms=True))
    strategy = naive(model, optimizer(model), evaluator, train_mb_size=8)
    strategy.train(benchmark.train_stream, eval_streams=[], shuffle=False)

    seen = curves(strategy)
    for block, value in step_sizes.items():
        assert seen.pop(f"StepSize/{block}{TRAIN}") == [(x, value) for x in [0, 3, 6, 8, 9, 12, 15, 16, 18, 21, 24]]
    if isinstance(strategy.optimizer, MetaOptimize):
        assert {value for _, value in seen.pop(f"MetaGradient/group0{TRAIN}")} == {0.0}
    assert set(seen) == {name for name in CURVES if "StepSize" not in name and "MetaGradient" not in name}
    online = seen[f"Top1_Acc_Online{TRAIN}"]
    assert [x for x, _ in online] == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]
    assert online[-1][1] * 180 == pytest.approx(round(online[-1][1] * 180))


class WithoutStepSize(torch.optim.Optimizer):
    def step(self, closure: Any = None) -> None:
        pass


# ------------------------------------------------------------------------------------------------- names and intervals


def test_each_quantity_of_each_block_is_one_curve_on_the_global_axis(benchmark: StreamBenchmark) -> None:
    learner = learner_with(online_metrics(trace_cosines=True, trace_norms=True))
    returned = learner.train(benchmark.train_stream)

    traces = {f"{quantity}/{block}{TRAIN}" for quantity in ["TraceCosine", "TraceNorm"] for block in BLOCKS}
    seen = curves(learner)
    assert set(seen) == CURVES | traces
    ends = [60, 120, 180]
    for name, curve in seen.items():
        xs = [x for x, _ in curve]
        if name in EPOCH:
            assert xs == ends, name
        elif name.startswith("StepSize"):
            assert xs == [0, 60, 100, 120, 180], name
        elif name.startswith("MetaGradient"):
            assert xs == [0, 100], name
        elif name in traces:
            assert xs == [100], name
        else:
            assert xs == [60, 100, 120, 180], name
        assert returned[name] == curve[-1][1]


def test_a_second_call_of_train_goes_on(benchmark: StreamBenchmark) -> None:
    at_once, in_parts = (learner_with(online_metrics(every=25)) for _ in range(2))
    at_once.train(benchmark.train_stream)
    for experience in benchmark.train_stream:
        in_parts.train(experience)
        in_parts.eval(benchmark.test_stream[:1])

    assert curves(in_parts) == curves(at_once)


def test_pieces_of_experiences_have_no_ends(benchmark: StreamBenchmark) -> None:
    learner = learner_with(online_metrics(every=25))
    learner.train(split_online_stream(benchmark.train_stream[:2], experience_size=1))

    seen = curves(learner)
    assert {name.replace("train_online_stream", "train_stream") for name in seen} == CURVES - EPOCH
    for name, curve in seen.items():
        first = 0 if name.startswith(("StepSize", "MetaGradient")) else 25
        assert [x for x, _ in curve] == list(range(first, 120, 25)), name


def test_metrics_can_be_chosen() -> None:
    assert [str(metric) for metric in online_metrics(trace_cosines=True, trace_norms=True, window=50)] == [
        "Top1_Acc_Online",
        "Loss_Online",
        "Top1_Acc_Window50",
        "StepSize",
        "MetaGradient",
        "TraceCosine",
        "TraceNorm",
    ]
    assert [str(metric) for metric in online_metrics(loss=False, sliding_accuracy=False, meta_gradients=False)] == [
        "Top1_Acc_Online",
        "StepSize",
    ]
    assert (
        online_metrics(accuracy=False, loss=False, sliding_accuracy=False, step_sizes=False, meta_gradients=False) == []
    )
    assert {metric.every for metric in online_metrics(every=7)} == {7}


def test_intervals_and_windows_are_at_least_one() -> None:
    with pytest.raises(ValueError, match=exactly("every must be at least 1, but is 0")):
        online_metrics(every=0)
    with pytest.raises(ValueError, match=exactly("window must be at least 1, but is 0")):
        online_metrics(window=0)


def test_reset_forgets(benchmark: StreamBenchmark) -> None:
    learner = learner_with(online_metrics(every=10))
    learner.train(benchmark.train_stream[:1])
    accuracy, loss, sliding, step_size, meta_gradient = learner.evaluator.metrics
    assert None not in [accuracy.result(), loss.result(), sliding.result()]
    assert list(step_size.result()) == list(meta_gradient.result()) == BLOCKS

    for metric in learner.evaluator.metrics:
        metric.reset()

    assert [accuracy.result(), loss.result(), sliding.result()] == [None, None, None]
    assert step_size.result() == meta_gradient.result() == {}


@pytest.mark.parametrize("strategy", ["OnlineLearner", "Naive"])
def test_pickled_strategies_go_on_where_they_were(benchmark: StreamBenchmark, strategy: str) -> None:
    def make() -> Any:
        metrics = online_metrics(every=7, window=50, trace_cosines=True, trace_norms=True)
        if strategy == "OnlineLearner":
            return learner_with(metrics)
        model = small_network()
        # dill cannot find the classes of torch.optim since torch hides the modules that they are in
        return naive(model, MetaOptimize(blocks(model), 3e-3), evaluator_of(metrics), train_mb_size=8)

    uninterrupted, interrupted = make(), make()
    for learner in (uninterrupted, interrupted):
        learner.train(benchmark.train_stream[:1], eval_streams=[], shuffle=False)
    resumed = dill.loads(dill.dumps(interrupted))
    for learner in (uninterrupted, resumed):
        learner.train(benchmark.train_stream[1:], eval_streams=[], shuffle=False)

    assert curves(resumed) == curves(uninterrupted)
    assert len(curves(resumed)) == 5 + 4 * 2


# ------------------------------------------------------------------------------------------------- loggers


def printed(text: str) -> dict[str, str]:
    """Metrics in what a text logger wrote, with their last values."""
    return dict(line.strip().split(" = ") for line in text.splitlines() if " = " in line)


@pytest.mark.parametrize("logger", ["TextLogger", "InteractiveLogger"])
def test_text_loggers_show_the_last_values_of_an_epoch(
    benchmark: StreamBenchmark, logger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = io.StringIO()
    made = TextLogger(file) if logger == "TextLogger" else InteractiveLogger()
    learner = learner_with(online_metrics(every=50), loggers=[made])
    learner.train(benchmark.train_stream)

    shown = file.getvalue() or capsys.readouterr().out
    values = printed(shown)
    assert set(values) == CURVES
    assert shown.count("Top1_Acc_Online") == 3
    assert values[f"Top1_Acc_Online{TRAIN}"] == f"{learner.online_accuracy:.4f}"
    for block, step_size in learner.optimizer.step_size_report().items():
        assert float(values[f"StepSize/{block}{TRAIN}"]) == pytest.approx(step_size, rel=1e-3)


def test_small_numbers_keep_their_digits() -> None:
    assert f"{Readable(1.23456e-5):.4f}" == "1.235e-05"  # what Avalanche's text loggers ask for
    assert f"{Readable(1.23456e-5):.2e}|{Readable(0.5)}|{Readable(0.25):.1f}" == "1.23e-05|0.5|0.2"
    assert Readable(1e-5) == 1e-5


def test_csv_logger_shows_accuracy_and_loss_of_each_experience(benchmark: StreamBenchmark, tmp_path: Path) -> None:
    collector = Collector()
    logger = CSVLogger(tmp_path)
    learner = learner_with(online_metrics(), loggers=[logger], recorder=collector)
    learner.train(benchmark.train_stream)
    logger.close()

    correct, loss = collector.all("correct"), collector.all("loss")
    with (tmp_path / "training_results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["training_exp"]) for row in rows] == [0, 1, 2]
    for row, start in zip(rows, [0, 60, 120], strict=True):
        assert float(row["training_accuracy"]) == pytest.approx(sum(correct[start : start + 60]) / 60, abs=1e-4)
        assert float(row["training_loss"]) == pytest.approx(sum(loss[start : start + 60]) / 60, abs=1e-4)


def test_tensorboard_logger_shows_every_value(benchmark: StreamBenchmark, tmp_path: Path) -> None:
    logger = TensorboardLogger(tmp_path)
    learner = learner_with(online_metrics(every=20, trace_cosines=True, trace_norms=True), loggers=[logger])
    learner.train(benchmark.train_stream)
    logger.writer.close()

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    expected = curves(learner)
    assert set(events.Tags()["scalars"]) == set(expected)
    for name, curve in expected.items():
        check_curve([(event.step, event.value) for event in events.Scalars(name)], curve)
    groups = [name.split("/")[0] for name in expected]
    assert groups.count("StepSize") == len(BLOCKS)


class FakeWandB(SimpleNamespace):
    """As much of wandb as Avalanche's logger uses."""

    def __init__(self) -> None:
        super().__init__(
            __version__="0.16",
            util=SimpleNamespace(generate_id=lambda: "id"),
            viz=SimpleNamespace(CustomChart=type("CustomChart", (), {})),
            run=SimpleNamespace(_label=lambda **labels: None),
            init=lambda **options: None,
            log=lambda values, step: None,
        )


def logged_to_wandb(wandb: Any, benchmark: StreamBenchmark, monkeypatch: pytest.MonkeyPatch) -> Curves:
    """Train, check what was logged against all values, and return them."""
    logger = WandBLogger(params={"id": "id"})
    send, steps, logged = wandb.log, [], {}

    def log(values: dict[str, float], step: int) -> None:
        steps.append(step)
        logged.update({(name, step): value for name, value in values.items() if name != "TrainingExperience"})
        send(values, step=step)

    monkeypatch.setattr(wandb, "log", log)
    metrics = [online_metrics(every=20), accuracy_metrics(minibatch=True)]
    learner = learner_with(*metrics, loggers=[logger])
    learner.train(benchmark.train_stream)

    assert steps == sorted(steps)  # wandb drops what comes late
    expected = curves(learner)
    assert set(expected) == {*CURVES, f"Top1_Acc_MB{TRAIN}/Task000"}
    assert logged == {(name, x): value for name, curve in expected.items() for x, value in curve}
    return expected


def test_wandb_logger_shows_every_value(benchmark: StreamBenchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    logged_to_wandb(fake, benchmark, monkeypatch)
