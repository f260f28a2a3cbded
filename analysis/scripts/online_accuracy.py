"""Draw the online accuracy in each experience."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.figures import online_accuracy_by_experience
from analysis.report import split_by_stream
from analysis.runs import Runs
from analysis.scripts import _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("online_accuracy", "Draw the online accuracy in each experience.")
    _arguments.add_learners(parser)
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        figure = online_accuracy_by_experience(
            part, arguments.learners, diverged=arguments.diverged, width=arguments.width
        )
        paths += _arguments.save_figure(online_accuracy_by_experience, figure, folder, "online_accuracy", arguments)
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
