"""Revising weights along with step sizes comes closer to the online forward view, by as many orders as claimed."""

import functools

import numpy as np
import pytest
import torch

from continual_metaopt.optim.dutch_traces import revise_weights

from .forward_view import Array, forward_view, order

STEPS, N = 25, 3
SHARED = np.ones((N, 1))
START = 0.1


def learn_shared(x: Array, y: Array, meta_lr: float, gamma: float, *, dutch: bool) -> tuple[Array, Array]:
    """One log step size for all weights, the base update first, and the exact trace."""
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    weights, trace = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    beta = float(np.log(START))
    for row, target in zip(inputs, targets, strict=True):
        gradient = (weights @ row - target) * row
        change = -meta_lr * float(trace @ gradient)
        step = float(np.exp(beta)) * gradient
        trace = gamma * (trace - float(np.exp(beta)) * row * (row @ trace)) - step
        weights -= step
        beta += change
        if dutch:
            revise_weights(weights, trace, change)
    return weights.numpy(), np.array([beta])


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, 2), (0.9, 1), (1.0, 2)])
def test_revising_weights_by_their_trace_has_second_order_without_and_with_full_memory(
    gamma: float, expected: int
) -> None:
    random = np.random.RandomState(1)
    x = random.standard_normal((STEPS, N))
    y = x @ np.array([1.0, -2.0, 0.5]) + random.standard_normal(STEPS)
    view = functools.lru_cache(lambda meta_lr: forward_view(x, y, np.array([np.log(START)]), SHARED, meta_lr, gamma))

    def gap(meta_lr: float, dutch: bool) -> float:
        return float(np.abs(learn_shared(x, y, meta_lr, gamma, dutch=dutch)[0] - view(meta_lr)[0]).max())

    meta_lrs = [1e-3 * 2.0**k for k in range(4)]
    assert order(functools.partial(gap, dutch=False), meta_lrs) == pytest.approx(1, abs=0.2)
    assert order(functools.partial(gap, dutch=True), meta_lrs) == pytest.approx(expected, abs=0.2)
    assert gap(1e-3, True) < 0.5 * gap(1e-3, False)


@pytest.mark.parametrize("change", [0.5, torch.tensor([[0.5], [0.5]])])
def test_revise_weights_takes_a_number_or_a_tensor_that_broadcasts(change: float | torch.Tensor) -> None:
    weights, trace = torch.ones(2, 3), torch.arange(6.0).view(2, 3)
    revise_weights(weights, trace, change)
    assert weights.tolist() == [[1.0, 1.5, 2.0], [2.5, 3.0, 3.5]]
