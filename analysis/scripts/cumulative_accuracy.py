"""Draw the online accuracy over all samples so far."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.figures import cumulative_accuracy
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, draw, script


@script(LEARNERS, DIVERGED, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    return draw(cumulative_accuracy, runs, arguments, "cumulative_accuracy")
