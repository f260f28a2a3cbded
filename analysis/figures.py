"""Figures for a paper, in one style. Each function returns a Matplotlib figure; `save` writes it.

Nothing here touches pyplot, so a user's backend and settings stay as they are.
"""

from __future__ import annotations

import functools
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.files import write_whole
from analysis.ranking import FAMILIES, family
from analysis.runs import Runs
from analysis.statistics import (
    Diverged,
    accuracy_by_setting,
    counted_runs,
    is_regression,
    mean_interval,
    recorded_blocks,
    require_labels,
    sample_scores,
    squared_errors,
    windowed_accuracy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

P = ParamSpec("P")
Width = Literal["column", "full"]
MetaParameter = Literal["weight_decay", "momentum"]
Format = Literal["png", "pdf", "svg"]

WIDTHS: dict[str, float] = {"column": 3.3, "full": 6.8}  # inches
# Okabe and Ito's colours; grey instead of their yellow, which is too faint for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1)), (0, (5, 1.2, 1.2, 1.2)), (0, (2.5, 1)))
MAX_POINTS = 1000  # per line
MAX_PANELS = 12  # per learner

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "pdf.fonttype": 42,
    "svg.hashsalt": "the same names in every file",
}
_WITHOUT_DATE: dict[Format, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this module's style, whatever the user's settings."""

    @functools.wraps(draw)
    def draw_in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            return draw(*args, **kwargs)

    return draw_in_style


@_styled
def online_accuracy_by_experience(
    runs: Runs, labels: Sequence[str] | None = None, *, diverged: Diverged = "chance", width: Width = "column"
) -> Figure:
    """Online accuracy in each experience of the stream.

    Caption: Lines are means over seeds of the online accuracy within each experience; bands are 95 % Student-t
    intervals over seeds. Samples that a diverged run did not see count as chance.

    Args:
        runs: runs of one stream.
        labels: the learners to draw; all if None. Colours do not depend on the choice.
        diverged: how diverged runs count, see `analysis.statistics.online_accuracy`.
        width: `"column"` or `"full"`, of the page.

    Returns:
        The figure.

    Raises:
        ValueError: the runs come from several streams, no run counts, or a label does not occur.
    """

    def by_experience(scores: np.ndarray, boundaries: Sequence[int]) -> np.ndarray:
        lengths = np.diff([*boundaries, len(scores)])
        return 100 * np.add.reduceat(scores, boundaries) / lengths

    curves = _curves(runs, labels, diverged, by_experience)
    n_experiences = next(iter(curves.values())).shape[1]
    figure, axes = _accuracy_figure(width, "experience")
    marker = "o" if n_experiences <= 20 else None
    _draw_means(axes, np.arange(1, n_experiences + 1), curves, runs.labels, marker)
    axes.set_xlim(0.5, n_experiences + 0.5)
    axes.locator_params(axis="x", integer=True)
    return figure


@_styled
def sliding_accuracy(
    runs: Runs,
    window: int | None = None,
    labels: Sequence[str] | None = None,
    *,
    diverged: Diverged = "chance",
    width: Width = "column",
) -> Figure:
    """Online accuracy in a sliding window over the stream.

    Caption: Lines are means over seeds of the online accuracy over the last `window` samples; bands are 95 % Student-t
    intervals over seeds; thin vertical lines are the starts of experiences. Samples that a diverged run did not see
    count as chance.

    Args:
        runs: runs of one stream.
        window: number of samples. If None, a quarter of the shortest experience, which shows the course within an
            experience; in streams of more than 20 experiences, the longest experience, which shows the trend.
        labels: the learners to draw; all if None. Colours do not depend on the choice.
        diverged: how diverged runs count, see `analysis.statistics.online_accuracy`.
        width: `"column"` or `"full"`, of the page.

    Returns:
        The figure, with at most 1,000 points per line.

    Raises:
        ValueError: the runs come from several streams, no run counts, a label does not occur, or the window does not
            fit into the stream.
    """
    runs.require_one_stream()
    n_samples = int(runs.table["n_samples"].min())
    size = _default_window(runs) if window is None else window
    if not 1 <= size <= n_samples:
        raise ValueError(f"the window must have 1 to {n_samples} samples, not {size}")
    points = np.unique(np.linspace(size - 1, n_samples - 1, MAX_POINTS).astype(int))
    curves = _curves(runs, labels, diverged, lambda scores, _: 100 * windowed_accuracy(scores, size)[points])
    figure, axes = _accuracy_figure(width, "sample")
    axes.set_ylabel(f"online accuracy (%),\nlast {size:,} samples")
    _draw_means(axes, points + 1, curves, runs.labels)
    _draw_boundaries(axes, runs)
    axes.set_xlim(0, n_samples)
    _thousands(axes, 6)
    return figure


@_styled
def sliding_squared_error(
    runs: Runs,
    window: int = 1000,
    labels: Sequence[str] | None = None,
    *,
    diverged: Diverged = "chance",
    width: Width = "column",
) -> Figure:
    """Squared error of a regression in a sliding window over the stream, on a logarithmic axis.

    Caption: Lines are means over seeds of the mean squared error of predictions over the last `window` samples; bands
    are 95 % Student-t intervals over seeds. A line ends where the first of its runs diverged. Errors beyond a hundred
    times the least one are off the axis.

    Args:
        runs: runs of one stream.
        window: number of samples.
        labels: the learners to draw; all if None. Colours do not depend on the choice.
        diverged: `"exclude"` leaves diverged runs out.
        width: `"column"` or `"full"`, of the page.

    Returns:
        The figure, with at most 1,000 points per line.

    Raises:
        ValueError: the runs come from several streams or are not of a regression, no run counts, a label does not
            occur, or the window does not fit into the stream.
    """
    runs.require_one_stream()
    if not is_regression(runs):
        raise ValueError("these runs are of a classification; sliding_accuracy shows how they went")
    n_samples = int(runs.table["n_samples"].min())
    if not 1 <= window <= n_samples:
        raise ValueError(f"the window must have 1 to {n_samples} samples, not {window}")
    points = np.unique(np.linspace(window - 1, n_samples - 1, MAX_POINTS).astype(int))

    def in_window(errors: np.ndarray, _: Sequence[int]) -> np.ndarray:
        return windowed_accuracy(np.where(np.isinf(errors), np.nan, errors), window)[points]

    curves = _curves(runs, labels, diverged, in_window, squared_errors)
    figure = _new_figure(width, 2.1)
    axes = figure.subplots()
    axes.set_xlabel("sample")
    axes.set_ylabel(f"mean squared error,\nlast {window:,} samples")
    axes.set_yscale("log")
    _draw_means(axes, points + 1, curves, runs.labels, limits=(0, np.inf))
    least = min(float(np.nanmin(seeds)) for seeds in curves.values() if np.isfinite(seeds).any())
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, least / 1.5), min(high, 100 * least))
    axes.set_xlim(0, n_samples)
    _plain_ticks(axes.yaxis)
    _thousands(axes, 6)
    return figure


@_styled
def step_size_trajectories(
    runs: Runs,
    labels: Sequence[str] | None = None,
    *,
    blocks: Sequence[str] | None = None,
    steps: tuple[int, int] | None = None,
    width: Width = "full",
) -> Figure:
    """Step sizes over the stream: one panel per learner and block.

    Caption: Thin lines are the step sizes of single seeds, bold lines their median over the seeds that have come that
    far; thin vertical lines are the starts of experiences. Where a block holds many step sizes, lines are their
    geometric means, and the band holds the middle half of them, its edges being medians over seeds. Panels of one
    learner share their vertical axis.

    Args:
        runs: runs of one stream, also diverged or incomplete ones.
        labels: the learners to draw; if None, those with learned step sizes.
        blocks: the blocks to draw; if None, all of them, or 12 from first to last where a learner has more.
        steps: the first and the last step to draw; the whole stream if None.
        width: `"column"` or `"full"`, of the page.

    Returns:
        The figure.

    Raises:
        ValueError: the runs come from several streams, no step sizes were learned or recorded, or a label or block
            does not occur.
    """
    runs.require_one_stream()
    if labels is None:
        labels = runs.select(learned_step_sizes=True).labels
        if not labels:
            raise ValueError("no run has learned step sizes; name learners to see fixed ones")
    return _trajectory_figure(runs, "step_size", labels, blocks, steps, width)


@_styled
def meta_parameter_trajectories(
    runs: Runs,
    quantity: MetaParameter,
    labels: Sequence[str] | None = None,
    *,
    blocks: Sequence[str] | None = None,
    steps: tuple[int, int] | None = None,
    width: Width = "full",
) -> Figure:
    """Learned weight decays, or momenta, over the stream: one panel per learner and block.

    Caption: Thin lines are the values of single seeds (of momenta ρ: 1 − ρ, so that 1 over it is a horizon in samples),
    bold lines their median over the seeds that have come that far; thin vertical lines are the starts of experiences.
    Panels of one learner share their vertical axis.

    Args:
        runs: runs of one stream, also diverged or incomplete ones.
        quantity: `"weight_decay"` or `"momentum"`.
        labels: the learners to draw; if None, those that have recorded the quantity.
        blocks: the blocks to draw; if None, all of them, or 12 from first to last where a learner has more.
        steps: the first and the last step to draw; the whole stream if None.
        width: `"column"` or `"full"`, of the page.

    Returns:
        The figure.

    Raises:
        ValueError: the runs come from several streams, nothing has been recorded, or a label or block does not occur.
    """
    runs.require_one_stream()
    return _trajectory_figure(runs, quantity, runs.labels if labels is None else labels, blocks, steps, width)


def _trajectory_figure(
    runs: Runs,
    quantity: str,
    labels: Sequence[str],
    blocks: Sequence[str] | None,
    steps: tuple[int, int] | None,
    width: Width,
) -> Figure:
    require_labels(runs, list(labels))
    first, last = steps or (0, int(runs.table["n_samples"].max()))
    learners = {label: _trajectories(runs, quantity, label, blocks, first, last) for label in labels}
    learners = {label: panels for label, panels in learners.items() if panels}
    if not learners:
        raise ValueError(f"no {QUANTITIES[quantity].many} have been recorded for these learners, blocks and steps")
    # Many teeth close together would merge under a bold line.
    n_teeth = int(runs.table["n_experiences"].max()) * (last - first) / int(runs.table["n_samples"].max())
    bold = float(np.clip(20 / n_teeth, 0.5, 1.1))
    n_columns = max(_balanced_columns(len(panels), 5 if width == "full" else 2) for panels in learners.values())
    titles = {label: _row_title(runs, label, len(panels), blocks, width) for label, panels in learners.items()}
    n_rows = {label: math.ceil(len(panels) / n_columns) for label, panels in learners.items()}
    n_lines = sum(title.count("\n") for title in titles.values())
    figure = _new_figure(width, 0.5 + 1.05 * sum(n_rows.values()) + 0.15 * n_lines)
    grid = figure.subplots(sum(n_rows.values()), n_columns, sharex=True, squeeze=False)
    used = 0
    for label, panels in learners.items():
        colour = _line(runs.labels, label)["color"]
        _draw_learner(grid[used : used + n_rows[label]], runs, panels, titles[label], colour, bold)
        used += n_rows[label]
    grid[0, 0].set_xlim(first, last)
    _finish_grid(figure, grid, QUANTITIES[quantity].axis)
    return figure


@_styled
def around_boundaries(
    runs: Runs,
    label: str,
    *,
    quantities: Sequence[str] | None = None,
    blocks: Sequence[str] | None = None,
    before: int | None = None,
    after: int | None = None,
    width: Width = "column",
) -> Figure:
    """Do step sizes explain it? Accuracy, step sizes and diagnostics of one learner around the boundaries.

    Caption: Each panel is a quantity, averaged over all boundaries between experiences (geometrically where the axis is
    logarithmic) and then over seeds, by the number of samples since the boundary; negative numbers are before it.
    Bands are 95 % Student-t intervals over seeds, cut off where they would dwarf the lines. Colours are blocks of the
    network; black lines are about the whole network. Dots are values recorded at an interval. Dormant units and ranks
    are those on the last samples before, so that for a while after a boundary these are of two experiences.

    Args:
        runs: runs of one stream; what diverged or incomplete ones recorded counts as well.
        label: of the learner.
        quantities: what to draw, of `ALIGNED`; all that has been recorded if None.
        blocks: the blocks to draw; if None, all, or 6 from first to last where there are more.
        before: samples before a boundary to draw; a quarter of the shortest experience if None.
        after: samples after it; three quarters of the shortest experience if None.
        width: `"column"` or `"full"`, of the page.

    Returns:
        The figure.

    Raises:
        ValueError: the runs come from several streams, there is no such label, quantity or block, the stream has no
            boundary, or nothing has been recorded.
    """
    runs.require_one_stream()
    require_labels(runs, [label])
    panels = _aligned_panels(runs, label, quantities)
    several = [name for names in panels.values() if len(names) > 1 for name in names if name is not None]
    named = list(dict.fromkeys(several))
    shown = _shown_blocks(label, named, blocks)
    info = runs.configs[runs.table.loc[runs.table["label"] == label, "path"].iloc[0]]["stream_info"]
    shortest = int(np.diff([*info["boundaries"], info["n_samples"]]).min())
    before = shortest // 4 if before is None else before
    after = 3 * shortest // 4 if after is None else after
    options = {"before": before, "after": after, "width": max(1, (before + after) // 40)}
    figure = _new_figure(width, 0.6 + 0.68 * len(panels))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (quantity, names) in zip(grid, panels.items(), strict=True):
        tables = {
            name: statistics.around_boundaries(
                runs, label, quantity, name, geometric=ALIGNED[quantity].logarithmic, **options
            )
            for name in names
            if len(names) == 1 or name is None or name in shown
        }
        for name, table in tables.items():
            style = _line(shown, name) if name in shown else {"color": "black", "linestyle": "-"}
            _draw_aligned(axes, table, ALIGNED[quantity], style)
        axes.axvline(0, color="0.75", linewidth=0.6, zorder=0)
        _label_aligned(axes, pd.concat(tables.values()), ALIGNED[quantity])
    grid[-1].set_xlim(-before, after)
    grid[-1].set_xlabel("samples since the boundary")
    _thousands(grid[-1], 6)
    figure.align_ylabels(grid)
    figure.suptitle(textwrap.fill(label, 45), fontsize=8, fontweight="bold")
    if shown:
        from matplotlib.lines import Line2D

        styles = {name: _line(shown, name) for name in shown} | {"whole network": {"color": "black"}}
        _legend_below(grid[-1], list(styles), [Line2D([], [], **style) for style in styles.values()])
    return figure


def has_meta_parameter(runs: Runs, quantity: MetaParameter) -> bool:
    """Whether `meta_parameter_trajectories` has something to draw.

    Args:
        runs: the runs.
        quantity: `"weight_decay"` or `"momentum"`.

    Returns:
        True if a learner has recorded it.
    """
    return any(
        (runs.read(path, "measurements", ["quantity"])["quantity"] == quantity).any() for path in runs.table["path"]
    )


def has_trajectories(runs: Runs) -> bool:
    """Whether `step_size_trajectories` has something to draw.

    Args:
        runs: the runs.

    Returns:
        True if a learner with learned step sizes has recorded any.
    """
    learned = runs.select(learned_step_sizes=True).table["path"]
    return any(len(runs.read(path, "step_sizes", ["step"])) for path in learned)


@_styled
def sensitivity_maps(
    runs: Runs, settings: tuple[str, str, str] = ("gamma", "meta_lr", "lr"), *, diverged: Diverged = "chance"
) -> Figure:
    """Average online accuracy over three settings of each learner.

    Caption: Numbers and colours are average online accuracies in percent, means over runs. Each row of panels is a
    learner, each panel a value of the third setting. The frame marks the best of each learner. Samples that a diverged
    run did not see count as chance.

    Args:
        runs: runs of one stream.
        settings: options of the learner: across a panel, up a panel, and from panel to panel.
        diverged: how diverged runs count, see `analysis.statistics.online_accuracy`.

    Returns:
        The figure, as wide as the page.

    Raises:
        ValueError: the runs come from several streams, or no learner has these settings.
    """
    runs.require_one_stream()
    table = accuracy_by_setting(runs, settings, diverged)
    across, up, panel = settings
    labels, columns = list(dict.fromkeys(table["label"])), sorted(table[panel].unique())
    xs, ys = sorted(table[across].unique()), sorted(table[up].unique())
    figure = _new_figure("full", 0.35 + (0.2 + 0.16 * len(ys)) * len(labels))
    grid = figure.subplots(len(labels), len(columns), sharex=True, sharey=True, squeeze=False)
    percent = 100 * table["online_accuracy"]
    for row, label in zip(grid, labels, strict=True):
        best = percent[table["label"] == label].max()
        for axes, value in zip(row, columns, strict=True):
            part = table[(table["label"] == label) & (table[panel] == value)].assign(percent=percent)
            values = part.pivot(index=up, columns=across, values="percent").reindex(index=ys, columns=xs).to_numpy()
            _draw_map(axes, values, (percent.min(), percent.max()), best)
            title = f"{panel} = {value:g}"
            axes.set_title(f"{label}\n{title}" if axes is row[0] else title, loc="left", fontsize=6, pad=2)
            axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs], fontsize=4.4)
            axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys], fontsize=4.4)
    figure.supxlabel(across, fontsize=8)
    figure.supylabel(up, fontsize=8)
    return figure


def _draw_map(axes: Axes, percent: np.ndarray, limits: tuple[float, float], best: float) -> None:
    from matplotlib.patches import Rectangle

    low, high = limits
    axes.imshow(percent, cmap="cividis", vmin=low, vmax=high, aspect="auto", origin="lower")
    axes.tick_params(length=0, pad=1)
    for (row, column), value in np.ndenumerate(percent):
        if np.isfinite(value):
            colour = "white" if value < (low + high) / 2 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=4.6, color=colour)
        if value == best:
            frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.2)
            axes.add_patch(frame)


@_styled
def ranking_dots(table: pd.DataFrame, *, width: Width = "column") -> Figure:
    """Average online accuracy of many learners, untuned and tuned, one line for each.

    Caption: Hollow markers are untuned settings, filled ones tuned settings; lines through them are 95 % Student-t
    intervals over seeds. Learners are in the order of their tuned setting, where it was reported, else of their untuned
    one. Colours and shapes are kinds of learners. The vertical line is the baseline.

    Args:
        table: from `analysis.ranking.ranking`.
        width: `"column"` or `"full"`, of the page.

    Returns:
        The figure, whose height grows with the number of learners.
    """
    from matplotlib.lines import Line2D

    figure = _new_figure(width, 0.5 + 0.135 * len(table))
    axes = figure.subplots()
    styles = family_styles(table["family"])
    for place, row in enumerate(table.to_dict("records")):
        colour, marker = styles[row["family"]]
        apart = 0.15 * bool(
            np.isfinite(row["untuned"]) and np.isfinite(row["tuned"])
        )  # so that neither hides the other
        for column, filled, shift in (("untuned", "white", apart), ("tuned", colour, -apart)):
            drawn = {"fmt": marker, "color": colour, "markerfacecolor": filled, "markersize": 3.4}
            half_width = np.nan_to_num(row[f"{column}_ci"])
            axes.errorbar(row[column], place + shift, xerr=half_width, elinewidth=0.8, markeredgewidth=0.8, **drawn)
    _draw_baseline(axes, table)
    axes.set_yticks(range(len(table)), table["learner"], fontsize=6)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.92", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel("average online accuracy (%)")
    point: dict[str, Any] = {"linestyle": "", "markersize": 4}
    handles = [Line2D([], [], color=colour, marker=marker, **point) for colour, marker in styles.values()]
    settings = [Line2D([], [], color="0.3", marker="o", markerfacecolor=filled, **point) for filled in ("white", "0.3")]
    _legend_below(axes, [*styles, "untuned", "tuned"], [*handles, *settings])
    return figure


@_styled
def initial_step_sizes(table: pd.DataFrame) -> Figure:
    """Accuracy over the initial step size, one panel for each learner.

    Caption: Dots are average online accuracies of single seeds, lines their means. The grey line is the first learner,
    in every panel. Horizontal axes are the initial step size, or what stands for it where a name is given.

    Args:
        table: from `analysis.tuning.scores_over_option`.

    Returns:
        The figure, as wide as the page.
    """
    labels = list(dict.fromkeys(table["learner"]))
    n_columns = min(5, len(labels))
    n_rows = math.ceil(len(labels) / n_columns)
    figure = _new_figure("full", 0.4 + 0.98 * n_rows)
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    percent = table.assign(percent=100 * table["online_accuracy"])
    of_first = percent[percent["learner"] == labels[0]].groupby("value")["percent"].mean()
    for label, axes in zip(labels, grid.flat, strict=False):
        part = percent[percent["learner"] == label]
        colour, _ = family_styles([family(part["name"].iloc[0])])[family(part["name"].iloc[0])]
        if label != labels[0]:
            axes.plot(of_first.index, of_first, color="0.75", linewidth=0.8)
        means = part.groupby("value")["percent"].mean()
        axes.plot(means.index, means, color=colour)
        axes.plot(part["value"], part["percent"], "o", color=colour, markersize=2, alpha=0.7, markeredgewidth=0)
        option = part["option"].iloc[0]
        title = textwrap.fill(label if option == "lr" else f"{label} ({option})", 25)
        axes.set_title(title, loc="left", fontsize=6, pad=2)
    for axes in grid.flat[len(labels) :]:
        axes.set_visible(False)
    for column in range(n_columns):
        lowest = grid[(len(labels) - 1 - column) // n_columns, column]
        lowest.tick_params(axis="x", labelbottom=True)
    grid[0, 0].set_xscale("log")
    grid[0, 0].set_ylim(0, None)
    figure.supxlabel("initial step size", fontsize=8)
    figure.supylabel("average online accuracy (%)", fontsize=8)
    return figure


@_styled
def accuracy_against_time(table: pd.DataFrame, *, width: Width = "full") -> Figure:
    """Accuracy of learners over the time that they took, tuning included.

    Caption: Hollow markers are untuned settings, filled ones tuned settings, whose time includes all selection runs;
    bars are 95 % Student-t intervals over seeds. Time is relative to the reference's for the stream. Named are the
    learners to which none was superior in less time. Colours and shapes are kinds of learners.

    Args:
        table: from `analysis.equal_time.accuracy_at_equal_time`.
        width: `"column"` or `"full"`, of the page.

    Returns:
        The figure.
    """
    from matplotlib.lines import Line2D

    figure = _new_figure(width, 3.0)
    axes = figure.subplots()
    styles = family_styles(table["family"])
    best = -math.inf
    for row in table.sort_values("relative_time").to_dict("records"):
        colour, marker = styles[row["family"]]
        drawn = {"fmt": marker, "color": colour, "markerfacecolor": colour if row["setting"] == "tuned" else "white"}
        place = (row["relative_time"], row["online_accuracy"])
        bar = np.nan_to_num(row["online_accuracy_ci"])
        axes.errorbar(*place, yerr=bar, markersize=4, elinewidth=0.6, markeredgewidth=0.8, **drawn)
        if row["online_accuracy"] > best:
            best = row["online_accuracy"]
            axes.annotate(row["learner"], place, (4, 4), textcoords="offset points", fontsize=6)
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis)
    axes.set_xlabel("learning time, tuning included (relative to the reference's for the stream)")
    axes.set_ylabel("average online accuracy (%)")
    axes.margins(x=0.12)
    point: dict[str, Any] = {"linestyle": "", "markersize": 4}
    handles = [Line2D([], [], color=colour, marker=marker, **point) for colour, marker in styles.values()]
    settings = [Line2D([], [], color="0.3", marker="o", markerfacecolor=filled, **point) for filled in ("white", "0.3")]
    _legend_below(axes, [*styles, "untuned", "tuned"], [*handles, *settings])
    return figure


def family_styles(families: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each kind of learner that occurs: they depend on the kind alone.

    Args:
        families: keys of `analysis.ranking.FAMILIES`.
    """
    present = set(families)
    kinds = zip(FAMILIES, COLOURS, MARKERS, strict=False)
    return {kind: (colour, marker) for kind, colour, marker in kinds if kind in present}


def _draw_baseline(axes: Axes, table: pd.DataFrame) -> None:
    """A vertical line at the accuracy of a ranking's baseline, where one of its rows has it."""
    labels = table["learner"].where(table["setting"] == "", table["learner"] + ", " + table["setting"])
    for column, names in (("tuned", labels), ("untuned", table["learner"])):
        found = table.loc[names == table.attrs["baseline"], column].dropna()
        if len(found):
            axes.axvline(found.iloc[0], color="0.6", linewidth=0.7, zorder=0)
            return


def save(
    figure: Figure, out_dir: str | os.PathLike[str], name: str, formats: Sequence[Format] = ("png", "pdf")
) -> list[Path]:
    """Write a figure.

    Args:
        figure: the figure.
        out_dir: the folder, made if it does not exist.
        name: file name without suffix.
        formats: `"png"` (200 dots per inch), `"pdf"` or `"svg"`, each for a file.

    Returns:
        The paths of the files.

    Raises:
        OSError: a file cannot be written.
    """
    from matplotlib import rc_context

    paths = []
    with rc_context(_STYLE):
        for suffix in formats:

            def write(path: Path, suffix: Format = suffix) -> None:
                figure.savefig(path, format=suffix, dpi=200, metadata=_WITHOUT_DATE[suffix])

            paths.append(write_whole(Path(out_dir) / f"{name}.{suffix}", write))
    return paths


def _new_figure(width: Width, height: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(_inches(width), height), layout=ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.03))


