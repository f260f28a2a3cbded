"""Draw and tabulate how accuracy depends on three settings of the learners."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from continual_metaopt.analysis.escaping import csv_text
from continual_metaopt.analysis.figures import sensitivity_maps
from continual_metaopt.analysis.files import write_text
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, draw, figure, option, script
from continual_metaopt.analysis.statistics import accuracy_by_setting
from continual_metaopt.analysis.tables import format_columns, number_texts

SETTINGS = option(
    "--settings",
    nargs=3,
    default=("gamma", "meta_lr", "lr"),
    metavar=("ACROSS", "UP", "PANEL"),
    help="options of the learner (default: gamma meta_lr lr)",
)


def spread_over_last(table: pd.DataFrame) -> pd.DataFrame:
    """Compare the values of the last of three settings where the learner and the other two settings are equal.

    Returns:
        One row per learner and pair of the other settings, those with the smallest spread first: label, the two
        settings, worst and best (percent), spread (best minus worst, percentage points), best_at (value of the last
        setting with the best accuracy; the smallest of several), largest_is_best (whether its largest has it).
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


def spread_text(spread: pd.DataFrame, settings: Sequence[str]) -> str:
    """A table from `spread_over_last` as text, and in how many rows the largest value is the best."""
    across, up, last = settings
    columns = {
        "learner": list(spread["label"]),
        **{name: number_texts(spread, name, "g") for name in (across, up)},
        **{name: number_texts(spread, name, ".1f") for name in ("worst", "best", "spread")},
        f"best {last}": number_texts(spread, "best_at", "g"),
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


@script(SETTINGS, DIVERGED, *figure("page"))
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    table = accuracy_by_setting(runs, arguments.settings, arguments.diverged)
    paths = draw(sensitivity_maps, runs, arguments, "sensitivity")
    print(spread_text(spread_over_last(table), arguments.settings))
    return [*paths, write_text(arguments.folder / "sensitivity.csv", csv_text(table, float_format="%.6g"))]
