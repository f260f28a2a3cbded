"""What happens around the boundaries between experiences, and experiences laid over each other: the sawtooth."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from continual_metaopt.analysis import statistics
from continual_metaopt.analysis.figures.style import (
    COLOURS,
    Width,
    inches,
    label_lowest,
    legend_below,
    line_of,
    log_axis,
    new_figure,
    panel_columns,
    plain_ticks,
    styled,
    thousands,
)
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.sawtooth import BINS, SHIFTS, SKIP, Sawtooth, block_trajectories, sawtooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
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
    """
    runs.require_one_stream()
    statistics.require_labels(runs, [label])
    panels = _aligned_panels(runs, label, quantities)
    several = [name for names in panels.values() if len(names) > 1 for name in names if name is not None]
    named = list(dict.fromkeys(several))
    shown = _shown_blocks(label, named, blocks)
    shortest = int(statistics.experience_lengths(runs.select(label=label)).min())
    before = shortest // 4 if before is None else before
    after = 3 * shortest // 4 if after is None else after
    options = {"before": before, "after": after, "width": max(1, (before + after) // 40)}
    figure = new_figure(width, 0.6 + 0.68 * len(panels))
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
            style = line_of(shown, name) if name in shown else {"color": "black", "linestyle": "-"}
            _draw_aligned(axes, table, ALIGNED[quantity], style)
        axes.axvline(0, color="0.75", linewidth=0.6, zorder=0)
        _label_aligned(axes, pd.concat(tables.values()), ALIGNED[quantity])
    grid[-1].set_xlim(-before, after)
    grid[-1].set_xlabel("samples since the boundary")
    thousands(grid[-1], 6)
    figure.align_ylabels(grid)
    figure.suptitle(textwrap.fill(label, 45), fontsize=8, fontweight="bold")
    if shown:
        from matplotlib.lines import Line2D

        styles = {name: line_of(shown, name) for name in shown} | {"whole network": {"color": "black"}}
        legend_below(grid[-1], list(styles), [Line2D([], [], **style) for style in styles.values()])
    return figure


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
    recorded = statistics.recorded_blocks(runs, label)
    if not statistics.is_regression(runs):
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
    return list(blocks) if blocks is not None else statistics.evenly_chosen(named, MAX_BLOCKS)


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
        log_axis(axes, least / 1.3, most * 1.3)
        return
    axes.locator_params(axis="y", nbins=3)
    room = most - least
    if room > 0:
        low = max(least - room, table["low"].min(skipna=True), drawn.limits[0])
        high = min(most + room, table["high"].max(skipna=True), drawn.limits[1])
        low, high = np.nanmin([low, least]), np.nanmax([high, most])
        margin = 0.05 * (high - low)
        axes.set_ylim(drawn.factor * (low - margin), drawn.factor * (high + margin))


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
    """
    runs.require_one_stream()
    statistics.require_labels(runs, [label])
    recorded = block_trajectories(runs, label)
    if not recorded:
        raise ValueError(f"no finished run of {label!r} has recorded step sizes")
    unknown = [block for block in blocks or [] if block not in recorded]
    if unknown:
        raise ValueError(f"{label!r} has no block {unknown[0]!r}; its blocks are: {', '.join(recorded)}")
    names = list(blocks) if blocks else statistics.evenly_chosen(list(recorded), MAX_PANELS)
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
        plain_ticks(grid[0, 0].yaxis)
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
