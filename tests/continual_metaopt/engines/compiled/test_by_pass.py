"""The compiled engine with optimizers whose update is a pass, against the torch engine on the same samples."""

import copy
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from numba.core.environment import Environment
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from continual_metaopt.analysis.run_directory import TABLES
from continual_metaopt.engines.compiled import passes
from continual_metaopt.engines.compiled.by_pass import by_pass_or_why_not
from continual_metaopt.engines.compiled.engine import why_not_compiled
from continual_metaopt.optim.base import settings_of
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.controls.schedules import WarmUpCosine
from continual_metaopt.optim.elementwise import Elementwise, where
from continual_metaopt.optim.registry import make_optimizer
from continual_metaopt.study.comparing import compare
from tests.continual_metaopt.conftest import read_tables
from tests.continual_metaopt.engines.compiled.test_engine import (
    CNN_SHAPE,
    DOUBLE,
    NAN,
    SINGLE,
    Twins,
    made,
    part,
    samples,
)
from tests.continual_metaopt.runs.conftest import COMPILED

N = 60

LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd_hd": ("sgd_hd", {"lr": 0.01, "meta_lr": 1e-4}),
    "sgd_hd, momentum": (
        "sgd_hd",
        {"lr": 0.01, "meta_lr": 1e-4, "momentum": 0.8, "dampening": 0.1, "weight_decay": 0.1},
    ),
    "sgd_hd, nesterov": ("sgd_hd", {"lr": 0.01, "meta_lr": 1e-4, "momentum": 0.8, "nesterov": True}),
    "adam_hd": ("adam_hd", {"lr": 1e-3, "meta_lr": 1e-6, "weight_decay": 0.1}),
    **{
        f"meta_mirror_descent, q = {q}": (
            "meta_mirror_descent",
            {"lr": 0.01, "meta_lr": 0.01, "q": q, "weight_decay": 0.1},
        )
        for q in (0.0, 1.0, -1.0)
    },
    "cosine": ("cosine", {"lr": 0.01, "n_samples": N, "weight_decay": 0.1}),
    "cosine, sgdm": ("cosine", {"lr": 0.01, "n_samples": N, "base": "sgdm"}),
    "cosine_restarts_told": ("cosine_restarts_told", {"lr": 0.01, "final": 0.1}),
    "torch:SGD": ("torch:SGD", {"lr": 0.01, "weight_decay": 0.1}),
    "torch:SGD, momentum": ("torch:SGD", {"lr": 0.01, "momentum": 0.8}),
    "torch:Adam": ("torch:Adam", {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1}),
    "torch:AdamW": ("torch:AdamW", {"lr": 0.01, "eps": 1e-3}),
    "torch:RMSprop": ("torch:RMSprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-3}),
    "torch:RMSprop, momentum": ("torch:RMSprop", {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1}),
    "torch:Adagrad": ("torch:Adagrad", {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.1}),
    "torch:Adagrad, start": ("torch:Adagrad", {"lr": 0.05, "initial_accumulator_value": 0.1, "eps": 1e-3}),
    "dog": ("dog", {"reps_rel": 0.01}),
    "dog, decay": ("dog", {"reps_rel": 0.01, "averaging": 2.0, "weight_decay": 0.1}),
    "dog, no averaging": ("dog", {"reps_rel": 0.01, "averaging": None, "init_eta": 0.1}),
    "dadapt_sgd": ("dadapt_sgd", {"d0": 0.01, "weight_decay": 0.1}),
    "dadapt_sgd, momentum": ("dadapt_sgd", {"d0": 0.01, "momentum": 0.8, "growth_rate": 1.1}),
    "dadapt_adam": ("dadapt_adam", {"d0": 1e-3, "weight_decay": 0.1}),
    "dadapt_adam, decoupled": (
        "dadapt_adam",
        {"d0": 1e-3, "weight_decay": 0.1, "decouple": True, "use_bias_correction": True},
    ),
    "dadapt_adagrad": ("dadapt_adagrad", {"d0": 0.01, "momentum": 0.5, "weight_decay": 0.1}),
    "prodigy": ("prodigy", {"d0": 1e-3, "weight_decay": 0.1, "use_bias_correction": True}),
    "prodigy, others": (
        "prodigy",
        {"d0": 1e-3, "betas": (0.0, 0.99), "safeguard_warmup": True, "decouple": False, "growth_rate": 1.1},
    ),
    "sps": ("sps", {"lr": 0.05, "smoothing": 20.0}),
    "sps, bounded": ("sps", {"lr": 0.1, "smoothing": None, "c": 2.0, "least_loss": 0.9}),
    "obgd": ("obgd", {}),
    "obgd, squared error": ("obgd", {"lr": 0.2, "kappa": 1.5, "error": "squared_error"}),
    "cocob": ("cocob", {}),
    "cocob, decay": ("cocob", {"alpha": 20.0, "weight_decay": 0.1}),
    "exponentiated_gradient": ("exponentiated_gradient", {"lr": 0.01, "gain_lr": 0.1, "scale_lr": 0.1}),
    "exponentiated_gradient, products": (
        "exponentiated_gradient",
        {"lr": 0.01, "gain_lr": 0.1, "scale_lr": 0.1, "normalized": False},
    ),
    "idbd_network": ("idbd_network", {"lr": 0.05, "meta_lr": 0.1}),
    "idbd_network, limits": (
        "idbd_network",
        {"lr": 0.05, "meta_lr": 0.1, "max_change": 1e-3, "min_log_step_size": -3.0},
    ),
    "idbd_rmsprop": ("idbd_rmsprop", {"lr": 0.01, "meta_lr": 0.1, "decay": 0.9}),
    "upgd": ("upgd", {"lr": 0.05, "sigma": 0.1, "weight_decay": 0.1, "beta_utility": 0.9}),
    "shrink_and_perturb": ("shrink_and_perturb", {"lr": 0.01, "sigma": 0.5, "weight_decay": 0.1, "seed": 3}),
    "shrink_and_perturb, sgd": ("shrink_and_perturb", {"lr": 0.01, "base": "sgd", "sigma": 0.5}),
    "l2_init": ("l2_init", {"lr": 0.01, "pull": 0.1}),
    "l2_init, lion": ("l2_init", {"lr": 1e-3, "base": "lion", "weight_decay": 0.1}),
    "weight_clipping": ("weight_clipping", {"lr": 0.05, "bound": 0.8}),
    "aruba_told": ("aruba_told", {"lr": 0.1, "zeta": 2.0}),
    "adamw_lion_package": ("adamw_lion_package", {"lr": 0.01, "meta_lr": 0.01, "weight_decay": 0.1}),
}
each_learner = pytest.mark.parametrize(("name", "options"), LEARNERS.values(), ids=LEARNERS)


