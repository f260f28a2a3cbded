"""Draw the ranks of the learners over seeds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.analysis.figures import rank_diagram
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("rank_diagram", "Draw the ranks of the learners over seeds.")
    _arguments.add_learners(parser)
    _arguments.add_test(parser)
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    options = {"labels": arguments.learners, "diverged": arguments.diverged, "test": arguments.test}
    return _arguments.draw_each_stream(rank_diagram, runs, "rank_diagram", arguments, **options)


if __name__ == "__main__":
    raise SystemExit(main())
