"""Learners by name."""

import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from continual_metaopt.analysis.families import FAMILIES, family
from continual_metaopt.networks.paper_cnn import PaperCNN
from continual_metaopt.optim import registry
from continual_metaopt.optim.base_updates import BASE_UPDATES, Base, Lion
from continual_metaopt.optim.meta_updates import META_UPDATES, Meta
from continual_metaopt.optim.metaoptimize import MetaOptimize, metaoptimize
from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.optim.registry import (
    LEARNERS,
    SPACES_OF_BASES,
    SPECS,
    STEP_SIZES,
    Family,
    NoSearchSpaceError,
    is_inside,
    is_range,
    known_of_the_stream,
    learner_factory,
    learner_of,
    learns_step_sizes,
    make_optimizer,
    nothing_to_tune,
    register_learner,
    search_space,
)
from continual_metaopt.runs.components import Component, ConfigError
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.streams import UnknownNameError
from continual_metaopt.streams.signatures import described_options

from ..conftest import environment, exactly, known_learners

KNOWN = known_learners()


def offered_elsewhere(model: nn.Module, momentum: float = 0.5) -> torch.optim.Optimizer:
    """The learner that a test pretends another package to offer."""
    return torch.optim.SGD(model.parameters(), lr=0.25, momentum=momentum)


def test_metaoptimize_by_name_has_a_step_size_for_each_block() -> None:
    optimizer = make_optimizer("metaoptimize", PaperCNN(), lr=2e-4, base="lion", meta_lr=0.03)

    assert isinstance(optimizer, MetaOptimize)
    assert optimizer.base == Lion()
    assert step_sizes_of(optimizer) == dict.fromkeys(["conv1", "conv2", "linear1", "linear2"], 2e-4)
    assert {group["meta_lr"] for group in optimizer.param_groups} == {0.03}


def test_fixed_by_name_keeps_its_step_size() -> None:
    model = nn.Linear(2, 1)
    optimizer = make_optimizer("fixed", model, lr=0.125, weight_decay=0.0, base="sgd")
    weight = model.weight.detach().clone()

    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    assert step_sizes_of(optimizer) == {"all": 0.125}
    assert torch.allclose(model.weight, weight - 3 * 0.125)


def test_torch_optimizers_by_name_take_their_options() -> None:
    model = PaperCNN()

    optimizer = make_optimizer("torch:AdamW", model, lr=0.02, betas=(0.8, 0.9), weight_decay=0.3)

    assert type(optimizer) is torch.optim.AdamW
    assert {key: optimizer.param_groups[0][key] for key in ("lr", "betas", "weight_decay")} == {
        "lr": 0.02,
        "betas": (0.8, 0.9),
        "weight_decay": 0.3,
    }
    assert [len(group["params"]) for group in optimizer.param_groups] == [8]


def test_torch_optimizers_leave_frozen_parameters_out() -> None:
    model = PaperCNN()
    model.conv1.requires_grad_(False)

    assert len(make_optimizer("torch:SGD", model).param_groups[0]["params"]) == 6


@pytest.mark.usefixtures("registries")
def test_a_registered_learner_is_made_with_its_options() -> None:
    @register_learner("halves", "an example")
    def halves(model: nn.Module, *, lr: float = 0.5) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=lr / 2)

    assert step_sizes_of(make_optimizer("halves", nn.Linear(1, 1), lr=3.0)) == {"group0": 1.5}
    assert LEARNERS.descriptions()["halves"] == "an example"
    assert halves is learner_factory("halves")


@pytest.mark.usefixtures("registries")
def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ValueError, match=exactly("there is already a learner named 'fixed'; choose another name")):
        register_learner("fixed")(offered_elsewhere)


