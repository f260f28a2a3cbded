"""What the charts of the HTML report show, as compact JSON.

Values are stored as 16-bit numbers between the limits of their chart: a line of 1,000 points takes 2.7 kB, and a
trajectory over three decades is off by at most 0.006 %.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from continual_metaopt.analysis import statistics
from continual_metaopt.analysis.figures.accuracy import MAX_POINTS, experience_curves, sliding_curves
from continual_metaopt.analysis.figures.trajectories import MAX_PANELS, QUANTITIES
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import Diverged
from continual_metaopt.analysis.text import is_text, sample_bits

MIN_POINTS = 100
MAX_VALUES = 1_000_000  # of all trajectories of a page: 2.7 MB
LOWEST_STEP_SIZE = 1e-30  # zero has no place on a logarithmic axis
_MISSING = 65535


def points_per_line(parts: Sequence[Runs]) -> int:
    """How many points a trajectory may have, from `MIN_POINTS` to `MAX_POINTS`, so that all of a page fit into it."""
    n_lines = sum(
        min(len(config["blocks"]), MAX_PANELS)
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
    """Charts of accuracy, or of squared error, of the runs that have ended: means over seeds with intervals."""
    if statistics.counted_runs(runs, diverged).empty:
        return []
    n_samples, n_experiences = int(runs.table["n_samples"].min()), len(statistics.experience_lengths(runs))
    if statistics.is_regression(runs):
        window = min(1000, n_samples)
        seen, errors = sliding_curves(runs, window, None, diverged, statistics.squared_errors)
        explanation = (
            f"Mean squared error of the last {window:,} predictions: mean over seeds and, where there are several, its "
            "95 % interval. A line ends where the first of its runs diverged."
        )
        return [
            _curves(runs, "squared_error", "Squared error", "mean squared error", explanation, seen, errors)
            | {"x_title": "sample", "span": [0, n_samples]}
        ]
    window = statistics.default_window(runs)
    seen, sliding = sliding_curves(runs, window, None, diverged)
    interval = "mean over seeds and, where there are several, its 95 % interval."
    explanation = f"Online accuracy over the last {window:,} samples: {interval}"
    y_title = "online accuracy (%)"
    over_stream = {"x_title": "sample", "span": [0, n_samples]}
    charts = [
        _curves(runs, "sliding_accuracy", "Online accuracy over the stream", y_title, explanation, seen, sliding)
        | over_stream
    ]
    if is_text(runs):
        seen, bits = sliding_curves(runs, window, None, diverged, sample_bits)
        explanation = f"Bits per byte over the last {window:,} symbols: {interval}"
        charts.append(
            _curves(runs, "bits_per_byte", "Bits per byte over the stream", "bits per byte", explanation, seen, bits)
            | over_stream
        )
    if 1 < n_experiences <= MAX_POINTS:
        means = experience_curves(runs, None, diverged)
        x = np.arange(1, n_experiences + 1)
        explanation = f"Online accuracy within each experience: {interval}"
        chart = _curves(runs, "online_accuracy", "Online accuracy by experience", y_title, explanation, x, means)
        charts.append(chart | {"x_title": "experience", "boundaries": [], "span": [0.5, n_experiences + 0.5]})
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
    learners: list[dict[str, Any]] = []
    lines: list[np.ndarray] = []
    distances = [1]
    for order, label in enumerate(runs.labels):
        group = runs.table[runs.table["label"] == label]
        if quantity == "step_size" and not group["learned_step_sizes"].any():
            continue
        names = runs.first_config(label)["blocks"]
        shown = statistics.evenly_chosen(names, MAX_PANELS)
        steps, arrays, distance = statistics.trajectories_of_blocks(
            runs, list(group["path"]), quantity, shown, max_points=max_points
        )
        if not len(steps):
            continue
        distances.append(distance)
        blocks = []
        for number, block in enumerate(shown):
            seeds = list(arrays["value"][number])
            edges = [pd.DataFrame(arrays[edge][number]) for edge in ("q25", "q75")]
            band = [edge.median().to_numpy() for edge in edges] if edges[0].notna().any(axis=None) else []
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
        "title": QUANTITIES[quantity].many.capitalize(),
        "explanation": explanation,
        "x_title": "sample",
        "y_title": QUANTITIES[quantity].axis,
        "span": [0, int(runs.table["n_samples"].max())],
        "boundaries": statistics.common_boundaries(runs),
        "scale": scale,
        "learners": learners,
    }


def _curves(
    runs: Runs,
    name: str,
    title: str,
    y_title: str,
    explanation: str,
    x: np.ndarray,
    curves: dict[str, np.ndarray],
) -> dict[str, Any]:
    """A chart of means over seeds, with their intervals, of curves [n_seeds, n_points]."""
    means = {label: statistics.mean_interval(of_seeds) for label, of_seeds in curves.items()}
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
        "boundaries": statistics.common_boundaries(runs),
        "scale": scale,
        "learners": learners,
    }


def _compact(x: np.ndarray) -> dict[str, int] | list[int]:
    """Equally spaced numbers as their first one, distance and count."""
    distances = np.unique(np.diff(x))
    if len(x) > 2 and len(distances) == 1:
        return {"first": int(x[0]), "distance": int(distances[0]), "count": len(x)}
    return [int(value) for value in x]
