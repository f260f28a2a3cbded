"""Gradients by a traced graph against autograd's, and what keeps them from being traced."""

import copy
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

from continual_metaopt.engines.torch_engine import by_autograd
from continual_metaopt.engines.traced.image_kernels import Convolution
from continual_metaopt.engines.traced.traced_gradients import NotTraceable, TracedGradients
from continual_metaopt.engines.undisturbed import random_state
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from tests.continual_metaopt.conftest import Collector, exactly
from tests.continual_metaopt.learner.parts import Listening, noisy_images


class Residual(nn.Module):
    """A block of a residual network."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(2, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(2, outputs)
        self.shortcut = nn.Conv2d(channels, outputs, 1, stride, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))) + self.shortcut(x))


class Attention(nn.Module):
    """One layer of attention over the rows of an image, with positions in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.register_buffer("positions", torch.linspace(0, 1, 64).view(8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, 0] + self.positions).mean(dim=1))


class Tied(nn.Module):
    """A layer that is used twice, one that is not used, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.frozen = nn.Linear(64, 64), nn.Linear(3, 3), nn.Linear(64, 4)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.frozen(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 4)),
    "convolutional": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 9, 3, padding=1),
        nn.LeakyReLU(),
        nn.MaxPool2d(3, 1),
        nn.Flatten(),
        nn.Linear(36, 4),
    ),
    "other convolutions": lambda: nn.Sequential(  # none of which has kernels
        nn.Conv2d(1, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.MaxPool2d(3, 2, padding=1),
        nn.ConvTranspose2d(4, 2, 2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 4),
    ),
    "residual": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        Residual(4, 4, 1),
        Residual(4, 6, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ),
    "attention": Attention,
    "tied": Tied,
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def made(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().to(dtype)


def optimizer_of(model: nn.Module) -> MetaOptimize:
    return MetaOptimize([param for param in model.parameters() if param.requires_grad], 1e-3)


def sample(seed: int, dtype: torch.dtype = torch.float32, n: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator).to(dtype), torch.randint(4, (n,), generator=generator)


def results(model: nn.Module, returned: tuple[Tensor, Tensor]) -> list[Tensor | None]:
    return [returned[0].detach(), returned[1].detach(), *(param.grad for param in model.parameters())]


@DTYPES
@pytest.mark.parametrize("n", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETWORKS)
def test_gives_autograds_output_loss_and_gradients(name: str, dtype: torch.dtype, n: int) -> None:
    model, criterion = made(name, dtype), nn.CrossEntropyLoss()
    optimizer = optimizer_of(model)
    traced = TracedGradients(model, optimizer, criterion, *sample(0, dtype, n))
    # products of matrices in convolutions are summed in another order
    tolerance = 1e3 * torch.finfo(dtype).eps if n == 1 and "conv" in str(model).lower() else 0.0
    for seed in range(1, 6):
        found = results(model, traced(*sample(seed, dtype, n)))
        expected = results(model, by_autograd(model, optimizer, criterion, *sample(seed, dtype, n)))
        assert [part is None for part in found] == [part is None for part in expected]
        for ours, theirs in zip(found, expected, strict=True):
            if theirs is not None:
                torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n", [1, 2])
def test_kernels_are_used_for_single_small_images(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def counting(name: str) -> Any:
        method = getattr(Convolution, name)
        return lambda self, *given: called.append(name) or method(self, *given)

    for name in ("forward", "input_gradient", "weight_gradient"):
        monkeypatch.setattr(Convolution, name, counting(name))
    model = made("convolutional")
    traced = TracedGradients(model, optimizer_of(model), nn.CrossEntropyLoss(), *sample(0, n=n))
    called.clear()
    traced(*sample(1, n=n))
    # nobody asks for the gradient of the network's input
    backward = ["weight_gradient", "input_gradient", "weight_gradient"]
    assert sorted(called) == (sorted(["forward", "forward", *backward]) if n == 1 else [])


@pytest.mark.parametrize("name", ["_select_conv_backend", "_ConvBackend"])
def test_convolutions_stay_where_pytorch_does_not_tell_how_it_does_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C, name)
    monkeypatch.setattr(Convolution, "forward", None)  # so that it cannot be used
    model = made("convolutional")
    TracedGradients(model, optimizer_of(model), nn.CrossEntropyLoss(), *sample(0))


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Convolution, "forward", lambda self, x, *given: x.new_ones(1, self._geometry.outputs, *x.shape[2:])
    )
    model = made("convolutional")
    optimizer, criterion = optimizer_of(model), nn.CrossEntropyLoss()
    traced = TracedGradients(model, optimizer, criterion, *sample(0))
    found = results(model, traced(*sample(1)))
    expected = results(model, by_autograd(model, optimizer, criterion, *sample(1)))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("criterion", [nn.MSELoss(), HalfSquaredError(), nn.HuberLoss(), nn.functional.l1_loss])
def test_any_loss_that_can_be_traced_will_do(criterion: Any) -> None:
    model = made("linear")
    optimizer = optimizer_of(model)
    (x, _), target = sample(0), torch.randn(1, 4, generator=torch.Generator().manual_seed(1))
    traced = TracedGradients(model, optimizer, criterion, x, target)
    found = results(model, traced(2 * x, -target))
    expected = results(model, by_autograd(model, optimizer, criterion, 2 * x, -target))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_inputs_of_other_shapes_are_left_to_autograd() -> None:
    model = made("linear")
    optimizer, criterion = optimizer_of(model), nn.CrossEntropyLoss()
    traced = TracedGradients(model, optimizer, criterion, *sample(0, n=3))
    output, _ = traced(*sample(1, n=2))
    assert output.shape == (2, 4)
    assert output.requires_grad


class Accumulating(torch.optim.SGD):
    """Whoever uses it decides when its gradients are forgotten."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing."""


