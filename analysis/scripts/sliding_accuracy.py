"""Draw the online accuracy in a sliding window."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.analysis.figures import sliding_accuracy
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("sliding_accuracy", "Draw the online accuracy in a sliding window.")
    parser.add_argument(
        "--window", type=int, metavar="SAMPLES", help="length of the window (default: by the length of experiences)"
    )
    _arguments.add_learners(parser)
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    options = {"window": arguments.window, "labels": arguments.learners, "diverged": arguments.diverged}
    return _arguments.draw_each_stream(sliding_accuracy, runs, "sliding_accuracy", arguments, **options)


if __name__ == "__main__":
    raise SystemExit(main())
