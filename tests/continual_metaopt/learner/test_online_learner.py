"""OnlineLearner: the same learning as Avalanche's Naive, scored before each update."""

import inspect
import math
import random
from collections.abc import Callable
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import InteractiveLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, SupervisedPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.supervised import Naive
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import nn

from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.compiled import learner as compiled_learner
from continual_metaopt.engines.observations import Diverged
from continual_metaopt.learner import online_learner as learner_module
from continual_metaopt.learner.listening import ITERATION_CALLBACKS, listens_to_iterations
from continual_metaopt.learner.loading import READ_AT_ONCE
from continual_metaopt.learner.online_learner import OnlineLearner, quiet_evaluator
from continual_metaopt.learner.strategy import MetaOptimizeStrategy
from continual_metaopt.optim.base_updates import BASE_UPDATES
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize, metaoptimize
from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.optim.registry import make_optimizer
from continual_metaopt.streams import make_stream
from continual_metaopt.streams.benchmark import StreamBenchmark
from continual_metaopt.streams.signatures import described_options
from tests.continual_metaopt.conftest import Collector, exactly, small_network
from tests.continual_metaopt.learner.parts import evaluator_of, same, stream_of, weights

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "MetaOptimize": lambda model: MetaOptimize(blocks(model, "blockwise"), 3e-3, meta_lr=0.02),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3),
}
EXACT = {"exact": lambda model: MetaOptimize(blocks(model, "scalar"), 3e-3, trace="l")}
PATHS = ["without callbacks", "with callbacks"]
WAYS = [*PATHS, "compiled"]
TOO_SHORT = "; gradients by autograd: the experience is too short for tracing"


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


def way_of(way: str) -> dict[str, Any]:
    """Options of a learner that takes one of the ``WAYS``."""
    return {"plugins": plugins_for(way), "engine": "compiled" if way == "compiled" else "torch"}


def online_learner(
    model: nn.Module, optimizer: Any = "MetaOptimize", engine: Any = "torch", **options: Any
) -> OnlineLearner:
    """A learner whose steps are exactly the optimizer's, unless another engine is asked for."""
    made = (OPTIMIZERS | EXACT)[optimizer](model) if isinstance(optimizer, str) else optimizer
    return OnlineLearner(model=model, optimizer=made, engine=engine, **options)


def sgd(model: nn.Module, lr: float) -> MetaOptimize:
    """Gradient descent with a fixed step size."""
    return MetaOptimize(model.parameters(), lr, base="sgd", meta_lr=0.0, weight_decay=0.0)


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


