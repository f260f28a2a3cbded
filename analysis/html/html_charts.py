"""What the charts of the HTML report show, as compact JSON.

Values are stored as 16-bit numbers between the limits of their chart: a line of 1,000 points takes 2.7 kB, and a
trajectory over three decades is off by at most 0.006 %.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import (
    Diverged,
    common_boundaries,
    counted_runs,
    default_window,
    is_regression,
    mean_interval,
    means_by_experience,
    sample_scores,
    squared_errors,
    trajectories_of_blocks,
    windowed_accuracy,
)

MAX_POINTS = 1000  # per line
MIN_POINTS = 100
MAX_VALUES = 1_000_000  # of all trajectories of a page: 2.7 MB
MAX_BLOCKS = 12  # per learner
LOWEST_STEP_SIZE = 1e-30  # zero has no place on a logarithmic axis
_MISSING = 65535

QUANTITIES = {
    "step_size": ("Step sizes", "step size"),
    "weight_decay": ("Learned weight decays", "weight decay"),
    "momentum": ("Learned momenta", "1 − momentum"),
}


def points_per_line(parts: Sequence[Runs]) -> int:
    """How many points a trajectory may have, so that those of all runs of a page fit into it.

    Args:
        parts: the runs of each section.

    Returns:
        A number between `MIN_POINTS` and `MAX_POINTS`.
    """
    n_lines = sum(
        min(len(config["blocks"]), MAX_BLOCKS)
        for part in parts
        for config in part.configs.values()
        if config["learned_step_sizes"]
    )
    return int(np.clip(MAX_VALUES // max(1, n_lines), MIN_POINTS, MAX_POINTS))


def pack(lines: Sequence[np.ndarray], log: bool) -> tuple[dict[str, Any], list[str]]:
    """Store lines as 16-bit numbers.

    Args:
        lines: arrays [n_points]; NaN where there is no value. Where `log`, values that are not positive are missing.
        log: whether the numbers are spread evenly over the logarithms of the values.

    Returns:
        The scale (`log`, and the lowest and highest value as `low` and `high`), and each line in base 64: little-endian
        unsigned 16-bit numbers, 0 for `low`, 65,534 for `high`, 65,535 for a missing value.
    """
    values = [np.asarray(line, dtype=float) for line in lines]
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = [np.log(np.where(line >= LOWEST_STEP_SIZE, line, np.nan)) if log else line for line in values]
    finite = np.concatenate([line[np.isfinite(line)] for line in scaled]) if scaled else np.empty(0)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    width = (high - low) or 1.0
    packed = []
    for line in scaled:
        known = np.isfinite(line)
        numbers = np.full(len(line), _MISSING, dtype="<u2")
        numbers[known] = np.round((line[known] - low) / width * (_MISSING - 1)).astype("<u2")
        packed.append(base64.b64encode(numbers.tobytes()).decode())
    edges = (math.exp(low), math.exp(low + width)) if log else (low, low + width)
    return {"log": log, "low": edges[0], "high": edges[1]}, packed


def score_charts(runs: Runs, diverged: Diverged) -> list[dict[str, Any]]:
    """Charts of accuracy, or of squared error, over the stream: means over seeds with their intervals.

    Args:
        runs: runs of one stream.
        diverged: how diverged runs count, see `analysis.statistics.online_accuracy`.

    Returns:
        Charts; none if no run has come to an end.
    """
    counted = counted_runs(runs, diverged)
    if counted.empty:
        return []
    info = runs.configs[counted["path"].iloc[0]]["stream_info"]
    n_samples = int(runs.table["n_samples"].min())
    lengths = np.diff([*info["boundaries"], info["n_samples"]])
    if is_regression(runs):
        window = min(1000, n_samples)
        points = _points(window, n_samples)

        def in_window(path: str, _: Sequence[int]) -> np.ndarray:
            errors = squared_errors(runs, path)
            return windowed_accuracy(np.where(np.isinf(errors), np.nan, errors), window)[points]

        curves = _means(runs, counted, in_window)
        explanation = (
            f"Mean squared error of the last {window:,} predictions: mean over seeds and, where there are several, its "
            "95 % interval. A line ends where the first of its runs diverged."
        )
        return [
            _curves(runs, "squared_error", "Squared error", "mean squared error", explanation, points + 1, curves)
            | {"x_title": "sample", "span": [0, n_samples]}
        ]
    window = default_window(runs)
    points = _points(window, n_samples)
    sliding = _means(runs, counted, lambda path, _: 100 * windowed_accuracy(sample_scores(runs, path), window)[points])
    interval = "mean over seeds and, where there are several, its 95 % interval."
    explanation = f"Online accuracy over the last {window:,} samples: {interval}"
    y_title = "online accuracy (%)"
    charts = [
        _curves(runs, "sliding_accuracy", "Online accuracy over the stream", y_title, explanation, points + 1, sliding)
        | {"x_title": "sample", "span": [0, n_samples]}
    ]
    if 1 < len(lengths) <= MAX_POINTS:

        def by_experience(path: str, boundaries: Sequence[int]) -> np.ndarray:
            return 100 * means_by_experience(sample_scores(runs, path), boundaries)

        means = _means(runs, counted, by_experience)
        x = np.arange(1, len(lengths) + 1)
        explanation = f"Online accuracy within each experience: {interval}"
        chart = _curves(runs, "online_accuracy", "Online accuracy by experience", y_title, explanation, x, means)
        charts.append(chart | {"x_title": "experience", "boundaries": [], "span": [0.5, len(lengths) + 0.5]})
    return charts


def trajectory_chart(runs: Runs, quantity: str, max_points: int = MAX_POINTS) -> dict[str, Any] | None:
    """A chart of step sizes, weight decays or momenta over the stream: single seeds of each learner and block.

    Args:
        runs: runs of one stream, also diverged or incomplete ones.
        quantity: `"step_size"`, of learners with learned step sizes; `"weight_decay"` or `"momentum"`.
        max_points: per line; of a longer record, every second, third, … value is kept.

    Returns:
        The chart, or None if nothing has been recorded.
    """
    title, y_title = QUANTITIES[quantity]
    learners: list[dict[str, Any]] = []
    lines: list[np.ndarray] = []
    distances = [1]
    for order, label in enumerate(runs.labels):
        group = runs.table[runs.table["label"] == label]
        if quantity == "step_size" and not group["learned_step_sizes"].any():
            continue
        names = runs.configs[group["path"].iloc[0]]["blocks"]
        places = np.unique(np.linspace(0, len(names) - 1, min(len(names), MAX_BLOCKS)).round().astype(int))
        shown = [names[place] for place in places]
        steps, arrays, distance = trajectories_of_blocks(
            runs, list(group["path"]), quantity, shown, max_points=max_points
        )
        if not len(steps):
            continue
        distances.append(distance)
        blocks = []
        for number, block in enumerate(shown):
            seeds = list(arrays["value"][number])
            edges = [arrays[edge][number].T for edge in ("q25", "q75")]
            band = [_median(edge) for edge in edges] if np.isfinite(edges[0]).any() else []
            if any(np.isfinite(line).any() for line in seeds):
                blocks.append({"name": block, "seeds": len(seeds), "band": bool(band)})
                lines += [*seeds, *band]
        if blocks:
            learners.append(
                {
                    "learner": order,
                    "x": _compact(steps),
                    "seeds": [int(seed) for seed in group["seed"]],
                    "blocks": blocks,
                    "n_blocks": len(names),
                }
            )
    if not learners:
        return None
    scale, packed = pack(lines, log=True)
    texts = iter(packed)
    for learner in learners:
        for block in learner["blocks"]:
            block["seeds"] = [next(texts) for _ in range(block["seeds"])]
            block["band"] = [next(texts), next(texts)] if block["band"] else []
    explanation = (
        "One panel per block of parameters. Thin lines are single seeds, bold lines their median over the seeds that "
        "have come that far; vertical lines are the starts of experiences. A learner’s panels share a vertical axis."
    )
    if any(block["band"] for learner in learners for block in learner["blocks"]):
        explanation += (
            " Where a block holds many values, lines are their geometric means, and the band is their middle half."
        )
    if quantity == "momentum":
        explanation += " Shown is 1 − ρ: 1 over it is a horizon in samples."
    if max(distances) > 1:
        explanation += f" Of long records, one value in {max(distances)} is drawn."
    return {
        "name": {"step_size": "step_sizes"}.get(quantity, quantity),
        "kind": "trajectories",
        "title": title,
        "explanation": explanation,
        "x_title": "sample",
        "y_title": y_title,
        "span": [0, int(runs.table["n_samples"].max())],
        "boundaries": common_boundaries(runs),
        "scale": scale,
        "learners": learners,
    }


def _points(window: int, n_samples: int) -> np.ndarray:
    return np.unique(np.linspace(window - 1, n_samples - 1, MAX_POINTS).astype(int))


def _means(
    runs: Runs, counted: pd.DataFrame, to_curve: Callable[[str, Sequence[int]], np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean over seeds and half width of its interval, by label."""
    curves = {}
    for label in dict.fromkeys(counted["label"]):
        paths = counted.loc[counted["label"] == label, "path"]
        seeds = [to_curve(path, runs.configs[path]["stream_info"]["boundaries"]) for path in paths]
        mean, half_width = mean_interval(np.stack(seeds))
        curves[label] = (np.asarray(mean), np.asarray(half_width))
    return curves


