"""The field's optimizers in NumPy, written from their papers and documented rules, for one vector of weights.

Each function takes a problem, the first weights, a number of steps and settings, and yields weights and step size of
every step; the step size is None where the optimizer has none.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.continual_metaopt.optim.reference_noise import noise as drawn

Array = NDArray[np.float64]
Steps = Iterator[tuple[Array, float | None]]


class Problem:
    """A quadratic loss ½ (w − c)ᵀ A (w − c), never negative, whose A and c change from step to step."""

    def matrix(self, step: int, n: int) -> Array:
        coupling = np.cos(step + np.arange(n))
        return np.asarray(np.diag(1 + 0.5 * np.sin(step + np.arange(n))) + 0.2 * np.outer(coupling, coupling))

    def target(self, step: int, n: int) -> Array:
        return np.asarray(np.cos(0.1 * step * np.arange(n)))

    def loss(self, w: Array, step: int) -> float:
        distance = w - self.target(step, len(w))
        return float(distance @ self.matrix(step, len(w)) @ distance / 2)

    def gradient(self, w: Array, step: int) -> Array:
        return np.asarray(self.matrix(step, len(w)) @ (w - self.target(step, len(w))))


def normal(sizes: list[int], seed: int) -> Callable[[], Array]:
    """Noise as an optimizer draws it step by step for parameters of these sizes."""
    steps = itertools.count(1)

    def draw() -> Array:
        step = next(steps)
        return np.concatenate([drawn(seed, step, parameter, n) for parameter, n in enumerate(sizes)])

    return draw


def direction_of(base: str) -> Callable[[Array], Array]:
    """The direction of SGD, or of Adam with its default settings."""
    moments: dict[str, Any] = {"m": 0.0, "v": 0.0, "t": 0}

    def adam(g: Array) -> Array:
        moments["t"] += 1
        moments["m"] = 0.9 * moments["m"] + 0.1 * g
        moments["v"] = 0.999 * moments["v"] + 0.001 * g**2
        m, v = moments["m"] / (1 - 0.9 ** moments["t"]), moments["v"] / (1 - 0.999 ** moments["t"])
        return np.asarray(m / (np.sqrt(v) + 1e-8))

    return adam if base == "adamw" else lambda g: g


def upgd(
    problem: Problem, w: Array, n: int, sizes: list[int], lr: float, kappa: float, beta: float, sigma: float
) -> Steps:
    u, noise = np.zeros_like(w), normal(sizes, seed=3)
    for t in range(n):
        g = problem.gradient(w, t)
        u = beta * u - (1 - beta) * g * w
        scaled = u / (1 - beta ** (t + 1)) / u.max()
        w = (1 - lr * kappa) * w - 2 * lr * (g + sigma * noise()) * (1 - 1 / (1 + np.exp(-scaled)))
        yield w, lr


def l2_init(problem: Problem, w: Array, n: int, sizes: list[int], lr: float, base: str, pull: float) -> Steps:
    first, direction = w.copy(), direction_of(base)
    for t in range(n):
        w = w - lr * direction(problem.gradient(w, t) + pull * (w - first))
        yield w, lr


def shrink_and_perturb(
    problem: Problem, w: Array, n: int, sizes: list[int], lr: float, base: str, kappa: float, sigma: float
) -> Steps:
    direction, noise = direction_of(base), normal(sizes, seed=3)
    for t in range(n):
        w = (1 - lr * kappa) * w - lr * direction(problem.gradient(w, t)) - lr * sigma * noise()
        yield w, lr


def obgd(problem: Problem, w: Array, n: int, sizes: list[int], lr: float, kappa: float, error: str) -> Steps:
    for t in range(n):
        g, loss = problem.gradient(w, t), problem.loss(w, t)
        delta = math.sqrt(2 * loss) if error == "squared_error" else 1 - math.exp(-loss)
        z = -g / delta
        m = lr * kappa * max(abs(delta), 1) * np.abs(z).sum()
        step_size = lr / m if m > 1 else lr
        w = w + step_size * delta * z
        yield w, step_size


def sps(problem: Problem, w: Array, n: int, sizes: list[int], lr: float, c: float, smoothing: float | None) -> Steps:
    step_size = lr
    for t in range(n):
        g = problem.gradient(w, t)
        bound = lr if smoothing is None else step_size * 2 ** (1 / smoothing)
        step_size = min(problem.loss(w, t) / (c * g @ g + 1e-8), bound)
        w = w - step_size * g
        yield w, step_size


def vsgd(
    problem: Problem, w: Array, n: int, sizes: list[int], init: int, slow: float, level: float, eps: float
) -> Steps:
    gs: list[Array] = []
    hs: list[Array] = []
    mean = np.zeros_like(w)
    for t in range(n):
        g = problem.gradient(w, t)
        along = (mean if t else g) + eps
        moved = problem.gradient(w + along, t)
        h = np.abs((moved - g) / along)
        if t < init:
            gs.append(g)
            hs.append(h)
            mean, square = np.mean(gs, axis=0), slow * (np.mean(np.square(gs), axis=0) + eps)
            h_mean, h_square = slow * np.mean(hs, axis=0), slow**2 * np.mean(np.square(hs), axis=0)
            tau = np.full_like(w, 2)
            yield w, 0.0
            continue
        for i in range(len(w)):
            far = (g[i] - mean[i]) ** 2 > level**2 * (square[i] - mean[i] ** 2)
            if far or (h[i] - h_mean[i]) ** 2 > level**2 * (h_square[i] - h_mean[i] ** 2):
                tau[i] += 1
        mean = (1 - 1 / tau) * mean + g / tau
        square = (1 - 1 / tau) * square + (g**2 + eps) / tau
        h_mean = (1 - 1 / tau) * h_mean + h / tau
        h_square = (1 - 1 / tau) * h_square + h**2 / tau
        step_sizes = mean**2 / square * (h_mean + eps) / (h_square + eps)
        tau = (1 - mean**2 / square) * tau + 1
        w = w - step_sizes * g
        yield w, float(np.exp(np.log(step_sizes).mean()))


def cocob(problem: Problem, w: Array, n: int, sizes: list[int], alpha: float, eps: float) -> Steps:
    first, largest = w.copy(), np.full_like(w, eps)
    total, reward, theta = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t in range(n):
        g = problem.gradient(w, t)
        largest = np.maximum(largest, np.abs(g))
        total = total + np.abs(g)
        reward = np.maximum(reward - g * (w - first), 0)
        theta = theta - g
        per_gradient = (largest + reward) / (largest * np.maximum(total + largest, alpha * largest))
        w = first + theta * per_gradient
        yield w, float(np.exp(np.log(per_gradient).mean()))


def exponentiated_gradient(
    problem: Problem, w: Array, n: int, sizes: list[int], lr: float, mu: float, gain_lr: float, scale_lr: float,
    normalized: bool,
) -> Steps:  # fmt: skip
    scale, gain, m, mean, beta = 1.0, np.ones_like(w), np.zeros_like(w), np.zeros_like(w), 0.8
    for t in range(n):
        g = problem.gradient(w, t)
        if normalized:
            scale *= np.exp(scale_lr * (g @ m) / ((np.linalg.norm(g) + 1e-10) * (np.linalg.norm(m) + 1e-10)))
            gain = gain * np.exp(gain_lr * np.sign(g) * np.sign(mean))
        else:
            scale *= np.exp(scale_lr * (g @ m))
            gain = gain * np.exp(gain_lr * g * mean / (1 - beta ** max(t, 1)))
        scale, gain = np.clip(scale, 0.5, 2.0), np.clip(gain, 0.25, 4.0)
        m = mu * m + lr * gain * g
        mean = beta * mean + (1 - beta) * g
        w = w - scale * m
        yield w, float(lr * scale * np.exp(np.log(gain).mean()))


def meta_mirror_descent(
    problem: Problem, w: Array, n: int, sizes: list[int], lr: float, meta: float, q: float, kappa: float
) -> Steps:
    last = np.zeros_like(w)
    for t in range(n):
        g = problem.gradient(w, t) + kappa * w
        change = meta * (g @ last)
        lr = lr * np.exp(change) if q == 0 else (lr**q + q * change) ** (1 / q)
        w, last = w - lr * g, g
        yield w, float(lr)


def idbd_rmsprop(
    problem: Problem, w: Array, n: int, sizes: list[int], lr: float, meta: float, rho: float, eps: float
) -> Steps:
    beta, h, v = np.full_like(w, np.log(lr)), np.zeros_like(w), np.zeros_like(w)
    for t in range(n):
        g = problem.gradient(w, t)
        v = rho * v + (1 - rho) * g**2
        preconditioner = 1 / (np.sqrt(v / (1 - rho ** (t + 1))) + eps)
        beta = beta - meta * g * h
        alpha = np.exp(beta)
        w = w - alpha * preconditioner * g
        h = h * np.maximum(1 - alpha * preconditioner * g**2, 0) - alpha * preconditioner * g
        yield w, float(np.exp(beta.mean()))


def aruba(
    problem: Problem, w: Array, n: int, sizes: list[int], lr: float, zeta: float, power: float, starts: set[int]
) -> Steps:
    b, big_g = np.full_like(w, (lr * zeta) ** 2), np.full_like(w, zeta**2)
    phi, gradients, tasks = w.copy(), [], 0
    for t in range(n):
        if t in starts:
            tasks += 1
            b = b + (w - phi) ** 2 / 2 + (lr * zeta) ** 2 / (tasks + 1) ** power
            big_g = big_g + np.square(gradients).sum(axis=0) + zeta**2 / (tasks + 1) ** power
            phi, gradients = w.copy(), []
        eta = np.sqrt(b / big_g)
        gradients.append(problem.gradient(w, t))
        w = w - eta * gradients[-1]
        yield w, float(np.exp(np.log(eta).mean()))


def adamw_lion_package(
    problem: Problem, w: Array, n: int, sizes: list[int], lr: float, eta: float, gamma: float, kappa: float
) -> Steps:
    beta, meta_m, h, m, v = math.log(lr), 0.0, np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t in range(n):
        g, alpha = problem.gradient(w, t), math.exp(beta)
        m_weight, v_weight = 0.1 / (1 - 0.9 ** (t + 1)), 0.001 / (1 - 0.999 ** (t + 1))
        m, v = (1 - m_weight) * m + m_weight * g, (1 - v_weight) * v + v_weight * g**2
        w = w - alpha * kappa * w
        w = w - alpha * m / (np.sqrt(v) + 1e-8)
        z = float(h @ g)
        h = gamma * (1 - alpha * kappa) * h + alpha * g / (np.sqrt(v) + 1e-8)
        meta_m = 0.99 * meta_m + 0.01 * z
        beta += eta * np.sign(0.9 * meta_m + 0.1 * z)
        yield w, math.exp(beta)


def weight_clipping(problem: Problem, w: Array, n: int, sizes: list[int], lr: float, base: str, bound: float) -> Steps:
    direction = direction_of(base)
    for t in range(n):
        w = np.clip(w - lr * direction(problem.gradient(w, t)), -bound, bound)
        yield w, lr


def cosine(
    problem: Problem, w: Array, n: int, sizes: list[int], lr: float, base: str, warm: int, final: float
) -> Steps:
    direction = direction_of(base)
    for t in range(n):
        progress = (t - warm) / (n - warm)
        falling = final * lr + (1 - final) * lr * (1 + np.cos(np.pi * progress)) / 2
        step_size = lr * (t + 1) / warm if t < warm else falling
        w = w - step_size * direction(problem.gradient(w, t))
        yield w, float(step_size)


def continual_backprop(
    layers: list[tuple[Array, Array]], samples: list[tuple[Array, Array]], lr: float, base: str, rate: float,
    maturity: int, decay: float, seed: int,
) -> Iterator[tuple[list[tuple[Array, Array]], list[Array]]]:  # fmt: skip
    """Continual backprop for linear layers (weight, bias) with ReLU between and half the squared error, unit by unit.

    Yields the layers, and the ages of all layers' units.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [(w.copy(), b.copy()) for w, b in layers]
    zeros = [[np.zeros_like(part) for part in layer] for layer in layers]
    m, v, n = ([[part.copy() for part in layer] for layer in zeros] for _ in range(3))
    ages, utilities = ([np.zeros(len(b)) for _, b in layers[:-1]] for _ in range(2))
    budgets = [0.0] * len(ages)
    for x, y in samples:
        activations = [x]
        for i, (w, b) in enumerate(layers):
            z = activations[-1] @ w.T + b
            activations.append(z if i == len(layers) - 1 else np.maximum(z, 0))
        error = (activations[-1] - y) / len(x)
        gradients: list[tuple[Array, Array]] = []
        for i in reversed(range(len(layers))):
            gradients.insert(0, (error.T @ activations[i], error.sum(axis=0)))
            error = (error @ layers[i][0]) * (activations[i] > 0)
        for i, layer in enumerate(layers):
            for k, part in enumerate(layer):
                g = gradients[i][k]
                n[i][k] += 1
                m[i][k] = 0.9 * m[i][k] + 0.1 * g
                v[i][k] = 0.999 * v[i][k] + 0.001 * g**2
                adam = m[i][k] / (1 - 0.9 ** n[i][k]) / (np.sqrt(v[i][k] / (1 - 0.999 ** n[i][k])) + 1e-8)
                part -= lr * (adam if base == "adamw" else g)
        for i, age in enumerate(ages):
            age += 1
            for unit in range(len(age)):
                contribution = np.abs(activations[i + 1][:, unit]).mean() * np.abs(layers[i + 1][0][:, unit]).mean()
                utilities[i][unit] = decay * utilities[i][unit] + (1 - decay) * contribution
            mature = [unit for unit in range(len(age)) if age[unit] > maturity]
            budgets[i] += rate * len(mature)
            mature.sort(key=lambda unit: utilities[i][unit] / (1 - decay ** age[unit]))
            chosen = mature[: int(budgets[i])]
            budgets[i] -= len(chosen)
            if not chosen:
                continue
            fan_in = layers[i][0].shape[1]
            drawn = torch.rand(len(chosen), fan_in, generator=generator, dtype=torch.float64).numpy()
            for unit, numbers in zip(chosen, drawn, strict=True):
                layers[i][0][unit], layers[i][1][unit] = (2 * numbers - 1) / math.sqrt(fan_in), 0
                layers[i + 1][0][:, unit] = 0
                age[unit] = utilities[i][unit] = 0
                for known in (m, v, n):
                    known[i][0][unit] = known[i][1][unit] = known[i + 1][0][:, unit] = 0
        yield layers, ages
