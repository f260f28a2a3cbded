"""The published continual experiment of MetaOptimize beside ours: its table, its figures, and a verdict on each claim.

Source: Sharifnassab, Salehkaleybar, Sutton, "MetaOptimize", arXiv 2402.02342v6 (ICML 2025), section 7.2 and appendix D:
class-split CIFAR-100, 10 tasks of 10 classes, AdamW with Adam as meta update, γ = 0.999, α₀ = 1e-4, η = 1e-3, κ = 0.1,
one step size, or two blocks (the first three layers, and the last one). Accuracies are those of the authors' reply to
the reviewers. Everything else of the paper was read off its figures, so its shape counts and not its digits.

Two things are left open there, and both ways are run: the form of momentum ("released", the code's sum; "normalised",
the text's mean), and labels ("within" the task, or "global" with a 100-way head).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from continual_metaopt.analysis import statistics
from continual_metaopt.analysis.comparisons import holm, paired_t_test
from continual_metaopt.analysis.paper.reproduction import verdict
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.sawtooth import block_trajectories, can_fold, sawtooth, trend
from continual_metaopt.analysis.statistics import Diverged
from continual_metaopt.analysis.tables import interval_text, markdown_table, number_text

STUDIES: Mapping[str, str] = MappingProxyType({"within": "published", "global": "published_global"})
FORMS = ("released", "normalised")
ACCURACY: Mapping[str, float] = MappingProxyType({"fixed": 36.59, "scalar": 37.77, "two blocks": 39.05})
# The rest is read off figures 3, 7, 4 and 8: numbers of tasks learned → cumulative accuracy, or step size
CUMULATIVE_ACCURACY: Mapping[int, float] = MappingProxyType({1: 37.5, 2: 36.0})
TEST_ACCURACY: Mapping[str, Sequence[float]] = MappingProxyType(
    {
        "fixed": (45.5, 48.8, 47.8, 43.5, 50.8, 50.2, 47.9, 49.9, 46.0, 45.2),
        "scalar": (48.7, 47.0, 47.5, 44.8, 51.5, 52.3, 51.3, 52.0, 47.9, 48.3),
        "two blocks": (48.5, 46.8, 46.5, 45.5, 52.0, 52.2, 50.8, 51.5, 48.0, 46.8),
    }
)
STEP_SIZES: Mapping[str, Mapping[int, float]] = MappingProxyType(
    {"first": {0: 1e-4, 1: 6e-5, 10: 1.5e-5}, "last": {0: 1e-4, 1: 1e-4, 5: 1e-3, 10: 2e-3}}
)
NO_RUNS = "none of these runs is of the study published: run `continual-metaopt reproduce published` first"


class Row(NamedTuple):
    """A learner of the studies, as its label names it: "released, two blocks, γ = 0.999"."""

    form: str
    step_sizes: str
    setting: str


class Learner(NamedTuple):
    """What the label of a learner says, the whole label with chosen values, and its runs."""

    row: Row
    label: str
    runs: Runs


def row_of(entry: str) -> Row | None:
    """What a learner's label says, without chosen values; None if it is not of these studies."""
    form, _, rest = entry.partition(", ")
    step_sizes, _, setting = rest.partition(", ")
    return Row(form, step_sizes, setting) if form in FORMS and setting else None


def learners_of(runs: Runs, labels: str) -> dict[Row, Learner]:
    """The learners of the runs with labels "within" the task or "global", without those named otherwise."""
    of_study = runs.select(study=STUDIES[labels], purpose="report")
    if len(of_study):
        of_study.require_one_stream()
    found = {}
    for label in of_study.labels:
        chosen = of_study.select(label=label)
        row = row_of(chosen.first_config().get("entry") or label)
        if row is not None:
            found[row] = Learner(row, label, chosen)
    return found


def papers_rows(learners: Mapping[Row, Learner], form: str) -> dict[str, Learner]:
    """The learners of one form that stand for the paper's: "fixed", "scalar" and "two blocks", as far as there are any.

    The fixed step size is the paper's 1e-4, or the best of its decades where there is no such row.
    """
    papers, decades = Row(form, "fixed", "1e-4"), Row(form, "fixed", "decades")
    rows = {
        "fixed": papers if papers in learners else decades,
        "scalar": Row(form, "scalar", "γ = 0.999"),
        "two blocks": Row(form, "two blocks", "γ = 0.999"),
    }
    return {name: learners[row] for name, row in rows.items() if row in learners}


