"""Accuracies and errors, means with confidence intervals, and paired differences.

Accuracies are fractions between 0 and 1. Squared errors are of regressions, in the squared unit of the target.
`diverged` says in all functions how diverged runs count: `"chance"`, where the samples and experiences that they did
not come to count as 1 / n_outputs each, and the error of a regression as infinite; or `"exclude"`. Running and failed
runs are never counted. Functions that average raise a ValueError where `counted_runs` does, and those that compare
learners where `Runs.require_one_stream` does.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from continual_metaopt.analysis.families import family_of_run
from continual_metaopt.analysis.run_directory import ENDED
from continual_metaopt.analysis.runs import Runs, record_samples_every

Diverged = Literal["chance", "exclude"]
BIMODAL_GAP = 5.0  # percentage points of accuracy
GAMMA = 0.999  # discount of the discounted loss of all learners, whatever theirs
AT_BOUND = 0.1  # share of a run's recorded steps from which on a step size counts as being at its bound
BOUND_TOLERANCE = 1e-6  # relative; a step size is computed as the exponential of its logarithm


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[Any, Any]:
    """Mean and half width of its Student-t confidence interval, over the first axis of observations [n] or [n, ...].

    Returns:
        (mean, half width), in the unit of `values`: floats for [n], arrays [...] for [n, ...]. The half width is NaN
        for fewer than two observations, and where one is infinite as errors of diverged runs are; the mean for none.

    Raises:
        ValueError: `confidence` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    observations = np.asarray(values, dtype=float)
    n = len(observations)
    undefined = np.full(observations.shape[1:], np.nan)[()]
    if not n:
        return undefined, undefined
    with np.errstate(invalid="ignore"):  # infinite observations
        mean = observations.mean(axis=0)
        if n < 2:
            return mean, undefined
        from scipy.special import stdtrit

        quantile = float(stdtrit(n - 1, (1 + confidence) / 2))
        return mean, quantile * observations.std(axis=0, ddof=1) / np.sqrt(n)


def is_bimodal(percent: ArrayLike) -> bool:
    """Whether accuracies of seeds fall in two groups, so that their mean describes none of them.

    They do if the largest gap between sorted neighbours is more than 5 percentage points, and more than half of the
    whole range. A group may be a single seed. Fewer than three values are no groups.

    Args:
        percent: accuracies in %, or differences between them in percentage points, [n]; NaN do not count.
    """
    values = np.sort(np.asarray(percent, dtype=float))
    values = values[~np.isnan(values)]
    if len(values) < 3:
        return False
    largest = np.diff(values).max()
    return bool(largest > BIMODAL_GAP and largest > (values[-1] - values[0]) / 2)


def seeds_if_bimodal(percent: ArrayLike) -> str:
    """Single values where a mean would mislead, for a column of a table: in rising order with spaces; else empty."""
    if not is_bimodal(percent):
        return ""
    values = np.asarray(percent, dtype=float)
    return " ".join(f"{value:.6g}" for value in np.sort(values[~np.isnan(values)]))


def numbers_of(seeds: str) -> list[float]:
    """The single values in a text from `seeds_if_bimodal`."""
    return [float(value) for value in seeds.split()]


def windowed_accuracy(correct: ArrayLike, window: int) -> np.ndarray:
    """Mean of the scores or errors [n] of the last `window` samples, at each sample.

    Returns:
        Array [n]; NaN before the first full window, and where one holds NaN.

    Raises:
        ValueError: the window is empty or longer than the stream.
    """
    scores = np.asarray(correct, dtype=float)
    if not 1 <= window <= len(scores):
        raise ValueError(f"the window must have 1 to {len(scores)} samples, not {window}")
    # pandas compensates rounding errors, as differences of cumulative sums would not after one huge error.
    return pd.Series(scores).rolling(window).mean().to_numpy()


