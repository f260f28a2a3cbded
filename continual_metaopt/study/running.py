"""Running a study: choose tuned settings on the selection seeds, then run the reported seeds."""

import ctypes
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from continual_metaopt.analysis.escaping import for_terminal
from continual_metaopt.analysis.files import real_folder
from continual_metaopt.analysis.records import read_config, read_status
from continual_metaopt.analysis.runs import read_table
from continual_metaopt.runs.components import Component, ConfigError, resolve
from continual_metaopt.runs.files import DAMAGED, read_json, write_json
from continual_metaopt.runs.outcome import reason_of
from continual_metaopt.study.backends import Backend, Pool
from continual_metaopt.study.backends.local import LocalPool, require_no_worker
from continual_metaopt.study.config import LearnerEntry, StudyConfig
from continual_metaopt.study.jobs import Job, RunsFailed, StudyInterrupted, run_folder_name
from continual_metaopt.study.lengths import n_samples_of, size_of
from continual_metaopt.study.lock import StudyLock, StudyLocked
from continual_metaopt.study.settings import positions_of_best
from continual_metaopt.study.tuning import Setting


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


@dataclass(frozen=True)
class PoolOptions:
    """What does the runs of a study.

    Attributes:
        workers: runs at a time; None for one per processor.
        show_progress: draw progress bars with the time left.
        threads: do the runs in threads of this process, which need less memory, rather than in processes. They share
            PyTorch's random numbers, so learners that draw any, as for dropout, cannot be repeated then.
        backend: where the runs are done instead of on this machine; it has workers and progress of its own.
    """

    workers: int | None = None
    show_progress: bool = True
    threads: bool = False
    backend: Backend | None = None

    def make(self, n_runs: int, n_samples: int, out: Path) -> AbstractContextManager[Pool]:
        """The pool for so many runs and samples of a study with the folder ``out``."""
        if self.backend is not None:
            return self.backend(n_runs, out)
        return LocalPool(self.workers, n_runs, self.show_progress, self.threads, n_samples)


def run_studies(
    parts: Mapping[str, StudyConfig],
    out: Path,
    pools: PoolOptions = PoolOptions(),
) -> dict[str, StudyResult]:
    """Run the parts of a study, one after the other, or what is left of them.

    Args:
        parts: each combination of a stream and a network by its label, as ``load_studies`` gives them.
        out: folder of the whole study; each part has a folder of its own there, named by its label, or this one if the
            label is empty. Runs that have ended there are not repeated.
        pools: what does the runs.

    Returns:
        The run directories of each part.

    Raises:
        BackendError: the runs cannot be done by the backend.
        ConfigError: selection runs have another length than the study's tuning says; or a run that was to be replayed
            diverged, after all others have been run.
        FileExistsError: the folder holds another study.
        StudyLocked: another command works on it.
        StudyInterrupted: after Ctrl-C; nothing recorded is lost.
        RunsFailed: some runs failed; all others have been run, but for the reported runs of learners whose setting
            could not be chosen because selection runs failed.
    """
    if pools.backend is None and not pools.threads:
        require_no_worker()
    n_runs, n_samples = map(sum, zip(*map(size_of, parts.values()), strict=True))
    lock = StudyLock(
        out, _say if pools.show_progress else _say_nothing, on_loss=partial(_interrupt, threading.get_ident())
    )
    results, failed = {}, []
    try:
        with lock:
            for label, study in parts.items():
                claim(study, out / label, out)
            with pools.make(n_runs, n_samples, out) as pool:
                for label, study in parts.items():
                    try:
                        results[label] = _run_with(pool, study, out / label)
                    except RunsFailed as error:
                        failed.append(error)
                        results[label] = StudyResult(error.runs, error.selection)
    except (KeyboardInterrupt, StudyInterrupted):
        if lock.lost is None:
            raise
        raise StudyLocked(f"'{out}' {lock.lost}") from None
    if failed:
        raise RunsFailed(
            {path: reason for error in failed for path, reason in error.failures.items()},
            sum(len(result.runs) + len(result.selection) for result in results.values()),
            [sentence for error in failed for sentence in error.consequences],
            [path for result in results.values() for path in result.runs],
            [path for result in results.values() for path in result.selection],
        )
    return results


