"""Tabulate the sawtooth of step sizes and their trend, block by block, and draw the experiences over each other."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from continual_metaopt.analysis.figures import folded_sawtooth
from continual_metaopt.analysis.files import file_names
from continual_metaopt.analysis.report import split_by_stream
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.sawtooth import BINS, SHIFTS, SKIP, sawtooth_table
from continual_metaopt.analysis.scripts import _arguments
from continual_metaopt.analysis.tables import interval_text, number_text, seeds_of

NOTE = (
    "Amplitudes, rises, falls and slopes are means over seeds in decades: 0.3 is a factor of 2, 1 a factor of 10; ± is "
    "the half width of a 95 % Student-t interval over seeds. “By chance” is the 95 % quantile of the amplitude when "
    "boundaries are shifted at random, p the share of shifts with an amplitude at least as large, with Holm's "
    "correction for all rows. Peak and trough are fractions of an experience; the rise is from the end of the one "
    "before to the peak, the fall from there to the end. The change is the factor between the first experience that "
    "counts and the last."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = _arguments.make_parser(
        "sawtooth", "Do step sizes rise after each boundary and fall until the next? A table, and a figure per learner."
    )
    _arguments.add_learners(parser, default="those with learned step sizes")
    parser.add_argument("--bins", type=int, default=BINS, help="parts of an experience (default: %(default)s)")
    parser.add_argument(
        "--skip",
        type=int,
        default=SKIP,
        metavar="N",
        help="experiences left out at the beginning (default: %(default)s)",
    )
    parser.add_argument(
        "--shifts", type=int, default=SHIFTS, metavar="N", help="random sets of boundaries (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shifts (default: %(default)s)")
    _arguments.add_figure(parser, default="page")
    return _arguments.run_command(parser, argv, _write)


def _write(runs: Runs, arguments: argparse.Namespace) -> list[Path]:
    paths = []
    options = {name: getattr(arguments, name) for name in ("bins", "skip", "shifts", "seed")}
    for part, folder in split_by_stream(runs, arguments.out):
        table = sawtooth_table(part, arguments.learners, **options)
        note = f"{NOTE} {seeds_of(part)}.{_limits(len(table), arguments.shifts)}"
        paths += _arguments.write_table(table, _rounded(table), note, folder, "sawtooth")
        names = file_names(part.labels)
        for label in dict.fromkeys(table["learner"]):
            figure = folded_sawtooth(part, label, width=arguments.width, **options)
            paths += _arguments.save_figure(
                folded_sawtooth, part, figure, folder, f"sawtooth_{names[label]}", arguments
            )
    return paths


def _limits(n_rows: int, shifts: int, level: float = 0.05) -> str:
    """A sentence where so few shifts can show nothing after the correction; none otherwise."""
    if n_rows <= level * (shifts + 1):
        return ""
    return (
        f" With {shifts} shifts and {n_rows} rows no p (Holm) can be below {min(1, n_rows / (shifts + 1)):.3g}; "
        f"--shifts {math.ceil(n_rows / level) - 1} are enough."
    )


def _rounded(table: pd.DataFrame) -> dict[str, list[str]]:
    def texts(name: str, form: str = ".2f") -> list[str]:
        return [number_text(value, form) for value in table[name]]

    def with_interval(name: str, form: str) -> list[str]:
        pairs = zip(table[name], table[f"{name}_ci"], strict=True)
        return [interval_text(value, half_width, form) for value, half_width in pairs]

    return {
        "learner": list(table["learner"]),
        "block": list(table["block"]),
        "seeds": [str(seeds) for seeds in table["seeds"]],
        "amplitude": with_interval("amplitude", ".2f"),
        "by chance": texts("chance_amplitude"),
        "p (Holm)": texts("p_holm", ".3f"),
        "peak": texts("peak"),
        "trough": texts("trough"),
        "rise": texts("rise"),
        "fall": texts("fall"),
        "slope per experience": with_interval("slope", "+.2f"),
        "change": [f"× {number_text(10**value, '.3g')}" for value in table["change"]],
        "trend": list(table["trend"]),
    }


if __name__ == "__main__":
    raise SystemExit(main())