def published_table(runs: Runs, *, diverged: Diverged = "chance") -> pd.DataFrame:
    """Accuracies of all learners of the studies ``published`` and ``published_global`` beside the paper's.

    Returns:
        One row per learner: labels, form, step_sizes, setting, lr (that of a fixed step size, or the initial one),
        seeds, online_accuracy and test_accuracy (%, each task's at its end), followed by half widths of 95 % Student-t
        intervals (`…_ci`), and the former by the values of bimodal seeds (`…_seeds`, see
        `analysis.statistics.seeds_if_bimodal`), paper (online accuracy; NaN where the paper has no such learner).

    Raises:
        ValueError: there are no such runs.
    """
    rows = []
    for labels in STUDIES:
        learners = learners_of(runs, labels)
        of_paper = {learner.label: name for form in FORMS for name, learner in papers_rows(learners, form).items()}
        for row, learner in learners.items():
            online = _by_seed(learner.runs, diverged)
            online_mean, online_ci = statistics.mean_interval(online.to_numpy())
            test_mean, test_ci = statistics.mean_interval(_test_by_seed(learner.runs, diverged).to_numpy())
            rows.append(
                {
                    "labels": labels,
                    **row._asdict(),
                    "lr": learner.runs.first_config()["learner"].get("lr", np.nan),
                    "seeds": len(online),
                    "online_accuracy": online_mean,
                    "online_accuracy_ci": online_ci,
                    "online_accuracy_seeds": statistics.seeds_if_bimodal(online),
                    "test_accuracy": test_mean,
                    "test_accuracy_ci": test_ci,
                    "paper": ACCURACY.get(of_paper.get(learner.label, ""), np.nan),
                }
            )
    if not rows:
        raise ValueError(NO_RUNS)
    return pd.DataFrame(rows)


def _by_seed(runs: Runs, diverged: Diverged) -> pd.Series:
    """Average online accuracy (%) by seed."""
    accuracy = (
        statistics.online_accuracy(runs, diverged).dropna(subset="online_accuracy").set_index("seed")["online_accuracy"]
    )
    return 100 * accuracy.sort_index()


def _test_by_seed(runs: Runs, diverged: Diverged) -> pd.Series:
    """Mean test accuracy of the tasks at their ends (%) by seed."""
    return 100 * statistics.held_out_accuracy(runs, diverged).set_axis(runs.table["seed"]).dropna().sort_index()


def table_markdown(table: pd.DataFrame) -> str:
    """The accuracies as a Markdown table: a row for each way to set step sizes, a column for each form and labels."""
    columns = [(form, labels) for labels in STUDIES for form in FORMS]
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for row in table.to_dict("records"):
        text = interval_text(row["online_accuracy"], row["online_accuracy_ci"], ".1f", row["online_accuracy_seeds"])
        if row["setting"] in ("decades", "finer grid"):
            text += f" ({row['lr']:g})"
        of_row = cells.setdefault(f"{row['step_sizes']}, {row['setting']}", {})
        of_row[row["form"], row["labels"]] = text
        if np.isfinite(row["paper"]):
            of_row["paper", ""] = f"{row['paper']:.2f}"
    headings = ["", "the paper", *(f"{form}, labels {labels}" for form, labels in columns)]
    names = sorted(cells, key=lambda name: not name.startswith("fixed"))  # which come first
    rows = [[name, *(cells[name].get(column, "") for column in [("paper", ""), *columns])] for name in names]
    return markdown_table(headings, rows, "right")


class _Claim(NamedTuple):
    """A claim about the sign of a mean over seeds, what the paper has, and whether ours has that sign."""

    claim: str
    paper: str
    unit: str
    value: float
    half_width: float
    value_seeds: str
    seeds: int
    p: float
    supports: bool


def published_claims(runs: Runs, *, diverged: Diverged = "chance", shifts: int = 9_999) -> pd.DataFrame:
    """What of section 7.2 and of the reviewers' discussion holds in ours, for each form and kind of labels.

    Orderings and trends are decided by two-sided t-tests over seeds (paired where two learners are compared), the
    sawtooth by random boundaries (`analysis.sawtooth`, with so many shifts). All p-values together are corrected by
    Holm's method. A claim holds if p ≤ 0.05 after the correction and the mean has the claimed sign, does not hold with
    the other sign, and is undecided otherwise. A sawtooth must besides rise early in a task and fall from there.

    Returns:
        One row per claim, form and kind of labels: claim, paper (in words or numbers), labels, form, unit, value and
        half_width (mean over seeds, and half width of its 95 % Student-t interval, not corrected), value_seeds (the
        values of bimodal seeds), seeds, p, p_holm, verdict.

    Raises:
        ValueError: there are no such runs, or a run cannot be scored.
    """
    rows = []
    for labels in STUDIES:
        learners = learners_of(runs, labels)
        for form in FORMS:
            found = _claims(learners, form, diverged, shifts)
            rows += [{"labels": labels, "form": form} | claim._asdict() for claim in found]
    if not rows:
        raise ValueError(NO_RUNS)
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"])
    signs = np.where(table.pop("supports"), 1.0, -1.0)
    table["verdict"] = [verdict(sign, p) for sign, p in zip(signs, table["p_holm"], strict=True)]
    return table


