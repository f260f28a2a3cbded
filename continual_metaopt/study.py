"""Running a study: choose tuned settings on the selection seeds, then run the reported seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from continual_metaopt.backends import Backend
from continual_metaopt.backends.local import LocalPool
from continual_metaopt.config import Component, LearnerEntry, StudyConfig, resolve
from continual_metaopt.jobs import BackendError, Job, run_folder_name
from continual_metaopt.planning import n_runs_of_study, selection_length
from continual_metaopt.recording import read_json, write_json
from continual_metaopt.tuning import Setting, positions_of_best


@dataclass(frozen=True)
class StudyResult:
    """Directories of a study's reported runs, and of those that served to choose settings."""

    runs: list[Path]
    selection: list[Path]


@dataclass(frozen=True)
class Trial:
    """A setting of a learner, and the runs that try it."""

    setting: Setting
    learner: Component
    jobs: list[Job]


def run_study(
    study: StudyConfig,
    out: Path,
    workers: int | None = None,
    show_progress: bool = True,
    threads: bool = False,
    backend: Backend | None = None,
) -> StudyResult:
    """Run a study, or what is left of it.

    Args:
        study: its description.
        out: folder of the study; runs that have ended there are not repeated.
        workers: runs at a time; None for one per processor.
        show_progress: draw progress bars with the time left.
        threads: do the runs in threads of this process, which need less memory, rather than in processes. They share
            PyTorch's random numbers, so learners that draw any, as for dropout, cannot be repeated then.
        backend: where the runs are done, in place of this machine; has workers and progress of its own.

    Returns:
        The run directories.

    Raises:
        BackendError: the runs cannot be done by the backend.
        ConfigError: selection runs have another length than the study's tuning says.
        FileExistsError: the folder holds another study.
        StudyInterrupted: after Ctrl-C; nothing recorded is lost.
        RunsFailed: some runs failed; the others have been run.
    """
    selection_length(study)
    claim(study, out)
    tried: dict[int, list[Trial]] = {i: [] for i, entry in enumerate(study.learners) if study.is_tuned(entry)}
    side_by_side = study.engine == "population"
    n_runs = n_runs_of_study(study)
    if backend and side_by_side:
        raise BackendError("engine: population lets runs learn side by side on this machine; use --backend local")
    with backend(n_runs, out) if backend else LocalPool(workers, n_runs, show_progress, side_by_side, threads) as pool:
        while new := _next_trials(study, tried, out):
            pool.run([job for trials in new.values() for trial in trials for job in trial.jobs], "choosing settings")
            for i, trials in new.items():
                tried[i] += trials
        chosen = {i: best_candidate([(trial.learner, trial.jobs) for trial in tried[i]]) for i in tried}
        scores = {i: max(mean_score(trial.jobs) for trial in trials) for i, trials in tried.items()}
        best = positions_of_best(scores, study.tuning.best if study.tuning else None)
        jobs = []
        for i, entry in enumerate(study.learners):
            if study.reports_untuned(entry):
                jobs += [_job(study, entry, entry.untuned, seed, "report", out, tuned=False) for seed in study.seeds]
            if i in best:
                jobs += [_job(study, entry, chosen[i], seed, "report", out) for seed in study.seeds]
        pool.run(jobs, "reported runs")
    selection = [path for trials in tried.values() for trial in trials for _, path in trial.jobs]
    return StudyResult([path for _, path in jobs], selection)


def _next_trials(study: StudyConfig, tried: dict[int, list[Trial]], out: Path) -> dict[int, list[Trial]]:
    """The next round of settings of each learner that has any left to try."""
    new = {}
    for i, trials in tried.items():
        entry = study.learners[i]
        finished = [(trial.setting, mean_score(trial.jobs)) for trial in trials]
        settings = [(setting, entry.with_options(setting)) for setting in study.next_settings(entry, finished)]
        new[i] = [
            Trial(
                setting,
                learner,
                [_job(study, entry, learner, seed, "selection", out) for seed in study.selection_seeds],
            )
            for setting, learner in settings
        ]
    return {i: trials for i, trials in new.items() if trials}