def _run_with(pool: Pool, study: StudyConfig, out: Path) -> StudyResult:
    tried: dict[int, list[Trial]] = {i: [] for i, entry in enumerate(study.learners) if study.is_tuned(entry)}
    undecided: dict[int, str] = {}  # learners without a setting, because of runs that failed
    failures: dict[Path, str] = {}
    n_runs = 0

    def do(jobs: list[Job], stage: str) -> None:
        nonlocal n_runs
        n_runs += len(jobs)
        _mark_superseded(jobs)
        try:
            pool.run(jobs, stage)
        except RunsFailed as error:
            failures.update(error.failures)

    while new := _next_trials(study, {i: trials for i, trials in tried.items() if i not in undecided}, out):
        do([job for trials in new.values() for trial in trials for job in trial.jobs], "choosing settings")
        for i, trials in new.items():
            tried[i] += trials
            paths = [path for trial in trials for _, path in trial.jobs]
            failures |= {path: why for path in paths if path not in failures and (why := _why_without_score(path))}
            n_failed = sum(path in failures for path in paths)
            if n_failed:
                label = study.learners[i].label or study.learners[i].name
                undecided[i] = (
                    f"'{label}': no setting was chosen, because {n_failed} of its selection runs failed; its tuned "
                    "learner was not run on the reported seeds"
                )
    decided = {i: trials for i, trials in tried.items() if i not in undecided}
    chosen = {i: best_candidate([(trial.learner, trial.jobs) for trial in trials]) for i, trials in decided.items()}
    scores = {i: max(mean_score(trial.jobs) for trial in trials) for i, trials in decided.items()}
    best = positions_of_best(scores, study.tuning.best if study.tuning else None)
    jobs = []
    for i, entry in enumerate(study.learners):
        if study.reports_untuned(entry) and entry.replays is None:
            jobs += [_job(study, entry, entry.untuned, seed, "report", out, tuned=False) for seed in study.seeds]
        if i in best:
            jobs += [_job(study, entry, chosen[i], seed, "report", out) for seed in study.seeds]
    do(jobs, "reported runs")
    replays, impossible = _replays(study, jobs, out)
    do(replays, "replays")
    runs = [path for _, path in jobs + replays]
    selection = [path for trials in tried.values() for trial in trials for _, path in trial.jobs]
    if failures:
        raise RunsFailed(failures, n_runs, [*(undecided[i] for i in sorted(undecided)), *impossible], runs, selection)
    if impossible:
        raise ConfigError("\n".join(impossible))
    return StudyResult(runs, selection)


def _replays(study: StudyConfig, done: Sequence[Job], out: Path) -> tuple[list[Job], list[str]]:
    """The runs that replay others, which have ended; and a sentence for each that is not possible."""
    paths = {(config.entry, config.seed): path for config, path in done}
    following = dict(zip(study.seeds, [*study.seeds[1:], study.seeds[0]], strict=True))
    jobs, impossible = [], []
    for entry in study.learners:
        if entry.replays is None:
            continue
        for seed in study.seeds:
            replayed = following[seed] if entry.replays.seed == "next" else seed
            learner = entry.with_options({"trajectory": str(paths[entry.replays.learner, replayed])})
            try:
                jobs.append(_job(study, entry, learner, seed, "report", out, tuned=False))
            except ConfigError as error:
                impossible.append(f"'{entry.label or entry.name}' was not run on seed {seed}: {error}")
    return jobs, impossible


def _why_without_score(path: Path) -> str | None:
    """Why a run that has ended cannot be judged, None if it can."""
    try:
        average_score(path)
    except (OSError, ValueError, KeyError) as error:
        return f"its record cannot be read ({reason_of(error)}); move its folder elsewhere to run again"
    return None


