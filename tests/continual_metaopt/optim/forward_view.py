"""The online forward view of MetaOptimize on linear problems, by brute force in plain float64 NumPy.

f_t(w) = −y_t w·x_t; w_{t+1} = w_t − α(β_t) g_t. When the loss of time T
arrives, D_t = dw_T/dβ_{≥t} is taken along the run repeated so far, by forward accumulation, and then for all s ≤ T

    β_s −= η Σ_{t < s} weight_t D_tᵀ g_T ,    weight_t = (1 − γ) γ^{T−1−t}

where times before 0 count as time 0. Then the run is repeated from the beginning.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def forward_view(
    x: Array, y: Array, beta: Array, of_weights: Array, meta_lr: float, gamma: float, *, log: bool
) -> tuple[Array, Array]:
    """Weights and β after the last step; ``of_weights`` (n, m) has a one where a weight's step size is that β."""
    steps, n = x.shape
    betas = np.tile(beta, (steps + 1, 1))

    def run(until: int) -> tuple[Array, list[Array]]:
        w, effects = np.zeros(n), []
        for s in range(until):
            alpha = of_weights @ (np.exp(betas[s]) if log else betas[s])
            slope = alpha if log else np.ones(n)
            grad = -y[s] * x[s]
            effects.append(np.zeros_like(of_weights))
            effects = [effect - (slope * grad)[:, None] * of_weights for effect in effects]
            w = w - alpha * grad
        return w, effects

    for horizon in range(steps):
        _, effects = run(horizon)
        grad = -y[horizon] * x[horizon]
        if horizon:
            revision = gamma**horizon * (effects[0].T @ grad)
            for s in range(horizon + 1):
                betas[s] = betas[s] - meta_lr * revision
                if s < horizon:
                    revision = revision + (1 - gamma) * gamma ** (horizon - 1 - s) * (effects[s].T @ grad)
        betas[horizon + 1] = betas[horizon]
    return run(steps)[0], betas[steps]


def order(gap: Callable[[float], float], meta_lrs: list[float]) -> float:
    """Slope of the log of a gap over the log of the meta step size."""
    return float(np.polyfit(np.log(meta_lrs), np.log([gap(meta_lr) for meta_lr in meta_lrs]), 1)[0])