def default_window(runs: Runs) -> int:
    """Samples that a sliding mean takes together.

    A quarter of the shortest experience shows the course within one. Of more than 20 experiences only the trend over
    them is visible, and the longest is the window.
    """
    lengths = experience_lengths(runs)
    return int(lengths.max()) if len(lengths) > 20 else max(1, int(lengths.min()) // 4)


def experience_lengths(runs: Runs) -> np.ndarray:
    """Samples in each experience of the first run's stream, [n_experiences]."""
    info = runs.first_config()["stream_info"]
    return np.diff([*info["boundaries"], info["n_samples"]])


def evenly_chosen(names: Sequence[str], at_most: int) -> list[str]:
    """Names in their order, so many at most, from the first to the last at even distances."""
    places = np.linspace(0, len(names) - 1, min(len(names), at_most)).round().astype(int)
    return [names[place] for place in places]


def means_by_experience(scores: np.ndarray, boundaries: Sequence[int]) -> np.ndarray:
    """Mean score of each experience, [n_experiences], of scores of all samples and the first sample of each."""
    return np.add.reduceat(scores, boundaries) / np.diff([*boundaries, len(scores)])


def common_boundaries(runs: Runs) -> list[int]:
    """The first samples of experiences, without that of the first one, on which all runs agree."""
    starts = [set(runs.configs[path]["stream_info"]["boundaries"]) for path in runs.table["path"]]
    return sorted(int(start) for start in set.intersection(*starts) - {0})


def counted_runs(runs: Runs, diverged: Diverged = "chance") -> pd.DataFrame:
    """Rows of `runs.table` that enter into averages: finished runs, and diverged ones if they count as chance.

    Raises:
        ValueError: `diverged` is neither, or two counted runs have the same label and seed.
    """
    if diverged not in get_args(Diverged):
        raise ValueError(f"diverged must be 'chance' or 'exclude', not {diverged!r}")
    states = list(ENDED) if diverged == "chance" else ["finished"]
    counted = runs.table[runs.table["state"].isin(states)]
    repeated = counted[counted.duplicated(["label", "seed"], keep=False)]
    if len(repeated):
        label, seed = repeated.iloc[0][["label", "seed"]]
        first, second = repeated.loc[(repeated["label"] == label) & (repeated["seed"] == seed), "path"].iloc[:2]
        raise ValueError(f"{first} and {second} are both {label!r} with seed {seed}: leave one of them out")
    return counted


def online_accuracy(runs: Runs, diverged: Diverged = "chance") -> pd.DataFrame:
    """Average online accuracy of each run: the mean of `correct` over the whole stream.

    Returns:
        One row per run, in the order of `runs.table`: run, label, seed, learned_step_sizes, fingerprint, state,
        online_accuracy (fraction; NaN if the run is not counted).

    Raises:
        ValueError: the runs are of regression.
    """
    counted = counted_runs(runs, diverged)
    counts = runs.correct_counts.reindex(counted["path"])
    regression = counts.index[counts["n_correct"].isna()]
    if len(regression):
        raise ValueError(f"{regression[0]}: has no accuracy, since its stream is a regression")
    correct = counts["n_correct"].to_numpy(dtype=float)
    unseen = counted["n_samples"].to_numpy() - counts["n_rows"].to_numpy(dtype=float)
    accuracy = (correct + unseen / counted["n_outputs"].to_numpy()) / counted["n_samples"].to_numpy()
    table = _one_row_per_run(runs)
    table["online_accuracy"] = pd.Series(accuracy, index=counted.index).reindex(table.index)
    return table


def accuracy_by_setting(runs: Runs, settings: Sequence[str], diverged: Diverged = "chance") -> pd.DataFrame:
    """Average online accuracy for each combination of some of the learner's settings, on one stream.

    Args:
        runs: such as those of a study's selection seeds.
        settings: names of options of the learner, such as `["gamma", "meta_lr", "lr"]`. Learners without them are left
            out.

    Returns:
        One row per learner and combination: label (without the settings' values), the settings, n_runs, n_diverged,
        online_accuracy (mean over runs, a fraction).

    Raises:
        ValueError: no counted run's learner has numbers for all the settings.
    """
    runs.require_one_stream()
    accuracy = online_accuracy(runs, diverged).dropna(subset="online_accuracy")
    rows = []
    columns = accuracy[["run", "label", "state", "online_accuracy"]]
    for run, label, state, fraction in columns.itertuples(index=False, name=None):
        learner = runs.configs[run]["learner"]
        if all(isinstance(learner.get(name), int | float) for name in settings):
            without_settings = min((label.partition(f", {name} = ")[0] for name in settings), key=len)
            rows.append((without_settings, *(float(learner[name]) for name in settings), state == "diverged", fraction))
    if not rows:
        raise ValueError(f"no learner of these runs has numbers for {', '.join(settings)}")
    table = pd.DataFrame(rows, columns=["label", *settings, "diverged", "online_accuracy"])
    return table.groupby(["label", *settings], sort=False, as_index=False).agg(
        n_runs=("diverged", "size"), n_diverged=("diverged", "sum"), online_accuracy=("online_accuracy", "mean")
    )


def accuracy_over_setting(runs: Runs, setting: str, diverged: Diverged = "chance") -> pd.DataFrame:
    """Average online accuracy of learners that differ in one numeric setting alone, such as `"lr"`, over its values.

    Returns:
        One row per learner and value: learner (what the labels have in common), value, n_runs, online_accuracy (mean
        over runs, a fraction), half_width (of its 95 % Student-t interval; NaN for one run). Learners that were run
        with one value only are left out.

    Raises:
        ValueError: no learner was run with two values.
    """
    runs.require_one_stream()
    scores = online_accuracy(runs, diverged).dropna(subset="online_accuracy")
    found: dict[str, dict[float, list[float]]] = {}
    labels: dict[str, dict[str, None]] = {}
    for run, label, fraction in scores[["run", "label", "online_accuracy"]].itertuples(index=False, name=None):
        learner = dict(runs.configs[run]["learner"])
        value = learner.pop(setting, None)
        if isinstance(value, int | float):
            rest = json.dumps([learner, runs.configs[run].get("network")], sort_keys=True)
            found.setdefault(rest, {}).setdefault(float(value), []).append(fraction)
            labels.setdefault(rest, {})[label] = None
    found = {rest: by_value for rest, by_value in found.items() if len(by_value) > 1}
    names = _told_apart({rest: _common_part(list(labels[rest])) for rest in found})
    rows = [
        (names[rest], value, len(fractions), *mean_interval(fractions))
        for rest, by_value in found.items()
        for value, fractions in sorted(by_value.items())
    ]
    if not rows:
        raise ValueError(f"no learner of these runs was run with two values of {setting}")
    return pd.DataFrame(rows, columns=["learner", "value", "n_runs", "online_accuracy", "half_width"])


def _told_apart(names: dict[str, str]) -> dict[str, str]:
    """Names by options and network, as JSON; those that are equal get the options in which they differ."""
    options = {rest: json.loads(rest)[0] | {"network": json.loads(rest)[1]} for rest in names}
    told = {}
    for rest, name in names.items():
        namesakes = [options[other] for other, same in names.items() if same == name]
        differing = [key for key, value in options[rest].items() if any(o.get(key) != value for o in namesakes)]
        told[rest] = ", ".join([name, *(f"{key} = {options[rest][key]}" for key in differing)])
    return told


def _common_part(labels: list[str]) -> str:
    """What labels begin with, without the name of the setting in which they differ: "A" of "A, α₀ = 1e-5", "A, …4"."""
    letters = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*labels, strict=False))
    prefix = "".join(column[0] for column in letters)
    return re.sub(r"[\s,(]*(\w+ =)?\s*[\d.e+-]*$", "", prefix) or labels[0]


