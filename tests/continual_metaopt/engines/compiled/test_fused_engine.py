"""Every learner takes the same way with traced gradients as with autograd's, or says why it does not take them."""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pytest
import torch
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn

import continual_metaopt.learner.online_learner as learner_module
from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.compiled.fused_update import FusedPass, fused_update_of
from continual_metaopt.engines.observations import Diverged, Observations
from continual_metaopt.engines.torch_engine import by_autograd
from continual_metaopt.engines.traced.traced_gradients import TracedGradients, why_not_traced
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.peers.prodigy import Prodigy
from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.optim.registry import LEARNERS, is_told, known_of_the_stream, make_optimizer
from tests.continual_metaopt.conftest import Collector, exactly
from tests.continual_metaopt.learner.parts import noisy_images

LENGTH = 120  # samples of an experience
FOR_LINEAR_MODELS = {"idbd", "autostep"}
OF_OTHER_RUNS = {"replayed_step_sizes"}
TRACED = "gradients by a traced graph"
OWN_UPDATE = f"{TRACED}; the optimizer makes its own update"
DIFFERENTIATES = "the optimizer differentiates the loss itself"
HOOKS = "Sequential has hooks"


class Convolution(nn.Conv2d):
    """Takes a stream's inputs into its own type."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def mlp() -> nn.Module:
    """With an activation that has no compiled code, so that its gradients are traced."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ELU(), nn.Linear(8, 4))


class DoubleFlatten(nn.Flatten):
    """Flattens a stream's inputs, as numbers of double precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def double_mlp() -> nn.Module:
    return nn.Sequential(DoubleFlatten(), nn.Linear(64, 8), nn.ELU(), nn.Linear(8, 4)).double()


def cnn() -> nn.Module:
    """In float64, since some learners make large differences of rounding errors, at the first samples above all."""
    layers = Convolution(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    return nn.Sequential(*layers).double()


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def learner_of(name: str, network: Callable[[], nn.Module], engine: Any, **options: Any) -> OnlineLearner:
    torch.manual_seed(0)
    model = network()
    optimizer = make_optimizer(name, model, **known_of_the_stream(name, 2 * LENGTH))
    return OnlineLearner(model=model, optimizer=optimizer, engine=engine, told=is_told(name), **options)


def trained(
    name: str, network: Callable[[], nn.Module], engine: Any, **options: Any
) -> tuple[OnlineLearner, Collector]:
    """A learner after the stream, or after what it learned from until it diverged; and what it recorded."""
    collector = Collector()
    learner = learner_of(name, network, engine, recorder=collector, **options)
    with contextlib.suppress(Diverged):
        learner.train(noisy_images())
    return learner, collector


# learners whose step is compiled, and sums in another order
COMPILED_UPDATES = (
    *("metaoptimize", "glocal", "fixed", "fixed_per_block", "reinitialised_told", "sgd_hd", "adam_hd", "cocob"),
    *("meta_mirror_descent", "cosine", "cosine_restarts_told", "adamw_lion_package", "aruba_told", "l2_init", "obgd"),
    *("exponentiated_gradient", "idbd_network", "idbd_rmsprop", "sps", "weight_clipping"),
    *("dog", "ldog", "dadapt_sgd", "dadapt_adam", "dadapt_adagrad", "prodigy"),
)
ENLARGE_ROUNDING_ERRORS = {"dadapt_sgd", "dadapt_adam", "prodigy"}
REFUSED = {"vsgd": DIFFERENTIATES}
LEFT_TO_AUTOGRAD = {"continual_backprop": HOOKS}
ALL = [
    *(name for name in LEARNERS.own if name not in FOR_LINEAR_MODELS | OF_OTHER_RUNS),
    "torch:SGD",
    "torch:Adam",
    "torch:Rprop",
    "pytorch_optimizer:AdaBelief",
]
QUICK = ("metaoptimize", "torch:Adam", "schedulefree_adamw", "vsgd", "continual_backprop")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", [mlp, pytest.param(cnn, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_learners_take_the_same_way(name: str, network: Callable[[], nn.Module]) -> None:
    """The very same one, but for updates that are compiled, and for compiled convolutions."""
    if name in REFUSED:
        message = f'engine="fused" is not possible: {REFUSED[name]}; use engine="auto"'
        with pytest.raises(ValueError, match=exactly(message)):
            learner_of(name, network, "fused")
        reason = f"neither compiled nor fused: {REFUSED[name]}"
        assert trained(name, network, "auto")[0].engine == {"name": "torch", "reason": reason}
        return
    if name in ENLARGE_ROUNDING_ERRORS and network is mlp:
        network = double_mlp
    (theirs, expected), (ours, found) = (trained(name, network, engine) for engine in ("torch", "fused"))

    if name in LEFT_TO_AUTOGRAD:
        assert ours.engine == {"name": "torch", "reason": f"not fused: {LEFT_TO_AUTOGRAD[name]}"}
    else:
        reason = TRACED if name in COMPILED_UPDATES else OWN_UPDATE
        assert ours.engine == {"name": "fused", "reason": f"asked for; {reason}"}
    tolerance = 0.0 if network is mlp else 1e-7
    if name in COMPILED_UPDATES:
        tolerance = 1e-4
    assert len(found.all("correct")) >= LENGTH
    assert found.all("correct") == expected.all("correct")
    assert found.all("loss") == pytest.approx(expected.all("loss"), rel=tolerance, abs=tolerance)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    (*_, ours_at_last), (*_, theirs_at_last) = (collector.all("step_sizes") for collector in (found, expected))
    assert ours_at_last == (*theirs_at_last[:2], pytest.approx(theirs_at_last[2], rel=tolerance, abs=0))


@pytest.mark.parametrize("name", sorted(FOR_LINEAR_MODELS))
def test_learners_that_watch_the_inputs_keep_their_hooks(name: str) -> None:
    losses = []
    for engine in ("torch", "fused"):
        learner, collector = trained(name, linear, engine)
        losses.append(collector.all("loss"))
    assert learner.engine == {"name": "torch", "reason": f"not fused: {HOOKS}"}
    assert losses[0] == losses[1]


class Listener(SupervisedPlugin):
    """Makes the learner run all callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.n_calls += 1


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ("fused", "not fused: Listener listens to single iterations"),
        ("auto", "neither compiled nor fused: Listener listens to single iterations"),
    ],
)
def test_where_callbacks_run_nothing_is_traced(engine: str, reason: str) -> None:
    listener = Listener()
    theirs, _ = trained("torch:Adam", cnn, "torch")
    ours, _ = trained("torch:Adam", cnn, engine, plugins=[listener])
    assert ours.engine == {"name": "torch", "reason": reason}
    assert listener.n_calls == 2 * LENGTH
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))


