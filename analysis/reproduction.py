"""The paper's tables of continual learning beside our own results, and which of its claims hold.

The paper's numbers are those of the authors' reply to the reviews of "MetaOptimize" (Sharifnassab, Salehkaleybar,
Sutton; arXiv 2402.02342): average online top-1 accuracy on CIFAR-100, its classes split into tasks of 10 (table 2) or
20 (table 3), one epoch each, mean of 5 runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import pandas as pd

from analysis.runs import Runs
from analysis.statistics import Diverged, mean_interval, online_accuracy

Table = Literal["table2", "table3"]
StepSizes = Literal["fixed", "scalar", "blockwise"]
Verdict = Literal["holds", "does not hold", "undecided"]

BASES = ("AdamW", "RMSProp", "Lion")
PAPER: Mapping[Table, Mapping[StepSizes, Mapping[str, float]]] = MappingProxyType(
    {
        "table2": {
            "fixed": {"AdamW": 36.59, "RMSProp": 37.32, "Lion": 24.19},
            "scalar": {"AdamW": 37.77, "RMSProp": 38.77, "Lion": 25.62},
            "blockwise": {"AdamW": 39.05, "RMSProp": 39.79, "Lion": 26.40},
        },
        "table3": {
            "fixed": {"AdamW": 24.84, "RMSProp": 21.81, "Lion": 14.45},
            "scalar": {"AdamW": 26.24, "RMSProp": 24.90, "Lion": 15.19},
            "blockwise": {"AdamW": 25.77, "RMSProp": 27.36, "Lion": 17.46},
        },
    }
)


@dataclass(frozen=True)
class Row:
    """A learner of the studies ``table2`` and ``table3``, as its label names it.

    Attributes:
        base: base update, one of ``BASES``.
        step_sizes: "fixed", "scalar" or "blockwise".
        settings: how discount and meta step size were found; empty for fixed step sizes.
    """

    base: str
    step_sizes: StepSizes
    settings: str

    @property
    def name(self) -> str:
        """Of the row, without the base update."""
        return f"{self.step_sizes}, {self.settings}" if self.settings else self.step_sizes


def paper_comparison(runs: Runs, table: Table, *, diverged: Diverged = "chance") -> pd.DataFrame:
    """Our accuracies beside the paper's.

    Args:
        runs: of the study ``table2`` or ``table3``.
        table: which of the two.
        diverged: how diverged runs count, see ``analysis.statistics.online_accuracy``.

    Returns:
        One row per learner of the study: base, step_sizes, settings, seeds, online_accuracy (%), online_accuracy_ci
        (half width of the 95 % interval), gap and gap_ci (percentage points above the tuned fixed step size of the same
        base update, paired by seed; NaN for itself), paper, paper_gap (the same of the paper).

    Raises:
        ValueError: there are no runs of that study, or they are of several streams.
    """
    by_seed = _by_seed(runs, table, diverged)
    rows = []
    for row, accuracy in by_seed.items():
        mean, half_width = mean_interval(accuracy.to_numpy())
        fixed = by_seed.get(Row(row.base, "fixed", ""))
        gap, gap_ci = (np.nan, np.nan) if fixed is None or row.step_sizes == "fixed" else _paired(accuracy, fixed)
        paper = PAPER[table]
        rows.append(
            {
                "base": row.base,
                "step_sizes": row.step_sizes,
                "settings": row.settings,
                "seeds": len(accuracy),
                "online_accuracy": mean,
                "online_accuracy_ci": half_width,
                "gap": gap,
                "gap_ci": gap_ci,
                "paper": paper[row.step_sizes][row.base],
                "paper_gap": np.nan
                if row.step_sizes == "fixed"
                else paper[row.step_sizes][row.base] - paper["fixed"][row.base],
            }
        )
    return pd.DataFrame(rows)


def paper_claims(runs: Runs, table: Table, *, diverged: Diverged = "chance") -> pd.DataFrame:
    """Which orderings of the paper's table hold in ours.

    A claim holds if the 95 % interval of the difference, paired by seed, lies above zero, does not hold if it lies
    below, and is undecided otherwise.

    Args:
        runs: of the study ``table2`` or ``table3``.
        table: which of the two.
        diverged: how diverged runs count, see ``analysis.statistics.online_accuracy``.

    Returns:
        One row per claim and way of finding the settings: claim, settings, difference and half_width (percentage
        points), paper (the same difference there), verdict.

    Raises:
        ValueError: there are no runs of that study, or they are of several streams.
    """
    by_seed = _by_seed(runs, table, diverged)
    ways = list(dict.fromkeys(row.settings for row in by_seed if row.settings))
    claims = []
    for claim, better, worse, paper in _orderings(table):
        for way in ways if {better[1], worse[1]} != {"fixed"} else [""]:
            rows = [Row(base, kind, "" if kind == "fixed" else way) for base, kind in (better, worse)]
            if all(row in by_seed for row in rows):
                difference, half_width = _paired(by_seed[rows[0]], by_seed[rows[1]])
                claims.append((claim, way, difference, half_width, paper, verdict(difference, half_width)))
    return pd.DataFrame(claims, columns=["claim", "settings", "difference", "half_width", "paper", "verdict"])


Cell = tuple[str, StepSizes]


def _orderings(table: Table) -> Iterator[tuple[str, Cell, Cell, float]]:
    """All pairs in a row or a column of the paper's table: claim, the better, the worse, the difference."""
    paper = PAPER[table]
    for base in BASES:
        for first, second in combinations(get_args(StepSizes), 2):
            worse, better = sorted((first, second), key=lambda kind: paper[kind][base])
            gap = paper[better][base] - paper[worse][base]
            yield f"{base}: {better} above {worse}", (base, better), (base, worse), gap
    for kind in get_args(StepSizes):
        for one, other in combinations(BASES, 2):
            worse, better = sorted((one, other), key=paper[kind].__getitem__)
            gap = paper[kind][better] - paper[kind][worse]
            yield f"{kind}: {better} above {worse}", (better, kind), (worse, kind), gap


