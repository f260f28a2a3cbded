"""Revising weights along with step sizes comes closer to the online forward view, by as many orders as claimed."""

import functools

import numpy as np
import pytest
import torch

from continual_metaopt.optim.dutch_traces import advance, revise, revise_weights, separate_traces

from .forward_view import Array, forward_view, order

STEPS, N = 25, 3
EACH, SHARED = np.eye(N), np.ones((N, 1))
START = 0.1


def start_of(log: bool) -> float:
    return float(np.log(START)) if log else START


def separate_problem() -> tuple[Array, Array]:
    """One input at a time is not zero: weights do not interact, and the diagonal is all of the second derivative."""
    random = np.random.RandomState(0)
    x = random.standard_normal((STEPS, N)) * np.eye(N)[random.randint(0, N, STEPS)]
    return x, x @ np.array([1.0, -2.0, 0.5]) + random.standard_normal(STEPS)


def learn_separate(
    x: Array, y: Array, meta_lr: float, gamma: float, *, log: bool, quadratic: bool, dutch: bool
) -> tuple[Array, Array]:
    """One step size per weight; without ``dutch`` as IDBD does it: β −= η H g and nothing else is revised."""
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    weights = torch.zeros(N, dtype=torch.float64)
    beta = torch.full((N,), start_of(log), dtype=torch.float64)
    traces = separate_traces(weights)
    for row, target in zip(inputs, targets, strict=True):
        gradient = (quadratic * (weights @ row) - target) * row
        if dutch:
            revise(traces, weights, beta, gradient, meta_lr)
            gradient = (quadratic * (weights @ row) - target) * row
        else:
            beta -= meta_lr * traces["trace"] * gradient
        step_size = beta.exp() if log else beta.clone()
        curvature = quadratic * row.square()
        parametrisation = "log" if log else "linear"
        advance(traces, gradient, step_size, gamma, curvature=curvature, parametrisation=parametrisation)
        weights -= step_size * gradient
    return weights.numpy(), beta.numpy()


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_separate_traces_raise_the_order_of_the_gap_by_one(log: bool, gamma: float) -> None:
    x, y = separate_problem()
    view = functools.lru_cache(
        lambda meta_lr: forward_view(x, y, np.full(N, start_of(log)), EACH, meta_lr, gamma, log=log, quadratic=True)
    )

    def gap(meta_lr: float, dutch: bool, part: int) -> float:
        learned = learn_separate(x, y, meta_lr, gamma, log=log, quadratic=True, dutch=dutch)
        return float(np.abs(learned[part] - view(meta_lr)[part]).max())

    meta_lrs = [(1e-3 if log else 1e-5) * 2.0**k for k in range(4)]
    orders = {
        (dutch, part): order(functools.partial(gap, dutch=dutch, part=part), meta_lrs)
        for dutch in (False, True)
        for part in (0, 1)
    }
    expected = {(False, 0): 1, (False, 1): 2, (True, 0): 2, (True, 1): 3}  # part 0: weights, 1: β
    assert orders == pytest.approx(expected, abs=0.15)


def learn_shared(x: Array, y: Array, meta_lr: float, gamma: float, *, dutch: bool) -> tuple[Array, Array]:
    """One log step size for all weights, the base update first, and the exact trace."""
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    weights, trace = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    beta = start_of(log=True)
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
    view = functools.lru_cache(
        lambda meta_lr: forward_view(x, y, np.array([start_of(True)]), SHARED, meta_lr, gamma, log=True, quadratic=True)
    )

    def gap(meta_lr: float, dutch: bool) -> float:
        return float(np.abs(learn_shared(x, y, meta_lr, gamma, dutch=dutch)[0] - view(meta_lr)[0]).max())

    meta_lrs = [1e-3 * 2.0**k for k in range(4)]
    assert order(functools.partial(gap, dutch=False), meta_lrs) == pytest.approx(1, abs=0.2)
    assert order(functools.partial(gap, dutch=True), meta_lrs) == pytest.approx(expected, abs=0.2)
    assert gap(1e-3, True) < 0.5 * gap(1e-3, False)


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_a_linear_loss_and_linear_step_sizes_make_it_exact(gamma: float) -> None:
    random = np.random.RandomState(2)
    x, y = random.standard_normal((STEPS, N)), random.standard_normal(STEPS)
    expected = forward_view(x, y, np.full(N, START), EACH, 0.05, gamma, log=False, quadratic=False)
    dutch = learn_separate(x, y, 0.05, gamma, log=False, quadratic=False, dutch=True)
    usual = learn_separate(x, y, 0.05, gamma, log=False, quadratic=False, dutch=False)
    for part in (0, 1):
        np.testing.assert_allclose(dutch[part], expected[part], rtol=1e-12)
    assert gamma == 0 or np.abs(usual[0] - expected[0]).max() > 0.1


def test_two_steps_by_hand() -> None:
    weights, beta = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)
    traces = separate_traces(weights)
    two = torch.tensor([2.0], dtype=torch.float64)
    advance(traces, two, torch.tensor([0.5], dtype=torch.float64), 0.5, curvature=1.0)
    # H = −αg = −1; P = γ (αg)² = 0.5; J = −γ αg = −0.5; S = γ (αg)² = 0.5
    assert {name: float(value) for name, value in traces.items()} == {  # type: ignore[arg-type]
        "trace": -1.0,
        "moment": 0.5,
        "bend": -0.5,
        "bend_moment": 0.5,
    }
    revise(traces, weights, beta, two, 0.1)
    assert float(beta) == pytest.approx(0.2)  # −η H g
    assert float(weights) == pytest.approx(0.9)  # 1 − η P g
    assert float(traces["trace"]) == pytest.approx(-1.1)  # −1 − η S g


@pytest.mark.parametrize("change", [0.5, torch.tensor([[0.5], [0.5]])])
def test_revise_weights_takes_a_number_or_a_tensor_that_broadcasts(change: float | torch.Tensor) -> None:
    weights, trace = torch.ones(2, 3), torch.arange(6.0).view(2, 3)
    revise_weights(weights, trace, change)
    assert weights.tolist() == [[1.0, 1.5, 2.0], [2.5, 3.0, 3.5]]


def test_an_unknown_parametrisation_is_refused() -> None:
    weights = torch.zeros(1)
    with pytest.raises(ValueError, match=r'^parametrisation is "log" or "linear", not \'exp\'$'):
        advance(separate_traces(weights), weights, weights, 0.9, parametrisation="exp")
