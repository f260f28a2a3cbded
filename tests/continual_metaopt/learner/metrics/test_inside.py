"""The mathematics of the diagnostics, by hand."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from continual_metaopt.engines.undisturbed import undisturbed
from continual_metaopt.learner.metrics import inside as d
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.networks.paper_cnn import PaperCNN
from continual_metaopt.optim.blocks import blocks

NAN = math.nan


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (2.0, 0.5, 0.75),
        (2.0, 2.0, 0.0),
        (2.0, 3.0, 0.0),  # the update did harm
        (2.0, -1.0, 1.0),  # losses may be negative
        (0.0, 0.0, 1.0),  # nothing of the loss is left
        (1e-9, 5e-9, 0.5),  # counts as 1e-8 before
        (NAN, 1.0, NAN),
        (1.0, NAN, NAN),
    ],
)
def test_plasticity(before: float, after: float, expected: float) -> None:
    assert d.plasticity(before, after) == pytest.approx(expected, nan_ok=True)


def test_activity_of_a_channel_is_a_mean_over_samples_and_places() -> None:
    activations = torch.tensor([[[1.0, -3.0], [0.0, 0.0]], [[2.0, 2.0], [4.0, 0.0]]])  # [n, units, places]
    assert d.unit_activity(activations).tolist() == [2.0, 1.0]
    assert d.unit_activity(activations, -1).tolist() == [7 / 4, 5 / 4]


@pytest.mark.parametrize(
    ("activity", "threshold", "expected"),
    [
        ([0.0, 1.0, 2.0], 0.0, [True, False, False]),
        ([0.1, 0.9, 2.0], 0.1, [True, False, False]),  # 0.1 of the mean 1 is at the threshold
        ([0.1, 0.9, 2.0], 0.09, [False, False, False]),
        ([10.0, 90.0, 200.0], 0.1, [True, False, False]),  # whatever the scale
        ([0.0, 0.0], 0.0, [True, True]),
    ],
)
def test_dormant_units(activity: list[float], threshold: float, expected: list[bool]) -> None:
    assert d.dormant(torch.tensor(activity, dtype=torch.float64), threshold).tolist() == expected


@pytest.mark.parametrize(
    ("matrix", "effective", "stable"),
    [
        (torch.eye(4), 4.0, 4.0),
        (torch.ones(5, 3), 1.0, 1.0),
        (torch.diag(torch.tensor([3.0, 1.0])), math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), 10 / 9),
        (torch.diag(torch.tensor([2.0, 2.0, 0.0])), 2.0, 2.0),
        (torch.zeros(3, 2), 0.0, 0.0),
        (torch.tensor([[math.inf, 1.0]]), NAN, NAN),
        (torch.tensor([[NAN, 1.0]]), NAN, NAN),
    ],
)
def test_ranks(matrix: Tensor, effective: float, stable: float) -> None:
    values = d.singular_values(matrix)
    assert d.effective_rank(values) == pytest.approx(effective, rel=1e-6, nan_ok=True)
    assert d.stable_rank(values) == pytest.approx(stable, rel=1e-6, nan_ok=True)
    assert d.stable_rank(1e-30 * values) == pytest.approx(stable, rel=1e-6, nan_ok=True)  # whatever the scale


def test_norms_are_those_of_all_numbers_together() -> None:
    parts = [torch.tensor([[1.0, 2.0]]), torch.tensor([2.0])]
    assert d.norm(parts) == pytest.approx(3.0)
    assert d.norm([]) == 0.0
    assert d.distance(parts, [torch.tensor([[1.0, 2.0]]), torch.tensor([7.0])]) == 5.0


def test_forgetting() -> None:
    assert d.forgetting([0.9, 0.5], [0.4, 0.7]) == pytest.approx((0.5 - 0.2) / 2)
    assert math.isnan(d.forgetting([], []))


@pytest.mark.parametrize("model", [MLP(hidden=[8, 6]), PaperCNN(), nn.Sequential(PaperCNN())])
def test_blocks_are_those_of_blockwise_step_sizes(model: nn.Module) -> None:
    next(model.parameters()).requires_grad_(False)
    ours = {name: list(params.values()) for name, params in d.parameter_blocks(model).items()}
    theirs = {group["name"]: group["params"] for group in blocks(model, "blockwise")}
    assert list(ours) == list(theirs)
    for name, params in ours.items():
        assert [id(param) for param in params] == [id(param) for param in theirs[name]]


@pytest.mark.parametrize("at_once", [2, 5, 32])
def test_activations_belong_to_the_block_of_the_layer_before(at_once: int) -> None:
    torch.manual_seed(0)
    model = PaperCNN(input_shape=(1, 8, 8))
    x = torch.randn(5, 1, 8, 8)
    seen = d.representation(model, x, at_once)
    assert [(name, len(units)) for name, units in seen.activity] == [("conv1", 16), ("conv2", 32), ("linear1", 128)]
    with torch.no_grad():
        first = model.conv1(x).relu()
        torch.testing.assert_close(seen.activity[0][1], first.mean(dim=(0, 2, 3)))
        hidden = nn.Sequential(*list(model)[:-1])(x)
    assert seen.features is not None
    torch.testing.assert_close(seen.features, hidden)


def test_dead_channels_are_dormant() -> None:
    torch.manual_seed(0)
    model = PaperCNN(input_shape=(1, 8, 8))
    with torch.no_grad():
        model.conv1.weight[:4] = 0
        model.conv1.bias[:4] = -1
    shares = d.dormant_shares(d.representation(model, torch.randn(50, 1, 8, 8)).activity, 0.0)
    assert shares["conv1"] == 4 / 16
    assert list(shares) == ["conv1", "", "conv2", "linear1"]
    assert shares[""] == pytest.approx((4 + 32 * shares["conv2"] + 128 * shares["linear1"]) / 176)


def test_units_of_layers_on_tokens_are_the_last_axis() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 5), act=nn.GELU(), b=nn.Linear(5, 2)))
    ((block, units),) = d.representation(model, torch.randn(4, 7, 3)).activity
    assert (block, units.shape) == ("a", (5,))


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(3, 2))])
def test_networks_without_hidden_layers_have_no_features(model: nn.Module) -> None:
    seen = d.representation(model, torch.randn(4, 3))
    assert (seen.activity, seen.features) == ([], None)
    assert d.dormant_shares(seen.activity, 0.1) == {}


def test_a_look_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))
    model[3].eval()
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()

    first, second = (d.representation(model, torch.ones(6, 3)).features for _ in range(2))

    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model)


def test_random_numbers_that_a_network_draws_in_evaluation_are_given_back() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    random = torch.get_rng_state()
    with undisturbed(Noisy()):
        Noisy()(torch.ones(3))
    assert torch.equal(torch.get_rng_state(), random)