def verdict(difference: float, half_width: float) -> Verdict:
    """What an interval says about the claim that a difference is positive."""
    if difference - half_width > 0:
        return "holds"
    return "does not hold" if difference + half_width < 0 else "undecided"


def comparison_markdown(table: pd.DataFrame) -> str:
    """Our accuracies beside the paper's, as a Markdown table in the shape of the paper's.

    Args:
        table: from `paper_comparison`.

    Returns:
        A row for each kind of step sizes, two columns for each base update; ends with a line break.
    """
    from tabulate import tabulate

    cells: dict[str, dict[str, str]] = {}
    for row in table.to_dict("records"):
        name = Row(row["base"], row["step_sizes"], row["settings"]).name
        ours, paper = f"{row['online_accuracy']:.2f} ± {row['online_accuracy_ci']:.2f}", f"{row['paper']:.2f}"
        if np.isfinite(row["paper_gap"]):
            ours += f" ({_signed(row['gap'])} ± {row['gap_ci']:.2f})"
            paper += f" ({_signed(row['paper_gap'])})"
        cells.setdefault(name, {}).update({f"{row['base']}, ours": ours, f"{row['base']}, paper": paper})
    columns = [f"{base}, {whose}" for base in BASES for whose in ("ours", "paper")]
    rows = [[name, *(of_row.get(column, "") for column in columns)] for name, of_row in cells.items()]
    return tabulate(rows, ["", *columns], "github", colalign=["left", *["right"] * len(columns)]) + "\n"


def claims_markdown(claims: pd.DataFrame) -> str:
    """Claims and verdicts as a Markdown table, the ways of finding the settings side by side.

    Args:
        claims: from `paper_claims`.

    Returns:
        The table; ends with a line break.
    """
    from tabulate import tabulate

    ways = [way for way in dict.fromkeys(claims["settings"]) if way]
    rows = []
    for claim, group in claims.groupby("claim", sort=False):
        found = {
            row["settings"]: f"{row['verdict']}: {_signed(row['difference'])} ± {row['half_width']:.2f}"
            for row in group.to_dict("records")
        }
        paper = _signed(group["paper"].iloc[0])
        rows.append([claim, paper, *(found.get(way, found.get("", "")) for way in ways)])
    return tabulate(rows, ["claim", "paper", *ways], "github", colalign=["left", *["right"] * (1 + len(ways))]) + "\n"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def row_of(label: str) -> Row | None:
    """The row that a label such as "AdamW, scalar, no discount" names; None if it names none."""
    base, _, rest = label.partition(", ")
    step_sizes, _, settings = rest.partition(", ")
    if base not in BASES or step_sizes not in get_args(StepSizes):
        return None
    return Row(base, step_sizes, settings)  # type: ignore[arg-type]


def _by_seed(runs: Runs, table: Table, diverged: Diverged) -> dict[Row, pd.Series]:
    """Accuracy (%) of each row, indexed by seed."""
    runs.require_one_stream()
    accuracy = online_accuracy(runs, diverged).dropna(subset="online_accuracy")
    values: dict[Row, dict[int, float]] = {}
    for run, seed, fraction in accuracy[["run", "seed", "online_accuracy"]].itertuples(index=False, name=None):
        config = runs.configs[run]
        row = row_of(config.get("entry") or config["label"]) if config["study"] == table else None
        if row is not None:
            values.setdefault(row, {})[seed] = 100 * fraction
    if not values:
        raise ValueError(f"none of these runs is of the study {table}: run `continual-metaopt reproduce {table}` first")
    return {row: pd.Series(of_seeds).sort_index() for row, of_seeds in values.items()}


def _paired(better: pd.Series, worse: pd.Series) -> tuple[float, float]:
    """Mean difference over common seeds, and the half width of its interval."""
    mean, half_width = mean_interval((better - worse).dropna().to_numpy())
    return float(mean), float(half_width)
