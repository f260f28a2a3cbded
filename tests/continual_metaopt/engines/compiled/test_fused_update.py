"""The fused update against its plain twin, MetaOptimize.step, on the same gradients."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual_metaopt.engines.compiled.fused_update import FusedUpdate, why_not_fused
from continual_metaopt.engines.compiled.kernels import PIECE
from continual_metaopt.engines.compiled.rules import BASE_RULES
from continual_metaopt.optim.base_updates import BASE_UPDATES, SGD
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.meta_updates import META_UPDATES
from continual_metaopt.optim.metaoptimize import MetaOptimize, NonFiniteMetaGradient

STEPS = 200


class Twins:
    """Two copies of a network and its optimizer, one stepped plainly and one by the fused update."""

    def __init__(self, dtype: torch.dtype, granularity: Any = "blockwise", **options: Any) -> None:
        torch.manual_seed(0)
        hidden = PIECE // 30 + 3  # the first layer's weights fill one piece and a part of a second
        plain = nn.Sequential(nn.Linear(30, hidden), nn.Tanh(), nn.Linear(hidden, 3)).to(dtype)
        self.networks = (plain, copy.deepcopy(plain))
        self.optimizers = tuple(MetaOptimize(blocks(network, granularity), **options) for network in self.networks)
        self.steps = (self.optimizers[0].step, FusedUpdate(self.optimizers[1]))
        self.random = torch.Generator().manual_seed(1)

    def learn(self, n: int) -> None:
        for _ in range(n):
            x = torch.randn(1, 30, generator=self.random).to(next(self.networks[0].parameters()).dtype)
            y = torch.randint(3, (1,), generator=self.random)
            for network, optimizer, step in zip(self.networks, self.optimizers, self.steps, strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x), y).backward()
                step()

    def swap(self) -> None:
        """Let each go on by the step of the other."""
        first, second = self.optimizers
        self.steps = (
            (FusedUpdate(first), second.step) if self.steps[0] == first.step else (first.step, FusedUpdate(second))
        )

    def compare(self, rtol: float) -> None:
        plain, fused = self.optimizers
        for block, step_size in plain.step_size_report().items():
            assert fused.step_size_report()[block] == pytest.approx(step_size, rel=rtol)
        for a, b in zip(*(network.parameters() for network in self.networks), strict=True):
            torch.testing.assert_close(b, a, rtol=rtol, atol=rtol)
            assert plain.state[a].keys() == fused.state[b].keys()
            for key, value in plain.state[a].items():
                if isinstance(value, Tensor):
                    torch.testing.assert_close(fused.state[b][key], value, rtol=rtol, atol=rtol, msg=key)
                else:
                    assert fused.state[b][key] == value
        for group, other in zip(plain.param_groups, fused.param_groups, strict=True):
            for kept in ("meta_state", "typical_sizes"):
                assert other["learned"][kept] == pytest.approx(group["learned"][kept], rel=100 * rtol, abs=1e-30)


def test_every_base_update_has_a_kernel() -> None:
    assert set(BASE_RULES) == {BASE_UPDATES[name] for name in BASE_UPDATES}


@pytest.mark.parametrize("base", list(BASE_UPDATES))
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-9), pytest.param(torch.float32, 1e-4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "options",
    [
        {"meta": "adam"},
        {"meta": "lion", "granularity": "scalar", "gamma": 0.9},
        {"meta": "rmsprop_released", "weight_decay": 0.0, "gamma": 1.0, "meta_lr": 1e-3},
        {"meta_lr": 0.0},
        {"gamma": "auto", "trace": "dutch"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_agrees_with_the_plain_step(base: str, dtype: torch.dtype, rtol: float, options: dict[str, Any]) -> None:
    twins = Twins(dtype, base=base, **({"lr": 1e-3, "weight_decay": 0.1} | options))
    # sooner or later a sign's argument is so close to 0 that the sign turns with the rounding
    steps = STEPS // 10 if (base, dtype) == ("lion", torch.float32) else STEPS
    for _ in range(4):
        twins.learn(steps // 4)
        twins.compare(rtol)
    moved = twins.optimizers[0].step_size_report().values()
    assert all((value != 1e-3) == (options.get("meta_lr") != 0.0) for value in moved)


@pytest.mark.parametrize("meta", list(META_UPDATES))
def test_agrees_for_every_meta_update(meta: str) -> None:
    twins = Twins(torch.float64, lr=1e-3, meta=meta)
    twins.learn(50)
    twins.compare(1e-9)


BEYOND: dict[str, dict[str, Any]] = {
    "auto": {"gamma": "auto"},
    "dutch": {"trace": "dutch"},
    "both": {"gamma": "auto", "trace": "dutch"},
    "bounded": {"max_meta_change": 2e-3},
    "all": {"gamma": "auto", "trace": "dutch", "max_meta_change": 2e-3},
}


@pytest.mark.parametrize("beyond", BEYOND)
@pytest.mark.parametrize("step_sizes", ["group", "scalar"])
@pytest.mark.parametrize("fixed", [None, 0, 1])
def test_agrees_beyond_the_plain_rule(beyond: str, step_sizes: str, fixed: int | None) -> None:
    twins = Twins(torch.float64, lr=1e-3, step_sizes=step_sizes, **BEYOND[beyond])
    twins.learn(5)  # so that a group that is fixed has traces nevertheless
    for optimizer in twins.optimizers if fixed is not None else ():
        optimizer.param_groups[fixed]["meta_lr"] = 0.0
    for _ in range(3):
        twins.learn(STEPS // 3)
        twins.compare(1e-9)
        twins.swap()


def test_a_frozen_part_of_a_block_is_not_revised() -> None:
    twins = Twins(torch.float64, lr=1e-3, step_sizes="scalar", **BEYOND["both"])
    twins.learn(10)
    for network in twins.networks:
        network[0].weight.requires_grad_(False)
    before = twins.networks[1][0].weight.detach().clone()
    twins.learn(10)
    twins.compare(1e-9)
    assert twins.networks[1][0].weight.equal(before)


def test_follows_a_state_that_was_loaded_in_between() -> None:
    twins = Twins(torch.float64, lr=1e-3)
    twins.learn(20)
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in twins.optimizers]
    weights = [copy.deepcopy(network.state_dict()) for network in twins.networks]
    twins.learn(20)
    for network, optimizer, weight, state in zip(twins.networks, twins.optimizers, weights, states, strict=True):
        network.load_state_dict(weight)
        optimizer.load_state_dict(state)
    twins.learn(20)
    twins.compare(1e-9)


def test_follows_weights_and_step_sizes_that_others_write() -> None:
    twins = Twins(torch.float64, lr=1e-3)
    twins.learn(10)
    for network, optimizer in zip(twins.networks, twins.optimizers, strict=True):
        network[0].weight.data = network[0].weight.detach().clone() / 2
        optimizer.param_groups[0]["lr"] *= 3
        network[2].bias.requires_grad_(False)
    twins.learn(10)
    twins.compare(1e-9)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    twins = Twins(torch.float64, lr=1e-3)
    twins.learn(5)
    for network, step in zip(twins.networks, twins.steps, strict=True):
        network[0].weight.grad = network[0].bias.grad = None
        step()
    twins.compare(1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_meta_gradient_that_is_not_finite_is_seen(bad: float) -> None:
    twins = Twins(torch.float32, lr=1e-3)
    twins.learn(3)
    network, optimizer = twins.networks[1], twins.optimizers[1]
    before = optimizer.step_size_report()["2"]
    network[2].weight.grad[1, 7] = bad
    with pytest.raises(NonFiniteMetaGradient, match=r"the meta gradient of block '2' is (nan|-?inf)"):
        twins.steps[1]()
    assert optimizer.step_size_report()["2"] == before


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.optim.Adam([nn.Parameter(torch.zeros(2))]), "the optimizer is not MetaOptimize"),
        (lambda: MetaOptimize([nn.Parameter(torch.zeros(2))], base=OwnBase()), "there is no kernel for OwnBase"),
        (
            lambda: MetaOptimize([nn.Parameter(torch.zeros(2, dtype=torch.float16))]),
            "a parameter is torch.float16 on cpu",
        ),
        (lambda: MetaOptimize([nn.Parameter(torch.zeros(2, 3).t())]), "a parameter is not contiguous"),
        (lambda: MetaOptimize([nn.Parameter(torch.zeros(2))]), None),
    ],
)
def test_says_what_keeps_a_step_from_being_fused(make: Any, reason: str | None) -> None:
    assert why_not_fused(make()) == reason


class OwnBase(SGD):
    """A base update that the kernels do not know."""


SAME_WHENEVER_COMPILED = """
import hashlib, torch
from torch import nn
from continual_metaopt import MetaOptimize
from continual_metaopt.engines import kernels
from continual_metaopt.engines.compiled.fused_update import FusedUpdate, why_not_fused
from continual_metaopt.optim.base_updates import BASE_UPDATES

digest = hashlib.sha256()
for base in BASE_UPDATES:
    for meta_lr in (0.0, 0.1):
        torch.manual_seed(0)
        model = nn.Linear(130, 11)
        update = FusedUpdate(MetaOptimize(model.parameters(), 1e-2, base=base, meta_lr=meta_lr))
        for step in range(20):
            model.zero_grad()
            model(torch.randn(3, 130)).square().sum().backward()
            update()
        digest.update(model.weight.detach().numpy().tobytes())
print(digest.hexdigest(), sum(kernels.update_in_place.stats.cache_misses.values()))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_gets_the_same_bits(tmp_path: Path) -> None:
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[4]),
    }
    first, second = (
        subprocess.run(
            [sys.executable, "-c", SAME_WHENEVER_COMPILED], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    )
    assert first == [first[0], "1"]
    assert second == [first[0], "0"]