def sample_scores(runs: Runs, run: str) -> np.ndarray:
    """Score of each sample of the stream: 1 if predicted correctly, 0 if not, chance where a diverged run did not come.

    Returns:
        Array [n_samples]; its mean is the average online accuracy. Where only some samples have been recorded, each
        stands for those up to the next one, and the mean over each experience is still exact.

    Raises:
        ValueError: the run is of regression.
    """
    correct = runs.correct(run)
    if np.isnan(correct).any():
        raise ValueError(f"{run}: has no accuracy, since its stream is a regression")
    if record_samples_every(runs.configs[run]) > 1:
        correct = _spread(runs, run, correct, "online_accuracy")
    info = runs.configs[run]["stream_info"]
    scores = np.full(info["n_samples"], 1 / info["n_outputs"])
    scores[: len(correct)] = correct
    return scores


def _spread(runs: Runs, run: str, recorded: np.ndarray, mean: str) -> np.ndarray:
    """Values of all samples that a run has seen, from those recorded and from the exact means of its experiences.

    Each recorded value stands for the samples up to the next one, shifted by what is missing to the mean of its
    experience, which the column `mean` of the table `experiences` holds; of accuracies, also in the one in which the
    run diverged, which has no row.
    """
    n_seen, n_correct = runs.table.loc[runs.table["path"] == run, ["step", "n_correct"]].iloc[0]
    every = record_samples_every(runs.configs[run])
    values = np.repeat(recorded, every)[: int(n_seen)]
    experiences = runs.read(run, "experiences", ["first_step", "n_samples", mean])
    n_complete = 0
    for first, n, exact in experiences.itertuples(index=False, name=None):
        part = values[first : first + n]
        part += exact - part.mean()
        n_complete = max(n_complete, first + n)
    rest = values[n_complete:]
    if mean == "online_accuracy" and len(rest) and pd.notna(n_correct):
        rest += (n_correct - values.sum()) / len(rest)
    return values


