"""Draw the step sizes of each learner and block."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.analysis.figures import step_size_trajectories
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("step_sizes", "Draw the step sizes of each learner and block.")
    _arguments.add_learners(parser, default="those with learned step sizes")
    parser.add_argument("--blocks", nargs="+", metavar="BLOCK", help="blocks to draw (default: all, at most 12)")
    parser.add_argument(
        "--steps", nargs=2, type=int, metavar=("FIRST", "LAST"), help="the part of the stream to draw (default: all)"
    )
    _arguments.add_figure(parser, default="page")
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    options = {"labels": arguments.learners, "blocks": arguments.blocks, "steps": arguments.steps}
    return _arguments.draw_each_stream(step_size_trajectories, runs, "step_sizes", arguments, **options)


if __name__ == "__main__":
    raise SystemExit(main())
