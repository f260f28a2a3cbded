"""Continual backprop by compiled code against PyTorch: the same units are replaced, and weights agree."""

import copy
import pickle
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.compiled.engine import CompiledEngine, compiled_or_why_not
from continual_metaopt.engines.observations import Observations
from continual_metaopt.optim.base_updates import BASE_UPDATES
from continual_metaopt.optim.peers.continual_backprop import RESTARTS, ContinualBackprop

OFTEN: dict[str, Any] = {"replacement_rate": 0.03, "maturity": 8, "decay": 0.9}
CE = nn.CrossEntropyLoss()


def convolutions(bias: bool = True) -> nn.Sequential:
    """Units between convolutions, from one to a linear layer, and between linear layers."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(5, 18, 2, stride=2), nn.Tanh()),
        nn.Flatten(),
        nn.Linear(72, 9, bias=bias),
        nn.LeakyReLU(0.1),
        nn.Linear(9, 4),
    ).double()


def samples(n: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 8, 9, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(4, (n,), generator=generator))


def by_torch(model: nn.Module, optimizer: ContinualBackprop, data: TensorDataset) -> Observations:
    seen = Observations(0, 0)
    pairs = ((x[None], y[None]) for x, y in (data[i] for i in range(len(data))))
    while torch_engine.learn(model, optimizer, CE, pairs, seen, 10, optimizer.step):
        pass
    return seen


def compiled(model: nn.Module, optimizer: ContinualBackprop, data: TensorDataset) -> Observations:
    x, y = data[0]
    engine, reason = compiled_or_why_not(model, optimizer, CE, (x[None], y[None]))
    assert engine is not None, reason
    seen = Observations(0, 0)
    while engine.learn(data, len(seen), seen, 10):
        pass
    return seen


def twins(model: nn.Module, lr: float = 0.01, **options: Any) -> list[tuple[nn.Module, ContinualBackprop]]:
    pairs = []
    for _ in range(2):
        own = copy.deepcopy(model)
        pairs.append((own, ContinualBackprop(own, lr, **{**OFTEN, **options})))
    return pairs


def check_alike(found: tuple[nn.Module, ContinualBackprop], expected: tuple[nn.Module, ContinualBackprop]) -> None:
    for param, other in zip(found[0].parameters(), expected[0].parameters(), strict=True):
        torch.testing.assert_close(param, other, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found[1].state[param], expected[1].state[other], rtol=1e-9, atol=1e-11)
        assert found[1].state[param].keys() == expected[1].state[other].keys()
    assert found[1].param_groups[0].keys() == expected[1].param_groups[0].keys()


def ages(optimizer: ContinualBackprop) -> list[Tensor]:
    return [state["age"] for state in optimizer.state.values() if "age" in state]


@pytest.mark.parametrize("base", list(BASE_UPDATES))
def test_units_are_replaced_as_by_pytorch(base: str) -> None:
    lr = {"sgd": 0.02, "lion": 1e-3}.get(base, 3e-3)
    pair = twins(convolutions(), lr, base=base, weight_decay=0.01)
    data = samples(300)
    seen = compiled(*pair[1], data)
    expected = by_torch(*pair[0], data)
    check_alike(pair[1], pair[0])
    assert seen.correct == expected.correct
    assert seen.loss == pytest.approx(expected.loss, rel=1e-9)
    assert seen.step_sizes == expected.step_sizes
    assert all((age < 300).any() for age in ages(pair[1][1]))
    assert sum(int((age < 300).sum()) for age in ages(pair[1][1])) > 4


def test_every_step_agrees_and_either_engine_goes_on_where_the_other_was() -> None:
    pair = twins(convolutions(bias=False), weight_decay=0.1, seed=4)
    n_replaced = 0
    for number in range(120):
        data = samples(2, seed=number)
        compiled(*pair[1], data)
        by_torch(*pair[0], data)
        check_alike(pair[1], pair[0])
        n_replaced += sum(int((age < 2).sum()) for age in ages(pair[1][1]))
        if number % 20 == 19:
            pair.reverse()
    assert n_replaced > 20


def test_a_saved_optimizer_goes_on_by_compiled_code() -> None:
    (model, optimizer), _ = twins(convolutions())
    compiled(model, optimizer, samples(100))
    assert any(RESTARTS in state for state in optimizer.state.values())
    restored = copy.deepcopy(convolutions())
    successor = ContinualBackprop(restored, 0.01, **OFTEN)
    restored.load_state_dict(model.state_dict())
    successor.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    for own, its in ((model, optimizer), (restored, successor)):
        compiled(own, its, samples(100, seed=1))
    assert all(a.equal(b) for a, b in zip(model.parameters(), restored.parameters(), strict=True))


@pytest.mark.parametrize("frozen", ["0.weight", "3.0.weight", "5.bias", "7.weight"])
def test_units_beside_frozen_weights(frozen: str) -> None:
    """Those that do not learn are left alone; a frozen bias of a replaced unit is 0 nevertheless."""
    pair = twins(convolutions())
    for number in range(3):
        for model, _ in pair:
            model.get_parameter(frozen).requires_grad_(number == 1)
        data = samples(40, seed=number)
        compiled(*pair[1], data)
        pair[0][1].zero_grad()
        by_torch(*pair[0], data)
        check_alike(pair[1], pair[0])


@pytest.mark.parametrize("only", [(0, 3), (5,)])
def test_weights_of_others_are_set_back_too(only: tuple[int, ...]) -> None:
    pair = []
    for _ in range(2):
        model = convolutions()
        params = [param for place in only for param in model[place].parameters()]
        pair.append((model, ContinualBackprop(model, 0.01, params=params, **OFTEN)))
    compiled(*pair[1], samples(60))
    by_torch(*pair[0], samples(60))
    check_alike(pair[1], pair[0])
    assert ages(pair[1][1])


def test_without_replacement_there_are_no_restarts() -> None:
    (model, optimizer), _ = twins(convolutions(), replacement_rate=0.0)
    compiled(model, optimizer, samples(30))
    assert not any(RESTARTS in state for state in optimizer.state.values())


def test_it_cannot_go_to_a_process_without_torch() -> None:
    (model, optimizer), _ = twins(convolutions())
    engine = CompiledEngine(model, optimizer, CE, (2, 8, 9))
    with pytest.raises(TypeError, match=r"^what is outside of compiled code cannot be pickled$"):
        pickle.dumps(engine.learner)


def test_hooks_of_others_and_other_networks_are_left_to_pytorch() -> None:
    (model, optimizer), _ = twins(convolutions())
    x, y = samples(1)[0]
    sample = (x[None], y[None])
    assert compiled_or_why_not(convolutions(), optimizer, CE, sample)[1] == "the optimizer watches another network"
    handle = model[0].register_forward_hook(lambda *_: None)
    assert compiled_or_why_not(model, optimizer, CE, sample)[1] == "Conv2d has hooks"
    handle.remove()
    wrapped = nn.Sequential(model, nn.Identity())
    data = samples(50)
    compiled(wrapped, optimizer, data)
