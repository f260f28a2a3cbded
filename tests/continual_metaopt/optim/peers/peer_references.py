"""IDBD, Autostep and hypergradient descent in NumPy, written from their papers, for one output and single samples.

Each function is a generator: it is sent (x, y), or a gradient, and yields a dictionary of everything it knows.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Samples = list[tuple[Array, float]]


def linear_samples(n: int, n_inputs: int, seed: int = 0) -> Samples:
    random = np.random.RandomState(seed)
    return [(random.randn(n_inputs), float(random.randn())) for _ in range(n)]


def lms(samples: Samples, step_size: float) -> Iterator[dict[str, Any]]:
    w = np.zeros(len(samples[0][0]))
    for x, y in samples:
        error = y - w @ x
        w = w + step_size * error * x
        yield {"error": error, "w": w}


def idbd(samples: Samples, step_size: float, meta: float, **limits: float) -> Iterator[dict[str, Any]]:
    n = len(samples[0][0])
    w, h, beta = np.zeros(n), np.zeros(n), np.full(n, np.log(step_size))
    for x, y in samples:
        error = y - w @ x
        change = meta * error * x * h
        limit = limits.get("max_change", np.inf)
        beta = np.maximum(beta + np.clip(change, -limit, limit), limits.get("min_log_step_size", -np.inf))
        alpha = np.exp(beta)
        w = w + alpha * error * x
        h = h * np.maximum(1 - alpha * x**2, 0) + alpha * error * x
        yield {"error": error, "w": w, "h": h, "alpha": alpha}


def autostep(samples: Samples, step_size: float, meta: float, time_constant: float) -> Iterator[dict[str, Any]]:
    n = len(samples[0][0])
    w, h, v, alpha = np.zeros(n), np.zeros(n), np.zeros(n), np.full(n, step_size)
    for x, y in samples:
        error = y - w @ x
        z = error * x * h
        v = np.maximum(abs(z), v + alpha * x**2 * (abs(z) - v) / time_constant)
        for i in range(n):
            if v[i] != 0:
                alpha[i] *= np.exp(meta * z[i] / v[i])
        alpha = alpha / max(alpha @ x**2, 1)
        w = w + alpha * error * x
        h = h * (1 - alpha * x**2) + alpha * error * x
        yield {"error": error, "w": w, "h": h, "v": v.copy(), "alpha": alpha.copy()}


def network_idbd(
    gradient: Callable[[Array, int], Array], w: Array, n_steps: int, step_size: float, meta: float
) -> Iterator[dict[str, Any]]:
    h, beta = np.zeros_like(w), np.full_like(w, np.log(step_size))
    for step in range(n_steps):
        g = gradient(w, step)
        beta = beta - meta * g * h
        alpha = np.exp(beta)
        w = w - alpha * g
        h = h * np.maximum(1 - alpha * g**2, 0) - alpha * g
        yield {"w": w, "h": h, "alpha": alpha}


def hypergradient_descent(
    gradient: Callable[[Array, int], Array],
    w: Array,
    n_steps: int,
    step_size: float,
    meta: float,
    *,
    log: bool = False,
    base_first: bool = False,
) -> Iterator[dict[str, Any]]:
    """SGD-HD. With ``log``, log α moves instead of α, so that the hypergradient has a factor α, that of the last step;
    with ``base_first``, weights move with the old α."""
    alpha, last = step_size, None
    for step in range(n_steps):
        g = gradient(w, step)
        used = alpha
        if last is not None:
            u, alpha_of_last = last
            alpha = alpha * np.exp(meta * alpha_of_last * (g @ u)) if log else alpha + meta * (g @ u)
        applied = used if base_first else alpha
        w = w - applied * g
        last = g, applied
        yield {"w": w, "alpha": alpha}


def adam_hd(
    gradient: Callable[[Array, int], Array], w: Array, n_steps: int, step_size: float, meta: float, decay: float
) -> Iterator[dict[str, Any]]:
    m, v, u, alpha = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w), step_size
    for t in range(1, n_steps + 1):
        g = gradient(w, t - 1) + decay * w
        alpha = alpha + meta * (g @ u)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        u = m / (np.sqrt(v) + 1e-6) * np.sqrt(1 - 0.9**t) / (1 - 0.8**t)
        w = w - alpha * u
        yield {"w": w, "alpha": alpha}
