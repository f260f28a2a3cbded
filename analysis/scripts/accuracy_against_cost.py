"""Compare accuracies at equal learning time, tuning included."""

from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.field.equal_time import accuracy_at_equal_time, seconds_per_sample
from continual_metaopt.analysis.field.figures import accuracy_against_time
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import (
    DIVERGED,
    costs_of_steps,
    draw,
    figure,
    option,
    script,
    selection_runs,
    write_table,
)
from continual_metaopt.analysis.tables import with_interval

COSTS = option(
    "--costs",
    type=Path,
    metavar="CSV",
    help="times of a step from python -m benchmarks.speed cost (default: speeds of the runs, which are less fair)",
)
REFERENCE = option(
    "--reference", default="AdamW", metavar="LEARNER", help="whose times are the budgets (default: %(default)s)"
)


@script(COSTS, REFERENCE, DIVERGED, *figure("page"))
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    reference, selection = arguments.reference, selection_runs(arguments)
    seconds = seconds_per_sample(runs, costs_of_steps(arguments))
    table = accuracy_at_equal_time(runs, seconds, selection, reference=reference, diverged=arguments.diverged)
    table = table.sort_values("in_tuned_time", ascending=False, kind="stable", ignore_index=True)
    columns = {
        "learner": [f"{row.learner}, {row.setting}" for row in table.itertuples()],
        "time": [f"{time:.2f}" for time in table["relative_time"]],
        "accuracy (%)": with_interval(table, "online_accuracy"),
        "in the stream's time": with_interval(table, "in_stream_time"),
        "in the tuned time": with_interval(table, "in_tuned_time"),
    }
    source = "of the runs" if arguments.costs is None else "by PyTorch's operations, measured in turns"
    explanation = (
        f"“Time” is that of learning, tuning included, relative to {reference}'s for the stream, from speeds {source}. "
        f"The last columns are the accuracy (%) in the time that {reference} needs for the stream, and for its tuning "
        "and the stream; samples that a learner does not come to in that time count as chance."
    )
    paths = write_table(table, columns, explanation, arguments, "equal_time")
    note = f"The reference is “{reference}”."
    return paths + draw(accuracy_against_time, runs, arguments, "accuracy_against_cost", table, note=note)
