"""Runs by SLURM's array jobs, which write them into the study's folder; all machines must share it.

A task of an array does some of the runs, one after the other. Whatever ends it, its runs are on disk up to their last
checkpoint. At its time limit, a task saves the run under way and is put in the queue again. The command that submitted
the jobs waits for them; given once more, it waits for those that are still in the queue, and submits what is missing.
"""

import math
import os
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal

from continual_metaopt.analysis.extras import how_to_install
from continual_metaopt.analysis.files import real_folder
from continual_metaopt.analysis.run_directory import ENDED
from continual_metaopt.runs.files import read_json, write_json
from continual_metaopt.runs.outcome import earlier_state, reason_of
from continual_metaopt.runs.run import run_one, why_it_failed
from continual_metaopt.study.jobs import BackendError, Job, RunsFailed, StudyInterrupted
from continual_metaopt.study.progress import ProgressDisplay

FOLDER = "slurm"  # of what is submitted, logs, and the list of jobs
DEFAULTS: dict[str, Any] = {"time": 240, "mem": "2GB", "cpus_per_task": 1, "job_name": "continual-metaopt"}
MOST_TASKS = 1000  # SLURM's usual limit for an array
TIME_LIMITS = 1000  # that a task may meet; it goes on each time
SECONDS_BETWEEN_LOOKS = 10.0
SECONDS_FOR_FILES = 30.0  # until what another machine has written is seen here
SECONDS_TO_SAVE = 60.0
SECONDS_BETWEEN_SIGNALS = 0.2  # until one is seen

Options = Mapping[str, str | int]


def array_options(given: Sequence[str]) -> dict[str, str | int]:
    """Read options of the command line, ``KEY=VALUE`` each.

    Raises:
        BackendError: one has no key or no value.

    Example:
        >>> array_options(["partition=short", "cpus-per-task=2"])
        {'partition': 'short', 'cpus_per_task': 2}
    """
    options: dict[str, str | int] = {}
    for option in given:
        key, _, value = option.partition("=")
        if not key or not value:
            raise BackendError(f"--slurm {option}: give options as KEY=VALUE, such as partition=short or time=60")
        options[key.replace("-", "_")] = int(value) if value.isdecimal() else value
    return options


