"""Draw the online accuracy in each experience."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.figures import online_accuracy_by_experience
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, draw, script


@script(LEARNERS, DIVERGED, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    return draw(online_accuracy_by_experience, runs, arguments, "online_accuracy")
