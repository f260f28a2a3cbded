"""MetaOptimize's update compiled: base update, trace and meta gradient in one pass over memory.

A parameter's arrays are walked through in pieces that stay in the fastest cache. For each piece, one loop computes the
direction of the base update, a second one, common to all rules, adds up the meta gradient, and a third one moves
weights and trace. Split so, each loop touches few enough arrays for LLVM to check at run time that they do not overlap,
which it must before it can vectorise.

No fast mathematics: every operation is rounded as IEEE 754 says, and the order of the sum is spelled out, so that
results do not depend on how and when the functions were compiled.

Rules are integers and everything is a plain function of a module, so that Numba's cache on disk works.
"""

from typing import Any

import numpy as np
from numba import njit

OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}
PIECE = 1024  # elements
LANES = 16  # partial sums, which the processor adds up side by side

SGD, SGDM, RMSPROP, ADAMW, LION, SGDM_RELEASED, RMSPROP_RELEASED, ADAMW_RELEASED = range(8)

Array = Any


@njit(**OPTIONS)
def _sgd(g: Array, u: Array) -> None:
    for i in range(len(u)):
        u[i] = g[i]


@njit(**OPTIONS)
def _sgdm(g: Array, m: Array, u: Array, k: Array) -> None:
    momentum = k[0]
    for i in range(len(u)):
        m[i] = momentum * m[i] + g[i]
        u[i] = m[i]


@njit(**OPTIONS)
def _rmsprop(g: Array, v: Array, u: Array, k: Array) -> None:
    beta, rest, scale, eps = k[0], k[1], k[2], k[3]
    for i in range(len(u)):
        v[i] = beta * v[i] + rest * g[i] * g[i]
        u[i] = g[i] / (np.sqrt(v[i]) * scale + eps)


@njit(**OPTIONS)
def _adamw(g: Array, m: Array, v: Array, u: Array, k: Array) -> None:
    rest1, beta2, rest2, scale, eps = k[0], k[1], k[2], k[3], k[4]
    for i in range(len(u)):
        m[i] += rest1 * (g[i] - m[i])
        v[i] = beta2 * v[i] + rest2 * g[i] * g[i]
        u[i] = m[i] / (np.sqrt(v[i]) * scale + eps)


@njit(**OPTIONS)
def _lion(g: Array, m: Array, u: Array, k: Array) -> None:
    mix, mix_rest, decay, decay_rest = k[0], k[1], k[2], k[3]
    for i in range(len(u)):
        u[i] = np.sign(mix * m[i] + mix_rest * g[i])
        m[i] = decay * m[i] + decay_rest * g[i]


@njit(**OPTIONS)
def _sgdm_released(g: Array, m: Array, u: Array, k: Array) -> None:
    momentum, rest = k[0], k[1]
    for i in range(len(u)):
        u[i] = m[i]
        m[i] = momentum * m[i] + rest * g[i]


@njit(**OPTIONS)
def _rmsprop_released(g: Array, v: Array, u: Array, k: Array) -> None:
    decay, scale, eps = k[0], k[1], k[2]
    for i in range(len(u)):
        v[i] = decay * v[i] + g[i] * g[i]
        u[i] = g[i] / np.sqrt(scale * v[i] + eps)


@njit(**OPTIONS)
def _adamw_released(g: Array, m: Array, v: Array, u: Array, k: Array) -> None:
    momentum, decay, scale, eps = k[0], k[1], k[2], k[3]
    for i in range(len(u)):
        m[i] = momentum * m[i] + g[i]
        v[i] = decay * v[i] + g[i] * g[i]
        u[i] = m[i] / np.sqrt(scale * v[i] + eps)


@njit(**OPTIONS)
def _add_products(h: Array, g: Array, lanes: Array) -> None:
    whole = len(h) // LANES * LANES
    for i in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += h[i + lane] * g[i + lane]
    for i in range(whole, len(h)):
        lanes[i - whole] += h[i] * g[i]


@njit(**OPTIONS)
def _move(p: Array, h: Array, u: Array, step: Any, decay: Any, keep: Any) -> None:
    for i in range(len(u)):
        change = step * u[i] + decay * p[i]
        h[i] = keep * h[i] - change
        p[i] -= change


@njit(**OPTIONS)
def _move_without_trace(p: Array, u: Array, step: Any, decay: Any) -> None:
    for i in range(len(u)):
        p[i] -= step * u[i] + decay * p[i]


@njit(**OPTIONS)
def update(
    rule: int,
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    h: Array,
    u: Array,
    lanes: Array,
    k: Array,
    step: Any,
    decay: Any,
    keep: Any,
) -> float:
    """Update one parameter, and return its part of the meta gradient, Σ h·g with the old trace.

    All arrays are contiguous, of one dimension and one type, as are the numbers.

    Args:
        rule: number of the base update.
        p: weights.
        g: gradient.
        m: momentum; empty for rules without.
        v: second moment; empty for rules without.
        h: trace; empty for a fixed step size.
        u: room for one piece.
        lanes: room for the partial sums.
        k: the rule's constants.
        step: step size, divided by the direction's divisor.
        decay: step size times weight decay.
        keep: factor on the old trace.
    """
    z = 0.0
    for start in range(0, len(p), len(u)):
        stop = min(len(p), start + len(u))
        gs, ms, vs, us = g[start:stop], m[start:stop], v[start:stop], u[: stop - start]
        if rule == SGD:
            _sgd(gs, us)
        elif rule == SGDM:
            _sgdm(gs, ms, us, k)
        elif rule == RMSPROP:
            _rmsprop(gs, vs, us, k)
        elif rule == ADAMW:
            _adamw(gs, ms, vs, us, k)
        elif rule == LION:
            _lion(gs, ms, us, k)
        elif rule == SGDM_RELEASED:
            _sgdm_released(gs, ms, us, k)
        elif rule == RMSPROP_RELEASED:
            _rmsprop_released(gs, vs, us, k)
        else:
            _adamw_released(gs, ms, vs, us, k)
        if len(h):
            lanes[:] = 0
            _add_products(h[start:stop], gs, lanes)
            for lane in range(LANES):
                z += lanes[lane]
            _move(p[start:stop], h[start:stop], us, step, decay, keep)
        else:
            _move_without_trace(p[start:stop], us, step, decay)
    return z
