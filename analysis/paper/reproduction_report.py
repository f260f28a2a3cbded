"""What `continual-metaopt reproduce` writes: an experiment of the paper from its run directories."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import pandas as pd

from continual_metaopt.analysis import figures
from continual_metaopt.analysis.escaping import csv_text
from continual_metaopt.analysis.files import file_names, write_text
from continual_metaopt.analysis.paper import figures as beside
from continual_metaopt.analysis.paper import published, reproduction, stationary
from continual_metaopt.analysis.paper.reproduction import Table
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.sawtooth import sawtooth_table
from continual_metaopt.analysis.statistics import Diverged
from continual_metaopt.analysis.tables import bimodal_note, caption, comparison_table, format_table, seeds_of
from continual_metaopt.analysis.tuning import chosen_setting

Experiment = Literal[
    "published", "table2", "table3", "robustness", "trajectories", "cifar10", "cifar10_small", "imagenet"
]

STATIONARY: tuple[Experiment, ...] = ("cifar10", "cifar10_small", "imagenet")
TITLES: dict[Experiment, str] = {
    "published": "The published continual experiment: 10 tasks of 10 classes, AdamW with Adam, γ = 0.999, α₀ = 1e-4",
    "table2": "Table 2 of the reviewers' discussion: 10 classes in each of 10 experiences",
    "table3": "Table 3 of the reviewers' discussion: 20 classes in each of 5 experiences",
    "robustness": "The initial step size",
    "trajectories": "Step sizes of ResNet-18's six blocks (an analogue: a narrow network)",
    "cifar10": "The stationary experiment: CIFAR-10, ResNet-18 with batch normalisation, batches of 100",
    "imagenet": "The stationary experiment on ImageNet: ResNet-18, batches of 256",
    "cifar10_small": "The stationary experiment (an analogue: fewer and smaller images, a narrow network)",
}
ACCURACY_NOTE = (
    "Average online accuracy (%), mean over seeds ± half width of a 95 % Student-t interval; in brackets the gap to "
    "the tuned fixed step size of the same base update, paired by seed. The paper's numbers are means of 5 runs on "
    "CIFAR-100."
)
CLAIMS_NOTE = (
    "Mean differences in percentage points, paired by seed; ± is the half width of a 95 % Student-t interval, which "
    "is not corrected. Verdicts are corrected: each difference has a paired two-sided t-test, with Holm's correction "
    "for all verdicts of the table. An ordering of the paper holds if p ≤ 0.05 and the difference is positive, does "
    "not hold if p ≤ 0.05 and it is negative, and is undecided otherwise. The t-test takes differences as normally "
    "distributed; an exact sign-flip test of five seeds cannot give less than 0.0625."
)
FINDINGS_NOTE = (
    "×: by what factor a tooth's maximum exceeds its minimum. A sawtooth holds if the teeth are larger than with "
    "boundaries shifted at random (p ≤ 0.05 after Holm's correction for all rows), with the peak in the first half of "
    "an experience. Trends are means over seeds in decades per experience, each with a 95 % Student-t interval that "
    "is not corrected. “Falls” is decided by two-sided t-tests over seeds with Holm's correction for all first "
    "blocks. “Stays” means within ± 0.05, by intervals that hold for all last blocks together (Bonferroni). Only "
    "finished runs count."
)
STEP_SIZES_NOTE = (
    "Each row: mean accuracy over seeds, over all initial step sizes with the same discount and meta step size, or "
    "over fixed step sizes; “lost” is the best of these means minus the worst, in percentage points. γ = 1 and η = "
    "1e-3 are the values of the paper's stationary experiments. The last column is by how much more the fixed step "
    "size of the same base update loses over its own, narrower grid, with a 95 % Student-t interval over seeds, which "
    "is not corrected. Verdicts are by paired two-sided t-tests with Holm's correction for all of them, since exact "
    "sign-flip tests of few seeds cannot give small p-values; without several seeds they are undecided."
)

PUBLISHED_NOTE = (
    "Average online accuracy (%), mean over seeds ± half width of a 95 % Student-t interval; all learners have the "
    "same five seeds, 0 to 4, unless --seeds says otherwise. “Decades” is the best of 1e-5 … 1e-1 and “finer grid” the "
    "best of three values a factor of 2 apart, both chosen on seed 100; the value is in brackets. The paper's numbers "
    "are means of 5 runs. It does not say which form of momentum and which labels they belong to."
)
PUBLISHED_CLAIMS_NOTE = (
    "Mean over seeds ± half width of its 95 % Student-t interval. A claim holds, or does not, if p ≤ 0.05 after Holm's "
    "correction for all cells of this table: two-sided t-tests over seeds, paired where learners are compared, and "
    "boundaries shifted at random for the sawtooth. Trends begin with the second task. “Fixed” is the paper's "
    "1e-4, and with the released form the best of the decades, which on CIFAR-100 is the same."
)

STATIONARY_NOTE = (
    "Training accuracy is of predictions made before learning from the batch, in the last pass; test accuracy is "
    "measured after it. Means over seeds ± half width of a 95 % Student-t interval. α: last step size of each block."
)
STATIONARY_CLAIMS_NOTE = (
    "Mean over seeds ± half width of its 95 % Student-t interval, which is not corrected. Verdicts: paired two-sided "
    "t-tests with Holm's correction for all rows; a claim holds if p ≤ 0.05 and the difference is positive, and is "
    "undecided without enough seeds."
)

# Corrected for the forty blocks of a table, p-values can come far below 0.05.
SHIFTS_OF_TABLES = 9_999


class Section(NamedTuple):
    """A part of a reproduction: heading, name of its CSV file, all its numbers, and a text with a Markdown table.

    The table has no rows where something could not be computed; the text then says why.
    """

    title: str
    name: str
    table: pd.DataFrame
    text: str


def sections(
    runs: Runs, experiment: Experiment, *, diverged: Diverged = "chance", shifts: int = SHIFTS_OF_TABLES
) -> Iterator[Section]:
    """Ours beside the paper's, and its findings with verdicts, from the runs of an experiment's study.

    Args:
        runs: of the study, those that chose settings included.
        experiment: which one.
        diverged: see `analysis.statistics`.
        shifts: random sets of boundaries for the sawtooth, see `analysis.sawtooth.sawtooth`.

    Raises:
        ValueError: there is no such experiment, or these are no runs of it.
    """
    if experiment not in get_args(Experiment):
        raise ValueError(f"the experiment must be one of {', '.join(get_args(Experiment))}, not {experiment!r}")
    if experiment == "published":
        yield from _published(runs, diverged, shifts)
        return
    if experiment == "robustness":
        table = reproduction.initial_step_sizes(_of_study(runs, experiment, "selection"), diverged=diverged)
        seeds = seeds_of(_of_study(runs, experiment, "selection"))
        text = f"{reproduction.initial_step_sizes_markdown(table)}\n{STEP_SIZES_NOTE} {seeds}."
        yield Section("Does the initial step size matter?", "initial_step_sizes", table, text)
        return
    reported = _of_study(runs, experiment, "report")
    seeds = seeds_of(reported)
    if experiment in STATIONARY:
        table = stationary.stationary_table(reported)
        text = f"{stationary.table_markdown(table)}\n{STATIONARY_NOTE} {seeds}.{_chosen(reported)}"
        yield Section("Accuracy and step sizes at the end", "accuracy", table, text)
        claims = stationary.stationary_claims(reported)
        text = f"{stationary.claims_markdown(claims)}\n{STATIONARY_CLAIMS_NOTE} {seeds}."
        yield Section("Claims of section 7.1", "claims", claims, text)
        return
    if experiment == "trajectories":
        table = comparison_table(reported, diverged=diverged)
        yield Section("Accuracy", "accuracy", table, f"{format_table(table, 'markdown')}\n{caption(table)}")
    else:
        of_paper = cast(Table, experiment)
        table = reproduction.paper_comparison(reported, of_paper, diverged=diverged)
        note = " ".join([ACCURACY_NOTE, *bimodal_note(table), f"{seeds}.{_chosen(reported)}"])
        text = f"{reproduction.comparison_markdown(table)}\n{note}"
        yield Section("Accuracy", "accuracy", table, text)
        claims = reproduction.paper_claims(reported, of_paper, diverged=diverged)
        yield Section("Orderings", "claims", claims, f"{reproduction.claims_markdown(claims)}\n{CLAIMS_NOTE} {seeds}.")
    try:
        teeth = sawtooth_table(reported, _drawn(reported), shifts=shifts)
    except ValueError as error:
        yield Section("Step sizes", "sawtooth", pd.DataFrame(), f"Not checked: {error}.")
        return
    findings = reproduction.findings_markdown(reproduction.sawtooth_findings(teeth))
    yield Section("Step sizes", "sawtooth", teeth, f"{findings}\n{FINDINGS_NOTE} {seeds}.")


def _published(runs: Runs, diverged: Diverged, shifts: int) -> Iterator[Section]:
    table = published.published_table(runs, diverged=diverged)
    note = " ".join([PUBLISHED_NOTE, *bimodal_note(table)])
    yield Section("Accuracy", "accuracy", table, f"{published.table_markdown(table)}\n{note}")
    claims = published.published_claims(runs, diverged=diverged, shifts=shifts)
    text = f"{published.claims_markdown(claims)}\n{PUBLISHED_CLAIMS_NOTE}"
    yield Section("Claims of section 7.2 and of the reviewers' discussion", "claims", claims, text)
    for labels, study in published.STUDIES.items():
        reported = runs.select(study=study, purpose="report")
        if len(reported):
            columns = comparison_table(reported, diverged=diverged)
            text = f"{format_table(columns, 'markdown')}\n{caption(columns)}"
            yield Section(f"All columns, labels {labels}", f"columns_{labels}", columns, text)


def reproduction_markdown(experiment: Experiment, parts: list[Section]) -> str:
    """All parts as one Markdown page."""
    body = "\n\n".join(f"## {part.title}\n\n{part.text}" for part in parts)
    return f"# {TITLES[experiment]}\n\n{body}\n"


def write_reproduction(
    runs: Runs,
    experiment: Experiment,
    out_dir: str | os.PathLike[str],
    *,
    diverged: Diverged = "chance",
    shifts: int = SHIFTS_OF_TABLES,
) -> tuple[str, list[Path]]:
    """Write an experiment's page, its tables as CSV, and its figures.

    Returns:
        The page in Markdown, and the paths of the files written. A figure that cannot be drawn is left out with a
        warning.

    Raises:
        ValueError: as of `sections`.
        OSError: a file cannot be written.
    """
    folder = Path(out_dir)
    parts = list(sections(runs, experiment, diverged=diverged, shifts=shifts))
    text = reproduction_markdown(experiment, parts)
    page = folder / f"{experiment}.md"
    paths = [write_text(page, text)]
    for part in parts:
        if len(part.table):
            paths.append(
                write_text(folder / f"{experiment}_{part.name}.csv", csv_text(part.table, float_format="%.6g"))
            )
    if experiment == "published":
        drawn = {
            "cumulative_accuracy": partial(beside.published_cumulative_accuracy, runs, diverged=diverged),
            "step_sizes": partial(beside.published_step_sizes, runs),
            "test_accuracy": partial(beside.published_test_accuracy, runs, diverged=diverged),
        }
        for name, draw in drawn.items():
            paths += figures.draw_and_save(draw, folder, f"published_{name}")
        return text, paths
    if experiment == "robustness":
        learned = _of_study(runs, experiment, "selection").select(learned_step_sizes=True)
        maps = partial(figures.sensitivity_maps, learned, ("gamma", "meta_lr", "lr"), diverged=diverged)
        return text, paths + figures.draw_and_save(maps, folder, "robustness")
    reported = _of_study(runs, experiment, "report")
    if experiment in STATIONARY:
        blockwise = [label for label in reported.labels if ", blockwise" in label]
        drawn = {
            "training_accuracy": partial(figures.sliding_accuracy, reported, diverged=diverged),
            "step_sizes": partial(figures.step_size_trajectories, reported, blockwise),
        }
        for name, draw in drawn.items():
            paths += figures.draw_and_save(draw, folder, f"{experiment}_{name}")
        return text, paths
    if experiment != "trajectories" and parts[0].table["gap"].notna().any():
        gaps = partial(beside.gaps_beside_the_papers, parts[0].table)
        paths += figures.draw_and_save(gaps, folder, f"{experiment}_gaps")
    for label, name in file_names(_drawn(reported) if len(parts[-1].table) else []).items():
        trajectories = partial(figures.step_size_trajectories, reported, [label])
        paths += figures.draw_and_save(trajectories, folder, f"{experiment}_step_sizes_{name}")
        sawtooth = partial(figures.folded_sawtooth, reported, label)
        paths += figures.draw_and_save(sawtooth, folder, f"{experiment}_sawtooth_{name}")
    return text, paths


def _of_study(runs: Runs, experiment: Experiment, purpose: str) -> Runs:
    found = runs.select(study=experiment, purpose=purpose)
    if not len(found):
        raise ValueError(
            f"none of these runs is of the study {experiment}: run `continual-metaopt reproduce {experiment}` first"
        )
    return found


def _chosen(runs: Runs) -> str:
    """Which settings were chosen on other seeds; nothing if none were."""
    labels = {config["label"]: None for config in runs.configs.values() if chosen_setting(config)}
    return f" Chosen on other seeds: {'; '.join(labels)}." if labels else ""


def _drawn(runs: Runs) -> list[str]:
    """Learners of which the paper shows step sizes: those with several blocks that finished a run."""
    finished = runs.select(learned_step_sizes=True, state="finished")
    return [
        label
        for label in finished.labels
        if (row := reproduction.row_of(label)) is None or row.step_sizes == "blockwise"
    ]
