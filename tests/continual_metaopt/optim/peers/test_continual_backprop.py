"""Continual backprop: a NumPy reference unit by unit, units of convolutions by hand, which forward passes count."""

import copy
import io
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.networks.lenet import LeNet
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.networks.paper_cnn import PaperCNN
from continual_metaopt.networks.vit_tiny import ViTTiny
from continual_metaopt.optim.peers.continual_backprop import ContinualBackprop
from continual_metaopt.optim.peers.sequential_units import UnitActivity
from continual_metaopt.streams import make_stream
from tests.continual_metaopt.conftest import exactly
from tests.continual_metaopt.optim.peers import field_references as references

OFTEN: dict[str, Any] = {"replacement_rate": 0.03, "maturity": 8, "decay": 0.9}


def mlp() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2)).double()


def samples(n: int, batch_size: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    return [(draw(batch_size, 4), draw(batch_size, 2)) for _ in range(n)]


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, given: list[tuple[Tensor, Tensor]]) -> None:
    for x, y in given:
        optimizer.zero_grad()
        HalfSquaredError()(model(x), y).backward()
        optimizer.step()


def numbers(layer: nn.Linear) -> tuple[Any, Any]:
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("base", "lr"), [("sgd", 0.05), ("adamw", 0.01)])
def test_a_hundred_steps_are_those_of_the_reference(base: str, lr: float, batch_size: int) -> None:
    model = mlp()
    optimizer = ContinualBackprop(model, lr, base=base, seed=3, **OFTEN)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    given = samples(100, batch_size)
    reference = references.continual_backprop(
        [numbers(layer) for layer in layers],
        [(x.numpy(), y.numpy()) for x, y in given],
        lr, base, OFTEN["replacement_rate"], OFTEN["maturity"], OFTEN["decay"], 3,
    )  # fmt: skip
    n_replaced = 0
    for sample, (expected, ages) in zip(given, reference, strict=True):
        learn(model, optimizer, [sample])
        for layer, parts in zip(layers, expected, strict=True):
            for found, part in zip(numbers(layer), parts, strict=True):
                np.testing.assert_allclose(found, part, rtol=1e-8, atol=1e-10)
        for layer, age in zip(layers, ages, strict=False):
            np.testing.assert_array_equal(optimizer.state[layer.weight]["age"].numpy(), age)
        n_replaced += sum(int((age == 0).sum()) for age in ages)
    assert n_replaced > 10


