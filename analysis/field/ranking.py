"""Many learners in one table: each untuned and tuned, ranked, with what its tuning and its steps cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from continual_metaopt.analysis.families import family_of_run
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import (
    Diverged,
    average_score,
    is_regression,
    paired_interval,
    seeds_if_bimodal,
)
from continual_metaopt.analysis.tables import bimodal_note, comparison_table, number_texts, seeds_text, with_interval
from continual_metaopt.analysis.tuning import FACTORS, chosen_setting, setting_text

_COSTS = ("time_ratio", "memory_ratio", "state_bytes_per_parameter")


def ranking(
    runs: Runs,
    *,
    selection: Runs | None = None,
    costs: pd.DataFrame | None = None,
    diverged: Diverged = "chance",
    baseline: str | None = None,
) -> pd.DataFrame:
    """Rank learners, each with its untuned and its tuned setting in one row.

    A learner's place is that of its tuned setting, where there are reported runs with it, and of its untuned setting
    otherwise; never that of the better one of the two, which only the reported runs would tell.

    Args:
        runs: reported runs of one stream of a classification.
        selection: runs that served to choose settings.
        costs: from `python -m benchmarks.speed cost`, matched by learner; rows of PyTorch's operations count.
        diverged: how diverged runs count, see `analysis.statistics`.
        baseline: the label that the others are compared with; if None, the best with fixed step sizes.

    Returns:
        One row per learner, the best first, with accuracies in % and differences in percentage points, each followed by
        the half width of its 95 % interval (`…_ci`) and by single seeds where they are bimodal (`…_seeds`, see
        `analysis.tables.comparison_table`): rank, learner, name (as registered), family, seeds, untuned,
        tuned, gain (tuned − untuned, paired by seed), difference (to the baseline, paired by seed; NaN for itself),
        setting, tuning_runs, tuning_samples, selection_score, lost_at_3x, lost_at_10x, diverged (runs of either
        setting), samples_per_second, and, with costs, time_ratio, memory_ratio and state_bytes_per_parameter. What does
        not apply is missing. `attrs["baseline"]` is the baseline's label, and
        `attrs["baseline_accuracy"]` its accuracy.

    Raises:
        ValueError: the runs are of a regression or of several streams, or cannot be paired.
    """
    if is_regression(runs):
        raise ValueError("these runs are of a regression, which is not ranked; comparison_table compares their errors")
    compared = comparison_table(runs, diverged=diverged, baseline=baseline, selection=selection)
    scores, _ = average_score(runs, diverged)
    by_seed = 100 * scores.pivot_table(index="seed", columns="label", values="online_accuracy", observed=True)
    table = compared.set_index("learner")
    table = table.reindex(columns=[*table.columns, *{"setting", "tuning_runs", "tuning_samples"} - {*table.columns}])
    rows = [
        _row(runs, learner, untuned, tuned, table, by_seed, compared.attrs["baseline"])
        for learner, untuned, tuned in settings_of_learners(runs)
    ]
    ranked = pd.DataFrame(rows).sort_values("online_accuracy", ascending=False, kind="stable", ignore_index=True)
    ranked.insert(0, "rank", np.arange(1, len(ranked) + 1))
    if costs is not None:
        known = costs[costs["engine"] == "torch"].set_index("learner")
        for column in _COSTS:
            ranked[column] = ranked["learner"].map(known[column])
    ranked = ranked.drop(columns="online_accuracy")
    ranked.attrs = {name: compared.attrs[name] for name in ("baseline", "best_fixed", "diverged", "seeds")}
    ranked.attrs["baseline_accuracy"] = float(table["online_accuracy"].get(compared.attrs["baseline"], math.nan))
    return ranked


def columns_of(table: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of a ranking that have content, as texts for people: heading → cells."""
    reference = "best fixed" if table.attrs["best_fixed"] else table.attrs["baseline"]
    columns = {
        "learner": [f"{place}. {label}" for place, label in zip(table["rank"], table["learner"], strict=True)],
        "untuned (%)": with_interval(table, "untuned"),
        "tuned (%)": with_interval(table, "tuned"),
        "tuned − untuned": with_interval(table, "gain", sign="+"),
        f"− {reference}": with_interval(table, "difference", sign="+"),
        "tuning": number_texts(table, "tuning_runs", ".0f"),
        "selection (%)": number_texts(table, "selection_score", ".1f"),
        **{f"lost {factor:g}× off": number_texts(table, f"lost_at_{factor:g}x", ".1f") for factor in FACTORS},
        "diverged": number_texts(table, "diverged", ".0f"),
        "time × AdamW": number_texts(table, "time_ratio", ".1f"),
        "memory × AdamW": number_texts(table, "memory_ratio", ".2f"),
        "state bytes": number_texts(table, "state_bytes_per_parameter", ".0f"),
    }
    if "tuning_samples" in table:
        each = table["tuning_samples"] / table["tuning_runs"]
        columns["tuning"] = [f"{n} × {k:,.0f}" if n else "" for n, k in zip(columns["tuning"], each, strict=True)]
    return {name: cells for name, cells in columns.items() if set(cells) - {"", "0"}}


