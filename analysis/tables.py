"""The table that compares learners, and its forms for terminal, Markdown, LaTeX and spreadsheets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from continual_metaopt.analysis.escaping import csv_text, one_line
from continual_metaopt.analysis.run_directory import ENDED
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import (
    AT_BOUND,
    BIMODAL_GAP,
    GAMMA,
    Diverged,
    average_score,
    best_fixed,
    held_out_accuracy,
    is_at_bound,
    is_regression,
    mean_interval,
    numbers_of,
    online_loss,
    paired_differences,
    require_labels,
    seeds_if_bimodal,
)
from continual_metaopt.analysis.tuning import (
    FACTORS,
    best_setting,
    chosen_setting,
    score_of_setting,
    selection_of,
    sensitivity,
    setting_text,
)

Format = Literal["terminal", "markdown", "latex", "csv"]

_TABULATE_FORMATS = {"terminal": "simple", "markdown": "github", "latex": "latex_booktabs"}
DISCOUNTED_LOSS = f"loss, γ = {GAMMA:g}"
BIMODAL_NOTE = (
    "Where seeds fall in two groups, the median and the single seeds in brackets stand instead of a mean with an "
    f"interval: the largest gap between sorted values is more than {BIMODAL_GAP:g} points and more than half of their "
    "range."
)
# Characters that LaTeX sets only in mathematics; tabulate escapes the others.
_LATEX_SIGNS = {
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "η": r"$\eta$",
    "θ": r"$\theta$",
    "κ": r"$\kappa$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "ρ": r"$\rho$",
    "₀": "$_0$",
    "∞": r"$\infty$",
}


def comparison_table(
    runs: Runs, *, diverged: Diverged = "chance", baseline: str | None = None, selection: Runs | None = None
) -> pd.DataFrame:
    """Compare the learners on one stream.

    Args:
        runs: runs of one stream.
        diverged: `"chance"`: samples that a diverged run did not see count as 1 / n_outputs, in a regression as an
            infinite error; `"exclude"`: diverged runs are not counted. They are reported in both cases.
        baseline: the label that the others are compared with; if None, the best learner with fixed step sizes.
        selection: runs that served to choose settings, of these and perhaps other learners.

    Returns:
        One row per label, in the order of `runs.labels`: learner, seeds (number of counted runs), online_accuracy,
        difference (to the baseline, over common seeds; NaN for the baseline itself), held_out_accuracy (NaN if not
        measured), each in % (differences in percentage points), followed by the half width of its 95 % interval
        (`…_ci`) and by the single values of seeds where they are bimodal (`…_seeds`, a text, empty otherwise; see
        `analysis.statistics.is_bimodal`), pairs (number of common seeds), diverged and incomplete (numbers of runs),
        at_bound (number of runs with a step size at its bound, see `analysis.statistics.is_at_bound`),
        samples_per_second (median of the counted runs). A regression has squared_error, the mean over the stream, in
        place of online_accuracy. Else there are loss and discounted_loss, each followed by `…_ci`: means over the
        finished runs with finite losses, see `analysis.statistics.online_loss`.
        Where settings were chosen there is setting, a text. With selection runs there are also tuning_runs,
        tuning_samples (of all these runs together), selection_score (mean over the selection runs of the chosen
        setting, in % or as a squared error), and lost_at_3x and lost_at_10x: by how much that was worse at a step size
        so far off (in percentage points, or the squared error), see `analysis.tuning.sensitivity`; missing for learners
        that were not tuned. They stand in the row of the tuned learner; where there are no reported runs of it, they
        stand in that of the untuned one, without setting. `attrs` says how it was computed, for `caption`.

    Raises:
        ValueError: the runs come from several streams, or cannot be paired.
    """
    runs.require_one_stream()
    if baseline is not None:
        require_labels(runs, [baseline])
    reference = baseline if baseline is not None else best_fixed(runs, diverged=diverged)
    scores, score = average_score(runs, diverged)
    scores["held_out_accuracy"] = held_out_accuracy(runs, diverged).to_numpy()
    if score != "squared_error":
        scores = scores.join(online_loss(runs), on="run")
    scores["samples_per_second"] = runs.table["samples_per_second"]
    scores["at_bound"] = [is_at_bound(runs, path) for path in runs.table["path"]]
    differences = None if reference is None else paired_differences(runs, reference, diverged=diverged)
    tuned_entries = {config.get("entry") for config in runs.configs.values() if chosen_setting(config)}
    rows = []
    for label in runs.labels:
        difference = None if differences is None or label == reference else differences.loc[[label]].iloc[0]
        group = scores[scores["label"] == label]
        config = runs.configs[group["run"].iloc[0]]
        reported_elsewhere = not chosen_setting(config) and config.get("entry") in tuned_entries
        setting = chosen_setting(config)
        tuning = {} if selection is None or reported_elsewhere else _tuning(config, selection)
        if setting or tuning:
            tuning = {"setting": setting_text(setting) or None} | tuning
        rows.append(_row(label, group, score, difference) | tuning)
    table = pd.DataFrame(rows)
    table.attrs = {"baseline": reference, "best_fixed": baseline is None, "diverged": diverged, "score": score}
    table.attrs["seeds"] = sorted(int(seed) for seed in scores.dropna(subset=score)["seed"].unique())
    return table


def format_table(table: pd.DataFrame, fmt: Format) -> str:
    """Write a comparison table as text.

    Args:
        table: from `comparison_table`.
        fmt: `"terminal"`, `"markdown"`, `"latex"` (a `tabular` that needs the package booktabs) or `"csv"` (all
            columns, unrounded). All but the last round, and leave out columns without content. The terminal has no
            room for the discounted loss.

    Returns:
        The text, ending with a line break.

    Raises:
        ValueError: there is no such format.
    """
    if fmt not in get_args(Format):
        raise ValueError(f"fmt must be one of {', '.join(get_args(Format))}, not {fmt!r}")
    if fmt == "csv":
        return csv_text(table)
    columns = rounded_columns(table)
    if fmt == "terminal":  # which is not wide enough
        columns.pop(DISCOUNTED_LOSS, None)
    return format_columns(columns, fmt)


def format_columns(columns: Mapping[str, list[str]], fmt: Format) -> str:
    """Write columns of text as a table, the first one flush left.

    Args:
        columns: heading → cells.
        fmt: as of `format_table`, but for `"csv"`.

    Returns:
        The text, ending with a line break.
    """
    from tabulate import tabulate

    escape = _escape_markdown if fmt == "markdown" else one_line
    columns = {escape(name): [escape(cell) for cell in cells] for name, cells in columns.items()}
    text = tabulate(
        columns,
        headers="keys",
        tablefmt=_TABULATE_FORMATS[fmt],
        colalign=["left", *["right"] * (len(columns) - 1)],
        disable_numparse=True,
    )
    if fmt == "latex":
        for sign, command in _LATEX_SIGNS.items():
            text = text.replace(sign, command)
    return text + "\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[object]], align: Literal["left", "right"]) -> str:
    """Write rows as a table in Markdown, the first column flush left and the others as ``align`` says."""
    from tabulate import tabulate

    escaped = [[_escape_markdown(str(cell)) for cell in row] for row in (headings, *rows)]
    alignment = ["left", *[align] * (len(headings) - 1)]
    return tabulate(escaped[1:], escaped[0], "github", colalign=alignment, disable_numparse=True) + "\n"


def caption(table: pd.DataFrame) -> str:
    """Explain a comparison table.

    Returns:
        Sentences that say what numbers are, how many seeds there are and which, what ± means, how learners were paired,
        how diverged and incomplete runs count, and when a step size counts as being at its bound.
    """
    fewest, most = int(table["seeds"].min()), int(table["seeds"].max())
    seeds = seeds_text(fewest, most, table.attrs["seeds"])
    sentences = [f"Mean over {seeds}; ± is the half width of a 95 % Student-t interval over seeds."]
    sentences += bimodal_note(table)
    regression = table.attrs["score"] == "squared_error"
    if "loss" in table and table["loss"].notna().any():
        sentences.append(_loss_note(table))
    reference = table.attrs["baseline"]
    if reference is not None and len(table) > 1:
        role = ", the best learner with fixed step sizes in this table," if table.attrs["best_fixed"] else ""
        unit = "paired" if regression else "in percentage points and paired"
        sentences.append(
            f"Differences from “{reference}”{role} are {unit} by seed: "
            "both runs of a pair saw the same samples in the same order."
        )
    chosen = table.dropna(subset="setting") if "setting" in table else table[:0]
    if len(chosen):
        settings = [f"{label}: {text}" for label, text in zip(chosen["learner"], chosen["setting"], strict=True)]
        sentences.append(f"Chosen settings: {'; '.join(settings)}.")
    if "tuning_runs" in table:
        sentences.append("Settings were chosen on other seeds, with “tuning” runs × samples.")
        if (table["tuning_runs"].notna() & table["setting"].isna()).any():
            sentences.append("Where “tuning” stands in an untuned row, the chosen setting was not reported.")
    if "tuning_runs" in table and table[[f"lost_at_{factor:g}x" for factor in FACTORS]].notna().any(axis=None):
        sentences.append(
            "“Lost … off” is by how much the selection runs of the chosen setting were better"
            f"{'' if regression else ', in percentage points,'} than those with a step size "
            "about so many times larger or smaller, whichever was worse."
        )
    n_diverged, n_incomplete = int(table["diverged"].sum()), int(table["incomplete"].sum())
    if n_diverged == 0:
        sentences.append("No run diverged.")
    elif table.attrs["diverged"] == "chance" and regression:
        sentences.append("The error of a diverged run is infinite.")
    elif table.attrs["diverged"] == "chance":
        sentences.append("What a diverged run did not see counts as chance, 1 / number of outputs.")
    else:
        sentences.append("Diverged runs are left out of the means.")
    if table["at_bound"].any():
        sentences.append(
            f"“At bound” counts runs in which a step size was at its bound at {100 * AT_BOUND:.0f} % of the recorded "
            "steps or more."
        )
    if table["samples_per_second"].notna().any():
        sentences.append("“samples/s” is the median over runs.")
    if n_incomplete:
        sentences.append(f"Not counted: {n_incomplete} run{'s' * (n_incomplete != 1)} that did not come to an end.")
    return " ".join(sentences)


def _loss_note(table: pd.DataFrame) -> str:
    text = "Losses are means over the stream and over the runs that finished with finite losses; each sample's loss is "
    text += "that of its prediction, made before learning from it."
    if table["discounted_loss"].notna().any():
        text += (
            f" “{DISCOUNTED_LOSS}” is the discounted loss that MetaOptimize minimises, averaged over the stream, with "
            "the same γ for all learners."
        )
    return text


def _row(label: str, group: pd.DataFrame, score: str, difference: pd.Series | None) -> dict[str, object]:
    counted = group.dropna(subset=score)
    scale = 1 if score == "squared_error" else 100
    mean, half_width = mean_interval(scale * counted[score].to_numpy())
    held_out = 100 * counted["held_out_accuracy"].dropna().to_numpy()
    held_out_mean, held_out_ci = mean_interval(held_out)
    return {
        "learner": label,
        "seeds": len(counted),
        score: mean,
        f"{score}_ci": half_width,
        f"{score}_seeds": "" if score == "squared_error" else seeds_if_bimodal(100 * counted[score].to_numpy()),
        "difference": np.nan if difference is None else scale * difference["difference"],
        "difference_ci": np.nan if difference is None else scale * difference["half_width"],
        "difference_seeds": "" if difference is None else difference["seeds"],
        "pairs": 0 if difference is None else int(difference["pairs"]),
        "held_out_accuracy": held_out_mean,
        "held_out_accuracy_ci": held_out_ci,
        "held_out_accuracy_seeds": seeds_if_bimodal(held_out),
        **_losses(counted),
        "diverged": int((group["state"] == "diverged").sum()),
        "incomplete": int(group["state"].isin(["running", "failed"]).sum()),
        "at_bound": int(group["at_bound"].sum()),
        "samples_per_second": counted["samples_per_second"].median(),
    }


def _losses(counted: pd.DataFrame) -> dict[str, float]:
    """Means of the losses of counted runs, with intervals; nothing for a regression."""
    row = {}
    for column in ("loss", "discounted_loss"):
        if column in counted:
            row[column], row[f"{column}_ci"] = mean_interval(counted[column].dropna().to_numpy())
    return row


def _tuning(config: Mapping[str, Any], selection: Runs) -> dict[str, object]:
    """Columns about how the setting of a learner was chosen; none if it was not."""
    tried = selection_of(selection, config)
    if not len(tried):
        return {}
    chosen = chosen_setting(config) or best_setting(tried)
    scale = 1 if is_regression(tried) else 100
    lost = sensitivity(tried, chosen)
    return {
        "tuning_runs": len(tried),
        "tuning_samples": int(tried.table["n_samples"].sum()),
        "selection_score": scale * score_of_setting(tried, chosen),
        **{f"lost_at_{factor:g}x": scale * loss for factor, loss in lost.items()},
    }


def rounded_columns(table: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of a comparison table that have content, as texts for people.

    Returns:
        Heading → texts, one per row, such as "41.2 ± 0.6"; empty where there is no value.
    """
    reference = "best fixed" if table.attrs["best_fixed"] else table.attrs["baseline"]
    score = table.attrs["score"]
    score_name = "mean squared error" if score == "squared_error" else "online accuracy (%)"
    columns = {
        "learner": [str(label) for label in table["learner"]],
        "seeds": [str(seeds) for seeds in table["seeds"]],
        score_name: with_interval(table, score),
        f"− {reference}": with_interval(table, "difference", sign="+"),
        "held-out accuracy (%)": with_interval(table, "held_out_accuracy"),
        "loss": with_interval(table, "loss", decimals=3) if "loss" in table else [""],
        DISCOUNTED_LOSS: with_interval(table, "discounted_loss", decimals=3) if "loss" in table else [""],
        "diverged": [str(count) for count in table["diverged"]],
        "incomplete": [str(count) for count in table["incomplete"]],
        "at bound": [str(count) for count in table["at_bound"]],
        "setting": list(table["setting"].fillna("")) if "setting" in table else [""],
        "samples/s": ["" if math.isnan(speed) else f"{speed:.0f}" for speed in table["samples_per_second"]],
    }
    if "tuning_runs" in table:
        columns["tuning"] = [
            "" if math.isnan(runs) else f"{runs:.0f} × {samples / runs:,.0f}"
            for runs, samples in zip(table["tuning_runs"], table["tuning_samples"], strict=True)
        ]
        for factor in FACTORS:
            form = ".2f" if score == "squared_error" else ".1f"
            columns[f"lost {factor:g}× off"] = number_texts(table, f"lost_at_{factor:g}x", form)
    return {name: cells for name, cells in columns.items() if name == "learner" or set(cells) - {"", "0"}}