class PassTwins(Twins):
    """Twins of any optimizer."""

    def __init__(self, model: nn.Module, make: Callable[[nn.Module], Any], rtol: float = 1e-9) -> None:
        super().__init__(model, make, rtol=rtol)
        self.make = make

    def compare(self) -> None:
        reference = self.learners[0]
        for learner in self.learners[1:]:
            pairs = zip(reference.model.named_parameters(), learner.model.parameters(), strict=True)
            for (name, expected), found in pairs:
                self._close(found, expected, name)
                assert found.stride() == expected.stride()
            self._alike(learner.optimizer.state_dict(), reference.optimizer.state_dict(), "optimizer")

    def renew(self) -> None:
        """Let each go on as a new optimizer with the other's state, which gives the same."""
        states = [copy.deepcopy(learner.optimizer.state_dict()) for learner in self.learners]
        for learner, state in zip(self.learners, reversed(states), strict=True):
            learner.optimizer, learner.compiled = self.make(learner.model), None
            learner.optimizer.load_state_dict(state)

    def _alike(self, found: Any, expected: Any, what: str) -> None:
        if isinstance(expected, dict | list | tuple):
            keys = list(expected) if isinstance(expected, dict) else list(range(len(expected)))
            assert (list(found) if isinstance(found, dict) else list(range(len(found)))) == keys, what
            for key in keys:
                self._alike(found[key], expected[key], f"{key} of {what}")
        elif isinstance(expected, torch.Tensor | float) and not isinstance(expected, bool):
            self._close(found, expected, what)
        else:
            assert found == expected, what


