"""Draw and tabulate the test accuracy at the end of each experience."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from continual_metaopt.analysis import statistics
from continual_metaopt.analysis.escaping import csv_text
from continual_metaopt.analysis.figures import test_accuracy_by_experience
from continual_metaopt.analysis.files import write_whole
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments
from continual_metaopt.analysis.tables import BIMODAL_NOTE, columns_by_experience, format_columns, seeds_of

NOTE = (
    "Test accuracy (%) on held-out samples of each task, measured at its end: mean over seeds ± half width of a 95 % "
    "Student-t interval."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("test_accuracy", "Draw and tabulate the test accuracy of each experience.")
    _arguments.add_learners(parser)
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        draw = test_accuracy_by_experience
        figure = draw(part, arguments.learners, diverged=arguments.diverged, width=arguments.width)
        measured = statistics.test_accuracy_by_experience(part, arguments.diverged)
        if arguments.learners:
            measured = measured[measured["label"].isin(arguments.learners)]
        columns = columns_by_experience(measured)
        has_medians = any(cell.startswith("median ") for cells in columns.values() for cell in cells)
        note = f"{NOTE} {BIMODAL_NOTE}" if has_medians else NOTE
        print(f"{format_columns(columns, 'markdown')}\n{note} {seeds_of(part)}.\n")
        text = csv_text(measured.drop(columns="run"))
        paths.append(write_whole(folder / "test_accuracy.csv", partial(Path.write_text, data=text, encoding="utf-8")))
        paths += _arguments.save_figure(draw, part, figure, folder, "test_accuracy", arguments)
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
