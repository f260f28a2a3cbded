"""The paper's continual experiments beside our own results, and which of its claims hold.

The paper's numbers are those of the authors' reply to the reviews of "MetaOptimize" (Sharifnassab, Salehkaleybar,
Sutton; arXiv 2402.02342): average online top-1 accuracy on CIFAR-100, its classes split into tasks of 10 (table 2) or
20 (table 3), one epoch each, mean of 5 runs. Its findings about step sizes are that they rise when the task changes and
fall until the next change, that those of early layers decrease from task to task, and that those of the last layer
stay.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from itertools import combinations
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from continual_metaopt.analysis import statistics
from continual_metaopt.analysis.comparisons import holm, paired_t_test
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import Diverged
from continual_metaopt.analysis.tables import interval_text, markdown_table, number_text

Table = Literal["table2", "table3"]
StepSizes = Literal["fixed", "scalar", "blockwise"]
Verdict = Literal["holds", "does not hold", "undecided"]

BASES = ("AdamW", "RMSProp", "Lion")
LEVEL = 0.05  # of all tests of a table together, after correction for their number
STAYS = 0.05  # decades per experience: a factor of 2.8 over ten experiences
# Of the paper's stationary experiments; its continual experiment has γ = 0.999.
STATIONARY_SETTING = (1.0, 1e-3)  # discount and meta step size
STATIONARY_NAME = "γ = 1, η = 1e-3"
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


class Row(NamedTuple):
    """A learner of the studies ``table2`` and ``table3`` as its label names it.

    The settings say how discount and meta step size were found; they are empty for fixed step sizes.
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

    Returns:
        One row per learner of the study: base, step_sizes, settings, seeds, online_accuracy (%), online_accuracy_ci
        (half width of the 95 % interval), gap and gap_ci (percentage points above the tuned fixed step size of the same
        base update, paired by seed; NaN for itself), online_accuracy_seeds and gap_seeds (single seeds where these are
        bimodal, see `analysis.statistics.seeds_if_bimodal`), paper, paper_gap (the same of the paper).

    Raises:
        ValueError: there are no runs of that study, or they are of several streams.
    """
    by_seed = _by_seed(runs, table, diverged)
    rows = []
    for row, accuracy in by_seed.items():
        mean, half_width = statistics.mean_interval(accuracy.to_numpy())
        fixed = by_seed.get(Row(row.base, "fixed", ""))
        gap, gap_ci, gap_seeds = np.nan, np.nan, ""
        if fixed is not None and row.step_sizes != "fixed":
            gap, gap_ci = statistics.paired_interval(accuracy, fixed)
            gap_seeds = statistics.seeds_if_bimodal(accuracy - fixed)
        paper = PAPER[table]
        rows.append(
            {
                **row._asdict(),
                "seeds": len(accuracy),
                "online_accuracy": mean,
                "online_accuracy_ci": half_width,
                "online_accuracy_seeds": statistics.seeds_if_bimodal(accuracy),
                "gap": gap,
                "gap_ci": gap_ci,
                "gap_seeds": gap_seeds,
                "paper": paper[row.step_sizes][row.base],
                "paper_gap": np.nan
                if row.step_sizes == "fixed"
                else paper[row.step_sizes][row.base] - paper["fixed"][row.base],
            }
        )
    return pd.DataFrame(rows)


def paper_claims(runs: Runs, table: Table, *, diverged: Diverged = "chance") -> pd.DataFrame:
    """Which orderings of the paper's table hold in ours.

    Each difference is tested by a two-sided t-test of the differences between equal seeds. (Exact sign-flip tests
    cannot give less than 0.0625 with five seeds.) Holm's correction is for all rows of the table. See `verdict`.

    Returns:
        One row per claim and way of finding the settings: claim, settings, difference and half_width (percentage
        points; of one 95 % interval, not corrected), p_holm, paper (the same difference there), verdict.
    """
    by_seed = _by_seed(runs, table, diverged)
    ways = list(dict.fromkeys(row.settings for row in by_seed if row.settings))
    claims: list[tuple[str, str, float, float, float, float]] = []
    for claim, better, worse, paper in _orderings(table):
        for way in ways if {better[1], worse[1]} != {"fixed"} else [""]:
            rows = [Row(base, kind, "" if kind == "fixed" else way) for base, kind in (better, worse)]
            if all(row in by_seed for row in rows):
                pair = by_seed[rows[0]], by_seed[rows[1]]
                claims.append((claim, way, *statistics.paired_interval(*pair), _paired_p(*pair), paper))
    decided = pd.DataFrame(claims, columns=["claim", "settings", "difference", "half_width", "p_holm", "paper"])
    decided["p_holm"] = holm(decided["p_holm"])
    decided["verdict"] = list(map(verdict, decided["difference"], decided["p_holm"]))
    return decided


def _paired_p(better: pd.Series, worse: pd.Series) -> float:
    """The p-value of a paired t-test over common seeds."""
    return paired_t_test((better - worse).dropna().to_numpy())


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


def verdict(difference: float, p: float) -> Verdict:
    """What a test says about a positive difference: it "holds", "does not hold", or, if p > 0.05, is "undecided"."""
    if not p <= LEVEL or difference == 0:
        return "undecided"
    return "holds" if difference > 0 else "does not hold"


def comparison_markdown(table: pd.DataFrame) -> str:
    """Our accuracies beside the paper's, as a Markdown table: two columns for each base update."""
    cells: dict[str, dict[str, str]] = {}
    for row in table.to_dict("records"):
        name = Row(row["base"], row["step_sizes"], row["settings"]).name
        ours = interval_text(row["online_accuracy"], row["online_accuracy_ci"], seeds=row["online_accuracy_seeds"])
        paper = f"{row['paper']:.2f}"
        if np.isfinite(row["gap"]):
            gap = interval_text(row["gap"], row["gap_ci"], "+.2f", row["gap_seeds"])
            ours += f"; gap {gap}" if row["online_accuracy_seeds"] or row["gap_seeds"] else f" ({gap})"
        if np.isfinite(row["paper_gap"]):
            paper += f" ({number_text(row['paper_gap'], '+.2f')})"
        cells.setdefault(name, {}).update({f"{row['base']}, ours": ours, f"{row['base']}, paper": paper})
    columns = [f"{base}, {whose}" for base in BASES for whose in ("ours", "paper")]
    rows = [[name, *(of_row.get(column, "") for column in columns)] for name, of_row in cells.items()]
    return markdown_table(["", *columns], rows, "right")


