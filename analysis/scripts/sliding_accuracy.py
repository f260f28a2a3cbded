"""Draw the online accuracy in a sliding window."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.figures import sliding_accuracy
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, draw, option, script

WINDOW = option(
    "--window", type=int, metavar="SAMPLES", help="length of the window (default: by the length of experiences)"
)


@script(WINDOW, LEARNERS, DIVERGED, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    return draw(sliding_accuracy, runs, arguments, "sliding_accuracy")
