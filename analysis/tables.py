"""The table that compares learners, and its forms for terminal, Markdown, LaTeX and spreadsheets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from continual_metaopt.analysis import statistics
from continual_metaopt.analysis.comparisons import limits_of, paired_comparisons, ranks_by_seed, scores_by_seed
from continual_metaopt.analysis.escaping import csv_text, one_line
from continual_metaopt.analysis.run_directory import ENDED
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import AT_BOUND, BIMODAL_GAP, GAMMA, Diverged
from continual_metaopt.analysis.text import bits_per_nat
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
BITS = "bits per byte"
HELD_OUT = "held-out at each end (%)"
# columns that a paper has not, and those that a narrow terminal has not either, in the order in which they are left out
_ABOUT_RUNS = [*(f"lost {factor:g}× off" for factor in FACTORS), "tuning", "setting", "at bound", "samples/s"]
_LEFT_OUT_FIRST = [DISCOUNTED_LOSS, *_ABOUT_RUNS, "loss", HELD_OUT, "seeds", "incomplete"]
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
    "\ue000": r"\textbf{",
    "\ue001": "}",
}
_BOLD = "\ue000\ue001"  # stand for themselves until all other signs have been escaped


def comparison_table(
    runs: Runs, *, diverged: Diverged = "chance", baseline: str | None = None, selection: Runs | None = None
) -> pd.DataFrame:
    """Compare the learners on one stream.

    Args:
        runs: runs of one stream.
        diverged: see `analysis.statistics`. Diverged runs are reported in both cases.
        baseline: the label that the others are compared with; if None, the best learner with fixed step sizes.
        selection: runs that served to choose settings, of these and perhaps other learners.

    Returns:
        One row per label, in the order of `runs.labels`: learner, seeds (number of counted runs), online_accuracy,
        difference (to the baseline, over common seeds; NaN for the baseline itself), held_out_accuracy (NaN if not
        measured), each in % (differences in percentage points), followed by the half width of its 95 % interval
        (`…_ci`) and by the single values of seeds where they are bimodal (`…_seeds`, a text, empty otherwise; see
        `analysis.statistics.is_bimodal`), pairs (number of common seeds), p_holm (of a paired sign-flip test against
        the baseline, corrected for all rows), rank (mean over the seeds that all have in common, 1 is best),
        final_accuracy and forgetting (see `analysis.statistics.retained_accuracy`, in %, with `…_ci`), diverged and
        incomplete (numbers of runs), at_bound (number of runs with a step size at its bound, see
        `analysis.statistics.is_at_bound`), samples_per_second (median of the counted runs). A regression has
        squared_error, the mean over the stream, in
        place of online_accuracy. Else there are loss and discounted_loss, each followed by `…_ci`: means over the
        finished runs with finite losses, see `analysis.statistics.online_loss`; of text also bits_per_byte.
        Where settings were chosen there is setting, a text. With selection runs there are also tuning_runs,
        tuning_samples (of all these runs together), selection_score (mean over the selection runs of the chosen
        setting, in % or as a squared error), and lost_at_3x and lost_at_10x, see `analysis.tuning.sensitivity` (in
        percentage points, or the squared error); missing for learners that were not tuned. They stand in the row of
        the tuned learner, or, without reported runs of it, in that of the untuned one, without setting. `attrs` has
        what `caption` needs.

    Raises:
        ValueError: the runs come from several streams, or cannot be paired.
    """
    runs.require_one_stream()
    if baseline is not None:
        statistics.require_labels(runs, [baseline])
    reference = baseline if baseline is not None else statistics.best_fixed(runs, diverged=diverged)
    scores, score = statistics.average_score(runs, diverged)
    scores["held_out_accuracy"] = statistics.held_out_accuracy(runs, diverged).to_numpy()
    if score != "squared_error":
        scores = scores.join(statistics.online_loss(runs), on="run")
        factors = [bits_per_nat(runs.configs[run]) for run in scores["run"]]
        if not any(map(math.isnan, factors)):
            scores["bits_per_byte"] = scores["loss"] * factors
    scores = scores.join(statistics.retained_accuracy(runs), on="run")
    scores["samples_per_second"] = runs.table["samples_per_second"]
    scores["at_bound"] = [statistics.is_at_bound(runs, path) for path in runs.table["path"]]
    differences = None if reference is None else statistics.paired_differences(runs, reference, diverged=diverged)
    tests = None if reference is None else paired_comparisons(runs, reference, diverged=diverged)
    p_values = {} if tests is None else dict(zip(tests["learner"], tests["p_holm"], strict=True))
    ranks = ranks_by_seed(scores_by_seed(runs, diverged)).mean() if len(runs.labels) > 1 else pd.Series(dtype=float)
    tuned_entries = {config.get("entry") for config in runs.configs.values() if chosen_setting(config)}
    rows = []
    for label in runs.labels:
        difference = None if differences is None or label == reference else differences.loc[[label]].iloc[0]
        group = scores[scores["label"] == label]
        config = runs.configs[group["run"].iloc[0]]
        setting = chosen_setting(config)
        reported_elsewhere = not setting and config.get("entry") in tuned_entries
        tuning = {} if selection is None or reported_elsewhere else _tuning(config, selection)
        if setting or tuning:
            tuning = {"setting": setting_text(setting) or None} | tuning
        tested = {"p_holm": p_values.get(label, math.nan), "rank": ranks.get(label, math.nan)}
        rows.append(_row(label, group, score, difference) | tested | tuning)
    table = pd.DataFrame(rows)
    table.attrs = {"baseline": reference, "best_fixed": baseline is None, "diverged": diverged, "score": score}
    table.attrs["tests"] = "" if tests is None or not len(tests) else limits_of(tests)
    table.attrs["seeds"] = sorted(int(seed) for seed in scores.dropna(subset=score)["seed"].unique())
    return table


def format_table(table: pd.DataFrame, fmt: Format, width: float = math.inf, columns: Sequence[str] = ()) -> str:
    """Write a comparison table as text that ends with a line break.

    Args:
        table: from `comparison_table`.
        fmt: `"terminal"`, `"markdown"`, `"latex"` (a `tabular` that needs the package booktabs, with the columns that a
            paper has, the best cell of each in bold) or `"csv"` (all columns, unrounded). All but the last round, and
            leave out columns without content.
        width: characters of a line of the terminal, for which columns are left out; a line below says which.
        columns: beginnings of the headings of the columns beside the learner, in place of those that have room.

    Raises:
        ValueError: there is no such format, or no such column.
    """
    if fmt not in get_args(Format):
        raise ValueError(f"fmt must be one of {', '.join(get_args(Format))}, not {fmt!r}")
    if fmt == "csv":
        return csv_text(table)
    cells = rounded_columns(table)
    if fmt == "latex":
        return format_columns(_best_marked(table, {n: c for n, c in cells.items() if n not in _ABOUT_RUNS}), fmt)
    if fmt == "markdown":
        return format_columns(cells, fmt)
    for wanted in columns:
        if not any(name.startswith(wanted) for name in cells):
            raise ValueError(f"the table has no column that begins with {wanted!r}; it has {', '.join(cells)}")
    if columns:
        chosen = [name for wanted in columns for name in cells if name.startswith(wanted) and name != "learner"]
        return format_columns({name: cells[name] for name in ("learner", *chosen)}, fmt)
    cells = (
        {name: [shortened(cell) for cell in column] for name, column in cells.items()} if width < math.inf else cells
    )
    left_out = []
    text = format_columns(cells, fmt)
    for name in _LEFT_OUT_FIRST:
        if max(map(len, text.splitlines())) > width and cells.pop(name, None) is not None:
            left_out.append(name)
            text = format_columns(cells, fmt)
    note = f"\nToo wide for this terminal: {', '.join(left_out)}; --columns NAME … shows them.\n" if left_out else ""
    return text + note


def shortened(cell: str) -> str:
    """A cell without the single seeds between the least and the largest."""
    return re.sub(r"\(([\d−+]\S*), .*, ([\d−+]\S*)\)", r"(\1 … \2)", cell)


def _best_marked(table: pd.DataFrame, cells: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The cells with signs around those with the best mean of their column, among learners that have one."""
    low_is_best = {"mean squared error": "squared_error", "loss": "loss", DISCOUNTED_LOSS: "discounted_loss"}
    low_is_best |= {BITS: "bits_per_byte", "rank": "rank", "forgetting (%)": "forgetting"}
    high_is_best = {"online accuracy (%)": "online_accuracy", "final accuracy, all (%)": "final_accuracy"}
    marked = dict(cells)
    for best, names in ((pd.Series.min, low_is_best), (pd.Series.max, high_is_best | {HELD_OUT: "held_out_accuracy"})):
        for heading, column in names.items():
            if heading in cells and table[column].notna().sum() > 1:
                is_best = table[column] == best(table[column])
                pairs = zip(cells[heading], is_best, strict=True)
                marked[heading] = [f"{_BOLD[0]}{cell}{_BOLD[1]}" if bold else cell for cell, bold in pairs]
    return marked


