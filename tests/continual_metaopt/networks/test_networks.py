"""Networks: sizes, blocks, and PyTorch's default initialisation."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from continual_metaopt.networks import NETWORKS, register_network
from continual_metaopt.networks.linear import LinearModel
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.networks.paper_cnn import PaperCNN
from continual_metaopt.optim.blocks import blocks
from streams import UnknownNameError

from ..conftest import exactly


def n_parameters(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize(
    ("input_shape", "n_outputs", "expected"),
    [
        ((3, 32, 32), 10, 268_650),
        # (9·c·16 + 16) + (9·16·32 + 32) + (32·⌊h/4⌋·⌊w/4⌋·128 + 128) + (128·n + n)
        ((3, 32, 32), 100, 448 + 4640 + 262_272 + 12_900),
        ((1, 28, 28), 10, 160 + 4640 + 200_832 + 1290),
        ((1, 8, 8), 10, 160 + 4640 + 16_512 + 1290),
        ((3, 64, 48), 7, 448 + 4640 + 786_560 + 903),
        ((2, 7, 4), 3, 304 + 4640 + 4224 + 387),  # odd sizes are rounded down
    ],
)
def test_paper_cnn_fits_images_of_any_size(input_shape: tuple[int, int, int], n_outputs: int, expected: int) -> None:
    model = PaperCNN(n_outputs, input_shape)

    assert n_parameters(model) == expected
    assert model(torch.randn(2, *input_shape)).shape == (2, n_outputs)
    assert [block["name"] for block in blocks(model)] == ["conv1", "conv2", "linear1", "linear2"]


def test_paper_cnn_defaults_to_the_papers_size() -> None:
    assert n_parameters(PaperCNN()) == 268_650


@pytest.mark.parametrize("size", [(3, 8), (8, 3), (1, 1)])
def test_too_small_images_are_refused(size: tuple[int, int]) -> None:
    message = f"PaperCNN pools images twice, so they must be at least 4×4, not {size[0]}×{size[1]}"

    with pytest.raises(ValueError, match=exactly(message)):
        PaperCNN(10, (1, *size))


@pytest.mark.parametrize(
    ("input_shape", "hidden", "sizes"),
    [
        ((1, 8, 8), (128,), [(64, 128), (128, 5)]),
        ((3, 4, 2), (6, 7), [(24, 6), (6, 7), (7, 5)]),
        ((1, 2, 2), [], [(4, 5)]),  # a linear model
    ],
)
def test_mlp_has_the_layers_asked_for(
    input_shape: tuple[int, int, int], hidden: Sequence[int], sizes: list[tuple[int, int]]
) -> None:
    model = MLP(5, input_shape, hidden)

    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == sizes
    assert [type(layer) for layer in model] == [nn.Flatten, *[nn.Linear, nn.ReLU] * len(hidden), nn.Linear]
    assert [block["name"] for block in blocks(model)] == [f"linear{i}" for i in range(1, len(sizes) + 1)]
    assert model(torch.randn(3, *input_shape)).shape == (3, 5)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (
            lambda: PaperCNN(10, (3, 8, 8)),
            lambda: [
                nn.Conv2d(3, 16, 3, padding=1),
                nn.Conv2d(16, 32, 3, padding=1),
                nn.Linear(128, 128),
                nn.Linear(128, 10),
            ],
        ),
        (lambda: MLP(10, (1, 8, 8), (16, 12)), lambda: [nn.Linear(64, 16), nn.Linear(16, 12), nn.Linear(12, 10)]),
    ],
)
def test_fresh_weights_are_pytorchs_own(make: Callable[[], nn.Module], layers: Callable[[], list[nn.Module]]) -> None:
    torch.manual_seed(11)
    model = make()
    torch.manual_seed(11)
    expected = [param for layer in layers() for param in layer.parameters()]

    assert all(torch.equal(ours, torchs) for ours, torchs in zip(model.parameters(), expected, strict=True))


@pytest.mark.usefixtures("registries")
def test_networks_can_be_registered() -> None:
    register_network("wide", "an example")(MLP)

    assert list(NETWORKS) == ["paper_cnn", "mlp", "linear", "wide"]
    assert NETWORKS["wide"] is MLP


def test_unknown_networks_are_refused_with_the_known_ones() -> None:
    message = "unknown network 'paper-cnn'. Did you mean 'paper_cnn'? Known: linear, mlp, paper_cnn"

    with pytest.raises(UnknownNameError, match=exactly(message)):
        NETWORKS["paper-cnn"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_model_starts_at_zero(bias: bool) -> None:
    model = LinearModel(2, (3, 4), bias)

    assert model(torch.randn(5, 3, 4)).tolist() == [[0.0, 0.0]] * 5
    assert [tuple(param.shape) for param in model.parameters()] == [(2, 12), (2,)][: 1 + bias]
