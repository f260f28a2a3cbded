"""How far estimates of the global hypergradient are from the true one: the tables and figures of docs/glocal.md.

    python docs/records/glocal/hypergradients.py [--out FOLDER] [--timing]

The hyperparameters are a few log step sizes β, which stay as they are. The local hypergradient of step t is h_tᵀ g_t,
with g_t the gradient of the outer loss and h_t how the weights have been moved by a change of β, in the last step
("greedy"), since the beginning without curvature ("Hessian-free") or exactly ("exact"). The true global hypergradient
is what the exact ones are in the long run, on average. Estimates from the first τ local ones:

    local        mean of the greedy ones
    truncated    mean of the last window of the exact ones
    mean         mean of the latter half of the exact ones, without any decomposition
    glocal       limit of the modes of window means (``optim/koopman.py``), of each kind of hypergradient
    exact        the whole run: what a single stream says about the expectation

Problems: a quadratic with noisy gradients, whose hypergradient is known in closed form, and an MLP on digits with a
fifth of the labels random.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from torch import nn

from continual_metaopt.analysis.figures.style import COLOURS, MARKERS, new_figure, save, styled
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.exact_step import TRACES
from continual_metaopt.optim.peers.glocal import Glocal
from continual_metaopt.optim.peers.koopman import dynamic_modes, lasting

Array = NDArray[np.float64]

SEEDS = 8
TAUS, WINDOWS, DELAYS = (200, 500, 1000, 2000), (1, 5, 10, 20, 50), (1, 2, 5, 10, 20)
TOLERANCES, KEEPS = (0.003, 0.01, 0.03, 0.1, 0.3), ("modulus", "one")
CENTRE = {"tau": 1000, "window": 20, "delays": 10, "tolerance": 0.03, "keep": "modulus"}
SWEPT = {"tau": TAUS, "window": WINDOWS, "delays": DELAYS, "tolerance": TOLERANCES}
MAX_SNAPSHOTS = 500  # of a decomposition, to bound its time

# The quadratic: ½ Σ λ w² with gradients λ w + σ ξ; each block of four weights has a step size of its own
CURVATURES = np.concatenate([np.geomspace(0.5, 2.0, 4), np.geomspace(0.1, 0.5, 4), np.geomspace(0.02, 0.1, 4)])
BLOCK = np.repeat(np.arange(3), 4)
STEP_SIZE, NOISE, AFAR = 0.1, 1.0, 3.0


@dataclass(frozen=True)
class Recording:
    """Local hypergradients of one problem and seed.

    Attributes:
        problem: name.
        sequences: kind → hypergradients [steps, hyperparameters].
        truth: the global hypergradient.
        whole_run: what the exact ones of the whole run say about it; None where the truth is in closed form.
    """

    problem: str
    sequences: dict[str, Array]
    truth: Array
    whole_run: Array | None = None


def by_block(values: Array) -> Array:
    """Sums over the weights of each block: the last dimension becomes the blocks."""
    return np.stack([values[..., block == BLOCK].sum(axis=-1) for block in np.unique(BLOCK)], axis=-1)


def true_hypergradient() -> Array:
    """d/d log α of the expected loss that SGD settles at on the quadratic: Σ α σ² / (2 − α λ)²."""
    return by_block(STEP_SIZE * NOISE**2 / (2 - STEP_SIZE * CURVATURES) ** 2)


def expected_quadratic(start: float | None, steps: int) -> dict[str, Array]:
    """The hypergradients' expectations on the quadratic, from moments of weights and traces.

    Args:
        start: initial weights; None for weights that have settled.
        steps: how many.
    """
    shrink, alpha, variance = 1 - STEP_SIZE * CURVATURES, STEP_SIZE, NOISE**2
    settled = alpha**2 * variance / (1 - shrink**2)
    square = settled if start is None else np.full_like(CURVATURES, start**2)
    with_origin = square  # E[w w₀], for the displacement w − w₀
    product, greedy = np.zeros_like(square), np.zeros_like(square)
    found: dict[str, list[Array]] = {"greedy": [], "Hessian-free": [], "exact": []}
    for _ in range(steps):
        for kind, values in (
            ("greedy", greedy),
            ("Hessian-free", CURVATURES * (square - with_origin)),
            ("exact", CURVATURES * product),
        ):
            found[kind].append(values)
        greedy = -alpha * CURVATURES * (CURVATURES * shrink * square - alpha * variance)
        product = shrink**2 * product - alpha * CURVATURES * shrink * square + alpha**2 * variance
        square = shrink**2 * square + alpha**2 * variance
        with_origin = shrink * with_origin
    return {kind: by_block(np.array(values)) for kind, values in found.items()}


def sampled_quadratic(start: float | None, steps: int, copies: int, seed: int) -> dict[str, Array]:
    """Hypergradients on the quadratic, each the mean of those of some independent copies."""
    random = np.random.RandomState(seed)
    shape = (copies, len(CURVATURES))
    settled = STEP_SIZE * NOISE / np.sqrt(1 - (1 - STEP_SIZE * CURVATURES) ** 2)
    w = random.standard_normal(shape) * settled if start is None else np.full(shape, start)
    origin, trace, last = w, np.zeros(shape), np.zeros(shape)
    found: dict[str, list[Array]] = {"greedy": [], "Hessian-free": [], "exact": []}
    for _ in range(steps):
        gradient = CURVATURES * w + NOISE * random.standard_normal(shape)
        for kind, h in (("greedy", last), ("Hessian-free", w - origin), ("exact", trace)):
            found[kind].append((h * gradient).mean(axis=0))
        last = -STEP_SIZE * gradient
        trace = (1 - STEP_SIZE * CURVATURES) * trace + last
        w = w + last
    return {kind: by_block(np.array(values)) for kind, values in found.items()}


def quadratic() -> Iterator[Recording]:
    """The quadratic from afar and settled, with expected hypergradients and with those of 100 streams and of one."""
    for name, start in (("from afar", AFAR), ("settled", None)):
        yield Recording(f"quadratic {name}, expected", expected_quadratic(start, max(TAUS)), true_hypergradient())
        for copies, seed in itertools.product((100, 1), range(SEEDS)):
            sequences = sampled_quadratic(start, max(TAUS), copies, seed)
            streams = "1 stream" if copies == 1 else f"{copies} streams"
            yield Recording(f"quadratic {name}, {streams}", sequences, true_hypergradient())


DIGITS_STEPS, DIGITS_END, DIGITS_STEP_SIZE, RANDOM_LABELS = 3000, 1000, 0.02, 0.2


def digits() -> Iterator[Recording]:
    """An MLP on noisy digits; outer losses are that of the next sample and that of 200 held-out ones."""
    runs = [digits_run(seed) for seed in track(range(SEEDS), description="digits", console=Console(stderr=True))]
    for outer in runs[0]:
        ends = np.array([run[outer]["exact"][-DIGITS_END:].mean(axis=0) for run in runs])
        for number, run in enumerate(runs):
            others = np.delete(ends, number, axis=0)
            yield Recording(f"digits, {outer}", run[outer], others.mean(axis=0), ends[number])


def digits_run(seed: int) -> dict[str, dict[str, Array]]:
    """Hypergradients of one stream of digits: outer loss → kind → array."""
    data = load_digits()
    x = torch.tensor(data.data / 16.0, dtype=torch.float64)
    y = torch.tensor(data.target)
    held_out, kept = x[:200], x[200:]
    random = np.random.RandomState(seed)
    order = random.randint(0, len(kept), DIGITS_STEPS)
    noisy = np.where(random.random_sample(DIGITS_STEPS) < RANDOM_LABELS, random.randint(0, 10, DIGITS_STEPS), -1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    params = list(model.parameters())
    never = 10**9  # so that the step sizes stay as they are
    optimizer = Glocal(
        blocks(model, "tensor"),
        DIGITS_STEP_SIZE,
        base="sgd",
        weight_decay=0.0,
        gamma=1.0,
        trace="l",
        tau=20 * never,
        window=never,
    )
    origin = [p.detach().clone() for p in params]
    last = [torch.zeros_like(p) for p in params]
    kinds = ("greedy", "Hessian-free", "exact")
    found: dict[str, dict[str, list[Any]]] = {
        outer: {kind: [] for kind in kinds} for outer in ("next sample", "200 held-out samples")
    }

    def products(outer: str, gradients: Any) -> None:
        traces: list[Any] = [optimizer.state[p][TRACES]["weights"] if p in optimizer.state else None for p in params]
        exact = sum(
            ((trace * g).flatten(1).sum(1) for trace, g in zip(traces, gradients, strict=True) if trace is not None),
            torch.zeros(len(params)),
        )
        found[outer]["exact"].append(exact.numpy())
        displacements = [p.detach() - start for p, start in zip(params, origin, strict=True)]
        for kind, moves in (("greedy", last), ("Hessian-free", displacements)):
            parts = [(move * g).sum().item() for move, g in zip(moves, gradients, strict=True)]
            found[outer][kind].append(np.array(parts))

    for index, label in zip(order, noisy, strict=True):
        outer_loss = nn.functional.cross_entropy(model(held_out), y[:200])
        products("200 held-out samples", torch.autograd.grad(outer_loss, params))
        target = y[200 + index] if label < 0 else torch.tensor(label)
        loss = nn.functional.cross_entropy(model(kept[index][None]), target[None])
        products("next sample", torch.autograd.grad(loss, params, retain_graph=True))
        before = [p.detach().clone() for p in params]
        optimizer.step(lambda loss=loss: loss)
        last = [p.detach() - old for p, old in zip(params, before, strict=True)]
    return {outer: {kind: np.array(values) for kind, values in by.items()} for outer, by in found.items()}


def errors(estimate: Array | None, truth: Array) -> dict[str, float]:
    """Relative error of an estimate and the cosine of its angle to the truth; none where there is no estimate."""
    if estimate is None:
        return {"error": math.nan, "cosine": math.nan}
    lengths = float(np.linalg.norm(estimate) * np.linalg.norm(truth))
    return {
        "error": float(np.linalg.norm(estimate - truth) / np.linalg.norm(truth)),
        "cosine": float(estimate @ truth) / lengths if lengths > 0 else math.nan,
    }


def snapshots_of(sequence: Array, tau: int, window: int) -> Array:
    """Window means of the first τ hypergradients."""
    means: Array = sequence[:tau].reshape(tau // window, window, -1).mean(axis=1)
    return means


def estimates(recording: Recording) -> Iterator[dict[str, Any]]:
    """Each estimate at each setting, with its errors."""
    exact, greedy = recording.sequences["exact"], recording.sequences["greedy"]
    if recording.whole_run is not None:
        yield {"estimate": "exact", **errors(recording.whole_run, recording.truth)}
    for tau in TAUS:
        yield {"estimate": "local", "tau": tau, **errors(greedy[:tau].mean(axis=0), recording.truth)}
        yield {"estimate": "mean", "tau": tau, **errors(exact[tau // 2 : tau].mean(axis=0), recording.truth)}
        for window in WINDOWS:
            truncated = exact[tau - window : tau].mean(axis=0)
            yield {"estimate": "truncated", "tau": tau, "window": window, **errors(truncated, recording.truth)}
    for kind, tau, window, delays in itertools.product(recording.sequences, TAUS, WINDOWS, DELAYS):
        n_snapshots = tau // window
        if delays + 2 <= n_snapshots <= MAX_SNAPSHOTS:
            modes = dynamic_modes(snapshots_of(recording.sequences[kind], tau, window), delays)
            setting = {"estimate": f"glocal, {kind}", "tau": tau, "window": window, "delays": delays}
            for tolerance, keep in itertools.product(TOLERANCES, KEEPS):
                found = lasting(modes, tolerance, keep)  # type: ignore[arg-type]
                yield setting | {"tolerance": tolerance, "keep": keep} | errors(found, recording.truth)


SETTINGS = ("tau", "window", "delays", "tolerance", "keep")


def summary() -> pd.DataFrame:
    """Medians and quartiles over seeds of each estimate's errors at each setting."""
    rows = []
    for recording in track([*quadratic(), *digits()], description="estimates", console=Console(stderr=True)):
        rows += [{"problem": recording.problem, **row} for row in estimates(recording)]
    groups = pd.DataFrame(rows).groupby(["problem", "estimate", *SETTINGS], sort=False, dropna=False)
    table = groups["error"].quantile([0.25, 0.5, 0.75]).unstack()
    table.columns = pd.Index(["error_q25", "error", "error_q75"])
    cosine = groups["cosine"].quantile([0.25, 0.5, 0.75]).unstack()
    table[["cosine_q25", "cosine", "cosine_q75"]] = cosine.to_numpy()
    table["skipped"] = groups["error"].agg(lambda values: values.isna().mean())
    table["seeds"] = groups.size()
    return table.reset_index()


