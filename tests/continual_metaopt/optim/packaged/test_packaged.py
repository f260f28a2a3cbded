"""Optimizers of other packages, against the packages driven by plain loops."""

import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt import OnlineLearner, make_optimizer
from continual_metaopt.commands.main import main
from continual_metaopt.contract import load_target, run_contract
from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.optim.registry import PIP_NAMES, MissingPackageError
from continual_metaopt.runs.components import ConfigError
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.run import run_one
from continual_metaopt.streams import make_stream
from tests.continual_metaopt.conftest import Collector, exactly, read_tables, small_network

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


GROWS = "After the last layer was replaced by a larger one, learning goes on."
SCALES = "step() writes neither to p.grad nor moves a parameter to other memory."
RESUMES = "state_dict, saved and loaded with weights_only=True, goes on bit for bit."
COPIES = "A deep copy together with its network goes on bit for bit."
LEARNS = "OnlineLearner runs it on a stream of two experiences; no step size or weight becomes infinite."
WITH_GRAPH = frozenset({RESUMES, COPIES, GROWS})
STUCK = frozenset({COPIES, GROWS, LEARNS})  # TRAC's factor has become 0

FIXED = first(lambda group: group["lr"])


def mechanic_factor(lr: float) -> Report:
    return lambda optimizer: lr * float(optimizer.state["_mechanic"]["s"].sum())


def trac_factor(lr: float) -> Report:
    return lambda optimizer: lr * max(0.0, float(optimizer.state["trac"]["s"]))


CASES = [
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
    OnlineLearner(model=ours, optimizer=optimizer, recorder=seen, engine="torch").train(benchmark.train_stream)

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
    step_sizes = tables["step_sizes"]
    assert set(step_sizes["step"].to_pylist()) == set(range(0, 400, 50))
    recorded = step_sizes["step_size"].to_pylist()
    assert all(np.isfinite(recorded))
    if name != "trac":  # whose factor is soon negative, so that it goes back to the initial weights and stays there
        assert (len(set(recorded)) > 1) is learns
        assert np.mean(tables["samples"]["correct"].to_pylist()) > 0.18  # with ten classes


@pytest.mark.parametrize(
    ("name", "package", "options"),
    [
        ("schedulefree_adamw", "schedulefree", {}),
        ("mechanic", "mechanic_pytorch", {"s_init": 1e-4}),
    ],
)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, name: str, package: str, options: dict[str, Any]
) -> None:
    pytest.importorskip(package)
    stream = {"name": "permuted_inputs", "n_experiences": 3, "samples_per_experience": 30}
    config = run_config(name, options, stream=stream, record_every=10)
    asked: list[int] = []

    def stop_at_second_portion() -> bool:
        asked.append(1)
        return len(asked) == 2

    assert run_one(config, tmp_path / "whole") == "finished"
    assert run_one(config, tmp_path / "parts", should_stop=stop_at_second_portion) == "failed"
    assert run_one(config, tmp_path / "parts") == "finished"
    whole, parts = read_tables(tmp_path / "whole"), read_tables(tmp_path / "parts")
    assert all(parts[table].equals(whole[table]) for table in whole)


def test_trac_follows_its_recursion() -> None:
    """In double precision, since single precision loses the first steps; Σs to the six digits of its error function."""
    pytest.importorskip("pytorch_optimizer")
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(5, generator=generator, dtype=torch.float64)
    lr, eps, scale = 0.1, 1e-8, 1e-2
    model = nn.Linear(5, 1, bias=False).double()
    start = model.weight.detach().clone()[0]
    optimizer: Any = make_optimizer("trac", model, base="sgd", lr=lr, s_prev=scale)

    w, total = start.clone(), 0.0
    betas = np.array([0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999])
    variance, sigma = np.zeros(6), np.full(6, 1e-8)
    for _ in range(100):
        optimizer.zero_grad()
        (0.5 * (model.weight[0] - target).square().sum()).backward()
        optimizer.step()

        gradient = w - target
        distance = (w - start) / (total + eps)
        h = float(distance @ gradient)
        variance, sigma = betas**2 * variance + h**2, betas * sigma - h
        ratio = sigma / (np.sqrt(2 * variance) + eps)
        total = float((scale * scipy.special.erfi(ratio) / scipy.special.erfi(2**-0.5)).sum())
        w = start + max(total, 0) * (distance - lr * gradient)
        assert optimizer.step_size_report()["all"] == pytest.approx(lr * max(total, 0), rel=1e-3, abs=1e-12)
    assert torch.allclose(model.weight[0], w, rtol=1e-3)


def test_trac_stays_at_the_initial_weights_once_it_is_back_there() -> None:
    pytest.importorskip("pytorch_optimizer")
    model = nn.Linear(1, 1, bias=False).double()
    start = model.weight.item()
    optimizer: Any = make_optimizer("trac", model, base="sgd", lr=0.1, s_prev=1e-2)
    seen = []
    for gradient in [-1.0, -1.0, 50.0, *[-1.0] * 20]:
        model.weight.grad = torch.full_like(model.weight, gradient)
        optimizer.step()
        seen.append(model.weight.item())
    assert seen[1] > start
    assert seen[2:] == [start] * 21


@pytest.mark.parametrize("name", [*dict.fromkeys(case.name for case in CASES)])
def test_a_missing_package_is_told_with_its_pip_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (module,) = {case.package for case in CASES if case.name == name}
    for loaded in list(sys.modules):
        if loaded.startswith("continual_metaopt.optim.packaged."):
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    message = (
        f"the learner '{name}' needs a package that is not installed: pip install {PIP_NAMES[module]} "
        "(or, in the clone, pip install -e '.[peers]' for all optimizers of other packages)"
    )
    with pytest.raises(MissingPackageError, match=exactly(message)):
        make_optimizer(name, nn.Linear(1, 1))
    with pytest.raises(ConfigError, match=exactly(f"learner.name: {message}")):
        run_config(name, {})
    assert main(["run", "--learner.name", name]) == 2
    assert capsys.readouterr().err == f"continual-metaopt: {message}\n"


def test_unknown_and_unsuitable_optimizers_of_pytorch_optimizer_are_named() -> None:
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ValueError, match=r"^unknown optimizer in pytorch_optimizer 'Lam'\. Did you mean 'Lamb'\?"):
        make_optimizer("pytorch_optimizer:Lam", nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"^unknown optimizer in pytorch_optimizer 'Lookahead'\."):
        make_optimizer("pytorch_optimizer:Lookahead", nn.Linear(1, 1))  # is given another optimizer


def test_the_extra_names_all_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())["project"]
    named = {re.split("[<>=]", line)[0] for line in project["optional-dependencies"]["peers"]}
    assert named == {*PIP_NAMES.values(), "pydmd"}  # the latter for a benchmark
