"""The compiled engine against its plain twin: the torch engine with MetaOptimize.step, on the same samples."""

import copy
import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import TensorDataset

from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.compiled import learner as compiled_learner
from continual_metaopt.engines.compiled.denormals import flushed_denormals
from continual_metaopt.engines.compiled.engine import CompiledEngine, why_not_compiled
from continual_metaopt.engines.compiled.fused_update import FusedPass, FusedUpdate, fused_update_of
from continual_metaopt.engines.compiled.kernels import PIECE
from continual_metaopt.engines.compiled.learner import libraries_that_multiply
from continual_metaopt.engines.compiled.rules import BASE_RULES
from continual_metaopt.engines.observations import NOT_A_CLASS, Diverged, Observations
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.networks.paper_cnn import PaperCNN
from continual_metaopt.optim.base_updates import BASE_UPDATES, SGD
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.meta_updates import META_UPDATES
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.peers.hypergradient import SGDHD
from continual_metaopt.streams import benchmark
from tests.continual_metaopt.conftest import exactly

DOUBLE, SINGLE = torch.float64, torch.float32
ENGINES = ("torch", "fused", "compiled")
NAN, INF = math.nan, math.inf
Make = Callable[[nn.Module], MetaOptimize]
Shape = tuple[int, ...]


# ------------------------------------------------------------------------------------------------------------- twins


class Learner:
    """A network and its optimizer, which learn by one of the engines."""

    def __init__(
        self, engine: str, model: nn.Module, optimizer: MetaOptimize, criterion: Any, batch_size: int = 1
    ) -> None:
        self.engine, self.model, self.optimizer, self.criterion = engine, model, optimizer, criterion
        self.batch_size = batch_size
        self.compiled: CompiledEngine | None = None

    def learn(self, dataset: Any, observations: Observations, record_every: int = 1) -> str | None:
        """Learn from all samples, and return what stopped it."""
        try:
            if self.engine == "compiled":
                self._learn_compiled(dataset, observations, record_every)
            else:
                size = self.batch_size
                samples = (dataset[i : i + size] for i in range(0, len(dataset), size))
                update = FusedUpdate(self.optimizer) if self.engine == "fused" else self.optimizer.step
                arguments = (self.model, self.optimizer, self.criterion, samples, observations, record_every, update)
                while torch_engine.learn(*arguments):
                    pass
        except (Diverged, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def _learn_compiled(self, dataset: Any, observations: Observations, record_every: int) -> None:
        x, y = dataset[0]
        if self.compiled is None:
            assert why_not_compiled(self.model, self.optimizer, self.criterion) is None
            self.compiled = CompiledEngine(self.model, self.optimizer, self.criterion, x.shape, self.batch_size)
        assert self.compiled.why_not_sample(x[None], y[None]) is None
        first = len(observations)
        while self.compiled.learn(dataset, len(observations) - first, observations, record_every):
            pass


class Twins:
    """Copies of a network and its optimizer that learn by different engines, the first of which is the reference."""

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: Make,
        criterion: Any = None,
        engines: Sequence[str] = ("torch", "compiled"),
        rtol: float = 1e-9,
        batch_size: int = 1,
    ) -> None:
        criterion = criterion or nn.CrossEntropyLoss()
        copies = [copy.deepcopy(model) for _ in engines]
        self.learners = [
            Learner(e, m, make_optimizer(m), criterion, batch_size) for e, m in zip(engines, copies, strict=True)
        ]
        self.seen = [Observations(0, 0) for _ in engines]
        self.rtol = rtol

    def learn(self, dataset: Any, record_every: int = 1) -> str | None:
        """Let all learn from the same samples, check that they say the same, and return what stopped them."""
        outcomes = [
            learner.learn(dataset, seen, record_every) for learner, seen in zip(self.learners, self.seen, strict=True)
        ]
        for seen, outcome in zip(self.seen, outcomes, strict=True):
            assert outcome == outcomes[0]
            self._compare_observations(seen, self.seen[0])
        return outcomes[0]

    def change(self, change: Callable[[nn.Module, MetaOptimize], Any]) -> None:
        """Do the same to all."""
        for learner in self.learners:
            change(learner.model, learner.optimizer)

    def swap(self) -> None:
        """Let each go on by the engine of the other."""
        for learner, engine in zip(self.learners, [one.engine for one in reversed(self.learners)], strict=True):
            learner.engine, learner.compiled = engine, None

    def compare(self) -> None:
        """Check that all have learned the same."""
        reference = self.learners[0]
        for learner in self.learners[1:]:
            pairs = zip(reference.model.named_parameters(), learner.model.parameters(), strict=True)
            for (name, expected), found in pairs:
                self._close(found, expected, name)
                assert found.stride() == expected.stride()
                self._compare_states(learner.optimizer.state[found], reference.optimizer.state[expected], name)
            groups = zip(learner.optimizer.param_groups, reference.optimizer.param_groups, strict=True)
            for found_group, expected_group in groups:
                self._close(found_group["lr"], expected_group["lr"], "lr")
                self._compare_learned(found_group["learned"], expected_group["learned"])

    def _compare_observations(self, found: Observations, expected: Observations) -> None:
        assert found.correct == expected.correct
        self._close(found.loss, expected.loss, "loss")
        for field in ("step_sizes", "measurements"):
            found_rows, expected_rows = getattr(found, field), getattr(expected, field)
            assert [row[:-1] for row in found_rows] == [row[:-1] for row in expected_rows]
            self._close([row[-1] for row in found_rows], [row[-1] for row in expected_rows], field)

    def _compare_states(self, found: dict[str, Any], expected: dict[str, Any], name: str) -> None:
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, Tensor):
                self._close(found[key], value, f"{key} of {name}")
            else:
                assert found[key] == value
                assert type(found[key]) is type(value)

    def _compare_learned(self, found: dict[str, Any], expected: dict[str, Any]) -> None:
        assert found.keys() == expected.keys()
        assert found["meta_state"].keys() == expected["meta_state"].keys()
        self._close(found["reference"], expected["reference"], "reference")
        self._close(1 + found["log_ratio"], 1 + expected["log_ratio"], "log ratio")
        measured = max((abs(row[-1]) for row in self.seen[0].measurements), default=0.0)
        for key in ("exp_avg", "meta_gradient"):
            values = [each.get(key, each["meta_state"].get(key)) for each in (found, expected)]
            assert values[0] == pytest.approx(values[1], rel=self.rtol, abs=self.rtol * measured)
        assert found["meta_state"]["step"] == expected["meta_state"]["step"]
        assert found["typical_sizes"] == pytest.approx(
            expected["typical_sizes"], rel=self.rtol, abs=self.rtol * measured
        )

    def _close(self, found: Any, expected: Any, what: str) -> None:
        """Numbers are compared relative to the largest that is beside them."""
        a, b = (np.asarray(torch.as_tensor(value, dtype=DOUBLE).detach()) for value in (found, expected))
        scale = np.abs(b[np.isfinite(b)]).max(initial=0.0)
        np.testing.assert_allclose(a, b, rtol=self.rtol, atol=self.rtol * scale, err_msg=what)


def samples(n: int, shape: Shape, classes: int = 3, dtype: torch.dtype = DOUBLE, seed: int = 0) -> TensorDataset:
    """Images of random numbers, and classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return TensorDataset(x, torch.randint(classes, (n,), generator=generator))


def regression(n: int, shape: Shape, outputs: int = 3, dtype: torch.dtype = DOUBLE) -> TensorDataset:
    """Inputs and targets of random numbers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return TensorDataset(x, torch.randn(n, outputs, generator=generator, dtype=dtype))


def part(dataset: TensorDataset, start: int, stop: int) -> TensorDataset:
    return TensorDataset(*(tensor[start:stop] for tensor in dataset.tensors))


def made(*layers: nn.Module, dtype: torch.dtype = DOUBLE, seed: int = 0) -> nn.Sequential:
    """A sequence of layers, with weights that depend on nothing but their seed."""
    model = nn.Sequential(*layers).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dict.fromkeys(model.parameters()):
            bound = max(parameter[0].numel(), 2) ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)
    return model


def mlp(dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    return made(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3), dtype=dtype)


def cnn(dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    """Convolutions with dense and with sparse gradients."""
    return made(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, (2, 3)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 3 * 2, 5),
        nn.LeakyReLU(0.1),
        nn.Linear(5, 3),
        dtype=dtype,
    )


CNN_SHAPE = (2, 7, 6)


def metaoptimize(granularity: Any = "layerwise", **options: Any) -> Make:
    return lambda model: MetaOptimize(blocks(model, granularity), **{"lr": 1e-3, **options})


# ------------------------------------------------------------------------------------------------------------- rules