def is_regression(runs: Runs) -> bool:
    """Whether runs are scored by their squared errors, not by accuracy."""
    tasks = {config["stream_info"].get("task", "classification") for config in runs.configs.values()}
    return tasks == {"regression"}


def squared_errors(runs: Runs, run: str) -> np.ndarray:
    """Squared error of the prediction of each sample of a regression, made before learning from it.

    Returns:
        Array [n_samples], twice the recorded loss; infinite where a diverged run did not come, and where its loss was
        no number. Where only some samples have been recorded, see `sample_scores`.
    """
    errors = np.full(runs.configs[run]["stream_info"]["n_samples"], np.inf)
    loss = sample_losses(runs, run)
    errors[: len(loss)] = np.where(np.isnan(loss), np.inf, 2 * loss)
    return errors


def sample_losses(runs: Runs, run: str) -> np.ndarray:
    """Loss of each sample that a run has seen, before learning from it; NaN where it was not recorded."""
    loss = runs.read(run, "samples", ["loss"])["loss"].to_numpy(dtype=float)
    return _spread(runs, run, loss, "mean_loss") if record_samples_every(runs.configs[run]) > 1 else loss


def online_loss(runs: Runs) -> pd.DataFrame:
    """Mean loss of each finished run over the stream, and the discounted loss that MetaOptimize minimises.

    At each sample t, MetaOptimize minimises F_t = (1 − γ) Σ_{τ ≥ t} γ^(τ − t) f_τ(w_τ), where f_τ(w_τ) is the loss of
    sample τ, predicted before learning from it. The discounted loss is the mean of F_t over all t of the stream,
    divided by the sum of its weights: a mean of all losses, in which sample τ (from 0) has a weight in proportion to
    1 − γ^(τ + 1). γ is `GAMMA` for all learners. Source: Sharifnassab, Salehkaleybar, Sutton, arXiv 2402.02342.

    Returns:
        Indexed by path like `runs.table`: loss and discounted_loss. NaN for runs that did not finish, and where a loss
        is not finite. Where single losses were not kept, as in archives of `analysis.archive`, loss comes from the
        means of experiences, which runs of earlier versions lack, and discounted_loss is NaN. Where only some samples
        have been recorded, see `sample_scores`.
    """
    found = [
        runs.once(path, "losses", partial(_mean_losses, runs, path)) if state == "finished" else (np.nan, np.nan)
        for path, state in runs.table[["path", "state"]].itertuples(index=False, name=None)
    ]
    table = pd.DataFrame(found, index=pd.Index(runs.table["path"], name="run"), columns=["loss", "discounted_loss"])
    return table.astype(float).replace(np.inf, np.nan)


def _mean_losses(runs: Runs, run: str) -> tuple[float, float]:
    """Mean and discounted loss of a finished run."""
    losses = sample_losses(runs, run)
    if np.isfinite(losses).all():
        weights = 1 - GAMMA ** np.arange(1, len(losses) + 1)
        return float(losses.mean()), float(np.average(losses, weights=weights))
    if not np.isnan(losses).all():
        return np.nan, np.nan
    means = runs.read(run, "experiences", ["n_samples", "mean_loss"]).astype(float)
    return float(np.average(means["mean_loss"], weights=means["n_samples"])), np.nan


def mean_squared_error(runs: Runs, diverged: Diverged = "chance", burn_in: int = 0) -> pd.DataFrame:
    """Mean squared error of each run of a regression, without `burn_in` samples at the beginning of the stream.

    Returns:
        As `online_accuracy`, with the column squared_error.

    Raises:
        ValueError: nothing is left after the burn-in.
    """
    counted = counted_runs(runs, diverged)
    shortest = int(runs.table["n_samples"].min())
    if not 0 <= burn_in < shortest:
        raise ValueError(f"the burn-in must have 0 to {shortest - 1} samples, not {burn_in}")
    errors = [squared_errors(runs, path)[burn_in:].mean() for path in counted["path"]]
    table = _one_row_per_run(runs)
    table["squared_error"] = pd.Series(errors, index=counted.index, dtype=float).reindex(table.index)
    return table


