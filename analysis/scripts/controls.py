"""Compare controls with the learner that they are controls of, in a table and a figure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.analysis.field.controls import control_table
from continual_metaopt.analysis.figures import control_dots
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments
from continual_metaopt.analysis.tables import seeds_of, with_interval

NOTE = (
    "Average online accuracy (%) and paired differences in percentage points, over all experiences and without the "
    "first, means over seeds; ± is the half width of a 95 % Student-t interval over seeds."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("controls", "Compare controls with a learner, in a table and a figure.")
    parser.add_argument(
        "--baseline", metavar="LABEL", help="what all others are compared with (default: the first learner)"
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        metavar=("LEARNER", "BASELINE"),
        help="compare these two instead of all with one; may be given several times",
    )
    _arguments.add_figure(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    pairs = None if arguments.pair is None else [(learner, baseline) for learner, baseline in arguments.pair]
    for part, folder in split_by_stream(runs, arguments.out):
        table = control_table(part, arguments.baseline, pairs)
        columns = {
            "learner": table["learner"].tolist(),
            "than": table["baseline"].tolist(),
            "pairs": table["pairs"].astype(str).tolist(),
            "accuracy": with_interval(table, "mean"),
            "difference": with_interval(table, "difference", "+"),
            "without the first": with_interval(table, "late_difference", "+"),
        }
        name = "controls" if pairs is None else "pairs_of_controls"
        paths += _arguments.write_table(table, columns, f"{NOTE} {seeds_of(part)}.", folder, name)
        figure = control_dots(table, width=arguments.width)
        paths += _arguments.save_figure(control_dots, part, figure, folder, name, arguments)
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
