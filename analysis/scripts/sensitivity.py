"""Draw and tabulate how accuracy depends on three settings of the learners."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from analysis.figures import sensitivity_maps
from analysis.files import write_whole
from analysis.report import split_by_stream
from analysis.runs import Runs
from analysis.scripts import _arguments
from analysis.statistics import accuracy_by_setting


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    description = "Draw and tabulate how accuracy depends on three settings of the learners."
    parser = _arguments.make_parser("sensitivity", description)
    parser.add_argument(
        "--settings",
        nargs=3,
        default=("gamma", "meta_lr", "lr"),
        metavar=("ACROSS", "UP", "PANEL"),
        help="options of the learner (default: gamma meta_lr lr)",
    )
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser, default="page")
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        figure = sensitivity_maps(part, tuple(arguments.settings), diverged=arguments.diverged, width=arguments.width)
        table = accuracy_by_setting(part, arguments.settings, arguments.diverged)
        paths += _arguments.save_figure(sensitivity_maps, part, figure, folder, "sensitivity", arguments)
        to_csv = functools.partial(table.to_csv, index=False, float_format="%.6g")
        paths.append(write_whole(folder / "sensitivity.csv", to_csv))
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
