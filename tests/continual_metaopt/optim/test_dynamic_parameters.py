"""Optimizers follow networks whose parameters are replaced or added, without forgetting."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.dynamic_parameters import follow_parameters
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.peers.distance_over_gradients import AveragedDoG

OPTIMIZERS = {
    "metaoptimize": lambda model: MetaOptimize(blocks(model, "layerwise"), lr=1e-2),
    "lion": lambda model: MetaOptimize(blocks(model, "layerwise"), lr=1e-2, base="lion", meta="lion"),
    "torch Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
    "torch SGD with momentum": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9),
    "torch Adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=1e-2),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def learn(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().sum().backward()
        optimizer.step()


def replace_head(model: nn.Sequential, optimizer: Optimizer, outputs: int, inputs: int = 5) -> dict[str, Any]:
    """Give the network a head of another size; returns the state that the optimizer had for the old one's weights."""
    old = dict(model.named_parameters())
    state = dict(optimizer.state[model[2].weight])
    model[2] = nn.Linear(inputs, outputs)
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    return state


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(("outputs", "inputs"), [(6, 5), (1, 5), (3, 7), (2, 5)])
def test_a_replaced_parameter_keeps_the_overlap_of_its_state(make: Any, outputs: int, inputs: int) -> None:
    model = network()
    optimizer = make(model)
    learn(model, optimizer, 5)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    before = replace_head(model, optimizer, outputs, inputs)
    after = optimizer.state[model[2].weight]
    assert after.keys() == before.keys()
    rows, columns = min(2, outputs), min(5, inputs)
    for key, value in before.items():
        if isinstance(value, torch.Tensor) and value.dim() == 2:
            assert after[key].shape == (outputs, inputs)
            assert after[key][:rows, :columns].equal(value[:rows, :columns])
            assert value.abs().sum() > 0
            assert after[key].abs().sum() == pytest.approx(float(value[:rows, :columns].abs().sum()))
        else:
            assert after[key] == value
    for group, known in zip(optimizer.param_groups, groups, strict=True):
        assert {key: value for key, value in group.items() if key != "params"} == known
    held = [id(param) for group in optimizer.param_groups for param in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))


def test_new_parameters_join_the_group_of_the_most_similar_names() -> None:
    model = nn.ModuleDict({"columns": nn.ModuleList([nn.Linear(2, 2)]), "heads": nn.ModuleList([nn.Linear(2, 1)])})
    optimizer = MetaOptimize(blocks(model, "blockwise"), lr=1e-2)
    old = dict(model.named_parameters())
    model["columns"].append(nn.Linear(2, 2))
    model["heads"].append(nn.Linear(2, 3))
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    names = {id(param): name for name, param in model.named_parameters()}
    assert {group["name"]: [names[id(param)] for param in group["params"]] for group in optimizer.param_groups} == {
        "columns": ["columns.0.weight", "columns.0.bias", "columns.1.weight", "columns.1.bias"],
        "heads": ["heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias"],
    }


def test_where_several_groups_are_equally_near_the_latest_takes_a_new_parameter() -> None:
    model = nn.ModuleDict({"heads": nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])})
    optimizer = MetaOptimize(blocks(model, "layerwise"), lr=1e-2)
    old = dict(model.named_parameters())
    model["heads"].append(nn.Linear(2, 3))
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 4]


def test_names_that_torch_keeps_beside_the_parameters_stay_in_step() -> None:
    model = network()
    optimizer = torch.optim.Adam(list(model.named_parameters()))
    old = dict(model.named_parameters())
    model.append(nn.Linear(2, 2))
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    (group,) = optimizer.param_groups
    assert group["param_names"] == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("name", ["start", "other_weights"])
def test_new_weights_begin_where_they_are(name: str) -> None:
    model = network()
    optimizer = AveragedDoG(blocks(model, "layerwise"), reps_rel=0.01)
    learn(model, optimizer, 5)
    before = replace_head(model, optimizer, 3, 4)
    found = optimizer.state[model[2].weight][name]
    assert found[:2].equal(before[name][:, :4])
    assert found[2].equal(model[2].weight.detach()[2])


def test_parameters_that_the_optimizer_was_never_given_stay_out() -> None:
    model = network()
    optimizer = torch.optim.Adam(model[2].parameters())
    old = dict(model.named_parameters())
    model[0] = nn.Linear(4, 5)
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    assert [id(param) for param in optimizer.param_groups[0]["params"]] == list(map(id, model[2].parameters()))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_head_of_the_same_size_goes_on_as_if_nothing_had_happened(make: Any) -> None:
    trajectories = []
    for replaced in (False, True):
        model = network()
        optimizer = make(model)
        learn(model, optimizer, 5)
        if replaced:
            weights = {key: value.clone() for key, value in model[2].state_dict().items()}
            replace_head(model, optimizer, 2)
            model[2].load_state_dict(weights)
        learn(model, optimizer, 5)
        trajectories.append([param.detach().clone() for param in model.parameters()])
    assert all(a.equal(b) for a, b in zip(*trajectories, strict=True))
