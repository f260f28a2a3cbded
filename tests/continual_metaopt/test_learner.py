"""OnlineLearner: the same learning as Avalanche's Naive, scored before each update."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import streams.quiet_avalanche  # noqa: F401

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import InteractiveLogger, TextLogger
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, SupervisedPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.supervised import Naive
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import nn
from torch.utils.data import TensorDataset

from continual_metaopt import learner as learner_module
from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.observations import Diverged
from continual_metaopt.learner import (
    ITERATION_CALLBACKS,
    MetaOptimizeStrategy,
    OnlineLearner,
    listens_to_iterations,
    quiet_evaluator,
)
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.registry import make_optimizer, step_sizes_of
from streams import make_stream
from streams.benchmark import StreamBenchmark

from .conftest import Collector, exactly, small_network

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "MetaOptimize": lambda model: MetaOptimize(blocks(model, "blockwise"), 3e-3, meta_lr=0.02),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3),
}
PATHS = ["without callbacks", "with callbacks"]


class Listener(SupervisedPlugin):
    """Makes a learner take the path with callbacks, and notes what Naive does at each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.correct: list[bool] = []
        self.loss: list[float] = []
        self.iterations: list[int] = []

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self.correct.append(bool(strategy.mb_output.argmax(1) == strategy.mb_y))
        self.loss.append(strategy.loss.item())
        self.iterations.append(strategy.clock.train_iterations)


def plugins_for(path: str) -> list[SupervisedPlugin]:
    return [Listener()] if path == "with callbacks" else []


def online_learner(
    model: nn.Module, optimizer: Any = "MetaOptimize", engine: Any = "torch", **options: Any
) -> OnlineLearner:
    """A learner whose steps are exactly the optimizer's, unless another engine is asked for."""
    made = OPTIMIZERS[optimizer](model) if isinstance(optimizer, str) else optimizer
    return OnlineLearner(model=model, optimizer=made, engine=engine, **options)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def stream_of(*experiences: tuple[torch.Tensor, torch.Tensor]) -> Any:
    """An Avalanche stream of experiences, each (inputs, targets)."""
    datasets = [
        AvalancheDataset(
            [TensorDataset(x, y)],
            data_attributes=[
                DataAttribute(y.tolist(), "targets"),
                DataAttribute([0] * len(y), "targets_task_labels", use_in_getitem=True),
            ],
        )
        for x, y in experiences
    ]
    return benchmark_from_datasets(train=datasets, test=datasets).train_stream


def classification_stream(n: int = 30, n_classes: int = 10, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    return stream_of((x, torch.randint(n_classes, (n,), generator=generator)))


# ---------------------------------------------------------------------------------------------- agreement with Naive


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_learns_bit_for_bit_as_naive_does(benchmark: StreamBenchmark, optimizer: str) -> None:
    model, listener = small_network(), Listener()
    naive = Naive(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=1,
        plugins=[listener],
        evaluator=quiet_evaluator(),
    )
    naive.train(benchmark.train_stream, eval_streams=[], shuffle=False)
    initial = weights(small_network())
    assert not same(weights(model), initial)

    for path in PATHS:
        ours, collector = small_network(), Collector()
        learner = online_learner(ours, optimizer, recorder=collector, plugins=plugins_for(path))
        learner.train(benchmark.train_stream)

        assert same(weights(ours), weights(model)), path
        assert collector.all("correct") == listener.correct, path
        assert collector.all("loss") == listener.loss, path
        assert learner.online_accuracy == sum(listener.correct) / 180
        assert counters(learner) == counters(naive), path
        assert 0.1 < learner.online_accuracy < 0.9  # neither all wrong nor all right


def evaluator_of(*metrics: Any, **options: Any) -> EvaluationPlugin:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        return EvaluationPlugin(*metrics, loggers=[], **options)


def counters(strategy: Any) -> dict[str, int]:
    return {name: value for name, value in vars(strategy.clock).items() if isinstance(value, int)}


@pytest.mark.parametrize(
    ("optimizer", "engine"), [("MetaOptimize", "torch"), ("MetaOptimize", "fused"), ("AdamW", "auto")]
)
def test_both_paths_record_the_same(benchmark: StreamBenchmark, optimizer: str, engine: str) -> None:
    recorded, learned = [], []
    for path in PATHS:
        collector, model = Collector(), small_network()
        learner = online_learner(
            model, optimizer, engine, recorder=collector, plugins=plugins_for(path), record_every=7
        )
        learner.train(benchmark.train_stream)
        learned.append(weights(model))
        by_experience = [(step, p.experience) for p in collector.portions for step in range(p.first_step, p.next_step)]
        recorded.append((by_experience, *map(collector.all, ("correct", "loss", "step_sizes", "measurements"))))

    assert recorded[0] == recorded[1]
    assert same(*learned)
    assert recorded[0][0] == [(step, step // 60) for step in range(180)]


def test_avalanches_minibatch_accuracy_is_the_online_accuracy(benchmark: StreamBenchmark) -> None:
    evaluator = evaluator_of(accuracy_metrics(minibatch=True), collect_all=True)
    learner = online_learner(small_network(), evaluator=evaluator)
    learner.train(benchmark.train_stream)

    (_, values) = evaluator.get_all_metrics()["Top1_Acc_MB/train_phase/train_stream/Task000"]
    assert len(values) == 180
    assert sum(values) / len(values) == learner.online_accuracy


@pytest.mark.parametrize("path", PATHS)
def test_predictions_are_scored_before_learning_from_the_sample(path: str) -> None:
    # a step of 10 along the gradient turns every wrong prediction into the label just seen
    x = torch.ones(4, 1)
    stream = stream_of((x, torch.tensor([1, 0, 1, 0])))
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5], [0.0]]))
    collector = Collector()
    learner = online_learner(
        model, torch.optim.SGD(model.parameters(), lr=10.0), recorder=collector, plugins=plugins_for(path)
    )

    learner.train(stream)

    assert collector.all("correct") == [False] * 4
    assert collector.all("loss")[0] == pytest.approx(math.log(1 + math.exp(0.5)))
    assert learner.online_accuracy == 0.0
    assert model.weight[0] > model.weight[1]  # after the update, the last label would be predicted