def network(dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    layers = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 2 * 2, 3)
    return made(*layers, dtype=dtype)


def by_layers(name: str, **options: Any) -> Callable[[nn.Module], Any]:
    """A learner with a param group for each layer."""
    kind: Any = type(make_optimizer(name, network(), **options))
    taken = inspect.signature(kind).parameters
    return lambda model: kind(
        blocks(model, "layerwise"), **{option: value for option, value in options.items() if option in taken}
    )


def learn(twins: PassTwins, dataset: Any, record_every: int = 1) -> None:
    assert twins.learn(dataset, record_every) is None
    twins.compare()
    if hasattr(twins.learners[0].optimizer, "begin_experience"):
        twins.change(lambda model, optimizer: optimizer.begin_experience())  # type: ignore[attr-defined]


@each_learner
def test_agrees_with_the_torch_engine_step_by_step(name: str, options: dict[str, Any]) -> None:
    twins, dataset = PassTwins(network(), by_layers(name, **options)), samples(N, CNN_SHAPE)
    start = network()
    for first, last in ((0, 1), (1, 2), (2, 20)):
        learn(twins, part(dataset, first, last))
    twins.renew()
    learn(twins, part(dataset, 20, 40), record_every=7)
    twins.swap()
    learn(twins, part(dataset, 40, N), record_every=3)
    moved = [(a - b).abs().max() for a, b in zip(start.parameters(), twins.learners[0].model.parameters(), strict=True)]
    assert min(moved) > 1e-4, "the weights have hardly moved"


@pytest.mark.slow
@each_learner
def test_agrees_in_single_precision(name: str, options: dict[str, Any]) -> None:
    twins = PassTwins(network(SINGLE), by_layers(name, **options), rtol=1e-4)
    dataset = samples(30, CNN_SHAPE, dtype=SINGLE)
    for first, last in ((0, 10), (10, 30)):
        learn(twins, part(dataset, first, last))


@pytest.mark.parametrize("frozen", [("0.weight", "0.bias"), ("4.bias",)], ids=str)
@pytest.mark.parametrize(
    "name", ["sps", "obgd", "exponentiated_gradient", "idbd_network", "adam_hd", "cosine", "dog", "prodigy"]
)
def test_frozen_parameters_stay(name: str, frozen: tuple[str, ...]) -> None:
    model = network()
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name not in frozen)
    twins = PassTwins(model, by_layers(name, **LEARNERS[name][1]))
    learn(twins, samples(20, CNN_SHAPE))
    for parameter_name, parameter in twins.learners[1].model.named_parameters():
        assert parameter.equal(model.get_parameter(parameter_name)) is (parameter_name in frozen)


@pytest.mark.parametrize("name", ["sps", "cocob", "adam_hd", "torch:AdamW", "dadapt_adam"])
def test_a_loss_that_is_not_a_number_stops_at_the_same_step(name: str) -> None:
    dataset = samples(20, CNN_SHAPE)
    dataset.tensors[0][13] = NAN
    twins = PassTwins(network(), by_layers(name, **LEARNERS[name][1]))
    outcome = twins.learn(dataset)
    assert outcome is not None
    assert outcome.startswith("Diverged: ")
    assert len(twins.seen[0]) == len(twins.seen[1]) == 13
    twins.compare()


def test_a_step_size_that_is_set_counts() -> None:
    """As a scheduler sets it, also for step sizes of single weights."""
    for name in ("idbd_network", "sgd_hd", "cosine"):
        twins = PassTwins(network(), by_layers(name, **LEARNERS[name][1]))
        learn(twins, samples(10, CNN_SHAPE))
        twins.change(lambda model, optimizer: optimizer.param_groups[0].update(lr=1e-3))
        learn(twins, samples(10, CNN_SHAPE, seed=1))


# ---------------------------------------------------------------------------------------------------- what is refused


