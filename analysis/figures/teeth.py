"""Experiences laid over each other: the sawtooth of step sizes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from continual_metaopt.analysis.figures.style import (
    COLOURS,
    Width,
    inches,
    label_lowest,
    log_axis,
    new_figure,
    panel_columns,
    plain_ticks,
    styled,
)
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.sawtooth import BINS, SHIFTS, SKIP, Sawtooth, block_trajectories, sawtooth
from continual_metaopt.analysis.statistics import evenly_chosen, require_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANELS = 12  # per learner


@styled
def folded_sawtooth(
    runs: Runs,
    label: str,
    *,
    blocks: Sequence[str] | None = None,
    bins: int = BINS,
    skip: int = SKIP,
    shifts: int = SHIFTS,
    seed: int = 0,
    width: Width = "page",
) -> Figure:
    """Step sizes of a learner with all experiences on top of each other, one panel per block.

    Caption: Step sizes over the position within an experience, from boundary to boundary, as factors of their mean in
    the experience and without the steady drift from experience to experience. Thin lines are single experiences (means
    over seeds), from the earliest (dark) to the latest (light); the bold line is their mean, with the band of its 95 %
    Student-t interval over seeds. The grey band holds 95 % of such means when boundaries are shifted at random. ×: by
    what factor the bold line's maximum exceeds its minimum; p: how often shifted boundaries give as much (not corrected
    for the number of blocks). The first experience is left out.

    Args:
        runs: runs of one stream; only finished ones count.
        label: of the learner.

    Raises:
        ValueError: the runs come from several streams, there is no such label or block, or see
            `analysis.sawtooth.sawtooth`.
    """
    runs.require_one_stream()
    require_labels(runs, [label])
    recorded = block_trajectories(runs, label)
    if not recorded:
        raise ValueError(f"no finished run of {label!r} has recorded step sizes")
    unknown = [block for block in blocks or [] if block not in recorded]
    if unknown:
        raise ValueError(f"{label!r} has no block {unknown[0]!r}; its blocks are: {', '.join(recorded)}")
    names = list(blocks) if blocks else evenly_chosen(list(recorded), MAX_PANELS)
    teeth = {name: sawtooth(recorded[name], bins=bins, skip=skip, shifts=shifts, seed=seed) for name in names}

    n_rows = math.ceil(len(teeth) / panel_columns(width))
    n_columns = math.ceil(len(teeth) / n_rows)
    title = textwrap.fill(label, int((inches(width) - 0.6) / 0.073))
    figure = new_figure(width, 0.65 + 1.25 * n_rows + 0.15 * title.count("\n"))
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(teeth) :]:
        axes.set_visible(False)
    for axes, (name, tooth) in zip(grid.flat, teeth.items(), strict=False):
        _draw_tooth(axes, tooth)
        factor, p = 10**tooth.amplitude, f"p = {tooth.p:.3f}" if tooth.p >= 0.001 else "p < 0.001"
        axes.set_title(
            f"{name}\n× {factor:.2f}, {p}" if width == "column" else f"{name}: × {factor:.2f}, {p}", fontsize=7
        )
    drawn = np.concatenate([np.ravel(10.0 ** np.concatenate([tooth.teeth, tooth.chance])) for tooth in teeth.values()])
    low, high = np.nanmin(drawn) / 1.05, np.nanmax(drawn) * 1.05
    log_axis(grid[0, 0], low, high)
    if high / low < 30:
        plain_ticks(grid[0, 0].yaxis, (1, 2, 5) if high / low > 5 else (1, 1.5, 2, 3, 5, 7))
    for lowest in label_lowest(grid):
        lowest.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    grid[0, 0].set_xlim(0, 1)
    figure.supxlabel("position within the experience", fontsize=8)
    figure.supylabel("step size / mean" if n_rows == 1 else "step size / mean of the experience", fontsize=8)
    figure.suptitle(title, fontsize=8, fontweight="bold")
    return figure


def _draw_tooth(axes: Axes, tooth: Sawtooth) -> None:
    from matplotlib import colormaps

    colour = COLOURS[1]  # unlike any of the shades
    shades = colormaps["cividis"](np.linspace(0, 0.95, len(tooth.teeth)))
    axes.fill_between(tooth.position, *(10**tooth.chance), color="0.82", linewidth=0, zorder=0)
    for row, shade in zip(tooth.teeth, shades, strict=True):
        axes.plot(tooth.position, 10**row, color=shade, linewidth=0.4)
    if tooth.seeds > 1:
        low, high = 10 ** (tooth.profile - tooth.profile_ci), 10 ** (tooth.profile + tooth.profile_ci)
        axes.fill_between(tooth.position, low, high, color=colour, alpha=0.3, linewidth=0, zorder=3)
    axes.plot(tooth.position, 10**tooth.profile, color=colour, linewidth=1.4, zorder=4)
