"""Which parameters share a step size."""

from collections import OrderedDict
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pytest
import torch
from avalanche.models import as_multitask
from torch import nn

from continual_metaopt.networks.paper_cnn import PaperCNN
from continual_metaopt.optim.blocks import blocks

from ..conftest import exactly

CNN_LAYERS = ["conv1", "conv2", "linear1", "linear2"]


class Nested(nn.Module):
    """A parameter of its own, a layer, and layers within layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(nn.init.ones_(nn.Linear(1, 1).weight.detach()))
        self.body = nn.Sequential(
            OrderedDict(
                a=nn.Linear(2, 3),
                act=nn.ReLU(),
                inner=nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)),
                b=nn.Linear(3, 3),
            )
        )
        self.head = nn.Linear(3, 2)
        self.head2 = nn.Linear(3, 2)


def named_blocks(model: nn.Module, granularity: Any) -> dict[str, list[str]]:
    """Names of the parameters in each block, in the blocks' order."""
    names = {id(param): name for name, param in model.named_parameters()}
    return {block["name"]: [names[id(param)] for param in block["params"]] for block in blocks(model, granularity)}


def both(*layers: str) -> list[str]:
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


@pytest.mark.parametrize(
    ("make", "granularity", "expected"),
    [
        (PaperCNN, "scalar", {"all": both(*CNN_LAYERS)}),
        (PaperCNN, "blockwise", {layer: both(layer) for layer in CNN_LAYERS}),
        (PaperCNN, "layerwise", {layer: both(layer) for layer in CNN_LAYERS}),
        (
            PaperCNN,
            [["linear1", "linear2"], ["conv1", "conv2.weight", "conv2.bias"]],
            {"conv1+conv2.weight+conv2.bias": both("conv1", "conv2"), "linear1+linear2": both("linear1", "linear2")},
        ),
        (
            Nested,
            "scalar",
            {"all": ["scale", *both("body.a", "body.inner.0", "body.inner.1", "body.b", "head", "head2")]},
        ),
        (
            Nested,
            "blockwise",
            {
                "scale": ["scale"],
                "body": both("body.a", "body.inner.0", "body.inner.1", "body.b"),
                "head": both("head"),
                "head2": both("head2"),
            },
        ),
        (
            Nested,
            "layerwise",
            {
                "scale": ["scale"],
                **{name: both(name) for name in ("body.a", "body.inner.0", "body.inner.1", "body.b", "head", "head2")},
            },
        ),
        (
            Nested,
            # "head" must not claim "head2", whose name begins alike
            [["body.inner", "head2"], ["head"], ["scale", "body.a.weight"], ["body.a.bias", "body.b"]],
            {
                "scale+body.a.weight": ["scale", "body.a.weight"],
                "body.a.bias+body.b": ["body.a.bias", *both("body.b")],
                "body.inner+head2": [*both("body.inner.0", "body.inner.1"), *both("head2")],
                "head": both("head"),
            },
        ),
        (Nested, ["scale", "body", ["head", "head2"]], None),  # a block of one prefix may be a plain string
    ],
)
def test_every_parameter_is_in_one_named_block(make: type[nn.Module], granularity: Any, expected: Any) -> None:
    model = make()

    found = named_blocks(model, granularity)

    if expected is None:
        expected = {
            "scale": ["scale"],
            "body": named_blocks(model, "blockwise")["body"],
            "head+head2": both("head", "head2"),
        }
    assert list(found.items()) == list(expected.items())
    every = [name for names in found.values() for name in names]
    assert sorted(every) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("scalar", {"all": ["scale", *both("body.a", "body.inner.0", "body.b")]}),
        ("blockwise", {"scale": ["scale"], "body": both("body.a", "body.inner.0", "body.b")}),
        ([["scale"], ["body"]], {"scale": ["scale"], "body": both("body.a", "body.inner.0", "body.b")}),
    ],
)
def test_frozen_parameters_are_left_out(granularity: Any, expected: Any) -> None:
    model = Nested()
    for module in (model.head, model.head2, model.body.inner[1]):
        module.requires_grad_(False)

    assert named_blocks(model, granularity) == expected


def test_a_parameter_under_two_names_is_in_one_block() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2)))
    model.b.weight = model.a.weight

    assert named_blocks(model, "layerwise") == {"a": ["a.weight", "a.bias"], "b": ["b.bias"]}


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        (
            "layer",
            "unknown granularity 'layer'. Did you mean 'layerwise'? "
            "Known: blockwise, layerwise, node, scalar, tensor, weight",
        ),
        ([["a"]], "no block contains b.weight, b.bias"),
        ([["a"], ["b"], ["a.bias"]], "parameter 'a.bias' is in two blocks, 'a' and 'a.bias'"),
        (
            [["a", "b"], ["c"]],
            "no trainable parameter's name starts with 'c'; names: a.weight, a.bias, b.weight, b.bias",
        ),
        # part of a name is not a prefix
        (
            [["a.wei", "b"]],
            "no trainable parameter's name starts with 'a.wei'; names: a.weight, a.bias, b.weight, b.bias",
        ),
        # the frozen layer has no trainable parameter
        (
            [["a", "b"], ["frozen"]],
            "no trainable parameter's name starts with 'frozen'; names: a.weight, a.bias, b.weight, b.bias",
        ),
    ],
)
def test_impossible_divisions_are_refused(granularity: Any, message: str) -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(1, 1), b=nn.Linear(1, 1), frozen=nn.Linear(1, 1)))
    model.frozen.requires_grad_(False)

    with pytest.raises(ValueError, match=exactly(message)):
        blocks(model, granularity)


def test_a_network_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=exactly("the network has no trainable parameters")):
        blocks(nn.Linear(1, 1).requires_grad_(False))


class FeaturesAndHead(nn.Module):
    """As Avalanche's networks, whose head a wrapper replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5)), nn.Linear(5, 3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
        lambda model: as_multitask(model, "classifier"),
        lambda model: torch.compile(as_multitask(model, "classifier"), backend="eager"),
    ],
)
def test_wrappers_do_not_count(wrap: Any) -> None:
    model = wrap(FeaturesAndHead())
    by_size = {block["name"]: sum(param.numel() for param in block["params"]) for block in blocks(model)}
    head = sum(param.numel() for param in model.parameters()) - 55
    assert by_size == {"features": 55, "classifier": head}
    assert [block["name"] for block in blocks(model, "layerwise")][:2] == ["features.0", "features.2"]
    assert [block["name"] for block in blocks(model, [["features"], ["classifier"]])] == ["features", "classifier"]


def test_wrappers_within_a_network_do_not_count() -> None:
    model = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager"), nn.Linear(2, 1))
    assert [block["name"] for block in blocks(model, "layerwise")] == ["0.0", "1"]
