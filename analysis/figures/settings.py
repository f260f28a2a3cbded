"""How accuracy depends on settings of the learners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from continual_metaopt.analysis.figures.style import (
    Width,
    label_lowest,
    label_powers,
    legend_below,
    line_of,
    new_figure,
    styled,
)
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import Diverged, accuracy_by_setting, accuracy_over_setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CURVES = 8
_NAMES = {"lr": "initial or fixed step size (lr)", "meta_lr": "meta step size (meta_lr)", "gamma": "discount (gamma)"}
_SYMBOLS = {"lr": "α₀", "meta_lr": "η", "gamma": "γ"}


@styled
def sensitivity_maps(
    runs: Runs,
    settings: tuple[str, str, str] = ("gamma", "meta_lr", "lr"),
    *,
    diverged: Diverged = "chance",
    width: Width = "page",
) -> Figure:
    """Average online accuracy over three settings of each learner.

    Caption: Numbers and colours are average online accuracies in percent, means over seeds. Each row of panels is a
    learner, each panel a value of the third setting that it ran with. The frame marks the best of each learner. γ is
    the discount, η the meta step size, α₀ the initial step size. Samples that a diverged run did not see count as
    chance.

    Args:
        settings: options of the learner: across a panel, up a panel, and from panel to panel.
    """
    runs.require_one_stream()
    table = accuracy_by_setting(runs, settings, diverged)
    across, up, panel = settings
    panels = {label: sorted(table[panel][table["label"] == label].unique()) for label in table["label"].unique()}
    n_columns = max(map(len, panels.values()))
    xs, ys = sorted(table[across].unique()), sorted(table[up].unique())
    figure = new_figure(width, 0.35 + (0.2 + 0.16 * len(ys)) * len(panels))
    grid = figure.subplots(len(panels), n_columns, sharex=True, sharey=True, squeeze=False)
    percent = 100 * table["online_accuracy"]
    for row, (label, columns) in zip(grid, panels.items(), strict=True):
        best = percent[table["label"] == label].max()
        for axes in row[len(columns) :]:
            axes.set_visible(False)
        for axes, value in zip(row, columns, strict=False):
            part = table[(table["label"] == label) & (table[panel] == value)]
            values = np.full((len(ys), len(xs)), np.nan)
            for x, y, accuracy in zip(part[across], part[up], part["online_accuracy"], strict=True):
                values[ys.index(y), xs.index(x)] = 100 * accuracy
            _draw_map(axes, values, (percent.min(), percent.max()), best)
            title = f"{_SYMBOLS.get(panel, panel)} = {_short(value)}"
            axes.set_title(f"{label}\n{title}" if axes is row[0] else title, loc="left", fontsize=6, pad=2)
            axes.set_xticks(range(len(xs)), [_short(x) for x in xs], fontsize=4.4)
            axes.set_yticks(range(len(ys)), [_short(y) for y in ys], fontsize=4.4)
    label_lowest(grid)
    figure.supxlabel(_SYMBOLS.get(across, across), fontsize=8)
    figure.supylabel(_SYMBOLS.get(up, up), fontsize=8)
    return figure


def _short(value: float) -> str:
    """0.003, and 3e-4 in place of 0.0003."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if 0 < abs(value) < 1e-3 else f"{value:g}"


@styled
def sensitivity_curves(
    runs: Runs, setting: str = "lr", *, diverged: Diverged = "chance", width: Width = "column"
) -> Figure:
    """Average online accuracy over one setting of each learner.

    Caption: Lines are means over seeds of the average online accuracy of learners that differ in the setting on the
    horizontal axis alone; bands are 95 % Student-t intervals over seeds, dots the values that were run. Samples that a
    diverged run did not see count as chance. If more than eight learners have the setting, the eight best are drawn,
    by their best value.

    Args:
        setting: a numeric option of the learners, such as `"lr"` or `"gamma"`.
    """
    curves = accuracy_over_setting(runs, setting, diverged)
    best = curves.groupby("learner", sort=False)["online_accuracy"].max()
    drawn = set(best.nlargest(MAX_CURVES).index)
    learners = [learner for learner in best.index if learner in drawn]
    figure = new_figure(width, 2.1)
    axes = figure.subplots()
    for learner in learners:
        part = curves[curves["learner"] == learner]
        x, mean, half_width = (part[name].to_numpy(dtype=float) for name in ("value", "online_accuracy", "half_width"))
        style = line_of(learners, learner)
        axes.plot(x, 100 * mean, marker="o", markersize=2.5, **style)
        low, high = np.clip([mean - half_width, mean + half_width], 0, 1)
        axes.fill_between(x, 100 * low, 100 * high, color=style["color"], alpha=0.15, linewidth=0)
    values = curves["value"]
    if (values > 0).all() and values.max() >= 10 * values.min():
        axes.set_xscale("log")
        label_powers(axes.xaxis)
    axes.set_xlabel(_NAMES.get(setting, setting))
    axes.set_ylabel("average online accuracy (%)")
    legend_below(axes, learners)
    return figure


def _draw_map(axes: Axes, percent: np.ndarray, limits: tuple[float, float], best: float) -> None:
    from matplotlib.patches import Rectangle

    low, high = limits
    axes.imshow(percent, cmap="cividis", vmin=low, vmax=high, aspect="auto", origin="lower")
    axes.tick_params(length=0, pad=1)
    for (row, column), value in np.ndenumerate(percent):
        if np.isfinite(value):
            colour = "white" if value <= (low + high) / 2 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=4.6, color=colour)
        if value == best:
            frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.2)
            axes.add_patch(frame)
