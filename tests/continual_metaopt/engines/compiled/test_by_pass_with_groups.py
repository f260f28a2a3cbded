"""Optimizers whose update is a compiled pass, against their own steps in PyTorch."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from continual_metaopt.engines.compiled.engine import CompiledEngine, why_not_compiled
from continual_metaopt.engines.observations import Observations
from continual_metaopt.optim.peers.l2_init import L2Init
from continual_metaopt.optim.peers.shrink_and_perturb import ShrinkAndPerturb
from continual_metaopt.optim.peers.upgd import UPGD
from continual_metaopt.optim.peers.weight_clipping import WeightClipping

N, SHAPE = 12, (2, 5, 5)
MAKE: dict[str, Callable[..., Optimizer]] = {
    "upgd": partial(UPGD, lr=0.01, weight_decay=0.1, beta_utility=0.9, sigma=0.5, seed=3),
    "l2_init, adamw": partial(L2Init, lr=0.01, pull=0.3, weight_decay=0.1),
    "l2_init, sgd": partial(L2Init, lr=0.1, base="sgd", pull=0.3),
    "shrink_and_perturb, adamw": partial(ShrinkAndPerturb, lr=0.01, sigma=0.5, seed=3),
    "shrink_and_perturb, sgd": partial(ShrinkAndPerturb, lr=0.1, base="sgd", sigma=0.5, seed=3),
    "weight_clipping": partial(WeightClipping, lr=0.1, bound=0.7, weight_decay=0.1),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 3, (2, 3)), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(24, 3))
    return nn.Sequential(*layers).double()


def groups(model: nn.Sequential) -> list[dict[str, Any]]:
    """Not in the network's order, one of biases, and with settings of its own."""
    first, second, last = (layer for layer in model if list(layer.parameters()))
    biases = {"params": [second.bias, first.bias], "weight_decay": 0.3, "name": "biases"}
    return [{"params": [last.bias, last.weight]}, biases, {"params": [first.weight]}, {"params": [second.weight]}]


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, *SHAPE, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(3, (N,), generator=generator))


def by_torch(model: nn.Module, optimizer: Optimizer, first: int = 0) -> Iterator[None]:
    for x, y in zip(*samples()[first:], strict=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        loss.backward()
        optimizer.step()
        yield


def by_pass(model: nn.Module, optimizer: Optimizer, first: int = 0) -> Iterator[None]:
    assert why_not_compiled(model, optimizer, nn.CrossEntropyLoss()) is None
    engine, observations = CompiledEngine(model, optimizer, nn.CrossEntropyLoss(), SHAPE), Observations(first, 0)
    for step in range(first, N):
        engine.learn(samples(), step, observations, 1, at_most=1)
        yield


def assert_close(found: Any, expected: Any) -> None:
    if isinstance(expected, dict | list | tuple):
        assert len(found) == len(expected)
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_close(found[key], expected[key])
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    else:
        assert found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_weights_and_state_agree_step_by_step(make: Callable[..., Optimizer]) -> None:
    found, expected = network(), network()
    found[2].weight.requires_grad_(False)
    expected[2].weight.requires_grad_(False)
    ours, theirs = make(groups(found)), make(groups(expected))
    start = copy.deepcopy(list(found.parameters()))
    for _ in zip(by_pass(found, ours), by_torch(expected, theirs), strict=True):
        assert_close(list(found.parameters()), list(expected.parameters()))
        assert_close(ours.state_dict(), theirs.state_dict())
    moved = [not torch.equal(a, b) for a, b in zip(start, found.parameters(), strict=True)]
    assert moved == [param.requires_grad for param in found.parameters()]


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_each_goes_on_where_the_other_has_stopped(make: Callable[..., Optimizer]) -> None:
    whole, model = network(), network()
    for _ in by_torch(whole, make(groups(whole))):
        pass
    optimizer = make(groups(model))
    for step in range(N):
        next((by_pass, by_torch)[step % 2](model, optimizer, step))
    assert_close(list(model.parameters()), list(whole.parameters()))