def _inches(width: Width) -> float:
    if width not in WIDTHS:
        raise ValueError(f"width must be one of {', '.join(WIDTHS)}, not {width!r}")
    return WIDTHS[width]


def _line(all_labels: Sequence[str], label: str) -> dict[str, Any]:
    """Colour and line style of a learner: they depend on its place among all labels alone."""
    place = all_labels.index(label)
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": LINE_STYLES[place % len(LINE_STYLES)]}


# Accuracies


def _curves(
    runs: Runs,
    labels: Sequence[str] | None,
    diverged: Diverged,
    to_curve: Callable[[np.ndarray, Sequence[int]], np.ndarray],
    score: Callable[[Runs, str], np.ndarray] = sample_scores,
) -> dict[str, np.ndarray]:
    """Turn the scores and boundaries of each counted run into a curve: label → [n_seeds, n_points]."""
    runs.require_one_stream()
    require_labels(runs, list(labels or []))
    curves: dict[str, list[np.ndarray]] = {}
    for path, label in counted_runs(runs, diverged)[["path", "label"]].itertuples(index=False):
        if labels is None or label in labels:
            boundaries = runs.configs[path]["stream_info"]["boundaries"]
            curves.setdefault(label, []).append(to_curve(score(runs, path), boundaries))
    if not curves:
        raise ValueError("none of these runs has come to an end, so there is nothing to draw")
    return {label: np.stack(seeds) for label, seeds in curves.items()}