def test_a_learner_of_another_package_is_found(offer: Callable[[str, str, str], None]) -> None:
    offer("continual_metaopt.learners", "theirs", f"{__name__}:offered_elsewhere")

    optimizer = make_optimizer("theirs", nn.Linear(1, 1), momentum=0.75)

    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.25, 0.75)
    assert list(LEARNERS)[-1] == "theirs"
    assert LEARNERS.descriptions()["theirs"] == f"from {__name__}:offered_elsewhere"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "metaoptimise",
            f"unknown learner 'metaoptimise'. Did you mean 'metaoptimize'? Known: {KNOWN}",
        ),
        (
            "MetaOptimize",
            f"unknown learner 'MetaOptimize'. Did you mean 'metaoptimize'? Known: {KNOWN}",
        ),
        (
            "SGD",
            "there is no learner 'SGD': write fixed with base sgd for this update with fixed step sizes, or torch:SGD "
            "for PyTorch's own optimizer",
        ),
        ("qqq", f"unknown learner 'qqq'. Known: {KNOWN}"),
        ("torch:Optimizer", "unknown optimizer in torch.optim 'Optimizer'. "),
        ("torch:lr_scheduler", "unknown optimizer in torch.optim 'lr_scheduler'. "),
        ("torch:adam", "unknown optimizer in torch.optim 'adam'. Did you mean 'Adam'? "),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        make_optimizer(name, nn.Linear(1, 1))

    if name.startswith("torch:"):
        assert str(caught.value).startswith(message)
        assert ", AdamW, " in str(caught.value)
    else:
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda model: MetaOptimize(model.parameters(), lr=0.1), {"group0": 0.1}),
        (
            lambda model: MetaOptimize([{"params": [p], "name": n} for n, p in model.named_parameters()], lr=0.1),
            {"weight": 0.1, "bias": 0.1},
        ),
        (
            lambda model: MetaOptimize([{"params": [p]} for p in model.parameters()], lr=0.1, step_sizes="scalar"),
            {"all": 0.1},
        ),
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), {"group0": 0.1}),
        (
            lambda model: torch.optim.SGD(
                [{"params": [model.weight], "lr": 0.2}, {"params": [model.bias], "name": "bias"}], lr=0.1
            ),
            {"group0": 0.2, "bias": 0.1},
        ),
        (lambda model: torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.5)), {"group0": 0.5}),
    ],
)
def test_step_sizes_of_any_optimizer(make: Callable[[nn.Module], torch.optim.Optimizer], expected: Any) -> None:
    found = step_sizes_of(make(nn.Linear(1, 1)))

    assert found == expected
    assert {type(value) for value in found.values()} == {float}


@pytest.mark.parametrize(
    ("name", "options", "learns"),
    [
        ("metaoptimize", {}, True),
        ("metaoptimize", {"meta_lr": 0.01}, True),
        ("metaoptimize", {"meta_lr": 0.0}, False),
        ("fixed", {}, False),
        ("torch:AdamW", {}, False),
        ("pytorch_optimizer:Lamb", {}, False),
        ("pytorch_optimizer:TRAC", {}, True),
        ("lion", {}, False),
        ("schedulefree_sgd", {}, False),
        ("prodigy", {}, True),
        ("of_another_package", {}, True),
    ],
)
def test_learners_with_fixed_step_sizes_are_known_as_such(name: str, options: dict[str, Any], learns: bool) -> None:
    assert learns_step_sizes(name, options) is learns


@pytest.mark.parametrize(("declared", "rules"), [(Base, BASE_UPDATES), (Meta, META_UPDATES)])
def test_every_rule_can_be_named_in_a_study(declared: Any, rules: Any) -> None:
    assert sorted(declared.__args__) == sorted(rules)


