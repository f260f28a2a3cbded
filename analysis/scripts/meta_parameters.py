"""Draw the learned weight decays and momenta of each learner and block."""

from argparse import Namespace
from pathlib import Path
from typing import get_args

from continual_metaopt.analysis.figures import MetaParameter, has_meta_parameter, meta_parameter_trajectories
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import STEPS, blocks, draw, figure, learners, script


@script(learners("those that learn them"), blocks(), STEPS, *figure("page"), each_stream=False)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        arguments.folder = folder
        for quantity in get_args(MetaParameter):
            if has_meta_parameter(part, quantity):
                paths += draw(meta_parameter_trajectories, part, arguments, quantity, part, quantity)
    if not paths:
        raise ValueError("no learned weight decays or momenta have been recorded")
    return paths