def around_centre(table: pd.DataFrame) -> pd.DataFrame:
    """The settings that differ from the central ones in one thing at most."""
    differs = sum(((table[name] != value) & table[name].notna()).astype(int) for name, value in CENTRE.items())
    return table[differs <= 1]


def best(table: pd.DataFrame) -> pd.DataFrame:
    """For each problem and estimate the setting with the smallest median error, if it nearly always has an estimate."""
    usable = table[table["skipped"] <= 0.1]
    return usable.loc[usable.groupby(["problem", "estimate"], sort=False)["error"].idxmin().dropna()]


def shown(table: pd.DataFrame, quantity: str) -> str:
    """Median (quartiles) of a quantity, a row per problem, a column per estimate; – where most seeds have none."""
    number = error_shown if quantity == "error" else "{:.2f}".format
    columns = [table[name] for name in (quantity, f"{quantity}_q25", f"{quantity}_q75", "skipped", "seeds")]
    cells = [
        "–" if skipped > 0.5 else number(middle) if seeds == 1 else f"{number(middle)} ({number(low)}–{number(high)})"
        for middle, low, high, skipped, seeds in zip(*columns, strict=True)
    ]
    text = table.assign(cell=cells).pivot(index="problem", columns="estimate", values="cell").fillna("")
    estimates = [name for name in (*ESTIMATES, "exact") if name in text.columns]
    return str(text.loc[table["problem"].unique(), estimates].to_markdown(disable_numparse=True))