class Plain(Elementwise):
    """Gradient descent."""

    def __init__(self, params: ParamsT, lr: float = 0.1) -> None:
        super().__init__(params, settings_of(locals()))

    @staticmethod
    def move(w: Any, g: Any, lr: float) -> Any:
        return w - lr * g


class Chooses(Plain):
    @staticmethod
    def move(w: Any, g: Any, lr: float) -> Any:
        return w - lr * where(g > 0, g, 0.5 * g)


class Branches(Plain):
    @staticmethod
    def move(w: Any, g: Any, lr: float) -> Any:
        if g > 0:
            w = w - lr * g
        return w


class Operates(Plain):
    @staticmethod
    def move(w: Any, g: Any, lr: float) -> Any:
        return w - lr * torch.tanh(g)


class Loops(Plain):
    @staticmethod
    def move(w: Any, g: Any, lr: float) -> Any:
        for _ in range(2):
            w = w - lr * g
        return w


class Asks(Plain):
    @staticmethod
    def move(w: Any, g: Any, rate: float) -> Any:
        return w - rate * g


class Updates(Plain):
    def _update(self, loss: Any) -> None:
        super()._update(loss)


def without_source(model: nn.Module) -> Optimizer:
    names: dict[str, Any] = {}
    exec("def move(w, g, lr): return w - lr * g", names)
    kind: Any = type("Unwritten", (Plain,), {"move": staticmethod(names["move"])})
    made: Optimizer = kind(model.parameters())
    return made


def with_a_hook(model: nn.Module) -> Optimizer:
    optimizer = Plain(model.parameters())
    optimizer.register_step_post_hook(lambda *arguments: None)
    return optimizer


def with_another_step(model: nn.Module) -> Optimizer:
    optimizer = Plain(model.parameters())
    optimizer.step = optimizer.step  # type: ignore[method-assign]
    return optimizer


def with_two_bases(model: nn.Module) -> Optimizer:
    first, *others = model.parameters()
    groups: list[dict[str, Any]] = [{"params": [first], "base": "sgd"}, {"params": others}]
    return WarmUpCosine(groups, n_samples=9)


