"""Draw and tabulate how accuracy depends on three settings of the learners, and how little on the last of them."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from continual_metaopt.analysis.escaping import csv_text
from continual_metaopt.analysis.figures import sensitivity_maps
from continual_metaopt.analysis.files import write_whole
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments
from continual_metaopt.analysis.statistics import accuracy_by_setting
from continual_metaopt.analysis.tables import format_columns, number_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    description = "Draw and tabulate how accuracy depends on three settings of the learners."
    parser = _arguments.make_parser("sensitivity", description)
    parser.add_argument(
        "--settings",
        nargs=3,
        default=("gamma", "meta_lr", "lr"),
        metavar=("ACROSS", "UP", "PANEL"),
        help="options of the learner (default: gamma meta_lr lr)",
    )
    _arguments.add_diverged(parser)
    _arguments.add_figure(parser, default="page")
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        figure = sensitivity_maps(part, tuple(arguments.settings), diverged=arguments.diverged, width=arguments.width)
        table = accuracy_by_setting(part, arguments.settings, arguments.diverged)
        paths += _arguments.save_figure(sensitivity_maps, part, figure, folder, "sensitivity", arguments)
        text = csv_text(table, float_format="%.6g")
        write = functools.partial(Path.write_text, data=text, encoding="utf-8")
        paths.append(write_whole(folder / "sensitivity.csv", write))
        print(_spread_text(spread_over_last(table), arguments.settings))
    return paths


def spread_over_last(table: pd.DataFrame) -> pd.DataFrame:
    """Compare the values of the last setting where the learner and the other two settings are equal.

    Args:
        table: from `accuracy_by_setting` with three settings.

    Returns:
        One row per learner and pair of the other settings: label, the two settings, worst and best (percent), spread
        (best minus worst, percentage points), best_at (value of the last setting with the best accuracy; the smallest
        of several), largest_is_best (whether its largest value in the table reaches that accuracy). Rows with the
        smallest spread come first.
    """
    label, across, up, last = table.columns[:4]
    accuracy = 100 * table.pivot_table(index=[label, across, up], columns=last, values="online_accuracy")
    worst, best = accuracy.min(axis=1), accuracy.max(axis=1)
    found = pd.DataFrame(
        {
            "worst": worst,
            "best": best,
            "spread": best - worst,
            "best_at": accuracy.idxmax(axis=1),
            "largest_is_best": accuracy.iloc[:, -1] == best,
        }
    )
    return found.sort_values("spread", kind="stable").reset_index()


def _spread_text(spread: pd.DataFrame, settings: Sequence[str]) -> str:
    across, up, last = settings
    columns = {
        "learner": list(spread["label"]),
        **{name: [f"{value:g}" for value in spread[name]] for name in (across, up)},
        **{name: [number_text(value, ".1f") for value in spread[name]] for name in ("worst", "best", "spread")},
        f"best {last}": [f"{value:g}" for value in spread["best_at"]],
    }
    counts = spread.groupby("label", sort=False)["largest_is_best"].agg(["sum", "size"])
    return "\n".join(
        [
            format_columns(columns, "terminal"),
            f"Average online accuracy (%) over {last}, all else equal; “spread” is the best minus the worst.",
            f"The largest {last} is the best in {spread['largest_is_best'].sum()} of {len(spread)} rows: "
            + ", ".join(f"{label} {count} of {size}" for label, count, size in counts.itertuples()),
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
