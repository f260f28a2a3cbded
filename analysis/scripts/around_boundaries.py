"""Draw accuracy, step sizes and diagnostics around the boundaries, one figure per learner."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from continual_metaopt.analysis.figures import ALIGNED, around_boundaries
from continual_metaopt.analysis.files import file_names
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import FIGURE, LEARNERS, blocks, draw, option, script

QUANTITIES = option(
    "--quantities", nargs="+", choices=list(ALIGNED), help="what to draw (default: all that was recorded)"
)
BEFORE = option(
    "--before", type=int, metavar="SAMPLES", help="samples before a boundary (default: a quarter of an experience)"
)
AFTER = option(
    "--after", type=int, metavar="SAMPLES", help="samples after it (default: three quarters of an experience)"
)


@script(LEARNERS, QUANTITIES, blocks(6), BEFORE, AFTER, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> Iterator[Path]:
    names = file_names(runs.labels)
    for label in arguments.labels or runs.labels:
        yield from draw(around_boundaries, runs, arguments, f"around_boundaries_{names[label]}", runs, label)
