"""Habits of Avalanche that surprise those who build on it.

The tests show what OnlineLearner, KeepOptimizerState and our metrics make of them, often beside Avalanche's Naive.
"""

from collections.abc import Callable
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.evaluation.metric_definitions import GenericPluginMetric
from avalanche.evaluation.metrics import Mean, accuracy_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import Naive
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.observations import Observations
from continual_metaopt.learner import online_learner as learner_module
from continual_metaopt.learner.listening import ITERATION_CALLBACKS, PARTS_OF_ITERATION, listens_to_iterations
from continual_metaopt.learner.metrics.online import OnlineMetric, online_metrics
from continual_metaopt.learner.online_learner import OnlineLearner, quiet_evaluator
from continual_metaopt.learner.plugins import KeepOptimizerState
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.streams import make_stream
from continual_metaopt.streams.benchmark import StreamBenchmark
from tests.continual_metaopt.conftest import small_network
from tests.continual_metaopt.learner.parts import evaluator_of, same, weights
from tests.continual_metaopt.learner.test_plugins import Growing, ManyHeads, classes_by_twos, task_by_task

STRATEGIES = ["Naive", "OnlineLearner"]
KINDS = ["Naive", "KeepOptimizerState", "OnlineLearner"]  # the second is Naive with our plugin
SIZE = 3  # samples of each experience
TRAIN = "/train_phase/train_stream"
CALLBACKS = [name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))]


def strategy_of(
    kind: str, model: nn.Module, optimizer: Optimizer | None = None, plugins: Any = (), **options: Any
) -> Any:
    """A strategy that learns from one sample at a time."""
    optimizer = SGD(model.parameters(), 0.1) if optimizer is None else optimizer
    if kind == "OnlineLearner":
        return OnlineLearner(model=model, optimizer=optimizer, plugins=list(plugins), **options)
    options = {"criterion": nn.CrossEntropyLoss(), "evaluator": quiet_evaluator(), **options}
    kept = [KeepOptimizerState()] if kind == "KeepOptimizerState" else []
    return Naive(model=model, optimizer=optimizer, plugins=[*kept, *plugins], **options)


def train(strategy: Any, experiences: Any, eval_streams: Any = (), **options: Any) -> Any:
    """Train in the stream's order, and evaluate on nothing else than what is given, as OnlineLearner does unasked."""
    return strategy.train(experiences, list(eval_streams), shuffle=False, **options)


def plugin_at(*callbacks: str, do: Callable[[Any], Any] = lambda strategy: None) -> SupervisedPlugin:
    """A plugin that does something at these callbacks."""
    plugin = SupervisedPlugin()
    for callback in callbacks:
        setattr(plugin, callback, lambda strategy, **kwargs: do(strategy))
    return plugin


def cut(stream: Any, size: int = 1, **options: Any) -> Any:
    """A stream of pieces of experiences."""
    return split_online_stream(stream, experience_size=size, shuffle=False, **options)


def held(optimizer: Optimizer) -> list[int]:
    return sorted(id(param) for group in optimizer.param_groups for param in group["params"])


def ids(params: Any) -> list[int]:
    return sorted(map(id, params))


@pytest.fixture(scope="module")
def digits() -> StreamBenchmark:
    """Two experiences of three samples."""
    return make_stream("permuted_inputs", n_experiences=2, samples_per_experience=SIZE, seed=0)


@pytest.fixture
def portions_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """OnlineLearner hands over what it observed after every second sample."""
    for module in (torch_engine, learner_module):
        monkeypatch.setattr(module, "MAX_SAMPLES", 2)


# ------------------------------------------------------------------------------------------------- order of callbacks

SETUP = [
    "before_train_dataset_adaptation",
    "after_train_dataset_adaptation",
    "(make_train_dataloader)",
    "(model_adaptation)",
    "(make_optimizer)",
    "before_training_exp",
    "before_training_epoch",
]
ITERATION = [
    "before_training_iteration",
    "(zero_grad)",
    "before_forward",
    "(forward)",
    "after_forward",
    "(criterion)",
    "before_backward",
    "(backward)",
    "after_backward",
    "before_update",
    "(step)",
    "after_update",
    "after_training_iteration",
]
ENDS = ["after_training_epoch", "after_training_exp"]
EVAL_SETUP = [
    "before_eval_dataset_adaptation",
    "after_eval_dataset_adaptation",
    "(make_eval_dataloader)",
    "(model_adaptation)",
    "before_eval_exp",
]
EVAL_ITERATION = [
    "before_eval_iteration",
    "before_eval_forward",
    "(forward)",
    "after_eval_forward",
    "(criterion)",
    "after_eval_iteration",
]
METHODS = [
    "make_train_dataloader",
    "make_eval_dataloader",
    "model_adaptation",
    "make_optimizer",
    "forward",
    "criterion",
    "backward",
]


