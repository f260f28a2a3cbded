"""What happened to a run, in words, from its records alone."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from continual_metaopt.analysis import statistics
from continual_metaopt.analysis.records import read_status
from continual_metaopt.analysis.runs import Runs, load_runs, record_samples_every
from continual_metaopt.analysis.statistics import AT_BOUND, at_bounds, evenly_chosen, is_regression

MAX_BLOCKS = 8  # that are told about
QUIET_SAMPLES = 100  # after which a loss that had grown counts as having come back
QUIET_RECORDS = 10  # likewise for what is recorded at an interval
SILENT_MINUTES = 5.0  # after which a run that says it is running has probably been killed
SAWTOOTH_RISE = 1.5  # from before a boundary to the peak after it, and from there down again
OSCILLATION_RISE = 1.1  # typical change between records, up or down, that counts as an oscillation
OSCILLATION_RECORDS = 20  # of which at least so many changes must be known
BEYOND_CHANCE = 3.3  # standard deviations of a number of turns above that of a random walk: 1 in 2,000

# Quantity of the table of measurements → what it is called, and how many times its median counts as grown.
_GROWING = {
    "meta_gradient": ("the meta gradient", 100.0),
    "gradient_norm": ("the gradient's norm", 100.0),
    "weight_norm": ("the weights' norm", 100.0),
    "update_ratio": ("the relative change of the weights", 100.0),
}
_STEP_SIZE_GROWTH, _LOSS_GROWTH = 10.0, 10.0
_REGRESSION_LOSS_GROWTH = 100.0  # of a quantile, because squared errors vary that much

# What the reason of a failure may hold → what to do about it, where the reason itself does not say it.
_REMEDIES = {
    "interrupted by the user": "The same command goes on from the last checkpoint.",
    "ModuleNotFoundError": "Install the missing module; the same command then tries the run again.",
    "MissingPackageError": "Install the missing package; the same command then tries the run again.",
}


class _Growth(NamedTuple):
    """Something that grew before a run diverged: since which step, and in words; ``rank`` orders equal steps."""

    step: int
    rank: int
    what: str
    text: str


def explain(path: str | os.PathLike[str]) -> str:
    """Say what happened to a run.

    Args:
        path: a run directory, or a folder with one run in it. The run may be going on.

    Returns:
        Paragraphs of at most 100 columns: how the run ended and where; of a diverged run, what was not finite, what had
        grown before, and what went first; otherwise accuracy or error; how the step sizes moved; what to do.

    Raises:
        FileNotFoundError: there is no run directory.
        ValueError: there are several runs, or a file cannot be understood.
    """
    runs = load_runs(path, purpose=None)
    if len(runs) > 1:
        worst = runs.table.sort_values("state", key=lambda states: states.isin(["finished", "running"]), kind="stable")
        raise ValueError(
            f"{path} holds {len(runs)} runs; name one of them, such as {worst['path'].iloc[0]} "
            f"({worst['state'].iloc[0]})"
        )
    run = runs.table["path"].iloc[0]
    status, config = read_status(Path(run)), runs.configs[run]
    samples = runs.read(run, "samples", ["step", "experience", "correct", "loss"])
    sentences = [_title(config), *_ending(config, status, samples)]
    if status["state"] == "diverged":
        sentences += _divergence(runs, run, samples, int(status["step"]))
    else:
        sentences += _success(runs, samples, config)
    sentences += _step_sizes(runs, run, config)
    if status["state"] == "failed":
        reason = status.get("reason") or ""
        found = [remedy for mark, remedy in _REMEDIES.items() if mark in reason]
        if found or "the same command" not in reason:
            again = "The same command tries the run again, from its last checkpoint if it has one."
            sentences.append((found or [again])[0])
    return "\n".join(_wrapped(sentence) for sentence in sentences) + "\n"


def _wrapped(sentence: str) -> str:
    indent = "  " if sentence.startswith("- ") else ""
    return textwrap.fill(sentence, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _title(config: Mapping[str, Any]) -> str:
    stream, network, learner = config["stream"], config["network"], config["learner"]
    names = f"learner {learner['name']}, network {network['name']}, stream {stream['name']}"
    return f"{config['label']}, seed {config['seed']} ({names}), run {config['run_id']}."


# ---------------------------------------------------------------------------------------------------------------------
# How it ended


def _ending(config: Mapping[str, Any], status: Mapping[str, Any], samples: pd.DataFrame) -> list[str]:
    info, state, step = config["stream_info"], status["state"], int(status.get("step", 0))
    reason = status.get("reason")
    if state == "finished":
        return [f"Finished: all {info['n_samples']:,} samples{_speed(status)}."]
    where = f"sample {step:,} of {info['n_samples']:,}{_place(info, step)}"
    if state == "diverged":
        cause = str(reason).removesuffix(f" at sample {step}")
        return [f"Diverged at {where}: {cause}."]
    if state == "failed":
        return [f"Failed at {where}: {reason}."]
    return [f"Running, at {where}{_speed(status)}.", *_sign_of_life(status)]


def _place(info: Mapping[str, Any], step: int) -> str:
    """In which experience a step is, and how far into it."""
    if step >= info["n_samples"]:
        return ", its end"
    number = int(np.searchsorted(info["boundaries"], step, side="right")) - 1
    within = step - info["boundaries"][number]
    return f", {_times(within, 'sample')} into experience {number + 1} of {len(info['boundaries'])}"


def _speed(status: Mapping[str, Any]) -> str:
    speed, wall_time, engine = (status.get(key) for key in ("samples_per_second", "wall_time", "engine"))
    if not speed or not wall_time:
        return ""
    learning = status["step"] / speed
    besides = f", {wall_time - learning:,.0f} s of them not spent on learning" if wall_time - learning >= 10 else ""
    name = f" by the {engine['name']} engine" if engine else ""
    return f" in {wall_time:,.1f} s ({speed:,.0f} a second{name}{besides})"


def _sign_of_life(status: Mapping[str, Any]) -> list[str]:
    if not status.get("heartbeat"):
        return []
    owner = status.get("owner") or {}
    minutes = (datetime.now(UTC) - datetime.fromisoformat(status["heartbeat"])).total_seconds() / 60
    who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown machine')}"
    said = f"The last sign of life, of {who}, came {_times(round(max(minutes, 0)), 'minute')} ago"
    if minutes < SILENT_MINUTES:
        return [f"{said}."]
    return [f"{said}: it was probably killed. The same command goes on from its last checkpoint."]


# ---------------------------------------------------------------------------------------------------------------------
# Divergence


def _divergence(runs: Runs, run: str, samples: pd.DataFrame, end: int) -> list[str]:
    measured = runs.read(run, "measurements")
    at_end = measured[measured["step"] == end]
    growths = sorted(_growths(runs, run, samples, measured, end))
    learned = bool(runs.configs[run]["learned_step_sizes"])
    sentences = _not_finite(at_end, end)
    if growths:
        sentences.append(f"First went {growths[0].what}. What had grown, first to last:")
        sentences += [f"- {growth.text}." for growth in growths]
    else:
        sentences.append("Nothing on the record had grown before.")
    if not growths:
        remedy = (
            "Look for inputs or targets that are not finite; if there are none, a smaller step size (lr) is the first "
            "thing to try."
        )
    elif learned:
        remedy = (
            "A smaller meta step size (meta_lr), a lower upper bound of the step sizes (lr_bounds) or a bound on their "
            "changes (max_meta_change) would hold the step sizes back."
        )
        if not any(growth.rank == 0 for growth in growths) and end <= QUIET_SAMPLES:
            remedy = "The step sizes had hardly moved: a smaller initial step size (lr) is the first thing to try."
    else:
        remedy = "The step sizes were fixed: a smaller one (lr) is the first thing to try."
    return [*sentences, remedy]


def _not_finite(at_end: pd.DataFrame, end: int) -> list[str]:
    """What was not finite when it was seen, and the largest numbers otherwise."""
    bad = at_end[(at_end["quantity"] == "not_finite") & ~at_end["statistic"].isin(["loss", "meta_gradient"])]
    tensors = bad[bad["block"].notna()]
    largest = at_end[at_end["quantity"] == "largest"].sort_values("value", ascending=False)
    if tensors.empty and largest.empty:
        return []  # of an earlier version
    sentences = []
    by_kind = {str(kind): part for kind, part in tensors.groupby("statistic", sort=False)}
    if "weights" in by_kind:
        named = _listed([f"{row.value:,.0f} of {row.block}" for row in by_kind.pop("weights").itertuples()])
        sentences.append(f"Weights were not finite after {_times(end, 'update')}: {named}.")
    else:
        row = largest[largest["statistic"] == "weights"].iloc[0]
        kinds = at_end.loc[at_end["quantity"] == "not_finite", "statistic"]
        overflow = ", and the network's outputs overflowed" if (kinds == "loss").any() else ""
        sentences.append(
            f"All weights were finite, the largest of them {row['value']:.2g} in {row['block']}{overflow}."
        )
    for kind, part in by_kind.items():
        named = _listed([f"{row.value:,.0f} of {row.block}" for row in part.itertuples()])
        sentences.append(f"Not finite in {_state_name(kind)}: {named}.")
    traces = largest[largest["statistic"] == "trace"]
    if len(traces) and "trace" not in by_kind and traces["value"].iloc[0] > 0:
        sentences.append(
            f"The largest number in the trace h was {traces['value'].iloc[0]:.2g}, in {traces['block'].iloc[0]}."
        )
    return sentences


def _state_name(kind: str) -> str:
    return {"gradient": "the gradient", "trace": "the trace h", "trace_long": "the long trace h"}.get(
        kind, f"the state {kind}"
    )


def _growths(runs: Runs, run: str, samples: pd.DataFrame, measured: pd.DataFrame, end: int) -> list[_Growth]:
    """All that had grown at the end, or before the loss grew."""
    info = runs.configs[run]["stream_info"]
    loss_since, level = _loss_growth(samples, info)
    known_until = end if loss_since is None else loss_since
    found = []
    if loss_since is not None:
        last, worst = samples["loss"].iloc[-1], samples["loss"].max()
        text = (
            f"the loss: above {level:.3g} again and again from sample {loss_since:,} on, {worst:.2g} at worst, "
            f"{last:.2g} at last"
        )
        found.append(_Growth(loss_since, 1, "the loss", text))
    series = runs.read(run, "step_sizes", ["step", "block", "step_size"]).rename(columns={"step_size": "value"})
    # what follows the loss's growth is its consequence
    found += _grown_blocks(series, "the step size", _STEP_SIZE_GROWTH, 0, known_until, known_until)
    ordinary = measured[(measured["statistic"] == "value") & measured["quantity"].isin(list(_GROWING))]
    for quantity, part in ordinary.groupby("quantity", sort=False):
        words, factor = _GROWING[str(quantity)]
        found += _grown_blocks(part, words, factor, 2, end, known_until)
    return found


def _loss_growth(samples: pd.DataFrame, info: Mapping[str, Any]) -> tuple[int | None, float]:
    """Since when the loss had kept exceeding a level, None if it had not; and the level."""
    losses = samples["loss"].to_numpy(dtype=float)
    if not len(losses):
        return None, math.nan
    if info.get("task") == "regression":
        level = _REGRESSION_LOSS_GROWTH * float(np.quantile(losses[: (len(losses) + 1) // 2], 0.25))
    else:
        level = _LOSS_GROWTH * math.log(max(info["n_outputs"], 2))
    return _since(samples["step"].to_numpy(dtype=int), losses > level, QUIET_SAMPLES), level


def _grown_blocks(
    series: pd.DataFrame, words: str, factor: float, rank: int, until: int, usual_until: int
) -> list[_Growth]:
    """The blocks whose values up to a step had grown to many times the median of the earlier half of the usual ones."""
    found = []
    for block, part in series[series["step"] <= until].groupby("block", sort=False, dropna=False):
        steps, values = part["step"].to_numpy(dtype=int), part["value"].abs().to_numpy(dtype=float)
        steps, values = steps[values > 0], values[values > 0]
        n_usual = int((steps <= usual_until).sum())
        if len(values) < 2 or n_usual == 0:
            continue
        usual = float(np.median(values[: (n_usual + 1) // 2]))
        since = _since(steps, values > factor * usual, QUIET_RECORDS)
        if since is None:
            continue
        place = int(np.flatnonzero(steps == since)[0])
        between = f"between samples {steps[place - 1]:,} and {since:,}" if place else f"from sample {since:,} on"
        name = words if pd.isna(block) else f"{words} of block '{block!s}'"
        largest = float(values[place:].max())
        text = f"{name}: usually {usual:.2g}, more than {factor:.0f} times that {between}, up to {largest:.2g}"
        found.append(_Growth(since, rank, name, text))
    return found


def _since(steps: np.ndarray, exceeds: np.ndarray, quiet: int) -> int | None:
    """The first step of the last stretch, reaching to the end, in which something happens every `quiet` rows."""
    rows = np.flatnonzero(exceeds)
    if not len(rows) or len(exceeds) - 1 - rows[-1] > quiet:
        return None
    breaks = np.flatnonzero(np.diff(rows) > quiet)
    return int(steps[rows[breaks[-1] + 1 if len(breaks) else 0]])


# ---------------------------------------------------------------------------------------------------------------------
# What was learned, and how the step sizes moved


def _success(runs: Runs, samples: pd.DataFrame, config: Mapping[str, Any]) -> list[str]:
    """Accuracy or error: overall, and by experience."""
    if samples.empty:
        return ["Nothing has been recorded."]
    regression = is_regression(runs)
    if record_samples_every(config) > 1:
        run, n_seen = runs.table[["path", "step"]].iloc[0]
        values = statistics.squared_errors(runs, run) if regression else 100 * statistics.sample_scores(runs, run)
        scores = pd.Series(values[: int(n_seen)])
        experiences = np.searchsorted(config["stream_info"]["boundaries"], scores.index, side="right") - 1
    else:
        scores = 2 * samples["loss"] if regression else 100 * samples["correct"].astype(float)
        experiences = samples["experience"].to_numpy()
    unit, name = ("", "Mean squared error") if regression else (" %", "Online accuracy")

    def text(value: float) -> str:
        return f"{value:.3g}" if regression else f"{value:.1f}{unit}"

    by_experience = scores.groupby(experiences).mean()
    sentence = f"{name} {text(scores.mean())}"
    if len(by_experience) > 1:
        worst = int((by_experience if regression else -by_experience).to_numpy().argmax())
        sentence += (
            f": {text(by_experience.iloc[0])} in the first experience, {text(by_experience.iloc[-1])} in the last, "
            f"worst {text(by_experience.iloc[worst])} in experience {by_experience.index[worst] + 1}"
        )
    elif len(scores) >= 10:
        tenth = len(scores) // 10
        sentence += f": {text(scores[:tenth].mean())} in the first tenth, {text(scores[-tenth:].mean())} in the last"
    if not regression:
        sentence += f"; chance is {text(100 / config['stream_info']['n_outputs'])}"
    return [f"{sentence}."]


def _step_sizes(runs: Runs, run: str, config: Mapping[str, Any]) -> list[str]:
    record = runs.read(run, "step_sizes", ["step", "block", "step_size"])
    if record.empty:
        return ["No step sizes have been recorded."]
    blocks = {str(block): part for block, part in record.groupby("block", sort=False)}
    if not config["learned_step_sizes"]:
        return [
            f"Step sizes, which are not learned: {_listed([_range(block, part) for block, part in blocks.items()])}."
        ]
    bounds = at_bounds(runs, run).to_dict("index")
    told = evenly_chosen(list(blocks), MAX_BLOCKS)
    number = f" ({MAX_BLOCKS} of {len(blocks)} blocks)" if len(told) < len(blocks) else ""
    sentences = [f"Step sizes{number}:"]
    for block in told:
        shape = _oscillation(blocks[block]) or _sawtooth(blocks[block], config["stream_info"]["boundaries"])
        parts = [_range(block, blocks[block]), *shape]
        parts += _bound_words(bounds.get(block, {}))
        sentences.append(f"- {'; '.join(parts)}.")
    return sentences


def _range(block: str, record: pd.DataFrame) -> str:
    values, steps = record["step_size"].to_numpy(dtype=float), record["step"].to_numpy(dtype=int)
    first, last, low, high = values[0], values[-1], int(values.argmin()), int(values.argmax())
    if values[low] == values[high]:
        return f"{block}: {first:.2g} throughout"
    return (
        f"{block}: from {first:.2g} to {last:.2g}, least {values[low]:.2g} at sample {steps[low]:,}, "
        f"most {values[high]:.2g} at sample {steps[high]:,}"
    )


def _bound_words(shares: Mapping[Hashable, float]) -> list[str]:
    return [
        f"at its {side} bound at {100 * shares[side]:.0f} % of the recorded steps"
        + ("" if shares[side] >= AT_BOUND else ", less than what counts")
        for side in ("lower", "upper")
        if shares.get(side, 0) > 0
    ]


def _sawtooth(record: pd.DataFrame, boundaries: Sequence[int]) -> list[str]:
    """Whether a step size rises after most boundaries and falls until the next."""
    steps, values = record["step"].to_numpy(dtype=int), record["step_size"].to_numpy(dtype=float)
    rises = []
    teeth = 0
    ends = [*boundaries[1:], int(steps[-1]) + 1]
    for start, end in zip(boundaries, ends, strict=True):
        before, within = values[steps < start], values[(steps >= start) & (steps < end)]
        if start == 0 or not len(before) or len(within) < 3:
            continue
        peak = within[: (len(within) + 1) // 2].max()
        rises.append(peak / before[-1])
        teeth += bool(peak > SAWTOOTH_RISE * before[-1] and peak > SAWTOOTH_RISE * within[-1])
    if len(rises) < 2 or teeth < len(rises) / 2:
        return []
    return [
        f"a sawtooth: up {float(np.median(rises)):.2g}-fold after a boundary, and down again, in {teeth} of "
        f"{len(rises)} experiences"
    ]


def _oscillation(record: pd.DataFrame) -> list[str]:
    """Tell whether a step size swings about a level, by its logarithm's changes from record to record.

    It turns where two successive changes have different signs. A random walk turns half of the time. An oscillation
    turns more often than that can be by chance, its typical change is not small, and the medians of the first and last
    third differ by less than this change, so that there is no trend.
    """
    values = np.log(record["step_size"].to_numpy(dtype=float))
    changes = np.diff(values)
    changes = changes[np.isfinite(changes) & (changes != 0)]
    if len(changes) < max(OSCILLATION_RECORDS, len(values) / 2):
        return []
    turns, third = np.sign(changes[1:]) != np.sign(changes[:-1]), len(values) // 3
    swing, trend = float(np.median(np.abs(changes))), float(np.median(values[-third:]) - np.median(values[:third]))
    by_chance = len(turns) / 2 + BEYOND_CHANCE * math.sqrt(len(turns)) / 2
    if turns.sum() <= by_chance or swing < math.log(OSCILLATION_RISE) or abs(trend) >= swing:
        return []
    return [
        f"an oscillation about {math.exp(float(np.median(values))):.2g}: it turns at {100 * turns.mean():.0f} % of the "
        f"records, where a random walk turns at 50 %, and changes {math.exp(swing):.2g}-fold between records"
    ]


def _listed(parts: Sequence[str]) -> str:
    shown = list(parts[:MAX_BLOCKS])
    return ", ".join(shown) + (f" and {len(parts) - MAX_BLOCKS} more" if len(parts) > MAX_BLOCKS else "")


def _times(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
