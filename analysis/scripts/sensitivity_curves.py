"""Draw how accuracy depends on one setting."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.figures import sensitivity_curves
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, draw, option, script

SETTING = option("--setting", default="lr", metavar="OPTION", help="an option of the learner (default: %(default)s)")


@script(SETTING, DIVERGED, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    return draw(sensitivity_curves, runs, arguments, "sensitivity_curves")
