"""Averages with intervals, paired comparisons and ranks of the learners, and how many seeds it would take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from continual_metaopt.analysis.comparisons import Ranks, limits_of, paired_comparisons, rank_learners, summary_table
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts import _arguments
from continual_metaopt.analysis.tables import interval_text, number_text, seeds_of

SUMMARY = (
    "Means over seeds, ± the half width of a 95 % Student-t interval; in brackets 95 % bootstrap intervals, which are "
    "too short for few seeds. IQM: interquartile mean, without the best and the worst quarter of the seeds."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser("comparisons", "Compare the learners seed by seed, and rank them.")
    parser.add_argument(
        "--baseline",
        metavar="LABEL",
        help="compare with this learner, or every pair if it is “all” (default: the best with fixed step sizes)",
    )
    _arguments.add_test(parser)
    parser.add_argument("--power", type=float, default=0.8, help="of the number of seeds needed (default: %(default)s)")
    _arguments.add_diverged(parser)
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        seeds = seeds_of(part)
        options = {"diverged": arguments.diverged, "test": arguments.test}
        summary = summary_table(part, diverged=arguments.diverged)
        pairs = paired_comparisons(part, arguments.baseline, power=arguments.power, **options)
        ranks = rank_learners(part, **options)
        paths += _arguments.write_table(summary, _summary(summary), f"{SUMMARY} {seeds}.", folder, "summary")
        paths += _arguments.write_table(pairs, _pairs(pairs), f"{_about(pairs)} {seeds}.", folder, "paired_comparisons")
        note = (
            f"Mean rank over seeds, 1 is best. Friedman's test that all are equal: p = {ranks.p:.3g} (permutations "
            f"within seeds). {limits_of(ranks.comparisons)} {seeds}."
        )
        paths += _arguments.write_table(ranks.table, _ranks(ranks), note, folder, "ranks")
    return paths


def _about(pairs: pd.DataFrame) -> str:
    unit = " in percentage points" if pairs.attrs["score"] == "online_accuracy" else " of squared errors"
    return (
        f"Mean differences{unit}, paired by seed; positive: the learner is better than the other. ± is the half width "
        "of a 95 % Student-t interval. d: mean over standard deviation of the differences. “Better on”: share of "
        "seeds, with a Clopper-Pearson interval. Seeds: so many would let a single paired t-test find such a "
        f"difference with probability {pairs.attrs['power']:g}. {limits_of(pairs)}"
    )


def _range(low: float, high: float, form: str = ".2f") -> str:
    return "" if pd.isna(low) or pd.isna(high) else f" [{number_text(low, form)}, {number_text(high, form)}]"


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _summary(table: pd.DataFrame) -> dict[str, list[str]]:
    rows = _rows(table)
    return {
        "learner": [str(row["learner"]) for row in rows],
        "seeds": [str(row["seeds"]) for row in rows],
        "mean": [
            interval_text(row["mean"], row["mean_ci"]) + _range(row["bootstrap_low"], row["bootstrap_high"])
            for row in rows
        ],
        "IQM": [number_text(row["iqm"]) + _range(row["iqm_low"], row["iqm_high"]) for row in rows],
    }


def _pairs(table: pd.DataFrame) -> dict[str, list[str]]:
    rows = _rows(table)
    return {
        "learner": [str(row["learner"]) for row in rows],
        "than": [str(row["baseline"]) for row in rows],
        "pairs": [str(row["pairs"]) for row in rows],
        "difference": [interval_text(row["difference"], row["difference_ci"], "+.2f") for row in rows],
        "d": [number_text(row["effect_size"]) + _range(row["effect_low"], row["effect_high"]) for row in rows],
        "better on": [
            number_text(row["improvement"], ".0%") + _range(row["improvement_low"], row["improvement_high"], ".0%")
            for row in rows
        ],
        "p": [number_text(row["p"], ".3g") for row in rows],
        "p (Holm)": [number_text(row["p_holm"], ".3g") for row in rows],
        "seeds": ["" if pd.isna(row["seeds_needed"]) else str(row["seeds_needed"]) for row in rows],
    }


def _ranks(ranks: Ranks) -> dict[str, list[str]]:
    rows = _rows(ranks.table)
    return {
        "learner": [str(row["learner"]) for row in rows],
        "seeds": [str(row["seeds"]) for row in rows],
        "rank": [interval_text(row["rank"], row["rank_ci"]) for row in rows],
    }


if __name__ == "__main__":
    raise SystemExit(main())
