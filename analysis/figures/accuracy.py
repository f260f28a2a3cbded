"""Online accuracy, squared error and bits per byte over the stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from continual_metaopt.analysis import statistics
from continual_metaopt.analysis.figures.style import (
    Width,
    draw_boundaries,
    label_powers,
    legend_below,
    line_of,
    new_figure,
    plain_ticks,
    styled,
    thousands,
)
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import Diverged
from continual_metaopt.analysis.text import is_text, sample_bits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MAX_POINTS = 1000  # per line
MAX_COLOURED, N_BEST = 8, 6  # of more learners than can be told apart, so many of the best have colours


@styled
def online_accuracy_by_experience(
    runs: Runs, labels: Sequence[str] | None = None, *, diverged: Diverged = "chance", width: Width = "column"
) -> Figure:
    """Online accuracy in each experience of the stream.

    Caption: Lines are means over seeds of the online accuracy within each experience; bands are 95 % Student-t
    intervals over seeds. Samples that a diverged run did not see count as chance. Where the seeds of a learner fall in
    two groups, thin lines are single seeds, and the bold one is their median. Of more than eight learners that were not
    chosen, the best six have colours.
    """
    curves = experience_curves(runs, labels, diverged)
    n_experiences = next(iter(curves.values())).shape[1]
    figure, axes = _figure(width, "experience", "online accuracy (%)")
    marker = "o" if n_experiences <= 20 else None
    _draw_means(axes, np.arange(1, n_experiences + 1), curves, runs.labels, marker, chosen=labels is not None)
    axes.set_xlim(0.5, n_experiences + 0.5)
    axes.locator_params(axis="x", integer=True)
    return figure


@styled
def test_accuracy_by_experience(
    runs: Runs, labels: Sequence[str] | None = None, *, diverged: Diverged = "chance", width: Width = "column"
) -> Figure:
    """Test accuracy at the end of each experience, on held-out samples of that experience.

    Caption: Lines are means over seeds of the test accuracy on held-out samples of an experience, measured at its end;
    bands are 95 % Student-t intervals over seeds. Experiences that a diverged run did not complete count as chance.
    Where the seeds of a learner fall in two groups, thin lines are single seeds, and the bold one is their median.

    Args:
        diverged: how diverged runs count, see `analysis.statistics.test_accuracy_by_experience`.
    """
    runs.require_one_stream()
    statistics.require_labels(runs, list(labels or []))
    measured = statistics.test_accuracy_by_experience(runs, diverged)
    drawn = measured[measured["label"].isin(runs.labels if labels is None else labels)]
    if drawn.empty:
        raise ValueError("none of these runs recorded a test accuracy, so there is nothing to draw")
    numbers = sorted(drawn["experience"].unique())
    curves = {
        str(label): 100 * group.pivot(index="seed", columns="experience", values="test_accuracy")[numbers].to_numpy()
        for label, group in drawn.groupby("label", sort=False, observed=True)
    }
    figure, axes = _figure(width, "experience", "test accuracy (%)")
    _draw_means(
        axes, np.array(numbers) + 1, curves, runs.labels, "o" if len(numbers) <= 20 else None, chosen=labels is not None
    )
    axes.locator_params(axis="x", integer=True)
    return figure


@styled
def sliding_accuracy(
    runs: Runs,
    window: int | None = None,
    labels: Sequence[str] | None = None,
    *,
    diverged: Diverged = "chance",
    width: Width = "column",
) -> Figure:
    """Online accuracy in a sliding window over the stream.

    Caption: Lines are means over seeds of the online accuracy over the last samples, as many as the axis says; bands
    are 95 % Student-t intervals over seeds; thin vertical lines are the starts of experiences. Samples that a diverged
    run did not see count as chance. Where the seeds of a learner fall in two groups, thin lines are single seeds, and
    the bold one is their median.

    Args:
        window: number of samples. If None, a quarter of the shortest experience, which shows the course within an
            experience; in streams of more than 20 experiences, the longest experience, which shows the trend.

    Returns:
        The figure, with at most 1,000 points per line.
    """
    runs.require_one_stream()
    size = statistics.default_window(runs) if window is None else window
    seen, curves = sliding_curves(runs, size, labels, diverged)
    return _over_stream(runs, seen, curves, f"online accuracy (%),\nlast {size:,} samples", width, labels is not None)


@styled
def cumulative_accuracy(
    runs: Runs, labels: Sequence[str] | None = None, *, diverged: Diverged = "chance", width: Width = "column"
) -> Figure:
    """Online accuracy from the beginning of the stream up to each sample.

    Caption: Lines are means over seeds of the online accuracy over all samples so far; where they end is the average
    online accuracy. Bands are 95 % Student-t intervals over seeds; thin vertical lines are the starts of experiences.
    Samples that a diverged run did not see count as chance. The first hundredth of the stream is left out. Where the
    seeds of a learner fall in two groups, thin lines are single seeds, and the bold one is their median.

    Returns:
        The figure, with at most 1,000 points per line.
    """
    seen, curves = cumulative_curves(runs, labels, diverged)
    return _over_stream(runs, seen, curves, "online accuracy (%),\nall samples so far", width, labels is not None)


@styled
def sliding_squared_error(
    runs: Runs,
    window: int = 1000,
    labels: Sequence[str] | None = None,
    *,
    diverged: Diverged = "chance",
    width: Width = "column",
) -> Figure:
    """Squared error of a regression in a sliding window over the stream, on a logarithmic axis.

    Caption: Lines are means over seeds of the mean squared error of predictions over the last samples, as many as the
    axis says; bands are 95 % Student-t intervals over seeds. A line ends where the first of its runs diverged. Errors
    beyond a hundred times the least one are off the axis.

    Args:
        window: number of samples.
        diverged: `"exclude"` leaves diverged runs out.

    Returns:
        The figure, with at most 1,000 points per line.
    """
    runs.require_one_stream()
    if not statistics.is_regression(runs):
        raise ValueError("these runs are of a classification; sliding_accuracy shows how they went")
    seen, curves = sliding_curves(runs, window, labels, diverged, statistics.squared_errors)
    figure, axes = _figure(width, "sample", f"mean squared error,\nlast {window:,} samples")
    axes.set_yscale("log")
    label_powers(axes.yaxis)
    _draw_means(axes, seen, curves, runs.labels, limits=(0, np.inf), chosen=labels is not None)
    known = [float(np.nanmin(seeds)) for seeds in curves.values() if np.isfinite(seeds).any()]
    if known:  # something lasted for a window
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, min(known) / 1.5), min(high, 100 * min(known)))
    axes.set_xlim(0, int(seen[-1]))
    plain_ticks(axes.yaxis)
    thousands(axes, 6)
    return figure


@styled
def sliding_bits_per_byte(
    runs: Runs,
    window: int | None = None,
    labels: Sequence[str] | None = None,
    *,
    diverged: Diverged = "chance",
    width: Width = "column",
) -> Figure:
    """Bits per byte of text in a sliding window over the stream.

    Caption: Lines are means over seeds of the bits per byte of predictions over the last symbols, as many as the axis
    says; bands are 95 % Student-t intervals over seeds; thin vertical lines are the starts of experiences. A line ends
    where the first of its runs diverged.

    Args:
        window: number of symbols; if None, as for `sliding_accuracy`.
        diverged: `"exclude"` leaves diverged runs out.

    Returns:
        The figure, with at most 1,000 points per line.
    """
    runs.require_one_stream()
    if not is_text(runs):
        raise ValueError("these runs are not of text; sliding_accuracy shows how they went")
    size = statistics.default_window(runs) if window is None else window
    seen, curves = sliding_curves(runs, size, labels, diverged, sample_bits)
    y_label = f"bits per byte,\nlast {size:,} symbols"
    return _over_stream(runs, seen, curves, y_label, width, labels is not None, limits=(0, np.inf))


def experience_curves(
    runs: Runs, labels: Sequence[str] | None = None, diverged: Diverged = "chance"
) -> dict[str, np.ndarray]:
    """Online accuracy within each experience: label → accuracies in %, [n_seeds, n_experiences]."""
    return _curves(runs, labels, diverged, lambda scores, starts: 100 * statistics.means_by_experience(scores, starts))


def sliding_curves(
    runs: Runs,
    window: int,
    labels: Sequence[str] | None = None,
    diverged: Diverged = "chance",
    score: Callable[[Runs, str], np.ndarray] = statistics.sample_scores,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Means over the last samples, as many as the window has.

    Returns:
        Numbers of samples seen, [n_points], at most 1,000 up to the whole stream; label → accuracies in %, or, with
        `squared_errors` as scores, errors, NaN from where a run diverged: [n_seeds, n_points].
    """
    n_samples = int(runs.table["n_samples"].min())
    if not 1 <= window <= n_samples:
        raise ValueError(f"the window must have 1 to {n_samples} samples, not {window}")
    points = np.unique(np.linspace(window - 1, n_samples - 1, MAX_POINTS).astype(int))
    scale = 100 if score is statistics.sample_scores else 1

    def in_window(scores: np.ndarray, _: Sequence[int]) -> np.ndarray:
        return scale * statistics.windowed_accuracy(np.where(np.isinf(scores), np.nan, scores), window)[points]

    return points + 1, _curves(runs, labels, diverged, in_window, score)