def watched(kind: str, silent: tuple[str, ...] = (), **options: Any) -> tuple[Any, list[Any]]:
    """A strategy, and the log of its callbacks and, in brackets, of the work between them."""
    log: list[Any] = []

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            log.append(name)
            return function(*args, **kwargs)

        return noted

    def step() -> None:  # takes no closure
        log.append("(step)")
        plain_step()

    model = small_network()
    optimizer = SGD(model.parameters(), 0.1)
    plain_step = optimizer.step
    optimizer.step = step
    optimizer.zero_grad = noting("(zero_grad)", optimizer.zero_grad)
    plugin = SupervisedPlugin()
    for callback in CALLBACKS:
        if callback not in silent:
            setattr(plugin, callback, noting(callback, lambda strategy, **kwargs: None))
    strategy = strategy_of(kind, model, optimizer, [plugin], **options)
    for method in METHODS if not silent else set(METHODS) - set(PARTS_OF_ITERATION):
        setattr(strategy, method, noting(f"({method})", getattr(strategy, method)))
    return strategy, log


@pytest.mark.parametrize("kind", STRATEGIES)
def test_order_of_callbacks_and_work_in_training(digits: StreamBenchmark, kind: str) -> None:
    strategy, log = watched(kind)
    train(strategy, digits.train_stream[0])
    log.clear()  # optimizers are also made before the very first experience
    train(strategy, digits.train_stream)
    assert log == ["before_training", *[*SETUP, *ITERATION * SIZE, *ENDS] * 2, "after_training"]


@pytest.mark.parametrize("kind", STRATEGIES)
def test_order_of_callbacks_and_work_in_evaluation(digits: StreamBenchmark, kind: str) -> None:
    strategy, log = watched(kind, eval_mb_size=2)
    strategy.eval(digits.train_stream)
    n_batches = 2  # of two samples and one
    callbacks = [name for name in log if name != "(make_optimizer)"]
    assert callbacks == ["before_eval", *[*EVAL_SETUP, *EVAL_ITERATION * n_batches, "after_eval_exp"] * 2, "after_eval"]
    start = log.index("before_eval")
    assert log[start : start + len(callbacks)] == callbacks  # the optimizer is not looked at in between


def test_callbacks_outside_of_iterations_come_in_order_without_those_inside(digits: StreamBenchmark) -> None:
    learner, log = watched("OnlineLearner", silent=ITERATION_CALLBACKS)
    train(learner, digits.train_stream[0])
    log.clear()
    train(learner, digits.train_stream)
    loop = ["(zero_grad)", "(step)"]
    assert log == ["before_training", *[*SETUP, *loop * SIZE, *ENDS] * 2, "after_training"]


# ---------------------------------------------------------------------------------------------------------- plugins


