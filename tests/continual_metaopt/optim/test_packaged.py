"""Optimizers of other packages, against the packages driven by plain loops."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt import OnlineLearner, make_optimizer
from continual_metaopt.config import RunConfig
from continual_metaopt.contract import load_target, run_contract
from continual_metaopt.optim.packaged import PIP_NAMES
from continual_metaopt.optim.registry import step_sizes_of
from continual_metaopt.running import run_one
from streams import make_stream
from tests.continual_metaopt.conftest import Collector, read_tables, small_network

N_SAMPLES = 100

Samples = list[tuple[Tensor, Tensor]]
Loop = Callable[[nn.Module, Samples], tuple[list[float], dict[str, float]]]
Report = Callable[[Any], float]


def of(module: str, name: str) -> Any:
    """Something of another package."""
    return getattr(importlib.import_module(module), name)


def plain_loop(make: Callable[[nn.Module], Any], report: Report) -> Loop:
    """What documentation of the packages shows: predict, go back, step."""

    def loop(model: nn.Module, samples: Samples) -> tuple[list[float], dict[str, float]]:
        optimizer, losses = make(model), []
        for x, y in samples:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, {"all": report(optimizer)}

    return loop


def made(module: str, name: str, **options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: of(module, name)(model.parameters(), **options)


def mechanized(base: type[Optimizer], **options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: of("mechanic_pytorch", "mechanize")(base)(model.parameters(), **options)


def trac_around(base: type[Optimizer], **options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: of("pytorch_optimizer", "TRAC")(base(model.parameters(), **options))


def first(group_of: Callable[[dict[str, Any]], Any]) -> Report:
    return lambda optimizer: float(group_of(optimizer.param_groups[0]))


def schedule_free_loop(name: str, **options: Any) -> Loop:
    def loop(model: nn.Module, samples: Samples) -> tuple[list[float], dict[str, float]]:
        optimizer, losses = of("schedulefree", name)(model.parameters(), **options), []
        for x, y in samples:
            optimizer.eval()
            with torch.no_grad():
                losses.append(nn.functional.cross_entropy(model(x), y).item())
            optimizer.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        optimizer.eval()
        return losses, {"all": optimizer.param_groups[0]["lr"]}

    return loop


def averaged_loop(name: str, by_tensor: bool, **options: Any) -> Loop:
    """DoG with its package's averager; the network gets the averaged weights at the end."""

    def loop(model: nn.Module, samples: Samples) -> tuple[list[float], dict[str, float]]:
        optimizer, losses = of("dog", name)(model.parameters(), **options), []
        averager = of("dog", "PolynomialDecayAverager")(model, gamma=8.0)
        for x, y in samples:
            with torch.no_grad():
                losses.append(nn.functional.cross_entropy(averager.averaged_model(x), y).item())
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            averager.step()
        model.load_state_dict(averager.averaged_model.state_dict())
        etas = [float(eta) for eta in optimizer.param_groups[0]["eta"]]
        names = [name for name, _ in model.named_parameters()]
        return losses, dict(zip(names, etas, strict=True)) if by_tensor else {"all": etas[0]}

    return loop


def ultimate_loop(make: Callable[[Any], Any], alpha: Callable[[float], float] = float) -> Loop:
    """The loop of the package's own examples."""

    def loop(model: nn.Module, samples: Samples) -> tuple[list[float], dict[str, float]]:
        package = importlib.import_module("gradient_descent_the_ultimate_optimizer.gdtuo")
        stack = make(package)
        wrapper, losses = package.ModuleWrapper(model, optimizer=stack), []
        wrapper.initialize()
        for x, y in samples:
            wrapper.begin()
            loss = nn.functional.cross_entropy(wrapper.forward(x), y)
            wrapper.zero_grad()
            loss.backward()
            wrapper.step()
            losses.append(loss.item())
        return losses, {"all": alpha(float(stack.parameters["alpha"].detach()))}

    return loop


@dataclass(frozen=True)
class Case:
    """A learner, and the same by its package alone; what that breaks of the contract."""

    name: str
    package: str
    loop: Loop
    options: dict[str, Any] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


SKIPS = "A parameter whose gradient is None is left alone."
GROWS = "After the last layer was replaced by a larger one, learning goes on."
SCALES = "step() writes neither to p.grad nor moves a parameter to other memory."
RESUMES = "state_dict, saved and loaded with weights_only=True, goes on bit for bit."
COPIES = "A deep copy together with its network goes on bit for bit."
LEARNS = "OnlineLearner runs it on a stream of two experiences; no step size or weight becomes infinite."
EVERY_TENSOR = frozenset({SKIPS, GROWS})
WITH_GRAPH = frozenset({RESUMES, COPIES, GROWS})
STUCK = frozenset({COPIES, GROWS, LEARNS})  # TRAC's factor has become 0

