"""What it brings to revise the weights along with the step sizes: the figures of docs/dutch-traces.md.

    python docs/records/dutch_traces/dutch_traces.py

Linear models, squared error ½ (y − w·x)², SGD as base and meta update, the meta update first, as in IDBD. Two parts:
how far online learning is from the online forward view after 60 steps, and how that gap grows with the meta step size
η; and Sutton's tracking task of 1992: 20 inputs N(0, 1), the target is the sum of five of them with signs, of which one
flips every 20 examples; mean squared error of the 10,000 examples after the first 20,000, of the forward view itself,
too, which repeats the last 200 steps at every step: some minutes.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from tabulate import tabulate

Array = NDArray[Any]
Outcome = tuple[Array, Array, Array]  # errors of the predictions, weights, meta-parameters β

USUAL, SHARED, MOMENTS, MOMENTS_AND_TRACE = 0, 1, 2, 3  # what is revised when the step sizes change
REVISIONS = {
    USUAL: "nothing (usual trace)",
    SHARED: "w by h Δβ",
    MOMENTS: "w by η P g",
    MOMENTS_AND_TRACE: "w by η P g, h by η S g",
}
N_INPUTS, N_RELEVANT, FLIP_EVERY, BURN_IN, MEASURED = 20, 5, 20, 20_000, 10_000
META_LRS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03)
INITIAL = 0.05  # step size
SEEDS = 10  # of the tracking task
WINDOW = 200  # steps that the forward view repeats
FAILED = 5.0  # mean squared error of predicting 0


@numba.njit(cache=True)
def step_sizes_of(beta: Array, block: Array, log: bool, alpha: Array, slope: Array) -> None:
    """Each weight's step size and its derivative to β, written to ``alpha`` and ``slope``."""
    for i in range(block.size):
        value = beta[block[i]]
        alpha[i] = np.exp(value) if log else value
        slope[i] = alpha[i] if log else 1.0


@numba.njit(cache=True)
def learn_separate(
    x: Array, y: Array, beta: Array, eta: float, gamma: float, log: bool, curved: float, quadratic: float, revision: int
) -> Outcome:
    """Online learning with one step size per weight and a diagonal second derivative.

    Args:
        x: inputs (steps, n).
        y: targets (steps,).
        beta: initial meta-parameters (n,).
        eta: meta step size.
        gamma: discount.
        log: whether β are log step sizes; else they are the step sizes.
        curved: 1 for the trace of IDBD without its positive part, 0 for the Hessian-free one.
        quadratic: 1 for the squared error, 0 for the linear loss −y w·x.
        revision: what is revised, a key of ``REVISIONS``.

    Returns:
        Errors of the predictions, final weights and β.
    """
    steps, n = x.shape
    beta = beta.copy()
    w, trace, moment, bend, bend_moment = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    errors = np.zeros(steps)
    for t in range(steps):
        error = y[t] - quadratic * np.dot(x[t], w)
        errors[t] = error
        for i in range(n):
            grad = -error * x[t, i]
            change = -eta * trace[i] * grad
            beta[i] += change
            if revision == SHARED:
                w[i] += gamma * trace[i] * change
            elif revision >= MOMENTS:
                w[i] -= eta * moment[i] * grad
                if revision == MOMENTS_AND_TRACE:
                    trace[i] -= eta * bend_moment[i] * grad
        if revision != USUAL:
            error = y[t] - quadratic * np.dot(x[t], w)
        for i in range(n):
            grad = -error * x[t, i]
            alpha = np.exp(beta[i]) if log else beta[i]
            slope, second = (alpha, alpha) if log else (1.0, 0.0)
            curvature = curved * quadratic * x[t, i] ** 2
            keep, push, pull = 1 - alpha * curvature, -slope * grad, slope * curvature
            discounted = gamma * trace[i]
            if revision == MOMENTS_AND_TRACE:
                bend_push = -second * grad - pull * discounted
                bend_moment[i] = gamma * (
                    gamma * keep * (keep * bend_moment[i] + push * bend[i])
                    - pull * (keep * moment[i] + push * discounted)
                    + bend_push * (keep * trace[i] + push)
                )
                bend[i] = gamma * (gamma * keep * bend[i] + bend_push - pull * discounted)
            if revision >= MOMENTS:
                moment[i] = gamma * (keep * keep * moment[i] + keep * push * (trace[i] + discounted) + push * push)
            trace[i] = keep * discounted + push
            w[i] -= alpha * grad
    return errors, w, beta


