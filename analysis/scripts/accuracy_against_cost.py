"""Draw accuracy against learning time, tuning included, and tabulate what learners reach in the same time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from continual_metaopt.analysis.equal_time import accuracy_at_equal_time, seconds_per_sample
from continual_metaopt.analysis.figures import accuracy_against_time
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs, load_runs
from continual_metaopt.analysis.scripts import _arguments
from continual_metaopt.analysis.tables import with_interval


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser(
        "accuracy_against_cost", "Compare accuracies at equal learning time, tuning included."
    )
    parser.add_argument(
        "--costs",
        type=Path,
        metavar="CSV",
        help="times of a step from python -m benchmarks.speed cost (default: speeds of the runs, which are less fair)",
    )
    parser.add_argument(
        "--reference", default="AdamW", metavar="LEARNER", help="whose times are the budgets (default: %(default)s)"
    )
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser, "page")
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    selection = load_runs(*arguments.paths, purpose=None).readable().select(purpose="selection")
    costs = None if arguments.costs is None else pd.read_csv(arguments.costs)
    for part, folder in split_by_stream(runs, arguments.out):
        seconds = seconds_per_sample(part, costs)
        table = accuracy_at_equal_time(
            part, seconds, selection, reference=arguments.reference, diverged=arguments.diverged
        )
        table = table.sort_values("in_tuned_time", ascending=False, kind="stable", ignore_index=True)
        paths += _arguments.write_table(table, _columns(table), _explanation(arguments), folder, "equal_time")
        note = f"The reference is “{arguments.reference}”."
        figure = accuracy_against_time(table, width=arguments.width)
        paths += _arguments.save_figure(
            accuracy_against_time, part, figure, folder, "accuracy_against_cost", arguments, note
        )
    return paths


def _columns(table: pd.DataFrame) -> dict[str, list[str]]:
    return {
        "learner": [f"{row.learner}, {row.setting}" for row in table.itertuples()],
        "time": [f"{time:.2f}" for time in table["relative_time"]],
        "accuracy (%)": with_interval(table, "online_accuracy"),
        "in the stream's time": with_interval(table, "in_stream_time"),
        "in the tuned time": with_interval(table, "in_tuned_time"),
    }


def _explanation(arguments: argparse.Namespace) -> str:
    source = "of the runs" if arguments.costs is None else "by PyTorch's operations, measured in turns"
    return (
        f"“Time” is that of learning, tuning included, relative to {arguments.reference}'s for the stream, from speeds "
        f"{source}. The last columns are the accuracy (%) in the time that {arguments.reference} needs for the stream, "
        "and for its tuning and the stream; samples that a learner does not come to in that time count as chance."
    )


if __name__ == "__main__":
    raise SystemExit(main())