def claims_markdown(claims: pd.DataFrame) -> str:
    """Claims and verdicts as a Markdown table, the ways of finding the settings side by side."""
    ways = [way for way in dict.fromkeys(claims["settings"]) if way]
    rows = []
    for claim, group in claims.groupby("claim", sort=False):
        found = {
            row["settings"]: f"{row['verdict']}: {interval_text(row['difference'], row['half_width'], '+.2f')}"
            for row in group.to_dict("records")
        }
        paper = number_text(group["paper"].iloc[0], "+.2f")
        rows.append([claim, paper, *(found.get(way, found.get("", "")) for way in ways)])
    return markdown_table(["claim", "paper", *ways], rows, "right")


def sawtooth_findings(table: pd.DataFrame) -> pd.DataFrame:
    """Which of the paper's findings about step sizes hold in ours.

    - "sawtooth", for each block: holds if its teeth are larger than when boundaries are shifted at random (p ≤ 0.05,
      corrected for the number of blocks), the peak lies in the first half of an experience, and the step size falls
      from there; does not hold if the teeth are larger than by chance, but of another shape; undecided otherwise.
    - "first block falls", where there are several: by a t-test of its trend from experience to experience over seeds,
      with Holm's correction for the number of first blocks. See `verdict`.
    - "last block stays": holds if the interval of its trend lies within ± 0.05 decades per experience (a factor of 2.8
      over ten experiences), does not hold if it lies outside, and is undecided otherwise. The intervals are
      simultaneous: for k last blocks each is a (100 − 5/k) % Student-t interval (Bonferroni), so that all of them
      together hold the true trends in 95 % of cases. half_width is that of a single 95 % interval.

    Returns:
        One row per learner, finding and block: learner, finding, block, value and half_width (the amplitude in decades,
        or the slope in decades per experience, over seeds), p_holm (corrected; NaN for "last block stays", which is
        decided by intervals), verdict.
    """
    rows: list[tuple[str, str, str, float, float, float, Verdict]] = []
    for row in table.to_dict("records"):
        found: Verdict = "undecided"
        if row["p_holm"] <= LEVEL:
            found = "holds" if row["peak"] < 0.5 and row["fall"] > 0 else "does not hold"
        rows.append(
            (row["learner"], "sawtooth", row["block"], row["amplitude"], row["amplitude_ci"], row["p_holm"], found)
        )
    several = table[table.groupby("learner")["block"].transform("size") > 1].groupby("learner", sort=False)
    first, last = several.head(1), several.tail(1)
    for row, p in zip(first.to_dict("records"), _trend_p_holm(first), strict=True):
        found = verdict(-row["slope"], p)
        rows.append((row["learner"], "first block falls", row["block"], row["slope"], row["slope_ci"], p, found))
    half_widths = _standard_errors(last) * _critical(last, LEVEL / max(1, len(last)))
    for row, half_width in zip(last.to_dict("records"), half_widths, strict=True):
        found = _stays(row["slope"], half_width)
        rows.append((row["learner"], "last block stays", row["block"], row["slope"], row["slope_ci"], np.nan, found))
    return pd.DataFrame(rows, columns=["learner", "finding", "block", "value", "half_width", "p_holm", "verdict"])