def _accuracy_figure(width: Width, x_label: str) -> tuple[Figure, Axes]:
    figure = _new_figure(width, 2.1)
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel("online accuracy (%)")
    return figure, axes


def _draw_means(
    axes: Axes,
    x: np.ndarray,
    curves: dict[str, np.ndarray],
    all_labels: Sequence[str],
    marker: str | None = None,
    limits: tuple[float, float] = (0, 100),
) -> None:
    """Draw means over seeds with their intervals, and the legend."""
    for label, seeds in curves.items():
        mean, half_width = mean_interval(seeds)
        style = _line(all_labels, label)
        axes.plot(x, mean, label=label, marker=marker, markersize=2.5, **style)
        if len(seeds) > 1:
            low, high = np.clip([mean - half_width, mean + half_width], *limits)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    _legend_below(axes, list(curves))


def _plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2, 5, 10, … in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_below(axes: Axes, labels: Sequence[str], handles: Sequence[Any] | None = None) -> None:
    """Put the legend below the axes, in as many columns as fit, and make the figure higher by as much."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    # A handle and its gaps take 0.45 inches, a letter at most 0.065.
    texts = [textwrap.fill(label, int((width - 0.5) / 0.065)) for label in labels]
    longest = max(len(line) for text in texts for line in text.splitlines())
    n_columns = max(1, min(len(texts), int(width / (0.45 + 0.065 * longest))))
    n_lines = math.ceil(len(texts) / n_columns) * max(text.count("\n") + 1 for text in texts)
    figure.set_size_inches(width, height + 0.14 * n_lines + 0.05)
    lines = axes.get_lines() if handles is None else handles
    figure.legend(lines, texts, loc="outside lower center", ncols=n_columns, handlelength=2.2, columnspacing=1.2)


def _default_window(runs: Runs) -> int:
    info = runs.configs[runs.table["path"].iloc[0]]["stream_info"]
    lengths = np.diff([*info["boundaries"], info["n_samples"]])
    return int(lengths.max()) if len(lengths) > 20 else max(1, int(lengths.min()) // 4)


# Step sizes


class _Quantity(NamedTuple):
    """What is drawn, in words."""

    many: str
    axis: str


QUANTITIES = {
    "step_size": _Quantity("step sizes", "step size"),
    "weight_decay": _Quantity("learned weight decays", "weight decay"),
    "momentum": _Quantity("learned momenta", "1 − momentum"),
}


class _Panel(NamedTuple):
    """Values of one block, and the lower and upper edge of their middle half, or None.

    Tables have one row per recorded step and one column per run.
    """

    values: pd.DataFrame
    edges: tuple[pd.Series, pd.Series] | None


def _trajectories(
    runs: Runs, quantity: str, label: str, blocks: Sequence[str] | None, first: int, last: int
) -> dict[str, _Panel]:
    """What one learner recorded of a quantity, by block."""
    paths = list(runs.table.loc[runs.table["label"] == label, "path"])
    names = runs.configs[paths[0]]["blocks"]
    if blocks is None and len(names) > MAX_PANELS:
        names = [names[place] for place in np.linspace(0, len(names) - 1, MAX_PANELS).round().astype(int)]
    elif blocks is not None:
        unknown = [name for name in blocks if name not in names]
        if unknown:
            raise ValueError(f"{label!r} has no block {unknown[0]!r}; its blocks are: {', '.join(names)}")
        names = list(blocks)
    records = {path: _record(runs, path, quantity) for path in paths}
    panels = {}
    for name in names:
        parts = {
            path: record.loc[(record["block"] == name) & record["step"].between(first, last)].set_index("step")
            for path, record in records.items()
        }
        values = pd.DataFrame({path: part["value"].astype(float) for path, part in parts.items()})
        if len(values):
            low, high = (
                pd.DataFrame({path: part[edge].astype(float) for path, part in parts.items()}).median(axis=1)
                for edge in ("q25", "q75")
            )
            panels[name] = _Panel(values, (low, high) if low.notna().any() else None)
    return panels


def _record(runs: Runs, path: str, quantity: str) -> pd.DataFrame:
    """What a run recorded of a quantity: step, block, value, q25, q75."""
    if quantity == "step_size":
        return runs.read(path, "step_sizes").rename(columns={"step_size": "value"})
    record = runs.read(path, "measurements")
    record = record.loc[(record["quantity"] == quantity) & (record["statistic"] == "value")]
    if quantity == "momentum":
        record = record.assign(value=1 - record["value"])
    return record.assign(q25=np.nan, q75=np.nan)


# Around boundaries


class _Aligned(NamedTuple):
    """How a quantity is drawn: axis label, whether the axis is logarithmic, bounds of the quantity, and a factor."""

    axis: str
    logarithmic: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)
    factor: float = 1.0


_SHARE: dict[str, Any] = {"limits": (0.0, 1.0), "factor": 100.0}
_POSITIVE: dict[str, Any] = {"limits": (0.0, math.inf)}
ALIGNED = {
    "online_accuracy": _Aligned("online\naccuracy (%)", **_SHARE),
    "step_size": _Aligned("step size", logarithmic=True),
    "plasticity": _Aligned("plasticity (%)", **_SHARE),
    "trace_cosine": _Aligned("cos(h, g)", limits=(-1.0, 1.0)),
    "update_ratio": _Aligned("update norm /\nweight norm", logarithmic=True),
    "gradient_norm": _Aligned("gradient\nnorm", logarithmic=True),
    "weight_norm": _Aligned("weight\nnorm", **_POSITIVE),
    "distance_from_initialisation": _Aligned("distance\nfrom start", **_POSITIVE),
    "dormant_units": _Aligned("dormant\nunits (%)", **_SHARE),
    "effective_rank": _Aligned("effective\nrank", **_POSITIVE),
    "stable_rank": _Aligned("stable\nrank", **_POSITIVE),
}
MAX_BLOCKS = 6


def _aligned_panels(runs: Runs, label: str, quantities: Sequence[str] | None) -> dict[str, list[str | None]]:
    """The quantities to draw, and the blocks that each was recorded of."""
    recorded = recorded_blocks(runs, label)
    if not is_regression(runs):
        recorded["online_accuracy"] = [None]
    unknown = [quantity for quantity in quantities or [] if quantity not in ALIGNED or quantity not in recorded]
    if unknown:
        known = ", ".join(quantity for quantity in ALIGNED if quantity in recorded)
        raise ValueError(f"{label!r} has recorded no {unknown[0]!r}; it has: {known}")
    panels = {
        quantity: recorded[quantity]
        for quantity in ALIGNED
        if quantity in recorded and (quantities is None or quantity in quantities)
    }
    if not panels:
        raise ValueError(f"{label!r} has recorded nothing at an interval")
    return panels


def _shown_blocks(label: str, named: Sequence[str], blocks: Sequence[str] | None) -> list[str]:
    unknown = [name for name in blocks or [] if name not in named]
    if unknown:
        raise ValueError(f"{label!r} has recorded nothing of block {unknown[0]!r}; its blocks are: {', '.join(named)}")
    if blocks is not None:
        return list(blocks)
    if len(named) <= MAX_BLOCKS:
        return list(named)
    return [named[place] for place in np.linspace(0, len(named) - 1, MAX_BLOCKS).round().astype(int)]


def _draw_aligned(axes: Axes, table: pd.DataFrame, drawn: _Aligned, style: dict[str, Any]) -> None:
    x, values, low, high = (table[name].to_numpy() for name in ("offset", "value", "low", "high"))
    low, high = np.clip([low, high], *drawn.limits)
    marker = "o" if len(x) <= 25 else None
    axes.plot(x, drawn.factor * values, marker=marker, markersize=1.8, **style)
    axes.fill_between(x, drawn.factor * low, drawn.factor * high, color=style["color"], alpha=0.15, linewidth=0)


def _label_aligned(axes: Axes, table: pd.DataFrame, drawn: _Aligned) -> None:
    """Label the vertical axis, and let it show all lines, and bands as far as they do not dwarf the lines."""
    axes.set_ylabel(drawn.axis, fontsize=7)
    values = table["value"][table["value"] > 0] if drawn.logarithmic else table["value"]
    if values.isna().all():
        return
    least, most = values.min(), values.max()
    if drawn.logarithmic:
        _log_axis(axes, least / 1.3, most * 1.3)
        return
    axes.locator_params(axis="y", nbins=3)
    room = most - least
    if room > 0:
        low = max(least - room, table["low"].min(skipna=True), drawn.limits[0])
        high = min(most + room, table["high"].max(skipna=True), drawn.limits[1])
        low, high = np.nanmin([low, least]), np.nanmax([high, most])
        margin = 0.05 * (high - low)
        axes.set_ylim(drawn.factor * (low - margin), drawn.factor * (high + margin))


def _balanced_columns(n_panels: int, limit: int) -> int:
    """Columns of a grid of at most `limit` columns whose last row is as full as possible."""
    return math.ceil(n_panels / math.ceil(n_panels / limit))


def _row_title(runs: Runs, label: str, n_panels: int, blocks: Sequence[str] | None, width: Width) -> str:
    """The learner's label, in lines that fit into the figure."""
    n_blocks = len(runs.configs[runs.table.loc[runs.table["label"] == label, "path"].iloc[0]]["blocks"])
    title = f"{label} ({n_panels} of {n_blocks} blocks)" if blocks is None and n_panels < n_blocks else label
    return textwrap.fill(title, int((_inches(width) - 0.6) / 0.073))