def test_two_horizons_do_not_go_with_signs() -> None:
    message = (
        'gamma="auto" takes a share off the meta gradient, but the meta update "lion" sees its sign alone: '
        "give gamma a number, such as 0.999"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        metaoptimize(torch.nn.Linear(2, 1), meta="lion")


class OfAnotherPackage(torch.optim.SGD):
    """With options of many kinds, as optimizers of other packages have them."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        n: int = 2,
        undeclared=3,
        momentum: float = 0,
        nus: tuple[float, float] = (1.0, 1.0),
        widths: tuple[int, ...] = (1,),
        limit: float | None = None,
        growth: float = math.inf,
    ) -> None:
        super().__init__(params, lr, momentum)
        self.given = {"n": n, "undeclared": undeclared, "nus": nus, "widths": widths, "limit": limit, "growth": growth}


class WithoutStepSize(torch.optim.SGD):
    def __init__(self, params: Any, beta: float = 10.0) -> None:
        super().__init__(params)
        for group in self.param_groups:
            group["beta"] = beta
            del group["lr"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"n": 3, "undeclared": 4}, {"n": 3, "undeclared": 4}),
        ({"undeclared": 0.5}, {"undeclared": 0.5}),
        ({"nus": [0.5, 1], "widths": [2, 3]}, {"nus": (0.5, 1.0), "widths": (2, 3)}),
        ({"limit": 0.5, "growth": 1.5}, {"limit": 0.5, "growth": 1.5}),
    ],
)
def test_options_by_prefix_keep_their_types(
    options: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim, "OfAnotherPackage", OfAnotherPackage, raising=False)
    defaults = {"n": 2, "undeclared": 3, "nus": (1.0, 1.0), "widths": (1,), "limit": None, "growth": math.inf}
    resolved = RunConfig(learner=Component(name="torch:OfAnotherPackage", **options)).resolved().learner.options
    assert json.loads(json.dumps(resolved, allow_nan=False)) == resolved
    optimizer: Any = make_optimizer("torch:OfAnotherPackage", nn.Linear(2, 1), **resolved)
    assert repr(optimizer.given) == repr(defaults | expected)
    assert repr(resolved["momentum"]) == "0.0"


def test_a_whole_number_is_wanted_where_one_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "OfAnotherPackage", OfAnotherPackage, raising=False)
    with pytest.raises(ConfigError, match=r"^learner\.n: Input should be a valid integer"):
        RunConfig(learner=Component(name="torch:OfAnotherPackage", n=2.5)).resolved()


def test_groups_without_a_step_size_report_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "WithoutStepSize", WithoutStepSize, raising=False)
    assert step_sizes_of(make_optimizer("torch:WithoutStepSize", nn.Linear(2, 1))) == {}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["metaoptimize", "idbd_network", "sgd_hd", "torch:SGD"])
def test_settings_that_are_not_finite_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=exactly(f"lr must be finite, but is {value}")):
        make_optimizer(name, nn.Linear(2, 1), lr=value)


# Rows


TUNED = [*(name for name, row in SPECS.items() if not isinstance(row.space, str)), "torch:SGD", "torch:Adadelta"]
ON_A_BASE = [name for name, row in SPECS.items() if row.on_a_base]


def test_every_learner_of_the_package_has_a_row_which_is_read_without_torch() -> None:
    code = "import sys; from continual_metaopt.optim.registry import SPECS; print(len(SPECS), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == f"{len(SPECS)} False\n"
    assert list(SPECS) == LEARNERS.own
    folder = Path(registry.__file__).parent
    without = {"linear_input", "sequential_units", "koopman", "trajectories"}  # which others are built on
    files = {path.stem for sub in ("controls", "peers", "packaged") for path in (folder / sub).glob("[!_]*.py")}
    assert {row.entry_point.partition(":")[0].split(".")[-1] for row in SPECS.values()} == files - without | {
        "metaoptimize"
    }


def test_records_from_before_families_were_recorded_are_grouped_as_new_ones() -> None:
    assert {name: family(name) for name in SPECS} == {name: row.family for name, row in SPECS.items()}
    assert {*get_args(Family)} <= FAMILIES.keys()


def test_a_function_is_composed_of_its_class() -> None:
    class Halving(torch.optim.SGD):
        """Take half of each step.

        Args:
            params: parameters.
            lr: step size.
            kind: one of two.
            secret: not shown.
        """

        def __init__(self, params: Any, lr: float = 0.5, *, kind: str = "a", secret: int = 1) -> None:
            super().__init__(params, lr / 2)
            self.given = kind, secret

    halving = learner_of(Halving, "blockwise", hidden=("secret",), kind="b")
    assert str(inspect.signature(halving)).startswith("(model: 'nn.Module', *, lr: float = 0.5, kind: str = 'b', step")
    assert described_options(halving) == {
        "model": "the network.",
        "lr": "step size.",
        "kind": "one of two.",
        "step_sizes": STEP_SIZES,
    }
    optimizer: Any = halving(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), lr=3.0)
    assert ([group["lr"] for group in optimizer.param_groups], optimizer.given) == ([1.5, 1.5], ("b", 1))
    with pytest.raises(TypeError, match="unexpected keyword argument 'secret'"):
        halving(nn.Linear(1, 1), secret=2)


@pytest.mark.parametrize("name", TUNED)
def test_defaults_lie_inside(name: str) -> None:
    parameters = inspect.signature(learner_factory(name)).parameters

    for option, space in search_space(name).items():
        assert is_inside(space, parameters[option].default), f"{name}.{option} = {parameters[option].default}"
    # where authors say to leave the step size's factor at 1, what is tuned is where the estimate begins
    assert "lr" in search_space(name) or parameters["lr"].default == 1.0


@pytest.mark.parametrize("name", TUNED)
def test_both_ends_are_accepted(name: str) -> None:
    space = search_space(name)
    highest = {option: values[1] if is_range(values) else values[-1] for option, values in space.items()}
    for setting in ({option: values[0] for option, values in space.items()}, highest):
        make_optimizer(name, nn.Linear(4, 1), **known_of_the_stream(name, n_samples=10), **setting)


@pytest.mark.parametrize("name", [name for name, row in SPECS.items() if isinstance(row.space, str)])
def test_learners_with_nothing_to_tune_say_why(name: str) -> None:
    assert search_space(name) == {}
    assert "lr" not in inspect.signature(learner_factory(name)).parameters
    assert nothing_to_tune(name)


# these scale their base update's step sizes themselves, or begin with others and learn them
OTHERS_WITH_A_BASE = {"metaoptimize", "replayed_step_sizes", "glocal", "gdtuo", "mechanic", "trac"}


def test_learners_with_their_base_s_step_size_are_known() -> None:
    with_a_base = {name for name in SPECS if "base" in inspect.signature(learner_factory(name)).parameters}

    assert with_a_base == {*ON_A_BASE} | OTHERS_WITH_A_BASE


@pytest.mark.parametrize("base", list(BASE_UPDATES))
@pytest.mark.parametrize("name", ON_A_BASE)
def test_the_base_update_decides_where_its_step_sizes_are_sought(name: str, base: str) -> None:
    parameters = inspect.signature(learner_factory(name)).parameters
    usual, space = search_space(name), search_space(name, base)

    assert space.keys() == usual.keys()
    for option, values in space.items():
        assert values == SPACES_OF_BASES.get(base, {}).get(option, usual[option])
        assert is_inside(values, parameters[option].default)


def test_spaces_of_bases_name_bases_and_move_no_other_step_sizes() -> None:
    assert SPACES_OF_BASES.keys() <= set(BASE_UPDATES)
    assert search_space("metaoptimize", "sgd") == search_space("metaoptimize")
    assert search_space("fixed", "sgd")["lr"] == (1e-4, 1e-1, "log") != search_space("fixed")["lr"]


def test_optimizers_of_packages_get_two_decades_around_their_default() -> None:
    space = search_space("torch:Rprop")

    assert set(space) == {"lr"}
    assert space["lr"][:2] == pytest.approx((1e-4, 1.0))
    assert search_space("torch:Muon")["weight_decay"] == [0.0, 1e-4, 1e-3, 1e-2, 1e-1]


@pytest.mark.usefixtures("registries")
def test_a_learner_of_ones_own_can_declare_its_space() -> None:
    def mine(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr)

    register_learner("mine")(mine)
    message = (
        "there is no search space for the learner 'mine': name ranges in the study, such as "
        "tune: {method: random, space: {lr: [1.0e-5, 1.0e-1, log]}}, "
        "or give the function that makes it an attribute search_space"
    )
    with pytest.raises(NoSearchSpaceError, match=exactly(message)):
        search_space("mine")

    mine.search_space = {"lr": (0.01, 1.0, "log")}  # type: ignore[attr-defined]

    assert search_space("mine") == {"lr": (0.01, 1.0, "log")}


@pytest.mark.parametrize(
    ("space", "value", "inside"),
    [
        ((1e-3, 1e-1, "log"), 1e-3, True),
        ([1e-3, 1e-1, "log"], 0.1, True),
        ((1e-3, 1e-1, "log"), 0.2, False),
        ((1e-3, 1e-1, "log"), None, False),
        ([1e-3, 1e-1], 0.01, False),
        ([None, 1.0], None, True),
        (["l", "2x2", "log"], "log", True),
    ],
)
def test_what_is_inside(space: Any, value: Any, inside: bool) -> None:
    assert is_inside(space, value) is inside