@numba.njit(cache=True)
def learn_blocks(
    x: Array, y: Array, beta: Array, block: Array, eta: float, gamma: float, log: bool, quadratic: float, revision: int
) -> Outcome:
    """Online learning with the exact second derivative and step sizes that weights may share.

    ``block`` (n,) has the index of each weight's β; with ``MOMENTS``, P is a matrix (n, n). The rest as above.
    """
    steps, n = x.shape
    beta = beta.copy()
    m = beta.size
    w, trace, moment, push = np.zeros(n), np.zeros((n, m)), np.zeros((n, n)), np.zeros((n, m))
    alpha, slope = np.zeros(n), np.zeros(n)
    errors = np.zeros(steps)
    for t in range(steps):
        error = y[t] - quadratic * np.dot(x[t], w)
        errors[t] = error
        change = eta * error * (x[t] @ trace)
        beta += change
        if revision == SHARED:
            w += gamma * (trace @ change)
        elif revision == MOMENTS:
            w += eta * error * (moment @ x[t])
        if revision != USUAL:
            error = y[t] - quadratic * np.dot(x[t], w)
        step_sizes_of(beta, block, log, alpha, slope)
        for i in range(n):
            push[i, block[i]] = slope[i] * error * x[t, i]
        moved = trace - quadratic * np.outer(alpha * x[t], x[t] @ trace)
        if revision == MOMENTS:
            half = moment - quadratic * np.outer(alpha * x[t], x[t] @ moment)
            both = half - quadratic * np.outer(half @ x[t], alpha * x[t])
            moment = gamma * (both + gamma * moved @ push.T + push @ moved.T + push @ push.T)
        trace = gamma * moved + push
        w += alpha * error * x[t]
    return errors, w, beta


@numba.njit(cache=True)
def forward_view(
    x: Array,
    y: Array,
    beta: Array,
    block: Array,
    eta: float,
    gamma: float,
    log: bool,
    quadratic: float,
    diagonal: bool,
    window: int,
) -> Outcome:
    """The online forward view: at each loss, all past β are revised and the run is repeated with them.

    With ``diagonal``, derivatives are taken with the diagonal of the second derivative, as IDBD does. Steps before the
    last ``window`` are not repeated. The rest as above.
    """
    steps, n = x.shape
    m = beta.size
    start = 0
    start_w, w = np.zeros(n), np.zeros(n)
    betas = np.zeros((steps + 1, m))
    betas[0] = beta
    alpha, slope, grad = np.zeros((steps, n)), np.zeros((steps, n)), np.zeros((steps, n))
    effect = np.zeros((steps, m))  # of increasing all β from a time on, on the newest loss
    errors = np.zeros(steps)
    for t in range(steps):
        error = y[t] - quadratic * np.dot(x[t], w)
        errors[t] = error
        adjoint = -error * x[t]
        total = np.zeros(m)
        for s in range(t - 1, start - 1, -1):
            inner = 0.0
            for i in range(n):
                total[block[i]] -= slope[s, i] * grad[s, i] * adjoint[i]
                inner += x[s, i] * alpha[s, i] * adjoint[i]
            for i in range(n):
                if diagonal:
                    inner = x[s, i] * alpha[s, i] * adjoint[i]
                adjoint[i] -= quadratic * x[s, i] * inner
            effect[s] = total
        revision = gamma ** (t - start) * total
        for s in range(start, t + 1):
            betas[s] -= eta * revision
            if s < t:
                revision = revision + (1 - gamma) * gamma ** (t - 1 - s) * effect[s]
        w = start_w.copy()
        for s in range(start, t + 1):
            step_sizes_of(betas[s], block, log, alpha[s], slope[s])
            error = y[s] - quadratic * np.dot(x[s], w)
            for i in range(n):
                grad[s, i] = -error * x[s, i]
                w[i] -= alpha[s, i] * grad[s, i]
            if s == start and t - start == window:
                start_w = w.copy()
        if t - start == window:
            start += 1
        betas[t + 1] = betas[t]
    return errors, w, betas[steps]


