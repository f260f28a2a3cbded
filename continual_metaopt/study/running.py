"""Running a study: choose tuned settings on the selection seeds, then run the reported seeds."""

import ctypes
import math
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from continual_metaopt.analysis.escaping import for_terminal
from continual_metaopt.analysis.records import read_config, read_status
from continual_metaopt.analysis.runs import read_table
from continual_metaopt.runs.components import Component, ConfigError
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.outcome import reason_of
from continual_metaopt.study.backends import Backend, Pool
from continual_metaopt.study.backends.local import LocalPool, require_no_worker
from continual_metaopt.study.claim import claim, mark_superseded
from continual_metaopt.study.expand import Candidate, Study
from continual_metaopt.study.jobs import Job, RunsFailed, run_folder_name
from continual_metaopt.study.lengths import check_selection_length, n_samples_of, n_samples_of_study
from continual_metaopt.study.lock import study_lock
from continual_metaopt.study.settings import positions_of_best


@dataclass(frozen=True)
class StudyResult:
    """Directories of a study's reported runs, and of those that served to choose settings."""

    runs: list[Path]
    selection: list[Path]


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
        """Make the pool for so many runs and samples of a study with the folder ``out``."""
        if self.backend is not None:
            return self.backend(n_runs, out)
        return LocalPool(self.workers, n_runs, self.show_progress, threads=self.threads, n_samples=n_samples)


def run_studies(parts: Mapping[str, Study], out: Path, pools: PoolOptions = PoolOptions()) -> dict[str, StudyResult]:
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
    for study in parts.values():
        check_selection_length(study)
    n_runs, n_samples = (sum(map(count, parts.values())) for count in (lambda part: part.n_runs, n_samples_of_study))
    results: dict[str, StudyResult] = {}
    failures: dict[Path, str] = {}
    consequences: list[str] = []
    interrupt = partial(_interrupt, threading.get_ident())
    with study_lock(out, _say if pools.show_progress else lambda text: None, on_loss=interrupt):
        for label, study in parts.items():
            claim(study, out / label, out, _say)
        with pools.make(n_runs, n_samples, out) as pool:
            for label, study in parts.items():
                results[label] = _run_part(_Part(pool, study, out / label, failures, consequences))
    if failures:
        runs = [path for result in results.values() for path in result.runs]
        selection = [path for result in results.values() for path in result.selection]
        raise RunsFailed(failures, len(runs) + len(selection), consequences, runs, selection)
    if consequences:
        raise ConfigError("\n".join(consequences))
    return results


def run_jobs(jobs: Sequence[Job], workers: int | None = None, show_progress: bool = True) -> None:
    """Do runs in processes of their own.

    Raises:
        StudyInterrupted: after Ctrl-C; nothing recorded is lost.
        RunsFailed: some runs failed; the others have been run.
    """
    n_samples = sum(n_samples_of(config) for config, _ in jobs)
    with LocalPool(workers, len(jobs), show_progress, n_samples=n_samples) as pool:
        pool.run(jobs, "runs")


@dataclass(frozen=True)
class _Part:
    """A study under way.

    Attributes:
        pool: what does its runs.
        study: the study.
        out: its folder.
        failures: why runs failed; runs that do are added.
        consequences: sentences about what was not run, which are added.
    """

    pool: Pool
    study: Study
    out: Path
    failures: dict[Path, str]
    consequences: list[str]

    def job(self, run: RunConfig) -> Job:
        """A run and its directory."""
        folder = self.out / ("runs" if run.purpose == "report" else "selection")
        return run, folder / run_folder_name(run, [other.label for other in self.study.learners[: run.order]])

    def do(self, jobs: Sequence[Job], stage: str) -> list[Path]:
        """Do runs; returns their directories."""
        mark_superseded(jobs)
        try:
            self.pool.run(jobs, stage)
        except RunsFailed as error:
            self.failures.update(error.failures)
        return [path for _, path in jobs]

    def score(self, jobs: Sequence[Job]) -> float | None:
        """The mean score of runs; None if one of them failed or has no score."""
        scores = []
        for _, path in jobs:
            try:
                scores.append(average_score(path))
            except (OSError, ValueError, KeyError) as error:
                why = f"its record cannot be read ({reason_of(error)}); move its folder elsewhere to run again"
                self.failures.setdefault(path, why)
        return None if any(path in self.failures for _, path in jobs) else sum(scores) / len(scores)


