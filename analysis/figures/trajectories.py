"""Step sizes, weight decays and momenta over the stream, by learner and block."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from continual_metaopt.analysis.figures.style import (
    Width,
    draw_boundaries,
    inches,
    label_lowest,
    line_of,
    log_axis,
    new_figure,
    panel_columns,
    styled,
    thousands,
)
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import (
    evenly_chosen,
    measured_quantities,
    require_labels,
    trajectories_of_blocks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MetaParameter = Literal["weight_decay", "momentum"]
MAX_POINTS = 1000  # per line
MAX_PANELS = 12  # per learner


@styled
def step_size_trajectories(
    runs: Runs,
    labels: Sequence[str] | None = None,
    *,
    blocks: Sequence[str] | None = None,
    steps: tuple[int, int] | None = None,
    width: Width = "page",
) -> Figure:
    """Step sizes over the stream: one panel per learner and block.

    Caption: Thin lines are the step sizes of single seeds, bold lines their median over the seeds that have come that
    far; thin vertical lines are the starts of experiences. Where a block holds many step sizes, lines are their
    geometric means, and the band holds the middle half of them, its edges being medians over seeds. Panels of one
    learner share their vertical axis. Learners whose step sizes are constant are named below the axis.

    Args:
        runs: runs of one stream, also diverged or incomplete ones.
        labels: the learners to draw; if None, those with learned step sizes.
    """
    runs.require_one_stream()
    if labels is None:
        labels = runs.select(learned_step_sizes=True).labels
        if not labels:
            raise ValueError("no run has learned step sizes; name learners to see fixed ones")
    return _trajectory_figure(runs, "step_size", labels, blocks, steps, width)


@styled
def meta_parameter_trajectories(
    runs: Runs,
    quantity: MetaParameter,
    labels: Sequence[str] | None = None,
    *,
    blocks: Sequence[str] | None = None,
    steps: tuple[int, int] | None = None,
    width: Width = "page",
) -> Figure:
    """Learned weight decays, or momenta, over the stream: one panel per learner and block.

    Caption: Thin lines are the values of single seeds (of momenta ρ: 1 − ρ, so that 1 over it is a horizon in samples),
    bold lines their median over the seeds that have come that far; thin vertical lines are the starts of experiences.
    Panels of one learner share their vertical axis.

    Args:
        runs: runs of one stream, also diverged or incomplete ones.
        quantity: `"weight_decay"` or `"momentum"`.
        labels: the learners to draw; if None, those that have recorded the quantity.
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
    learners = {label: block_panels(runs, quantity, label, blocks, first, last) for label in labels}
    learners = {label: panels for label, panels in learners.items() if panels}
    if not learners:
        raise ValueError(f"no {QUANTITIES[quantity].many} have been recorded for these learners, blocks and steps")
    seen = {
        label: panels
        for label, panels in learners.items()
        if any((p.values > 0).any(axis=None) for p in panels.values())
    }
    learners = seen or learners  # a logarithmic axis shows nothing else
    learned = runs.select(learned_step_sizes=True).labels
    constant = [label for label, panels in learners.items() if label in learned and _are_constant(panels.values())]
    note = ""
    if constant and len(constant) < len(learners):
        learners = {label: panels for label, panels in learners.items() if label not in constant}
        note = f"not drawn, as they are constant: those of {', '.join(constant)}"
        note = "\n" + textwrap.fill(note, int((inches(width) - 0.2) / 0.065))
    # Many teeth close together would merge under a bold line.
    n_teeth = int(runs.table["n_experiences"].max()) * (last - first) / int(runs.table["n_samples"].max())
    bold = float(np.clip(20 / n_teeth, 0.5, 1.1))
    n_columns = max(_balanced_columns(len(panels), panel_columns(width)) for panels in learners.values())
    places = _places(learners, n_columns)
    n_rows = max(rows.stop for rows, _ in places.values())
    titles = {}
    for label, (_, columns) in places.items():
        space = inches(width) * (columns.stop - columns.start) / n_columns
        titles[label] = _row_title(runs, label, len(learners[label]), blocks, space)
    n_lines = sum(title.count("\n") for title in titles.values())
    figure = new_figure(width, 0.5 + 1.05 * n_rows + 0.15 * n_lines)
    grid = figure.subplots(n_rows, n_columns, sharex=True, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for label, panels in learners.items():
        colour = line_of(runs.labels, label)["color"]
        _draw_learner(grid[places[label]], runs, panels, titles[label], colour, bold)
    grid[0, 0].set_xlim(first, last)
    label_lowest(grid)
    for axes in grid.flat:
        thousands(axes, 3)
    figure.supxlabel(f"sample{note}", fontsize=8)
    figure.supylabel(QUANTITIES[quantity].axis, fontsize=8)
    return figure


def has_meta_parameter(runs: Runs, quantity: MetaParameter) -> bool:
    """Whether `meta_parameter_trajectories` has something to draw."""
    return any(quantity in measured_quantities(runs, path) for path in runs.table["path"])


def has_trajectories(runs: Runs) -> bool:
    """Whether `step_size_trajectories` has something to draw."""
    learned = runs.select(learned_step_sizes=True).table["path"]
    return any(len(runs.read(path, "step_sizes", ["step"])) for path in learned)


class _Quantity(NamedTuple):
    """What is drawn, in words."""

    many: str
    axis: str


QUANTITIES = {
    "step_size": _Quantity("step sizes", "step size"),
    "weight_decay": _Quantity("learned weight decays", "weight decay"),
    "momentum": _Quantity("learned momenta", "1 − momentum"),
}


class Panel(NamedTuple):
    """Values of one block, and the lower and upper edge of their middle half, or None.

    Tables have one row per recorded step and one column per run.
    """

    values: pd.DataFrame
    edges: tuple[pd.Series, pd.Series] | None


def block_panels(
    runs: Runs, quantity: str, label: str, blocks: Sequence[str] | None, first: int, last: int
) -> dict[str, Panel]:
    """What one learner recorded of a quantity between two steps, by block: the given ones, or all, or 12 of more."""
    paths, known = runs.paths_of(label), runs.first_config(label)["blocks"]
    unknown = [name for name in blocks or [] if name not in known]
    if unknown:
        raise ValueError(f"{label!r} has no block {unknown[0]!r}; its blocks are: {', '.join(known)}")
    names = evenly_chosen(known, MAX_PANELS) if blocks is None else list(blocks)
    steps, arrays, _ = trajectories_of_blocks(runs, paths, quantity, names, first, last)
    panels = {}
    for name, of_block in zip(names, zip(arrays["value"], arrays["q25"], arrays["q75"], strict=True), strict=True):
        recorded = np.isfinite(of_block[0]).any(axis=0)
        if recorded.any():
            values, low, high = (
                pd.DataFrame(part[:, recorded].T, index=pd.Index(steps[recorded], name="step"), columns=paths)
                for part in of_block
            )
            edges = low.median(axis=1), high.median(axis=1)
            panels[name] = Panel(values, edges if edges[0].notna().any() else None)
    return panels


def _are_constant(panels: Iterable[Panel]) -> bool:
    """Whether a learner never moved any step size, on any seed."""
    values = (panel.values.to_numpy() for panel in panels)
    return all(np.nanmax(block) <= np.nanmin(block) * (1 + 1e-6) for block in values)


def _balanced_columns(n_panels: int, limit: int) -> int:
    """Columns of a grid of at most `limit` columns whose last row is as full as possible."""
    return math.ceil(n_panels / math.ceil(n_panels / limit))


def _places(learners: Mapping[str, Mapping[str, Panel]], n_columns: int) -> dict[str, tuple[slice, slice]]:
    """The rows and columns of each learner in the grid; those with one panel that follow each other share rows."""
    places: dict[str, tuple[slice, slice]] = {}
    used, column = 0, n_columns  # rows, and columns of the last row that single panels take
    for label, panels in learners.items():
        if len(panels) > 1 or n_columns == 1:
            column, n_rows = n_columns, math.ceil(len(panels) / n_columns)
            places[label] = slice(used, used + n_rows), slice(0, n_columns)
            used += n_rows
            continue
        if column == n_columns:
            column, used = 0, used + 1
        places[label] = slice(used - 1, used), slice(column, column + 1)
        column += 1
    return places


def _row_title(runs: Runs, label: str, n_panels: int, blocks: Sequence[str] | None, width: float) -> str:
    """The learner's label, in lines that fit into so many inches."""
    n_blocks = len(runs.first_config(label)["blocks"])
    title = f"{label} ({n_panels} of {n_blocks} blocks)" if blocks is None and n_panels < n_blocks else label
    return textwrap.fill(title, max(8, int((width - 0.3) / 0.073)))


def _draw_learner(grid: np.ndarray, runs: Runs, panels: dict[str, Panel], title: str, colour: str, bold: float) -> None:
    """Fill the first places of one learner's part of the grid."""
    low, high = _limits(panels.values())
    for place, (block, axes) in enumerate(zip(panels, grid.flat, strict=False)):
        axes.set_visible(True)
        draw_trajectories(axes, panels[block], colour, bold)
        draw_boundaries(axes, runs)
        log_axis(axes, low, high)
        # Empty lines above the titles of the first row keep space free for the learner's label.
        space = "\n" * (title.count("\n") + 1) if place < grid.shape[1] else ""
        axes.set_title(f"{space}{block}", fontsize=7, pad=3, linespacing=1.6)
        axes.tick_params(labelleft=place % grid.shape[1] == 0)
    text = grid[0, 0].annotate(
        title, (0, 1), xytext=(0, 14), xycoords="axes fraction", textcoords="offset points", fontweight="bold"
    )
    text.set_in_layout(False)  # it may reach over the whole row


def draw_trajectories(axes: Axes, panel: Panel, colour: str, bold: float) -> None:
    """Draw the values of single seeds as thin lines, then their median as a bold one."""
    from matplotlib.collections import LineCollection

    distance = math.ceil(len(panel.values) / MAX_POINTS)
    thinned = panel.values.iloc[::distance]
    if panel.edges is not None:
        low, high = (edge.iloc[::distance] for edge in panel.edges)
        axes.fill_between(low.index, low, high, color=colour, alpha=0.15, linewidth=0)
    steps = thinned.index.to_numpy()
    lines = [np.column_stack([steps, values]) for values in thinned.to_numpy().T]
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.35 * bold, alpha=0.6))
    axes.plot(steps, thinned.median(axis=1).to_numpy(), color=colour, linewidth=bold)


def _limits(panels: Iterable[Panel]) -> tuple[float, float]:
    """Limits of a logarithmic axis that shows all positive values, and a labelled tick or two."""
    values = np.concatenate(
        [part.to_numpy().ravel() for panel in panels for part in (panel.values, *(panel.edges or ()))]
    )
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (values.min(), values.max()) if len(values) else (1e-1, 1e1)
    margin = max(1.1, math.sqrt(10 / (high / low))) if high / low < 10 else (high / low) ** 0.06
    return low / margin, high * margin