def test_online_accuracy_is_undefined_before_the_first_sample() -> None:
    assert math.isnan(online_learner(small_network()).online_accuracy)


# ------------------------------------------------------------------------------------------------- Avalanche's habits


class CallbackLog(SupervisedPlugin):
    """Notes the order of all callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []


def _noting(name: str) -> Callable[..., None]:
    return lambda self, strategy, **kwargs: self.log.append(name)


for _name in [name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))]:
    setattr(CallbackLog, _name, _noting(_name))

PER_EXPERIENCE = [
    "before_train_dataset_adaptation",
    "after_train_dataset_adaptation",
    "before_training_exp",
    "before_training_epoch",
]
PER_SAMPLE = [
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
]


def test_callbacks_come_in_avalanches_order() -> None:
    plugin = CallbackLog()
    online_learner(small_network(), plugins=[plugin]).train([*classification_stream(2), *classification_stream(1)])

    ends = ["after_training_epoch", "after_training_exp"]
    assert plugin.log == [
        "before_training",
        *PER_EXPERIENCE,
        *PER_SAMPLE * 2,
        *ends,
        *PER_EXPERIENCE,
        *PER_SAMPLE,
        *ends,
        "after_training",
    ]


def test_the_clock_is_right_at_every_callback() -> None:
    listener = Listener()
    online_learner(small_network(), plugins=[listener]).train(classification_stream(5))

    assert listener.iterations == [0, 1, 2, 3, 4]


class AtExperiences(SupervisedPlugin):
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Do nothing."""


