"""The paper's results beside ours: gaps to the fixed step size, and the published continual experiment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from continual_metaopt.analysis.figures.accuracy import cumulative_curves, draw_curve
from continual_metaopt.analysis.figures.style import (
    COLOURS,
    LINE_STYLES,
    MARKERS,
    Width,
    draw_boundaries,
    draw_single_seeds,
    legend_below,
    log_axis,
    new_figure,
    styled,
    thousands,
)
from continual_metaopt.analysis.figures.trajectories import block_panels, draw_trajectories
from continual_metaopt.analysis.paper import published
from continual_metaopt.analysis.paper.published import ACCURACY, TEST_ACCURACY, Learner
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import Diverged, numbers_of, test_accuracy_by_experience

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OF_PAPER: dict[str, Any] = {
    "marker": "D",
    "markersize": 3.5,
    "markerfacecolor": "white",
    "markeredgewidth": 0.8,
    "linestyle": "none",
    "clip_on": False,
    "zorder": 4,
}
# what is drawn, in this order, which decides on colours
NAMES = ("fixed", "scalar", "two blocks", "four blocks")


@styled
def gaps_beside_the_papers(table: pd.DataFrame, *, width: Width = "page") -> Figure:
    """Gains over the tuned fixed step size: ours with intervals, the paper's as lines.

    Caption: Average online accuracy of learned step sizes minus that of the tuned fixed step size of the same base
    update, paired by seed: means over seeds with 95 % Student-t intervals. Where seeds fall in two groups, small
    markers are single seeds and the tick is their median. Long horizontal bars: the same difference in the paper, of
    means of 5 runs.

    Args:
        table: from `analysis.paper.reproduction.paper_comparison`.

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


@styled
def published_cumulative_accuracy(runs: Runs, *, diverged: Diverged = "chance", width: Width = "page") -> Figure:
    """Cumulative online accuracy in the published setting, beside the paper's figure 3.

    Caption: Lines are means over seeds of the online accuracy over all samples so far; bands are 95 % Student-t
    intervals over seeds; thin vertical lines are changes of task. Learned step sizes are those with γ = 0.999, and the
    fixed one is 1e-4. Diamonds at the end are the paper's averages over the stream; the grey ones after one and two
    tasks were read off its figure. Where the seeds of a learner fall in two groups, thin lines are single seeds, and
    the bold one is their median.
    """
    figure, panels = _panels(runs, width)
    for axes, learners in panels:
        any_learner = next(iter(learners.values()))
        n_samples = int(any_learner.runs.table["n_samples"].iloc[0])
        for name, learner in learners.items():
            seen, curves = cumulative_curves(learner.runs, diverged=diverged)
            draw_curve(axes, seen, curves[learner.label], name, _style(name))
            if name in ACCURACY:
                axes.plot(n_samples, ACCURACY[name], color=_style(name)["color"], **OF_PAPER)
        length = n_samples / int(any_learner.runs.table["n_experiences"].iloc[0])
        axes.plot(
            [length * n_tasks for n_tasks in published.CUMULATIVE_ACCURACY],
            list(published.CUMULATIVE_ACCURACY.values()),
            color="0.45",
            **OF_PAPER,
        )
        draw_boundaries(axes, any_learner.runs)
        axes.set_xlim(0, n_samples)
        thousands(axes, 4)
    _finish(figure, panels, "sample", "online accuracy (%),\nall samples so far")
    return figure


@styled
def published_step_sizes(runs: Runs, *, width: Width = "page") -> Figure:
    """Step sizes of the paper's two blocks in the published setting, beside its figures 4 and 8.

    Caption: Thin lines are the step sizes of single seeds, bold lines their median; thin vertical lines are changes of
    task. Diamonds were read off the paper's figures. The first block is the first three layers, the last one the output
    layer; γ = 0.999, α₀ = 1e-4.
    """
    figure, panels = _panels(runs, width)
    low, high = 1e-6, 3e-3
    for axes, learners in panels:
        learner = learners.get("two blocks")
        if learner is None:
            continue
        n_samples = int(learner.runs.table["n_samples"].iloc[0])
        length = n_samples / int(learner.runs.table["n_experiences"].iloc[0])
        blocks = block_panels(learner.runs, "step_size", learner.label, None, 0, n_samples)
        for name, panel, colour in zip(("first", "last"), blocks.values(), COLOURS, strict=False):
            draw_trajectories(axes, panel, colour, 1.1)
            axes.get_lines()[-1].set_label(f"{name} block")
            median = panel.values.median(axis=1)
            low, high = min(low, float(median.min())), max(high, float(median.max()))
            points = published.STEP_SIZES[name]
            axes.plot([length * n for n in points], list(points.values()), color=colour, **OF_PAPER)
        draw_boundaries(axes, learner.runs)
        axes.set_xlim(0, n_samples)
        thousands(axes, 4)
    for axes, _ in panels:
        log_axis(axes, low / 1.3, high * 1.3)
    _finish(figure, panels, "sample", "step size")
    return figure