def error_shown(value: float) -> str:
    """With two decimals, or in powers of ten where these would be 0."""
    return f"{value:.2f}" if value >= 0.005 else f"{value:.0e}"


LEAST_ERROR = 1e-3  # that the figure shows

ESTIMATES = ("glocal, exact", "glocal, greedy", "glocal, Hessian-free", "truncated", "mean", "local")


@styled
def figure(table: pd.DataFrame, quantity: str) -> Any:
    """One row of panels per problem, one column per setting that is varied about the central ones.

    Points are medians over seeds, bands quartiles; where more than half of the seeds have no estimate, there is none.
    """
    problems = list(table["problem"].unique())
    drawing = new_figure("page", 1.05 * len(problems) + 0.7)
    grid: Any = drawing.subplots(len(problems), len(SWEPT), sharey="row", sharex="col", squeeze=False)
    for (row, problem), (column, (setting, values)) in itertools.product(enumerate(problems), enumerate(SWEPT.items())):
        axes = grid[row, column]
        for name, colour, marker in zip(ESTIMATES, COLOURS, MARKERS, strict=False):
            part = table[(table["problem"] == problem) & (table["estimate"] == name)]
            for other, value in CENTRE.items():
                if other != setting:
                    part = part[(part[other] == value) | part[other].isna()]
            if part[setting].isna().all():  # does not depend on it
                part = part.loc[part.index.repeat(len(values))].assign(**{setting: values}) if len(part) == 1 else part
            part = part[part["skipped"] <= 0.5].sort_values(setting)
            axes.plot(
                part[setting],
                part[quantity].clip(lower=LEAST_ERROR if quantity == "error" else -1),
                color=colour,
                marker=marker,
                ms=3,
                lw=0.9,
                label=name,
            )
            if len(part) and part["seeds"].max() > 1:
                low, high = part[f"{quantity}_q25"], part[f"{quantity}_q75"]
                axes.fill_between(part[setting], low, high, color=colour, alpha=0.15, lw=0)
        axes.set_xscale("log")
        if quantity == "error":
            axes.set_yscale("log")
            axes.axhline(1, color="k", lw=0.6, ls=":")
        else:
            axes.set_ylim(-1.05, 1.05)
            axes.axhline(0, color="k", lw=0.6, ls=":")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        if row == len(problems) - 1:
            axes.set_xlabel({"tau": "τ (samples)", "window": "window (samples)"}.get(setting, setting))
        if column == 0:
            axes.set_ylabel({"error": "relative error", "cosine": "cosine"}[quantity])
            axes.set_title(problem, loc="left")
    drawing.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(ESTIMATES))
    return drawing