class Everywhere:
    """As a plugin, metric or logger: notes iterations and other arguments at all callbacks of iterations."""

    def __init__(self) -> None:
        self.iterations: list[int] = []
        self.arguments: list[tuple[Any, ...]] = []
        for callback in ITERATION_CALLBACKS:
            setattr(self, callback, self._note)

    def _note(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.iterations.append(strategy.clock.train_iterations)
        self.arguments.append((*args, kwargs))

    def log_metrics(self, values: Any) -> None:
        """Do nothing."""


@pytest.mark.parametrize("kind", STRATEGIES)
def test_the_first_sample_is_iteration_zero_everywhere(digits: StreamBenchmark, kind: str) -> None:
    plugin, metric, logger = Everywhere(), Everywhere(), Everywhere()
    strategy = strategy_of(kind, small_network(), None, [plugin], evaluator=evaluator_of(metric, loggers=[logger]))
    train(strategy, digits.train_stream)
    expected = [iteration for iteration in range(2 * SIZE) for _ in ITERATION_CALLBACKS]
    assert plugin.iterations == metric.iterations == logger.iterations == expected


@pytest.mark.parametrize("kind", STRATEGIES)
def test_plugins_get_what_train_was_given_and_metrics_do_not(digits: StreamBenchmark, kind: str) -> None:
    plugin, metric, logger = Everywhere(), Everywhere(), Everywhere()
    strategy = strategy_of(kind, small_network(), None, [plugin], evaluator=evaluator_of(metric, loggers=[logger]))
    train(strategy, digits.train_stream[0], colour="blue")
    assert plugin.arguments == [({"shuffle": False, "colour": "blue"},)] * len(plugin.arguments)
    assert metric.arguments == [({},)] * len(plugin.arguments)
    assert logger.arguments == [([], {})] * len(plugin.arguments)
    assert plugin.arguments


# ------------------------------------------------------------------------------------------------------ experiences


@pytest.mark.parametrize(("kind", "evaluates"), [("Naive", True), ("OnlineLearner", False)])
def test_without_evaluation_streams_only_naive_evaluates(digits: StreamBenchmark, kind: str, evaluates: bool) -> None:
    at: list[int] = []
    plugin = plugin_at("before_eval", do=lambda strategy: at.append(strategy.clock.train_iterations))
    strategy_of(kind, small_network(), None, [plugin], eval_every=1).train(digits.train_stream)
    assert bool(at) is evaluates


# ------------------------------------------------------------------------------------------- experiences cut in pieces


@pytest.mark.parametrize("form", ["whole", "pieces", "pieces of such"])
def test_experiences_that_hide_what_is_not_for_training_are_learned_from(digits: StreamBenchmark, form: str) -> None:
    hiding = [experience.train() for experience in digits.train_stream]
    if form != "whole":
        hiding = [piece.train() for piece in cut(hiding if form == "pieces of such" else digits.train_stream)]
    portions: list[Observations] = []

    class Recorder:
        def observe(self, observations: Observations) -> None:
            portions.append(observations)

    learner = strategy_of("OnlineLearner", small_network(), recorder=Recorder())
    train(learner, hiding)
    assert [portion.experience for portion in portions for _ in range(len(portion))] == [0] * SIZE + [1] * SIZE


# ------------------------------------------------------------------------------------------------------ make_optimizer


class Anchored(Optimizer):
    """Pulls the weights to where they were when it was made, which is in its state from then on."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["anchor"] = param.detach().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                param.lerp_(self.state[param]["anchor"], 0.5).sub_(param.grad, alpha=group["lr"])


@pytest.mark.parametrize("kind", KINDS)
def test_state_from_the_optimizers_construction(digits: StreamBenchmark, kind: str) -> None:
    model = small_network()
    optimizer = Anchored(model.parameters())
    strategy = strategy_of(kind, model, optimizer)
    if kind == "Naive":
        with pytest.raises(KeyError, match="anchor"):
            train(strategy, digits.train_stream)
    else:
        train(strategy, digits.train_stream)
        assert same([optimizer.state[param]["anchor"] for param in model.parameters()], weights(small_network()))


@pytest.mark.parametrize("frozen", [False, True], ids=["left out", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_the_optimizer_was_not_given(digits: StreamBenchmark, kind: str, frozen: bool) -> None:
    model = small_network()
    model[1].requires_grad_(not frozen)
    before = weights(model)
    optimizer = MetaOptimize(model[3].parameters(), 1e-2)
    known = held(optimizer)
    at_first_sample: list[list[int]] = []
    watch = plugin_at("before_training_iteration", do=lambda strategy: at_first_sample.append(held(optimizer)))
    strategy = strategy_of(kind, model, optimizer, [watch])
    for experience in digits.train_stream:
        train(strategy, experience)
        strategy.eval(digits.train_stream)
    added = kind == "Naive"
    assert at_first_sample[0] == held(optimizer) == (ids(model.parameters()) if added else known)
    assert same(weights(model[1]), before[:2]) is (frozen or not added)
    assert not same(weights(model[3]), before[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_joins_the_block_of_the_others(kind: str) -> None:
    model = ManyHeads()
    optimizer = MetaOptimize(blocks(model), 1e-3)
    strategy = strategy_of(kind, model, optimizer)
    for experience in task_by_task().train_stream[:3]:
        train(strategy, experience)
    members = {group["name"]: ids(group["params"]) for group in optimizer.param_groups}
    assert members == {"features": ids(model.features.parameters()), "heads": ids(model.heads.parameters())}


@pytest.mark.parametrize("kind", KINDS)
def test_names_beside_the_parameters_of_a_group(kind: str) -> None:
    model = ManyHeads()
    optimizer = torch.optim.Adam(model.named_parameters())
    strategy = strategy_of(kind, model, optimizer)
    n_at_first = len(optimizer.param_groups[0]["params"])
    for experience in task_by_task().train_stream[:3]:
        train(strategy, experience)
    (group,) = optimizer.param_groups
    named = dict(model.named_parameters())
    assert len(group["params"]) == len(named) > n_at_first
    if kind == "Naive":
        assert len(group["param_names"]) == n_at_first
    else:
        assert all(named[name] is param for name, param in zip(group["param_names"], group["params"], strict=True))


# ------------------------------------------------------------------------------------- evaluation while learning


class Once:
    """Evaluates, at its second opportunity, on all classes, and keeps the weights of the head from then."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.opportunities = 0
        self.head: Tensor | None = None
        self.strategy: Any = None

    def __call__(self, strategy: Any) -> None:
        self.opportunities += 1
        if self.opportunities == 2:
            strategy.eval(self.stream)
            self.head = strategy.model.head.classifier.weight.detach().clone()

    def observe(self, observations: Observations) -> None:
        self(self.strategy)


WAYS = ["plugin", "recorder", "recorder with callbacks"]


def evaluating(kind: str, way: str, once: Callable[[Any], None], make: Any, network: Any, **options: Any) -> Any:
    """A strategy that evaluates in the middle of an experience."""
    model = network()
    if way == "plugin":
        return strategy_of(kind, model, make(model), [plugin_at("after_training_iteration", do=once)], **options)
    plugins = [plugin_at(*ITERATION_CALLBACKS)] if way == "recorder with callbacks" else []
    strategy = strategy_of(kind, model, make(model), plugins, recorder=once, **options)
    once.strategy = strategy
    return strategy


@pytest.mark.usefixtures("portions_of_two")
@pytest.mark.parametrize(
    ("kind", "way", "options"),
    [
        ("Naive", "plugin", {}),
        ("KeepOptimizerState", "plugin", {}),
        *(("OnlineLearner", way, {"engine": engine}) for way in WAYS for engine in ("torch", "fused")),
    ],
    ids=str,
)
def test_a_head_that_grows_during_an_experience(kind: str, way: str, options: dict[str, Any]) -> None:
    benchmark = classes_by_twos()
    once = Once(benchmark.test_stream)
    strategy = evaluating(kind, way, once, lambda model: MetaOptimize(blocks(model), 1e-2), Growing, **options)
    experience = benchmark.train_stream[0]
    train(strategy, experience)
    head = strategy.model.head.classifier.weight
    assert once.head is not None
    assert len(head) == len(once.head) == 10
    assert strategy.clock.train_iterations == len(experience.dataset)
    if kind == "Naive":
        assert id(head) not in held(strategy.optimizer)
        assert head.equal(once.head)  # and therefore not learned until the next experience
    else:
        assert held(strategy.optimizer) == ids(strategy.model.parameters())
        assert not head.equal(once.head)
        assert strategy.optimizer.state[head]["trace"].any()


@pytest.mark.parametrize("how", ["eval", "eval_every"])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_head_that_grows_before_all_training_is_learned(kind: str, how: str) -> None:
    benchmark = classes_by_twos()
    model = Growing()
    optimizer = MetaOptimize(blocks(model), 1e-2)
    strategy = strategy_of(kind, model, optimizer, eval_every=1 if how == "eval_every" else -1)
    if how == "eval":
        strategy.eval(benchmark.test_stream)
    grown: list[Tensor] = []
    strategy.plugins.append(
        plugin_at("before_training_epoch", do=lambda s: grown.append(s.model.head.classifier.weight.detach().clone()))
    )
    train(strategy, benchmark.train_stream[0], [benchmark.test_stream])
    assert len(grown[0]) == 10
    assert held(optimizer) == ids(model.parameters())
    assert not model.head.classifier.weight.equal(grown[0])


@pytest.mark.parametrize(
    "callback", ["after_backward", "before_update", "after_update", "after_training_iteration", "after_training_exp"]
)
def test_evaluation_within_an_iteration_changes_nothing(digits: StreamBenchmark, callback: str) -> None:
    learners = []
    for plugins in ([], [plugin_at(callback, do=lambda strategy: strategy.eval(digits.train_stream))]):
        model = small_network()
        learners.append(strategy_of("OnlineLearner", model, MetaOptimize(blocks(model), 1e-2), plugins, engine="torch"))
        train(learners[-1], digits.train_stream)
    plain, evaluated = learners
    assert same(weights(plain.model), weights(evaluated.model))
    assert (plain.n_samples, plain.n_correct) == (evaluated.n_samples, evaluated.n_correct)
    assert plain.clock.train_iterations == evaluated.clock.train_iterations


@pytest.mark.parametrize("when", ["after_update", "after_training_iteration", "PeriodicEval"])
@pytest.mark.parametrize("kind", STRATEGIES)
def test_our_metrics_have_seen_the_prediction_before_evaluation_clears_it(
    digits: StreamBenchmark, kind: str, when: str
) -> None:
    evaluations: list[int] = []

    def evaluate(strategy: Any) -> None:
        strategy.eval(digits.train_stream)

    plugin = PeriodicEval(2, "iteration") if when == "PeriodicEval" else plugin_at(when, do=evaluate)
    count = plugin_at("before_eval", do=lambda strategy: evaluations.append(1))
    found = []
    options = {"engine": "fused"} if kind == "OnlineLearner" else {}  # with and without the plugin
    for plugins in ([], [plugin, count]):
        model = small_network()
        model[2] = nn.ELU()  # whose gradients are autograd's in short experiences
        evaluator = evaluator_of(online_metrics(every=1, trace_cosines=True, trace_norms=True))
        strategy = strategy_of(kind, model, MetaOptimize(blocks(model), 1e-2), plugins, evaluator=evaluator, **options)
        train(strategy, digits.train_stream, [digits.train_stream])
        found.append(dict(evaluator.get_all_metrics()))
    assert evaluations
    assert found[0] == found[1]
    assert found[0][f"Loss_Online{TRAIN}"][0] == [1, 2, 3, 4, 5, 6]


# ------------------------------------------------------------------------------------------------------------ metrics


def test_our_metrics_do_not_need_the_callback_after_a_backward_pass(digits: StreamBenchmark) -> None:
    """Avalanche's strategies of meta-learning, for example, have none."""

    class Without(Naive):
        def _after_backward(self, **kwargs: Any) -> None:
            """Call no plugin."""

    found = []
    for strategy in (Naive, Without):
        model = small_network()
        evaluator = evaluator_of(online_metrics(every=1))
        made = strategy(model=model, optimizer=SGD(model.parameters(), 0.1), evaluator=evaluator)
        train(made, digits.train_stream)
        found.append(dict(evaluator.get_all_metrics()))
    assert found[0] == found[1]
    assert len(found[0][f"Loss_Online{TRAIN}"][1]) == 2 * SIZE


def test_metrics_of_evaluation_may_listen_to_training_too() -> None:
    class Both(GenericPluginMetric[float, Mean]):
        def __init__(self) -> None:
            super().__init__(Mean(), mode="eval")

        def after_update(self, strategy: Any) -> None:
            """Do nothing."""

    assert listens_to_iterations(evaluator_of(Both()))


@pytest.mark.parametrize("loop", ["without callbacks", "with callbacks"])
def test_metrics_at_the_ends_of_epochs_know_how_many_iterations_there_were(digits: StreamBenchmark, loop: str) -> None:
    xs: list[int] = []

    class Ends(OnlineMetric):
        def before_training_epoch(self, strategy: Any) -> None:
            xs.append(strategy.clock.train_iterations)

        after_training_epoch = before_training_epoch

    plugins = [plugin_at("before_update")] if loop == "with callbacks" else []
    evaluator = evaluator_of(Ends())
    train(strategy_of("OnlineLearner", small_network(), None, plugins, evaluator=evaluator), digits.train_stream)
    assert xs == [0, 3, 3, 6]


# ------------------------------------------------------------------------------------------------------------- loggers


@pytest.mark.parametrize(("kind", "drop"), [("Naive", False), ("OnlineLearner", False), ("OnlineLearner", True)])
def test_the_interactive_logger_prints_no_metrics_of_pieces(
    digits: StreamBenchmark, kind: str, drop: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = [online_metrics(every=1), accuracy_metrics(minibatch=True, epoch=True, experience=True)]
    evaluator = evaluator_of(*metrics, loggers=[InteractiveLogger()])
    strategy = strategy_of(kind, small_network(), evaluator=evaluator)
    train(strategy, cut(digits.train_stream, drop_last=drop))
    shown = capsys.readouterr().out
    assert " = " not in shown
    assert shown.count("Starting training on experience") == 2  # once for each whole
    assert strategy.clock.train_iterations == 2 * SIZE
    assert f"Top1_Acc_Online{TRAIN.replace('train_stream', 'train_online_stream')}" in evaluator.get_all_metrics()