def caption(table: pd.DataFrame) -> str:
    """Explain a ranking: what decides the place, what ± means, and how learners were paired and tuned."""
    fewest, most = int(table["seeds"].min()), int(table["seeds"].max())
    role = "the best learner with fixed step sizes, " if table.attrs["best_fixed"] else ""
    sentences = [
        f"Average online accuracy, mean over {seeds_text(fewest, most, table.attrs['seeds'])}; ± is the half width "
        "of a 95 % Student-t interval over seeds. Places are those of the tuned setting where it was reported, else of "
        "the untuned one.",
        f"Differences are in percentage points and paired by seed; those of the place's setting are from {role}"
        f"“{table.attrs['baseline']}”."
        if table.attrs["baseline"]
        else "",
    ]
    sentences += bimodal_note(table)
    if "tuning_runs" in table and table["tuning_runs"].notna().any():
        sentences.append(
            "Settings were chosen on other seeds, with “tuning” runs × samples; “selection” is the accuracy of the "
            "chosen setting there, and “lost … off” by how many percentage points it was better than settings with a "
            "step size about so many times larger or smaller; a run that diverged has 0 there."
        )
    if "time_ratio" in table:
        sentences.append(
            "Time and memory of a step are relative to torch.optim.AdamW, all by PyTorch's operations at batch size 1; "
            "state is in bytes per parameter."
        )
    n_diverged = int(table["diverged"].sum())
    if n_diverged and table.attrs["diverged"] == "chance":
        sentences.append("What a diverged run did not see counts as chance.")
    elif n_diverged:
        sentences.append("Diverged runs are left out.")
    return " ".join(filter(None, sentences))


def settings_of_learners(runs: Runs) -> list[tuple[str, str | None, str | None]]:
    """Each learner with the label of its untuned and of its tuned runs, None where there are none.

    Learners that differ only in their tuning share their untuned runs.
    """
    configs = {label: runs.configs[path] for path, label in zip(runs.table["path"], runs.table["label"], strict=True)}
    untuned = {label: config for label, config in configs.items() if not chosen_setting(config)}
    tuned = {label: config for label, config in configs.items() if chosen_setting(config)}
    pairs: list[tuple[str, str | None, str | None]] = []
    for label, config in tuned.items():
        same = [other for other, candidate in untuned.items() if _entry(candidate, other) == _entry(config, label)]
        alike = [other for other, candidate in untuned.items() if _differs_in_tuning_alone(config, candidate)]
        pairs.append((_entry(config, label), next(iter([*same, *alike]), None), label))
    with_both = {learner for learner, _, _ in pairs}
    pairs += [(_entry(c, label), label, None) for label, c in untuned.items() if _entry(c, label) not in with_both]
    return pairs


def _entry(config: Mapping[str, Any], label: str) -> str:
    return str(config.get("entry") or label)


def _differs_in_tuning_alone(tuned: Mapping[str, Any], untuned: Mapping[str, Any]) -> bool:
    others = [{k: v for k, v in c["learner"].items() if k not in tuned["tuned"]} for c in (tuned, untuned)]
    return bool(others[0] == others[1])


def _row(
    runs: Runs,
    learner: str,
    untuned: str | None,
    tuned: str | None,
    table: pd.DataFrame,
    by_seed: pd.DataFrame,
    baseline: str | None,
) -> dict[str, Any]:
    labels = [label for label in (untuned, tuned) if label is not None]
    decisive = table.loc[labels[-1]]
    config = runs.first_config(labels[-1])
    row: dict[str, Any] = {
        "learner": learner,
        "name": config["learner"]["name"],
        "family": family_of_run(config),
        "seeds": decisive["seeds"],
        "online_accuracy": decisive["online_accuracy"],
    }
    for column, label in (("untuned", untuned), ("tuned", tuned)):
        row[column] = math.nan if label is None else table.loc[label, "online_accuracy"]
        row[f"{column}_ci"] = math.nan if label is None else table.loc[label, "online_accuracy_ci"]
        row[f"{column}_seeds"] = "" if label is None else table.loc[label, "online_accuracy_seeds"]
    row |= _paired(by_seed, "gain", tuned, untuned)
    row |= _paired(by_seed, "difference", labels[-1], baseline)
    tuning = ["tuning_runs", "tuning_samples", "selection_score", *(f"lost_at_{factor:g}x" for factor in FACTORS)]
    row |= {"setting": setting_text(chosen_setting(config))}
    row |= {column: decisive.get(column, math.nan) for column in tuning}
    row["diverged"] = int(table.loc[labels, "diverged"].sum())
    return row | {"samples_per_second": decisive["samples_per_second"]}


def _paired(by_seed: pd.DataFrame, column: str, label: str | None, other: str | None) -> dict[str, float | str]:
    """Columns of a mean difference over common seeds; NaN if there is nothing to compare."""
    names = (column, f"{column}_ci", f"{column}_seeds")
    if label is None or other is None or label == other or not {label, other} <= {*by_seed.columns}:
        return dict(zip(names, (math.nan, math.nan, ""), strict=True))
    better, worse = by_seed[label], by_seed[other]
    return dict(zip(names, (*paired_interval(better, worse), seeds_if_bimodal(better - worse)), strict=True))
