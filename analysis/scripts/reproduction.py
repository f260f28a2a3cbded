"""The paper's results beside those of runs."""

from argparse import Namespace
from pathlib import Path
from typing import get_args

from continual_metaopt.analysis.paper.reproduction_report import SHIFTS_OF_TABLES, Experiment, write_reproduction
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, option, script, shifts

TABLE = option("--table", choices=get_args(Experiment), required=True, help="which experiment of the paper")


@script(TABLE, shifts(SHIFTS_OF_TABLES), DIVERGED, purpose="all", each_stream=False)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    text, paths = write_reproduction(
        runs, arguments.table, arguments.folder, diverged=arguments.diverged, shifts=arguments.shifts
    )
    print(text)
    return paths
