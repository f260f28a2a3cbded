"""Draw accuracy, step sizes and diagnostics around the boundaries between experiences: do step sizes explain it?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.analysis.figures import ALIGNED, around_boundaries
from continual_metaopt.analysis.files import file_names
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser(
        "around_boundaries", "Draw accuracy, step sizes and diagnostics around the boundaries, one figure per learner."
    )
    _arguments.add_learners(parser)
    parser.add_argument(
        "--quantities", nargs="+", choices=list(ALIGNED), help="what to draw (default: all that was recorded)"
    )
    parser.add_argument("--blocks", nargs="+", metavar="BLOCK", help="blocks to draw (default: all, at most 6)")
    parser.add_argument(
        "--before", type=int, metavar="SAMPLES", help="samples before a boundary (default: a quarter of an experience)"
    )
    parser.add_argument(
        "--after", type=int, metavar="SAMPLES", help="samples after it (default: three quarters of an experience)"
    )
    _arguments.add_figure(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        names = file_names(part.labels)
        for label in arguments.learners or part.labels:
            figure = around_boundaries(
                part,
                label,
                quantities=arguments.quantities,
                blocks=arguments.blocks,
                before=arguments.before,
                after=arguments.after,
                width=arguments.width,
            )
            name = f"around_boundaries_{names[label]}"
            paths += _arguments.save_figure(around_boundaries, part, figure, folder, name, arguments)
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