def _critical(trends: pd.DataFrame, level: float) -> np.ndarray:
    """What Student's t exceeds in size with a probability of `level`, for the number of seeds of each trend."""
    from scipy.special import stdtrit

    critical: np.ndarray = stdtrit(trends["seeds"].to_numpy() - 1, 1 - level / 2)
    return critical


def _standard_errors(trends: pd.DataFrame) -> np.ndarray:
    """Standard errors of slopes, from the half widths of their 95 % Student-t intervals."""
    return trends["slope_ci"].to_numpy() / _critical(trends, LEVEL)


def _trend_p_holm(trends: pd.DataFrame) -> np.ndarray:
    """Two-sided p-values of t-tests of slopes over seeds, with Holm's correction for their number."""
    from scipy.special import stdtr

    with np.errstate(divide="ignore", invalid="ignore"):  # no spread at all
        t = np.abs(trends["slope"].to_numpy()) / _standard_errors(trends)
    return holm(2 * stdtr(trends["seeds"].to_numpy() - 1, -t))


def _stays(slope: float, half_width: float) -> Verdict:
    if abs(slope) + half_width < STAYS:
        return "holds"
    return "does not hold" if abs(slope) - half_width > STAYS else "undecided"


def findings_markdown(findings: pd.DataFrame) -> str:
    """The findings about step sizes as a Markdown table with a row per learner: factors, and trends in decades."""
    cells = []
    for learner, group in findings.groupby("learner", sort=False):
        teeth = group[group["finding"] == "sawtooth"]
        spans = [
            f"{row['block']} × {10 ** row['value']:.2f}" + (f" ({row['verdict']})" if row["verdict"] != "holds" else "")
            for row in teeth.to_dict("records")
        ]
        n_holds = int((teeth["verdict"] == "holds").sum())
        trends = {
            row["finding"]: f"{row['verdict']}: {row['block']} {interval_text(row['value'], row['half_width'], '+.2f')}"
            for row in group[group["finding"] != "sawtooth"].to_dict("records")
        }
        trend_cells = [trends.get(finding, "") for finding in ("first block falls", "last block stays")]
        cells.append([learner, f"{n_holds} of {len(teeth)}: {', '.join(spans)}", *trend_cells])
    headings = ["learner", "blocks with a sawtooth", "first block falls", "last block stays"]
    return markdown_table(headings, cells, "left")


def initial_step_sizes(tried: Runs, *, diverged: Diverged = "chance") -> pd.DataFrame:
    """How much accuracy depends on the initial step size, in the selection runs of the study ``robustness``.

    Returns:
        One row per learner and way of choosing discount and meta step size (γ = 1 and η = 1e-3, the values of the
        paper's stationary experiments, and those with the best mean over all initial step sizes): learner, base,
        settings, gamma, meta_lr (NaN for fixed step sizes), lowest and highest (step size that all seeds have), worst
        and best (online accuracy in %, mean over seeds), lost (best minus worst, in percentage points), fixed_lost
        (that of the fixed step size of the same base update over its own, narrower grid), saved and half_width (of
        fixed_lost − lost, paired by seed; of one 95 % interval), p_holm (of paired t-tests of saved, with Holm's
        correction for all learned rows), verdict ("holds" if learned step sizes lose less; "undecided" for a single
        seed; empty for fixed step sizes).

    Raises:
        ValueError: these are no such runs.
    """
    tried.require_one_stream()
    maps = _of_all_seeds(tried, True, ["gamma", "meta_lr", "lr"], diverged)
    fixed = _of_all_seeds(tried, False, ["lr"], diverged)
    maps["base"], fixed["base"] = (part["label"].str.partition(", ")[0] for part in (maps, fixed))
    fixed_lost = {base: _lost(_by_step_size(group)) for base, group in fixed.groupby("base")}
    rows = []
    for learner, group in fixed.groupby("label", sort=False):
        rows.append(_over_step_sizes(str(learner), "", (np.nan, np.nan), group, None))
    for learner, group in maps.groupby("label", sort=False):
        means = group.groupby(["gamma", "meta_lr"])["online_accuracy"].mean()
        best = max(means.index, key=means.__getitem__)
        for settings, (gamma, meta_lr) in ((STATIONARY_NAME, STATIONARY_SETTING), ("best", best)):
            part = group[np.isclose(group["gamma"], gamma, 0, 1e-9) & np.isclose(group["meta_lr"], meta_lr)]
            if len(part):
                baseline = fixed_lost.get(group["base"].iloc[0])
                rows.append(_over_step_sizes(str(learner), settings, (gamma, meta_lr), part, baseline))
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p_holm"])
    verdicts = map(verdict, table["saved"], table["p_holm"])
    table["verdict"] = [found if learned else "" for found, learned in zip(verdicts, table["settings"], strict=True)]
    return table


