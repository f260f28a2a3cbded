"""Gradients by the compiled kernels against autograd's, and learners with optimizers of anybody's that use them."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual_metaopt.engines.compiled.gradients import CompiledGradients, NotCompiled
from continual_metaopt.engines.compiled.kernels import N_ROWS
from continual_metaopt.engines.torch_engine import by_autograd
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.networks.losses import HalfSquaredError
from tests.continual_metaopt.conftest import Collector, exactly
from tests.continual_metaopt.engines.compiled.test_engine import (
    CNN_SHAPE,
    DOUBLE,
    NAN,
    SINGLE,
    cnn,
    made,
    mlp,
    regression,
    samples,
)
from tests.continual_metaopt.learner.parts import Listening, stream_of

CE = nn.CrossEntropyLoss()
NETWORKS: dict[str, tuple[Callable[[torch.dtype], nn.Module], tuple[int, ...]]] = {
    "linear": (mlp, (6,)),
    "convolutional": (cnn, CNN_SHAPE),
    "wide": (
        lambda dtype: made(
            nn.Conv2d(2, 16, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3), dtype=dtype
        ),
        CNN_SHAPE,
    ),
}


class Sign(torch.optim.Optimizer):
    """Steps by the sign of the gradient, and keeps the last gradient without copying it."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})
        self.kept: list[list[Tensor]] = []
        self.copies: list[list[Tensor]] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        gradients = [param.grad for group in self.param_groups for param in group["params"]]
        self.kept, self.copies = [*self.kept[-2:], gradients], [*self.copies[-2:], [g.clone() for g in gradients]]
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(param.grad.sign(), alpha=group["lr"])