def columns_by_experience(measured: pd.DataFrame) -> dict[str, list[str]]:
    """Test accuracies as texts, with a row for each learner and a column for each experience.

    Returns:
        Heading → texts: learner, and the mean over seeds in % with its 95 % interval for each experience, from 1; empty
        where nothing was measured.
    """
    labels = list(dict.fromkeys(measured["label"]))
    columns = {"learner": [str(label) for label in labels]}
    for experience in sorted(measured["experience"].unique()):
        group = measured[measured["experience"] == experience]
        cells = []
        for label in labels:
            percent = 100 * group.loc[group["label"] == label, "test_accuracy"].to_numpy(dtype=float)
            cells.append(interval_text(*mean_interval(percent), ".1f", seeds_if_bimodal(percent)))
        columns[f"task {experience + 1}"] = cells
    return columns


def with_interval(table: pd.DataFrame, column: str, sign: str = "", decimals: int | None = None) -> list[str]:
    """Texts such as "41.2 ± 0.6", with a second decimal where an interval needs it.

    Args:
        table: with the column, its half widths in one whose name ends with `_ci`, and perhaps the single values of
            bimodal rows in one whose name ends with `_seeds`.
        column: its name.
        sign: `"+"` to write a sign before positive numbers too.
        decimals: how many; if None, as many as the intervals need.

    Returns:
        One for each row; empty where the value is missing.
    """
    half_widths = table[f"{column}_ci"]
    if decimals is None:
        decimals = 2 if half_widths[half_widths > 0].min() < 0.1 or table.attrs.get("score") == "squared_error" else 1
    seeds = table[f"{column}_seeds"] if f"{column}_seeds" in table else [""] * len(table)
    cells = zip(table[column], half_widths, seeds, strict=True)
    return [interval_text(value, half_width, f"{sign}.{decimals}f", single) for value, half_width, single in cells]


