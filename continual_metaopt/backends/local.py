"""Runs on this machine, several at a time, in processes or threads."""

import json
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from continual_metaopt.config import Component, RunConfig
from continual_metaopt.jobs import Job, RunsFailed, StudyInterrupted, title
from continual_metaopt.progress import ProgressDisplay
from continual_metaopt.recording import RunDirectory, read_json
from continual_metaopt.under_way import earlier_state, fail, reason_of

if TYPE_CHECKING:
    from continual_metaopt.compiled_run import PreparedRun

SIDE_BY_SIDE = ("metaoptimize", "fixed")  # learners that the population engine knows
FREE_IN_POPULATION = ("lr", "meta_lr", "gamma", "weight_decay", "lr_bounds")  # options that may differ within it


class LocalPool:
    """Workers that do runs, with progress, and an orderly end at Ctrl-C.

    A thread for each of ``n_workers`` takes one task after the other. It does the runs itself if they are to be in
    threads; otherwise it prepares them and hands them to a process: one that has not imported torch if compiled code
    can do the run.
    """

    def __init__(
        self,
        workers: int | None,
        n_runs: int,
        show_progress: bool,
        side_by_side: bool = False,
        threads: bool = False,
    ) -> None:
        self._side_by_side = side_by_side
        n_workers = max(1, min(workers or n_processors(), n_runs))
        self._threads = ThreadPoolExecutor(n_workers, initializer=_leave_ctrl_c_to_others)
        self._compiled: Executor | None = None
        self._torch: Executor | None = None
        if threads:
            self._stop: Any = threading.Event()
            self._messages: Any = queue.Queue()
            _worker.update(messages=self._messages, stop=self._stop)
        else:
            plain = multiprocessing.get_context("spawn")
            self._stop, self._messages = plain.Event(), plain.Queue()
            self._compiled, self._torch = (
                ProcessPoolExecutor(
                    n_workers, mp_context=context, initializer=_start_worker, initargs=(self._messages, self._stop)
                )
                for context in (plain, _torch_context())
            )
        self._display = ProgressDisplay(n_runs, self._messages, show_progress)

    def __enter__(self) -> "LocalPool":
        self._display.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for executor in (self._threads, self._compiled, self._torch):
            if executor is not None:
                executor.shutdown(wait=True, cancel_futures=True)
        self._display.stop()

    def run(self, jobs: Sequence[Job], stage: str) -> None:
        """Do runs; returns when all have ended."""
        self._display.stage(stage)
        tasks = _alike(jobs) if self._side_by_side else [[job] for job in jobs]
        futures = {self._threads.submit(self._do, task): task for task in tasks}
        try:
            self._wait(futures)
        except KeyboardInterrupt:
            self._display.note("stopping: finishing the records of the runs under way …")
            self._stop.set()
            self._threads.shutdown(wait=True, cancel_futures=True)
            raise StudyInterrupted from None
        failures: dict[str, list[Path]] = {}
        for future, task in futures.items():
            for number, (_, path) in enumerate(task):
                reason = _failure(future, number, path)
                if reason is not None:
                    failures.setdefault(reason, []).append(path)
        if failures:
            raise RunsFailed(describe_failures(failures, len(jobs)))

    def _do(self, task: list[Job]) -> list[str]:
        """Do one run, or several side by side; returns the states in which they ended."""
        first, path = task[0]
        name = title(first)
        if len(task) > 1:
            name += f", and {len(task) - 1} others"
            states: list[str] = self._work(self._torch, name, _side_by_side, task)
            return states
        if self._torch is None:
            return [self._work(None, name, _in_this_process, first, path)]
        state = earlier_state(path, first)
        if state is None:
            try:
                prepared = _prepare(first, path)
            except Exception as error:
                return [fail(RunDirectory(path), error)]
            if prepared is not None:
                state = self._work(self._compiled, name, _by_compiled_code, prepared, path)
            else:
                state = self._work(self._torch, name, _by_torch, first, path)
        return [state]

    def _work(self, executor: Executor | None, name: str, do: Callable[..., Any], *arguments: Any) -> Any:
        """Do what ``do`` does in a process of an executor, or here without one; returns what it returns."""
        if self._stop.is_set():
            raise StudyInterrupted
        if executor is None:
            return _work(name, do, *arguments)
        return executor.submit(_work, name, do, *arguments).result()

    def _wait(self, futures: dict[Future[list[str]], list[Job]]) -> None:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            self._display.update(n_ended=sum(len(futures[future]) for future in done))


