"""Hypergradient descent and IDBD for networks: hand-computed steps, NumPy references, torch's and MetaOptimize's."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from continual_metaopt.contract import run_contract
from continual_metaopt.optim.peers.hypergradient import SGDHD, AdamHD
from continual_metaopt.optim.peers.idbd_network import NetworkIDBD
from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.optim.registry import learner_factory
from tests.continual_metaopt.conftest import exactly
from tests.continual_metaopt.optim.peers.peer_references import Array, adam_hd, hypergradient_descent, network_idbd

START = np.array([0.5, -1.0, 2.0, 0.1])
PEERS = [NetworkIDBD, SGDHD, AdamHD]


def gradient(w: Array, step: int) -> Array:
    """Of a quadratic that changes from step to step."""
    scale = 1 + 0.5 * np.sin(step + np.arange(len(w)))
    return np.asarray(scale * (w - np.cos(0.1 * step * np.arange(len(w)))))


def parameters(split: bool) -> list[nn.Parameter]:
    """START as one tensor, or as two."""
    parts = [START[:1], START[1:]] if split else [START]
    return [nn.Parameter(torch.tensor(part)) for part in parts]


def weights(params: list[nn.Parameter]) -> Array:
    return np.concatenate([param.detach().numpy() for param in params])


def descend(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    g = torch.tensor(gradient(weights(params), step))
    for param, part in zip(params, g.split([param.numel() for param in params]), strict=True):
        param.grad = part.clone()
    optimizer.step()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("make", "reference"),
    [
        (partial(SGDHD, lr=0.1, meta_lr=0.01), partial(hypergradient_descent, step_size=0.1, meta=0.01)),
        (
            partial(AdamHD, lr=0.1, meta_lr=0.02, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3),
            partial(adam_hd, step_size=0.1, meta=0.02, decay=0.3),
        ),
        (partial(NetworkIDBD, lr=0.1, meta_lr=0.05), partial(network_idbd, step_size=0.1, meta=0.05)),
    ],
    ids=["sgd_hd", "adam_hd", "idbd_network"],
)
def test_every_step_is_the_papers(
    make: Callable[..., Any], reference: Callable[..., Iterator[dict[str, Any]]], split: bool
) -> None:
    params = parameters(split)
    optimizer = make(params)
    for step, expected in enumerate(reference(gradient, START.copy(), 40)):
        descend(params, optimizer, step)
        np.testing.assert_allclose(weights(params), expected["w"], rtol=1e-12)
        mean = np.exp(np.log(expected["alpha"]).mean())
        np.testing.assert_allclose(step_sizes_of(optimizer)["group0"], mean, rtol=1e-12)
    assert not math.isclose(step_sizes_of(optimizer)["group0"], 0.1, rel_tol=0.01), "the step size has hardly moved"


def one_weight(kind: Any, **settings: Any) -> tuple[nn.Parameter, Any]:
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    return weight, kind([weight], **settings)


def steps(weight: nn.Parameter, optimizer: Any, gradients: list[float]) -> None:
    for g in gradients:
        weight.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()


def test_momentum_s_hypergradient_has_the_last_direction() -> None:
    weight, optimizer = one_weight(SGDHD, lr=0.1, meta_lr=0.01, momentum=0.5)
    steps(weight, optimizer, [2.0, 3.0, 1.0])
    # directions 2, 4 and 3
    assert optimizer.step_size_report() == {"group0": pytest.approx(0.1 + 0.01 * (3 * 2 + 1 * 4))}


@pytest.mark.parametrize(
    ("kind", "like", "settings"),
    [
        (SGDHD, torch.optim.SGD, {}),
        (SGDHD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
        (SGDHD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (AdamHD, torch.optim.Adam, {"weight_decay": 0.1, "eps": 0.0}),  # torch corrects the bias before adding ε
        (NetworkIDBD, torch.optim.SGD, {}),
    ],
)
def test_a_meta_step_size_of_zero_leaves_torch_s_optimizer(kind: Any, like: Any, settings: dict[str, Any]) -> None:
    params, others = parameters(split=True), parameters(split=True)
    optimizer, plain = kind(params, lr=0.1, meta_lr=0.0, **settings), like(others, lr=0.1, **settings)
    for step in range(20):
        descend(params, optimizer, step)
        descend(others, plain, step)
    np.testing.assert_allclose(weights(params), weights(others), rtol=1e-11)
    assert step_sizes_of(optimizer) == {"group0": 0.1}


def test_the_order_of_tensors_does_not_matter_to_adam_hd() -> None:
    params, others = parameters(split=True), parameters(split=True)
    optimizer = AdamHD(params, lr=0.1, meta_lr=0.05)
    turned = AdamHD(list(reversed(others)), lr=0.1, meta_lr=0.05)
    for step in range(10):
        descend(params, optimizer, step)
        descend(others, turned, step)
    np.testing.assert_allclose(weights(params), weights(others), rtol=1e-12)


@pytest.mark.parametrize("kind", [SGDHD, AdamHD])
def test_groups_have_step_sizes_of_their_own(kind: Any) -> None:
    params = parameters(split=True)
    together = kind([{"params": params[:1], "name": "a"}, {"params": params[1:], "lr": 0.2}], lr=0.1, meta_lr=0.01)
    alone = parameters(split=True)
    single = kind(alone[:1], lr=0.1, meta_lr=0.01)
    for step in range(5):
        descend(params, together, step)
        descend(alone, single, step)
    report = step_sizes_of(together)
    assert list(report) == ["a", "group1"]
    assert report["a"] == step_sizes_of(single)["group0"] != report["group1"]


@pytest.mark.parametrize("name", ["sgd_hd", "adam_hd", "idbd_network"])
def test_the_contract_is_fulfilled(name: str) -> None:
    options = {"meta_lr": 1e-4, "lr": 1e-3}
    assert [finding for finding in run_contract(partial(learner_factory(name), **options)).values() if finding] == []


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (SGDHD, {"lr": -1.0}, "lr must not be negative, but is -1.0"),
        (SGDHD, {"meta_lr": -1.0}, "meta_lr must not be negative, but is -1.0"),
        (SGDHD, {"momentum": 1.0}, "momentum must be at least 0 and below 1, but is 1.0"),
        (SGDHD, {"nesterov": True}, "nesterov needs a momentum, and dampening=0"),
        (AdamHD, {"betas": (0.9, 1.0)}, "betas must both be at least 0 and below 1, but is (0.9, 1.0)"),
        (AdamHD, {"eps": -1.0}, "eps must not be negative, but is -1.0"),
        (AdamHD, {"weight_decay": -1.0}, "weight_decay must not be negative, but is -1.0"),
        (NetworkIDBD, {"lr": 0.0}, "lr must be positive, but is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        kind(parameters(split=False), **settings)


@pytest.mark.parametrize("kind", PEERS)
def test_sparse_gradients_are_refused(kind: Any) -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(ValueError, match=exactly(f"{kind.__name__} does not work with sparse gradients")):
        kind([weight], lr=0.1).step()