def interval_text(value: float, half_width: float, form: str = ".2f", seeds: str = "") -> str:
    """A value with its interval, such as "−1.20 ± 0.34", or a median such as "median 39.9 (10.1, 39.9, 40.0)".

    Args:
        value: of any unit.
        half_width: of its interval; NaN where there is none, which is left out then.
        form: as of Python's `format`; a half width has no sign.
        seeds: from `analysis.statistics.seeds_if_bimodal`; if not empty, it takes the place of mean and interval.

    Returns:
        The text; empty if the value is missing.
    """
    if seeds:
        single = numbers_of(seeds)
        return (
            f"median {number_text(float(np.median(single)), form)} ({', '.join(number_text(s, form) for s in single)})"
        )
    text = number_text(value, form)
    return text if not text or math.isnan(half_width) else f"{text} ± {half_width:{form.lstrip('+')}}"


def number_text(value: float, form: str = ".2f") -> str:
    """A number for people, such as "−1.20" or "∞".

    Returns:
        The text; empty if the value is missing.
    """
    return "" if pd.isna(value) else f"{value:{form}}".replace("-", "−").replace("inf", "∞")


def number_texts(table: pd.DataFrame, column: str, form: str = ".2f") -> list[str]:
    """Texts of a column's numbers, as of `number_text`; empty ones if there is no such column."""
    values = table[column] if column in table else [math.nan] * len(table)
    return [number_text(value, form) for value in values]