def _torch_context() -> Any:
    """How workers that need torch are started: where that is safe, as copies of a process that has imported everything.

    They start at once then, and share the memory that the imports have filled. Those that do without torch import
    little, and are started one by one.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["continual_metaopt.running"])
    return context


def _leave_ctrl_c_to_others() -> None:
    """Keep Ctrl-C from this thread, and from the processes that it starts; the main thread decides what it means."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def n_processors() -> int:
    """Processors that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_failures(failures: dict[str, list[Path]], n_runs: int) -> str:
    """Which of a number of runs failed, by reason."""
    lines = [f"{sum(map(len, failures.values()))} of {n_runs} runs failed:"]
    for reason, paths in failures.items():
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        lines.append(f"{paths[0]}{others}: {reason}")
    return "\n".join(lines)


def _alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """Runs grouped so that those of a group can learn side by side: the same update rules, with any numbers in them."""
    groups: dict[str, list[Job]] = {}
    for number, job in enumerate(jobs):
        learner = job[0].learner
        if learner.name not in SIDE_BY_SIDE or not _is_plain(learner):
            groups[str(number)] = [job]
            continue
        rules = {name: value for name, value in learner.options.items() if name not in FREE_IN_POPULATION}
        groups.setdefault(f"{learner.name} {json.dumps(rules, sort_keys=True)}", []).append(job)
    return list(groups.values())


def _is_plain(learner: Component) -> bool:
    """Whether a learner has one log step size per block and one trace, as the population engine does."""
    from torch import nn

    from continual_metaopt.optim.registry import learner_factory

    options = learner.options
    if not isinstance(options.get("step_sizes", ""), str):
        options["step_sizes"] = "scalar"  # in place of prefixes of the real network's names
    return learner_factory(learner.name)(nn.Linear(1, 1), **options).why_not_plain() is None


def _failure(future: "Future[list[str]]", number: int, path: Path) -> str | None:
    """Why a run failed, given the place of its state in the result; None if it did not."""
    try:
        if future.result()[number] != "failed":
            return None
    except BrokenProcessPool:
        return "its process was killed, perhaps for lack of memory; the same command goes on from its last checkpoint"
    except Exception as error:
        return reason_of(error)
    return str(read_json(path / "status.json")["reason"])


_worker: dict[str, Any] = {}


def _start_worker(messages: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides what Ctrl-C means
    _worker.update(messages=messages, stop=stop, at_work=threading.Lock())
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _end_with_the_main_process() -> None:
    """End this worker when the main process is no more, but not in the middle of a run, which ends it by itself.

    A worker that waits for its next run would otherwise wait forever.
    """
    main_process = multiprocessing.parent_process()
    if main_process is not None:
        multiprocessing.connection.wait([main_process.sentinel])
        with _worker["at_work"]:
            os._exit(1)


def _work(name: str, do: Callable[..., Any], *arguments: Any) -> Any:
    """Do what ``do`` does, and tell the main process meanwhile how far ``name`` is."""
    messages, stop = _worker["messages"], _worker["stop"]

    def should_stop() -> bool:
        return bool(stop.is_set()) or not _main_process_lives()

    def tell(done: int, total: int) -> None:
        messages.put((name, done, total))

    with _worker.get("at_work", nullcontext()):
        try:
            return do(*arguments, tell, should_stop)
        finally:
            if not _main_process_lives():
                os._exit(1)  # nobody waits for the result, and the queues to the main process would block
            messages.put((name, None, None))


# What is imported here is imported by the process or thread that needs it


def _prepare(config: RunConfig, path: Path) -> "PreparedRun | None":
    from continual_metaopt.preparing import prepare

    return prepare(config, path)


def _by_compiled_code(prepared: "PreparedRun", path: Path, tell: Any, should_stop: Any) -> str:
    from continual_metaopt.compiled_run import run_compiled

    return run_compiled(prepared, path, tell, should_stop)


def _by_torch(config: RunConfig, path: Path, tell: Any, should_stop: Any) -> str:
    from continual_metaopt.running import run_by_torch

    return run_by_torch(config, path, tell, should_stop)


def _in_this_process(config: RunConfig, path: Path, tell: Any, should_stop: Any) -> str:
    from continual_metaopt.running import run_one

    return run_one(config, path, tell, should_stop)


def _side_by_side(jobs: list[Job], tell: Any, should_stop: Any) -> list[str]:
    from continual_metaopt.population import run_population

    configs, paths = zip(*jobs, strict=True)
    return run_population(configs, paths, configs[0].device, tell, should_stop)


def _main_process_lives() -> bool:
    main_process = multiprocessing.parent_process()
    return main_process is None or main_process.is_alive()