def of(kind: Any, **options: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: kind(model.parameters(), **options)


REFUSED: dict[str, tuple[Callable[[nn.Module], Optimizer], str | None]] = {
    "nothing": (of(Plain), None),
    "where": (of(Chooses), None),
    "if": (of(Branches), "Branches.move has an 'if' about a weight; use where()"),
    "operation": (of(Operates), "Operates.move holds 'torch.tanh(g)', which has no compiled form"),
    "loop": (of(Loops), "Loops.move holds 'for _ in range(2):\n    w = w - lr * g', which has no compiled form"),
    "argument": (of(Asks), "Asks.move asks for 'rate', which is no number of its groups"),
    "source": (without_source, "the text of move cannot be found"),
    "update": (of(Updates), "Updates has an update of its own"),
    "hook": (with_a_hook, "the optimizer has hooks"),
    "step": (with_another_step, "the optimizer's step() has been replaced"),
    "bases": (with_two_bases, "param groups have different base updates"),
    "nesterov": (
        of(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        "there is no compiled code for SGD with nesterov",
    ),
    "centered": (of(torch.optim.RMSprop, centered=True), "there is no compiled code for RMSprop with centered"),
    "unknown": (of(torch.optim.Rprop), "Rprop is not written as functions of single numbers"),
}


@pytest.mark.parametrize(("make", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_compiled_form_is_refused(make: Callable[[nn.Module], Optimizer], expected: str | None) -> None:
    model = network()
    assert why_not_compiled(model, make(model), nn.CrossEntropyLoss()) == expected


# ------------------------------------------------------------------------------------------- an optimizer of one's own

RULE = '''
from continual_metaopt.optim.base import settings_of
from continual_metaopt.optim.elementwise import Elementwise, exp, log, maximum, sqrt, where

TINY = 1e-6


class Own(Elementwise):
    """Normalised descent, with a step size that follows the loss."""

    keeps = ("mean", "seen")
    measures = {"largest": "max", "size": "sum"}
    decides = ("lr",)
    over_all_groups = True
    wants_loss = True

    def __init__(self, params, lr=0.01, *, decay=0.9):
        super().__init__(params, settings_of(locals()))

    @staticmethod
    def measure(g, mean):
        return abs(g), g * mean

    @staticmethod
    def decide(lr, loss, largest, size):
        return lr * 1.01 if size > 0 and loss < 10.0 else lr / (1 + 0.1 * largest)

    @staticmethod
    def move(w, g, mean, seen, lr, decay, step):
        mean = decay * mean + (1 - decay) * g
        seen = maximum(seen, abs(g))
        return w - lr * _normalised(where(g > 0, mean, g) / (1 - decay**step), seen), mean, seen

    @staticmethod
    def log_step_size(seen, lr):
        return log(lr) - log(seen)


def _normalised(g, seen):
    return g / (sqrt(seen) + exp(-seen) + TINY)
'''

LEARNER = """
from continual_metaopt import register_learner


@register_learner("own_elementwise", "an optimizer of the test's own")
def own_elementwise(model, *, lr: float = 0.01, decay: float = 0.9):
    from continual_metaopt import blocks
    from own_package.rule import Own

    return Own(blocks(model, "layerwise"), lr, decay=decay)
"""

PROBE = """
import os, sys
from continual_metaopt.runs.directory import RunDirectory

def finish(self, *arguments, finish=RunDirectory.finish, **options):
    finish(self, *arguments, **options)
    (self.path / "modules").write_text(f"{os.getpid()} {' '.join(sys.modules)}")

RunDirectory.finish = finish
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package in a folder where workers find it."""
    from continual_metaopt.runs.directory import RunDirectory

    folder = tmp_path / "own_package"
    folder.mkdir()
    for name, text in (("__init__", ""), ("rule", RULE), ("learner", LEARNER + PROBE)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(RunDirectory, "finish", RunDirectory.finish)  # which the probe changes here too
    for name in ("own_package", "own_package.rule", "own_package.learner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return "own_package"


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
def test_an_optimizer_of_another_package_is_compiled(own_package: str) -> None:
    rule = importlib.import_module(f"{own_package}.rule")
    twins = PassTwins(network(), lambda model: rule.Own(blocks(model, "layerwise")))
    learn(twins, samples(N, CNN_SHAPE))


def test_the_next_process_loads_what_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 1)
    by_pass, _ = by_pass_or_why_not(make_optimizer("sgd_hd", model))
    assert by_pass is not None
    passes.address_of(by_pass.of, np.float32)
    monkeypatch.setattr(Environment, "_memo", WeakValueDictionary())  # of what this process has compiled
    assert passes._made.__wrapped__(by_pass.of, np.dtype(np.float32))._cache_hits == 1


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
def test_an_optimizer_of_another_package_runs_without_torch(own_package: str, tmp_path: Path) -> None:
    study = {
        "name": "own",
        "imports": [f"{own_package}.learner"],
        "stream": {"name": "tracking", "n_samples": 90, "samples_per_experience": 30},
        "network": {"name": "linear"},
        "learners": [{"name": "own_elementwise", "lr": 0.02}],
        "seeds": [0, 1],
        "record_every": 10,
    }
    for engine in ("auto", "torch"):
        compare(study, out=tmp_path / engine, engine=engine, workers=2, progress=False)
    found, expected = (sorted((tmp_path / engine).rglob("status.json")) for engine in ("auto", "torch"))
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert str(COMPILED["reason"]) in ours.read_text()
        pid, *modules = (ours.parent / "modules").read_text().split()
        assert int(pid) != os.getpid()
        assert not {name.partition(".")[0] for name in modules} & {"torch", "avalanche"}
        tables = read_tables(ours.parent), read_tables(theirs.parent)
        for table in TABLES:
            assert tables[0][table].num_rows == tables[1][table].num_rows
        for table, column in (("samples", "loss"), ("step_sizes", "step_size")):
            values = [torch.tensor(content[table][column].to_numpy()) for content in tables]
            torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)