def timing(rounds: int = 7, steps: int = 200) -> pd.DataFrame:
    """Time and memory of the learners behind the estimates on the digits' MLP; times relative to a fixed step size."""
    kinds: dict[str, dict[str, Any]] = {
        "fixed step size": {"meta_lr": 0.0},
        "glocal, greedy": {"gamma": 0.0},
        "glocal, Hessian-free": {"gamma": 1.0},
        "glocal, exact": {"gamma": 1.0, "trace": "l"},
    }
    learners = {}
    for name, options in kinds.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
        learners[name] = model, Glocal(blocks(model, "tensor"), 1e-3, **options)
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    x, y = torch.rand(steps, 1, 64), torch.randint(10, (steps, 1))
    for _ in range(rounds):
        for name, (model, optimizer) in learners.items():
            start = time.perf_counter()
            for sample, label in zip(x, y, strict=True):
                loss = nn.functional.cross_entropy(model(sample), label)
                if optimizer.wants_graph:
                    optimizer.step(lambda loss=loss: loss)
                else:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            seconds[name].append((time.perf_counter() - start) / steps)
    plain = seconds["fixed step size"]
    return pd.DataFrame(
        {
            "learner": name,
            "time of a step": f"{statistics.median(a / b for a, b in zip(times, plain, strict=True)):.2f} ×",
            "numbers kept": f"{numbers_kept(learners[name][1].state_dict()):,}",
        }
        for name, times in seconds.items()
    )


