"""Controls beside the learner that they are controls of."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from continual_metaopt.analysis.figures.style import COLOURS, Width, legend_below, new_figure, rows_of_names, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def control_dots(table: pd.DataFrame, *, width: Width = "column") -> Figure:
    """Differences in average online accuracy between controls and what they are controls of.

    Caption: Filled markers are paired differences over all experiences, means over seeds; hollow ones are those without
    the first experience; lines are 95 % Student-t intervals over seeds. Left of the vertical line the control is worse.

    Args:
        table: from `analysis.field.controls.control_table`.

    Returns:
        The figure, whose height grows with the number of controls.
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
    rows_of_names(axes, [textwrap.fill(name, 44) for name in names])
    axes.set_xlabel(f"difference from\n“{table['baseline_name'].iloc[0]}” (points)" if one else "difference (points)")
    legend_below(axes, ["all experiences", "without the first"], drawn)
    return figure