def _claims(learners: Mapping[Row, Learner], form: str, diverged: Diverged, shifts: int) -> Iterator[_Claim]:
    """The claims about one form of momentum, as far as there are runs to decide them."""
    shown = papers_rows(learners, form)
    accuracy = {name: _by_seed(learner.runs, diverged) for name, learner in shown.items()}
    decades = learners.get(Row(form, "fixed", "decades"))
    if decades is not None and decades.row != shown["fixed"].row:
        accuracy["the best decade"] = _by_seed(decades.runs, diverged)
    for better, worse, worth in (
        ("scalar", "fixed", "fixed"),
        ("two blocks", "fixed", "fixed"),
        ("scalar", "the best decade", "fixed"),
        ("two blocks", "the best decade", "fixed"),
        ("two blocks", "scalar", "scalar"),
    ):
        if better in accuracy and worse in accuracy:
            papers = number_text(ACCURACY[better] - ACCURACY[worth], "+.2f")
            text = f"online accuracy: {better} above {worse}"
            yield _tested(text, papers, "points", accuracy[better] - accuracy[worse])
    for blocks in ("scalar", "two blocks"):
        undiscounted = learners.get(Row(form, blocks, "γ = 1"))
        if blocks in accuracy and undiscounted is not None:
            difference = accuracy[blocks] - _by_seed(undiscounted.runs, diverged)
            yield _tested(f"γ = 0.999 better than 1, {blocks}", "slightly", "points", difference)
    if "two blocks" in shown and "fixed" in shown:
        courses = {name: _by_task(shown[name].runs, diverged) for name in ("two blocks", "fixed")}
        lead = courses["two blocks"] - courses["fixed"]
        half = lead.shape[1] // 2
        growth = lead.iloc[:, half:].mean(axis=1) - lead.iloc[:, :half].mean(axis=1)
        yield _tested("the lead of two blocks grows: second half − first", "grows", "points", growth)
    for name in ("scalar", "two blocks"):
        if name in shown and "fixed" in shown:
            ours, fixed = (_test_by_seed(shown[which].runs, diverged) for which in (name, "fixed"))
            gap = float(np.mean(TEST_ACCURACY[name]) - np.mean(TEST_ACCURACY["fixed"]))
            text, paper = f"test accuracy: {name} above fixed", f"≈ {number_text(gap, '+.1f')}"
            yield _tested(text, paper, "points", ours - fixed)
    if "two blocks" not in shown:
        return
    trajectories = list(block_trajectories(shown["two blocks"].runs, shown["two blocks"].label).values())
    if not (trajectories and all(map(can_fold, trajectories))):
        return  # no run has come to its end, or experiences are too short
    for block, course in zip(("first", "last"), trajectories, strict=True):
        tooth = sawtooth(course, shifts=shifts)
        text = f"the {block} block's step size rises after a change of task and falls until the next"
        fits = tooth.peak < 0.5 and tooth.fall > 0
        amplitude = (tooth.amplitude, tooth.amplitude_ci, "", tooth.seeds)
        yield _Claim(text, "rises and falls", "decades", *amplitude, tooth.p, fits)
    for course, sign, text, paper in (
        (trajectories[0], -1, "the first block's step size falls from task to task", "falls"),
        (
            trajectories[-1],
            1,
            "the last layer's step size rises from task to task",
            "rises (reviewers' discussion: stays)",
        ),
    ):
        yield _tested(text, paper, "decades per task", pd.Series(trend(course).slopes), sign)


def _tested(text: str, paper: str, unit: str, values: pd.Series, sign: int = 1) -> _Claim:
    """A claim that the mean over seeds is positive, or negative, by Student's t-test."""
    numbers = values.dropna().to_numpy(dtype=float)
    mean, half_width = statistics.mean_interval(numbers)
    single = statistics.seeds_if_bimodal(numbers) if unit == "points" else ""
    return _Claim(text, paper, unit, mean, half_width, single, len(numbers), paired_t_test(numbers), sign * mean > 0)


def _by_task(runs: Runs, diverged: Diverged) -> pd.DataFrame:
    """Online accuracy (%) within each task: a row for each seed, a column for each task."""
    rows = {}
    for path, seed in statistics.counted_runs(runs, diverged)[["path", "seed"]].itertuples(index=False):
        rows[seed] = 100 * statistics.means_by_experience(
            statistics.sample_scores(runs, path), runs.configs[path]["stream_info"]["boundaries"]
        )
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()


def claims_markdown(claims: pd.DataFrame) -> str:
    """Claims and verdicts as a Markdown table: a row for each claim, a column for each form and kind of labels."""
    groups = dict(list(claims.groupby(["form", "labels"], sort=False)))
    order = dict.fromkeys(max(groups.values(), key=len)["claim"]) | dict.fromkeys(claims["claim"])
    rows = []
    for claim in order:
        about = claims[claims["claim"] == claim].iloc[0]
        form = "+.2f" if about["unit"] == "points" else "+.3f"
        found = {
            key: f"{row['verdict']}: {interval_text(row['value'], row['half_width'], form, row['value_seeds'])}"
            for key, group in groups.items()
            for row in group[group["claim"] == claim].to_dict("records")
        }
        rows.append([f"{claim} ({about['unit']})", about["paper"], *(found.get(key, "") for key in groups)])
    headings = ["claim", "the paper", *(f"{form}, labels {labels}" for form, labels in groups)]
    return markdown_table(headings, rows, "left")