class Adam(torch.optim.Optimizer):
    """Has nothing but a step, which replaces weights by others and changes its gradients."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            state = self.state[param]
            if not state:
                state.update(mean=torch.zeros_like(param), square=torch.zeros_like(param))
            state["mean"].lerp_(param.grad, 0.1)
            state["square"].lerp_(param.grad.square_(), 0.001)
            param.data = param - self.param_groups[0]["lr"] * state["mean"] / (state["square"].sqrt() + 1e-8)


class WithLoss(Sign):
    """Scales its steps by the loss."""

    wants_loss = True

    def step(self, closure: Any) -> None:
        self.param_groups[0]["lr"] = 1e-3 * closure()
        super().step()


class Averaging(Sign):
    """Predicts with an average of its weights, and computes gradients half way to it."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, 1e-2)
        self._apart = [(p, p.detach().clone(), p.detach().clone()) for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def eval(self) -> None:
        for param, average, _ in self._apart:
            param.copy_(average)

    @torch.no_grad()
    def train(self) -> None:
        for param, average, weights in self._apart:
            param.copy_((average + weights) / 2)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param, average, weights in self._apart:
            weights.sub_(param.grad.sign(), alpha=1e-2)
            average.lerp_(weights, 0.1)


def plain(model: nn.Module) -> Sign:
    return Sign([param for param in model.parameters() if param.requires_grad])


def mini_batch(n: int, shape: tuple[int, ...], dtype: torch.dtype = DOUBLE, seed: int = 0) -> Any:
    return samples(n, shape, dtype=dtype, seed=seed).tensors


def results(model: nn.Module, returned: tuple[Tensor, Tensor]) -> list[Tensor]:
    return [returned[0].detach(), returned[1].detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def require_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype = DOUBLE) -> None:
    tolerance = 1e-9 if dtype == DOUBLE else 1e-4
    for a, b in zip(found, expected, strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("n", [1, 3, N_ROWS, 2 * N_ROWS + 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_gives_autograds_output_loss_and_gradients(name: str, n: int, dtype: torch.dtype) -> None:
    make, shape = NETWORKS[name]
    model = make(dtype)
    given = model, plain(model), CE
    differentiate = CompiledGradients(*given, *mini_batch(1, shape, dtype))
    for seed in range(3):
        batch = mini_batch(n, shape, dtype, seed)
        found = results(model, differentiate(*batch))
        require_close(found, results(model, by_autograd(*given, *batch)), dtype)
        with torch.no_grad():
            model[0].weight.mul_(1.1)


LOSSES = [*(kind(reduction=r) for kind in (nn.CrossEntropyLoss, nn.MSELoss) for r in ("mean", "sum"))]


@pytest.mark.parametrize("criterion", [*LOSSES, HalfSquaredError()], ids=lambda c: f"{type(c).__name__}-{c.reduction}")
@pytest.mark.parametrize("n", [1, 5])
def test_every_loss_that_has_kernels_will_do(criterion: nn.Module, n: int) -> None:
    model, classes = cnn(), isinstance(criterion, nn.CrossEntropyLoss)
    batch = (samples(n, CNN_SHAPE) if classes else regression(n, CNN_SHAPE)).tensors
    given = model, plain(model), criterion
    found = results(model, CompiledGradients(*given, *batch)(*batch))
    require_close(found, results(model, by_autograd(*given, *batch)))


@pytest.mark.parametrize("name", ["0.weight", "2.bias", "6.weight", "8.weight", "8.bias"])
@pytest.mark.parametrize("n", [1, 5])
def test_a_parameter_that_is_frozen_or_not_the_optimizers_gets_no_gradient(name: str, n: int) -> None:
    for frozen in (True, False):
        model = cnn()
        left_out = model.get_parameter(name).requires_grad_(not frozen)
        optimizer = Sign([param for param in model.parameters() if param is not left_out])
        given, batch = (model, optimizer, CE), mini_batch(n, CNN_SHAPE)
        found = results(model, CompiledGradients(*given, *batch)(*batch))
        assert left_out.grad is None
        expected = results(model, by_autograd(*given, *batch))
        left_out.grad = None
        require_close(found, results(model, (expected[0], expected[1])))


def test_gradients_that_an_optimizer_keeps_or_changes_stay() -> None:
    model = cnn()
    optimizer = plain(model)
    differentiate = CompiledGradients(model, optimizer, CE, *mini_batch(1, CNN_SHAPE))
    for seed in range(5):
        differentiate(*mini_batch(1 + seed % 2, CNN_SHAPE, seed=seed))
        optimizer.step()
        for kept, copies in zip(optimizer.kept, optimizer.copies, strict=True):
            assert all(map(torch.equal, kept, copies))
    storages = {gradient.untyped_storage().data_ptr() for kept in optimizer.kept for gradient in kept}
    assert len(storages) == 3 * len(list(model.parameters()))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_added_to_those_that_an_optimizer_has_kept(set_to_none: bool) -> None:
    class Keeping(Sign):
        def zero_grad(self, set_to_none: bool = True) -> None:
            """Keep them, or set them to zero."""
            if not set_to_none:
                super().zero_grad(set_to_none=False)

    found = []
    for compiles in (True, False):
        model = cnn()
        given = model, Keeping(model.parameters()), CE
        differentiate = (
            CompiledGradients(*given, *mini_batch(1, CNN_SHAPE)) if compiles else partial(by_autograd, *given)
        )
        differentiate(*mini_batch(1, CNN_SHAPE))
        kept = [param.grad for param in model.parameters()]
        found.append(results(model, differentiate(*mini_batch(1, CNN_SHAPE, seed=1))))
        assert all(param.grad is grad for param, grad in zip(model.parameters(), kept, strict=True))
    require_close(*found)


def channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)


def transposed(model: nn.Module) -> None:
    model[8].weight.data = model[8].weight.data.t().contiguous().t()


def replaced(model: nn.Module) -> None:
    model[8].weight.data = 2 * model[8].weight.data


@pytest.mark.parametrize("change", [channels_last, transposed, replaced])
def test_follows_parameters_to_other_memory(change: Callable[[nn.Module], None]) -> None:
    model = cnn()
    given, batch = (model, plain(model), CE), mini_batch(3, CNN_SHAPE)
    differentiate = CompiledGradients(*given, *batch)
    change(model)
    found = results(model, differentiate(*batch))
    require_close(found, results(model, by_autograd(*given, *batch)))


def test_inputs_of_another_kind_are_left_to_autograd() -> None:
    model = made(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(40, 3))
    differentiate = CompiledGradients(model, plain(model), CE, *mini_batch(2, CNN_SHAPE))
    x, y = mini_batch(2, CNN_SHAPE)
    assert not differentiate(x, y)[0].requires_grad
    assert differentiate(x.transpose(2, 3), y)[0].requires_grad
    assert differentiate(x, nn.functional.one_hot(y, 3).double())[0].requires_grad
    with pytest.raises(RuntimeError):
        differentiate(x, y.to(torch.int32))


@pytest.mark.parametrize("label", [3, -1, -100])
def test_a_label_beyond_the_outputs_is_reported(label: int) -> None:
    model, (x, y) = cnn(), mini_batch(2, CNN_SHAPE)
    differentiate = CompiledGradients(model, plain(model), CE, x, y)
    y[1] = label
    with pytest.raises(ValueError, match=f"label {label} does not fit the network's 3 outputs"):
        differentiate(x, y)


def hooked(model: nn.Module) -> None:
    model[0].register_forward_hook(lambda *_: None)


def watched(model: nn.Module) -> None:
    model[0].weight.register_hook(lambda gradient: gradient)


def another_forward(model: nn.Module) -> None:
    forward = model[0].forward
    model[0].forward = lambda x: forward(x)


def dropping(model: nn.Module) -> None:
    model.append(nn.Dropout())


def single(model: nn.Module) -> None:
    model[0].float()


REFUSED = {
    hooked: "Conv2d has hooks",
    watched: "a parameter of Conv2d has hooks",
    another_forward: "Conv2d's forward() has been replaced",
    dropping: "there is no kernel for Dropout",
    single: "parameters, inputs and targets do not fit together",
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.items(), ids=lambda value: getattr(value, "__name__", None))
def test_what_the_kernels_would_leave_out_is_refused(change: Callable[[nn.Module], None], reason: str) -> None:
    model = cnn()
    change(model)
    with pytest.raises(NotCompiled, match=exactly(reason)):
        CompiledGradients(model, plain(model), CE, *mini_batch(1, CNN_SHAPE))


def test_parameters_of_others_are_refused() -> None:
    model = cnn()
    optimizer = Sign([*model.parameters(), nn.Parameter(torch.zeros(2))])
    with pytest.raises(NotCompiled, match=exactly("the optimizer has parameters that are not the network's")):
        CompiledGradients(model, optimizer, CE, *mini_batch(1, CNN_SHAPE))


def test_mini_batches_without_convolutions_are_left_to_products_of_matrices() -> None:
    model = mlp()
    with pytest.raises(NotCompiled, match="mini-batches of 2 without convolutions are faster"):
        CompiledGradients(model, plain(model), CE, *mini_batch(2, (6,)))


# -------------------------------------------------------------------------------------------------------- learners


def learner_of(engine: Any, kind: type[Sign], size: int = 1, model: nn.Module | None = None, **options: Any) -> Any:
    model = cnn() if model is None else copy.deepcopy(model)
    learner = OnlineLearner(
        model=model, optimizer=kind(model.parameters()), engine=engine, batch_size=size, recorder=Collector(), **options
    )
    return learner


BY_CODE = "gradients by compiled code; the optimizer makes its own update"


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("kind", [Sign, Adam, WithLoss, Averaging])
def test_anybodys_optimizer_learns_as_with_the_torch_engine(kind: type[Sign], size: int) -> None:
    learners = [learner_of(engine, kind, size) for engine in ("auto", "torch")]
    for learner in learners:
        learner.train(stream_of(mini_batch(40, CNN_SHAPE), mini_batch(40, CNN_SHAPE, seed=1)))
    ours, theirs = (learner.recorder for learner in learners)
    assert learners[0].engine["name"] == "fused"
    assert learners[0].engine["reason"].endswith(f"; {BY_CODE}")
    assert ours.all("correct") == theirs.all("correct")
    assert ours.all("loss") == pytest.approx(theirs.all("loss"), rel=1e-9)
    require_close(*([param.detach() for param in learner.model.parameters()] for learner in learners))


def test_a_learner_sees_what_is_put_around_the_network_between_experiences() -> None:
    learner, seen = learner_of("auto", Sign), []
    learner.train(stream_of(mini_batch(5, CNN_SHAPE)))
    assert learner.engine["reason"].endswith(BY_CODE)
    learner.model[0].register_forward_hook(lambda *_: seen.append(1))
    learner.train(stream_of(mini_batch(5, CNN_SHAPE)))
    assert "compiled code" not in learner.engine["reason"]
    assert len(seen) == 5


def test_a_learner_runs_its_callbacks() -> None:
    learner = learner_of("auto", Sign, plugins=[Listening()])
    learner.train(stream_of(mini_batch(5, CNN_SHAPE)))
    assert learner.engine["name"] == "torch"


@pytest.mark.parametrize("size", [1, 7])
def test_a_loss_that_is_not_finite_stops_both_engines_alike(size: int) -> None:
    x, y = mini_batch(40, CNN_SHAPE)
    x[17] = NAN
    outcomes = []
    for engine in ("auto", "torch"):
        learner = learner_of(engine, Sign, size)
        with pytest.raises(ArithmeticError) as stopped:
            learner.train(stream_of((x, y)))
        outcomes.append((str(stopped.value), learner.n_samples))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] == 17 // size * size
