"""Draw learned weight decays and momenta of each learner and block."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from continual_metaopt.analysis.figures import MetaParameter, has_meta_parameter, meta_parameter_trajectories
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser(
        "meta_parameters", "Draw the learned weight decays and momenta of each learner and block."
    )
    _arguments.add_learners(parser, default="those that learn them")
    parser.add_argument("--blocks", nargs="+", metavar="BLOCK", help="blocks to draw (default: all, at most 12)")
    parser.add_argument(
        "--steps", nargs=2, type=int, metavar=("FIRST", "LAST"), help="the part of the stream to draw (default: all)"
    )
    _arguments.add_figure(parser, default="page")
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        for quantity in get_args(MetaParameter):
            if has_meta_parameter(part, quantity):
                figure = meta_parameter_trajectories(
                    part,
                    quantity,
                    arguments.learners,
                    blocks=arguments.blocks,
                    steps=arguments.steps,
                    width=arguments.width,
                )
                paths += _arguments.save_figure(meta_parameter_trajectories, part, figure, folder, quantity, arguments)
    if not paths:
        raise ValueError("no learned weight decays or momenta have been recorded")
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
