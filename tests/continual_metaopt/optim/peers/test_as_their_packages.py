"""Optimizers that estimate a distance, against their authors' packages, step by step in double precision.

Both get the gradients at our weights: a network would make larger differences of rounding errors, 1e-7 in 250 steps.
"""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.peers.d_adaptation import DAdaptAdaGrad, DAdaptAdam, DAdaptSGD
from continual_metaopt.optim.peers.distance_over_gradients import averaged_or_not
from continual_metaopt.optim.peers.prodigy import Prodigy
from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.optim.registry import make_optimizer
from tests.continual_metaopt.conftest import exactly

N = 250

Report = Callable[[Any], float]
D: Report = lambda group: group["d"] * group["lr"]  # noqa: E731
D_OVER_NORM: Report = lambda group: group["d"] * group["lr"] / group["g0_norm"]  # noqa: E731
ETA: Report = lambda group: group["eta"][0]  # noqa: E731

# our class, package, its class, how it tells its step size, division into blocks, and options
SGD = DAdaptSGD, "dadaptation", "DAdaptSGD", D_OVER_NORM, "layerwise"
ADAM = DAdaptAdam, "dadaptation", "DAdaptAdam", D, "layerwise"
ADAGRAD = DAdaptAdaGrad, "dadaptation", "DAdaptAdaGrad", D, "layerwise"
PRODIGY = Prodigy, "prodigyopt", "Prodigy", D, "layerwise"
DOG = averaged_or_not, "dog", "DoG", ETA, "layerwise"
Kind = tuple[Any, str, str, Report, Any]
CASES: list[tuple[Kind, dict[str, Any]]] = [
    *((SGD, options) for options in ({}, {"d0": 0.1, "weight_decay": 0.01}, {"d0": 0.01, "momentum": 0.8})),
    *((SGD, options) for options in ({"d0": 1e-4, "growth_rate": 1.02}, {"d0": 0.01, "lr": 0.5})),
    *((ADAM, options) for options in ({}, {"d0": 1e-4, "weight_decay": 0.01}, {"d0": 1e-4, "betas": (0.0, 0.9)})),
    (ADAM, {"d0": 1e-4, "weight_decay": 0.01, "decouple": True}),
    (ADAM, {"d0": 1e-4, "use_bias_correction": True, "eps": 1e-3}),
    (ADAM, {"d0": 1e-4, "growth_rate": 1.02, "lr": 0.5}),
    *((ADAGRAD, options) for options in ({}, {"d0": 0.01, "weight_decay": 0.01}, {"d0": 0.01, "momentum": 0.8})),
    *((ADAGRAD, options) for options in ({"d0": 0.01, "eps": 1e-2}, {"d0": 1e-4, "growth_rate": 1.02, "lr": 0.5})),
    *((PRODIGY, options) for options in ({}, {"d0": 1e-4, "weight_decay": 0.01}, {"d0": 1e-4, "betas": (0.0, 0.9)})),
    (PRODIGY, {"d0": 1e-4, "weight_decay": 0.01, "decouple": False}),
    (PRODIGY, {"d0": 1e-4, "use_bias_correction": True, "beta3": 0.9, "eps": 1e-3}),
    (PRODIGY, {"d0": 1e-4, "safeguard_warmup": True, "lr": 0.5, "d_coef": 2.0}),
    (PRODIGY, {"d0": 1e-4, "growth_rate": 1.02}),
    *((DOG, options) for options in ({}, {"reps_rel": 0.01, "weight_decay": 0.01}, {"init_eta": 0.01, "eps": 1e-2})),
    ((*DOG[:4], "tensor"), {"reps_rel": 0.01, "lr": 0.5}),  # which is LDoG
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def a_stream() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    xs = torch.randn(N, 1, 6, generator=generator, dtype=torch.float64)
    return [(x, (x[:, :3].argmax(1) + (step > N // 2)) % 3) for step, x in enumerate(xs)]


def descend(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, twin: nn.Module | None = None) -> None:
    """Learn from a sample; a twin is given the same gradients."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    for parameter, other in zip(model.parameters(), () if twin is None else twin.parameters(), strict=twin is not None):
        assert parameter.grad is not None
        other.grad = parameter.grad.clone()
    optimizer.step()


def like(package: str, name: str, groups: list[dict[str, Any]], options: dict[str, Any]) -> Any:
    module = pytest.importorskip(package)
    return getattr(module, name)([{"params": group["params"]} for group in groups], **options)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda part: part[2] if isinstance(part, tuple) else str(part))
def test_every_step_is_that_of_the_package(kind: Kind, options: dict[str, Any]) -> None:
    make, package, name, step_size, divided = kind
    ours, theirs = network(), network()
    original = like(package, name, blocks(theirs, divided), options)
    averaging = {"averaging": None} if make is averaged_or_not else {}
    optimizer = make(blocks(ours, divided), **options, **averaging)
    for x, y in a_stream():
        descend(ours, optimizer, x, y, theirs)
        original.step()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-13)
        expected = [float(step_size(group)) for group in original.param_groups]
        assert list(step_sizes_of(optimizer).values()) == pytest.approx(expected, rel=1e-10)
    moved = max((p - q).abs().max() for p, q in zip(ours.parameters(), network().parameters(), strict=True))
    assert moved > 1e-4, "the weights have hardly moved"


@pytest.mark.parametrize("name", ["dog", "ldog"])
def test_averaged_weights_are_those_of_the_package(name: str) -> None:
    ours, theirs = network(), network()
    optimizer: Any = make_optimizer(name, ours, reps_rel=0.01)
    groups = blocks(theirs, "tensor" if name == "ldog" else "scalar")
    original = like("dog", {"dog": "DoG", "ldog": "LDoG"}[name], groups, {"reps_rel": 0.01})
    averager = importlib.import_module("dog").PolynomialDecayAverager(theirs, gamma=8.0)
    for x, y in a_stream():
        descend(ours, optimizer, x, y, theirs)
        original.step()
        averager.step()
        for show, expected in ((optimizer.eval, averager.averaged_model), (optimizer.train, theirs)):
            show()
            for mine, other in zip(ours.parameters(), expected.parameters(), strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["dog", "ldog"])
def test_averaged_weights_are_not_learned_at(name: str) -> None:
    optimizer: Any = make_optimizer(name, network())
    optimizer.eval()
    message = "the parameters hold averaged weights; call train() before taking gradients and step()"
    with pytest.raises(RuntimeError, match=exactly(message)):
        optimizer.step()


@pytest.mark.parametrize("name", ["dadapt_sgd", "dadapt_adam", "dadapt_adagrad", "prodigy", "dog"])
def test_gradients_of_zero_at_first_change_nothing(name: str) -> None:
    model, twin = network(), network()
    optimizers = [make_optimizer(name, each) for each in (model, twin)]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers[0].step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    if name == "dog":
        return  # whose initial distance is then over the root of ε
    for each, optimizer in zip((model, twin), optimizers, strict=True):
        descend(each, optimizer, *a_stream()[0])
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