def _draw_learner(
    grid: np.ndarray, runs: Runs, panels: dict[str, _Panel], title: str, colour: str, bold: float
) -> None:
    """Fill the rows of one learner, and hide the places that are left over."""
    low, high = _limits(panels.values())
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_visible(False)
            continue
        block = list(panels)[place]
        _draw_trajectories(axes, panels[block], colour, bold)
        _draw_boundaries(axes, runs)
        _log_axis(axes, low, high)
        # Empty lines above the titles of the first row keep space free for the learner's label.
        space = "\n" * (title.count("\n") + 1) if place < grid.shape[1] else ""
        axes.set_title(f"{space}{block}", fontsize=7, pad=3, linespacing=1.6)
        axes.tick_params(labelleft=place % grid.shape[1] == 0)
    text = grid[0, 0].annotate(
        title, (0, 1), xytext=(0, 14), xycoords="axes fraction", textcoords="offset points", fontweight="bold"
    )
    text.set_in_layout(False)  # it may reach over the whole row


def _draw_trajectories(axes: Axes, panel: _Panel, colour: str, bold: float) -> None:
    distance = math.ceil(len(panel.values) / MAX_POINTS)
    thinned = panel.values.iloc[::distance]
    if panel.edges is not None:
        low, high = (edge.iloc[::distance] for edge in panel.edges)
        axes.fill_between(low.index, low, high, color=colour, alpha=0.15, linewidth=0)
    for run in thinned.columns:
        axes.plot(thinned.index, thinned[run], color=colour, linewidth=0.35 * bold, alpha=0.6)
    axes.plot(thinned.index, thinned.median(axis=1), color=colour, linewidth=bold)