def problem(seed: int, separate: bool, steps: int = 60, n: int = 4) -> tuple[Array, Array]:
    """A random linear regression; with ``separate``, one input at a time is not zero, so weights do not interact."""
    random = np.random.RandomState(seed)
    x = random.standard_normal((steps, n))
    if separate:
        x *= np.eye(n)[random.randint(0, n, steps)]
    return x, x @ random.standard_normal(n) + 0.5 * random.standard_normal(steps)


@dataclass(frozen=True, eq=False)
class Setting:
    """A kind of linear problem and step sizes: what they are called, and the arguments of the functions above."""

    name: str
    block: Array
    gamma: float = 1.0
    log: bool = True
    diagonal: bool = True
    curved: float = 1.0
    quadratic: float = 1.0
    separate: bool = False

    def beta(self, step_size: float) -> Array:
        """Initial meta-parameters for a step size."""
        return np.full(self.block.max() + 1, math.log(step_size) if self.log else step_size)

    def learn(self, x: Array, y: Array, step_size: float, eta: float, revision: int) -> Outcome:
        """Online learning."""
        beta, rest = self.beta(step_size), (self.quadratic, revision)
        if self.diagonal:
            return learn_separate(x, y, beta, eta, self.gamma, self.log, self.curved, *rest)
        return learn_blocks(x, y, beta, self.block, eta, self.gamma, self.log, *rest)

    def view(self, x: Array, y: Array, step_size: float, eta: float, window: int) -> Outcome:
        """The online forward view."""
        setting = (self.gamma, self.log, self.quadratic, self.diagonal)
        return forward_view(x, y, self.beta(step_size), self.block, eta, *setting, window)


def gaps(setting: Setting, revision: int, meta_lrs: Array) -> Array:
    """Largest distance of weights and of β from the forward view, mean of 10 problems; one row for each η."""
    rows = []
    for eta in meta_lrs:
        distances = []
        for seed in range(10):
            x, y = problem(seed, setting.separate)
            online, view = setting.learn(x, y, 0.1, eta, revision), setting.view(x, y, 0.1, eta, len(x))
            distances.append([np.abs(a - b).max() for a, b in zip(online[1:], view[1:], strict=True)])
        rows.append(np.mean(distances, axis=0))
    return np.array(rows)


def order(gap: Array, meta_lrs: Array) -> float:
    """Slope of log gap over log η; infinite where the gap is nothing but rounding."""
    return float(np.polyfit(np.log(meta_lrs), np.log(gap), 1)[0]) if gap.max() > 1e-12 else math.inf


ONE, EACH = np.zeros(4, dtype=np.int64), np.arange(4)
ORDER_SETTINGS = {
    Setting("each weight, one input at a time", EACH, separate=True): (USUAL, SHARED, MOMENTS, MOMENTS_AND_TRACE),
    Setting("each weight, diagonal", EACH): (USUAL, SHARED, MOMENTS, MOMENTS_AND_TRACE),
    Setting("one for all, exact trace", ONE, diagonal=False): (USUAL, SHARED, MOMENTS),
    Setting("each weight, linear loss", EACH, quadratic=0.0): (USUAL, SHARED, MOMENTS),
}


def order_table() -> list[dict[str, str]]:
    """Gap to the online forward view and its order in η, for kinds of step sizes, discounts and revisions."""
    rows = []
    for base, revisions in ORDER_SETTINGS.items():
        logs = (True, False) if base.quadratic else (False,)  # nothing stops a log step size on a linear loss
        for log, gamma in itertools.product(logs, (0.9, 1.0)):
            setting = replace(base, log=log, gamma=gamma)
            meta_lrs = (5e-4 if log else 5e-6) * 2.0 ** np.arange(5)
            for revision in revisions:
                gap = gaps(setting, revision, meta_lrs)
                row = {"step sizes": setting.name, "β": "log α" if log else "α", "γ": f"{gamma:g}"}
                row["revised"] = REVISIONS[revision]
                for column, name in enumerate(("w", "β")):
                    row[f"gap of {name}"] = f"{gap[-1, column]:.1e}"
                    row[f"order of {name}"] = f"{order(gap[:, column], meta_lrs):.2f}".replace("inf", "exact")
                rows.append(row)
    return rows


