"""Every learner says where to look for its settings, and its defaults lie there."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from continual_metaopt import register_learner
from continual_metaopt.optim.base_updates import BASE_UPDATES
from continual_metaopt.optim.registry import (
    LEARNERS,
    NOTHING_TO_TUNE,
    ON_A_BASE,
    SEARCH_SPACES,
    SPACES_OF_BASES,
    NoSearchSpaceError,
    is_inside,
    is_range,
    known_of_the_stream,
    learner_factory,
    make_optimizer,
    search_space,
)
from continual_metaopt.streams import UnknownNameError

from ..conftest import exactly

OF_PACKAGES = ["torch:SGD", "torch:AdamW", "torch:Adadelta"]
OWN = LEARNERS.own  # what other tests register does not count


def test_every_learner_has_a_search_space() -> None:
    missing = [name for name in OWN if name not in SEARCH_SPACES and name not in NOTHING_TO_TUNE]

    assert not missing, (
        f"no search space for {', '.join(missing)}: add what is usually tuned, the default inside, to SEARCH_SPACES in "
        "optim/search_spaces.py, or to NOTHING_TO_TUNE there, with the reason"
    )


def test_every_search_space_is_of_one_learner() -> None:
    assert not SEARCH_SPACES.keys() & NOTHING_TO_TUNE.keys()
    assert SEARCH_SPACES.keys() | NOTHING_TO_TUNE.keys() <= set(OWN)


@pytest.mark.parametrize("name", [*SEARCH_SPACES, *OF_PACKAGES])
def test_defaults_lie_inside(name: str) -> None:
    parameters = inspect.signature(learner_factory(name)).parameters

    for option, space in search_space(name).items():
        assert is_inside(space, parameters[option].default), f"{name}.{option} = {parameters[option].default}"
    # where authors say to leave the step size's factor at 1, what is tuned is where the estimate begins
    assert "lr" in search_space(name) or parameters["lr"].default == 1.0


@pytest.mark.parametrize("name", [*SEARCH_SPACES, *OF_PACKAGES])
def test_both_ends_are_accepted(name: str) -> None:
    space = search_space(name)
    highest = {option: values[1] if is_range(values) else values[-1] for option, values in space.items()}
    for setting in ({option: values[0] for option, values in space.items()}, highest):
        make_optimizer(name, nn.Linear(4, 1), **known_of_the_stream(name, n_samples=10), **setting)


@pytest.mark.parametrize("name", sorted(NOTHING_TO_TUNE))
def test_learners_with_nothing_to_tune_say_why(name: str) -> None:
    assert search_space(name) == {}
    assert "lr" not in inspect.signature(learner_factory(name)).parameters
    assert NOTHING_TO_TUNE[name]


def test_weight_decay_of_fixed_baselines_is_tuned() -> None:
    assert all("weight_decay" in search_space(name) for name in ("fixed", "cosine", "cosine_restarts_told"))


# these scale their base update's step sizes themselves, or begin with others and learn them
OTHERS_WITH_A_BASE = {"metaoptimize", "replayed_step_sizes", "glocal", "gdtuo", "mechanic", "trac"}


def test_learners_with_their_base_s_step_size_are_known() -> None:
    with_a_base = {name for name in OWN if "base" in inspect.signature(learner_factory(name)).parameters}

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


def test_unknown_learners_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown learner 'fixd'\. Did you mean 'fixed'\?"):
        search_space("fixd")


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
