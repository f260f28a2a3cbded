"""Draw the ranks of the learners over seeds."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.figures import rank_diagram
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, TEST, draw, script


@script(LEARNERS, TEST, DIVERGED, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    return draw(rank_diagram, runs, arguments, "rank_diagram")
