"""What the tuning of a learner took, and how much is lost when its step size is off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from continual_metaopt.analysis.runs import Runs, chosen_setting
from continual_metaopt.analysis.statistics import Diverged, average_score, online_accuracy

FACTORS = (3.0, 10.0)
NEAR = math.sqrt(10 / 3)  # a step size counts for the nearest of the factors, if it is within so much of it

_SAME_STREAM = ("definition", "source", "stationary")


def selection_of(selection: Runs, config: Mapping[str, Any]) -> Runs:
    """The selection runs from which the setting of a reported run, given its `config.json`, was chosen; possibly none.

    They are of the same learner, study, network and stream, whose length may differ.
    """
    wanted = _belonging(config)
    return selection.among(path for path, candidate in selection.configs.items() if _belonging(candidate) == wanted)


def scores_by_setting(selection: Runs, options: Sequence[str]) -> tuple[list[tuple[dict[str, Any], float]], str]:
    """Mean score of each setting that was tried of one learner, as settings are chosen by.

    A run that diverged has an accuracy of 0, or an infinite error.

    Args:
        selection: the learner's selection runs.
        options: names of the options that were tuned.

    Returns:
        Pairs of a setting (option → value) and its mean score; and what the score is, `"online_accuracy"` (a fraction)
        or `"squared_error"`.
    """
    table, score = average_score(selection)
    ended = selection.table["state"].to_numpy()
    table.loc[ended == "diverged", score] = math.inf if score == "squared_error" else 0.0
    settings: list[dict[str, Any]] = []
    scores: list[list[float]] = []
    for run, value in table.dropna(subset=score)[["run", score]].itertuples(index=False, name=None):
        setting = {name: selection.configs[run]["learner"].get(name) for name in options}
        if setting not in settings:
            settings.append(setting)
            scores.append([])
        scores[settings.index(setting)].append(value)
    return [(setting, float(np.mean(values))) for setting, values in zip(settings, scores, strict=True)], score


def best_setting(selection: Runs) -> dict[str, Any]:
    """The setting with the best mean score over one learner's selection runs; the first of equal ones."""
    options = dict.fromkeys(name for config in selection.configs.values() for name in chosen_setting(config))
    tried, score = scores_by_setting(selection, list(options))
    sign = -1 if score == "squared_error" else 1
    return max(tried, key=lambda setting: sign * setting[1], default=({}, math.nan))[0]


def score_of_setting(selection: Runs, setting: Mapping[str, Any]) -> float:
    """Mean score of one setting, as of `scores_by_setting`; NaN if none of its runs counts."""
    tried, _ = scores_by_setting(selection, list(setting))
    return next((value for candidate, value in tried if candidate == setting), math.nan)


def setting_text(setting: Mapping[str, Any]) -> str:
    """Name a setting, as in `"lr = 0.001, weight_decay = 0.1"`."""
    return ", ".join(f"{name} = {value}" for name, value in setting.items())


def sensitivity(selection: Runs, chosen: Mapping[str, Any], option: str = "lr") -> dict[float, float]:
    """How much is lost when one option is off by a factor, on the selection runs of one learner.

    The setting tried whose value is nearest to the factor times the chosen one stands for it, above and below, if it is
    within a factor of 1.8; one in which the other options are as chosen is preferred. Where others differ as well, as
    among random settings, their effect is part of the loss.

    Args:
        selection: the learner's selection runs.
        chosen: the chosen values of all tuned options.
        option: the one that is off.

    Returns:
        3 and 10 → the loss of accuracy (a fraction), or the gain in squared error, on the worse side; NaN where no
        setting tried is near, on either side. Negative where the chosen setting was not the best.
    """
    nothing = dict.fromkeys(FACTORS, math.nan)
    if not _is_positive(chosen.get(option)):
        return nothing
    tried, score = scores_by_setting(selection, list(chosen))
    best = next((value for setting, value in tried if setting == chosen), None)
    if best is None:
        return nothing
    others = [
        (math.log(setting[option] / chosen[option]), setting | {option: chosen[option]} != chosen, value)
        for setting, value in tried
        if _is_positive(setting[option])
    ]

    def loss(factor: float) -> float:
        near = [
            (differs, abs(distance - math.log(factor)), value)
            for distance, differs, value in others
            if abs(distance - math.log(factor)) < math.log(NEAR)
        ]
        if not near:
            return math.nan
        _, _, value = min(near)
        if value == best:
            return 0.0  # also if both are infinite
        return value - best if score == "squared_error" else best - value

    return {factor: float(np.fmax(loss(factor), loss(1 / factor))) for factor in FACTORS}


def scores_over_option(selection: Runs, diverged: Diverged = "chance") -> pd.DataFrame:
    """Average online accuracy of each run of learners of which one option was tried, and nothing else.

    Args:
        selection: selection runs of one stream, such as those of the study `initial_step_size`.
        diverged: see `analysis.statistics`.

    Returns:
        One row per counted run: learner (without the option's value), name (as registered), option, value, seed,
        online_accuracy (a fraction). Learners of which several options were tried are left out.

    Raises:
        ValueError: of no learner a single option, a number, was tried.
    """
    selection.require_one_stream()
    rows = []
    accuracy = online_accuracy(selection, diverged).dropna(subset="online_accuracy")
    for run, seed, fraction in accuracy[["run", "seed", "online_accuracy"]].itertuples(index=False, name=None):
        config = selection.configs[run]
        tried = list(chosen_setting(config).items())
        if len(tried) == 1 and _is_positive(tried[0][1]):
            rows.append((config.get("entry"), config["learner"]["name"], *tried[0], seed, fraction))
    if not rows:
        raise ValueError(
            "of none of these learners a single option was tried, such as tune: {lr: [0.001, 0.01]} in a study; "
            "give the folder of a study like initial_step_size"
        )
    return pd.DataFrame(rows, columns=["learner", "name", "option", "value", "seed", "online_accuracy"])


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _belonging(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a learner's reported and selection runs have in common; with nobody where that was not recorded."""
    info = config["stream_info"]
    same = (info.get(key) for key in _SAME_STREAM)
    return (config["study"], config.get("entry") or object(), config.get("network"), *same)