@pytest.mark.parametrize("step_sizes", ["group", "scalar"])
def test_compiled_code_learns_as_torch_does_up_to_rounding(benchmark: StreamBenchmark, step_sizes: Any) -> None:
    learners, collectors = [], []
    for engine in ("torch", "compiled"):
        model = small_network()
        optimizer = MetaOptimize(blocks(model), 3e-3, meta_lr=0.02, step_sizes=step_sizes)
        collectors.append(Collector())
        learners.append(online_learner(model, optimizer, engine, recorder=collectors[-1], record_every=7))
        learners[-1].train(benchmark.train_stream)

    (theirs, ours), (expected, found) = learners, collectors
    assert ours.engine == COMPILED
    assert found.all("correct") == expected.all("correct")
    assert found.all("loss") == pytest.approx(expected.all("loss"), rel=1e-3, abs=1e-5)
    for a, b in zip(weights(ours.model), weights(theirs.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert ours.optimizer.step_size_report() == pytest.approx(theirs.optimizer.step_size_report(), rel=1e-4)
    for field in ("step_sizes", "measurements"):
        check_rows(found.all(field), expected.all(field), 1e-3)
    assert [(p.experience, step) for p in found.portions for step in range(p.first_step, p.next_step)] == [
        (step // 60, step) for step in range(180)
    ]
    assert ours.online_accuracy == theirs.online_accuracy
    assert counters(ours) == counters(theirs)


def counters(strategy: Any) -> dict[str, int]:
    return {name: value for name, value in vars(strategy.clock).items() if isinstance(value, int)}


def test_both_paths_record_the_same(benchmark: StreamBenchmark) -> None:
    recorded, learned = [], []
    for path in PATHS:
        collector, model = Collector(), small_network()
        model[2] = nn.ELU()  # whose gradients are autograd's in short experiences
        options = {"recorder": collector, "plugins": plugins_for(path), "record_every": 7}
        learner = online_learner(model, engine="fused", **options)
        learner.train(benchmark.train_stream)
        learned.append(weights(model))
        by_experience = [(step, p.experience) for p in collector.portions for step in range(p.first_step, p.next_step)]
        recorded.append((by_experience, *map(collector.all, ("correct", "loss", "step_sizes", "measurements"))))

    assert recorded[0] == recorded[1]
    assert same(*learned)
    assert recorded[0][0] == [(step, step // 60) for step in range(180)]


@pytest.mark.parametrize("way", WAYS)
def test_predictions_are_scored_before_learning_from_the_sample(way: str) -> None:
    # a step of 10 along the gradient turns every wrong prediction into the label just seen
    x = torch.ones(4, 1)
    stream = stream_of((x, torch.tensor([1, 0, 1, 0])))
    model = nn.Sequential(nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5], [0.0]]))
    collector = Collector()
    learner = online_learner(model, sgd(model, 10.0), recorder=collector, **way_of(way))

    learner.train(stream)

    assert collector.all("correct") == [False] * 4
    assert collector.all("loss")[0] == pytest.approx(math.log(1 + math.exp(0.5)))
    assert learner.online_accuracy == 0.0
    assert model[0].weight[0] > model[0].weight[1]  # after the update, the last label would be predicted


def test_online_accuracy_is_undefined_before_the_first_sample() -> None:
    assert math.isnan(online_learner(small_network()).online_accuracy)


# ------------------------------------------------------------------------------------------------- Avalanche's habits


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


@pytest.mark.parametrize(
    ("form", "way"), [("list", PATHS[0]), ("generator", PATHS[1]), *(("one by one", way) for way in WAYS)]
)
def test_every_form_of_experiences_is_learned_from(benchmark: StreamBenchmark, form: str, way: str) -> None:
    stream, model = benchmark.train_stream[:2], small_network()
    learner = online_learner(model, **way_of(way))

    if form == "one by one":
        for experience in stream:
            learner.train(experience)
    else:
        learner.train({"list": list(stream), "generator": (e for e in stream)}[form])

    expected = small_network()
    online_learner(expected, engine=way_of(way)["engine"]).train(stream)
    assert learner.n_samples == 120
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


class Seen(nn.Sequential):
    """A linear network that keeps its inputs."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.inputs: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x)
        output: torch.Tensor = super().forward(x)
        return output


@pytest.mark.parametrize("first", [0, READ_AT_ONCE + 1])
def test_samples_that_are_read_together_are_those_that_are_read_alone(first: int) -> None:
    n = 2 * READ_AT_ONCE + 3
    experience = make_stream("permuted_inputs", n_experiences=2, samples_per_experience=n).train_stream[1]
    model = Seen()
    learner, collector = online_learner(model), Collector()
    learner.recorder = collector
    learner.continue_from(n + first, 0, first)
    learner.train(experience)
    expected = [experience.dataset[i][0].unsqueeze(0) for i in range(first, n)]
    assert same(model.inputs, expected)
    assert [x.stride() for x in model.inputs] == [x.stride() for x in expected]
    assert len({x.untyped_storage().data_ptr() for x in model.inputs}) == n - first


class OwnZeroGrad(torch.optim.SGD):
    """Counts how often gradients are to be forgotten, and keeps them as zeros."""

    n_calls = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.n_calls += 1
        super().zero_grad(set_to_none=False)


@pytest.mark.parametrize(("optimizer_class", "kept"), [(torch.optim.SGD, False), (OwnZeroGrad, True)])
def test_gradients_are_forgotten_as_the_optimizer_does(optimizer_class: Any, kept: bool) -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = optimizer_class([param], lr=0.1)
    param.grad = torch.ones(2)
    torch_engine.forget_gradients(optimizer)
    assert (param.grad is not None) == kept
    assert getattr(optimizer, "n_calls", 0) == int(kept)


@pytest.mark.parametrize("way", WAYS)
def test_continues_within_an_experience(benchmark: StreamBenchmark, way: str) -> None:
    engine = way_of(way)["engine"]
    whole, recorded = small_network(), Collector()
    online_learner(whole, engine=engine, recorder=recorded).train(benchmark.train_stream)
    # the same learner, as it is 25 samples into the second experience
    first = small_network()
    learner = online_learner(first, engine=engine)
    x, y = zip(*[benchmark.train_stream[1].dataset[i][:2] for i in range(25)], strict=True)
    learner.train([benchmark.train_stream[0], stream_of((torch.stack(x), torch.tensor(y)))[0]])

    collector = Collector()
    second = online_learner(small_network(seed=1), recorder=collector, **way_of(way))
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
@pytest.mark.parametrize("way", WAYS)
def test_frozen_layers_stay_out_of_the_optimizer(way: str, granularity: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    model[1].requires_grad_(False)
    frozen, learned = weights(model[1]), weights(model[3])
    learner = MetaOptimizeStrategy(model=model, lr=1e-2, step_sizes=granularity, **way_of(way))
    n_parameters = [len(group["params"]) for group in learner.optimizer.param_groups]

    learner.train(classification_stream(5))
    learner.train(classification_stream(5))

    assert same(weights(model[1]), frozen)
    assert not same(weights(model[3]), learned)
    # so that a saved state fits a fresh optimizer
    assert [len(group["params"]) for group in learner.optimizer.param_groups] == n_parameters


def grow(model: nn.Module) -> None:
    """Replace the last layer by one with two more outputs."""
    old = model[3]
    model[3] = nn.Linear(old.in_features, old.out_features + 2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for before, after in zip(old.parameters(), model[3].parameters(), strict=True):
            after.uniform_(-0.1, 0.1, generator=generator)
            after[: len(before)] = before


def replace_activation(learner: OnlineLearner) -> None:
    learner.model[2] = nn.Tanh()


def insert_layer(learner: OnlineLearner) -> None:
    learner.model.insert(3, nn.LeakyReLU())


def drop_out(learner: OnlineLearner) -> None:
    learner.model.insert(3, nn.Dropout(0.0))


def replace_optimizer(learner: OnlineLearner) -> None:
    learner.optimizer = MetaOptimize(learner.model.parameters(), 1e-2, base="sgdm", meta="lion")


def replace_base(learner: OnlineLearner) -> None:
    learner.optimizer.base = BASE_UPDATES["adamw"](betas=(0.5, 0.9))


def replace_criterion(learner: OnlineLearner) -> None:
    learner._criterion = nn.CrossEntropyLoss(label_smoothing=0.1)


def divide_blocks(learner: OnlineLearner) -> None:
    bias = learner.optimizer.param_groups[0]["params"].pop()
    learner.optimizer.add_param_group({"name": "bias", "params": [bias]})


def freeze(learner: OnlineLearner) -> None:
    learner.model[1].requires_grad_(False)


def hook(learner: OnlineLearner) -> None:
    learner.model[1].weight.register_hook(lambda gradient: gradient * 0.5)


CHANGES: dict[str, tuple[Callable[[OnlineLearner], Any], str]] = {
    "the head grows": (lambda learner: grow(learner.model), "compiled"),
    "an activation is replaced": (replace_activation, "compiled"),
    "a layer is inserted": (insert_layer, "compiled"),
    "a layer without kernel is inserted": (drop_out, "fused"),
    "the optimizer is replaced": (replace_optimizer, "compiled"),
    "the base update is replaced": (replace_base, "compiled"),
    "the loss is replaced": (replace_criterion, "fused"),
    "a block is divided": (divide_blocks, "compiled"),
    "a layer is frozen": (freeze, "compiled"),
    "a gradient is changed": (hook, "fused"),
}


class AfterFirst(SupervisedPlugin):
    """Changes something after the first experience."""

    def __init__(self, change: Callable[[OnlineLearner], Any]) -> None:
        super().__init__()
        self.change = change

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_counter == 0:
            self.change(strategy)


@pytest.mark.parametrize(
    ("name", "within"),
    [*((name, True) for name in CHANGES), ("the head grows", False), ("the optimizer is replaced", False)],
)
def test_what_changes_between_experiences_is_noticed(benchmark: StreamBenchmark, name: str, within: bool) -> None:
    change, engine = CHANGES[name]
    learners = []
    for wanted in ("torch", "auto"):
        learner = online_learner(small_network(), engine=wanted, plugins=[AfterFirst(change)] if within else [])
        if within:
            learner.train(benchmark.train_stream[:2])
        else:
            learner.train(benchmark.train_stream[0])
            change(learner)
            learner.train(benchmark.train_stream[1])
        learners.append(learner)

    torchs, ours = learners
    assert ours.engine["name"] == engine
    assert (torchs.n_samples, torchs.n_correct) == (ours.n_samples, ours.n_correct)
    for a, b in zip(weights(ours.model), weights(torchs.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert ours.optimizer.step_size_report() == pytest.approx(torchs.optimizer.step_size_report(), rel=1e-3)


class WithNoise:
    """Adds random numbers of every kind to an image."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image + 0.1 * torch.randn_like(image) + random.random() + np.random.random()  # noqa: NPY002


def seed_all() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002


@pytest.mark.parametrize("engine", ["torch", "fused", "compiled"])
def test_each_sample_is_transformed_once(benchmark: StreamBenchmark, engine: str) -> None:
    """Looking at what comes draws none of the random numbers of transformations."""
    datasets = [e.dataset.replace_current_transform_group((WithNoise(), None)) for e in benchmark.train_stream]
    model, expected = small_network(), small_network()
    optimizer = OPTIMIZERS["MetaOptimize"](expected)
    seed_all()
    for x, y, *_ in (sample for dataset in datasets for sample in dataset):
        optimizer.zero_grad()
        nn.functional.cross_entropy(expected(x[None]), torch.tensor([y])).backward()
        optimizer.step()
    drawn_next = torch.rand(1), random.random(), np.random.random()  # noqa: NPY002

    seed_all()
    online_learner(model, engine=engine).train(benchmark_from_datasets(train=datasets).train_stream)

    assert (torch.rand(1), random.random(), np.random.random()) == drawn_next  # noqa: NPY002
    for a, b in zip(weights(model), weights(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert engine != "torch" or same(weights(model), weights(expected))


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("way", WAYS)
def test_labels_beyond_the_head_are_explained(way: str) -> None:
    model = small_network(n_outputs=3)
    stream = stream_of((torch.zeros(2, 1, 8, 8), torch.tensor([1, 7])))
    message = (
        "label 7 does not fit the network's 3 outputs; size the network with "
        'n_outputs=benchmark.info.for_learner.n_outputs, or number labels within experiences (labels="within")'
    )
    collector = Collector()
    learner = online_learner(model, recorder=collector, **way_of(way))

    with pytest.raises(ValueError, match=exactly(message)):
        learner.train(stream)

    assert learner.n_samples == len(collector.all("loss")) == 1


@pytest.mark.parametrize(
    ("engine", "batch_size", "label", "criterion"),
    [  # each engine with each loss and each label, and each label with each loss
        ("torch", 1, -100, nn.CrossEntropyLoss()),
        ("torch", 4, -1, nn.NLLLoss()),
        ("torch", 1, 3, nn.functional.cross_entropy),
        ("fused", 4, -100, nn.NLLLoss()),
        ("fused", 1, -1, nn.functional.cross_entropy),
        ("fused", 4, 3, nn.CrossEntropyLoss()),
        ("torch", 4, -100, nn.functional.cross_entropy),
        ("torch", 4, -1, nn.CrossEntropyLoss()),
        ("fused", 1, 3, nn.NLLLoss()),
    ],
)
def test_labels_that_are_no_classes_are_refused_before_the_loss(
    engine: Any, batch_size: int, label: int, criterion: Any
) -> None:
    model, labels = small_network(n_outputs=3), torch.zeros(120, dtype=torch.int64)
    labels[105] = label
    options = {"engine": engine, "batch_size": batch_size, "criterion": criterion}
    learner = OnlineLearner(model=model, optimizer=OPTIMIZERS["MetaOptimize"](model), **options)
    with pytest.raises(ValueError, match=f"^label {label} does not fit the network's 3 outputs; "):
        learner.train(stream_of((torch.zeros(120, 1, 8, 8), labels)))
    assert learner.n_samples == 105 - 105 % batch_size


def test_a_label_that_the_user_has_the_loss_ignore_is_no_mistake() -> None:
    model, labels = small_network(n_outputs=3), torch.tensor([0, 255, 2, 1])
    learner = OnlineLearner(
        model=model,
        optimizer=OPTIMIZERS["AdamW"](model),
        criterion=nn.CrossEntropyLoss(ignore_index=255),
        batch_size=2,
    )
    learner.train(stream_of((torch.zeros(4, 1, 8, 8), labels)))
    assert learner.n_samples == 4


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("drop_last", "n_updates"), [(True, 2), (False, 3)])
def test_a_last_mini_batch_that_is_smaller_is_left_out_if_asked(
    drop_last: bool, n_updates: int, num_workers: int
) -> None:
    model = small_network()
    learner = OnlineLearner(model=model, optimizer=OPTIMIZERS["AdamW"](model), batch_size=16)
    learner.train(classification_stream(40), drop_last=drop_last, num_workers=num_workers)
    assert learner.clock.train_iterations == n_updates
    assert learner.n_samples == (32 if drop_last else 40)


@pytest.mark.parametrize("engine", ["torch", "fused", "compiled"])
@pytest.mark.parametrize("at", [0, 5])
def test_a_gradient_that_overflows_stops_every_engine_at_the_same_sample(at: int, engine: Any) -> None:
    """The loss is finite, but not the gradient of the first layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        for param, scale in zip(model.parameters(), (1e-20, 1e-20, 1e15, 1.0), strict=True):
            param.mul_(scale)
    inputs = torch.randn(10, 8)
    inputs[at] *= 1e25
    learner = OnlineLearner(model=model, optimizer=OPTIMIZERS["MetaOptimize"](model), engine=engine)
    with pytest.raises(Diverged, match=f"^the meta gradient of block '1' is nan at sample {at}$"):
        learner.train(stream_of((inputs, torch.zeros(10, dtype=torch.int64))))


@pytest.mark.parametrize(
    ("path", "optimizer", "bad"),
    [(PATHS[0], "MetaOptimize", math.nan), (PATHS[0], "AdamW", math.inf), (PATHS[1], "AdamW", math.nan)],
)
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


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("way", WAYS)
def test_a_sample_that_is_not_finite_stops_learning_before_it_harms(way: str, bad: float) -> None:
    x, y = (torch.stack(part) for part in zip(*first(classification_stream(), 30), strict=True))
    x[13, 0, 4, 4] = bad
    model, expected, collector = small_network(), small_network(), Collector()
    learner = online_learner(model, recorder=collector, **way_of(way))
    with pytest.raises(Diverged) as caught:
        learner.train(stream_of((x, y)))
    online_learner(expected, engine=way_of(way)["engine"]).train(stream_of((x[:13], y[:13])))

    assert str(caught.value) == "the loss is nan at sample 13"
    assert (caught.value.step, caught.value.reason) == (13, "the loss is nan")
    assert len(collector.all("loss")) == len(collector.all("correct")) == learner.n_samples == 13
    assert learner.clock.train_iterations == 13
    assert same(weights(model), weights(expected))


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
        (
            "exact",
            "compiled",
            'engine="compiled" is not possible: there are no kernels where trace="l" needs the curvature of the loss; '
            'use engine="auto"',
        ),
        ("AdamW", "tourch", "unknown engine 'tourch'. Did you mean 'torch'? Known: auto, compiled, fused, torch"),
        (
            "exact",
            "fused",
            'engine="fused" is not possible: the optimizer differentiates the loss itself; use engine="auto"',
        ),
    ],
)
def test_impossible_engines_are_refused(optimizer: str, engine: str, message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        online_learner(small_network(), optimizer, engine)


COMPILED = {"name": "compiled", "reason": "network, loss and optimizer have compiled code"}


@pytest.mark.parametrize(
    ("optimizer", "engine", "expected"),
    [
        ("AdamW", "auto", COMPILED),
        ("AdamW", "fused", {"name": "fused", "reason": "asked for"}),
        (
            "exact",
            "auto",
            {"name": "torch", "reason": "neither compiled nor fused: the optimizer differentiates the loss itself"},
        ),
        ("MetaOptimize", "torch", {"name": "torch", "reason": "asked for"}),
        ("MetaOptimize", "fused", {"name": "fused", "reason": "asked for"}),
        ("MetaOptimize", "compiled", COMPILED),
        ("MetaOptimize", "auto", COMPILED),
    ],
)
def test_engines_are_chosen_with_a_reason(optimizer: str, engine: str, expected: dict[str, str]) -> None:
    assert online_learner(small_network(), optimizer, engine).engine == expected


def with_dropout() -> nn.Module:
    return nn.Sequential(small_network(), nn.Dropout(0.0))


class OwnForward(OnlineLearner):
    def forward(self) -> Any:
        return super().forward()


NOT_COMPILED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], dict[str, Any], str]] = {
    "an unknown layer": (with_dropout, {}, {}, "there is no kernel for Dropout"),
    "an unknown loss": (small_network, {"criterion": nn.L1Loss()}, {}, "there is no kernel for the loss L1Loss"),
    "a plugin that listens": (
        small_network,
        {"plugins": [Listener()]},
        {},
        "Listener listens to single iterations",
    ),
    "a metric that listens": (
        small_network,
        {"evaluator": evaluator_of(accuracy_metrics(minibatch=True))},
        {},
        "EvaluationPlugin listens to single iterations",
    ),
    "a part of the step that is one's own": (
        small_network,
        {"class": OwnForward},
        {},
        "OwnForward has its own forward()",
    ),
    "shuffling": (small_network, {}, {"shuffle": True}, "samples come through Avalanche's data loader"),
}


@pytest.mark.parametrize("name", NOT_COMPILED)
def test_what_has_no_compiled_code_is_refused_or_learned_otherwise(benchmark: StreamBenchmark, name: str) -> None:
    reason, stream = NOT_COMPILED[name][3], benchmark.train_stream[:1]
    message = f'engine="compiled" is not possible: {reason}; use engine="auto"'
    with pytest.raises(ValueError, match=exactly(message)):
        train_not_compiled(name, "compiled", stream)
    if name == "an unknown loss":  # of targets that are no labels
        return
    learner = train_not_compiled(name, "auto", stream)
    assert learner.engine["name"] == "fused"
    assert learner.engine["reason"].split("; ")[0] == f"not compiled: {reason}"
    assert learner.n_samples == 60


def train_not_compiled(name: str, engine: str, stream: Any) -> OnlineLearner:
    make, options, training, _ = NOT_COMPILED[name]
    model, options = make(), dict(options)
    make_learner = options.pop("class", OnlineLearner)
    learner = make_learner(model=model, optimizer=OPTIMIZERS["MetaOptimize"](model), engine=engine, **options)
    learner.train(stream, **training)
    return learner


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (
            [nn.Linear(64, 10)],
            "Linear(in_features=64, out_features=10, bias=True) does not fit an input of shape (1, 8, 8)",
        ),
        (
            [nn.Flatten(), nn.Linear(63, 10)],
            "Linear(in_features=63, out_features=10, bias=True) does not fit an input of shape (64,)",
        ),
        (
            [nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)],
            "Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1)) does not fit an input with 1 channels",
        ),
        (
            [nn.Flatten(), nn.Linear(64, 10).double()],
            "inputs are torch.float32 of shape (1, 8, 8), not torch.float64 of shape (1, 8, 8)",
        ),
    ],
)
def test_a_network_that_does_not_fit_raises_torchs_own_error(
    benchmark: StreamBenchmark, layers: list[nn.Module], reason: str
) -> None:
    model = nn.Sequential(*layers)
    x = benchmark.train_stream[0].dataset[0][0]
    with pytest.raises(RuntimeError) as expected:
        model(x[None])
    learner = online_learner(model, engine="auto")
    with pytest.raises(RuntimeError, match=exactly(expected.value)):
        learner.train(benchmark.train_stream)
    assert learner.engine == {"name": "fused", "reason": f"not compiled: {reason}{TOO_SHORT}"}
    message = f'engine="compiled" is not possible: {reason}; use engine="auto"'
    with pytest.raises(ValueError, match=exactly(message)):
        online_learner(model, engine="compiled").train(benchmark.train_stream)


def test_targets_that_the_kernels_do_not_know_are_learned_otherwise() -> None:
    """Targets as probabilities of classes."""
    x, y = torch.randn(8, 1, 8, 8), torch.full((8, 10), 0.1)
    learner = online_learner(small_network(), engine="auto")
    learner.train(stream_of((x, y)))
    assert learner.engine == {"name": "fused", "reason": f"not compiled: the targets are not classes{TOO_SHORT}"}
    assert learner.n_samples == 8


# -------------------------------------------------------------------------------------------------- what is recorded


@pytest.mark.parametrize("way", WAYS)
def test_portions_never_exceed_a_thousand_samples(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_engine.MAX_SAMPLES == compiled_learner.MAX_SAMPLES == learner_module.MAX_SAMPLES == 1000
    for module in (torch_engine, compiled_learner, learner_module):
        monkeypatch.setattr(module, "MAX_SECONDS", 60.0)
    monkeypatch.setattr(compiled_learner, "FIRST_SAMPLES", 2000)
    stream = stream_of(
        (torch.zeros(1001, 2), torch.zeros(1001, dtype=torch.int64)), (torch.zeros(3, 2), torch.ones(3).long())
    )
    model, collector = nn.Sequential(nn.Linear(2, 2)), Collector()
    learner = online_learner(model, sgd(model, 0.1), recorder=collector, **way_of(way))

    learner.train(stream)

    assert [(p.experience, p.first_step, len(p)) for p in collector.portions] == [
        (0, 0, 1000),
        (0, 1000, 1),
        (1, 1001, 3),
    ]
    assert learner.n_samples == 1004


@pytest.mark.parametrize("way", WAYS)
def test_portions_end_where_they_are_asked_to(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amid an experience, at its end, and where a learner goes on that has learned from 7 samples."""
    for module in (torch_engine, compiled_learner, learner_module):
        monkeypatch.setattr(module, "MAX_SECONDS", 60.0)
    monkeypatch.setattr(compiled_learner, "FIRST_SAMPLES", 2000)
    samples = torch.zeros(30, 2), torch.zeros(30, dtype=torch.int64)
    model, collector = nn.Sequential(nn.Linear(2, 2)), Collector()
    learner = online_learner(model, sgd(model, 0.1), recorder=collector, hand_over_at=[7, 12, 30, 60], **way_of(way))
    learner.continue_from(7, 0, within_experience=7)

    learner.train(stream_of(samples, samples))

    assert [(p.experience, p.first_step, len(p)) for p in collector.portions] == [(0, 7, 5), (0, 12, 18), (1, 30, 30)]


@pytest.mark.parametrize("way", WAYS)
def test_portions_are_handed_over_in_time(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_engine.MAX_SECONDS == compiled_learner.MAX_SECONDS == learner_module.MAX_SECONDS == 0.5
    for module in (torch_engine, compiled_learner, learner_module):
        monkeypatch.setattr(module, "MAX_SECONDS", 0.0)
    monkeypatch.setattr(compiled_learner, "FIRST_SAMPLES", 1)
    collector = Collector()

    online_learner(small_network(), recorder=collector, **way_of(way)).train(classification_stream(5))

    assert [len(p) for p in collector.portions] == [1] * 5


@pytest.mark.parametrize("way", WAYS)
def test_step_sizes_are_those_in_force_when_the_sample_was_learned(way: str) -> None:
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
    learner = online_learner(small_network(), recorder=collector, record_every=10, **way_of(way))
    learner.train(stream)

    rtol = 1e-3 if way == "compiled" else 0.0
    check_rows(collector.all("step_sizes"), [(t, b, v) for t in (0, 10, 20) for b, v in step_sizes[t].items()], rtol)
    expected = [(t, "meta_gradient", b, "value", v) for t in (0, 10, 20) for b, v in meta_gradients[t].items()]
    check_rows(collector.all("measurements"), expected, rtol)


def check_rows(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]], rtol: float) -> None:
    """The last of a row's columns agrees up to rounding, the others exactly."""
    assert [row[:-1] for row in found] == [row[:-1] for row in expected]
    values = [row[-1] for row in expected]
    assert [row[-1] for row in found] == pytest.approx(values, rel=rtol, abs=rtol * max(map(abs, values)))


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
    defaults = {"gamma": "auto", "trace": "dutch"}
    optimizer = MetaOptimize(blocks(expected, granularity), 3e-3, meta_lr=0.02, **defaults)
    online_learner(expected, optimizer).train(stream)

    assert same(weights(model), weights(expected))
    assert [block for _, block, _ in collector.all("step_sizes")] == blocks_


def test_the_strategy_shows_the_options_of_learner_and_optimizer() -> None:
    shown = inspect.signature(MetaOptimizeStrategy).parameters
    theirs = dict(inspect.signature(metaoptimize).parameters) | dict(inspect.signature(OnlineLearner).parameters)
    expected = {name: option.default for name, option in theirs.items() if name != "optimizer"}
    assert {name: option.default for name, option in shown.items()} == expected
    described = described_options(MetaOptimizeStrategy)
    assert list(described) == list(shown)
    assert all(described.values())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("learning_rate", "unexpected keyword argument: learning_rate"),
        ("optimizer", "has no option optimizer: it makes its own; for another one use OnlineLearner"),
        ("train_mb_size", "has no option train_mb_size: samples come one by one, or write batch_size="),
        ("train_epochs", "has no option train_epochs: each sample is predicted and then learned once; the stream"),
    ],
)
def test_options_that_the_strategy_does_not_have(option: str, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        MetaOptimizeStrategy(model=small_network(), **{option: 1})


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