def tracking(seed: int, steps: int) -> tuple[Array, Array]:
    """Sutton's tracking task of 1992."""
    random = np.random.RandomState(seed)
    x = random.standard_normal((steps, N_INPUTS))
    flips = np.zeros((steps, N_RELEVANT))
    times = np.arange(0, steps, FLIP_EVERY)
    flips[times, random.randint(0, N_RELEVANT, times.size)] = 1
    signs = 1 - 2 * (flips.cumsum(axis=0) % 2)
    return x, (signs * x[:, :N_RELEVANT]).sum(axis=1)


def shown(errors: Array) -> str:
    """Mean ± standard deviation over seeds; seeds that failed are counted, not averaged."""
    failed = ~(errors < FAILED)
    kept = errors[~failed]
    text = f"{kept.mean():.3f} ± {kept.std(ddof=1):.3f}" if kept.size > 1 else "–"
    return f"{text} ({failed.sum()} failed)" if failed.any() else text


def gain(usual: Array, revised: Array) -> str:
    """Change of the error through revising, in per cent, mean ± standard error over the seeds where neither failed."""
    kept = (usual < FAILED) & (revised < FAILED)
    change = 100 * (revised[kept] / usual[kept] - 1)
    return f"{change.mean():+.2f} ± {change.std(ddof=1) / math.sqrt(kept.sum()):.2f}" if kept.sum() > 1 else "–"


EACH_INPUT, ONE_STEP_SIZE = np.arange(N_INPUTS), np.zeros(N_INPUTS, dtype=np.int64)
TRACKING_SETTINGS = {
    Setting("each weight, diagonal", EACH_INPUT, gamma=1.0): (USUAL, SHARED, MOMENTS_AND_TRACE),
    Setting("each weight, diagonal", EACH_INPUT, gamma=0.99): (USUAL, SHARED, MOMENTS, MOMENTS_AND_TRACE),
    Setting("each weight, Hessian-free", EACH_INPUT, gamma=0.99, curved=0.0): (USUAL, SHARED, MOMENTS),
    Setting("each weight, Hessian-free", EACH_INPUT, gamma=0.9, curved=0.0): (USUAL, SHARED, MOMENTS),
    Setting("one for all, exact trace", ONE_STEP_SIZE, gamma=0.99, diagonal=False): (USUAL, SHARED),
}


def measured(run: Callable[[Array, Array, float, float], Outcome], data: list[tuple[Array, Array]]) -> dict[str, Array]:
    """Mean squared error of each seed, for each η."""
    with np.errstate(all="ignore"):
        return {
            f"η = {eta:g}": np.array([np.square(run(x, y, INITIAL, eta)[0][BURN_IN:]).mean() for x, y in data])
            for eta in META_LRS
        }


def tracking_tables() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Mean squared errors on the tracking task, and their changes through revising."""
    data = [tracking(seed, BURN_IN + MEASURED) for seed in range(SEEDS)]
    errors, changes = [], []
    jobs = [(setting, revision) for setting, revisions in TRACKING_SETTINGS.items() for revision in revisions]
    usual: dict[str, Array] = {}
    for setting, revision in track(jobs, description="tracking", console=Console(stderr=True)):
        found = measured(partial(setting.learn, revision=revision), data)
        labels = {"step sizes": setting.name, "γ": f"{setting.gamma:g}", "revised": REVISIONS[revision]}
        errors.append(labels | {eta: shown(values) for eta, values in found.items()})
        if revision == USUAL:
            usual = found
        else:
            changes.append(labels | {eta: gain(usual[eta], values) for eta, values in found.items()})
    for setting in track(list(TRACKING_SETTINGS)[:2], description="forward view", console=Console(stderr=True)):
        found = measured(partial(setting.view, window=WINDOW), data)
        labels = {"step sizes": setting.name, "γ": f"{setting.gamma:g}", "revised": "everything (forward view)"}
        errors.append(labels | {eta: shown(values) for eta, values in found.items()})
    return errors, changes


def main() -> None:
    """Measure and print the tables."""
    errors, changes = tracking_tables()
    for title, rows in (
        ("Gap to the online forward view after 60 steps, at the largest η, and its order in η", order_table()),
        ("Mean squared error on the tracking task", errors),
        ("Change of that error in per cent, against the usual trace", changes),
    ):
        print(f"{title}\n\n{tabulate(rows, headers='keys', disable_numparse=True)}\n")


if __name__ == "__main__":
    main()
