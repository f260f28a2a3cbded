"""Draw the step sizes of each learner and block."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.figures import step_size_trajectories
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import STEPS, blocks, draw, figure, learners, script


@script(learners("those with learned step sizes"), blocks(), STEPS, *figure("page"))
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    return draw(step_size_trajectories, runs, arguments, "step_sizes")