def average_score(runs: Runs, diverged: Diverged = "chance") -> tuple[pd.DataFrame, str]:
    """What runs of one stream are compared by: `online_accuracy`, or `mean_squared_error` for a regression.

    Returns:
        The table, and the name of its column with the score.
    """
    if is_regression(runs):
        return mean_squared_error(runs, diverged), "squared_error"
    return online_accuracy(runs, diverged), "online_accuracy"


def _one_row_per_run(runs: Runs) -> pd.DataFrame:
    table = runs.table[["path", "label", "seed", "learned_step_sizes", "fingerprint", "state"]]
    return table.rename(columns={"path": "run"})


def test_accuracy_by_experience(runs: Runs, diverged: Diverged = "chance") -> pd.DataFrame:
    """Test accuracy of each run at the end of each experience, on held-out samples of that experience.

    Returns:
        One row per counted run and experience that was measured: run, label, seed, experience (from 0), test_accuracy
        (fraction). No rows for regressions and streams without test samples.
    """
    rows: list[tuple[str, str, int, int, float]] = []
    was_measured = False
    counted = counted_runs(runs, diverged)[["path", "label", "seed", "state"]]
    for path, label, seed, state in counted.itertuples(index=False, name=None):
        if runs.configs[path]["evaluate"]:
            accuracies = runs.once(path, "test accuracies", partial(_test_accuracies, runs, path))
            was_measured |= len(accuracies) > 0
            if state == "diverged":
                info = runs.configs[path]["stream_info"]
                accuracies = dict.fromkeys(range(info["n_experiences"]), 1 / info["n_outputs"]) | accuracies
            rows += [(path, label, seed, experience, accuracy) for experience, accuracy in accuracies.items()]
    columns = ["run", "label", "seed", "experience", "test_accuracy"]
    return pd.DataFrame(rows if was_measured else [], columns=columns)


def _test_accuracies(runs: Runs, run: str) -> dict[int, float]:
    """Test accuracy by experience, where it was measured."""
    record = runs.read(run, "experiences", ["experience", "test_accuracy"])
    pairs = zip(record["experience"], record["test_accuracy"].astype(float), strict=True)
    return {int(experience): accuracy for experience, accuracy in pairs if not math.isnan(accuracy)}


def held_out_accuracy(runs: Runs, diverged: Diverged = "chance") -> pd.Series:
    """Held-out accuracy of each run: the mean over experiences of the test accuracy at the experience's end.

    Returns:
        Fractions, indexed by path like `runs.table`; NaN where it was not measured, as in regressions and streams
        without test samples, or where the run is not counted.
    """
    measured = test_accuracy_by_experience(runs, diverged)
    paths = pd.Index(runs.table["path"], name="run")
    return measured.groupby("run")["test_accuracy"].mean().reindex(paths).rename("held_out_accuracy")


def retained_accuracy(runs: Runs) -> pd.DataFrame:
    """What runs knew of all experiences at the end of the stream, if retention was among their diagnostics.

    Returns:
        Indexed by path like `runs.table`: final_accuracy, the mean over experiences of the accuracy on their held-out
        samples, and forgetting, the mean over earlier experiences of the best accuracy at an earlier end minus the
        last one (Chaudhry et al. 2018); fractions, NaN where they were not measured to the end.
    """
    rows = []
    for path, state in runs.table[["path", "state"]].itertuples(index=False, name=None):
        rows.append((math.nan, math.nan))
        if state == "finished" and "retention" in measured_quantities(runs, path):
            record = runs.read(path, "measurements", ["step", "quantity", "statistic", "value"])
            last = record[record["step"] == record.loc[record["quantity"] == "retention", "step"].max()]
            of_experiences = (last["quantity"] == "retention") & last["statistic"].str.startswith("experience ")
            forgetting = last.loc[last["quantity"] == "forgetting", "value"]
            rows[-1] = last.loc[of_experiences, "value"].mean(), forgetting.mean()
    return pd.DataFrame(rows, index=pd.Index(runs.table["path"]), columns=["final_accuracy", "forgetting"], dtype=float)


def paired_interval(better: pd.Series, worse: pd.Series) -> tuple[float, float]:
    """Mean of better − worse over common seeds, and the half width of its 95 % interval, as of `mean_interval`."""
    mean, half_width = mean_interval((better - worse).dropna().to_numpy())
    return float(mean), float(half_width)


