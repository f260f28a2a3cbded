"""Draw how accuracy depends on one setting of the learners."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.analysis.figures import sensitivity_curves
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("sensitivity_curves", "Draw how accuracy depends on one setting.")

    parser.add_argument(
        "--setting", default="lr", metavar="OPTION", help="an option of the learner (default: %(default)s)"
    )
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    options = {"setting": arguments.setting, "diverged": arguments.diverged}
    return _arguments.draw_each_stream(sensitivity_curves, runs, "sensitivity_curves", arguments, **options)


if __name__ == "__main__":
    raise SystemExit(main())
