"""Our results beside the paper's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from continual_metaopt.analysis.figures.style import (
    COLOURS,
    MARKERS,
    Width,
    draw_single_seeds,
    legend_below,
    new_figure,
    styled,
)
from continual_metaopt.analysis.statistics import numbers_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def gaps_beside_the_papers(table: pd.DataFrame, *, width: Width = "page") -> Figure:
    """Gains over the tuned fixed step size: ours with intervals, the paper's as lines.

    Caption: Average online accuracy of learned step sizes minus that of the tuned fixed step size of the same base
    update, paired by seed: means over seeds with 95 % Student-t intervals. Where seeds fall in two groups, small
    markers are single seeds and the tick is their median. Long horizontal bars: the same difference in the paper, of
    means of 5 runs.

    Args:
        table: from `analysis.paper.reproduction.paper_comparison`.

    Returns:
        The figure, a panel per base update.

    Raises:
        ValueError: no learner has a fixed step size to be compared with.
    """
    learned = table[table["step_sizes"] != "fixed"].dropna(subset="gap")
    if learned.empty:
        raise ValueError("no learner has a tuned fixed step size of the same base update to be compared with")
    bases = list(dict.fromkeys(learned["base"]))
    settings = list(dict.fromkeys(learned["settings"]))
    kinds = list(dict.fromkeys(learned["step_sizes"]))
    figure = new_figure(width, 2.1)
    grid = figure.subplots(1, len(bases), sharey=True, squeeze=False)[0]
    for axes, base in zip(grid, bases, strict=True):
        axes.axhline(0, color="0.75", linewidth=0.6, zorder=0)
        for place, kind in enumerate(kinds):
            rows = learned[(learned["base"] == base) & (learned["step_sizes"] == kind)].to_dict("records")
            for row in rows:
                number = settings.index(row["settings"])
                x = place + 0.5 * ((number + 0.5) / len(settings) - 0.5)
                colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
                if row["gap_seeds"]:
                    draw_single_seeds(axes, numbers_of(row["gap_seeds"]), x, colour, marker, "vertical")
                    continue
                axes.errorbar(
                    x,
                    row["gap"],
                    yerr=None if np.isnan(row["gap_ci"]) else row["gap_ci"],
                    color=colour,
                    marker=marker,
                    markersize=3.5,
                    linewidth=0.9,
                    capsize=1.5,
                )
            if rows:
                axes.hlines(rows[0]["paper_gap"], place - 0.38, place + 0.38, color="0.4", linewidth=1.4, zorder=1)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_xlim(-0.5, len(kinds) - 0.5)
        axes.set_title(base, fontsize=8)
    grid[0].set_ylabel("gap to the tuned fixed\nstep size (points)")
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=3.5, linewidth=0.9)
        for i in range(len(settings))
    ]
    legend_below(grid[0], [*settings, "the paper"], [*handles, Line2D([], [], color="0.4", linewidth=1.4)])
    return figure