class DuckTyped:
    """A plugin that inherits from nothing."""

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Do nothing."""


def with_callback_of_its_own() -> SupervisedPlugin:
    plugin = SupervisedPlugin()
    plugin.before_forward = lambda strategy, **kwargs: None
    return plugin


@pytest.mark.parametrize(
    ("plugin", "listens"),
    [
        (SupervisedPlugin(), False),
        (AtExperiences(), False),
        (Clock(), False),
        (quiet_evaluator(), False),
        (Listener(), True),
        (DuckTyped(), True),
        (with_callback_of_its_own(), True),
        (object(), False),
        (LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(1, 1).parameters()), 1)), True),
        (evaluator_of(accuracy_metrics(minibatch=True)), True),
        (evaluator_of(loss_metrics(epoch=True)), True),
        (evaluator_of(accuracy_metrics(stream=True)), False),  # has the callback, but does nothing in training
        (EvaluationPlugin(loggers=[TextLogger()]), False),
        (EvaluationPlugin(loggers=[InteractiveLogger()]), True),
        (PeriodicEval(eval_every=-1), False),
        (PeriodicEval(eval_every=1, peval_mode="epoch"), False),
        (PeriodicEval(eval_every=1, peval_mode="iteration"), True),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, bool) else str(value),
)
def test_plugins_that_listen_to_iterations_are_recognised(plugin: Any, listens: bool) -> None:
    assert listens_to_iterations(plugin) is listens


@pytest.mark.parametrize("callback", ITERATION_CALLBACKS)
def test_every_callback_of_an_iteration_counts(callback: str) -> None:
    plugin = type("Plugin", (SupervisedPlugin,), {callback: lambda self, strategy, **kwargs: None})()

    assert listens_to_iterations(plugin)
    assert sorted(ITERATION_CALLBACKS) == sorted(PER_SAMPLE)


@pytest.mark.parametrize("method", ["forward", "criterion", "backward", "optimizer_step"])
def test_strategies_that_change_a_part_of_the_step_get_their_way(method: str) -> None:
    calls = []

    def changed(self: OnlineLearner) -> Any:
        calls.append(self.clock.train_iterations)
        return getattr(super(Changed, self), method)()

    Changed = type("Changed", (OnlineLearner,), {method: changed})
    model = small_network()
    Changed(model=model, optimizer=OPTIMIZERS["AdamW"](model)).train(classification_stream(3))

    assert calls == [0, 1, 2]


def test_order_and_shuffling_are_as_asked_for(benchmark: StreamBenchmark) -> None:
    class Labels(SupervisedPlugin):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def before_forward(self, strategy: Any, **kwargs: Any) -> None:
            self.seen += strategy.mb_y.tolist()

    experience = benchmark.train_stream[1]
    order = list(experience.dataset.targets)
    seen = {}
    for shuffle in (None, False, True):
        plugin = Labels()
        options = {} if shuffle is None else {"shuffle": shuffle}
        online_learner(small_network(), plugins=[plugin]).train(experience, **options)
        seen[shuffle] = plugin.seen

    assert seen[None] == seen[False] == order
    assert seen[True] != order
    assert sorted(seen[True]) == sorted(order)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", ["stream", "list", "generator", "one by one"])
def test_every_form_of_experiences_is_learned_from(benchmark: StreamBenchmark, form: str, path: str) -> None:
    stream, model = benchmark.train_stream, small_network()
    learner = online_learner(model, "AdamW", plugins=plugins_for(path))

    if form == "one by one":
        for experience in stream:
            learner.train(experience)
    else:
        learner.train({"stream": stream, "list": list(stream), "generator": (e for e in stream)}[form])

    expected = small_network()
    online_learner(expected, "AdamW").train(stream)
    assert learner.n_samples == 180
    assert same(weights(model), weights(expected))


def test_evaluation_leaves_learning_as_it_was(benchmark: StreamBenchmark) -> None:
    """Also for a network that behaves differently in evaluation."""

    def network() -> nn.Module:
        model = small_network()
        model.insert(3, nn.Dropout(0.3))
        torch.manual_seed(5)
        return model

    model, undisturbed = network(), network()
    evaluator = evaluator_of(accuracy_metrics(stream=True))
    learner = online_learner(model, evaluator=evaluator)
    for experience in benchmark.train_stream:
        learner.train(experience)
        random = torch.get_rng_state()
        result = learner.eval(benchmark.test_stream)
        torch.set_rng_state(random)
    torch.manual_seed(5)
    plain = online_learner(undisturbed)
    plain.train(benchmark.train_stream)

    assert same(weights(model), weights(undisturbed))
    assert (learner.n_samples, learner.n_correct) == (plain.n_samples, plain.n_correct)
    (accuracy,) = result.values()
    model.eval()
    with torch.no_grad():
        right = [
            int(model(x.unsqueeze(0)).argmax()) == y for e in benchmark.test_stream for x, y, _ in e.dataset.eval()
        ]
    assert accuracy == pytest.approx(sum(right) / len(right))
    assert len(right) == 3 * 359


def test_evaluation_while_training_is_avalanches(benchmark: StreamBenchmark) -> None:
    evaluator = evaluator_of(accuracy_metrics(stream=True), collect_all=True)
    learner = online_learner(small_network(), evaluator=evaluator, eval_every=1)

    learner.train(benchmark.train_stream[:2], [benchmark.test_stream[:1]])

    (steps, _) = evaluator.get_all_metrics()["Top1_Acc_Stream/eval_phase/test_stream/Task000"]
    # before the first experience, then at the end of each; the last call at the end of training counts as well
    assert steps[0] == 0
    assert 60 in steps
    assert steps[-1] == 120


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_loaded_before_training_survives(benchmark: StreamBenchmark, optimizer: str) -> None:
    whole = small_network()
    online_learner(whole, optimizer).train(benchmark.train_stream)
    first = online_learner(small_network(), optimizer)
    first.train(benchmark.train_stream[0])
    second = online_learner(small_network(seed=1), optimizer)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())

    second.train(benchmark.train_stream[1:])

    assert same(weights(second.model), weights(whole))


@pytest.mark.parametrize("path", PATHS)
def test_continues_within_an_experience(benchmark: StreamBenchmark, path: str) -> None:
    whole, recorded = small_network(), Collector()
    online_learner(whole, recorder=recorded).train(benchmark.train_stream)
    # the same learner, as it is 25 samples into the second experience
    first = small_network()
    learner = online_learner(first)
    x, y = zip(*[benchmark.train_stream[1].dataset[i][:2] for i in range(25)], strict=True)
    learner.train([benchmark.train_stream[0], stream_of((torch.stack(x), torch.tensor(y)))[0]])

    collector = Collector()
    second = online_learner(small_network(seed=1), recorder=collector, plugins=plugins_for(path))
    second.model.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(learner.optimizer.state_dict())
    second.continue_from(85, learner.n_correct, within_experience=25)
    second.train(benchmark.train_stream[1:])

    assert same(weights(second.model), weights(whole))
    assert [collector.portions[0].first_step, collector.portions[0].experience] == [85, 1]
    assert collector.all("loss") == recorded.all("loss")[85:]
    assert second.online_accuracy == sum(recorded.all("correct")) / 180
    assert second.clock.train_iterations == second.clock.total_iterations == 180


@pytest.mark.parametrize("granularity", ["scalar", "blockwise"])
@pytest.mark.parametrize("path", PATHS)
def test_frozen_layers_stay_out_of_the_optimizer(path: str, granularity: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    model[1].requires_grad_(False)
    frozen, learned = weights(model[1]), weights(model[3])
    learner = MetaOptimizeStrategy(model=model, lr=1e-2, step_sizes=granularity, plugins=plugins_for(path))
    n_parameters = [len(group["params"]) for group in learner.optimizer.param_groups]

    learner.train(classification_stream(5))
    learner.train(classification_stream(5))

    assert same(weights(model[1]), frozen)
    assert not same(weights(model[3]), learned)
    # so that a saved state fits a fresh optimizer
    assert [len(group["params"]) for group in learner.optimizer.param_groups] == n_parameters


@pytest.mark.parametrize("path", PATHS)
def test_heads_that_grow_are_learned(path: str) -> None:
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(64, 4)
            self.head = IncrementalClassifier(4, initial_out_features=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x.flatten(1)).relu())

    experiences = []
    for classes in ((0, 1), (2, 3)):
        y = torch.tensor([classes[i % 2] for i in range(8)])
        experiences.append((torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), y))
    torch.manual_seed(0)
    model = Growing()
    stream = stream_of(*experiences)
    for experience, classes in zip(stream, ((0, 1), (2, 3)), strict=True):
        experience.classes_in_this_experience = list(classes)
    learner = online_learner(model, "AdamW", plugins=plugins_for(path))

    learner.train(stream[0])
    before = model.head.classifier.weight.detach().clone()
    learner.train(stream[1])

    assert model.head.classifier.weight.shape == (4, 4)
    assert not torch.equal(model.head.classifier.weight[:2], before)
    optimized = {id(param) for group in learner.optimizer.param_groups for param in group["params"]}
    assert id(model.head.classifier.weight) in optimized
    assert learner.n_samples == 16


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("path", PATHS)
def test_labels_beyond_the_head_are_explained(path: str) -> None:
    model = small_network(n_outputs=3)
    stream = stream_of((torch.zeros(2, 1, 8, 8), torch.tensor([1, 7])))
    message = (
        "label 7 does not fit the network's 3 outputs; size the network with "
        'n_outputs=benchmark.info.for_learner.n_outputs, or number labels within experiences (labels="within")'
    )
    collector = Collector()
    learner = online_learner(model, recorder=collector, plugins=plugins_for(path))

    with pytest.raises(ValueError, match=exactly(message)):
        learner.train(stream)

    assert learner.n_samples == len(collector.all("loss")) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("path", PATHS)
def test_a_loss_that_is_not_finite_stops_learning_before_it_harms(path: str, optimizer: str, bad: float) -> None:
    def losses_of(model: nn.Module, n: int | None) -> Any:
        calls = 0

        def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            loss = nn.functional.cross_entropy(output, target)
            return loss * bad if calls == n else loss

        collector = Collector()
        learner = online_learner(model, optimizer, criterion=criterion, recorder=collector, plugins=plugins_for(path))
        return learner, collector

    stream, model, expected = classification_stream(), small_network(), small_network()
    learner, collector = losses_of(model, 13)
    with pytest.raises(Diverged) as caught:
        learner.train(stream)
    undisturbed, _ = losses_of(expected, None)
    undisturbed.train(stream_of(*[tuple(map(torch.stack, zip(*first(stream, 12), strict=True)))]))

    assert (caught.value.step, caught.value.reason) == (12, f"the loss is {bad}")
    assert str(caught.value) == f"the loss is {bad} at sample 12"
    assert len(collector.all("loss")) == len(collector.all("correct")) == learner.n_samples == 12
    assert all(math.isfinite(loss) for loss in collector.all("loss"))
    assert same(weights(model), weights(expected))
    assert learner.clock.train_iterations == 12


def first(stream: Any, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.as_tensor(x), torch.as_tensor(y)) for x, y, *_ in (stream[0].dataset[i] for i in range(n))]


@pytest.mark.parametrize("engine", ["torch", "fused"])
@pytest.mark.parametrize("path", PATHS)
def test_a_meta_gradient_that_is_not_finite_stops_learning(path: str, engine: str) -> None:
    """Before it harms the weights, except where they move in the same pass."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = MetaOptimize([{"name": "w", "params": list(model.parameters())}], 1e-3, base="sgd", weight_decay=0)
    stream, kept = stream_of((torch.ones(4, 1), torch.zeros(4, 1))), []

    def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        kept.append(model.weight.detach().clone())
        if len(kept) < 3:
            return output.sum()
        return (output - output.detach()).sqrt().sum()  # 0, with an infinite gradient

    collector = Collector()
    learner = online_learner(
        model, optimizer, engine, criterion=criterion, recorder=collector, plugins=plugins_for(path), record_every=10
    )
    with pytest.raises(Diverged) as caught:
        learner.train(stream)

    assert str(caught.value) == "the meta gradient of block 'w' is -inf at sample 2"
    assert caught.value.step == 2
    assert learner.n_samples == len(collector.all("loss")) == 2
    if engine == "torch":
        assert torch.equal(model.weight, kept[2])
        assert bool(torch.isfinite(model.weight).all())