class Zeroing(torch.optim.SGD):
    """Its gradients stay where they are."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none=False)


@pytest.mark.parametrize("kind", [Accumulating, Zeroing])
def test_gradients_are_added_to_those_that_an_optimizer_has_kept(kind: type[torch.optim.SGD]) -> None:
    found = []
    for traces in (True, False):
        model = made("tied")
        given = model, kind(model.parameters(), 1e-2), nn.CrossEntropyLoss()
        differentiate = TracedGradients(*given, *sample(0)) if traces else partial(by_autograd, *given)
        differentiate(*sample(0))
        kept = [param.grad for param in model.parameters()]
        found.append(results(model, differentiate(*sample(1))))
        assert all(param.grad is grad for param, grad in zip(model.parameters(), kept, strict=True))
    torch.testing.assert_close(*found)


def test_a_label_beyond_the_outputs_is_reported() -> None:
    model = made("linear")
    traced = TracedGradients(model, optimizer_of(model), nn.CrossEntropyLoss(), *sample(0))
    with pytest.raises(ValueError, match="label 4 does not fit the network's 4 outputs"):
        traced(sample(0)[0], torch.tensor([4]))


def test_nothing_changes_while_it_is_made() -> None:
    model = made("attention")
    optimizer = optimizer_of(model)
    grads = [torch.full_like(param, 3.0) for param in model.parameters()]
    for param, grad in zip(model.parameters(), grads, strict=True):
        param.grad = grad
    before, state = random_state(), copy.deepcopy(model.state_dict())
    traced = TracedGradients(model, optimizer, nn.CrossEntropyLoss(), *sample(0))
    assert traced.still_holds(model, optimizer, traced.criterion, *sample(1))
    assert random_state() == before
    assert all(param.grad is grad for param, grad in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_threads_trace_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's tracer changes ``nn.Module`` itself while it works, for all threads."""
    call = nn.Module.__call__
    monkeypatch.setattr(nn.Module, "__call__", call)  # comes back in any case
    models, barrier = [made("linear") for _ in range(4)], threading.Barrier(4)

    def trace(model: nn.Module) -> TracedGradients:
        barrier.wait()
        return TracedGradients(model, optimizer_of(model), nn.CrossEntropyLoss(), *sample(0))

    with ThreadPoolExecutor(len(models)) as threads:
        assert len(list(threads.map(trace, models))) == len(models)
    assert nn.Module.__call__ is call


# ---------------------------------------------------------------------------------------------- what is not traced


