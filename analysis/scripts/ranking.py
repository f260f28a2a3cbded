"""Rank the learners, untuned and tuned, in a table and a figure."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.field.figures import ranking_dots
from continual_metaopt.analysis.field.ranking import caption, columns_of, ranking
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import (
    BASELINE,
    DIVERGED,
    FIGURE,
    costs_of_steps,
    draw,
    option,
    script,
    selection_runs,
    write_table,
)

COSTS = option("--costs", type=Path, metavar="CSV", help="from python -m benchmarks.speed cost, for columns of costs")


@script(BASELINE, COSTS, DIVERGED, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    table = ranking(
        runs,
        selection=selection_runs(arguments),
        costs=costs_of_steps(arguments),
        diverged=arguments.diverged,
        baseline=arguments.baseline,
    )
    paths = write_table(table, columns_of(table), caption(table), arguments, "ranking")
    note = f"The baseline is “{table.attrs['baseline']}”."
    return paths + draw(ranking_dots, runs, arguments, "ranking", table, note=note)
