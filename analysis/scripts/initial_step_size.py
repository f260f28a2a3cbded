"""Draw and tabulate how accuracy depends on the initial step size of each learner."""

from argparse import Namespace
from pathlib import Path

import pandas as pd

from continual_metaopt.analysis.field.figures import initial_step_sizes
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.scripts._arguments import DIVERGED, draw, figure, script, write_table
from continual_metaopt.analysis.tuning import scores_over_option

EXPLANATION = (
    "Average online accuracy (%) at each value of the initial step size, or of what stands for it, mean over seeds. "
    "“Lost” is by how much the worst value is below the best, in percentage points."
)


def columns_of(table: pd.DataFrame) -> dict[str, list[str]]:
    """Texts of a table from `scores_over_option`: a row for each learner, a column for each value."""
    means = 100 * table.pivot_table(index="learner", columns="value", values="online_accuracy", sort=False)
    means = means.sort_index(axis="columns")
    options = table.drop_duplicates("learner").set_index("learner")["option"].reindex(means.index)
    columns = {"learner": list(means.index), "option": list(options)}
    columns |= {f"{value:g}": ["" if pd.isna(m) else f"{m:.1f}" for m in means[value]] for value in means}
    return columns | {"lost": [f"{lost:.1f}" for lost in means.max(axis=1) - means.min(axis=1)]}


@script(DIVERGED, *figure("page"), purpose="selection")
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    table = scores_over_option(runs, arguments.diverged)
    paths = write_table(table, columns_of(table), EXPLANATION, arguments, "initial_step_size")
    note = f"The first learner is “{table['learner'].iloc[0]}”."
    return paths + draw(initial_step_sizes, runs, arguments, "initial_step_size", table, note=note)