def format_columns(columns: Mapping[str, list[str]], fmt: Format) -> str:
    """Write columns of text (heading → cells) as a table, the first one flush left; not as CSV."""
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
    """Explain a comparison table: what numbers are and of which seeds, how runs were paired, counted and tuned."""
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
    if table.attrs["tests"]:
        sentences.append(f"“p (Holm)” compares with “{reference}”. {table.attrs['tests']}")
    if table["rank"].notna().any():
        sentences.append("“Rank” is the mean rank over the seeds that all have in common; 1 is best.")
    if table["held_out_accuracy"].notna().any():
        sentences.append(
            "“Held-out at each end” is the accuracy on held-out samples of an experience when it ends, mean over "
            "experiences; it does not tell what is known of earlier ones."
        )
    if "final_accuracy" in table and table["final_accuracy"].notna().any():
        sentences.append(
            "“Final accuracy, all” is that on held-out samples of all experiences at the end of the stream. "
            "“Forgetting” is the mean over earlier experiences of their best accuracy before, minus the final one."
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
    if "bits_per_byte" in table:
        text += f" “{BITS.capitalize()}” is the loss in bits for each byte of the text."
    return text


def _row(label: str, group: pd.DataFrame, score: str, difference: pd.Series | None) -> dict[str, object]:
    counted = group.dropna(subset=score)
    scale = 1 if score == "squared_error" else 100
    mean, half_width = statistics.mean_interval(scale * counted[score].to_numpy())
    held_out = 100 * counted["held_out_accuracy"].dropna().to_numpy()
    held_out_mean, held_out_ci = statistics.mean_interval(held_out)
    return {
        "learner": label,
        "seeds": len(counted),
        score: mean,
        f"{score}_ci": half_width,
        f"{score}_seeds": ""
        if score == "squared_error"
        else statistics.seeds_if_bimodal(100 * counted[score].to_numpy()),
        "difference": np.nan if difference is None else scale * difference["difference"],
        "difference_ci": np.nan if difference is None else scale * difference["half_width"],
        "difference_seeds": "" if difference is None else difference["seeds"],
        "pairs": 0 if difference is None else int(difference["pairs"]),
        "held_out_accuracy": held_out_mean,
        "held_out_accuracy_ci": held_out_ci,
        "held_out_accuracy_seeds": statistics.seeds_if_bimodal(held_out),
        **_means(counted, 1, "loss", "discounted_loss", "bits_per_byte"),
        **_means(counted, 100, "final_accuracy", "forgetting"),
        "diverged": int((group["state"] == "diverged").sum()),
        "incomplete": int(group["state"].isin(["running", "failed"]).sum()),
        "at_bound": int(group["at_bound"].sum()),
        "samples_per_second": counted["samples_per_second"].median(),
    }


def _means(counted: pd.DataFrame, scale: float, *columns: str) -> dict[str, float]:
    """Means of columns of counted runs, with intervals; nothing for a column that is not there."""
    row = {}
    for column in columns:
        if column in counted:
            row[column], row[f"{column}_ci"] = statistics.mean_interval(scale * counted[column].dropna().to_numpy())
    return row


def _tuning(config: Mapping[str, Any], selection: Runs) -> dict[str, object]:
    """Columns about how the setting of a learner was chosen; none if it was not."""
    tried = selection_of(selection, config)
    if not len(tried):
        return {}
    chosen = chosen_setting(config) or best_setting(tried)
    scale = 1 if statistics.is_regression(tried) else 100
    lost = sensitivity(tried, chosen)
    return {
        "tuning_runs": len(tried),
        "tuning_samples": int(tried.table["n_samples"].sum()),
        "selection_score": scale * score_of_setting(tried, chosen),
        **{f"lost_at_{factor:g}x": scale * loss for factor, loss in lost.items()},
    }


def rounded_columns(table: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of a comparison table that have content: heading → cells such as "41.2 ± 0.6"."""
    reference = "best fixed" if table.attrs["best_fixed"] else table.attrs["baseline"]
    score = table.attrs["score"]
    score_name = "mean squared error" if score == "squared_error" else "online accuracy (%)"
    columns = {
        "learner": [str(label) for label in table["learner"]],
        "seeds": [str(seeds) for seeds in table["seeds"]],
        score_name: with_interval(table, score),
        BITS: with_interval(table, "bits_per_byte", decimals=3) if "bits_per_byte" in table else [""],
        f"− {reference}": with_interval(table, "difference", sign="+"),
        "p (Holm)": number_texts(table, "p_holm", ".2g"),
        "rank": number_texts(table, "rank", ".1f"),
        "final accuracy, all (%)": with_interval(table, "final_accuracy"),
        "forgetting (%)": with_interval(table, "forgetting"),
        HELD_OUT: with_interval(table, "held_out_accuracy"),
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
            cells.append(interval_text(*statistics.mean_interval(percent), ".1f", statistics.seeds_if_bimodal(percent)))
        columns[f"task {experience + 1}"] = cells
    return columns


def with_interval(table: pd.DataFrame, column: str, sign: str = "", decimals: int | None = None) -> list[str]:
    """Texts such as "41.2 ± 0.6" for the rows of a table, empty where the value is missing.

    Args:
        table: with the column, its half widths in one whose name ends with `_ci`, and perhaps the single values of
            bimodal rows in one whose name ends with `_seeds`.
        column: its name.
        sign: `"+"` to write a sign before positive numbers too.
        decimals: how many; if None, one, or two where an interval needs it and of a regression.
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
        value: of any unit; the text is empty if it is missing.
        half_width: of its interval; NaN where there is none, which is left out then.
        form: as of Python's `format`; a half width has no sign.
        seeds: from `analysis.statistics.seeds_if_bimodal`; if not empty, it takes the place of mean and interval.
    """
    if seeds:
        single = statistics.numbers_of(seeds)
        return (
            f"median {number_text(float(np.median(single)), form)} ({', '.join(number_text(s, form) for s in single)})"
        )
    text = number_text(value, form)
    return text if not text or math.isnan(half_width) else f"{text} ± {half_width:{form.lstrip('+')}}"


def number_text(value: float, form: str = ".2f") -> str:
    """A number for people, such as "−1.20" or "∞"; empty if it is missing."""
    return "" if pd.isna(value) else f"{value:{form}}".replace("-", "−").replace("inf", "∞")


def number_texts(table: pd.DataFrame, column: str, form: str = ".2f") -> list[str]:
    """Texts of a column's numbers, as of `number_text`; empty ones if there is no such column."""
    values = table[column] if column in table else [math.nan] * len(table)
    return [number_text(value, form) for value in values]


def bimodal_note(table: pd.DataFrame) -> list[str]:
    """What a cell with a median is, as a list of one sentence; empty if no column ending with `_seeds` has one."""
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
    """How many seeds, and which, in words: "1 seed", "5 seeds (0–4)", "2 to 5 seeds per learner (0–3, 7)"."""
    which = ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 1 else str(part[0]) for part in stretches(seeds))
    text = f"{most} seed{'s' * (most != 1)}" if fewest == most else f"{fewest} to {most} seeds per learner"
    return f"{text} ({which})" if which else text


def seeds_of(runs: Runs) -> str:
    """How many seeds runs have, and which, in words; once a run has ended, others do not count."""
    ended = runs.table[runs.table["state"].isin(ENDED)]
    table = ended if len(ended) else runs.table
    counts = table.groupby("label", observed=True)["seed"].nunique()
    return seeds_text(int(counts.min()), int(counts.max()), table["seed"].astype(int))


def _escape_markdown(text: str) -> str:
    return one_line(text).replace("|", r"\|").replace("<", "&lt;")