def paired_differences(runs: Runs, baseline_label: str, *, diverged: Diverged = "chance") -> pd.DataFrame:
    """Mean difference in `average_score` between each learner and a baseline, over common seeds.

    Returns:
        Indexed by label, without the baseline: pairs (number of common seeds), difference (learner minus baseline;
        NaN without pairs), half_width (of the 95 % Student-t interval of the mean difference; NaN for fewer
        than two pairs), seeds (`seeds_if_bimodal` of the differences in percentage points; empty for a regression).

    Raises:
        ValueError: there is no such label.
    """
    runs.require_one_stream()
    scores, name = average_score(runs, diverged)
    require_labels(runs, [baseline_label])
    by_seed = scores.pivot_table(index="seed", columns="label", values=name, observed=True)
    rows = {}
    for label in runs.labels:
        if label != baseline_label:
            pairs = by_seed.reindex(columns=[label, baseline_label]).dropna()
            interval = paired_interval(pairs[label], pairs[baseline_label])
            points = 100 * (pairs[label] - pairs[baseline_label])
            rows[label] = (len(pairs), *interval, "" if name == "squared_error" else seeds_if_bimodal(points))
    columns = ["pairs", "difference", "half_width", "seeds"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("label")


def at_bounds(runs: Runs, run: str) -> pd.DataFrame:
    """How often each block's step size was at a bound that it may not leave.

    Where a block holds many step sizes, it is at a bound when a quarter of them are.

    Returns:
        Indexed by block, in the order of the record: lower and upper, the shares of recorded steps at which it was at
        the learner's `lr_bounds`. No rows for a learner without bounds, and for one whose step sizes are not learned.
    """
    return _steps_at_bounds(runs, run).groupby("block", sort=False).mean()


def is_at_bound(runs: Runs, run: str) -> bool:
    """Whether a block's step size was at a bound for `AT_BOUND` of the recorded steps, so that it held the run up."""

    def compute() -> bool:
        if not _has_bounds(runs.configs[run]):
            return False
        steps = _steps_at_bounds(runs, run)
        if not steps[["lower", "upper"]].to_numpy(dtype=bool).any():  # as with most runs
            return False
        return bool((steps.groupby("block", sort=False).mean() >= AT_BOUND).any(axis=None))

    return runs.once(run, "at a bound", compute)


def _steps_at_bounds(runs: Runs, run: str) -> pd.DataFrame:
    """For each recorded step and block, whether its step size was at the lower and at the upper bound."""
    if not _has_bounds(runs.configs[run]):
        return pd.DataFrame(
            {"block": pd.Series(dtype=str), "lower": pd.Series(dtype=float), "upper": pd.Series(dtype=float)}
        )
    bounds = runs.configs[run]["learner"]["lr_bounds"]
    record = runs.read(run, "step_sizes", ["block", "step_size", "q25", "q75"])
    low, high = (record[column].fillna(record["step_size"]).astype(float) for column in ("q25", "q75"))
    at_lower, at_upper = low <= bounds[0] * (1 + BOUND_TOLERANCE), high >= bounds[1] * (1 - BOUND_TOLERANCE)
    return record[["block"]].assign(lower=at_lower, upper=at_upper)


def _has_bounds(config: Mapping[str, Any]) -> bool:
    return config["learned_step_sizes"] and config["learner"].get("lr_bounds") is not None


def best_fixed(runs: Runs, *, diverged: Diverged = "chance") -> str | None:
    """The label of the learner with fixed step sizes and the best mean of `average_score`; None without a counted run.

    Learners that do more than that are left out (of the kinds of `analysis.families`: schedules, replays, those that
    are told of changes, those made for them), and so are those with fewer counted runs than others, whose means are
    over other samples. Of equal ones the first counts.
    """
    runs.require_one_stream()
    scores, name = average_score(runs, diverged)
    kinds = scores["run"].map(lambda run: family_of_run(runs.configs[run]))
    plain = kinds.isin(["fixed step size", "other"]) & ~scores["learned_step_sizes"].astype(bool)
    fixed = scores[plain].dropna(subset=name)
    if fixed.empty:
        return None
    by_label = fixed.groupby("label", sort=False)[name]
    means = by_label.mean()[by_label.count() == by_label.count().max()]
    return str(means.idxmin() if name == "squared_error" else means.idxmax())


def aligned(
    steps: ArrayLike,
    values: ArrayLike,
    boundaries: Sequence[int],
    *,
    before: int,
    after: int,
    width: int,
    geometric: bool = False,
) -> pd.DataFrame:
    """Average a recorded series over boundaries, by distance from the boundary.

    Distances are put into bins of equal width, none of which reaches over the boundary itself. Values of one bin after
    the same boundary are averaged first, so that each boundary counts the same.

    Args:
        steps: at which values were recorded, [n], in samples.
        values: [n], of any unit; NaN where there is none.
        boundaries: steps at which something changed.
        before: samples before a boundary that are looked at.
        after: samples from the boundary on, the one at the boundary included.
        width: of a bin, in samples.
        geometric: whether averages are geometric, as suits step sizes; values that are not positive are left out.

    Returns:
        Indexed by the number of the bin, 0 being the one that begins at the boundary: offset (mean distance of its
        values from the boundary, in samples), value. Bins without values are left out.

    Raises:
        ValueError: `width` is less than 1, or there are no samples to look at.
    """
    if width < 1 or before < 0 or after < 0 or before + after < 1:
        raise ValueError(f"cannot look at {before} samples before and {after} after a boundary in bins of {width}")
    recorded = pd.DataFrame({"step": np.asarray(steps, dtype=int), "value": np.asarray(values, dtype=float)}).dropna()
    if geometric:
        recorded = recorded[recorded["value"] > 0]
        recorded["value"] = np.log(recorded["value"])
    parts = []
    for number, boundary in enumerate(boundaries):
        part = recorded[recorded["step"].between(boundary - before, boundary + after - 1)]
        offset = part["step"] - boundary
        parts.append(part.assign(offset=offset, bin=offset // width, boundary=number))
    columns = ["offset", "value"]
    if not sum(map(len, parts)):
        return pd.DataFrame(columns=columns, dtype=float).rename_axis("bin")
    of_boundaries = pd.concat(parts).groupby(["bin", "boundary"])[columns].mean()
    averages = of_boundaries.groupby("bin").mean()
    if geometric:
        averages["value"] = np.exp(averages["value"])
    return averages


def around_boundaries(
    runs: Runs,
    label: str,
    quantity: str,
    block: str | None = None,
    *,
    before: int,
    after: int,
    width: int,
    geometric: bool = False,
) -> pd.DataFrame:
    """A learner's accuracy, step size or diagnostic by distance from the boundaries between experiences.

    Args:
        runs: runs of one stream; what diverged or incomplete ones recorded counts as well.
        label: of the learner.
        quantity: `"online_accuracy"`, `"step_size"`, or a quantity of the table `measurements`.
        block: whose values; None for values of the whole network.
        before: samples before a boundary, as of `aligned`; so are `after` and `geometric`.
        width: of a bin, in samples; where values were recorded less often, their distance.

    Returns:
        One row per bin of `aligned`: offset (samples), value (mean over seeds of the averages over boundaries), low and
        high (edges of the 95 % Student-t interval over seeds; NaN for a single seed). No rows if nothing was recorded.

    Raises:
        ValueError: there is no such label, or no boundary.
    """
    require_labels(runs, [label])
    seeds = []
    for path in runs.paths_of(label):
        boundaries = [start for start in runs.configs[path]["stream_info"]["boundaries"] if start > 0]
        if not boundaries:
            raise ValueError(f"{path}: its stream has one experience, and so no boundary")
        record = recorded_series(runs, path, quantity, block)
        steps = np.unique(record["step"].to_numpy(dtype=int))
        bin_width = max([width, *map(int, np.diff(steps)[:1])])
        options: dict[str, Any] = {"before": before, "after": after, "geometric": geometric, "width": bin_width}
        seeds.append(aligned(record["step"], record["value"], boundaries, **options))
    offsets = pd.concat([seed["offset"] for seed in seeds], axis=1).mean(axis=1)
    values = pd.concat([seed["value"] for seed in seeds], axis=1)
    rows = []
    for number in sorted(offsets.index):
        known = values.loc[number].dropna().to_numpy(dtype=float)
        mean, half_width = mean_interval(np.log(known) if geometric else known)
        edges = np.array([mean, mean - half_width, mean + half_width])
        rows.append((offsets[number], *(np.exp(edges) if geometric else edges)))
    return pd.DataFrame(rows, columns=["offset", "value", "low", "high"], dtype=float)


def recorded_series(runs: Runs, run: str, quantity: str, block: str | None = None) -> pd.DataFrame:
    """What one run recorded of a quantity, as of `around_boundaries`: step, value; accuracies as fractions."""
    if quantity == "online_accuracy":
        return runs.read(run, "samples", ["step", "correct"]).rename(columns={"correct": "value"})
    if quantity == "step_size":
        record = runs.read(run, "step_sizes", ["step", "block", "step_size"]).rename(columns={"step_size": "value"})
    else:
        record = _measured(runs, [run], quantity)
    of_block = record["block"].isna() if block is None else record["block"] == block
    return record.loc[of_block, ["step", "value"]]


def trajectories_of_blocks(
    runs: Runs,
    paths: Sequence[str],
    quantity: str,
    blocks: Sequence[str],
    first: int = 0,
    last: float = math.inf,
    max_points: float = math.inf,
) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """What several runs recorded of a meta-parameter, side by side.

    Args:
        runs: the runs.
        paths: of the runs that are meant.
        quantity: `"step_size"`, or a quantity of the measurements.
        blocks: the blocks that are meant.
        first: the first step that counts.
        last: the last one.
        max_points: of more steps, every second, third, … is kept.

    Returns:
        The steps at which any of the runs recorded anything, in rising order; value, q25 and q75 as arrays
        [blocks, runs, steps], NaN where nothing was recorded; and the distance between kept steps.
    """
    record = _recorded_by(runs, paths, quantity)
    recorded = record["step"].to_numpy(dtype=np.int64)
    steps = np.unique(recorded)
    steps = steps[(steps >= first) & (steps <= last)]
    distance = max(1, math.ceil(len(steps) / max_points))
    steps = steps[::distance]
    names = pd.Index(list(blocks), dtype=object)
    block = names.get_indexer(pd.Index(record["block"].to_numpy(dtype=object)))
    place = np.searchsorted(steps, recorded)
    kept = (block >= 0) & np.isin(recorded, steps)
    where = block[kept], record["run"].to_numpy(dtype=int)[kept], place[kept]
    arrays = {}
    for column in ("value", "q25", "q75"):
        arrays[column] = np.full((len(names), len(paths), len(steps)), np.nan)
        arrays[column][where] = record[column].to_numpy(dtype=float)[kept]
    return steps, arrays, distance


def _recorded_by(runs: Runs, paths: Sequence[str], quantity: str) -> pd.DataFrame:
    """What several runs recorded of step sizes or of a measured quantity; momentum as 1 − momentum.

    Returns:
        run (place in `paths`), step, block, value, q25, q75; quartiles are NaN where there are none.
    """
    if quantity == "step_size":
        columns = ["step", "block", "step_size", "q25", "q75"]
        return runs.read_together(paths, "step_sizes", columns).rename(columns={"step_size": "value"})
    record = _measured(runs, paths, quantity)
    if quantity == "momentum":
        record = record.assign(value=1 - record["value"])
    return record.assign(q25=np.nan, q75=np.nan)


def measured_quantities(runs: Runs, run: str) -> set[str]:
    """The quantities of a run's table of measurements."""
    return runs.once(run, "quantities", lambda: set(runs.read(run, "measurements", ["quantity"])["quantity"].unique()))


def _measured(runs: Runs, paths: Sequence[str], quantity: str) -> pd.DataFrame:
    """What runs measured of a quantity, without its quantiles: run (place in `paths`), step, block, value and more."""
    columns = ["step", "quantity", "block", "statistic", "value"]
    if not any(quantity in measured_quantities(runs, path) for path in paths):
        return pd.DataFrame(columns=[*columns, "run"])
    record = runs.read_together(paths, "measurements", columns)
    return record[(record["quantity"] == quantity) & (record["statistic"] == "value")]


def recorded_blocks(runs: Runs, label: str) -> dict[str, list[str | None]]:
    """What a learner's runs recorded at an interval: quantity → its blocks in order; None is the whole network."""
    found: dict[str, dict[str | None, None]] = {}
    for path in runs.paths_of(label):
        measured = runs.read(path, "measurements", ["quantity", "block", "statistic"])
        pairs = measured.loc[measured["statistic"] == "value", ["quantity", "block"]].drop_duplicates()
        sizes = runs.read(path, "step_sizes", ["block"]).drop_duplicates().assign(quantity="step_size")
        for quantity, block in pd.concat([sizes, pairs])[["quantity", "block"]].itertuples(index=False, name=None):
            found.setdefault(quantity, {})[None if pd.isna(block) else block] = None
    return {quantity: list(blocks) for quantity, blocks in found.items()}


def require_labels(runs: Runs, labels: list[str]) -> None:
    """Check that all labels occur."""
    unknown = [label for label in labels if label not in runs.labels]
    if unknown:
        raise ValueError(f"no run is labelled {unknown[0]!r}; the labels are: {'; '.join(runs.labels)}")
