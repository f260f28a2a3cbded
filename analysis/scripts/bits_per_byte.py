"""Draw the bits per byte of text in a sliding window, and tabulate them by domain."""

from argparse import Namespace
from pathlib import Path

import pandas as pd

from continual_metaopt.analysis.escaping import csv_text
from continual_metaopt.analysis.figures import sliding_bits_per_byte
from continual_metaopt.analysis.files import write_text
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, draw, script
from continual_metaopt.analysis.scripts.sliding_accuracy import WINDOW
from continual_metaopt.analysis.statistics import mean_interval
from continual_metaopt.analysis.tables import format_columns, interval_text, seeds_of
from continual_metaopt.analysis.text import bits_by_domain

NOTE = "Online bits per byte in each domain: mean over seeds ± half width of a 95 % Student-t interval."


@script(WINDOW, LEARNERS, DIVERGED, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    paths = draw(sliding_bits_per_byte, runs, arguments, "bits_per_byte")
    measured = bits_by_domain(runs)
    if arguments.labels:
        measured = measured[measured["label"].isin(arguments.labels)]
    print(f"{format_columns(_columns(measured), 'markdown')}\n{NOTE} {seeds_of(runs)}.\n")
    return [write_text(arguments.folder / "bits_per_byte.csv", csv_text(measured)), *paths]


def _columns(measured: pd.DataFrame) -> dict[str, list[str]]:
    """Texts of a table with a row for each domain, and one for their mean, and a column for each learner."""
    domains = sorted(measured["domain"].unique())
    columns = {"domain": [*domains, "mean of domains"]}
    for label in dict.fromkeys(measured["label"]):
        seeds = measured[measured["label"] == label].pivot(index="seed", columns="domain", values="bits_per_byte")
        values = [*(seeds[domain].to_numpy() for domain in domains), seeds.mean(axis=1).to_numpy()]
        columns[str(label)] = [interval_text(*mean_interval(of_seeds), ".3f") for of_seeds in values]
    return columns