class Body(nn.Module):
    """A linear network around a function of its own."""

    def __init__(self, function: Callable[["Body", Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.linear, self.n_calls = function, nn.Linear(64, 4), 0
        self.seen: list[Tensor] = []
        self.hidden, self.wanted = torch.zeros(1, 64), sample(0)[0].sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(self, x.flatten(1)))


def with_hook() -> nn.Module:
    model = made("linear")
    model[1].register_forward_hook(lambda *_: None)
    return model


def with_replaced_forward() -> nn.Module:
    model = made("linear")
    forward = model[1].forward
    model[1].forward = lambda x: forward(x)
    return model


def with_parameter_hook() -> nn.Module:
    model = made("linear")
    model[1].weight.register_hook(lambda grad: 2 * grad)
    return model


def counted(body: Body, x: Tensor) -> Tensor:
    body.n_calls += 1
    return x


def remembering(body: Body, x: Tensor) -> Tensor:
    body.seen.append(x)
    return x


def recurrent(body: Body, x: Tensor) -> Tensor:
    with torch.no_grad():
        body.hidden.mul_(0.5).add_(x)
    return body.hidden + x


def picky(body: Body, x: Tensor) -> Tensor:
    body.n_calls += 1
    body.hidden += 1
    if x.sum() != body.wanted:
        raise ValueError("another sum is wanted")
    return x


def through_numpy(body: Body, x: Tensor) -> Tensor:
    return x * float(np.abs(x.detach().numpy()).max())


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a hook of a module": (with_hook, "Linear has hooks"),
    "a hook of a parameter": (with_parameter_hook, "a parameter of Linear has hooks"),
    "another forward": (with_replaced_forward, "Linear's forward() has been replaced"),
    "dropout": (lambda: nn.Sequential(made("linear"), nn.Dropout(0.5)), "the network draws random numbers"),
    "Python's random numbers": (lambda: Body(lambda body, x: x * random.random()), "the network draws random numbers"),
    "NumPy's random numbers": (
        lambda: Body(lambda body, x: x * np.random.rand()),  # noqa: NPY002
        "the network draws random numbers",
    ),
    "running statistics": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 4)),
        "a buffer changes with each sample",
    ),
    "a branch": (
        lambda: Body(lambda body, x: x if x.sum() > 0 else 2 * x),
        "the network cannot be traced (",
    ),
    "numbers that leave PyTorch": (lambda: Body(through_numpy), "its traced gradients are not those of autograd"),
    "a counter": (lambda: Body(counted), "the network changes itself when it predicts"),
    "a list": (lambda: Body(remembering), "the network changes itself when it predicts"),
    "numbers outside buffers": (lambda: Body(recurrent), "the network changes itself when it predicts"),
    "other samples": (lambda: Body(picky), "a copy of the network cannot be tried (another sum is wanted)"),
    "an input that changes": (lambda: Body(lambda body, x: x.mul_(2)), "the network changes its input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_does_not_hold_is_refused(name: str) -> None:
    make, reason = REFUSED[name]
    model = make()
    given, before, state = sample(0), random_state(), copy.deepcopy(model.state_dict())
    with pytest.raises(NotTraceable) as refusal:
        TracedGradients(model, optimizer_of(model), nn.CrossEntropyLoss(), *given)
    assert str(refusal.value).startswith(reason)
    assert random_state() == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(given[0], sample(0)[0])
    if isinstance(model, Body):
        assert (model.n_calls, model.seen, model.hidden.abs().max()) == (0, [], 0)


def test_global_hooks_are_refused() -> None:
    model = made("linear")
    given = model, optimizer_of(model), nn.CrossEntropyLoss()
    traced = TracedGradients(*given, *sample(0))
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert not traced.still_holds(*given, *sample(1))
        with pytest.raises(NotTraceable, match=exactly("there are hooks for all networks")):
            TracedGradients(*given, *sample(0))


def test_parameters_of_others_are_refused() -> None:
    model = made("linear")
    optimizer = MetaOptimize([*model.parameters(), nn.Parameter(torch.zeros(2))], 1e-3)
    with pytest.raises(NotTraceable, match=exactly("the optimizer has parameters that are not the network's")):
        TracedGradients(model, optimizer, nn.CrossEntropyLoss(), *sample(0))


def move(model: nn.Module) -> None:
    with torch.no_grad():
        model[1].weight.add_(1.0)


CHANGES: dict[str, tuple[Callable[[nn.Module], Any], bool]] = {
    "frozen": (lambda model: model[1].bias.requires_grad_(False), False),
    "grown": (lambda model: model.__setitem__(3, nn.Linear(20, 5)), False),
    "a hook": (lambda model: model[1].register_forward_hook(lambda *_: None), False),
    "a gradient's hook": (lambda model: model[1].weight.register_hook(lambda grad: None), False),
    "an accumulated gradient's hook": (
        lambda model: model[1].weight.register_post_accumulate_grad_hook(lambda param: None),
        False,
    ),
    "steeper": (lambda model: setattr(model[2], "negative_slope", 0.5), False),
    "evaluated": (lambda model: model.eval(), False),
    "moved": (move, True),
}


@pytest.mark.parametrize(("change", "holds"), CHANGES.values(), ids=CHANGES)
def test_a_graph_holds_as_long_as_only_numbers_in_tensors_change(change: Any, holds: bool) -> None:
    model = made("linear")
    model[2] = nn.LeakyReLU()
    traced = TracedGradients(model, optimizer_of(model), nn.CrossEntropyLoss(), *sample(0))
    given = (model, traced.optimizer, traced.criterion)
    assert traced.still_holds(*given, *sample(1))
    change(model)
    assert traced.still_holds(*given, *sample(1)) is holds


@pytest.mark.parametrize("part", range(5))
def test_a_graph_holds_for_the_same_learner_and_kind_of_input(part: int) -> None:
    model = made("linear")
    given = [model, optimizer_of(model), nn.CrossEntropyLoss(), *sample(0)]
    traced = TracedGradients(*given)
    other = [made("linear"), optimizer_of(model), nn.CrossEntropyLoss(), sample(0, n=2)[0], torch.zeros(1, 4)]
    given[part] = other[part]
    assert not traced.still_holds(*given)


# ------------------------------------------------------------------------------------------------ whole trajectories


def learner_of(model: nn.Module, engine: Any, **options: Any) -> OnlineLearner:
    optimizer = MetaOptimize(blocks(model), 3e-3, meta_lr=0.02)
    return OnlineLearner(model=model, optimizer=optimizer, engine=engine, **options)


@DTYPES
@pytest.mark.parametrize("name", ["linear", "convolutional", pytest.param("residual", marks=pytest.mark.slow)])
def test_learners_take_the_same_way(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    n_traced = []
    trace = TracedGradients._trace
    monkeypatch.setattr(TracedGradients, "_trace", lambda *given: n_traced.append(1) or trace(*given))
    collectors = {engine: Collector() for engine in ("torch", "fused")}
    learners = {}
    for engine, collector in collectors.items():
        model = nn.Sequential(Cast(dtype), made(name, dtype))
        learners[engine] = learner_of(model, engine, recorder=collector)
        learners[engine].train(noisy_images())

    assert learners["fused"].engine == {"name": "fused", "reason": "asked for; gradients by a traced graph"}
    assert len(n_traced) == 1
    assert 0.4 < learners["fused"].online_accuracy < 1
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    ours, theirs = collectors["fused"], collectors["torch"]
    assert ours.all("loss") == pytest.approx(theirs.all("loss"), rel=tolerance, abs=tolerance)
    for a, b in zip(ours.all("step_sizes"), theirs.all("step_sizes"), strict=True):
        assert a[:2] == b[:2]
        assert a[2] == pytest.approx(b[2], rel=tolerance)
    for a, b in zip(*(learner.model.parameters() for learner in learners.values()), strict=True):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)


def test_learners_take_the_very_same_way_where_no_kernel_rounds_in_another_order() -> None:
    learners = []
    for plugins in ([], [Listening()]):
        learners.append(learner_of(made("attention"), "fused", plugins=plugins))
        learners[-1].train(noisy_images())
    assert [learner.engine["reason"].split("; ")[1] for learner in learners] == [
        "gradients by a traced graph",
        "gradients by autograd: Listening listens to single iterations",
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(learner.model.parameters() for learner in learners), strict=True))


