"""What learners reach in the same time, with the time of their tuning counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from continual_metaopt.analysis.families import family_of_run
from continual_metaopt.analysis.field.ranking import settings_of_learners
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import Diverged, counted_runs, mean_interval, sample_scores
from continual_metaopt.analysis.tuning import selection_of


def seconds_per_sample(runs: Runs, costs: pd.DataFrame | None = None) -> dict[str, float]:
    """How long each learner takes for a sample: learner → seconds; those of which nothing is known are missing.

    A table of costs, from `python -m benchmarks.speed cost`, is the fairer source: it was measured in turns on one
    machine that did nothing else, and all learners by PyTorch's operations. Without one, it is the median speed of the
    reported runs, which are of the engine that each had, beside whatever else ran then.
    """
    if costs is not None:
        known = costs[costs["engine"] == "torch"].dropna(subset="step_us")
        return dict(zip(known["learner"], known["step_us"] / 1e6, strict=True))
    speeds = runs.table.groupby("label")["samples_per_second"].median()
    return {
        learner: float(1 / np.nanmedian([speeds[label] for label in labels if label is not None]))
        for learner, *labels in settings_of_learners(runs)
    }


def accuracy_at_equal_time(
    runs: Runs, seconds: Mapping[str, float], selection: Runs, *, reference: str, diverged: Diverged = "chance"
) -> pd.DataFrame:
    """Average online accuracy within the time that a reference learner needs, tuning included.

    A stream passes once, and does not wait. A learner that has spent its budget on its tuning and on the stream's first
    samples predicts no more: the samples that it does not come to count as chance, 1 / n_outputs, as those after a
    divergence do. One that is done before has its whole accuracy and no more, for there is nothing left to learn from.
    The time of a setting is the time of a sample × (samples of all the selection runs of its learner, for a tuned
    setting, + samples of the stream); an untuned setting has no tuning to pay for, and so may be slower.

    Args:
        runs: reported runs of one stream of a classification.
        seconds: per sample of each learner, from `seconds_per_sample`.
        selection: runs that served to choose settings.
        reference: the learner whose times are the budgets.
        diverged: how diverged runs count, see `analysis.statistics`.

    Returns:
        One row per learner and setting, in the runs' order: learner, family, setting ("untuned" or "tuned"), seconds
        (in all), relative_time (to the reference's for the stream), online_accuracy, and in_stream_time and
        in_tuned_time: the accuracy in the time that the reference needs for the stream, and for its tuning and the
        stream; accuracies in %, means over seeds, each with the half width of its 95 % interval (`…_ci`).

    Raises:
        ValueError: the reference was not tuned, or its time is not known, or the runs are of several streams.
    """
    runs.require_one_stream()
    tables: dict[str, list[str]] = {}
    for path, label in counted_runs(runs, diverged)[["path", "label"]].itertuples(index=False):
        tables.setdefault(label, []).append(path)
    n_samples = int(runs.table["n_samples"].iloc[0])
    settings = settings_of_learners(runs)
    tuning = {learner: _tuning_samples(runs, selection, untuned, tuned) for learner, untuned, tuned in settings}
    if reference not in seconds or not tuning.get(reference):
        known = "; ".join(learner for learner, samples in tuning.items() if samples and learner in seconds)
        raise ValueError(f"{reference!r} is no learner with selection runs and a known time; these are: {known}")
    of_stream = n_samples * seconds[reference]
    budgets = {"in_stream_time": of_stream, "in_tuned_time": of_stream + tuning[reference] * seconds[reference]}
    rows = []
    for learner, *labels in settings:
        for setting, label in zip(("untuned", "tuned"), labels, strict=True):
            if label not in tables or learner not in seconds:
                continue
            pace, tuned_for = seconds[learner], tuning[learner] * (setting == "tuned")
            scores = [sample_scores(runs, path) for path in tables[label]]
            config = runs.configs[tables[label][0]]
            row: dict[str, Any] = {
                "learner": learner,
                "family": family_of_run(config),
                "setting": setting,
                "seconds": pace * (n_samples + tuned_for),
            }
            row["relative_time"] = row["seconds"] / of_stream
            for column, budget in {"online_accuracy": np.inf, **budgets}.items():
                n_seen = int(np.clip(budget / pace - tuned_for + 1e-6, 0, n_samples))
                chance = (n_samples - n_seen) / config["stream_info"]["n_outputs"]
                seeds = [100 * (of_seed[:n_seen].sum() + chance) / n_samples for of_seed in scores]
                row[column], row[f"{column}_ci"] = mean_interval(seeds)
            rows.append(row)
    return pd.DataFrame(rows)


def _tuning_samples(runs: Runs, selection: Runs, untuned: str | None, tuned: str | None) -> int:
    return int(selection_of(selection, runs.first_config(tuned or untuned)).table["n_samples"].sum())