class ArrayJobs:
    """Do runs by SLURM's array jobs, with progress.

    Args:
        options: ``runs_per_task``, and whatever submitit's ``SlurmExecutor`` takes, such as partition, time (minutes),
            mem, account, qos; see ``DEFAULTS``.
        workers: tasks at a time; None for as many as SLURM allows.
        n_runs: number of runs in all.
        show_progress: whether to draw a bar.
        folder: of the study, on a file system that all machines share.
        cluster: "local" for submitit's processes on this machine.

    Raises:
        BackendError: submitit is not installed, or this machine cannot submit jobs.
        ValueError: an option is unknown.
    """

    def __init__(
        self,
        options: Options,
        workers: int | None,
        n_runs: int,
        show_progress: bool,
        folder: Path,
        cluster: Literal["slurm", "local"] = "slurm",
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise BackendError(
                f"the backend slurm needs the package submitit: {how_to_install('slurm')}, or use --backend local"
            ) from error
        self._folder = real_folder(folder.absolute() / FOLDER)
        settings = DEFAULTS | dict(options)
        if workers:
            settings["array_parallelism"] = workers
        self._runs_per_task = int(settings.pop("runs_per_task", 0))
        self._queue = _slurm_queue if cluster == "slurm" else self._local_queue
        if cluster == "slurm":
            try:
                self._executor: Any = submitit.SlurmExecutor(self._folder, max_num_timeout=TIME_LIMITS)
            except RuntimeError as error:
                raise BackendError(
                    "SLURM's commands are not on this machine; give this command on a machine that submits jobs"
                ) from error
            self._executor.update_parameters(**settings)
        else:
            self._executor = submitit.LocalExecutor(self._folder, max_num_timeout=TIME_LIMITS)
            self._executor.update_parameters(timeout_min=settings["time"])
        self._local_jobs: list[Any] = []
        self._display = ProgressDisplay(n_runs, SimpleQueue(), show_progress)

    def __enter__(self) -> "ArrayJobs":
        self._display.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._display.stop()

    def run(self, jobs: Sequence[Job], stage: str) -> None:
        """Do runs, as ``Pool.run`` says; after Ctrl-C the array jobs go on, and the same command waits for them."""
        self._display.stage(stage)
        failures: dict[Path, str] = {}
        missing = []
        for config, path in jobs:
            try:
                if earlier_state(path, config) is None:
                    missing.append((config, path))
            except Exception as error:  # another run's directory, or a damaged one
                failures[path] = reason_of(error)
        self._display.update(n_ended=len(jobs) - len(missing))
        tasks = self._in_queue(missing)
        known = {path for task in tasks.values() for _, path in task}
        tasks |= self._submit([job for job in missing if job[1] not in known])
        try:
            self._wait(tasks)
        except KeyboardInterrupt:
            arrays = dict.fromkeys(task.partition("_")[0] for task in tasks)
            self._display.note(f"SLURM goes on with the runs; to end them too: scancel {' '.join(arrays)}")
            raise StudyInterrupted from None
        for _, path in missing:
            status = _status(path)
            if status.get("state") not in ENDED:
                reason = str(status.get("reason") or f"its array task was lost; its log is in '{self._folder}'")
                failures[path] = reason
        if failures:
            raise RunsFailed(failures, len(jobs))

    @property
    def _list(self) -> Path:
        return self._folder / "submitted.json"

    def _in_queue(self, jobs: Sequence[Job]) -> dict[str, list[Job]]:
        """Find the runs of array tasks that an earlier command submitted, and that have not ended."""
        if not self._list.exists():
            return {}
        by_path = {str(path.absolute()): (config, path) for config, path in jobs}
        queue = self._queue()
        if queue is None:
            raise BackendError(
                "SLURM does not tell whether earlier jobs of this study are in its queue; try again later"
            )
        submitted = {task: paths for task, paths in read_json(self._list).items() if task in queue}
        found = {task: [by_path[path] for path in paths if path in by_path] for task, paths in submitted.items()}
        return {task: runs for task, runs in found.items() if runs}

    def _submit(self, jobs: Sequence[Job]) -> dict[str, list[Job]]:
        """Submit runs; returns those of each array task, by its number in the queue."""
        tasks: dict[str, list[Job]] = {}
        n = self._runs_per_task or math.ceil(len(jobs) / MOST_TASKS)
        portions = [Portion(jobs[i : i + n]) for i in range(0, len(jobs), max(n, 1))]
        self._folder.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(portions), MOST_TASKS):
            some = portions[first : first + MOST_TASKS]
            try:
                with self._executor.batch():
                    submitted = [self._executor.submit(portion) for portion in some]
            except Exception as error:  # sbatch's message, as submitit gives it
                raise BackendError(f"SLURM did not take the array job: {error}") from error
            tasks |= {job.job_id: portion.jobs for job, portion in zip(submitted, some, strict=True)}
            self._local_jobs += submitted
            earlier = read_json(self._list) if self._list.exists() else {}
            paths = {task: [str(path.absolute()) for _, path in runs] for task, runs in tasks.items()}
            write_json(self._list, earlier | paths)
        return tasks

    def _wait(self, tasks: Mapping[str, Sequence[Job]]) -> None:
        """Wait until no task is in the queue, and all that they have written can be seen."""
        left, n_ended = dict(tasks), dict.fromkeys(tasks, 0)
        while left:
            queue = self._queue()
            for task, runs in list(left.items()):
                before = n_ended[task]
                while n_ended[task] < len(runs) and _status(runs[n_ended[task]][1]).get("state") in ENDED:
                    n_ended[task] += 1
                if queue is not None and task not in queue:
                    n_ended[task] = len(runs)
                    del left[task]
                self._display.update(n_ended=n_ended[task] - before)
            if left:
                time.sleep(SECONDS_BETWEEN_LOOKS)
        deadline = time.monotonic() + SECONDS_FOR_FILES
        paths = [path for runs in tasks.values() for _, path in runs]
        while time.monotonic() < deadline and any(_status(path).get("state", "running") == "running" for path in paths):
            time.sleep(1.0)

    def _local_queue(self) -> Collection[str]:
        return {job.job_id for job in self._local_jobs if not job.done()}


class Portion:
    """Do some runs one after the other, as a task of an array."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = [(config, path.absolute()) for config, path in jobs]
        self._working_folder = str(Path.cwd())

    def __call__(self) -> None:
        """Do the runs; a failure is in the run's status."""
        os.chdir(self._working_folder)
        self._stopping = False
        # In a thread, so that this one can take SLURM's signals; it sleeps, since a lock may not be taken twice
        self._thread = threading.Thread(target=self._do, daemon=True)
        self._thread.start()
        while self._thread.is_alive():
            time.sleep(SECONDS_BETWEEN_SIGNALS)

    def checkpoint(self) -> Any:
        """Save the run under way; returns what is to be put in the queue again. Called by submitit at a signal."""
        from submitit.helpers import DelayedSubmission

        self._stopping = True
        deadline = time.monotonic() + SECONDS_TO_SAVE
        while self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_SIGNALS)
        return DelayedSubmission(Portion(self.jobs))

    def _do(self) -> None:
        for config, path in self.jobs:
            if self._stopping:
                return
            failure = why_it_failed(path, partial(run_one, config, path, should_stop=lambda: self._stopping))
            if failure is not None:
                print(f"{path}: {failure}", flush=True)


def _status(path: Path) -> dict[str, Any]:
    """Read status.json; nothing if it is not there."""
    return read_json(path / "status.json") if (path / "status.json").exists() else {}


def _slurm_queue() -> set[str] | None:
    """List this user's array tasks, waiting or running, as ARRAY_INDEX or JOB; None if SLURM does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%F %K"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    numbers = [line.split() for line in answer.splitlines() if line.strip()]
    return {job if index == "N/A" else f"{job}_{index}" for job, index in numbers}