# Each base and each meta update at least once.
PAIRS = [
    ("sgd", "sgd"),
    ("sgdm", "rmsprop"),
    ("rmsprop", "lion"),
    ("adamw", "adam"),
    ("lion", "rmsprop_released"),
    ("sgdm_released", "adam_released"),
    ("rmsprop_released", "adam"),
    ("adamw_released", "lion"),
]
ONE_PER = {"group": {"granularity": "layerwise"}, "scalar": {"granularity": "layerwise", "step_sizes": "scalar"}}


def agrees(dtype: torch.dtype, rtol: float, steps: int, **options: Any) -> Twins:
    model, dataset = cnn(dtype), samples(steps, CNN_SHAPE, dtype=dtype)
    if options["base"] == "sgd" and options["meta"] == "sgd":
        options["meta_lr"] = 1e-3  # z is not normalised by anything
    twins = Twins(model, metaoptimize(**{"weight_decay": 0.1, "gamma": 0.99} | options), engines=ENGINES, rtol=rtol)
    for start, stop in [(0, 1), (1, 2), (2, steps // 4), (steps // 4, steps)]:
        assert twins.learn(part(dataset, start, stop)) is None
        twins.compare()
    step_sizes = {row[-1] for row in twins.seen[0].step_sizes}
    assert len(step_sizes) > 5, "step sizes hardly changed"
    return twins


def test_every_base_update_has_a_kernel() -> None:
    assert set(BASE_RULES) == {BASE_UPDATES[name] for name in BASE_UPDATES}


@pytest.mark.parametrize(("base", "meta"), PAIRS)
def test_agrees_with_the_torch_engine_step_by_step(base: str, meta: str) -> None:
    agrees(DOUBLE, 1e-9, 100, base=base, meta=meta, **ONE_PER["group"])


BEYOND: dict[str, dict[str, Any]] = {
    "auto": {"gamma": "auto"},
    "dutch": {"trace": "dutch"},
    "both": {"gamma": "auto", "trace": "dutch"},
    "bounded": {"max_meta_change": 2e-4},
    "all": {"gamma": "auto", "trace": "dutch", "max_meta_change": 2e-4},
    "every third": {"meta_every": 3},
    "decay": {"meta_weight_decay": 0.01, "trace": "dutch"},
}


@pytest.mark.parametrize(
    ("beyond", "base", "meta", "one_per"),
    [
        pytest.param(
            *(beyond, *pair, one_per),
            marks=() if pair == ("adamw", "adam") and (one_per == "group" or beyond == "all") else pytest.mark.slow,
        )
        for beyond, options in BEYOND.items()
        for pair in PAIRS
        for one_per in ONE_PER
        if pair[1] != "lion" or options.get("gamma") != "auto"  # which MetaOptimize refuses
    ],
)
def test_what_the_kernels_have_beyond_the_plain_rule_agrees(beyond: str, base: str, meta: str, one_per: str) -> None:
    options, bound = dict(BEYOND[beyond]), 5e-6 if meta == "sgd" else 2e-4
    if "max_meta_change" in options:
        options["max_meta_change"] = bound
    twins = agrees(DOUBLE, 1e-9, 200, base=base, meta=meta, **ONE_PER[one_per], **options)
    by_block: dict[str, list[float]] = {}
    for _, block, step_size in twins.seen[-1].step_sizes:
        by_block.setdefault(block, []).append(step_size)
    changes = np.abs([np.diff(np.log(values)) for values in by_block.values()])
    if "max_meta_change" in options:
        assert changes.max() == pytest.approx(bound, rel=1e-6)
        assert (changes > 0.99 * bound).sum() > 10
    else:
        assert changes.max() > 1.01 * bound, "the bound would not bind"


@pytest.mark.slow
@pytest.mark.parametrize("one_per", ONE_PER)
@pytest.mark.parametrize("meta", list(META_UPDATES))
@pytest.mark.parametrize("base", list(BASE_UPDATES))
def test_every_pair_of_rules_agrees(base: str, meta: str, one_per: str) -> None:
    agrees(DOUBLE, 1e-9, 200, base=base, meta=meta, **ONE_PER[one_per])


@pytest.mark.parametrize(("base", "meta"), PAIRS)
def test_agrees_in_single_precision(base: str, meta: str) -> None:
    # Lion's sign turns when its argument is within a rounding error of 0, and then a weight goes two steps astray:
    # the longer a run, the more likely
    agrees(SINGLE, 2e-4, 20 if base == "lion" else 100, base=base, meta=meta)


@pytest.mark.parametrize("base", list(BASE_UPDATES))
def test_a_fixed_step_size_is_the_base_update(base: str) -> None:
    twins = Twins(mlp(), metaoptimize(base=base, meta_lr=0.0, lr=3e-3), engines=ENGINES)
    assert twins.learn(samples(100, (6,)), record_every=10) is None
    twins.compare()
    assert {row[-1] for row in twins.seen[-1].step_sizes} == {3e-3}
    assert {row[-1] for row in twins.seen[-1].measurements} == {0.0}


def test_step_sizes_stay_within_their_bounds() -> None:
    twins = Twins(mlp(), metaoptimize(lr_bounds=(9e-4, 1.1e-3), meta_lr=0.1))
    assert twins.learn(samples(100, (6,))) is None
    twins.compare()
    step_sizes = {row[-1] for row in twins.seen[-1].step_sizes}
    assert step_sizes >= {9e-4, 1.1e-3}
    assert max(step_sizes) == 1.1e-3
    assert min(step_sizes) == 9e-4


# ---------------------------------------------------------------------------------------------------------- networks


def shared(layer: nn.Module) -> list[nn.Module]:
    """The same layer between others, twice."""
    return [nn.Linear(6, 5), layer, nn.Linear(5, 5), layer, nn.Linear(5, 3)]


CE = nn.CrossEntropyLoss()
NETWORKS: dict[str, tuple[Any, ...]] = {  # shape of an input, layers, and a loss other than cross-entropy
    "one layer": ((6,), [nn.Linear(6, 3)]),
    "one number": ((1,), [nn.Linear(1, 3)]),
    "one class": ((6,), [nn.Linear(6, 1)]),
    "no biases": ((6,), [nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)]),
    "an activation at the end": ((6,), [nn.Linear(6, 3), nn.Tanh()]),
    "an activation of the input": ((6,), [nn.ReLU(), nn.Linear(6, 3)]),
    "only views before the layer": ((2, 3), [nn.Identity(), nn.Flatten(), nn.Flatten(), nn.Linear(6, 3)]),
    "within one another": (
        (6,),
        [nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Tanh(), nn.Sequential())), nn.Identity(), nn.Linear(5, 3)],
    ),
    **{
        f"{first[0]} and {second[0]}": (
            (6,),
            [nn.Linear(6, 5), first[1], nn.Identity(), second[1], nn.Linear(5, 3)],
        )
        for first in (("ReLU", nn.ReLU()), ("leaky", nn.LeakyReLU(0.3)), ("tanh", nn.Tanh()))
        for second in (("ReLU", nn.ReLU()), ("leaky", nn.LeakyReLU(0.2)), ("tanh", nn.Tanh()))
    },
    "ReLU in place": ((6,), [nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)]),
    "three times tanh": ((6,), [nn.Linear(6, 5), nn.Tanh(), nn.Tanh(), nn.Tanh(), nn.Linear(5, 3)]),
    "tanh of an image, twice": (
        (2, 4, 4),
        [
            nn.Conv2d(2, 3, 3),
            nn.Tanh(),
            nn.Tanh(),
            nn.MaxPool2d(2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Tanh(),
            nn.Linear(3, 3),
        ],
    ),
    "one activation at several places": ((6,), shared(nn.Tanh())),
    "one leaky ReLU at several places": ((6,), shared(nn.LeakyReLU(0.3))),
    "one sequence at several places": ((6,), shared(nn.Sequential(nn.Tanh(), nn.LeakyReLU()))),
    "leaky ReLU that is ReLU": ((6,), [nn.Linear(6, 5), nn.LeakyReLU(0.0), nn.Linear(5, 3)]),
    "leaky ReLU that is steeper below": ((6,), [nn.Linear(6, 5), nn.LeakyReLU(2.0), nn.Linear(5, 3)]),
    "rows longer than a piece": ((PIECE + 5,), [nn.Linear(PIECE + 5, 3)]),
    "rows of exactly two pieces": ((2 * PIECE,), [nn.Linear(2 * PIECE, 2), nn.ReLU(), nn.Linear(2, 3)]),
    "parameters longer than a piece": ((6,), [nn.Linear(6, PIECE + 7), nn.ReLU(), nn.Linear(PIECE + 7, 3)]),
    "kernels longer than a piece": ((7, 4, 4), [nn.Conv2d(7, 34, 3), nn.ReLU(), nn.Flatten(), nn.Linear(136, 3)]),
    "mean of squares": ((6,), [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)], nn.MSELoss()),
    "sum of squares": ((6,), [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)], nn.MSELoss(reduction="sum")),
    "one square": ((6,), [nn.Linear(6, 1)], nn.MSELoss()),
    "half of squares": ((6,), [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)], HalfSquaredError()),
    "squares of an image": ((1, 5, 5), [nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(32, 2)], nn.MSELoss()),
    "sum of one": ((6,), [nn.Linear(6, 3)], nn.CrossEntropyLoss(reduction="sum")),
    "one channel": ((1, 7, 7), [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)]),
    "one channel out": ((3, 5, 5), [nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)]),
    "one pixel": ((4, 1, 1), [nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2, 3)]),
    "one pixel in the middle": (
        (2, 5, 5),
        [nn.Conv2d(2, 3, 5), nn.Tanh(), nn.Conv2d(3, 2, 1, padding=1), nn.Flatten(), nn.Linear(18, 3)],
    ),
    "kernels of one pixel": ((3, 5, 4), [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)]),
    "kernels that are not square": (
        (2, 6, 9),
        [nn.Conv2d(2, 3, (1, 4), (2, 3), (2, 1)), nn.Tanh(), nn.Conv2d(3, 2, (5, 2)), nn.Flatten(), nn.Linear(4, 3)],
    ),
    "strides beyond the kernel": ((2, 8, 9), [nn.Conv2d(2, 3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)]),
    "padding beyond the kernel": ((1, 3, 3), [nn.Conv2d(1, 2, 2, padding=3), nn.Flatten(), nn.Linear(128, 3)]),
    "padding by name": ((1, 4, 4), [nn.Conv2d(1, 2, 2, padding="valid"), nn.Flatten(), nn.Linear(18, 3)]),
    "long rows of kernels": ((5, 6, 6), [nn.Conv2d(5, 2, 5, padding=2), nn.Flatten(), nn.Linear(72, 3)]),
    "convolutions in a row": (
        (2, 6, 5),
        [
            nn.Conv2d(2, 3, 3, padding=1),
            nn.Conv2d(3, 4, 2),
            nn.Conv2d(4, 2, 2, bias=False),
            nn.Flatten(),
            nn.Linear(24, 3),
        ],
    ),
    "pools that overlap": (
        (2, 8, 7),
        [nn.Conv2d(2, 3, 2), nn.MaxPool2d(3, 1), nn.ReLU(), nn.MaxPool2d((2, 3), 1), nn.Flatten(), nn.Linear(24, 3)],
    ),
    "pools with gaps": ((2, 9, 9), [nn.Conv2d(2, 3, 2), nn.MaxPool2d(2, 3), nn.Flatten(), nn.Linear(27, 3)]),
    "pools that leave a rest": ((2, 8, 8), [nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)]),
    "pools with lists": ((2, 7, 7), [nn.Conv2d(2, 3, 2), nn.MaxPool2d([2, 3]), nn.Flatten(), nn.Linear(18, 3)]),
    "pools of one pixel": ((2, 3, 3), [nn.Conv2d(2, 3, 2), nn.MaxPool2d(1), nn.Flatten(), nn.Linear(12, 3)]),
    "a pool of the input": ((2, 6, 6), [nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 3)]),
    "only a pool": ((2, 6, 6), [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 3)]),
    "ReLU and two pools": (
        (2, 8, 8),
        [nn.Conv2d(2, 3, 1), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(12, 3)],
    ),
    "activations before and after a pool": (
        (2, 6, 6),
        [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.ReLU(), nn.MaxPool2d(2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(12, 3)],
    ),
    "the network of the paper": ((3, 12, 12), [PaperCNN(3, (3, 12, 12))]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree(name: str) -> None:
    shape, layers, criterion = (*NETWORKS[name], CE)[:3]
    model = made(*copy.deepcopy(layers))
    outputs = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1].out_features
    dataset = (
        samples(30, shape, outputs) if isinstance(criterion, nn.CrossEntropyLoss) else regression(30, shape, outputs)
    )
    twins = Twins(model, metaoptimize(lr=3e-3), criterion, ENGINES)
    assert twins.learn(dataset) is None
    twins.compare()


def test_inputs_are_left_as_they_are() -> None:
    dataset = samples(5, (6,))
    x = dataset.tensors[0].clone()
    model = made(nn.ReLU(inplace=True), nn.Linear(6, 3))
    assert Learner("compiled", model, metaoptimize()(model), CE).learn(dataset, Observations(0, 0)) is None
    assert torch.equal(dataset.tensors[0], x)


@pytest.mark.parametrize(
    ("behind", "few"),
    [([nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(16, 3)], True), ([nn.Flatten(), nn.Linear(144, 3)], False)],
)
def test_few_and_many_gradients_of_a_convolution_agree(behind: list[nn.Module], few: bool) -> None:
    """The kernel leaves out the zeros where they are many."""
    model = made(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3), *behind)
    dataset = samples(20, (2, 10, 10))
    convolved = model[:2](dataset.tensors[0])
    convolved.retain_grad()
    nn.functional.cross_entropy(model[2:](convolved), dataset.tensors[1]).backward()
    model.zero_grad()
    assert (float((convolved.grad != 0).double().mean()) <= 1 / 4) is few
    twins = Twins(model, metaoptimize())
    assert twins.learn(dataset) is None
    twins.compare()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.5), nn.Tanh(), nn.Identity()])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 1)])