def test_without_replacement_it_is_the_base_update() -> None:
    model, other = mlp(), mlp()
    learn(model, ContinualBackprop(model, 0.01, replacement_rate=0.0), samples(30))
    learn(other, torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.0), samples(30))
    assert all(a.equal(b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_budget_does_not_grow_while_units_are_immature() -> None:
    model = mlp()
    optimizer = ContinualBackprop(model, 0.01, replacement_rate=0.1, maturity=50)
    state = optimizer.state[model[0].weight]
    learn(model, optimizer, samples(50))
    assert (state["budget"], state["age"].tolist()) == (0.0, [50.0] * 7)
    learn(model, optimizer, samples(1))
    assert state["budget"] == pytest.approx(0.7)
    learn(model, optimizer, samples(1))
    assert state["budget"] == pytest.approx(0.4)
    assert sorted(state["age"].tolist()) == [0.0] + [52.0] * 6


def test_a_replaced_unit_of_a_convolution_is_a_channel() -> None:
    """Two channels, whose use for the linear layer is 3 and 2, and a third of no use."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        model[3].weight.copy_(torch.tensor([[1.0] * 4 + [0.5] * 4 + [0.0] * 4]))
    optimizer = ContinualBackprop(model, 0.0, base="adamw", replacement_rate=1 / 3, maturity=0, decay=0.0)
    model(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])).sum().backward()
    optimizer.step()
    state = optimizer.state[model[0].weight]
    assert state["utility"].tolist() == [3.0, 2.0, 0.0]
    assert state["age"].tolist() == [1.0, 1.0, 0.0]
    assert model[0].bias.tolist() == [0.0, 1.0, 0.0]
    assert model[0].weight.flatten()[:2].tolist() == [1.0, 1.0]
    assert 0 < abs(model[0].weight[2].item()) <= 1
    known = optimizer.state[model[3].weight]["base"]
    assert known["step"] == 1
    assert optimizer.state[model[3].weight]["restarts"]["inputs"].tolist() == [[0.0] * 8 + [1.0] * 4]
    assert [bool(value) for value in known["exp_avg_sq"][0]] == [True] * 8 + [False] * 4

    optimizer.param_groups[0]["replacement_rate"] = 1.0
    model(torch.ones(1, 1, 2, 2)).sum().backward()
    optimizer.step()
    assert not model[3].weight.any()
    assert not model[0].bias.any()


def test_units_between_convolutions_count_all_positions() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(2, 4, 2), nn.Flatten())
    activity = UnitActivity(model)
    x = torch.randn(3, 1, 6, 6)
    model(x)
    [(units, found)] = activity.take()
    pooled = model[2](model[1](model[0](x)))
    expected = torch.stack([pooled[:, channel].abs().mean() for channel in range(2)])
    torch.testing.assert_close(found, expected)
    assert (units.before, units.after) == (model[0], model[3])
    assert units.per_unit(model[3].weight).shape == (4, 2, 2, 2)


@pytest.mark.parametrize("init", ["torch", "kaiming"])
def test_new_weights_are_drawn_within_bounds(init: Any) -> None:
    model = nn.Sequential(nn.Linear(25, 200), nn.ReLU(), nn.Linear(200, 1))
    optimizer = ContinualBackprop(model, 0.0, replacement_rate=1.0, maturity=0, init=init)
    state = torch.get_rng_state()
    before = model[0].weight.detach().clone()
    model(torch.ones(1, 25)).sum().backward()
    optimizer.step()
    assert torch.get_rng_state().equal(state), "the draws are the optimizer's own"
    assert not (model[0].weight == before).any()
    bound = (6 / 25) ** 0.5 if init == "kaiming" else 1 / 5
    assert 0.99 * bound < model[0].weight.abs().max().item() <= bound


def test_only_forward_passes_that_are_learned_from_count() -> None:
    model, other = mlp(), mlp()
    optimizer, twin = (ContinualBackprop(each, 0.01, **OFTEN) for each in (model, other))
    learn(model, optimizer, samples(40))
    for x, y in samples(40):
        twin.zero_grad()
        loss = HalfSquaredError()(other(x), y)
        loss.backward()
        with torch.no_grad():
            other(100 * torch.ones(5, 4, dtype=torch.float64))
        twin.step()
        other(-100 * torch.ones(5, 4, dtype=torch.float64))  # somebody else's, and forgotten at the next
    assert all(a.equal(b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_step_without_a_forward_pass_is_refused() -> None:
    model = mlp()
    optimizer = ContinualBackprop(model, 0.01)
    learn(model, optimizer, samples(1))
    message = (
        "the optimizer has seen no activation of the network since its last step; run output = model(x) with gradients "
        "enabled, on the very model that the optimizer was made with, before loss.backward() and step()"
    )
    with pytest.raises(RuntimeError, match=exactly(message)):
        optimizer.step()


def test_saved_and_copied_optimizers_go_on_bit_for_bit() -> None:
    model = mlp()
    optimizer = ContinualBackprop(model, 0.01, **OFTEN)
    given = samples(60)
    learn(model, optimizer, given[:30])
    copied, its_optimizer = copy.deepcopy((model, optimizer))
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    saved, its_saved = torch.load(file, weights_only=False)
    restored = mlp()
    successor = ContinualBackprop(restored, 0.01, **OFTEN)
    restored.load_state_dict(model.state_dict())
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    learn(model, optimizer, given[30:])
    for other, twin in ((copied, its_optimizer), (saved, its_saved), (restored, successor)):
        learn(other, twin, given[30:])
        assert all(a.equal(b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "growing_head"), [(MLP, False), (MLP, True), (LeNet, False), (PaperCNN, True)])
def test_networks_with_and_without_growing_heads_learn(make: Any, growing_head: bool) -> None:
    stream = make_stream("class_split", source="digits", classes_per_experience=2, labels="global", seed=0)
    sizes = stream.info.for_learner
    torch.manual_seed(0)
    model = make(sizes.n_outputs, sizes.input_shape, growing_head=growing_head)
    optimizer = ContinualBackprop(model, 1e-3, replacement_rate=0.01, maturity=5)
    learner = OnlineLearner(model=model, optimizer=optimizer)
    learner.train(stream.train_stream[:1])
    learner.eval(stream.test_stream[:2])
    learner.train(stream.train_stream[1:2])
    assert learner.engine["name"] == ("torch" if growing_head else "compiled")
    hidden = [state["age"] for state in optimizer.state.values() if "age" in state]
    assert len(hidden) == sum(isinstance(layer, nn.Linear | nn.Conv2d) for layer in model.modules()) - 1
    assert all((age < learner.n_samples).any() for age in hidden), "no unit has been replaced"
    assert all(bool(param.isfinite().all()) for param in model.parameters())
    assert learner.online_accuracy > 0.4


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (MLP(norm="layer"), "GroupNorm"),
        (ViTTiny(10, (1, 8, 8)), "PatchEmbedding"),
        (nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), "Conv2d with groups"),
    ],
)
def test_other_networks_are_refused(model: nn.Module, what: str) -> None:
    message = (
        "continual backprop replaces units of sequential networks, of nn.Linear and nn.Conv2d with activations, "
        "pooling and nn.Flatten between them, as in mlp, lenet and paper_cnn without normalisation; not of " + what
    )
    with pytest.raises(ValueError, match=exactly(message)):
        ContinualBackprop(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replacement_rate": 1.5}, "replacement_rate must be within 0 and 1, but is 1.5"),
        ({"maturity": -1}, "maturity must not be negative, but is -1"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1, but is 1.0"),
        ({"init": "xavier"}, "unknown initialisation 'xavier'. Known: kaiming, torch"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        ContinualBackprop(mlp(), **settings)
