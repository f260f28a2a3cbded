"""The paper's stationary experiment on CIFAR-10, or its small analogue: accuracies, last step sizes, and its claims.

The paper (arXiv 2402.02342v6, section 7.1) shows that MetaOptimize raises each of four base updates at least to the
level of its best fixed step size, with momentum SGD at the others' level, that step sizes of blocks rise from the first
to the last, and that (Lion, Lion) comes to the same end from different initial step sizes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from continual_metaopt.analysis import statistics
from continual_metaopt.analysis.comparisons import holm, paired_t_test
from continual_metaopt.analysis.paper.reproduction import verdict
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.tables import interval_text, markdown_table, number_text

BASES = ("AdamW", "Lion", "RMSProp", "SGDm")
BLOCKWISE = ", blockwise"  # in labels
COSINE = "AdamW with warm-up and a cosine"


def stationary_table(runs: Runs) -> pd.DataFrame:
    """What each learner has reached at the end, from the runs that finished.

    Returns:
        One row per learner: learner, seeds, training_accuracy (%, of predictions before learning in the last pass) and
        test_accuracy (%, after it), each followed by the half width of a 95 % Student-t interval (`…_ci`), and the last
        step size of each block (`step_size/BLOCK`, the geometric mean over seeds).
    """
    rows = []
    for label in runs.labels:
        accuracies, sizes = _accuracies(runs, label), _last_step_sizes(runs, label)
        row: dict[str, object] = {"learner": label, "seeds": len(accuracies)}
        for name in map(str, accuracies):
            row[name], row[f"{name}_ci"] = statistics.mean_interval(accuracies[name].to_numpy())
        means = np.exp(np.log(sizes).mean())
        rows.append(row | {f"step_size/{block}": value for block, value in means.items()})
    return pd.DataFrame(rows)


def table_markdown(table: pd.DataFrame) -> str:
    """The table in Markdown."""
    sizes = [column for column in map(str, table) if column.startswith("step_size/")]
    rows = [
        [
            row["learner"],
            row["seeds"],
            interval_text(row["training_accuracy"], row["training_accuracy_ci"], ".1f"),
            interval_text(row["test_accuracy"], row["test_accuracy_ci"], ".1f"),
            *(number_text(row[column], ".1e") for column in sizes),
        ]
        for row in table.to_dict("records")
    ]
    headings = ["", "seeds", "training accuracy (%)", "test accuracy (%)", *(f"α {column[10:]}" for column in sizes)]
    return markdown_table(headings, rows, "right")


def stationary_claims(runs: Runs) -> pd.DataFrame:
    """Which claims of the paper hold, by paired two-sided t-tests over seeds with Holm's correction for all rows.

    Returns:
        One row per claim: claim, unit, value (mean over seeds), half_width (of its 95 % interval, not corrected),
        p_holm, verdict (whether the value is positive).
    """
    claims = pd.DataFrame(_claims(runs), columns=["claim", "unit", "value", "half_width", "p_holm"])
    claims["p_holm"] = holm(claims["p_holm"])
    claims["verdict"] = list(map(verdict, claims["value"], claims["p_holm"]))
    return claims


def claims_markdown(claims: pd.DataFrame) -> str:
    """The claims in Markdown."""
    rows = [
        [f"{row['claim']} ({row['unit']})", interval_text(row["value"], row["half_width"], "+.2f"), row["verdict"]]
        for row in claims.to_dict("records")
    ]
    return markdown_table(["claim", "difference", "verdict"], rows, "left")


def _claims(runs: Runs) -> Iterator[tuple[str, str, float, float, float]]:
    tests = {label: _accuracies(runs, label)["test_accuracy"] for label in runs.labels}
    learned = {
        base: next((name for name in tests if name.startswith(f"{base}, ") and BLOCKWISE in name), "") for base in BASES
    }

    def compared(text: str, better: str, worse: str) -> Iterator[tuple[str, str, float, float, float]]:
        worse = f"{worse} (tuned)" if f"{worse} (tuned)" in tests else worse
        better = f"{better} (tuned)" if f"{better} (tuned)" in tests else better
        if better in tests and worse in tests:
            difference = tests[better] - tests[worse]
            p = paired_t_test(difference.dropna().to_numpy())
            yield text, "points of test accuracy", *statistics.paired_interval(tests[better], tests[worse]), p

    for base, label in learned.items():
        yield from compared(f"{label}, above the best fixed step size", label, f"{base}, fixed")
        yield from compared(f"{label}, above one step size", label, label.replace("blockwise", "scalar"))
    for base in BASES[:3]:
        yield from compared(f"SGDm with MetaOptimize above {base} with it", learned["SGDm"], learned[base])
        yield from compared(f"{base} above SGDm, fixed step sizes", f"{base}, fixed", "SGDm, fixed")
    for start in (name for name in tests if name.startswith(f"{learned['Lion']}, from ")):
        yield from compared(f"(Lion, Lion) {start.rpartition(', ')[2]} above its usual start", start, learned["Lion"])
    yield from compared("MetaOptimize with AdamW above a cosine with warm-up", learned["AdamW"], COSINE)
    yield from compared("MetaOptimize as it comes above a cosine with warm-up", "MetaOptimize as it comes", COSINE)
    for label in filter(None, learned.values()):
        sizes = _last_step_sizes(runs, label)
        if len(sizes):
            rise = np.log10((sizes.iloc[:, -1] / sizes.iloc[:, 0]).to_numpy())
            mean, half_width = statistics.mean_interval(rise)
            text = f"{label}: the last block's step size above the first's, at the end"
            yield text, "decades", mean, half_width, paired_t_test(rise)


def _accuracies(runs: Runs, label: str) -> pd.DataFrame:
    """By seed, in %: training_accuracy and test_accuracy of the last pass, of the runs that finished."""
    rows = {}
    finished = runs.select(label=label, state="finished")
    for path, seed in finished.table[["path", "seed"]].itertuples(index=False):
        passes = runs.configs[path]["stream_info"]["test_at"]
        last = runs.read(path, "experiences", ["test_accuracy"])["test_accuracy"].iloc[-1]
        rows[seed] = 100 * np.mean(runs.correct(path)[-passes[0] :]), 100 * last
    columns = ["training_accuracy", "test_accuracy"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=float).sort_index()


def _last_step_sizes(runs: Runs, label: str) -> pd.DataFrame:
    """By seed: the last recorded step size of each block, of the runs that finished."""
    rows = {}
    finished = runs.select(label=label, state="finished")
    for path, seed in finished.table[["path", "seed"]].itertuples(index=False):
        record = runs.read(path, "step_sizes", ["block", "step_size"])
        rows[seed] = record.groupby("block", sort=False)["step_size"].last()
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()
