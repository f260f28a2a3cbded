"""Draw and tabulate how accuracy depends on the initial step size of each learner."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from continual_metaopt.analysis.figures import initial_step_sizes
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments
from continual_metaopt.analysis.tuning import scores_over_option

EXPLANATION = (
    "Average online accuracy (%) at each value of the initial step size, or of what stands for it, mean over seeds. "
    "“Lost” is by how much the worst value is below the best, in percentage points."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser(
        "initial_step_size", "Draw and tabulate how accuracy depends on the initial step size of each learner."
    )
    parser.set_defaults(purpose="selection")
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser, "page")
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        table = scores_over_option(part, arguments.diverged)
        paths += _arguments.write_table(table, _columns(table), EXPLANATION, folder, "initial_step_size")
        note = f"The first learner is “{table['learner'].iloc[0]}”."
        figure = initial_step_sizes(table, width=arguments.width)
        paths += _arguments.save_figure(initial_step_sizes, part, figure, folder, "initial_step_size", arguments, note)
    return paths


def _columns(table: pd.DataFrame) -> dict[str, list[str]]:
    means = 100 * table.pivot_table(index="learner", columns="value", values="online_accuracy", sort=False)
    means = means.sort_index(axis="columns")
    options = table.drop_duplicates("learner").set_index("learner")["option"].reindex(means.index)
    columns = {"learner": list(means.index), "option": list(options)}
    columns |= {f"{value:g}": ["" if pd.isna(m) else f"{m:.1f}" for m in means[value]] for value in means}
    return columns | {"lost": [f"{lost:.1f}" for lost in means.max(axis=1) - means.min(axis=1)]}


if __name__ == "__main__":
    raise SystemExit(main())