def bimodal_note(table: pd.DataFrame) -> list[str]:
    """What a cell with a median is, as a list of one sentence; empty if the table has none.

    Args:
        table: with columns whose names end with `_seeds`.
    """
    columns = table[[column for column in table if str(column).endswith("_seeds")]]
    return [BIMODAL_NOTE] if (columns.fillna("") != "").any(axis=None) else []


def stretches(numbers: Iterable[int]) -> list[list[int]]:
    """Whole numbers in rising order, each once, as stretches without a gap."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def seeds_text(fewest: int, most: int, seeds: Iterable[int] = ()) -> str:
    """How many seeds, and which, in words: "1 seed", "5 seeds (0–4)" or "2 to 5 seeds per learner (0–3, 7)".

    Args:
        fewest: of any learner.
        most: of any learner.
        seeds: all that occur; left out if empty.
    """
    which = ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 1 else str(part[0]) for part in stretches(seeds))
    text = f"{most} seed{'s' * (most != 1)}" if fewest == most else f"{fewest} to {most} seeds per learner"
    return f"{text} ({which})" if which else text


def seeds_of(runs: Runs) -> str:
    """How many seeds runs have per learner, and which, in words as of `seeds_text`.

    Args:
        runs: the runs; where some have come to an end, others do not count.
    """
    ended = runs.table[runs.table["state"].isin(ENDED)]
    table = ended if len(ended) else runs.table
    counts = table.groupby("label", observed=True)["seed"].nunique()
    return seeds_text(int(counts.min()), int(counts.max()), table["seed"].astype(int))


def _escape_markdown(text: str) -> str:
    return one_line(text).replace("|", r"\|").replace("<", "&lt;")
