"""Rank the learners in a table, and draw it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from continual_metaopt.analysis.figures import ranking_dots
from continual_metaopt.analysis.ranking import caption, columns_of, ranking
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs, load_runs
from continual_metaopt.analysis.scripts import _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("ranking", "Rank the learners, untuned and tuned, in a table and a figure.")
    parser.add_argument(
        "--baseline", metavar="LABEL", help="compare with this learner (default: the best with fixed step sizes)"
    )
    parser.add_argument(
        "--costs", type=Path, metavar="CSV", help="from python -m benchmarks.speed cost, for columns of costs"
    )
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    selection = load_runs(*arguments.paths, purpose=None).readable().select(purpose="selection")
    costs = None if arguments.costs is None else pd.read_csv(arguments.costs)
    for part, folder in split_by_stream(runs, arguments.out):
        table = ranking(
            part, selection=selection, costs=costs, diverged=arguments.diverged, baseline=arguments.baseline
        )
        paths += _arguments.write_table(table, columns_of(table), caption(table), folder, "ranking")
        note = f"The baseline is “{table.attrs['baseline']}”."
        figure = ranking_dots(table, width=arguments.width)
        paths += _arguments.save_figure(ranking_dots, part, figure, folder, "ranking", arguments, note)
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
