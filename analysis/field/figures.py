"""Many learners side by side: their ranking, initial step sizes, what accuracy costs, and their controls."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from continual_metaopt.analysis.families import FAMILIES, family
from continual_metaopt.analysis.figures import style
from continual_metaopt.analysis.figures.style import COLOURS, Width, inches, legend_below, new_figure, styled
from continual_metaopt.analysis.statistics import numbers_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def ranking_dots(table: pd.DataFrame, *, width: Width = "column") -> Figure:
    """Average online accuracy of many learners, untuned and tuned, one line for each.

    Caption: Markers are means over seeds, hollow ones of untuned settings, filled ones of tuned settings; lines through
    them are 95 % Student-t intervals over seeds. Where seeds fall in two groups, small markers are single seeds and the
    tick is their median. Learners are in the order of their tuned setting, where it was reported, else of their untuned
    one. Colours and shapes are kinds of learners. The vertical line is the baseline. Of very many learners, those are
    drawn that fit on a page.

    Args:
        table: from `analysis.field.ranking.ranking`.
    """
    best = table.head(style.MAX_ROWS)
    figure = new_figure(width, 0.5 + min(0.135 * len(best), style.ROWS_HEIGHT))
    axes = figure.subplots()
    styles = family_styles(best["family"])
    for place, row in enumerate(best.to_dict("records")):
        colour, marker = styles[row["family"]]
        both = bool(np.isfinite(row["untuned"]) and np.isfinite(row["tuned"]))
        apart = 0.15 * both  # so that neither hides the other
        for column, filled, shift in (("untuned", "white", apart), ("tuned", colour, -apart)):
            if row[f"{column}_seeds"]:
                single = numbers_of(row[f"{column}_seeds"])
                style.draw_single_seeds(axes, single, place + shift, colour, marker, "horizontal", filled)
                continue
            drawn: dict[str, Any] = {"fmt": marker, "color": colour, "markerfacecolor": filled, "markersize": 3.4}
            half_width = np.nan_to_num(row[f"{column}_ci"])
            axes.errorbar(row[column], place + shift, xerr=half_width, elinewidth=0.8, markeredgewidth=0.8, **drawn)
    _draw_baseline(axes, table)
    style.rows_of_names(axes, list(best["learner"]))
    axes.set_xlim(*np.clip(axes.get_xlim(), 0, 100))
    left_out = f"\nthe best {len(best)} of {len(table)} learners" if len(best) < len(table) else ""
    axes.set_xlabel("average online accuracy (%)" + left_out)
    _legend(axes, styles)
    return figure


@styled
def initial_step_sizes(table: pd.DataFrame, *, width: Width = "page") -> Figure:
    """Accuracy over the initial step size, one panel for each learner.

    Caption: Dots are average online accuracies of single seeds, lines their means. The grey line is the first learner,
    in every panel. Horizontal axes are the initial step size, or what stands for it where a name is given.

    Args:
        table: from `analysis.tuning.scores_over_option`.
    """
    labels = list(dict.fromkeys(table["learner"]))
    n_columns = min(style.panel_columns(width), len(labels))
    n_rows = math.ceil(len(labels) / n_columns)
    figure = new_figure(width, 0.4 + 0.98 * n_rows)
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
    style.label_lowest(grid)
    grid[0, 0].set_xscale("log")
    style.label_powers(grid[0, 0].xaxis)
    grid[0, 0].set_ylim(0, None)
    figure.supxlabel("initial step size", fontsize=8)
    figure.supylabel("average online accuracy (%)", fontsize=8)
    return figure


@styled
def accuracy_against_time(table: pd.DataFrame, *, width: Width = "page") -> Figure:
    """Accuracy of learners over the time that they took, tuning included.

    Caption: Markers are means over seeds, hollow ones of untuned settings, filled ones of tuned settings, whose time
    includes all selection runs; bars are 95 % Student-t intervals over seeds. Time is relative to the reference's for
    the stream. Numbered, from left to right, and named below are the learners to which none was superior in less time.
    Colours and shapes are kinds of learners.

    Args:
        table: from `analysis.field.equal_time.accuracy_at_equal_time`.
    """
    figure = new_figure(width, 3.0)
    axes = figure.subplots()
    styles = family_styles(table["family"])
    best = -math.inf
    superior: list[str] = []
    for row in table.sort_values("relative_time").to_dict("records"):
        colour, marker = styles[row["family"]]
        filled = colour if row["setting"] == "tuned" else "white"
        drawn: dict[str, Any] = {"fmt": marker, "color": colour, "markerfacecolor": filled}
        place = (row["relative_time"], row["online_accuracy"])
        bar = np.nan_to_num(row["online_accuracy_ci"])
        axes.errorbar(*place, yerr=bar, markersize=4, elinewidth=0.6, markeredgewidth=0.8, **drawn)
        if row["online_accuracy"] > best:
            best = row["online_accuracy"]
            superior.append(f"{len(superior) + 1}: {row['learner']}, {row['setting']}")
            # above and left of such a marker there is no other
            axes.annotate(str(len(superior)), place, (-2, 2), textcoords="offset points", fontsize=7, ha="right")
    axes.set_xscale("log")
    label = "learning time, tuning included (relative to the reference's for the stream)"
    axes.set_xlabel(textwrap.fill(label, int((inches(width) - 0.5) / 0.062)))
    axes.set_ylabel("average online accuracy (%)")
    axes.margins(x=0.12)
    style.plain_ticks(axes.xaxis)
    axes.set_ylim(*np.clip(axes.get_ylim(), 0, 100))
    _legend(axes, styles, superior)
    return figure


@styled
def control_dots(table: pd.DataFrame, *, width: Width = "column") -> Figure:
    """Differences in average online accuracy between controls and what they are controls of.

    Caption: Filled markers are paired differences over all experiences, means over seeds; hollow ones are those without
    the first experience; lines are 95 % Student-t intervals over seeds. Left of the vertical line the control is worse.

    Args:
        table: from `analysis.field.controls.control_table`.
    """
    figure = new_figure(width, 0.7 + 0.19 * len(table))
    axes = figure.subplots()
    places = np.arange(len(table))
    drawn = []
    for column, interval, face, apart in (
        ("difference", "difference_ci", COLOURS[0], -0.15),
        ("late_difference", "late_difference_ci", "white", 0.15),
    ):
        drawn.append(
            axes.errorbar(
                table[column],
                places + apart,
                xerr=table[interval].fillna(0),
                fmt="o",
                color=COLOURS[0],
                markerfacecolor=face,
                markersize=3.4,
                elinewidth=0.8,
                markeredgewidth=0.8,
            )
        )
    axes.axvline(0, color="0.5", linewidth=0.8)
    one = table["baseline"].nunique() == 1
    names = [row.name if one else f"{row.name} − {row.baseline_name}" for row in table.to_records()]
    style.rows_of_names(axes, [textwrap.fill(name, 44) for name in names])
    axes.set_xlabel(f"difference from\n“{table['baseline_name'].iloc[0]}” (points)" if one else "difference (points)")
    legend_below(axes, ["all experiences", "without the first"], drawn)
    return figure


def family_styles(families: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each kind of learner that occurs: they depend on the kind alone."""
    present = set(families)
    kinds = zip(FAMILIES, COLOURS, style.MARKERS, strict=False)
    return {kind: (colour, marker) for kind, colour, marker in kinds if kind in present}


def _legend(axes: Axes, styles: Mapping[str, tuple[str, str]], others: Sequence[str] = ()) -> None:
    """Kinds of learners, untuned and tuned settings, and other texts."""
    from matplotlib.lines import Line2D

    point: dict[str, Any] = {"linestyle": "", "markersize": 4}
    handles = [Line2D([], [], color=colour, marker=marker, **point) for colour, marker in styles.values()]
    handles += [Line2D([], [], color="0.3", marker="o", markerfacecolor=filled, **point) for filled in ("white", "0.3")]
    handles += [Line2D([], [], linestyle="") for _ in others]
    legend_below(axes, [*styles, "untuned", "tuned", *others], handles, handle_length=1)


def _draw_baseline(axes: Axes, table: pd.DataFrame) -> None:
    """A vertical line at the accuracy of a ranking's baseline, where it has one."""
    accuracy = table.attrs.get("baseline_accuracy", np.nan)
    if np.isfinite(accuracy):
        axes.axvline(accuracy, color="0.6", linewidth=0.7, zorder=0)
