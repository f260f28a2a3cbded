"""The transformer: sizes, positions, what it sees, and that its gradients can be traced."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.networks import NETWORKS
from continual_metaopt.networks.transformer import Transformer, rotary_angles, rotate, transformer_15m
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.registry import make_optimizer
from continual_metaopt.streams import make_stream

SMALL: dict[str, Any] = {"n_outputs": 10, "width": 8, "depth": 2, "heads": 2, "multiple_of": 4}


def network(**options: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(**SMALL | options)
    for parameter in model.parameters():  # the initial ones are so small that little depends on anything
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def rows(symbols: list[int], context: int | None = None) -> Tensor:
    return torch.tensor([[symbol, place % (context or len(symbols))] for place, symbol in enumerate(symbols)])


def test_it_has_the_size_of_llama2_c() -> None:
    model = transformer_15m()

    assert sum(parameter.numel() for parameter in model.parameters()) == 15_191_712
    assert tuple(model.layer1.gate.weight.shape) == (768, 288)
    assert [block["name"] for block in blocks(model)] == ["embedding", *(f"layer{k}" for k in range(1, 7)), "norm"]


def test_initial_weights() -> None:
    torch.manual_seed(0)
    layer = Transformer(width=64, depth=8).layer3

    assert layer.queries.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.projection.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert layer.down.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert layer.norm1.weight.tolist() == [1.0] * 64


def test_a_later_symbol_changes_no_earlier_output() -> None:
    model = network()
    before, after = model(rows([1, 2, 3, 4, 5, 6])), model(rows([1, 2, 3, 9, 5, 6]))

    assert torch.equal(before[:3], after[:3])
    assert not torch.isclose(before[3:], after[3:]).all(dim=1).any()


def test_windows_do_not_see_each_other() -> None:
    model = network()
    two = model(rows([1, 2, 3, 4, 5, 6], context=3))

    assert torch.allclose(two[:3], model(rows([1, 2, 3])), atol=1e-5)
    assert torch.allclose(two[3:], model(rows([4, 5, 6])), atol=1e-5)
    assert not torch.allclose(two[3:], model(rows([1, 2, 3, 4, 5, 6]))[3:], atol=1e-2)


def test_rotary_positions_depend_on_distances_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 8, dtype=torch.float64)

    def similarity(at: int, other: int) -> float:
        turned = [
            rotate(x, rotary_angles(torch.tensor([place]), 8).double()) for x, place in ((query, at), (key, other))
        ]
        return (turned[0] * turned[1]).sum().item()

    assert similarity(7, 4) == pytest.approx(similarity(103, 100), rel=1e-5)
    assert similarity(7, 4) != pytest.approx(similarity(7, 5), rel=1e-2)
    assert rotate(query, rotary_angles(torch.tensor([5]), 8)).norm().item() == pytest.approx(query.norm().item())


def test_positions_matter() -> None:
    model = network()

    assert not torch.allclose(model(rows([1, 2, 3]))[-1], model(rows([2, 1, 3]))[-1], atol=1e-2)


def test_one_layer_by_hand() -> None:
    """The output of the first symbol, which sees itself alone, so that positions and similarities do not matter."""
    model = network(depth=1, heads=1)
    layer = model.layer1

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean() + 1e-5).sqrt() * weight

    x = model.embedding.weight[7]
    x = x + layer.projection.weight @ layer.values.weight @ norm(x, layer.norm1.weight)
    y = norm(x, layer.norm2.weight)
    gate = layer.gate.weight @ y
    x = x + layer.down.weight @ (gate * gate.sigmoid() * (layer.up.weight @ y))
    assert torch.allclose(model(rows([7, 3]))[0], model.embedding.weight @ norm(x, model.norm.weight), atol=1e-5)


def test_outputs_share_the_embedding_s_weights() -> None:
    model = network()
    functional.cross_entropy(model(rows([1, 2])), torch.tensor([2, 5])).backward()

    assert (model.embedding.weight.grad.abs().sum(dim=1) > 0).all(), "of symbols that did not occur, too"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "3 heads do not divide a width of 8 into even parts; choose a width that is a multiple of 6"),
        ({"heads": 8}, "8 heads do not divide a width of 8 into even parts; choose a width that is a multiple of 16"),
        ({"depth": 0}, "width, depth, heads and multiple_of must be at least 1"),
        (
            {"input_shape": (1, 8, 8)},
            "transformer reads text, symbols and their places in a window, not inputs of the shape 1 × 8 × 8",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Transformer(**SMALL | options)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("transformer", "not compiled: Transformer is not a sequence of layers; gradients by a traced graph"),
        (
            "recurrent",
            "not compiled: Recurrent is not a sequence of layers; gradients by autograd: a buffer changes with each "
            "sample",
        ),
    ],
)
def test_metaoptimize_learns_text_and_the_engines_agree(name: str, reason: str) -> None:
    stream = make_stream("text", domains=["dobu"], context=16, samples_per_experience=3200)
    losses = {}
    for engine in ("torch", "auto"):
        torch.manual_seed(0)
        model = NETWORKS[name](n_outputs=256, input_shape=(2,), width=16)
        learner = OnlineLearner(
            model=model, optimizer=make_optimizer("metaoptimize", model, lr=3e-3), batch_size=16, engine=engine
        )
        learner.train(stream.train_stream)
        losses[engine] = learner.history["loss"].to_numpy()[1:]
    assert learner.engine == {"name": "fused", "reason": reason}
    assert losses["auto"] == pytest.approx(losses["torch"], rel=1e-3)
    assert losses["auto"][0] > 5
    assert losses["auto"][-1] < 3, "the first is 5.5, ln 256"
