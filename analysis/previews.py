"""Pictures of streams, drawn from arrays: samples of each experience, and what changes over time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.analysis.figures.style import COLOURS, WIDTHS, new_figure, styled, thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_MARKS = 60  # boundaries that are drawn as lines
MAX_NAMES = 12  # rows of a map that are all named
SHARES, SIGNED = "Blues", "PuOr"  # colour maps: from nothing to much, and around zero


class SheetRow(NamedTuple):
    """One row of a contact sheet: its title, images from 0 to 1, [n, H, W] or [n, H, W, 3], and a caption for each."""

    title: str
    images: NDArray[Any]
    captions: Sequence[str]


class Zoom(NamedTuple):
    """Consecutive samples of a regression, from a first step on: inputs [n, numbers] and targets [n, outputs].

    `course` is what changes behind them, by name, [n] or [n, parts]; `marks` are steps at which something changes.
    """

    first_step: int
    inputs: NDArray[Any]
    targets: NDArray[Any]
    course: Mapping[str, NDArray[Any]]
    marks: Sequence[int]


@styled
def contact_sheet(rows: Sequence[SheetRow], title: str, note: str) -> Figure:
    """Images in rows, with captions, and a note below the title that says what these are."""
    from continual_metaopt.analysis.figures.shown import ShownFigure

    width, left, top, caption, gap = WIDTHS["page"], 1.35, 0.52, 0.13, 0.07
    lines = textwrap.wrap(note, 132)
    top += 0.13 * (len(lines) - 1)
    n_columns = max(len(row.images) for row in rows)
    cell = min(0.9, (width - left) / max(n_columns, 6) - gap)
    image_height = cell * rows[0].images.shape[1] / rows[0].images.shape[2]
    row_height = max(image_height + caption + gap, 0.44)
    height = top + row_height * len(rows)
    figure = ShownFigure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(0.08, 0.17, textwrap.shorten(title, 105, placeholder=" …"), fontsize=8, fontweight="bold", va="center")
    axes.text(0.08, 0.28, "\n".join(lines), fontsize=6.5, va="top", color="0.3")
    for number, row in enumerate(rows):
        y = top + row_height * number
        axes.text(0.08, y + caption, row.title, fontsize=6.5, va="top", linespacing=1.25)
        for place, (image, text) in enumerate(zip(row.images, row.captions, strict=True)):
            x = left + place * (cell + gap)
            axes.text(x + cell / 2, y + caption - 0.02, text, fontsize=6, ha="center", va="bottom")
            axes.imshow(
                image,
                cmap="gray",
                vmin=0,
                vmax=1,
                extent=(x, x + cell, y + caption + image_height, y + caption),
                interpolation="nearest",
            )
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    return figure


@styled
def image_timeline(
    edges: NDArray[Any],
    classes: Sequence[Any],
    class_share: NDArray[Any],
    labels: NDArray[Any] | None,
    lines: Mapping[str, NDArray[Any]],
    boundaries: Sequence[int],
    title: str,
) -> Figure:
    """What a stream of images presents over time: a map of its classes, and quantities below.

    Args:
        edges: first step of each portion of the stream, and its length, [P + 1].
        classes: names of K classes.
        class_share: share of each class in each portion, [K, P].
        labels: label of each class in each portion, [K, P], −1 where the class is absent; None if labels are classes.
        lines: more panels: label of the axis → its value in each portion, [P], or the lower edge of a band, the value
            and the upper edge, [3, P].
        boundaries: first step of each experience.
    """
    maps = [class_share] if labels is None else [class_share, labels]
    map_height = float(np.clip(0.15 * len(classes), 0.9, 2.0))
    heights = [map_height] * len(maps) + [0.6] * len(lines)
    figure = new_figure("page", sum(heights) + 0.14 * len(heights) + 0.65)
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes in panels:
        _mark(axes, boundaries, "0.55")
    _draw_classes(panels[0], edges, classes)
    mesh = panels[0].pcolormesh(
        edges, _rows(classes), np.ma.masked_equal(class_share, 0), cmap=SHARES, vmin=0, rasterized=True, zorder=-1
    )
    _colour_bar(figure, panels[0], mesh, "share of\nsamples", [0.0, float(class_share.max())], "{:.0%}".format)
    if labels is not None:
        _draw_classes(panels[1], edges, classes)
        _draw_labels(figure, panels[1], edges, classes, labels)
    for axes, (name, values) in zip(panels[len(maps) :], lines.items(), strict=True):
        if values.ndim == 2:
            axes.stairs(values[2], edges, baseline=values[0], fill=True, color=COLOURS[0], alpha=0.25, linewidth=0)
        axes.stairs(np.atleast_2d(values)[values.ndim - 1], edges, color=COLOURS[0], linewidth=1.0, baseline=None)
        axes.set_ylabel(name, fontsize=7)
        low, high = min(0.0, float(values.min())), max(float(values.max()), 1e-9)
        axes.set_ylim(low, high + 0.08 * (high - low))
        axes.locator_params(axis="y", nbins=3)
    panels[0].set_xlim(edges[0], edges[-1])
    marked = "vertical lines: starts of experiences" if len(boundaries) <= MAX_MARKS else "experiences are not marked"
    _finish(figure, panels, title, f"sample; {marked}")
    return figure


@styled
def regression_zooms(zooms: Sequence[Zoom], title: str) -> Figure:
    """Inputs, targets and what changes behind them, around some changes of one stream; one column for each."""
    from matplotlib.ticker import MaxNLocator

    names = list(zooms[0].course)
    n_inputs = zooms[0].inputs.shape[1]
    heights = [_course_height(zooms[0].course[name]) for name in names]
    heights += [float(np.clip(0.07 * n_inputs, 0.6, 1.6)), 0.9]
    figure = new_figure("page", sum(heights) + 0.14 * len(heights) + 0.6)
    grid = figure.subplots(len(heights), len(zooms), sharex="col", sharey="row", squeeze=False, height_ratios=heights)
    colours = _colours([zoom.inputs for zoom in zooms])
    for column, zoom in zip(grid.T, zooms, strict=True):
        edges = np.arange(zoom.first_step, zoom.first_step + len(zoom.inputs) + 1)
        for axes in column:
            _mark(axes, zoom.marks, "0.3")
        for axes, name in zip(column, names, strict=False):
            course = _draw_course(axes, edges, zoom.course[name], [other.course[name] for other in zooms])
            if zoom is zooms[-1]:
                _value_bar(figure, axes, course)
        places = np.arange(n_inputs + 1)
        mesh = column[-2].pcolormesh(edges, places, zoom.inputs.T, rasterized=True, zorder=-1, **colours)
        column[-2].set_ylim(n_inputs, 0)
        for output, colour in zip(zoom.targets.T, COLOURS, strict=False):
            column[-1].stairs(output, edges, color=colour, linewidth=0.8, baseline=None)
        column[-1].set_xlim(edges[0], edges[-1])
        column[-1].xaxis.set_major_locator(MaxNLocator(4, integer=True, prune="both"))
        column[-1].xaxis.set_major_formatter("{x:,.0f}")
    _value_bar(figure, grid[-2, -1], mesh)
    grid[-2, 0].set_ylabel(f"{n_inputs} inputs")
    grid[-1, 0].set_ylabel("target")
    for name, row in zip(names, grid, strict=False):
        row[0].set_ylabel(textwrap.fill(name, 16), fontsize=7)
    _finish(figure, [], title, "sample; vertical lines: changes")
    return figure


@styled
def regression_timeline(
    course_edges: NDArray[Any],
    course: Mapping[str, NDArray[Any]],
    edges: NDArray[Any],
    targets: Sequence[NDArray[Any]],
    boundaries: Sequence[int],
    title: str,
    axis: str = "sample; vertical lines: starts of experiences",
) -> Figure:
    """What changes behind a regression over time, and its targets.

    Args:
        course_edges: first step of each of Q short portions of the stream, and where the last one ends, [Q + 1].
        course: what changes, by name: means in these portions, [Q] or [Q, parts].
        edges: of P longer portions, likewise, [P + 1].
        targets: some of each longer portion, each [n, outputs]; their median and middle 90 % are drawn.
        boundaries: first step of each experience.
        axis: label of the horizontal axis.
    """
    heights = [*map(_course_height, course.values()), 0.9]
    figure = new_figure("page", sum(heights) + 0.14 * len(heights) + 0.6)
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes in panels:
        _mark(axes, boundaries, "0.55")
    for axes, (name, values) in zip(panels, course.items(), strict=False):
        axes.set_ylabel(textwrap.fill(name, 16), fontsize=7)
        _value_bar(figure, axes, _draw_course(axes, course_edges, values, [values]))
    for output, colour in zip(range(targets[0].shape[1]), COLOURS, strict=False):
        low, middle, high = np.array([np.quantile(part[:, output], [0.05, 0.5, 0.95]) for part in targets]).T
        panels[-1].stairs(high, edges, baseline=low, fill=True, color=colour, alpha=0.25, linewidth=0)
        panels[-1].stairs(middle, edges, baseline=None, color=colour, linewidth=0.9)
    panels[-1].set_ylabel("target: median\nand middle 90 %", fontsize=7)
    panels[0].set_xlim(edges[0], edges[-1])
    _finish(figure, panels, title, axis)
    return figure


def _course_height(values: NDArray[Any]) -> float:
    return 0.8 if values.ndim == 1 else float(np.clip(0.13 * values.shape[1], 0.8, 1.6))


def _draw_course(axes: Axes, edges: NDArray[Any], values: NDArray[Any], like: Sequence[NDArray[Any]]) -> Any:
    """A line, or a map if there are several parts, in the colours of all that is like it; returns the map."""
    if values.ndim == 1:
        axes.stairs(values, edges, baseline=None, color=COLOURS[1], linewidth=1.0)
        return None
    parts = np.arange(values.shape[1] + 1)
    axes.set_ylim(parts[-1], 0)
    axes.set_yticks(parts[:-1] + 0.5, [str(part + 1) for part in parts[:-1]])
    if values.shape[1] > MAX_NAMES:
        axes.set_yticks([])
    return axes.pcolormesh(edges, parts, values.T, rasterized=True, zorder=-1, **_colours(like))


def _colours(values: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """Colour map and its limits: around zero if there are values of both signs, and without the darkest colours."""
    limit = 1.3 * max(float(np.abs(part).max()) for part in values) or 1.0
    if min(float(part.min()) for part in values) < 0:
        return {"cmap": SIGNED, "vmin": -limit, "vmax": limit}
    return {"cmap": SHARES, "vmin": 0, "vmax": limit}


def _draw_classes(axes: Axes, edges: NDArray[Any], classes: Sequence[Any]) -> None:
    """Name the rows of a map of classes, all or some evenly chosen ones."""
    shown = range(0, len(classes), _round_step(len(classes), MAX_NAMES))
    axes.set_yticks(list(shown), [textwrap.shorten(str(classes[k]), 14, placeholder="…") for k in shown])
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_ylabel("class")
    axes.tick_params(axis="y", length=0)


def _round_step(n: int, at_most: int) -> int:
    """The least of 1, 2, 5, 10, 20, … in whose steps at most so many numbers fit below n."""
    return next(step for k in range(9) for step in (10**k, 2 * 10**k, 5 * 10**k) if math.ceil(n / step) <= at_most)


def _rows(classes: Sequence[Any]) -> NDArray[Any]:
    return np.arange(len(classes) + 1) - 0.5


def _draw_labels(figure: Figure, axes: Axes, edges: NDArray[Any], classes: Sequence[Any], labels: NDArray[Any]) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm

    n_labels = int(labels.max()) + 1
    colours = colormaps["viridis"].resampled(max(n_labels, 2))
    norm = BoundaryNorm(np.arange(max(n_labels, 2) + 1) - 0.5, colours.N)
    shown = np.ma.masked_less(labels, 0)
    mesh = axes.pcolormesh(edges, _rows(classes), shown, cmap=colours, norm=norm, rasterized=True, zorder=-1)
    ticks = range(0, n_labels, _round_step(n_labels, 10))
    _colour_bar(figure, axes, mesh, "label", [float(tick) for tick in ticks], "{:.0f}".format)


def _colour_bar(
    figure: Figure, axes: Axes, mesh: Any, label: str, ticks: Sequence[float], write: Callable[[float], str]
) -> None:
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=12, fraction=0.05)
    bar.set_ticks(list(ticks), labels=[write(tick) for tick in ticks])
    bar.ax.tick_params(labelsize=6, length=1.5, width=0.4)
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.4)
    bar.set_label(label, fontsize=7)


def _value_bar(figure: Figure, axes: Axes, mesh: Any) -> None:
    """A colour bar of a map of values; none for a line."""
    if mesh is not None:
        low, high = (limit / 1.3 for limit in mesh.get_clim())
        _colour_bar(figure, axes, mesh, "value", [low, 0.0, high] if low < 0 else [low, high], "{:.2g}".format)


def _mark(axes: Axes, steps: Sequence[int], colour: str) -> None:
    if len(steps) <= MAX_MARKS:
        axes.vlines(steps, 0, 1, transform=axes.get_xaxis_transform(), color=colour, linewidth=0.5, zorder=0.5)


def _finish(figure: Figure, panels: Iterable[Axes], title: str, axis: str) -> None:
    for axes in panels:
        thousands(axes, 8)
        axes.set_facecolor("white")
    figure.align_ylabels()
    figure.suptitle(textwrap.fill(title, 100), fontsize=8, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(axis, fontsize=8)
