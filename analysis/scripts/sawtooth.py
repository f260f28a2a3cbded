"""Do step sizes rise after each boundary and fall until the next? A table, and a figure per learner."""

import math
from argparse import Namespace
from pathlib import Path

from continual_metaopt.analysis.figures import folded_sawtooth
from continual_metaopt.analysis.files import file_names
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.sawtooth import BINS, SHIFTS, SKIP, sawtooth_table
from continual_metaopt.analysis.scripts._arguments import draw, figure, learners, option, script, shifts, write_table
from continual_metaopt.analysis.tables import number_texts, seeds_of, with_interval

NOTE = (
    "Amplitudes, rises, falls and slopes are means over seeds in decades: 0.3 is a factor of 2, 1 a factor of 10; ± is "
    "the half width of a 95 % Student-t interval over seeds. “By chance” is the 95 % quantile of the amplitude when "
    "boundaries are shifted at random, p the share of shifts with an amplitude at least as large, with Holm's "
    "correction for all rows. Peak and trough are fractions of an experience; the rise is from the end of the one "
    "before to the peak, the fall from there to the end. The change is the factor between the first experience that "
    "counts and the last."
)
OPTIONS = (
    learners("those with learned step sizes"),
    option("--bins", type=int, default=BINS, help="parts of an experience (default: %(default)s)"),
    option(
        "--skip",
        type=int,
        default=SKIP,
        metavar="N",
        help="experiences left out at the beginning (default: %(default)s)",
    ),
    shifts(SHIFTS),
    option("--seed", type=int, default=0, help="of the shifts (default: %(default)s)"),
)


def limits_of(n_rows: int, n_shifts: int, level: float = 0.05) -> str:
    """A sentence where so few shifts can show nothing after the correction; none otherwise."""
    if n_rows <= level * (n_shifts + 1):
        return ""
    return (
        f" With {n_shifts} shifts and {n_rows} rows no p (Holm) can be below {min(1, n_rows / (n_shifts + 1)):.3g}; "
        f"--shifts {math.ceil(n_rows / level) - 1} are enough."
    )


@script(*OPTIONS, *figure("page"))
def main(runs: Runs, arguments: Namespace) -> list[Path]:
    options = {name: getattr(arguments, name) for name in ("bins", "skip", "shifts", "seed")}
    table = sawtooth_table(runs, arguments.labels, **options)
    columns = {
        "learner": list(table["learner"]),
        "block": list(table["block"]),
        "seeds": [str(seeds) for seeds in table["seeds"]],
        "amplitude": with_interval(table, "amplitude", decimals=2),
        "by chance": number_texts(table, "chance_amplitude"),
        "p (Holm)": number_texts(table, "p_holm", ".3f"),
        **{name: number_texts(table, name) for name in ("peak", "trough", "rise", "fall")},
        "slope per experience": with_interval(table, "slope", "+", decimals=2),
        "change": [f"× {text}" for text in number_texts(table.assign(change=10 ** table["change"]), "change", ".3g")],
        "trend": list(table["trend"]),
    }
    note = f"{NOTE} {seeds_of(runs)}.{limits_of(len(table), arguments.shifts)}"
    paths = write_table(table, columns, note, arguments, "sawtooth")
    names = file_names(runs.labels)
    for label in dict.fromkeys(table["learner"]):
        paths += draw(folded_sawtooth, runs, arguments, f"sawtooth_{names[label]}", runs, label)
    return paths
