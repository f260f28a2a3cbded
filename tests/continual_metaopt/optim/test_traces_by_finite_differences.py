"""Traces against finite differences: bump what is learned at one step, and run again with the same gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from continual_metaopt.optim.metaoptimize import TRACE, MetaOptimize

from . import reference

STEPS = 5
KINDS = {"lr": "lr", "additive lr": "lr", "weight_decay": "weight_decay", "momentum": "momentum"}
CASES = [
    (base, kind, gamma)
    for base in reference.BASES
    for kind in KINDS
    for gamma in (0.0, 0.9, 1.0)
    if kind != "momentum" or base in reference.MOMENTUM
]
BUMP = 1e-5


def weights_after(
    base: str, start: np.ndarray, gradients: np.ndarray, values: dict[str, np.ndarray], steps: int
) -> np.ndarray:
    """Weights after some base updates, given the gradients [steps, n] and what held in each step [steps, n]."""
    w, state = start.copy(), {}
    for t in range(steps):
        options = {reference.MOMENTUM[base]: values["momentum"][t]} if base in reference.MOMENTUM else {}
        direction = reference.BASES[base](state, gradients[t], t + 1, **options)
        w = w - reference.weight_step(values["lr"][t], direction, values["weight_decay"][t], w)
    return w


def bumped(kind: str, value: np.ndarray, by: float) -> np.ndarray:
    """A value whose β is changed."""
    if kind == "additive lr":
        return value + by
    if kind == "momentum":
        return 1 / (1 + np.exp(-(reference.logit(value) + by)))
    return value * np.exp(by)


@pytest.mark.parametrize("step_sizes", ["group", "weight"])
@pytest.mark.parametrize(("base", "kind", "gamma"), CASES)
def test_traces_are_discounted_derivatives_of_the_weights(base: str, kind: str, gamma: float, step_sizes: Any) -> None:
    """H_t = γ^{t−1} D_0 + (1−γ) Σ γ^{t−1−τ} D_τ, where D_τ = dw_t/dβ_τ with gradients and meta gradients as they were.

    A value that is raised at step τ stays raised, as later meta updates add what they added.
    """
    rng = np.random.default_rng(3)
    start, gradients = rng.normal(1.0, 0.5, 4), rng.normal(0.3, 1.0, (STEPS, 4))
    p = nn.Parameter(torch.tensor(start))
    learned = KINDS[kind]
    optimizer = MetaOptimize(
        [{"params": [p]}],
        0.05,
        base=base,
        meta="sgd",
        meta_lr=0.01 if kind == "additive lr" else 0.2,
        gamma=gamma,
        weight_decay=0.3,
        step_sizes=step_sizes,
        learn=(learned,),
        parametrisation="linear" if kind == "additive lr" else "log",
    )
    (group,) = optimizer.param_groups
    history: dict[str, list[np.ndarray]] = {"lr": [], "weight_decay": [], "momentum": []}
    for t in range(STEPS):
        report = optimizer.meta_parameter_report().get("group0", {}) | optimizer.step_size_report()
        now = {"lr": report["group0"], "weight_decay": 0.3, "momentum": 0.9} | report
        for name, values in history.items():
            values.append(np.broadcast_to(np.asarray(now[name]), 4).copy())
        p.grad = torch.tensor(gradients[t])
        optimizer.step()
    values = {name: np.array(rows) for name, rows in history.items()}
    np.testing.assert_allclose(weights_after(base, start, gradients, values, STEPS), p.detach(), rtol=1e-12)
    # with γ = 0 the released SGDm, one step late, never sees what the momentum did
    assert (group[learned] != values[learned][0, 0]) is not (
        base == "sgdm_released" and (kind, gamma) == ("momentum", 0)
    )

    def derivative(tau: int) -> np.ndarray:
        ends = []
        for by in (BUMP, -BUMP):
            changed = values[learned].copy()
            changed[tau:] = bumped(kind, changed[tau:], by)
            ends.append(weights_after(base, start, gradients, values | {learned: changed}, STEPS))
        return (ends[0] - ends[1]) / (2 * BUMP)

    expected = (gamma ** (STEPS - 1)) * derivative(0)
    for tau in range(1, STEPS):
        expected = expected + (1 - gamma) * gamma ** (STEPS - 1 - tau) * derivative(tau)
    np.testing.assert_allclose(optimizer.state[p][TRACE[learned]], expected, rtol=1e-6, atol=1e-10)
