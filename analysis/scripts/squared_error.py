"""Draw the squared error of a regression in a sliding window, and print its mean after the burn-in."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.analysis.figures import sliding_squared_error
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments
from continual_metaopt.analysis.statistics import mean_interval, mean_squared_error
from continual_metaopt.analysis.tables import interval_text, seeds_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("squared_error", "Draw the squared error of a regression in a sliding window.")
    parser.add_argument(
        "--window", type=int, default=1000, metavar="SAMPLES", help="length of the window (default: %(default)s)"
    )
    parser.add_argument(
        "--burn-in", type=int, default=0, metavar="SAMPLES", help="not counted in the printed means (default: none)"
    )
    _arguments.add_learners(parser)
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        figure = sliding_squared_error(
            part, arguments.window, arguments.learners, diverged=arguments.diverged, width=arguments.width
        )
        _print_means(part, arguments)
        paths += _arguments.save_figure(sliding_squared_error, part, figure, folder, "squared_error", arguments)
    return paths


def _print_means(runs: Runs, arguments: argparse.Namespace) -> None:
    counted = mean_squared_error(runs, arguments.diverged, arguments.burn_in).dropna(subset="squared_error")
    print(f"mean squared error after {arguments.burn_in} samples, ± 95 % interval over seeds")
    for label in arguments.learners or runs.labels:
        errors = counted.loc[counted["label"] == label, "squared_error"].to_numpy()
        mean, half_width = mean_interval(errors)
        n = len(errors)
        print(f"{label}: {interval_text(mean, half_width, '.3f') or 'no run counts'} ({seeds_text(n, n)})")


if __name__ == "__main__":
    raise SystemExit(main())