D_TIMES_LR = first(lambda group: group["d"] * group["lr"])
FIXED = first(lambda group: group["lr"])
ETA = first(lambda group: group["eta"][0])


def mechanic_factor(lr: float) -> Report:
    return lambda optimizer: lr * float(optimizer.state["_mechanic"]["s"].sum())


def trac_factor(lr: float) -> Report:
    return lambda optimizer: lr * max(0.0, float(optimizer.state["trac"]["s"]))


CASES = [
    Case("dog", "dog", averaged_loop("DoG", False), {}, EVERY_TENSOR),
    Case("dog", "dog", averaged_loop("DoG", False, reps_rel=1e-3, weight_decay=0.01),
         {"reps_rel": 1e-3, "weight_decay": 0.01}, EVERY_TENSOR | {SCALES}),
    Case("dog", "dog", plain_loop(made("dog", "DoG"), ETA), {"averaging": None}, EVERY_TENSOR),
    Case("ldog", "dog", averaged_loop("LDoG", True), {}, EVERY_TENSOR),
    Case("prodigy", "prodigyopt", plain_loop(made("prodigyopt", "Prodigy"), D_TIMES_LR), {}, frozenset({GROWS})),
    Case("dadapt_sgd", "dadaptation", plain_loop(made("dadaptation", "DAdaptSGD"), first(
        lambda group: group["d"] * group["lr"] / group["g0_norm"])), {}),
    Case("dadapt_adam", "dadaptation", plain_loop(made("dadaptation", "DAdaptAdam"), D_TIMES_LR), {}),
    Case("dadapt_adagrad", "dadaptation", plain_loop(made("dadaptation", "DAdaptAdaGrad"), D_TIMES_LR), {}),
    Case("mechanic", "mechanic_pytorch",
         plain_loop(mechanized(torch.optim.AdamW, lr=1.0), mechanic_factor(1.0)), {}, frozenset({GROWS})),
    Case("mechanic", "mechanic_pytorch",
         plain_loop(mechanized(torch.optim.SGD, lr=0.5, momentum=0.9), mechanic_factor(0.5)),
         {"base": "sgd", "lr": 0.5, "momentum": 0.9}, frozenset({GROWS})),
    Case("trac", "pytorch_optimizer", plain_loop(trac_around(torch.optim.Adam, lr=1e-2),
         trac_factor(1e-2)), {"lr": 1e-2}, STUCK),
    Case("pytorch_optimizer:TRAC", "pytorch_optimizer", plain_loop(trac_around(torch.optim.SGD, lr=0.1),
         trac_factor(0.1)), {"base": "sgd", "lr": 0.1}, STUCK),
    Case("pytorch_optimizer:Lamb", "pytorch_optimizer",
         plain_loop(made("pytorch_optimizer", "Lamb", lr=1e-2), FIXED), {"lr": 1e-2}, frozenset({COPIES})),
    Case("pytorch_optimizer:ADOPT", "pytorch_optimizer",
         plain_loop(made("pytorch_optimizer", "ADOPT"), FIXED), {}, frozenset({COPIES})),
    Case("schedulefree_sgd", "schedulefree", schedule_free_loop("SGDScheduleFree", lr=0.1), {"lr": 0.1}),
    Case("schedulefree_adamw", "schedulefree", schedule_free_loop("AdamWScheduleFree"), {}, frozenset({SCALES})),
    Case("lion", "lion_pytorch", plain_loop(made("lion_pytorch", "Lion"), FIXED), {}, frozenset({COPIES})),
    Case("gdtuo", "gradient_descent_the_ultimate_optimizer",
         ultimate_loop(lambda package: package.Adam(alpha=1e-3, optimizer=package.SGD(alpha=1e-5))), {},
         WITH_GRAPH),
    Case("gdtuo", "gradient_descent_the_ultimate_optimizer",
         ultimate_loop(lambda package: package.SGD(alpha=0.01, optimizer=package.Adam(alpha=1e-3))),
         {"base": "sgd", "lr": 0.01, "meta": "adam", "meta_lr": 1e-3}, WITH_GRAPH),
    Case("gdtuo", "gradient_descent_the_ultimate_optimizer",
         ultimate_loop(lambda package: package.RMSProp(alpha=1e-3, optimizer=package.SGD(alpha=1e-4)), lambda a: a * a),
         {"base": "rmsprop", "meta_lr": 1e-4}, WITH_GRAPH),
]  # fmt: skip


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    given: Case = request.param
    pytest.importorskip(given.package, reason=f"pip install {PIP_NAMES[given.package]}")
    return given


