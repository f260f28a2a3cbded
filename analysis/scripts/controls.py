"""Compare controls with a learner, in a table and a figure."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.field.controls import control_table
from continual_metaopt.analysis.field.figures import control_dots
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import FIGURE, draw, option, script, write_table
from continual_metaopt.analysis.tables import seeds_of, with_interval

NOTE = (
    "Average online accuracy (%) and paired differences in percentage points, over all experiences and without the "
    "first, means over seeds; ± is the half width of a 95 % Student-t interval over seeds."
)
BASELINE = option("--baseline", metavar="LABEL", help="what all others are compared with (default: the first learner)")
PAIR = option(
    "--pair",
    nargs=2,
    action="append",
    metavar=("LEARNER", "BASELINE"),
    help="compare these two instead of all with one; may be given several times",
)


@script(BASELINE, PAIR, *FIGURE)
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    pairs = None if arguments.pair is None else [(learner, baseline) for learner, baseline in arguments.pair]
    table = control_table(runs, arguments.baseline, pairs)
    columns = {
        "learner": table["learner"].tolist(),
        "than": table["baseline"].tolist(),
        "pairs": table["pairs"].astype(str).tolist(),
        "accuracy": with_interval(table, "mean"),
        "difference": with_interval(table, "difference", "+"),
        "without the first": with_interval(table, "late_difference", "+"),
    }
    name = "controls" if pairs is None else "pairs_of_controls"
    paths = write_table(table, columns, f"{NOTE} {seeds_of(runs)}.", arguments, name)
    return paths + draw(control_dots, runs, arguments, name, table)
