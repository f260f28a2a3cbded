"""Draw and tabulate the test accuracy of each experience."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis import statistics
from continual_metaopt.analysis.escaping import csv_text
from continual_metaopt.analysis.figures import test_accuracy_by_experience
from continual_metaopt.analysis.files import write_text
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, draw, script
from continual_metaopt.analysis.tables import BIMODAL_NOTE, columns_by_experience, format_columns, seeds_of

NOTE = (
    "Test accuracy (%) on held-out samples of each task, measured at its end: mean over seeds ± half width of a 95 % "
    "Student-t interval."
)


@script(LEARNERS, DIVERGED, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    paths = draw(test_accuracy_by_experience, runs, arguments, "test_accuracy")
    measured = statistics.test_accuracy_by_experience(runs, arguments.diverged)
    if arguments.labels:
        measured = measured[measured["label"].isin(arguments.labels)]
    columns = columns_by_experience(measured)
    has_medians = any(cell.startswith("median ") for cells in columns.values() for cell in cells)
    note = f"{NOTE} {BIMODAL_NOTE}" if has_medians else NOTE
    print(f"{format_columns(columns, 'markdown')}\n{note} {seeds_of(runs)}.\n")
    return [write_text(arguments.folder / "test_accuracy.csv", csv_text(measured.drop(columns="run"))), *paths]