def test_auto_takes_it() -> None:
    reason = f"not compiled: there is no kernel for ELU; {OWN_UPDATE}"
    assert trained("torch:Adam", mlp, "auto")[0].engine == {"name": "fused", "reason": reason}


class Shared(nn.Module):
    """Two biases have one gradient, and a graph has the gradients of both scales in other things' memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
        self.scale, self.turned = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.first + self.second + self.scale.sum() + (self.turned.t().exp() * 0.1).sum()


def the_sum(output: Tensor, target: Tensor) -> Tensor:
    return output.sum()


class Greedy(torch.optim.SGD):
    """Keeps the gradients that it was given, and then changes the new ones in place."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.kept: list[Tensor] = []
        self.values: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.view(-1).add_(param.view(-1), alpha=0.5)
                self.kept.append(param.grad)
                self.values.append(param.grad.clone())
        return super().step(closure)


def test_gradients_belong_to_the_optimizer() -> None:
    kept = []
    for way in ("autograd", "a graph"):
        model, criterion = Shared(), the_sum
        optimizer = Greedy(model.parameters())
        xs, y = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(1)
        traced = TracedGradients(model, optimizer, criterion, xs[0], y)
        for x in xs:
            if way == "a graph":
                output, _ = traced(x, y)
                assert output.equal(model(x))
            else:
                by_autograd(model, optimizer, criterion, x, y)
            optimizer.step()
        assert all(map(torch.equal, optimizer.kept, optimizer.values)), "a gradient changed after it was given away"
        assert len({gradient.data_ptr() for gradient in optimizer.kept}) == 4 * len(xs)
        kept.append(optimizer.kept)
    assert all(a.equal(b) and a.stride() == b.stride() for a, b in zip(*kept, strict=True))