every_case = pytest.mark.parametrize("case", CASES, indirect=True, ids=str)


@pytest.fixture(scope="module")
def benchmark() -> Any:
    return make_stream("permuted_inputs", n_experiences=2, samples_per_experience=N_SAMPLES // 2)


def samples_of(benchmark: Any) -> Samples:
    return [
        (torch.as_tensor(x)[None], torch.as_tensor([int(y)]))
        for experience in benchmark.train_stream
        for x, y, *_ in experience.dataset
    ]


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@every_case
def test_it_is_the_package_s_optimizer_in_a_plain_loop(case: Case, benchmark: Any) -> None:
    theirs = small_network()
    losses, step_sizes = case.loop(theirs, samples_of(benchmark))

    ours, seen = small_network(), Collector()
    optimizer = make_optimizer(case.name, ours, **case.options)
    OnlineLearner(model=ours, optimizer=optimizer, recorder=seen).train(benchmark.train_stream)

    assert seen.all("loss") == losses
    for mine, original in zip(weights(ours), (p.detach() for _, p in named_tensors(theirs)), strict=True):
        assert mine.equal(original)
    assert step_sizes_of(optimizer) == pytest.approx(step_sizes, rel=1e-12)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, also where a package has put tensors of another kind in their place."""
    for module in model.children():
        for name, p in module._parameters.items():
            assert p is not None
            yield name, p


@pytest.mark.slow
@every_case
def test_what_they_break_of_the_contract(case: Case) -> None:
    findings = run_contract(partial(load_target(case.name), **case.options))
    assert {requirement for requirement, finding in findings.items() if finding} == case.broken


# with settings that get going within a few hundred samples
LEARNING: list[tuple[str, str, dict[str, Any], bool]] = [
    ("dog", "dog", {"reps_rel": 0.01}, True),
    ("ldog", "dog", {"reps_rel": 0.01}, True),
    ("prodigy", "prodigyopt", {"d0": 1e-4}, True),
    ("dadapt_sgd", "dadaptation", {"d0": 1e-4}, True),
    ("dadapt_adam", "dadaptation", {"d0": 1e-4}, True),
    ("dadapt_adagrad", "dadaptation", {"d0": 0.01}, True),
    ("mechanic", "mechanic_pytorch", {"s_init": 1e-5}, True),
    ("trac", "pytorch_optimizer", {"s_prev": 1e-4}, True),
    ("pytorch_optimizer:AdaBelief", "pytorch_optimizer", {}, False),
    ("schedulefree_sgd", "schedulefree", {"lr": 0.1}, False),
    ("schedulefree_adamw", "schedulefree", {}, False),
    ("lion", "lion_pytorch", {"lr": 1e-3}, False),
    ("gdtuo", "gradient_descent_the_ultimate_optimizer", {}, True),
]


def run_config(name: str, options: dict[str, Any], **changes: Any) -> RunConfig:
    content = {
        "stream": {"name": "permuted_inputs", "n_experiences": 2, "samples_per_experience": 200},
        "network": {"name": "mlp", "hidden": [16]},
        "learner": {"name": name, **options},
        "record_every": 50,
    }
    return RunConfig.model_validate(content | changes).resolved()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "package", "options", "learns"), LEARNING, ids=lambda value: str(value))
def test_runs_record_their_step_sizes(
    tmp_path: Path, name: str, package: str, options: dict[str, Any], learns: bool
) -> None:
    pytest.importorskip(package)
    config = run_config(name, options)
    assert run_one(config, tmp_path / "run") == "finished"
    assert config.learned_step_sizes is learns
    tables = read_tables(tmp_path / "run")
    accuracy = np.mean(tables["steps"]["correct"].to_numpy(zero_copy_only=False))
    if name == "trac":  # Σs was soon negative, and its weights back at the initial ones
        assert accuracy < 0.2
    else:
        assert accuracy > 0.25
    step_sizes = tables["step_sizes"]
    assert set(step_sizes["step"].to_pylist()) == set(range(0, 400, 50))
    recorded = step_sizes["step_size"].to_pylist()
    assert all(np.isfinite(recorded))
    assert (len(set(recorded)) > 1) is learns
