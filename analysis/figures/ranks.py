"""Ranks of learners over seeds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from continual_metaopt.analysis.comparisons import Test, limits_of, rank_learners
from continual_metaopt.analysis.figures.style import (
    MAX_ROWS,
    ROWS_HEIGHT,
    Width,
    inches,
    line_of,
    new_figure,
    styled,
)
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import Diverged

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def rank_diagram(
    runs: Runs,
    labels: Sequence[str] | None = None,
    *,
    diverged: Diverged = "chance",
    test: Test = "sign_flip",
    level: float = 0.05,
    width: Width = "column",
) -> Figure:
    """Mean rank of each learner over seeds, and which learners cannot be told apart.

    Caption: Bold dots are mean ranks over seeds (1 is best), with 95 % Student-t intervals, cut off at the first and
    last rank; faint dots are the ranks on single seeds. Vertical bars at the right join learners among whom no pair
    differs at the 5 % level, each pair tested on equal streams and all pairs corrected together by Holm's method. With
    few seeds the exact test cannot give small p-values, so that one bar over all learners need not mean that they are
    equal; the note below the axis says what these seeds can show, and how many learners had no room.

    Args:
        labels: the learners to rank; all if None.
        test: as of `analysis.comparisons.paired_comparisons`.
        level: at which pairs differ.
    """
    runs.require_one_stream()
    ranks = rank_learners(runs, labels, diverged=diverged, test=test)
    learners = list(ranks.table["learner"])
    n = len(learners)
    # A letter of the names takes 0.055 inches; they may have 45 % of the width.
    whole = [learner.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}") for learner in learners]
    texts = [textwrap.fill(learner, int(0.45 * inches(width) / 0.055)) for learner in whole]
    heights = np.array([max(1.0, (text.count("\n") + 1) / 1.3) for text in texts])
    n_drawn = int(np.searchsorted(np.cumsum(heights), MAX_ROWS, side="right"))
    heights, texts = heights[:n_drawn], texts[:n_drawn]
    places = np.cumsum(heights) - heights / 2 - 0.5  # 0, 1, 2, … where all names have one line
    left_out = f"The best {n_drawn} of {n} learners. " if n_drawn < n else ""
    note = textwrap.fill(left_out + limits_of(ranks.comparisons, level), int((inches(width) - 0.2) / 0.052))
    height = min(0.1755 * heights.sum(), ROWS_HEIGHT)
    figure = new_figure(width, 0.55 + height + 0.11 * (note.count("\n") + 1))
    axes = figure.subplots()
    for number, (place, learner) in enumerate(zip(places, learners, strict=False)):
        colour = line_of(runs.labels, learner)["color"]
        seeds = ranks.by_seed[learner].to_numpy()
        offsets = np.linspace(-0.25, 0.25, len(seeds))  # so that equal ranks can be told apart
        axes.plot(seeds, place + offsets, "o", color=colour, markersize=2, alpha=0.45, markeredgewidth=0)
        mean, half_width = ranks.table.loc[number, ["rank", "rank_ci"]].to_numpy(dtype=float)
        edges = np.clip([mean - half_width, mean + half_width], 1, n)
        axes.plot(edges, [place, place], color=colour, linewidth=1.1)
        axes.plot([mean], [place], "o", color=colour, markersize=4)
    for number, (first, last) in enumerate(group for group in ranks.groups(level) if group[0] < n_drawn):
        x = n + 0.4 + 0.25 * number
        ends = [places[first] - 0.3, places[min(last, n_drawn - 1)] + 0.3]
        axes.plot([x, x], ends, color="black", linewidth=1.8, clip_on=False)
    axes.set_yticks(places, texts)
    axes.set_ylim(heights.sum() - 0.5, -0.5)
    axes.set_xlim(0.8, n + 0.2)
    apart = math.ceil(0.18 * n / (0.5 * inches(width)))  # a number takes 0.18 inches, the axis half of the width
    axes.set_xticks(range(1, n + 1, apart))
    axes.grid(axis="x", color="0.9", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.set_xlabel("rank")
    figure.text(0.02, 0.03 / figure.get_figheight(), note, fontsize=6, va="bottom")
    below = (0.11 * (note.count("\n") + 1)) / figure.get_figheight()
    figure.set_layout_engine("constrained", rect=(0, below, 1, 1 - below))
    return figure