def _curves(
    runs: Runs,
    name: str,
    title: str,
    y_title: str,
    explanation: str,
    x: np.ndarray,
    means: dict[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, Any]:
    log = name == "squared_error"
    several = {label: bool(np.isfinite(half_width).any()) for label, (_, half_width) in means.items()}
    lines: list[np.ndarray] = []
    for label, (mean, half_width) in means.items():
        edges = [mean - half_width, mean + half_width]
        # an interval that reaches below all errors is drawn down to a hundredth of the mean
        edges = [np.maximum(edges[0], mean / 100), edges[1]] if log else [np.clip(edge, 0, 100) for edge in edges]
        lines += [mean, *(edges if several[label] else [])]
    scale, packed = pack(lines, log)
    texts = iter(packed)
    learners = [
        {
            "learner": runs.labels.index(label),
            "mean": next(texts),
            "edges": [next(texts), next(texts)] if several[label] else [],
        }
        for label in means
    ]
    return {
        "name": name,
        "kind": "curves",
        "title": title,
        "explanation": explanation,
        "y_title": y_title,
        "x": _compact(x),
        "boundaries": common_boundaries(runs),
        "scale": scale,
        "learners": learners,
    }


def _compact(x: np.ndarray) -> dict[str, int] | list[int]:
    """Equally spaced numbers as their first one, distance and count."""
    distances = np.unique(np.diff(x))
    if len(x) > 2 and len(distances) == 1:
        return {"first": int(x[0]), "distance": int(distances[0]), "count": len(x)}
    return [int(value) for value in x]


def _median(columns: np.ndarray) -> np.ndarray:
    """Median of each row over what is known; NaN where nothing is."""
    known = np.isfinite(columns).any(axis=1)
    medians = np.full(len(columns), np.nan)
    medians[known] = np.nanmedian(columns[known], axis=1)
    return medians