@styled
def published_test_accuracy(runs: Runs, *, diverged: Diverged = "chance", width: Width = "page") -> Figure:
    """Test accuracy of each task at its end in the published setting, beside the paper's figure 7.

    Caption: Lines are means over seeds of the accuracy on the test images of each task at its end; bands are 95 %
    Student-t intervals over seeds. Diamonds, joined by dotted lines, were read off the paper's figure; each seed deals
    classes to tasks anew, so that single tasks cannot be compared with the paper's. Where the seeds of a learner fall
    in two groups, thin lines are single seeds, and the bold one is their median.
    """
    figure, panels = _panels(runs, width)
    for axes, learners in panels:
        for name, learner in learners.items():
            table = test_accuracy_by_experience(learner.runs, diverged=diverged)
            of_seeds = 100 * table.pivot(index="seed", columns="experience", values="test_accuracy").to_numpy(float)
            draw_curve(axes, np.arange(1, of_seeds.shape[1] + 1), of_seeds, name, _style(name))
            if name in TEST_ACCURACY:
                paper = TEST_ACCURACY[name]
                style = OF_PAPER | {"linestyle": ":", "linewidth": 0.7, "markersize": 2.5}
                axes.plot(np.arange(1, len(paper) + 1), paper, color=_style(name)["color"], **style)
        axes.locator_params(axis="x", integer=True)
    _finish(figure, panels, "task", "test accuracy (%)\nat the task's end")
    return figure


Panels = list[tuple["Axes", dict[str, Learner]]]


def _panels(runs: Runs, width: Width) -> tuple[Figure, Panels]:
    """A panel for each kind of labels (rows) and form (columns) of which there are runs, with what is drawn there."""
    found = {
        (labels, form): shown
        for labels in published.STUDIES
        for form, shown in _shown(published.learners_of(runs, labels))
        if shown
    }
    if not found:
        raise ValueError(published.NO_RUNS)
    rows = [labels for labels in published.STUDIES if any(labels == place[0] for place in found)]
    figure = new_figure(width, 0.4 + 1.7 * len(rows))
    grid = figure.subplots(len(rows), len(published.FORMS), sharex=True, sharey=True, squeeze=False)
    panels = []
    for (labels, form), learners in found.items():
        axes = grid[rows.index(labels), published.FORMS.index(form)]
        axes.set_title(f"{form} momentum, labels {labels}", fontsize=8)
        panels.append((axes, learners))
    return figure, panels


def _shown(learners: dict[published.Row, Learner]) -> Iterator[tuple[str, dict[str, Learner]]]:
    """For each form the paper's learners, and ours with four blocks."""
    for form in published.FORMS:
        four = learners.get(published.Row(form, "four blocks", "γ = 0.999"))
        yield form, published.papers_rows(learners, form) | ({"four blocks": four} if four else {})


def _style(name: str) -> dict[str, Any]:
    place = NAMES.index(name)
    return {"color": COLOURS[place], "linestyle": LINE_STYLES[place]}


def _finish(figure: Figure, panels: Panels, x_label: str, y_label: str) -> None:
    """Label the outer axes, hide panels without runs, and draw one legend for all, with the paper's marker."""
    from matplotlib.lines import Line2D

    drawn = [axes for axes, _ in panels]
    for axes in figure.axes:
        place = axes.get_subplotspec()
        assert place is not None
        axes.set_visible(axes in drawn)
        axes.set_xlabel(x_label if place.is_last_row() else "")
        axes.set_ylabel(y_label if place.is_first_col() else "")
    lines = {str(line.get_label()): line for axes in drawn for line in axes.get_lines()}
    named = {name: line for name, line in lines.items() if not name.startswith("_")}
    paper = Line2D([], [], color="0.45", **OF_PAPER)
    legend_below(drawn[0], [*named, "the paper"], [*named.values(), paper])