@pytest.mark.parametrize(
    ("optimizer", "engine", "message"),
    [
        ("AdamW", "tourch", "unknown engine 'tourch'. Did you mean 'torch'? Known: auto, compiled, fused, torch"),
        ("AdamW", "fused", 'engine="fused" is not possible: the optimizer is not MetaOptimize; use engine="auto"'),
    ],
)
def test_impossible_engines_are_refused(optimizer: str, engine: str, message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        online_learner(small_network(), optimizer, engine)


COMPILED = {"name": "compiled", "reason": "network, loss and optimizer have compiled code"}


@pytest.mark.parametrize(
    ("optimizer", "engine", "expected"),
    [
        ("AdamW", "auto", {"name": "torch", "reason": "neither compiled nor fused: the optimizer is not MetaOptimize"}),
        ("MetaOptimize", "torch", {"name": "torch", "reason": "asked for"}),
        ("MetaOptimize", "fused", {"name": "fused", "reason": "asked for"}),
        ("MetaOptimize", "compiled", COMPILED),
        ("MetaOptimize", "auto", COMPILED),
    ],
)
def test_engines_are_chosen_with_a_reason(optimizer: str, engine: str, expected: dict[str, str]) -> None:
    assert online_learner(small_network(), optimizer, engine).engine == expected


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("width", [1, 3])
def test_regression_has_losses_but_nothing_to_get_right(path: str, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator)
    targets = x @ torch.randn(3, width, generator=generator)
    collector = Collector()
    model = nn.Linear(3, width)
    learner = online_learner(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.MSELoss(),
        recorder=collector,
        plugins=plugins_for_regression(path),
    )

    learner.train(stream_of(*[(x, targets)] * 3))

    assert collector.all("correct") == [None] * 60
    losses = collector.all("loss")
    assert sum(losses[-20:]) < 0.05 * sum(losses[:20])


def plugins_for_regression(path: str) -> list[Any]:
    return [DuckTyped()] if path == "with callbacks" else []


# -------------------------------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("path", PATHS)
def test_portions_never_exceed_a_thousand_samples(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_engine.MAX_SAMPLES == learner_module.MAX_SAMPLES == 1000
    for module in (torch_engine, learner_module):
        monkeypatch.setattr(module, "MAX_SECONDS", 60.0)
    stream = stream_of(
        (torch.zeros(1001, 2), torch.zeros(1001, dtype=torch.int64)), (torch.zeros(3, 2), torch.ones(3).long())
    )
    model, collector = nn.Linear(2, 2), Collector()
    learner = online_learner(model, "AdamW", recorder=collector, plugins=plugins_for(path))

    learner.train(stream)

    assert [(p.experience, p.first_step, len(p)) for p in collector.portions] == [
        (0, 0, 1000),
        (0, 1000, 1),
        (1, 1001, 3),
    ]
    assert learner.n_samples == 1004


@pytest.mark.parametrize("path", PATHS)
def test_portions_are_handed_over_in_time(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_engine.MAX_SECONDS == learner_module.MAX_SECONDS == 0.5
    for module in (torch_engine, learner_module):
        monkeypatch.setattr(module, "MAX_SECONDS", 0.0)
    collector = Collector()

    online_learner(small_network(), recorder=collector, plugins=plugins_for(path)).train(classification_stream(5))

    assert [len(p) for p in collector.portions] == [1] * 5


@pytest.mark.parametrize("path", PATHS)
def test_step_sizes_are_those_in_force_when_the_sample_was_learned(path: str) -> None:
    stream, n = classification_stream(30), 30
    model = small_network()
    reference = OPTIMIZERS["MetaOptimize"](model)
    step_sizes, meta_gradients = [], []
    for x, y in first(stream, n):
        step_sizes.append(step_sizes_of(reference))
        reference.zero_grad()
        nn.functional.cross_entropy(model(x.unsqueeze(0)), y.unsqueeze(0)).backward()
        reference.step()
        meta_gradients.append(reference.meta_gradient_report())
    assert step_sizes[10] != step_sizes[11]

    collector = Collector()
    learner = online_learner(small_network(), recorder=collector, record_every=10, plugins=plugins_for(path))
    learner.train(stream)

    assert collector.all("step_sizes") == [(t, b, v) for t in (0, 10, 20) for b, v in step_sizes[t].items()]
    assert collector.all("measurements") == [
        (t, "meta_gradient", b, "value", v) for t in (0, 10, 20) for b, v in meta_gradients[t].items()
    ]


def test_learners_that_report_no_meta_gradients_have_no_measurements() -> None:
    collector = Collector()
    online_learner(small_network(), "AdamW", recorder=collector).train(classification_stream(5))

    assert collector.all("measurements") == []
    assert collector.all("step_sizes") == [(0, "group0", 3e-3)]


@pytest.mark.parametrize(("options", "blocks_"), [({}, ["1", "3"]), ({"step_sizes": "scalar"}, ["all"])])
def test_the_strategy_is_the_learner_with_metaoptimize(options: dict[str, Any], blocks_: list[str]) -> None:
    stream, model, expected = classification_stream(), small_network(), small_network()
    collector = Collector()
    strategy = MetaOptimizeStrategy(model=model, lr=3e-3, meta_lr=0.02, recorder=collector, engine="torch", **options)
    strategy.train(stream)
    granularity = options.get("step_sizes", "blockwise")
    online_learner(expected, MetaOptimize(blocks(expected, granularity), 3e-3, meta_lr=0.02)).train(stream)

    assert same(weights(model), weights(expected))
    assert [block for _, block, _ in collector.all("step_sizes")] == blocks_


def test_held_out_accuracy_leaves_the_network_as_it_was() -> None:
    benchmark = make_stream("class_split", classes_per_experience=5, samples_per_experience=20)
    model = nn.Sequential(small_network(), nn.Dropout(0.9))
    optimizer = make_optimizer("torch:SGD", model, lr=0.0)
    before = weights(model)
    dataset = benchmark.test_stream[0].dataset

    found = torch_engine.accuracy(model, dataset, torch.device("cpu"), batch_size=7)

    model[0].eval()
    right = [int(model[0](x.unsqueeze(0)).argmax()) == y for x, y, _ in (dataset[i] for i in range(len(dataset)))]
    assert found == sum(right) / len(right)
    assert model.training
    assert same(weights(model), before)
    assert optimizer.param_groups[0]["params"][0].grad is None