@pytest.mark.parametrize("pool_first", [False, True])
def test_ties_and_zeros_are_decided_alike(activation: nn.Module, pool: nn.Module, pool_first: bool) -> None:
    """Of equal numbers the first is the largest; they are equal because all is computed exactly before the tie."""
    for seed in range(5):
        dataset = samples(1, (2, 6, 6), seed=seed)
        dataset.tensors[0].round_().clamp_(-1, 1)
        between = [pool, activation] if pool_first else [activation, pool]
        features = 2 * 3**2 if pool.stride == 2 else 2 * 4**2
        model = made(nn.Conv2d(2, 2, 1, bias=False), *between, nn.Flatten(), nn.Linear(features, 3), seed=seed)
        model[0].weight.data = model[0].weight.detach().sign() / 2
        twins = Twins(model, metaoptimize())
        assert twins.learn(dataset) is None
        twins.compare()


@pytest.mark.parametrize("largest", [[0], [1], [0, 1], [1, 2], [0, 2], [0, 1, 2]])
def test_the_first_of_the_largest_outputs_is_the_prediction(largest: list[int]) -> None:
    model = made(nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([float(output in largest) for output in range(3)]))
    for label in range(3):
        twins = Twins(model, metaoptimize())
        twins.learn(TensorDataset(torch.zeros(1, 6, dtype=DOUBLE), torch.tensor([label])))
        assert twins.seen[-1].correct == [label == largest[0]]