def run_jobs(jobs: Sequence[Job], workers: int | None = None, show_progress: bool = True) -> None:
    """Do runs in processes of their own.

    Raises:
        StudyInterrupted: after Ctrl-C; nothing recorded is lost.
        RunsFailed: some runs failed; the others have been run.
    """
    with LocalPool(workers, len(jobs), show_progress) as pool:
        pool.run(jobs, "runs")


def claim(study: StudyConfig, out: Path) -> None:
    """Make a folder this study's own.

    Raises:
        FileExistsError: it holds another study, or this one with another stream or network.
    """
    resolved: dict[str, Any] = {kind: resolve(kind, component, kind) for kind, component in study.components.items()}
    record = study.model_copy(update=resolved).model_dump(mode="json")
    for name in ("data_root", "memory_limit"):  # files and pixels may lie elsewhere next time
        record["stream"].pop(name, None)
    path = out / "study.json"
    if path.exists():
        known, wanted = _fields_of_all_runs(read_json(path)), _fields_of_all_runs(record)
        for field in sorted(known.keys() | wanted.keys()):
            if known.get(field) != wanted.get(field):
                raise FileExistsError(
                    f"'{out}' already holds a study with {field} = {known.get(field)}, not {wanted.get(field)}; "
                    "choose another folder with --out"
                )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def _fields_of_all_runs(record: dict[str, Any]) -> dict[str, Any]:
    """What a study's runs have in common, by field such as "stream.source"."""
    common = {field: record.get(field) for field in ("name", "record_every", "evaluate")}
    common["record_samples_every"] = record.get("record_samples_every", 1)
    common |= {"engine": record.get("engine", "auto"), "device": record.get("device", "cpu")}
    common["tuning"] = {field: (record.get("tuning") or {}).get(field) for field in ("samples", "stream")}
    common["diagnostics"] = sorted(set(record.get("diagnostics", [])))
    common["diagnostics_every"] = record.get("diagnostics_every") if common["diagnostics"] else None
    components = [(kind, option, value) for kind in ("stream", "network") for option, value in record[kind].items()]
    return common | {f"{kind}.{option}": value for kind, option, value in components}


def best_candidate(candidates: list[tuple[Component, list[Job]]]) -> Component:
    """The learner with the best mean score over its selection runs."""
    return max(candidates, key=lambda candidate: mean_score(candidate[1]))[0]


def mean_score(jobs: list[Job]) -> float:
    """Mean of ``average_score`` over some runs."""
    return sum(average_score(path) for _, path in jobs) / len(jobs)


def average_score(path: Path) -> float:
    """Average online accuracy of a run that finished, of a regression minus its mean loss; the least if it diverged."""
    config = read_json(path / "config.json")
    regression = config["stream_info"]["task"] == "regression"
    if read_json(path / "status.json")["state"] != "finished":
        return -math.inf if regression else 0.0
    if config.get("record_samples_every", 1) > 1:
        rows = pq.read_table(path / "experiences.parquet").to_pandas()
        sums = rows["mean_loss"] * rows["n_samples"] if regression else rows["n_correct"]
        mean = float(sums.sum() / rows["n_samples"].sum())
    else:
        column = "loss" if regression else "correct"
        mean = float(pq.read_table(path / "samples.parquet", columns=[column]).column(column).to_pandas().mean())
    return -mean if regression else mean


def _job(
    study: StudyConfig,
    entry: LearnerEntry,
    learner: Component,
    seed: int,
    purpose: Literal["report", "selection"],
    out: Path,
    tuned: bool = True,
) -> Job:
    config = study.run(entry, learner, seed, purpose, tuned)
    folder = out / ("runs" if purpose == "report" else "selection")
    return config, folder / run_folder_name(config)
