"""Draw the online accuracy over all samples so far."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.figures import cumulative_accuracy
from analysis.report import split_by_stream
from analysis.runs import Runs
from analysis.scripts import _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("cumulative_accuracy", "Draw the online accuracy over all samples so far.")
    _arguments.add_learners(parser)
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        figure = cumulative_accuracy(part, arguments.learners, diverged=arguments.diverged, width=arguments.width)
        paths += _arguments.save_figure(cumulative_accuracy, figure, folder, "cumulative_accuracy", arguments)
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