class Zeroing(torch.optim.SGD):
    """Counts how often its gradients are set back."""

    n_zeroed = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.n_zeroed += 1
        super().zero_grad(set_to_none)


def test_an_own_zero_grad_is_called_once_a_sample() -> None:
    torch.manual_seed(0)
    model = mlp()
    optimizer = Zeroing(model.parameters(), 0.01)
    OnlineLearner(model=model, optimizer=optimizer, engine="fused").train(noisy_images())
    assert optimizer.n_zeroed == 2 * LENGTH


@pytest.mark.parametrize(
    ("optimizer", "obstacle"),
    [
        (lambda: torch.optim.Adam(mlp().parameters()), None),
        (lambda: torch.optim.Adam(mlp().bfloat16().parameters()), "a parameter is torch.bfloat16 on cpu"),
        (lambda: torch.optim.Adam(mlp().to("meta").parameters()), "a parameter is torch.float32 on meta"),
        (lambda: MetaOptimize(mlp().parameters(), trace="l"), DIFFERENTIATES),
    ],
)
def test_what_optimizers_tell_against_it(optimizer: Callable[[], Any], obstacle: str | None) -> None:
    assert why_not_traced(optimizer()) == obstacle


class Stop(Exception):
    """Ends training in the middle."""


@pytest.mark.parametrize("name", ["sgd_hd", "schedulefree_adamw"])
@pytest.mark.parametrize("after", [LENGTH // 2, LENGTH, pytest.param(LENGTH + 30, marks=pytest.mark.slow)])
def test_checkpoints_go_on_bit_for_bit(name: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (learner_module, torch_engine):
        monkeypatch.setattr(module, "MAX_SAMPLES", 10)
    whole, _ = trained(name, cnn, "fused")

    class SaveAndStop:
        def observe(self, observations: Observations) -> None:
            if observations.next_step >= after:
                save_checkpoint(first, tmp_path / "checkpoint")
                raise Stop

    first = learner_of(name, cnn, "fused", recorder=SaveAndStop())
    with pytest.raises(Stop):
        first.train(noisy_images())
    second, start = maybe_load_checkpoint(learner_of(name, cnn, "fused"), tmp_path / "checkpoint")
    assert second.n_samples == after
    second.train(noisy_images()[start:])

    assert second.engine["name"] == "fused"
    assert (second.n_samples, second.n_correct) == (whole.n_samples, whole.n_correct)
    assert all(torch.equal(a, b) for a, b in zip(second.model.parameters(), whole.model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sgd_hd", "adam_hd", "meta_mirror_descent", "cosine_restarts_told", "dog", "prodigy"])
def test_a_pass_makes_the_updates_of_elementwise_optimizers(name: str) -> None:
    torch_made, fused = (make_optimizer(name, copy.deepcopy(model)) for model in [cnn().double()] * 2)
    update = fused_update_of(fused)
    assert isinstance(update, FusedPass)
    generator = torch.Generator().manual_seed(0)
    params = [optimizer.param_groups[0]["params"] for optimizer in (torch_made, fused)]
    for step in range(30):
        for theirs, ours in zip(*params, strict=True):
            theirs.grad = torch.randn(theirs.shape, generator=generator, dtype=theirs.dtype) if step % 3 else None
            ours.grad = None if theirs.grad is None else theirs.grad.clone()
        torch_made.step()
        update()

    for theirs, ours in zip(*params, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert step_sizes_of(fused) == pytest.approx(step_sizes_of(torch_made), rel=1e-9)


def test_groups_without_gradients_decide_what_all_have_in_common() -> None:
    estimates = []
    for way in ("torch", "fused"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
        optimizer = Prodigy(blocks(model, "layerwise"), d0=1e-3)
        update = optimizer.step if way == "torch" else fused_update_of(optimizer)
        assert callable(update)
        for step in range(10):
            optimizer.zero_grad()
            hidden = model[0](torch.full((1, 3), 1.0 + step, dtype=torch.float64))
            (model[1](hidden.detach()) if step % 2 else hidden).square().sum().backward()
            update()
        estimates.append([group["d"] for group in optimizer.param_groups])
        assert len({*estimates[-1]}) == 1
        assert estimates[-1][0] > 1e-3
    assert estimates[1] == pytest.approx(estimates[0], rel=1e-12)