class Cast(nn.Module):
    """Lets a stream's inputs have the type of the network."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


@pytest.mark.parametrize(
    ("model", "n", "plugins", "reason"),
    [
        (lambda: made("attention"), 99, [], "the experience is too short for tracing"),
        (lambda: made("linear"), 100, [Listening()], "Listening listens to single iterations"),
        (lambda: nn.Sequential(made("linear"), nn.Dropout(0.5)), 100, [], "the network draws random numbers"),
    ],
)
def test_otherwise_the_learner_uses_autograd_and_the_record_says_why(
    model: Any, n: int, plugins: Any, reason: str
) -> None:
    learner = learner_of(model(), "fused", plugins=plugins)
    learner.train(noisy_images(n))
    assert learner.engine == {"name": "fused", "reason": f"asked for; gradients by autograd: {reason}"}
    assert learner.n_samples == 2 * n


def test_a_head_that_grows_is_traced_anew() -> None:
    class Grow(SupervisedPlugin):
        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.n_samples:
                strategy.model[3] = nn.Linear(20, 7)
                strategy.make_optimizer()

    learners = []
    for engine in ("torch", "fused"):
        torch.manual_seed(0)
        model = NETWORKS["linear"]()
        model[2] = nn.GELU()  # which has no compiled code
        learners.append(learner_of(model, engine, plugins=[Grow()]))
        learners[-1].train(noisy_images())
    assert learners[1].engine["reason"] == "asked for; gradients by a traced graph"
    for a, b in zip(*(learner.model.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-3)