def _of_all_seeds(tried: Runs, learned: bool, settings: list[str], diverged: Diverged) -> pd.DataFrame:
    """Accuracy of each setting on each seed, of learners whose step sizes are learned, or fixed."""
    of_kind = tried.select(learned_step_sizes=learned)
    if not len(of_kind):
        raise ValueError(f"there are no selection runs with {'learned' if learned else 'fixed'} step sizes")
    return pd.concat(
        statistics.accuracy_by_setting(of_kind.select(seed=int(seed)), settings, diverged).assign(seed=seed)
        for seed in sorted(of_kind.table["seed"].unique())
    )


def _by_step_size(group: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (%) by seed and step size, of the step sizes that all seeds have."""
    return 100 * group.pivot(index="seed", columns="lr", values="online_accuracy").dropna(axis="columns")


def _lost(accuracy: pd.DataFrame) -> pd.Series:
    """Best minus worst by seed; which these are is told by the means over seeds, not by each seed's own luck."""
    means = accuracy.mean()
    return accuracy[means.idxmax()] - accuracy[means.idxmin()]


def _over_step_sizes(
    learner: str, settings: str, chosen: tuple[float, float], group: pd.DataFrame, fixed_lost: pd.Series | None
) -> dict[str, object]:
    accuracy = _by_step_size(group)
    means, lost = accuracy.mean(), _lost(accuracy)
    saved, half_width, p = (np.nan,) * 3
    if fixed_lost is not None:
        saved, half_width, p = *statistics.paired_interval(fixed_lost, lost), _paired_p(fixed_lost, lost)
    return {
        "learner": learner,
        "base": group["base"].iloc[0],
        "settings": settings,
        "gamma": chosen[0],
        "meta_lr": chosen[1],
        "lowest": means.index.min(),
        "highest": means.index.max(),
        "worst": means.min(),
        "best": means.max(),
        "lost": lost.mean(),
        "fixed_lost": np.nan if fixed_lost is None else fixed_lost.mean(),
        "saved": saved,
        "half_width": half_width,
        "p_holm": p,  # to be corrected when all rows are there
    }


def initial_step_sizes_markdown(table: pd.DataFrame) -> str:
    """The dependence on the initial step size as a Markdown table."""
    cells = []
    for row in table.to_dict("records"):
        learned = bool(row["settings"])
        cells.append(
            [
                row["learner"],
                _settings_text(row),
                f"{row['lowest']:g} – {row['highest']:g} (× {row['highest'] / row['lowest']:,.0f})",
                f"{row['worst']:.1f} – {row['best']:.1f}",
                f"{row['lost']:.1f}",
                f"{row['verdict']}: {interval_text(row['saved'], row['half_width'], '+.1f')}" if learned else "",
            ]
        )
    headings = ["learner", "settings", "step sizes", "accuracy (%)", "lost", "loses less than a fixed one"]
    return markdown_table(headings, cells, "left")


def _settings_text(row: Mapping[Hashable, Any]) -> str:
    """Discount and meta step size of a row, each once."""
    if row["settings"] in ("", STATIONARY_NAME):
        return str(row["settings"])
    return f"{row['settings']}: γ = {row['gamma']:g}, η = {row['meta_lr']:g}"


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
    accuracy = statistics.online_accuracy(runs, diverged).dropna(subset="online_accuracy")
    values: dict[Row, dict[int, float]] = {}
    paths: dict[tuple[Row, int], str] = {}
    for run, seed, fraction in accuracy[["run", "seed", "online_accuracy"]].itertuples(index=False, name=None):
        config = runs.configs[run]
        label = config.get("entry") or config["label"]
        row = row_of(label) if config["study"] == table else None
        if row is not None:
            of_row = values.setdefault(row, {})
            if seed in of_row:
                first = paths[row, seed]
                raise ValueError(
                    f"{first} and {run} are both {label!r} with seed {seed}: give one of their folders alone"
                )
            of_row[seed], paths[row, seed] = 100 * fraction, run
    if not values:
        raise ValueError(f"none of these runs is of the study {table}: run `continual-metaopt reproduce {table}` first")
    return {row: pd.Series(of_seeds).sort_index() for row, of_seeds in values.items()}
