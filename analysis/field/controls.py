"""Controls beside the learner that they are controls of: paired differences over a stream and after its beginning."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import counted_runs, is_regression, mean_interval, require_labels

Pair = tuple[str, str]


def control_table(
    runs: Runs, baseline: str | None = None, pairs: Sequence[Pair] | None = None, skip: int = 1
) -> pd.DataFrame:
    """Paired differences in average online accuracy, over all experiences and without the first ones.

    What a control does to the beginning of a stream, where step sizes are still on their way up from where they
    started, is not what it does to the course within experiences; so both are told apart. Runs that have not finished
    are left out.

    Args:
        runs: runs of one stream.
        baseline: label of what all others are compared with; the first learner if None.
        pairs: learners and what each is compared with, in place of all with ``baseline``.
        skip: how many experiences are left out at the beginning.

    Returns:
        One row per pair: learner, baseline, name and baseline_name (their labels without chosen settings, where these
        tell them apart), pairs (number of common seeds), mean (accuracy of the learner over these),
        mean_ci, difference (learner minus baseline), difference_ci, late_difference and late_difference_ci (without the
        first experiences; NaN if there are no others). In percentage points; intervals are half widths of 95 %
        Student-t intervals over seeds, NaN for fewer than two.

    Raises:
        ValueError: the runs come from several streams or of a regression, a label does not occur, or a seed twice.
    """
    runs.require_one_stream()
    if pairs is None:
        baseline = runs.labels[0] if baseline is None else baseline
        pairs = [(label, baseline) for label in runs.labels if label != baseline]
    require_labels(runs, list(dict.fromkeys(label for pair in pairs for label in pair)))
    finished = counted_runs(runs, "exclude")["path"]
    experiences = runs.experiences[runs.experiences["run"].isin(finished)]
    if is_regression(runs):
        raise ValueError("these runs are of a regression, which has no accuracy to compare")
    whole, late = (_accuracies(experiences[experiences["experience"] >= first]) for first in (0, skip))
    rows = []
    for label, other in pairs:
        both = whole.reindex(columns=[label, other]).dropna()
        after = late.reindex(columns=[label, other]).dropna()
        values = (both[label], both[label] - both[other], after[label] - after[other])
        rows.append([label, other, len(both), *(edge for value in values for edge in mean_interval(value.to_numpy()))])
    names = _names(runs)
    columns = ["mean", "mean_ci", "difference", "difference_ci", "late_difference", "late_difference_ci"]
    table = pd.DataFrame(rows, columns=["learner", "baseline", "pairs", *columns])
    table.insert(2, "name", table["learner"].map(names))
    table.insert(3, "baseline_name", table["baseline"].map(names))
    return table.astype(dict.fromkeys(columns, float))


def _names(runs: Runs) -> dict[str, str]:
    """A short name for each label: that of its entry in the study, where no other label has the same."""
    configs = dict(
        zip(runs.table["label"].astype(str), (runs.configs[path] for path in runs.table["path"]), strict=True)
    )
    entries = {label: config.get("entry") or label for label, config in configs.items()}
    known = list(entries.values())
    return {label: entry if known.count(entry) == 1 else label for label, entry in entries.items()}


def _accuracies(experiences: pd.DataFrame) -> pd.DataFrame:
    """Average online accuracy in percent, seed × label."""
    sums = experiences.groupby(["seed", "label"], observed=True)[["n_correct", "n_samples"]].sum()
    return (100 * sums["n_correct"] / sums["n_samples"]).astype(float).unstack("label")
