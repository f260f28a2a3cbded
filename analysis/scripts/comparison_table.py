"""Print the table that compares the learners, and write it as CSV, Markdown and LaTeX."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.analysis.report import split_by_stream, write_tables
from continual_metaopt.analysis.runs import Runs, load_runs
from continual_metaopt.analysis.scripts import _arguments
from continual_metaopt.analysis.tables import caption, comparison_table, format_table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("comparison_table", "Compare the learners in a table.")
    parser.add_argument(
        "--baseline", metavar="LABEL", help="compare with this learner (default: the best with fixed step sizes)"
    )
    _arguments.add_diverged(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    tried = load_runs(*arguments.paths, purpose=None).readable().select(purpose="selection")
    selection = tried if arguments.purpose == "report" else None
    for part, folder in split_by_stream(runs, arguments.out):
        table = comparison_table(part, diverged=arguments.diverged, baseline=arguments.baseline, selection=selection)
        if folder != arguments.out:
            print(f"{folder.name}\n")
        print(f"{format_table(table, 'terminal')}\n{caption(table)}\n")
        paths += write_tables(table, folder)
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
