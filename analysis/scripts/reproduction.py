"""Print an experiment of the paper beside its numbers, from run directories, and write its page, tables and figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from continual_metaopt.analysis.paper.reproduction_report import SHIFTS_OF_TABLES, Experiment, write_reproduction
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("reproduction", "The paper's results beside those of runs.")
    parser.set_defaults(purpose="all")
    parser.add_argument("--table", choices=get_args(Experiment), required=True, help="which experiment of the paper")
    parser.add_argument(
        "--shifts",
        type=int,
        default=SHIFTS_OF_TABLES,
        metavar="N",
        help="random sets of boundaries (default: %(default)s)",
    )
    _arguments.add_diverged(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    text, paths = write_reproduction(
        runs, arguments.table, arguments.out, diverged=arguments.diverged, shifts=arguments.shifts
    )
    print(text)
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
