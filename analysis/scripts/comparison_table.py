"""Compare the learners in a table."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.report import write_tables
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import BASELINE, DIVERGED, script, selection_runs
from continual_metaopt.analysis.tables import caption, comparison_table, format_table


@script(BASELINE, DIVERGED)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    selection = selection_runs(arguments) if arguments.purpose == "report" else None
    table = comparison_table(runs, diverged=arguments.diverged, baseline=arguments.baseline, selection=selection)
    if arguments.folder != arguments.out:
        print(f"{arguments.folder.name}\n")
    print(f"{format_table(table, 'terminal')}\n{caption(table)}\n")
    return write_tables(table, arguments.folder)
