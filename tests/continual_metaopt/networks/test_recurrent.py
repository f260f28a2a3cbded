"""The recurrent network: its state goes on from mini-batch to mini-batch while it learns, and only then."""

import re

import pytest
import torch
from torch import Tensor, nn

from continual_metaopt.networks.recurrent import Recurrent
from continual_metaopt.optim.blocks import blocks

TEXT = torch.tensor([[symbol, place] for place, symbol in enumerate([3, 1, 4, 1, 5, 2])])


def network() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(n_outputs=6, width=8, depth=2)


def test_blocks_and_parameters() -> None:
    model = Recurrent()

    assert [block["name"] for block in blocks(model)] == ["embedding", "recurrent", "linear"]
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == 256 * 128 + 3 * (2 * 128**2 + 2 * 128) + 129 * 256
    )


def test_the_state_goes_on_from_one_mini_batch_to_the_next() -> None:
    at_once, in_parts = network(), network()

    whole = at_once(TEXT)
    parts = torch.cat([in_parts(TEXT[:2]), in_parts(TEXT[2:3]), in_parts(TEXT[3:])])

    assert torch.allclose(whole, parts, atol=1e-6)
    assert torch.allclose(at_once.state, in_parts.state, atol=1e-6)


def test_gradients_stop_where_a_mini_batch_begins() -> None:
    model = network()
    model(TEXT[:3])
    embedded: list[Tensor] = []
    model.embedding.register_forward_hook(lambda _, __, output: embedded.append(output))
    model(TEXT[3:]).sum().backward()

    assert not model.state.requires_grad
    seen = model.embedding.weight.grad.abs().sum(dim=1) > 0
    assert seen.tolist() == [False, True, True, False, False, True], "1, 5 and 2, but not 3 and 4"


def test_evaluation_begins_with_zeros_and_leaves_the_state_alone() -> None:
    model = network()
    first = model(TEXT)
    before = model.state.clone()
    model.eval()

    assert torch.equal(model(TEXT), first)
    assert torch.equal(model.state, before)


def test_a_prediction_without_gradients_does_not_move_the_state_on() -> None:
    model = network()
    with torch.no_grad():
        seen = model(TEXT)

    assert not model.state.any()
    assert torch.equal(model(TEXT), seen)


def test_it_computes_what_pytorchs_layers_compute() -> None:
    torch.manual_seed(0)
    model = network()
    torch.manual_seed(0)
    layers = nn.Embedding(6, 8), nn.GRU(8, 8, 2), nn.Linear(8, 6)

    hidden, state = layers[1](layers[0](TEXT[:, 0]))
    assert torch.equal(model(TEXT), layers[2](hidden))
    assert torch.equal(model.state, state)


def test_images_are_refused() -> None:
    message = "recurrent reads text, symbols and their places in a window, not inputs of the shape 3 × 32 × 32"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Recurrent(10, (3, 32, 32))

    message = "this network reads text, whose symbols are whole numbers, not torch.float32; take the stream text"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network()(torch.zeros(3, 2))
