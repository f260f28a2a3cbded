"""Draw the squared error of a regression in a sliding window."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.figures import sliding_squared_error
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, draw, option, script
from continual_metaopt.analysis.statistics import mean_interval, mean_squared_error
from continual_metaopt.analysis.tables import interval_text, seeds_text

WINDOW = option(
    "--window", type=int, default=1000, metavar="SAMPLES", help="length of the window (default: %(default)s)"
)
BURN_IN = option(
    "--burn-in", type=int, default=0, metavar="SAMPLES", help="not counted in the printed means (default: none)"
)


@script(WINDOW, BURN_IN, LEARNERS, DIVERGED, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    paths = draw(sliding_squared_error, runs, arguments, "squared_error")
    counted = mean_squared_error(runs, arguments.diverged, arguments.burn_in).dropna(subset="squared_error")
    print(f"mean squared error after {arguments.burn_in} samples, ± 95 % interval over seeds")
    for label in arguments.labels or runs.labels:
        errors = counted.loc[counted["label"] == label, "squared_error"].to_numpy()
        text, n = interval_text(*mean_interval(errors), ".3f"), len(errors)
        print(f"{label}: {text or 'no run counts'} ({seeds_text(n, n)})")
    return paths
