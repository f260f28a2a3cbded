"""Descriptions of runs: what is accepted, what is refused in which words, what decides a run's identity."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
import torch
from torch import nn

from continual_metaopt import register_learner, register_network
from continual_metaopt.analysis.run_directory import ADDED
from continual_metaopt.learner.metrics.names import Diagnostic
from continual_metaopt.optim.registry import make_optimizer
from continual_metaopt.runs.components import Component, ConfigError, factory_of, options_model
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.streams.signatures import argument_descriptions
from tests.continual_metaopt.conftest import exactly, write_study
from tests.studies import load_study

if TYPE_CHECKING:
    from somewhere_else import Schedule

SAMPLE_RUNS = Path(__file__).parents[3] / "analysis" / "sample_runs"


# ---------------------------------------------------------------------------------------------------- single runs


def test_a_run_has_all_defaults_filled_in() -> None:
    run = RunConfig(learner=Component(name="fixed", lr=1)).resolved()

    assert run.learner.options == {"lr": 1.0, "base": "adamw", "weight_decay": 0.01}
    assert run.network.options == {"hidden": [128], "norm": "none", "growing_head": False}
    assert run.stream.options == {
        "source": "digits",
        "n_experiences": 10,
        "n_permutations": None,
        "samples_per_experience": None,
        "continued": False,
        "stationary": None,
        "frozen_after": 0,
        "transition_width": 0,
        "data_root": "data",
        "skip_unreadable": False,
        "memory_limit": 2000000000,
    }
    assert (run.label, run.learned_step_sizes) == ("fixed", False)
    assert run.resolved() == run


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": Component(name="class_split")},
        {"stream": Component(name="permuted_inputs", n_experiences=9)},
        {"network": Component(name="paper_cnn")},
        {"network": Component(name="mlp", hidden=[127])},
        {"learner": Component(name="fixed")},
        {"learner": Component(name="metaoptimize", gamma=0.99)},
        {"learner": Component(name="metaoptimize", meta_weight_decay=0.1)},
        {"seed": 1},
        {"record_every": 51},
        {"evaluate": False},
        {"diagnostics": ["plasticity"]},
    ],
)
def test_whatever_decides_the_result_changes_the_identity(changes: dict[str, Any]) -> None:
    assert RunConfig(**changes).resolved().run_id != RunConfig().resolved().run_id


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "another"},
        {"study": "another"},
        {"order": 3},
        {"purpose": "selection"},
        {"diagnostics_every": 10},  # of none
        # defaults spelled out, in another order, with other types of the same value
        {"learner": Component(name="metaoptimize", gamma="auto", lr=3e-4, lr_bounds=[1e-10, 1])},
        {"learner": Component(name="metaoptimize", meta_weight_decay=0)},
        {"network": Component(name="mlp", hidden=(128,))},
        {"stream": Component(name="permuted_inputs", stationary=None, source="digits")},
        # where files and pixels lie
        {"stream": Component(name="permuted_inputs", data_root="elsewhere", memory_limit=10**6)},
    ],
)
def test_what_does_not_decide_the_result_leaves_the_identity(changes: dict[str, Any]) -> None:
    assert RunConfig(**changes).resolved().run_id == RunConfig().resolved().run_id


def test_the_identity_is_that_of_versions_with_fewer_or_other_options() -> None:
    learner = Component(name="metaoptimize", lr=1e-5)
    config = RunConfig(stream=Component(name="tracking"), network=Component(name="linear"), learner=learner)
    assert config.resolved().run_id == "674ae0b78813"


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLE_RUNS.glob("metaoptimize-*")))
def test_runs_from_before_an_option_keep_their_identity(name: str) -> None:
    record = json.loads((SAMPLE_RUNS / name / "config.json").read_text(encoding="utf-8"))
    assert not ADDED.keys() & record["learner"].keys()
    run = RunConfig(**{name: record[name] for name in RunConfig.model_fields})
    assert run.run_id == run.resolved().run_id == record["run_id"]
    assert run.resolved().learner.options.items() >= ADDED.items()


def test_which_diagnostics_and_how_often_is_part_of_the_identity() -> None:
    def run_id(*names: str, every: int = 1000) -> str:
        return RunConfig(diagnostics=names, diagnostics_every=every).run_id

    assert run_id("plasticity", "weight_norm") == run_id("weight_norm", "plasticity", "plasticity")
    assert run_id("all") == run_id(*get_args(Diagnostic))
    different = [run_id(), run_id("plasticity"), run_id("plasticity", every=10), run_id("weight_norm"), run_id("all")]
    assert len(set(different)) == 5


@pytest.mark.parametrize("given", ["all", ["all"], ["plasticity", "all"]])
def test_all_stands_for_every_diagnostic(tmp_path: Path, given: Any) -> None:
    study = load_study(write_study(tmp_path / "tiny.yaml", {"diagnostics": given, "diagnostics_every": 7}))
    run = study.learners[0].run(0, study.learners[0].candidates[0])
    assert run.diagnostics == get_args(Diagnostic)
    assert run.diagnostics_every == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": Component(name="mlp", hidden="wide")}, "network.hidden: "),
        (
            {"learner": Component(name="metaoptimize", lr=2)},
            "learner 'metaoptimize': lr = 2.0 is outside lr_bounds = (1e-10, 1.0)",
        ),
        ({"learner": Component(name="fixed", tune={})}, "learner.tune: there is no such option"),
    ],
)
def test_mistakes_in_a_run_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        RunConfig(**changes).resolved()


def test_prefixes_are_left_to_the_real_network() -> None:
    prefixes = [["linear1"], ["linear2"]]

    assert (
        RunConfig(learner=Component(name="metaoptimize", step_sizes=prefixes)).resolved().learner.options["step_sizes"]
        == prefixes
    )


# ---------------------------------------------------------------------------------------------- options from functions


def test_options_have_the_defaults_and_descriptions_of_the_function() -> None:
    fields = options_model("learner", "metaoptimize", factory_of("learner", "metaoptimize")).model_fields

    assert list(fields) == [
        *("lr", "base", "meta", "meta_lr", "gamma", "weight_decay", "lr_bounds", "learn", "update_order"),
        *("parametrisation", "meta_every", "meta_weight_decay", "max_meta_change", "trace", "curvature"),
        *("curvature_smoothing", "curvature_clip", "trace_memory_limit", "step_sizes"),
    ]
    assert {name: fields[name].default for name in ("lr", "meta_lr", "lr_bounds")} == {
        "lr": 3e-4,
        "meta_lr": 0.01,
        "lr_bounds": (1e-10, 1.0),
    }
    assert fields["meta_lr"].description == "meta step size η."
    assert all(field.description for field in fields.values())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("stream", "class_split"),
        ("stream", "permuted_inputs"),
        ("network", "paper_cnn"),
        ("network", "mlp"),
        ("learner", "fixed"),
    ],
)
def test_every_option_of_this_package_is_described(kind: Any, name: str) -> None:
    fields = options_model(kind, name, factory_of(kind, name)).model_fields

    assert not {"seed", "model", "n_outputs", "input_shape", "self"} & fields.keys()
    assert all(field.description and not field.is_required() for field in fields.values())


def test_descriptions_of_several_lines_are_joined() -> None:
    text = """Do it.

    Args:
        a: one
            and two.
        b: three.
    """

    assert argument_descriptions(inspect.cleandoc(text)) == {"a": "one and two.", "b": "three."}
    assert argument_descriptions("") == {}
    assert argument_descriptions("Args:\n    a: one.") == {"a": "one."}
    assert argument_descriptions("Args:") == {}


def later(model: nn.Module, *, lr: "float" = 0.5, schedule: "Schedule | None" = None, steps: "list[int]" = [3]) -> Any:  # noqa: B006
    """A learner with a type that exists only for type checkers.

    Args:
        model: the network.
        lr: the step size.
    """
    return torch.optim.SGD(model.parameters(), lr=lr)


def undeclared(model, lr=0.5):
    return torch.optim.SGD(model.parameters(), lr=lr)


def with_any_options(model: nn.Module, *args: Any, lr: float = 0.5, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def with_objects(model: nn.Module, lr: float = 0.5, extra: nn.Module | None = None) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


class AsClass(torch.optim.SGD):
    def __init__(self, model: nn.Module, lr: float = 0.5) -> None:
        super().__init__(model.parameters(), lr=lr)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("factory", "given", "expected"),
    [
        (later, {}, {"lr": 0.5, "schedule": None, "steps": [3]}),
        (later, {"lr": 1, "schedule": "linear"}, {"lr": 1.0, "schedule": "linear", "steps": [3]}),
        (undeclared, {"lr": 2}, {"lr": 2}),
        (with_any_options, {}, {"lr": 0.5}),
        (with_any_options, {"lr": 1, "momentum": 0.5}, {"lr": 1.0, "momentum": 0.5}),
        (with_objects, {}, {"lr": 0.5, "extra": None}),
        (AsClass, {}, {"lr": 0.5}),
    ],
)
def test_learners_of_any_signature_can_be_described(
    factory: Callable[..., Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    register_learner("mine")(factory)

    run = RunConfig(learner=Component(name="mine", **given)).resolved()

    assert run.learner.options == expected
    assert run.learned_step_sizes is True
    assert make_optimizer("mine", nn.Linear(1, 1), **run.learner.options).param_groups[0]["lr"] == expected["lr"]


@pytest.mark.usefixtures("registries")
def test_types_that_can_be_read_are_checked_beside_others() -> None:
    register_learner("mine")(later)

    with pytest.raises(ConfigError, match=r"^learner\.steps\.0: Input should be a valid integer"):
        RunConfig(learner=Component(name="mine", steps=["x"])).resolved()


@pytest.mark.usefixtures("registries")
def test_options_without_a_default_are_required() -> None:
    @register_network("sized")
    def sized(n_outputs: int, input_shape: tuple[int, int, int], width: int) -> nn.Module:
        return nn.Linear(width, n_outputs)

    with pytest.raises(ConfigError, match=exactly("network.width: Field required")):
        RunConfig(network=Component(name="sized")).resolved()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", [n for n in vars(torch.optim) if n[0].isupper() and n not in ("Optimizer", "Muon", "SparseAdam", "LBFGS")]
)
def test_every_torch_optimizer_can_be_described_with_its_defaults(name: str) -> None:
    """Muon works with matrices only; the other two need what a run does not give them."""
    run = RunConfig(learner=Component(name=f"torch:{name}")).resolved()

    # the command line spells out all defaults
    assert RunConfig(**run.model_dump(mode="json")).resolved() == run
    made = make_optimizer(run.learner.name, nn.Linear(2, 2), **run.learner.options)
    default = getattr(torch.optim, name)(nn.Linear(2, 2).parameters())
    same = {key: value for key, value in default.defaults.items() if key in run.learner.options}
    assert {key: as_tuple(made.defaults[key]) for key in same} == {key: as_tuple(value) for key, value in same.items()}
    assert "lr" in same


def as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
