"""Two horizons, and weights revised with the step sizes, in MetaOptimize: by hand, and against plain formulas."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from continual_metaopt.optim.metaoptimize import LONG_TRACE, MetaOptimize, NonFiniteMetaGradient
from continual_metaopt.optim.two_horizons import two_horizons_rule

from ..conftest import exactly
from . import reference
from .test_metaoptimize import BLOCKS, LR, META_LR, VARIANTS, Problem

GRANULARITIES = ("scalar", "group", "tensor", "node", "weight")


def learner(*values: Any, **options: Any) -> tuple[nn.Parameter, MetaOptimize]:
    """SGD with SGD as meta update, α = 0.1, η = 0.5, γ = 0.9, no weight decay unless asked for."""
    settings = {"base": "sgd", "meta": "sgd", "meta_lr": 0.5, "gamma": 0.9, "weight_decay": 0.0}
    p = nn.Parameter(torch.tensor(values or (0.0,), dtype=torch.float64))
    return p, MetaOptimize([p], **{"lr": 0.1} | settings | options)


def step(optimizer: MetaOptimize, *gradients: Any) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, gradient in zip(params, gradients, strict=True):
        gradient = None if gradient is None else torch.as_tensor(gradient, dtype=param.dtype)
        param.grad = None if gradient is None else gradient.expand(param.shape).clone()
    optimizer.step()


# By hand


def test_two_calls_of_the_rule_by_hand() -> None:
    z, *sizes = two_horizons_rule(0.0, 0.0, 0.0, 2.0, -4.0)
    assert z == pytest.approx(2 - 0.3 * 2 + 0.5 * (2 / 4) * -4, rel=1e-12)
    assert sizes == pytest.approx([1.0, 0.002, 0.004], rel=1e-12)
    z, *sizes = two_horizons_rule(*sizes, -1.0, 1.0)  # both means are divided by 1 − 0.999² = 0.001999
    assert z == pytest.approx(-1 - 0.3 * 2.998 / 1.999 + 0.5 * 2.998 / 4.996, rel=1e-12)
    assert sizes == pytest.approx([2.0, 0.002998, 0.004996], rel=1e-12)


def test_a_rule_that_has_seen_nothing_asks_for_nothing() -> None:
    assert two_horizons_rule(0.0, 0.0, 0.0, 0.0, 0.0) == (0.0, 1.0, 0.0, 0.0)
    tensors = two_horizons_rule(0.0, 0.0, 0.0, torch.zeros(2), torch.zeros(2))
    assert torch.equal(tensors[0], torch.zeros(2))


@pytest.mark.parametrize("granularity", ["group", "weight"])
@pytest.mark.parametrize("guard", [{"max_meta_change": 0.05}, {"lr_bounds": (1e-10, 0.1 * math.exp(0.05))}])
def test_weights_are_revised_by_what_the_guards_leave_of_a_change(granularity: Any, guard: dict[str, Any]) -> None:
    p, optimizer = learner(trace="dutch", step_sizes=granularity, **guard)
    step(optimizer, 1.0)
    step(optimizer, 2.0)
    assert p.item() == pytest.approx(-0.3 + 0.05 * -0.29, rel=1e-12)


@pytest.mark.parametrize("granularity", ["group", "weight"])
def test_linear_step_sizes_revise_weights_by_the_change_of_the_step_size(granularity: Any) -> None:
    p, optimizer = learner(trace="dutch", parametrisation="linear", meta_lr=0.01, step_sizes=granularity)
    step(optimizer, 1.0)  # h = −1, w = −0.1
    step(optimizer, 2.0)  # z = −2, Δα = 0.02, h = −0.9 − 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.12, rel=1e-12)
    assert p.item() == pytest.approx(-0.3 + 0.02 * -2.9, rel=1e-12)


@pytest.mark.parametrize("granularity", ["group", "weight"])
def test_weights_are_revised_only_when_meta_updates_are_made(granularity: Any) -> None:
    p, optimizer = learner(trace="dutch", meta_every=3, step_sizes=granularity)
    step(optimizer, 1.0)
    step(optimizer, 2.0)
    assert p.item() == pytest.approx(-0.3, rel=1e-14)
    step(optimizer, 3.0)  # z = 0 − 0.2 − 0.29 · 3;  h = 0.9 · −0.29 − 0.3
    assert p.item() == pytest.approx(-0.6 + 0.5 * 1.07 * -0.561, rel=1e-12)


@pytest.mark.parametrize("granularity", ["group", "weight"])
def test_what_a_scheduler_writes_revises_nothing(granularity: Any) -> None:
    p, optimizer = learner(trace="dutch", step_sizes=granularity)
    step(optimizer, 1.0)
    step(optimizer, 2.0)  # w = −0.3 + 0.1 · −0.29
    optimizer.param_groups[0]["lr"] = 0.05
    step(optimizer, 1.0)  # Δβ = 0.145, h = −0.261 − 0.05
    assert p.item() == pytest.approx(-0.329 - 0.05 + 0.145 * -0.311, rel=1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * math.exp(0.145), rel=1e-12)


@pytest.mark.parametrize("granularity", ["scalar", "group", "weight"])
@pytest.mark.parametrize("order", ["base_first", "meta_first"])
def test_weights_without_a_gradient_stay_where_they_are(granularity: Any, order: Any) -> None:
    used, unused = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    optimizer = MetaOptimize(
        [used, unused], 0.1, trace="dutch", meta_lr=0.1, step_sizes=granularity, update_order=order
    )
    for gradient in (1.0, 2.0, -1.0):
        step(optimizer, gradient, gradient)
    before = [p.detach().clone() for p in (used, unused)]
    unused.requires_grad_(False)
    step(optimizer, 1.0, None)
    assert unused.equal(before[1])
    assert not used.equal(before[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_meta_step_it_is_the_base_update(variant: str) -> None:
    weights = []
    for options in ({}, VARIANTS[variant]):
        problem = Problem()
        optimizer = of_problem(problem, "group", meta_lr=0.0, **options)
        problem.run(optimizer, range(10))
        assert all("trace" not in state and LONG_TRACE not in state for state in optimizer.state.values())
        weights.append(torch.cat([p.detach().flatten() for p in problem.flat()]))
    assert weights[0].equal(weights[1])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_discount_may_be_replaced_by_two_horizons_while_learning(granularity: Any) -> None:
    p, optimizer = learner(step_sizes=granularity)
    step(optimizer, 1.0)
    optimizer.param_groups[0]["gamma"] = "auto"
    step(optimizer, 2.0)  # the long trace begins at 0
    assert optimizer.state[p][LONG_TRACE].item() == pytest.approx(-0.2, rel=1e-14)


# Against the formulas


def of_problem(problem: Problem, granularity: str, base: str = "adamw", meta: str = "adam", **options: Any) -> Any:
    groups = [{"params": ps, "name": name} for ps, name in zip(problem.params, BLOCKS, strict=True)]
    settings = {"base": base, "meta": meta, "meta_lr": META_LR[meta], "step_sizes": granularity}
    return MetaOptimize(groups, LR[base], **settings | options)


def test_without_both_additions_the_reference_is_another() -> None:
    """So that what is compared above depends on them."""
    problem = Problem()
    ends = []
    for gamma, dutch in ((0.99, False), ("auto", False), (0.99, True), ("auto", True)):
        settings = [reference.Block(w, 0.02, 0.01, gamma, 0.05) for w in problem.initial]
        ends.append(
            reference.trajectory(problem.gradient, settings, "adamw", "adam", 10, dutch=dutch)[-1].weights[0][0]
        )
    assert all(np.abs(a - b).max() > 1e-6 for i, a in enumerate(ends) for b in ends[:i])


# States


def same(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key, value in left.items():
            same(value, right[key])
    else:
        assert torch.equal(torch.as_tensor(left), torch.as_tensor(right))


def test_a_state_with_revised_weights_is_not_taken_for_one_without() -> None:
    _, dutch = learner(trace="dutch")
    _, plain = learner()
    message = f"this state was saved by {dutch.param_groups[0]['rule']}, but the optimizer is "
    with pytest.raises(ValueError, match="^" + exactly(message).strip("^$")):
        plain.load_state_dict(dutch.state_dict())
    assert dutch.param_groups[0]["rule"].endswith(", trace='dutch'")


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gamma": "auto", "learn": ("lr", "weight_decay"), "weight_decay": 0.1},
            "gamma=\"auto\" is for step sizes alone, not for learn=('lr', 'weight_decay')",
        ),
        (
            {"gamma": "auto", "learn": ("weight_decay",), "weight_decay": 0.1},
            "gamma=\"auto\" is for step sizes alone, not for learn=('weight_decay',)",
        ),
        (
            {"gamma": "auto", "trace": "2x2"},
            'trace="2x2" needs a number as gamma; gamma="auto" goes with trace="hessian_free"',
        ),
        ({"gamma": "aut"}, "gamma must be between 0 and 1, or \"auto\", but is 'aut'"),
        ({"gamma": 1.5}, 'gamma must be between 0 and 1, or "auto", but is 1.5'),
    ],
)
def test_wrong_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        learner(**options)


@pytest.mark.parametrize(
    ("settings", "differ"),
    [
        ([{"gamma": "auto"}, {"gamma": 0.9}], "auto and 0.9"),
        ([{"gamma": 0.9}, {"gamma": "auto"}], "0.9 and auto"),
        ([{}, {"gamma": "auto"}], "0.999 and auto"),
    ],
)
def test_one_step_size_has_two_horizons_everywhere_or_nowhere(settings: list[dict[str, Any]], differ: str) -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], **each} for each in settings]
    message = (
        f'step_sizes="scalar" means one step size for all groups, but their gamma differ: {differ}; '
        'give them the same gamma, or use step_sizes="group"'
    )
    with pytest.raises(ValueError, match=exactly(message)):
        MetaOptimize(groups, step_sizes="scalar")
    assert [group["gamma"] for group in MetaOptimize(groups).param_groups].count("auto") == 1


def test_groups_that_share_a_step_size_share_its_two_horizons() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "gamma": "auto"}, {"params": [nn.Parameter(torch.zeros(2))]}]
    optimizer = MetaOptimize(groups, step_sizes="scalar")
    assert [group["gamma"] for group in optimizer.param_groups] == ["auto", "auto"]
    different = [group | {"gamma": gamma} for group, gamma in zip(groups, (0.9, 0.5), strict=True)]
    assert [group["gamma"] for group in MetaOptimize(different, step_sizes="scalar").param_groups] == [0.9, 0.5]


@pytest.mark.parametrize("trace", ["trace", LONG_TRACE])
@pytest.mark.parametrize("granularity", ["group", "weight"])
def test_a_meta_gradient_that_is_not_finite_changes_nothing(granularity: Any, trace: str) -> None:
    p, optimizer = learner(1.0, 2.0, gamma="auto", step_sizes=granularity)
    step(optimizer, 1.0)
    optimizer.state[p][trace].fill_(1e300)
    before = copy.deepcopy((p.detach(), optimizer.state_dict()))
    with pytest.raises(NonFiniteMetaGradient, match=exactly("the meta gradient of block 'group0' is inf")):
        step(optimizer, 1e300)
    assert p.equal(before[0])
    for key, value in before[1]["state"][0].items():
        same(value, optimizer.state_dict()["state"][0][key])
    assert isinstance(optimizer.state[p][trace], Tensor)