def numbers_kept(state: Any) -> int:
    """How many numbers a state holds, in tensors and lists."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    if isinstance(state, dict):
        return sum(numbers_kept(part) for key, part in state.items() if key != "params")
    if isinstance(state, list | tuple):
        return sum(numbers_kept(part) for part in state)
    return int(isinstance(state, float))


def decompositions(rounds: int = 200) -> pd.DataFrame:
    """Time of a decomposition of noisy snapshots of four numbers, here and by PyDMD."""
    try:
        from pydmd import HankelDMD
    except ImportError as error:
        raise SystemExit("the comparison needs PyDMD: pip install pydmd, or the extra peers") from error
    random = np.random.RandomState(0)
    rows = []
    for n in (20, 50, 200):
        snapshots = 1 + 0.9 ** np.arange(n)[:, np.newaxis] + 0.3 * random.standard_normal((n, 4))

        def of_pydmd(snapshots: Array = snapshots) -> Any:
            return HankelDMD(svd_rank=0, d=10, opt=True).fit(snapshots.T)

        ways = {"here": lambda snapshots=snapshots: dynamic_modes(snapshots, 10), "PyDMD": of_pydmd}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                spent[name].append(time.perf_counter() - start)
        rows.append({"snapshots": n} | {f"{name} (ms)": f"{1e3 * min(t):.2f}" for name, t in spent.items()})
    return pd.DataFrame(rows)


def main() -> None:
    """Measure, print the tables, and write them and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/hypergradients"), help="folder (default: %(default)s)")
    parser.add_argument("--timing", action="store_true", help="measure time and memory instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.timing:
        for table in (timing(), decompositions()):
            print(table.to_markdown(index=False, disable_numparse=True), end="\n\n")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = summary()
    around_centre(table).round(4).to_csv(arguments.out / "around_centre.csv", index=False)
    best(table).round(4).to_csv(arguments.out / "best.csv", index=False)
    for quantity in ("error", "cosine"):
        save(figure(table, quantity), arguments.out, quantity, ["png"])
    centre = around_centre(table)
    for name, value in CENTRE.items():
        centre = centre[(centre[name] == value) | centre[name].isna()]
    print(f"Relative error\n\n{shown(centre, 'error')}\n\nCosine\n\n{shown(centre, 'cosine')}")


if __name__ == "__main__":
    main()