def _run_part(part: _Part) -> StudyResult:
    """Choose settings, do the reported runs, and then those that replay some of them."""
    chosen, selection = _choose(part)
    jobs = []
    for learner in part.study.learners:
        reported: list[Component | Candidate] = []
        if learner.reports_untuned and learner.entry.replays is None:
            reported.append(learner.untuned)
        if learner.position in chosen:
            reported.append(chosen[learner.position])
        jobs += [part.job(learner.run(seed, one)) for one in reported for seed in part.study.config.seeds]
    runs = part.do(jobs, "reported runs")
    return StudyResult(runs + part.do(_replays(part, jobs), "replays"), selection)


def _choose(part: _Part) -> tuple[dict[int, Candidate], list[Path]]:
    """Try settings, round by round.

    Returns:
        The best setting of each learner that is reported with it, by its position; and the directories of all runs.
    """
    study = part.study
    left = [learner for learner in study.learners if learner.search]
    scored: dict[int, list[tuple[float, Candidate]]] = {learner.position: [] for learner in left}
    paths: dict[int, list[Path]] = {learner.position: [] for learner in left}
    undecided: set[int] = set()  # because of runs that failed
    while left:
        trials = []
        for learner in left:
            finished = [(candidate.setting, score) for score, candidate in scored[learner.position]]
            for candidate in learner.next_candidates(finished) if finished else learner.candidates:
                runs = [learner.run(seed, candidate, "selection") for seed in study.config.selection_seeds]
                trials.append((learner.position, candidate, list(map(part.job, runs))))
        part.do([job for *_, jobs in trials for job in jobs], "choosing settings")
        for position, candidate, jobs in trials:
            paths[position] += [path for _, path in jobs]
            score = part.score(jobs)
            if score is None:
                undecided.add(position)
            else:
                scored[position].append((score, candidate))
        goes_on = {position for position, *_ in trials} - undecided
        left = [learner for learner in left if learner.position in goes_on]
    for position in sorted(undecided):
        n_failed = sum(path in part.failures for path in paths[position])
        part.consequences.append(
            f"'{study.learners[position].label}': no setting was chosen, because {n_failed} of its selection runs "
            "failed; its tuned learner was not run on the reported seeds"
        )
    chosen = {
        i: max(trials, key=lambda trial: trial[0]) for i, trials in scored.items() if trials and i not in undecided
    }
    n = study.config.tuning.best if study.config.tuning else None
    best = positions_of_best({i: score for i, (score, _) in chosen.items()}, n)
    return {i: chosen[i][1] for i in best}, [path for of_learner in paths.values() for path in of_learner]


def _replays(part: _Part, done: Sequence[Job]) -> list[Job]:
    """The runs that replay others, which have ended, as far as these can be replayed."""
    paths = {(run.entry, run.seed): path for run, path in done}
    seeds = part.study.config.seeds
    jobs = []
    for learner in part.study.learners:
        replays = learner.entry.replays
        if replays is None:
            continue
        replayed = seeds[1:] + seeds[:1] if replays.seed == "next" else seeds
        for seed, of_seed in zip(seeds, replayed, strict=True):
            try:
                replay = learner.resolve({"trajectory": str(paths[replays.learner, of_seed])})
            except ConfigError as error:
                part.consequences.append(f"'{learner.label}' was not run on seed {seed}: {error}")
            else:
                jobs.append(part.job(learner.run(seed, replay)))
    return jobs


def average_score(path: Path) -> float:
    """Average online accuracy of a run that finished, of a regression minus its mean loss; the least if it diverged.

    Raises:
        OSError, ValueError, KeyError: its record cannot be read.
    """
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


def _interrupt(thread: int) -> None:
    """Raise ``KeyboardInterrupt`` in a thread, also where Ctrl-C is ignored, as in a shell's background."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))


def _say(text: str) -> None:
    print(for_terminal(text), file=sys.stderr, flush=True)