def _draw_boundaries(axes: Axes, runs: Runs) -> None:
    """Mark the starts of experiences, where all runs agree on them."""
    starts = [set(runs.configs[path]["stream_info"]["boundaries"]) for path in runs.table["path"]]
    common = sorted(set.intersection(*starts) - {0})
    width = float(np.clip(8 / max(1, len(common)), 0.2, 0.4))
    axes.vlines(common, 0, 1, transform=axes.get_xaxis_transform(), color="0.75", linewidth=width, zorder=0)


def _limits(panels: Iterable[_Panel]) -> tuple[float, float]:
    """Limits of a logarithmic axis that shows all positive values, and a labelled tick or two."""
    values = np.concatenate(
        [part.to_numpy().ravel() for panel in panels for part in (panel.values, *(panel.edges or ()))]
    )
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (values.min(), values.max()) if len(values) else (1e-1, 1e1)
    margin = max(1.1, math.sqrt(10 / (high / low))) if high / low < 10 else (high / low) ** 0.06
    return low / margin, high * margin


def _log_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullLocator

    axes.set_ylim(low, high)  # before the scale, which would complain of data without positive values
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high / low < 100 else (1.0,), numticks=5))
    axes.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf)))
    axes.yaxis.set_minor_locator(NullLocator())


def _finish_grid(figure: Figure, grid: np.ndarray, label: str) -> None:
    """Label the axes of the grid; in each column, the lowest panel shows the samples."""
    for column in grid.T:
        visible = [axes for axes in column if axes.get_visible()]
        for axes in visible:
            axes.tick_params(labelbottom=axes is visible[-1])
    for axes in grid.flat:
        _thousands(axes, 3)
    figure.supxlabel("sample", fontsize=8)
    figure.supylabel(label, fontsize=8)


def _thousands(axes: Axes, n_ticks: int) -> None:
    """Write 20000 as 20k, so that narrow panels have room for it."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(n_ticks))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