def random_network(dice: random.Random) -> tuple[list[nn.Module], Shape]:
    """Layers in any order that fits, and the shape of their input."""
    layers: list[nn.Module] = []

    def activate() -> None:
        for _ in range(dice.choice([0, 1, 1, 2])):
            layers.append(dice.choice([nn.ReLU(), nn.LeakyReLU(dice.uniform(0, 1.5)), nn.Tanh(), nn.Identity()]))

    def nest() -> None:
        start = dice.randrange(len(layers))
        stop = dice.randrange(start, len(layers)) + 1
        layers[start:stop] = [nn.Sequential(*layers[start:stop])]

    shape: Shape = (dice.randint(1, 12),) if dice.random() < 0.2 else tuple(dice.choices(range(1, 12), k=3))
    if len(shape) == 3:
        shape = (dice.randint(1, 5), *shape[1:])
    now = shape
    for _ in range(dice.randint(0, 4) if len(shape) == 3 else 0):
        activate()
        channels, *size = now
        if dice.random() < 0.35:
            kernel = [dice.randint(1, min(3, n)) for n in size]
            stride = dice.choice([None, *([dice.randint(1, 3), dice.randint(1, 3)] for _ in range(2))])
            layers.append(nn.MaxPool2d(tuple(kernel), None if stride is None else tuple(stride)))
            size = [(n - w) // s + 1 for n, w, s in zip(size, kernel, stride or kernel, strict=True)]
        else:
            padding = [dice.randint(0, 2) for _ in size]
            kernel = [dice.randint(1, min(5, n + 2 * p)) for n, p in zip(size, padding, strict=True)]
            stride = [dice.choice([1, 1, 2, 3]) for _ in size]
            outputs = dice.randint(1, 5)
            options: dict[str, Any] = {"bias": dice.random() < 0.7}
            layers.append(nn.Conv2d(channels, outputs, tuple(kernel), tuple(stride), tuple(padding), **options))
            size = [(n + 2 * p - w) // s + 1 for n, w, s, p in zip(size, kernel, stride, padding, strict=True)]
            channels = outputs
        now = (channels, *size)
    activate()
    if len(now) == 3 or dice.random() < 0.3:
        layers.append(nn.Flatten())
    inputs = math.prod(now)
    for _ in range(dice.randint(0, 2)):
        activate()
        outputs = dice.randint(1, 8)
        layers.append(nn.Linear(inputs, outputs, bias=dice.random() < 0.7))
        inputs = outputs
    activate()
    layers.append(nn.Linear(inputs, 3, bias=dice.random() < 0.7))
    if dice.random() < 0.3:
        activate()
    for _ in range(dice.randint(0, 2)):
        nest()
    return layers, shape


def random_networks_agree(seed: int) -> None:
    dice = random.Random(seed)
    layers, shape = random_network(dice)
    criterion = dice.choice([CE, CE, nn.MSELoss(), nn.MSELoss(reduction="sum")])
    make = metaoptimize(
        dice.choice(["scalar", "blockwise", "layerwise"]),
        base=dice.choice(list(BASE_UPDATES)),
        meta=dice.choice(list(META_UPDATES)),
        meta_lr=dice.choice([0.0, 1e-3, 1e-2]),
        gamma=dice.choice([0.0, 0.9, 1.0]),
        weight_decay=dice.choice([0.0, 0.1]),
        step_sizes=dice.choice(["group", "scalar"]),
    )
    model = made(*layers, seed=seed)
    for parameter in model.parameters():
        if dice.random() < 0.1:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        next(model.parameters()).requires_grad_(True)
    twins = Twins(model, make, criterion)
    dataset = samples(25, shape) if criterion is CE else regression(25, shape)
    assert twins.learn(dataset, record_every=dice.randint(1, 10)) is None
    twins.compare()


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_agree(seed: int) -> None:
    random_networks_agree(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, 100))
def test_many_random_networks_agree(first: int) -> None:
    for seed in range(first, first + 100):
        try:
            random_networks_agree(seed)
        except AssertionError as error:
            raise AssertionError(f"network {seed}") from error


# ------------------------------------------------------------------------------------------- settings of an optimizer


def of_layers(*groups: dict[str, Any], **options: Any) -> Make:
    """An optimizer with a group of each layer that has parameters, and settings of each group."""

    def make(model: nn.Module) -> MetaOptimize:
        layers = [layer for layer in model if isinstance(layer, nn.Conv2d | nn.Linear)]
        params = [{"params": list(layer.parameters()), **group} for layer, group in zip(layers, groups, strict=True)]
        return MetaOptimize(params, **{"lr": 3e-3, **options})

    return make


def then(make: Make, change: Callable[[nn.Module], Any]) -> Make:
    """An optimizer whose network is changed after it was made."""

    def changed(model: nn.Module) -> MetaOptimize:
        optimizer = make(model)
        change(model)
        return optimizer

    return changed


def transposed(parameter: Tensor) -> nn.Parameter:
    """The same numbers, lying otherwise in memory."""
    return nn.Parameter(parameter.detach().mT.contiguous().mT)


def channels_last() -> nn.Module:
    model = cnn().to(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    return model


def not_contiguous() -> nn.Module:
    model = mlp()
    model[0].weight = transposed(model[0].weight)
    assert not model[0].weight.is_contiguous()
    return model


TWO = [{}, {"weight_decay": 0.3, "gamma": 0.5}]
FIXED = {"meta_lr": 0.0}
SETTINGS: dict[str, tuple[Callable[[], nn.Module], Make]] = {
    "the first layer is frozen": (cnn, then(metaoptimize(), lambda model: model[0].requires_grad_(False))),
    "a layer between is frozen": (cnn, then(metaoptimize(), lambda model: model[2].requires_grad_(False))),
    "the last layers are frozen": (cnn, then(metaoptimize(), lambda model: model[6:].requires_grad_(False))),
    "only the first layer learns": (cnn, then(metaoptimize(), lambda model: model[1:].requires_grad_(False))),
    "weights are frozen, biases not": (mlp, then(metaoptimize(), lambda model: model[0].weight.requires_grad_(False))),
    "biases are frozen, weights not": (cnn, then(metaoptimize(), lambda model: model[2].bias.requires_grad_(False))),
    "nothing of what the optimizer has": (
        mlp,
        then(lambda model: MetaOptimize(model[0].parameters()), lambda model: model[0].requires_grad_(False)),
    ),
    "the optimizer was not given the first layer": (mlp, lambda model: MetaOptimize(model[2].parameters(), 3e-3)),
    "the optimizer was not given the last layer": (cnn, lambda model: MetaOptimize(model[:8].parameters(), 3e-3)),
    "the optimizer was given a bias": (cnn, lambda model: MetaOptimize([model[2].bias], 3e-3)),
    "groups in another order": (mlp, lambda model: MetaOptimize([*model.parameters()][::-1], 3e-3)),
    "weights and biases apart": (
        cnn,
        lambda model: MetaOptimize(
            [
                {"name": "biases", "params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
                {"name": "weights", "params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.2},
            ],
            3e-3,
        ),
    ),
    "a group without parameters": (
        mlp,
        lambda model: MetaOptimize([{"params": []}, {"params": model.parameters()}], 3e-3),
    ),
    "settings of each group": (mlp, of_layers(*TWO)),
    "settings of each group, one step size": (mlp, of_layers(*TWO, step_sizes="scalar")),
    "bounds and step sizes of each group": (mlp, of_layers({"lr": 1e-3, "lr_bounds": (9e-4, 1.1e-3)}, {"lr": 1e-2})),
    "one group is fixed": (mlp, of_layers({}, FIXED)),
    "another group is fixed": (mlp, of_layers(FIXED, {})),
    "one of the groups that share a step size is fixed": (mlp, of_layers({}, FIXED, step_sizes="scalar")),
    "the first of the groups that share a step size is fixed": (mlp, of_layers(FIXED, {}, step_sizes="scalar")),
    "two horizons in one of the groups": (mlp, of_layers({"gamma": "auto"}, {"gamma": 0.5})),
    **{
        f"{name}, {beyond}": (mlp, of_layers(*groups, **one_step_size, **BEYOND[beyond]))
        for beyond in BEYOND
        for name, groups, one_step_size in (
            ("one group is fixed", ({}, FIXED), {}),
            ("another group is fixed", (FIXED, {}), {}),
            ("one of the groups that share is fixed", ({}, FIXED), {"step_sizes": "scalar"}),
            ("the first of the groups that share is fixed", (FIXED, {}), {"step_sizes": "scalar"}),
        )
    },
    "a layer is frozen, all": (cnn, then(metaoptimize(**BEYOND["all"]), lambda model: model[2].requires_grad_(False))),
    "without discount": (cnn, metaoptimize(gamma=1.0)),
    "without trace": (cnn, metaoptimize(gamma=0.0)),
    "without weight decay": (cnn, metaoptimize(weight_decay=0.0)),
    "kernels with channels last": (channels_last, metaoptimize()),
    "a matrix that is transposed in memory": (not_contiguous, metaoptimize()),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_agree(name: str) -> None:
    make_model, make_optimizer = SETTINGS[name]
    model = make_model()
    fused = all(parameter.is_contiguous() for parameter in model.parameters())
    twins = Twins(model, make_optimizer, engines=ENGINES if fused else ("torch", "compiled"))
    assert twins.learn(samples(40, CNN_SHAPE if isinstance(model[0], nn.Conv2d) else (6,))) is None
    twins.compare()


# ------------------------------------------------------------------------------------------- changes between two calls


def of_all_groups(**settings: Any) -> Callable[[nn.Module, MetaOptimize], None]:
    def change(model: nn.Module, optimizer: MetaOptimize) -> None:
        for group in optimizer.param_groups:
            group.update(settings)

    return change


def of_first_group(**settings: Any) -> Callable[[nn.Module, MetaOptimize], None]:
    return lambda model, optimizer: optimizer.param_groups[0].update(settings)


def halve(model: nn.Module, optimizer: MetaOptimize) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


def replace_data(model: nn.Module, optimizer: MetaOptimize) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.detach().clone() * 0.5


def load_own_state(model: nn.Module, optimizer: MetaOptimize) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def load_an_earlier_state(model: nn.Module, optimizer: MetaOptimize) -> None:
    options = {"step_sizes": optimizer.step_sizes, "trace": optimizer.trace}
    earlier = metaoptimize(**options, gamma=optimizer.defaults["gamma"])(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    earlier.step()
    optimizer.load_state_dict(earlier.state_dict())


def sort_keys(model: nn.Module, optimizer: MetaOptimize) -> None:
    """As a state may come back from a file."""
    for group in optimizer.param_groups:
        group["learned"]["meta_state"] = dict(sorted(group["learned"]["meta_state"].items()))


def transpose_state(model: nn.Module, optimizer: MetaOptimize) -> None:
    for parameter in model.parameters():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor) and value.dim() > 1:
                optimizer.state[parameter][key] = transposed(value).detach()
                assert not optimizer.state[parameter][key].is_contiguous()


def leave_gradients(model: nn.Module, optimizer: MetaOptimize) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, NAN)


CHANGES: dict[str, Callable[[nn.Module, MetaOptimize], Any]] = {
    "nothing": lambda model, optimizer: None,
    "step size": of_first_group(lr=1e-2),
    "step size above its bounds": of_first_group(lr=3.0, lr_bounds=(1e-5, 5e-3)),
    "step size below its bounds": of_first_group(lr=1e-9, lr_bounds=(1e-5, 5e-3)),
    "step size of 0": of_first_group(lr=0.0),
    "bounds": of_all_groups(lr_bounds=(1e-4, 1.5e-3)),
    "weight decay and discount": of_all_groups(weight_decay=0.3, gamma=0.5),
    "two horizons": of_all_groups(gamma="auto"),
    "fewer meta updates, with decay": of_all_groups(meta_every=7, meta_weight_decay=0.1),
    "bounded meta updates": of_all_groups(max_meta_change=1e-3),
    "a step size is learned no more": of_first_group(meta_lr=0.0),
    "another step size is learned no more": lambda model, optimizer: optimizer.param_groups[-1].update(meta_lr=0.0),
    "faster meta updates": of_first_group(meta_lr=0.05),
    "weights": halve,
    "memory of the weights": replace_data,
    "own state": load_own_state,
    "another state": load_an_earlier_state,
    "no state": lambda model, optimizer: optimizer.state.clear(),
    "order of the state": sort_keys,
    "state that is not contiguous": transpose_state,
    "gradients that others left": leave_gradients,
    "a frozen layer": lambda model, optimizer: model[0].requires_grad_(False),
    "a frozen bias": lambda model, optimizer: model[2].bias.requires_grad_(False),
}


@pytest.mark.parametrize(
    "beyond",
    [
        pytest.param({}, id="plain"),
        pytest.param({"gamma": "auto", "trace": "dutch"}, id="both", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("one_per", ["group", pytest.param("scalar", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CHANGES)
def test_follows_what_others_change_between_calls(name: str, one_per: str, beyond: dict[str, Any]) -> None:
    dataset = samples(60, CNN_SHAPE)
    twins = Twins(cnn(), metaoptimize(**ONE_PER[one_per], **beyond), engines=ENGINES)
    # steps 20 and 40 are not recorded: a step size that was written beyond its bounds is recorded by the torch engine
    # as it was written, by the compiled one as it is in force
    assert twins.learn(part(dataset, 0, 20), record_every=7) is None
    twins.change(CHANGES[name])
    assert twins.learn(part(dataset, 20, 40), record_every=7) is None
    twins.compare()
    twins.change(of_all_groups(meta_lr=0.01))
    twins.change(lambda model, optimizer: model.requires_grad_(True))
    assert twins.learn(part(dataset, 40, 60), record_every=7) is None
    twins.compare()


@pytest.mark.parametrize(
    ("base", "engines", "options"),
    [(base, ("torch", "compiled"), {}) for base in BASE_UPDATES]
    + [
        ("adamw", engines, options)
        for engines in (("torch", "compiled"), ("torch", "fused"), ENGINES[1:])
        for options in (BEYOND["all"], {"meta_every": 7, "meta_weight_decay": 0.1})
    ],
)
def test_each_engine_goes_on_where_the_other_stopped(base: str, engines: Any, options: dict[str, Any]) -> None:
    dataset = samples(60, CNN_SHAPE)
    twins = Twins(cnn(), metaoptimize(base=base, **options), engines=engines)
    for start in (0, 20, 40):
        assert twins.learn(part(dataset, start, start + 20)) is None
        twins.compare()
        twins.swap()


def test_a_parameter_without_gradient_is_left_alone() -> None:
    twins = Twins(mlp(), metaoptimize(), engines=("torch", "fused"))
    twins.learn(samples(5, (6,)))
    for learner in twins.learners:
        learner.model[0].weight.grad = learner.model[0].bias.grad = None
        (learner.optimizer.step if learner.engine == "torch" else FusedUpdate(learner.optimizer))()
    twins.compare()


def test_a_fixed_step_size_may_be_learned_from_then_on() -> None:
    dataset = samples(40, (6,))
    twins = Twins(mlp(), metaoptimize(meta_lr=0.0))
    assert twins.learn(part(dataset, 0, 20)) is None
    twins.change(of_all_groups(meta_lr=0.01))
    assert twins.learn(part(dataset, 20, 40)) is None
    twins.compare()
    assert len({row[-1] for row in twins.seen[-1].step_sizes}) > 10


# ------------------------------------------------------------------------------------------------------ what goes wrong


def stops_alike(twins: Twins, dataset: Any, record_every: int = 1) -> tuple[str, int]:
    """What stopped all engines, and how many samples they had learned from: those that are recorded."""
    outcome = twins.learn(dataset, record_every)
    assert outcome is not None
    n = len(twins.seen[0])
    assert len({row[0] for row in twins.seen[0].step_sizes}) == -(-n // record_every)
    return outcome, n


def image_network(activation: nn.Module, dtype: torch.dtype = DOUBLE) -> nn.Module:
    return made(
        nn.Conv2d(2, 3, 3, padding=1),
        copy.deepcopy(activation),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18, 4),
        copy.deepcopy(activation),
        nn.Linear(4, 3),
        dtype=dtype,
    )


ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(), nn.Tanh(), nn.Identity()]


# NaN in each network behind each activation; pooling must not hide an infinity of either sign
@pytest.mark.parametrize(("network", "bad"), [("image", NAN), ("image", INF), ("image", -INF), ("numbers", NAN)])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda layer: type(layer).__name__)
def test_an_input_that_is_not_finite_stops_all_engines_alike(network: str, activation: nn.Module, bad: float) -> None:
    shape = (2, 8, 8) if network == "image" else (6,)
    layers = nn.Linear(6, 5), copy.deepcopy(activation), nn.Linear(5, 3)
    for place in range(0, math.prod(shape), 29):
        dataset = samples(20, shape)
        dataset.tensors[0][10].view(-1)[place] = bad
        model = image_network(activation) if network == "image" else made(*layers)
        outcome, n = stops_alike(Twins(model, metaoptimize(), engines=ENGINES), dataset)
        assert n == 10
        assert outcome.endswith(" is nan at sample 10")


# NaN with each activation; infinities, which do no harm at first before tanh, with one that cuts and one that does not
@pytest.mark.parametrize(
    ("activation", "bad"),
    [*((activation, NAN) for activation in ACTIVATIONS), (nn.ReLU(), INF), (nn.Identity(), INF)],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
@pytest.mark.parametrize("name", [name for name, _ in image_network(nn.ReLU()).named_parameters()])
def test_a_weight_that_is_not_finite_stops_all_engines_alike(name: str, activation: nn.Module, bad: float) -> None:
    dataset = samples(20, (2, 8, 8))
    twins = Twins(image_network(activation), metaoptimize(), engines=ENGINES)
    assert twins.learn(part(dataset, 0, 10)) is None

    def spoil(model: nn.Module, optimizer: MetaOptimize) -> None:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[-1] = bad

    twins.change(spoil)
    outcome, n = stops_alike(twins, part(dataset, 10, 20))
    assert n == 10, outcome


@pytest.mark.parametrize("bad", [INF, -INF])
@pytest.mark.parametrize(("gamma", "trace"), [(0.999, "trace"), ("auto", "trace"), ("auto", "trace_long")])
def test_a_meta_gradient_that_becomes_infinite_stops_all_engines_alike(gamma: Any, trace: str, bad: float) -> None:
    dataset = TensorDataset(torch.ones(20, 1), torch.full((20, 1), -10.0))  # so that the gradient is about 20
    twins = Twins(made(nn.Linear(1, 1), dtype=SINGLE), metaoptimize(gamma=gamma), nn.MSELoss(), ENGINES, rtol=1e-4)
    assert twins.learn(part(dataset, 0, 10)) is None
    twins.change(lambda model, optimizer: optimizer.state[model[0].bias][trace].fill_(math.copysign(3e38, bad)))
    step_sizes = [learner.optimizer.step_size_report() for learner in twins.learners]
    expected = (f"Diverged: the meta gradient of block '0' is {bad} at sample 10", 10)
    assert stops_alike(twins, part(dataset, 10, 20)) == expected
    assert [learner.optimizer.step_size_report() for learner in twins.learners] == step_sizes


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_a_step_size_that_is_too_large_stops_all_engines_at_the_same_sample(dtype: torch.dtype) -> None:
    dataset = TensorDataset(torch.ones(2000, 1, dtype=dtype), torch.zeros(2000, 1, dtype=dtype))
    make = metaoptimize(base="sgd", meta_lr=0.0, lr=1.0, weight_decay=0.0)  # the error becomes - 3 times what it was
    twins = Twins(made(nn.Linear(1, 1), dtype=dtype), make, nn.MSELoss(), ENGINES, rtol=1e-3)
    outcome, n = stops_alike(twins, dataset, record_every=10)
    assert outcome == f"Diverged: the loss is inf at sample {n}"
    assert n == pytest.approx(math.log(torch.finfo(dtype).max) / math.log(9), abs=3)


@pytest.mark.parametrize(
    ("outputs", "criterion"),
    [([2e19, 0.0, 0.0], nn.MSELoss()), ([2e19, 0.0, 0.0], nn.MSELoss(reduction="sum")), ([-3e38, 3e38, 0.0], CE)],
)
def test_a_loss_that_single_precision_cannot_hold_stops_all_engines_alike(outputs: list[float], criterion: Any) -> None:
    x = torch.zeros(3, 6)
    dataset = TensorDataset(x, torch.zeros(3).long() if criterion is CE else torch.zeros(3, 3))
    model = made(nn.Linear(6, 3), dtype=SINGLE)
    twins = Twins(model, metaoptimize(), criterion, ENGINES)
    twins.change(lambda model, optimizer: model[0].bias.data.copy_(torch.tensor(outputs)))
    assert stops_alike(twins, dataset) == ("Diverged: the loss is inf at sample 0", 0)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_losses_are_as_exact_as_the_outputs(dtype: torch.dtype) -> None:
    for criterion, dataset in [(CE, samples(20, (6,), dtype=dtype)), (nn.MSELoss(), regression(20, (6,), 3, dtype))]:
        model, seen = mlp(dtype), Observations(0, 0)
        Learner("compiled", model, metaoptimize()(model), criterion).learn(dataset, seen)
        assert seen.loss == [torch.tensor(loss, dtype=dtype).item() for loss in seen.loss]


@pytest.mark.parametrize("at", [0, 15, 16, 19])
@pytest.mark.parametrize("label", [3, 100, -1, NOT_A_CLASS])
def test_a_label_beyond_the_outputs_is_explained_after_what_came_before_is_learned(label: int, at: int) -> None:
    dataset = samples(20, (6,))
    dataset.tensors[1][at] = label
    twins = Twins(mlp(), metaoptimize(), engines=ENGINES)
    message = (
        f"ValueError: label {label} does not fit the network's 3 outputs; size the network with "
        'n_outputs=benchmark.info.for_learner.n_outputs, or number labels within experiences (labels="within")'
    )
    assert stops_alike(twins, dataset) == (message, at)
    if at > 0:  # otherwise only the compiled engine has made a state, of zeros
        twins.compare()


def test_a_loss_that_is_not_finite_comes_before_a_label_that_does_not_fit() -> None:
    dataset = samples(10, (6,))
    dataset.tensors[0][3] = NAN
    dataset.tensors[1][7] = 5
    twins = Twins(mlp(), metaoptimize(), engines=ENGINES)
    assert stops_alike(twins, dataset) == ("Diverged: the loss is nan at sample 3", 3)


def test_step_sizes_that_cannot_be_are_refused() -> None:
    twins = Twins(mlp(), metaoptimize(), engines=ENGINES)
    twins.change(of_first_group(lr=NAN))
    assert twins.learn(samples(5, (6,)), record_every=10**9) == (
        "ValueError: the step size of block '0' was set to nan; it must not be negative, and finite"
    )


# ---------------------------------------------------------------------------------------------- what it does not take


class OwnBase(SGD):
    """A base update that the kernels do not know."""


class OwnMeta(META_UPDATES["sgd"]):  # type: ignore[misc]
    """A meta update that the kernels do not know."""


class OwnOptimizer(MetaOptimize):
    """An optimizer that may do anything."""


class OwnLoss(nn.CrossEntropyLoss):
    """A loss that may do anything."""


class OwnLinear(nn.Linear):
    """A layer that may do anything."""


class OwnModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)


class OwnForward(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x


class WithParameter(nn.Sequential):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_parameter("scale", nn.Parameter(torch.ones(3)))


def around(*layers: nn.Module) -> nn.Sequential:
    """Layers in a network that has a linear one, whatever shape that would need."""
    return nn.Sequential(*layers, nn.Linear(6, 3))


def hooked(model: nn.Sequential, register: str, of: Callable[[nn.Sequential], Any] = lambda m: m[0]) -> nn.Sequential:
    getattr(of(model), register)(lambda *arguments: None)
    return model


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def twice() -> nn.Sequential:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


def with_hook(optimizer: MetaOptimize, register: str) -> MetaOptimize:
    getattr(optimizer, register)(lambda *arguments: None)
    return optimizer


def one(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers or [nn.Linear(6, 3)])


def default(model: nn.Module) -> MetaOptimize:
    return MetaOptimize(model.parameters())


def functional(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def replaced(model: Any, part: Callable[[Any], nn.Module] = lambda model: model[0]) -> Any:
    """A network with something around a part's forward."""
    forward = part(model).forward
    part(model).forward = lambda *inputs: forward(*inputs)
    return model


def weight_of(model: nn.Sequential) -> Tensor:
    return model[0].weight


# networks, losses and optimizers, and what keeps them from being compiled
MODELS: list[tuple[Callable[[], nn.Module], str | None]] = [
    (one, None),
    (lambda: one().half(), "a parameter is torch.float16 on cpu"),
    (lambda: one().bfloat16(), "a parameter is torch.bfloat16 on cpu"),
    (lambda: one().to("meta"), "a parameter is torch.float32 on meta"),
    (lambda: around(nn.Linear(6, 6).double()), "the parameters are of different types"),
    (lambda: nn.Linear(6, 3), "Linear is not a sequence of layers"),
    (OwnModule, "OwnModule is not a sequence of layers"),
    (lambda: OwnForward(nn.Linear(6, 3)), "OwnForward is not a sequence of layers"),
    (lambda: hooked(one(), "register_forward_hook", lambda m: m), "Sequential has hooks"),
    (lambda: one(OwnForward(nn.Linear(6, 3)), nn.Linear(6, 3)), "there is no kernel for OwnForward"),
    (lambda: one(nn.Conv2d(1, 3, 2), nn.Flatten()), "the network has no linear layer"),
    (lambda: one(nn.Linear(6, 3), nn.Dropout()), "there is no kernel for Dropout"),
    (lambda: one(nn.Linear(6, 3), nn.BatchNorm1d(3)), "there is no kernel for BatchNorm1d"),
    (lambda: one(nn.Linear(6, 3), nn.ReLU6()), "there is no kernel for ReLU6"),
    (lambda: around(OwnLinear(6, 6)), "there is no kernel for OwnLinear"),
    (lambda: around(parametrizations.weight_norm(nn.Linear(6, 6))), "there is no kernel for ParametrizedLinear"),
    *(
        (lambda register=register: hooked(one(), register), "Linear has hooks")
        for register in (
            "register_forward_hook",
            "register_forward_pre_hook",
            "register_full_backward_hook",
            "register_full_backward_pre_hook",
        )
    ),
    (lambda: replaced(one(), lambda m: m), "Sequential's forward() has been replaced"),
    (lambda: replaced(one()), "Linear's forward() has been replaced"),
    *(
        (lambda register=register: hooked(one(), register, weight_of), "a parameter of Linear has hooks")
        for register in ("register_hook", "register_post_accumulate_grad_hook")
    ),
    (lambda: around(nn.Conv2d(1, 3, 2, padding="same")), "Conv2d has padding='same'"),
    (lambda: around(nn.Conv2d(1, 3, 2, dilation=2)), "Conv2d has dilation=(2, 2)"),
    (lambda: around(nn.Conv2d(2, 4, 2, groups=2)), "Conv2d has groups=2"),
    (lambda: around(nn.Conv2d(1, 3, 2, padding=1, padding_mode="reflect")), "Conv2d has padding_mode='reflect'"),
    (lambda: around(nn.MaxPool2d(2, padding=1)), "MaxPool2d has padding=1"),
    (lambda: around(nn.MaxPool2d(2, dilation=2)), "MaxPool2d has dilation=2"),
    (lambda: around(nn.MaxPool2d(2, return_indices=True)), "MaxPool2d has return_indices=True"),
    (lambda: around(nn.MaxPool2d(2, ceil_mode=True)), "MaxPool2d has ceil_mode=True"),
    (lambda: around(nn.Flatten(2)), "Flatten has start_dim=2"),
    (lambda: around(nn.Flatten(1, 2)), "Flatten has end_dim=2"),
    (lambda: around(nn.LeakyReLU(-0.1)), "LeakyReLU has a negative slope below 0"),
    (tied, "layers share a parameter"),
    (twice, "layers share a parameter"),
    (lambda: WithParameter(nn.Linear(6, 3)), "the network has parameters beside those of its layers"),
]
LOSSES: list[tuple[Any, str | None]] = [
    (nn.MSELoss(), None),
    (functional, "there is no kernel for the loss functional"),
    (nn.L1Loss(), "there is no kernel for the loss L1Loss"),
    (OwnLoss(), "there is no kernel for the loss OwnLoss"),
    (nn.CrossEntropyLoss(reduction="none"), "CrossEntropyLoss has reduction='none'"),
    (nn.MSELoss(reduction="none"), "MSELoss has reduction='none'"),
    (nn.MSELoss(reduction="elementwise_mean"), "MSELoss has reduction='elementwise_mean'"),
    (nn.CrossEntropyLoss(torch.ones(3)), "CrossEntropyLoss has weights or label smoothing"),
    (nn.CrossEntropyLoss(label_smoothing=0.1), "CrossEntropyLoss has weights or label smoothing"),
    (nn.CrossEntropyLoss(ignore_index=1), "CrossEntropyLoss has ignore_index=1"),
    (nn.CrossEntropyLoss(ignore_index=-1), "CrossEntropyLoss has ignore_index=-1"),
    (replaced(nn.CrossEntropyLoss(), lambda m: m), "CrossEntropyLoss's forward() has been replaced"),
]
OPTIMIZERS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda model: torch.optim.NAdam(model.parameters()), "NAdam is not written as functions of single numbers"),
    (lambda model: OwnOptimizer(model.parameters()), "the optimizer is not MetaOptimize"),
    (lambda model: with_hook(default(model), "register_step_pre_hook"), "the optimizer has hooks"),
    (lambda model: with_hook(default(model), "register_step_post_hook"), "the optimizer has hooks"),
    (lambda model: MetaOptimize(model.parameters(), base=OwnBase()), "there is no kernel for OwnBase"),
    (lambda model: MetaOptimize(model.parameters(), meta=OwnMeta()), "there is no kernel for OwnMeta"),
    (
        lambda model: MetaOptimize([*model.parameters(), nn.Parameter(torch.zeros(2))]),
        "the optimizer has parameters that are not the network's",
    ),
    (lambda model: default(model.requires_grad_(False)), "all parameters are frozen"),
]
REFUSED = [
    *((make, CE, default, reason) for make, reason in MODELS),
    *((one, criterion, default, reason) for criterion, reason in LOSSES),
    *((one, CE, make, reason) for make, reason in OPTIMIZERS),
    (
        lambda: around(nn.Linear(6, 6).double()),
        CE,
        lambda model: MetaOptimize(model[1].parameters()),
        "the parameters are of different types, or not all on the CPU",
    ),
]


@pytest.mark.filterwarnings("ignore:reduction='elementwise_mean'")
@pytest.mark.parametrize(
    ("make_model", "criterion", "make_optimizer", "reason"), REFUSED, ids=[str(row[3]) for row in REFUSED]
)
def test_says_what_keeps_a_learner_from_being_compiled(
    make_model: Any, criterion: Any, make_optimizer: Any, reason: str | None
) -> None:
    model = make_model()
    assert why_not_compiled(model, make_optimizer(model), criterion) == reason


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.optim.NAdam([nn.Parameter(torch.zeros(2))]), None),
        (lambda: MetaOptimize([nn.Parameter(torch.zeros(2))], base=OwnBase()), None),
        (lambda: MetaOptimize([nn.Parameter(torch.zeros(2).half())]), None),
        (lambda: MetaOptimize([nn.Parameter(torch.zeros(2, 3).t())]), None),
        (lambda: MetaOptimize([nn.Parameter(torch.zeros(2))]), FusedUpdate),
        (lambda: torch.optim.Adam([nn.Parameter(torch.zeros(2))]), None),
        (lambda: SGDHD([nn.Parameter(torch.zeros(2))]), FusedPass),
    ],
)
def test_fuses_the_steps_that_can_be(make: Any, kind: type | None) -> None:
    assert (None if (fused := fused_update_of(make())) is None else type(fused)) is kind


LINEAR = "Linear(in_features=6, out_features=3, bias=True)"


@pytest.mark.parametrize(
    ("layers", "shape", "message"),
    [
        ([nn.Linear(6, 3)], (5,), f"{LINEAR} does not fit an input of shape (5,)"),
        ([nn.Linear(6, 3)], (2, 6), f"{LINEAR} does not fit an input of shape (2, 6)"),
        ([nn.Linear(6, 3)], (), f"{LINEAR} does not fit an input of shape ()"),
        ([nn.Flatten(), nn.Linear(1, 3)], (), "Flatten does not fit single numbers"),
        (
            [nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(6, 3)],
            (1, 4, 4),
            "Conv2d(2, 3, kernel_size=(2, 2), stride=(1, 1)) does not fit an input with 1 channels",
        ),
        (
            [nn.Conv2d(1, 3, 5), nn.Flatten(), nn.Linear(6, 3)],
            (1, 4, 6),
            "Conv2d(1, 3, kernel_size=(5, 5), stride=(1, 1)) does not fit an image of 4×6",
        ),
        (
            [nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(6, 3)],
            (16,),
            "Conv2d(1, 3, kernel_size=(2, 2), stride=(1, 1)) needs an image, not an input of shape (16,)",
        ),
        (
            [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(6, 3)],
            (1, 2, 8),
            "MaxPool2d(kernel_size=3, stride=3, padding=0, dilation=1, ceil_mode=False) does not fit an image of 2×8",
        ),
        (
            [nn.Flatten(), nn.Linear(6, 3), nn.MaxPool2d(1)],
            (6,),
            "MaxPool2d(kernel_size=1, stride=1, padding=0, dilation=1, ceil_mode=False) needs an image, "
            "not an input of shape (3,)",
        ),
    ],
)
def test_says_which_layer_does_not_fit(layers: list[nn.Module], shape: Shape, message: str) -> None:
    model = nn.Sequential(*layers)
    optimizer = default(model)
    assert why_not_compiled(model, optimizer, CE) is None
    with pytest.raises(ValueError, match=exactly(message)):
        CompiledEngine(model, optimizer, CE, shape)


SINGLE_6 = "inputs are torch.float32 of shape (6,), not torch.float64 of shape (6,)"


@pytest.mark.parametrize(
    ("criterion", "x", "y", "reason"),
    [
        (CE, torch.zeros(1, 6, dtype=DOUBLE), torch.zeros(1).long(), None),
        (CE, torch.zeros(1, 6, dtype=DOUBLE), torch.zeros(1, dtype=torch.uint8), None),
        (CE, torch.zeros(1, 6), torch.zeros(1).long(), SINGLE_6),
        (
            CE,
            torch.zeros(1, 2, 3, dtype=DOUBLE),
            torch.zeros(1).long(),
            "inputs are torch.float64 of shape (2, 3), not torch.float64 of shape (6,)",
        ),
        (CE, torch.zeros(1, 6, dtype=DOUBLE), torch.zeros(1), "the targets are not classes"),
        (CE, torch.zeros(1, 6, dtype=DOUBLE), torch.zeros(1, 3, dtype=DOUBLE), "the targets are not classes"),
        (CE, torch.zeros(1, 6, dtype=DOUBLE), torch.zeros(1, 1).long(), "the targets are not classes"),
        (nn.MSELoss(), torch.zeros(1, 6, dtype=DOUBLE), torch.zeros(1, 3, dtype=DOUBLE), None),
        (
            nn.MSELoss(),
            torch.zeros(1, 6, dtype=DOUBLE),
            torch.zeros(1, 3),
            "targets are torch.float32 of shape (3,), not torch.float64 of shape (3,)",
        ),
        (
            nn.MSELoss(),
            torch.zeros(1, 6, dtype=DOUBLE),
            torch.zeros(1, dtype=DOUBLE),
            "targets are torch.float64 of shape (), not torch.float64 of shape (3,)",
        ),
        (
            nn.MSELoss(),
            torch.zeros(1, 6, dtype=DOUBLE),
            torch.zeros(1).long(),
            "targets are torch.int64 of shape (), not torch.float64 of shape (3,)",
        ),
    ],
)
def test_says_what_is_wrong_with_a_sample(criterion: Any, x: Tensor, y: Tensor, reason: str | None) -> None:
    model = mlp()
    assert CompiledEngine(model, default(model), criterion, (6,)).why_not_sample(x, y) == reason


# ---------------------------------------------------------------------------------------------------------- portions


def portions(n: int) -> list[int]:
    """Lengths of the portions in which the engine learns from n samples."""
    model, dataset, seen = mlp(), samples(n, (6,)), Observations(0, 0)
    engine = CompiledEngine(model, metaoptimize()(model), CE, (6,))
    lengths, more = [], True
    while more:
        before = len(seen)
        more = engine.learn(dataset, before, seen, 10)
        lengths.append(len(seen) - before)
    assert sum(lengths) == n
    return lengths


class Clock:
    """Passes as samples are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds_per_sample: float) -> None:
        self.now, self.seconds_per_sample = 1000.0, seconds_per_sample
        read = benchmark.read_samples

        def read_slowly(dataset: Any, steps: slice) -> tuple[NDArray[Any], NDArray[Any]]:
            self.now += (steps.stop - steps.start) * self.seconds_per_sample
            return read(dataset, steps)

        monkeypatch.setattr(benchmark, "read_samples", read_slowly)
        monkeypatch.setattr(compiled_learner.time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(
    ("seconds_per_sample", "n", "expected"),
    [
        (0.0, 2500, [16, 984, 1000, 500]),  # a clock so coarse that it did not move
        (1e-6, 2500, [16, 984, 1000, 500]),
        (0.0, 10, [10]),
        (0.0, 16, [16]),
        (1 / 1024, 1100, [16, 512, 472, 100]),
        (1 / 64, 100, [16, 32, 32, 20]),
        (1.0, 20, [16, 1, 1, 1, 1]),
    ],
)
def test_portions_last_half_a_second_but_have_at_most_a_thousand_samples(
    monkeypatch: pytest.MonkeyPatch, seconds_per_sample: float, n: int, expected: list[int]
) -> None:
    """And they end where weights are checked, after each thousand samples."""
    Clock(monkeypatch, seconds_per_sample)
    assert portions(n) == expected


def test_the_limits_of_a_portion_are_the_torch_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (compiled_learner.MAX_SAMPLES, compiled_learner.MAX_SECONDS) == (1000, 0.5)
    assert (torch_engine.MAX_SAMPLES, torch_engine.MAX_SECONDS) == (1000, 0.5)
    monkeypatch.setattr(compiled_learner, "MAX_SECONDS", 0.0)
    assert portions(20) == [16, 1, 1, 1, 1]
    monkeypatch.setattr(compiled_learner, "MAX_SAMPLES", 7)
    assert portions(16) == [7, 7, 2]


@pytest.mark.parametrize("base", list(BASE_UPDATES))
def test_portions_do_not_change_the_results(monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    dataset, found = samples(50, CNN_SHAPE, dtype=SINGLE), []
    for length in (1, 7, 50):
        monkeypatch.setattr(compiled_learner, "MAX_SAMPLES", length)
        monkeypatch.setattr(compiled_learner, "FIRST_SAMPLES", length)
        monkeypatch.setattr(compiled_learner, "MAX_SECONDS", 60.0)
        model, seen = cnn(SINGLE), Observations(0, 3)
        optimizer = metaoptimize(base=base)(model)
        assert Learner("compiled", model, optimizer, CE).learn(dataset, seen, 4) is None
        tensors = [*model.parameters(), *(value for p in model.parameters() for value in optimizer.state[p].values())]
        numbers = [torch.as_tensor(tensor).detach().numpy().tobytes() for tensor in tensors]
        groups = [[group["lr"], group["learned"]] for group in optimizer.param_groups]
        found.append((seen, numbers, groups))
    assert found[0] == found[1] == found[2]
    assert [row[0] for row in found[0][0].step_sizes][::4] == list(range(4, 53, 4))


def test_an_engine_begins_at_the_sample_that_it_is_told() -> None:
    dataset, found = samples(30, (6,)), []
    for data, first in ((dataset, 20), (part(dataset, 20, 30), 0)):
        model, seen = mlp(), Observations(0, 100)
        assert not CompiledEngine(model, metaoptimize()(model), CE, (6,)).learn(data, first, seen, 5)
        found.append((seen, [parameter.detach().numpy().tobytes() for parameter in model.parameters()]))
    assert found[0] == found[1]
    assert len(found[0][0]) == 10


# --------------------------------------------------------------------------------------------------- the process around


def flushes() -> bool:
    return bool(np.finfo(np.float32).smallest_subnormal * np.float32(1) == 0)


@pytest.mark.parametrize("before", [False, True])
def test_denormal_numbers_are_treated_as_before(before: bool) -> None:
    torch.set_flush_denormal(before)
    with flushed_denormals():
        assert flushes()
        with flushed_denormals():
            assert flushes()
        assert flushes()
    assert flushes() is before
    with pytest.raises(KeyError), flushed_denormals():
        raise KeyError
    assert flushes() is before
    dataset = samples(5, (6,))
    dataset.tensors[0][3] = NAN
    model = mlp()
    assert Learner("compiled", model, metaoptimize()(model), CE).learn(dataset, Observations(0, 0)) is not None
    assert flushes() is before


def test_denormal_numbers_are_flushed_while_learning() -> None:
    """A trace that only decays becomes 0, not denormal."""
    model = made(nn.Linear(6, 3), dtype=SINGLE)
    optimizer = metaoptimize(base="sgd", meta_lr=1e-30, meta="sgd", gamma=0.5, weight_decay=0.0)(model)
    learner = Learner("compiled", model, optimizer, CE)
    dataset = samples(300, (6,), dtype=SINGLE)
    dataset.tensors[0][:, 0] = 0.0
    assert learner.learn(part(dataset, 0, 1), Observations(0, 0)) is None
    trace = optimizer.state[model[0].weight]["trace"]
    trace[:, 0] = 1.0
    assert learner.learn(dataset, Observations(0, 0)) is None
    assert trace[:, 0].tolist() == [0.0] * 3
    assert bool((trace[:, 1:] != 0).all())


def test_learners_in_several_threads_do_not_disturb_one_another() -> None:
    def learn(found: list[bytes]) -> None:
        model = cnn()
        learner = Learner("compiled", model, metaoptimize()(model), CE)
        for start in range(0, 200, 20):
            learner.learn(part(dataset, start, start + 20), Observations(0, 0))
        found.append(b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters()))
        found.append(str(flushes()).encode())

    def n_threads() -> list[int]:
        return [library["num_threads"] for library in libraries_that_multiply().info()]

    dataset, expected = samples(200, CNN_SHAPE), []
    learn(expected)
    found: list[list[bytes]] = [[] for _ in range(4)]
    with threadpool_limits(2, "blas"):
        threads = [threading.Thread(target=learn, args=(results,)) for results in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(n_threads()) == {2}
    assert found == [expected] * 4


@pytest.mark.slow
def test_learning_does_not_fill_the_memory() -> None:
    model, dataset = cnn(SINGLE), samples(1000, CNN_SHAPE, dtype=SINGLE)
    learner, process = Learner("compiled", model, metaoptimize()(model), CE), psutil.Process()
    for _ in range(2):
        learner.learn(dataset, Observations(0, 0), record_every=50)
    before = process.memory_info().rss
    for _ in range(20):
        learner.learn(dataset, Observations(0, 0), record_every=50)
    assert process.memory_info().rss - before < 4e6


SAME_WHENEVER_COMPILED = """
import hashlib, torch
from torch import nn
from torch.utils.data import TensorDataset
from continual_metaopt import MetaOptimize, PaperCNN, blocks
from continual_metaopt.engines.compiled import kernels
from continual_metaopt.engines.compiled.engine import CompiledEngine
from continual_metaopt.engines.compiled.fused_update import FusedUpdate
from continual_metaopt.engines.observations import Observations
from continual_metaopt.optim.base_updates import BASE_UPDATES
from continual_metaopt.optim.meta_updates import META_UPDATES

digest, shape = hashlib.sha256(), (3, 28, 28)
torch.manual_seed(0)
dataset = TensorDataset(torch.randn(20, *shape), torch.randint(10, (20,)))
for base in BASE_UPDATES:
    for meta in META_UPDATES:
        torch.manual_seed(0)
        model = PaperCNN(10, shape)
        optimizer = MetaOptimize(blocks(model), 1e-3, base=base, meta=meta)
        engine, update = CompiledEngine(model, optimizer, nn.CrossEntropyLoss(), shape), FusedUpdate(optimizer)
        while engine.learn(dataset, 0, Observations(0, 0), 10):
            pass
        for parameter in model.parameters():  # whose gradients by PyTorch would depend on the number of threads
            parameter.grad = torch.randn_like(parameter)
        update()
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
print(digest.hexdigest(), *(sum(k.stats.cache_misses.values()) for k in (kernels.learn, kernels.update_in_place)))
"""


def in_another_process(**environment: str) -> list[str]:
    path = {"PYTHONPATH": str(Path(__file__).parents[4])}
    command = [sys.executable, "-c", SAME_WHENEVER_COMPILED]
    done = subprocess.run(command, env=os.environ | path | environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_gets_the_same_bits_with_any_number_of_threads(tmp_path: Path) -> None:
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    first, second = (in_another_process(NUMBA_CACHE_DIR=str(tmp_path), **dict.fromkeys(threads, n)) for n in "12")
    assert first == [first[0], "1", "1"]
    assert second == [first[0], "0", "0"]