def _interrupt(thread: int) -> None:
    """Raise ``KeyboardInterrupt`` in a thread, also where Ctrl-C is ignored, as in a shell's background."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))


def _say(text: str) -> None:
    print(for_terminal(text), file=sys.stderr, flush=True)


def _say_nothing(text: str) -> None:
    pass


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
    n_samples = sum(n_samples_of(config) for config, _ in jobs)
    with LocalPool(workers, len(jobs), show_progress, n_samples=n_samples) as pool:
        pool.run(jobs, "runs")


def claim(study: StudyConfig, out: Path, whole: Path | None = None) -> None:
    """Make a folder this study's own; a description that is damaged is set aside, and written anew.

    Args:
        study: its description.
        out: the folder.
        whole: the folder that the user named, which may be a link; ``out``, or the one above it.

    Raises:
        FileExistsError: it holds another study, or this one with another stream or network, or something else; or it
            leads elsewhere by a link.
    """
    resolved: dict[str, Any] = {kind: resolve(kind, component, kind) for kind, component in study.components.items()}
    record = study.model_copy(update=resolved).model_dump(mode="json")
    for name in ("data_root", "memory_limit"):  # files and pixels may lie elsewhere next time
        record["stream"].pop(name, None)
    for folder in (out, out / "runs", out / "selection"):
        if folder != (whole or out):
            real_folder(folder)
    path = out / "study.json"
    earlier = _earlier_record(path)
    if earlier is not None:
        known, wanted = _fields_of_all_runs(earlier), _fields_of_all_runs(record)
        for field in sorted(known.keys() | wanted.keys()):
            if known.get(field) != wanted.get(field):
                raise FileExistsError(
                    f"'{out}' already holds a study with {field} = {known.get(field)}, not {wanted.get(field)}; "
                    "choose another folder with --out"
                )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, record | {"n_runs": size_of(study)[0]})


def _earlier_record(path: Path) -> dict[str, Any] | None:
    """What a folder's study.json says; None if there is none that can be read.

    Raises:
        FileExistsError: it is another program's.
    """
    if os.path.lexists(path.with_name("config.json")):
        raise FileExistsError(
            f"'{path.parent}' holds a config.json, as a run's directory does; choose another folder with --out"
        )
    try:
        record = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        number = 1
        while os.path.lexists(aside := path.with_name(f"study-{DAMAGED}{'' if number == 1 else f'-{number}'}.json")):
            number += 1
        path.rename(aside)
        _say(f"noted: {error}; it is kept as '{aside}', and written anew. All runs stay")
        return None
    parts = {"name": str, "stream": dict, "network": dict}
    if not all(isinstance(record.get(name), kind) for name, kind in parts.items()):
        raise FileExistsError(f"'{path}' is of no study of this program; choose another folder with --out")
    return record


def _mark_superseded(jobs: Sequence[Job]) -> None:
    """Say in their status which runs of an earlier version of a study others replace: its learner had other options."""
    wanted = {path for _, path in jobs}
    places = {_place(config.model_dump(mode="json")) for config, _ in jobs}
    for folder in {path.parent for path in wanted}:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path in wanted or path.is_symlink():
                continue
            try:
                status = read_json(path / "status.json")
                if _place(read_json(path / "config.json")) in places and "superseded" not in status:
                    write_json(path / "status.json", status | {"superseded": True})
            except (OSError, ValueError, TypeError):
                continue  # not a run, or none that can be read


def _place(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """What only one run of a version of a study has, given its description: the learner's label and the seed."""
    learner = run.get("entry") if run.get("purpose") == "report" else None
    return run.get("study"), run.get("purpose"), learner or run.get("label"), bool(run.get("tuned")), run.get("seed")


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
    config = read_config(path)
    regression = config["stream_info"].get("task") == "regression"
    if read_status(path)["state"] != "finished":
        return -math.inf if regression else 0.0
    if config.get("record_samples_every", 1) > 1:
        rows = read_table(path, config, "experiences", ["n_samples", "n_correct", "mean_loss"])
        sums = rows["mean_loss"] * rows["n_samples"] if regression else rows["n_correct"]
        mean = float(sums.sum() / rows["n_samples"].sum())
    else:
        column = "loss" if regression else "correct"
        mean = float(read_table(path, config, "samples", [column])[column].mean())
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
    before = study.learners[: study.learners.index(entry)]
    return config, folder / run_folder_name(config, [other.label or other.name for other in before])
