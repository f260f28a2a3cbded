"""Compare the learners seed by seed, and rank them."""

from argparse import Namespace
from pathlib import Path

import pandas as pd

from continual_metaopt.analysis.comparisons import limits_of, paired_comparisons, rank_learners, summary_table
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, TEST, option, script, write_table
from continual_metaopt.analysis.tables import number_text, number_texts, seeds_of, with_interval

SUMMARY = (
    "Means over seeds, ± the half width of a 95 % Student-t interval; in brackets 95 % bootstrap intervals, which are "
    "too short for few seeds. IQM: interquartile mean, without the best and the worst quarter of the seeds."
)
BASELINE = option(
    "--baseline",
    metavar="LABEL",
    help="compare with this learner, or every pair if it is “all” (default: the best with fixed step sizes)",
)
POWER = option("--power", type=float, default=0.8, help="of the number of seeds needed (default: %(default)s)")


def about(pairs: pd.DataFrame) -> str:
    """What the columns of a table from `paired_comparisons` are."""
    unit = " in percentage points" if pairs.attrs["score"] == "online_accuracy" else " of squared errors"
    return (
        f"Mean differences{unit}, paired by seed; positive: the learner is better than the other. ± is the half width "
        "of a 95 % Student-t interval. d: mean over standard deviation of the differences. “Better on”: share of "
        "seeds, with a Clopper-Pearson interval. Seeds: so many would let a single paired t-test find such a "
        f"difference with probability {pairs.attrs['power']:g}. {limits_of(pairs)}"
    )


def texts(table: pd.DataFrame, **columns: str) -> dict[str, list[str]]:
    """Columns as they are: heading = name."""
    return {heading: [str(value) for value in table[name]] for heading, name in columns.items()}


def with_range(cells: list[str], table: pd.DataFrame, name: str, form: str = ".2f") -> list[str]:
    """Cells with the interval from `…_low` to `…_high` in brackets, where there is one."""
    edges = zip(table[f"{name}_low"], table[f"{name}_high"], strict=True)
    ranges = [
        "" if pd.isna(low) or pd.isna(high) else f" [{number_text(low, form)}, {number_text(high, form)}]"
        for low, high in edges
    ]
    return [cell + interval for cell, interval in zip(cells, ranges, strict=True)]


@script(BASELINE, TEST, POWER, DIVERGED)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    seeds = seeds_of(runs)
    options = {"diverged": arguments.diverged, "test": arguments.test}
    summary = summary_table(runs, diverged=arguments.diverged)
    pairs = paired_comparisons(runs, arguments.baseline, power=arguments.power, **options)
    ranks = rank_learners(runs, **options)
    of_summary = {
        **texts(summary, learner="learner", seeds="seeds"),
        "mean": with_range(with_interval(summary, "mean", decimals=2), summary, "bootstrap"),
        "IQM": with_range(number_texts(summary, "iqm"), summary, "iqm"),
    }
    of_pairs = {
        **texts(pairs, learner="learner", than="baseline", pairs="pairs"),
        "difference": with_interval(pairs, "difference", "+", decimals=2),
        "d": with_range(number_texts(pairs, "effect_size"), pairs, "effect"),
        "better on": with_range(number_texts(pairs, "improvement", ".0%"), pairs, "improvement", ".0%"),
        "p": number_texts(pairs, "p", ".3g"),
        "p (Holm)": number_texts(pairs, "p_holm", ".3g"),
        "seeds": number_texts(pairs, "seeds_needed", "d"),
    }
    of_ranks = {
        **texts(ranks.table, learner="learner", seeds="seeds"),
        "rank": with_interval(ranks.table, "rank", decimals=2),
    }
    of_all = (
        f"Mean rank over seeds, 1 is best. Friedman's test that all are equal: p = {ranks.p:.3g} (permutations "
        f"within seeds). {limits_of(ranks.comparisons)}"
    )
    return [
        *write_table(summary, of_summary, f"{SUMMARY} {seeds}.", arguments, "summary"),
        *write_table(pairs, of_pairs, f"{about(pairs)} {seeds}.", arguments, "paired_comparisons"),
        *write_table(ranks.table, of_ranks, f"{of_all} {seeds}.", arguments, "ranks"),
    ]
