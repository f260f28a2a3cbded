"""Revising weights along with step sizes comes closer to the online forward view, by as many orders as claimed."""

import functools
from typing import Any

import numpy as np
import pytest
import torch

from continual_metaopt.optim.metaoptimize import MetaOptimize

from .forward_view import Array, forward_view, order

STEPS, N = 25, 3
OF_WEIGHTS = {"weight": np.eye(N), "group": np.ones((N, 1))}
START = 0.1


def problem() -> tuple[Array, Array]:
    """Inputs and targets of a linear loss −y w·x, for which a Hessian-free trace is exact."""
    random = np.random.RandomState(2)
    return random.standard_normal((STEPS, N)), random.standard_normal(STEPS)


def learn(granularity: Any, meta_lr: float, gamma: float, *, log: bool, dutch: bool) -> tuple[Array, Array]:
    """Weights and step sizes after the last step."""
    x, y = map(torch.from_numpy, problem())
    weights = torch.nn.Parameter(torch.zeros(N, dtype=torch.float64))
    optimizer = MetaOptimize(
        [weights],
        START,
        base="sgd",
        meta="sgd",
        meta_lr=meta_lr,
        gamma=gamma,
        weight_decay=0.0,
        step_sizes=granularity,
        update_order="meta_first",
        parametrisation="log" if log else "linear",
        trace="dutch" if dutch else "hessian_free",
    )
    for row, target in zip(x, y, strict=True):
        weights.grad = -target * row
        optimizer.step()
    return weights.detach().numpy(), np.atleast_1d(optimizer.step_size_report()["group0"])


@functools.cache
def seen_forward(granularity: str, meta_lr: float, gamma: float, log: bool) -> tuple[Array, Array]:
    of_weights = OF_WEIGHTS[granularity]
    start = np.full(of_weights.shape[1], np.log(START) if log else START)
    weights, beta = forward_view(*problem(), start, of_weights, meta_lr, gamma, log=log)
    return weights, np.exp(beta) if log else beta


@pytest.mark.parametrize("granularity", OF_WEIGHTS)
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_linear_step_sizes_make_it_exact_without_and_with_full_memory(granularity: str, gamma: float) -> None:
    expected = seen_forward(granularity, 1e-4, gamma, log=False)
    dutch, usual = (learn(granularity, 1e-4, gamma, log=False, dutch=dutch) for dutch in (True, False))
    for part in (0, 1):  # weights, step sizes
        np.testing.assert_allclose(dutch[part], expected[part], rtol=1e-12)
    assert gamma == 0 or np.abs(usual[0] - expected[0]).max() > 1e-3


@pytest.mark.parametrize("granularity", OF_WEIGHTS)
@pytest.mark.parametrize(("gamma", "expected"), [(0.9, 1), (1.0, 2)])
def test_the_gap_of_log_step_sizes_shrinks(granularity: str, gamma: float, expected: int) -> None:
    def gap(meta_lr: float, dutch: bool) -> float:
        weights, _ = learn(granularity, meta_lr, gamma, log=True, dutch=dutch)
        return float(np.abs(weights - seen_forward(granularity, meta_lr, gamma, log=True)[0]).max())

    meta_lrs = [1e-3 * 2.0**k for k in range(4)]
    assert order(functools.partial(gap, dutch=False), meta_lrs) == pytest.approx(1, abs=0.2)
    assert order(functools.partial(gap, dutch=True), meta_lrs) == pytest.approx(expected, abs=0.2)
    assert gap(1e-3, True) < 0.5 * gap(1e-3, False)