def cumulative_curves(
    runs: Runs, labels: Sequence[str] | None = None, diverged: Diverged = "chance"
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Online accuracy over all samples so far, without the first hundredth of the stream; as of `sliding_curves`."""
    runs.require_one_stream()
    n_samples = int(runs.table["n_samples"].min())
    points = np.unique(np.linspace(n_samples // 100, n_samples - 1, MAX_POINTS).astype(int))
    curves = _curves(runs, labels, diverged, lambda scores, _: 100 * np.cumsum(scores)[points] / (points + 1))
    return points + 1, curves


def _curves(
    runs: Runs,
    labels: Sequence[str] | None,
    diverged: Diverged,
    to_curve: Callable[[np.ndarray, Sequence[int]], np.ndarray],
    score: Callable[[Runs, str], np.ndarray] = statistics.sample_scores,
) -> dict[str, np.ndarray]:
    """Turn the scores and boundaries of each counted run into a curve: label → [n_seeds, n_points]."""
    runs.require_one_stream()
    statistics.require_labels(runs, list(labels or []))
    curves: dict[str, list[np.ndarray]] = {}
    for path, label in statistics.counted_runs(runs, diverged)[["path", "label"]].itertuples(index=False):
        if labels is None or label in labels:
            boundaries = runs.configs[path]["stream_info"]["boundaries"]
            curves.setdefault(label, []).append(to_curve(score(runs, path), boundaries))
    if not curves:
        raise ValueError("none of these runs has come to an end, so there is nothing to draw")
    return {label: np.stack(seeds) for label, seeds in curves.items()}


def _figure(width: Width, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = new_figure(width, 2.1)
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _over_stream(
    runs: Runs,
    seen: np.ndarray,
    curves: dict[str, np.ndarray],
    y_label: str,
    width: Width,
    chosen: bool,
    limits: tuple[float, float] = (0, 100),
) -> Figure:
    """Accuracies or bits over numbers of samples seen, with the starts of experiences."""
    figure, axes = _figure(width, "sample", y_label)
    _draw_means(axes, seen, curves, runs.labels, limits=limits, chosen=chosen)
    draw_boundaries(axes, runs)
    axes.set_xlim(0, int(seen[-1]))
    thousands(axes, 6)
    return figure


def _draw_means(
    axes: Axes,
    x: np.ndarray,
    curves: dict[str, np.ndarray],
    all_labels: Sequence[str],
    marker: str | None = None,
    limits: tuple[float, float] = (0, 100),
    chosen: bool = False,
) -> None:
    """Draw means over seeds with their intervals, and the legend; of many learners, colours for the best alone."""
    shown = list(curves)
    if len(curves) > MAX_COLOURED and not chosen:
        means = {label: float(np.nanmean(seeds)) for label, seeds in curves.items()}
        best = sorted(curves, key=means.__getitem__, reverse=limits == (0, 100))[:N_BEST]
        shown = [label for label in curves if label in best]
    others = [label for label in curves if label not in shown]
    for label in others:
        axes.plot(x, curves[label].mean(axis=0), color="0.78", linewidth=0.5, zorder=1)
    for label in shown:
        style = line_of(all_labels if len(all_labels) <= MAX_COLOURED else shown, label)
        draw_curve(axes, x, curves[label], label, style, marker, limits)
    lines = [line for line in axes.get_lines() if line.get_label() in shown]
    if others:
        lines, shown = [*lines, axes.get_lines()[0]], [*shown, f"{len(others)} others"]
    legend_below(axes, shown, lines)


def draw_curve(
    axes: Axes,
    x: np.ndarray,
    seeds: np.ndarray,
    label: str,
    style: Mapping[str, Any],
    marker: str | None = None,
    limits: tuple[float, float] = (0, 100),
) -> None:
    """Draw the mean of seeds [n_seeds, n_points] with its interval; of accuracies in two groups, all and the median.

    Values with the limits (0, 100) are accuracies in %.
    """
    if limits == (0, 100) and statistics.is_bimodal(seeds.mean(axis=1)):
        axes.plot(x, seeds.T, color=style["color"], linewidth=0.3, alpha=0.6)
        axes.plot(x, np.median(seeds, axis=0), label=label, marker=marker, markersize=2.5, **style)
        return
    mean, half_width = statistics.mean_interval(seeds)
    axes.plot(x, mean, label=label, marker=marker, markersize=2.5, **style)
    if len(seeds) > 1:
        low, high = np.clip([mean - half_width, mean + half_width], *limits)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
