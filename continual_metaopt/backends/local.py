"""Runs on this machine, several at a time, in processes or threads."""

import json
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from continual_metaopt.config import Component, RunConfig
from continual_metaopt.in_use import alone_in
from continual_metaopt.jobs import Job, RunsFailed, StudyInterrupted, title
from continual_metaopt.planning import n_done_before, n_samples_of
from continual_metaopt.progress import ProgressDisplay
from continual_metaopt.recording import RunDirectory, read_json
from continual_metaopt.under_way import Interrupted, ShouldStop, earlier_state, fail, reason_of

if TYPE_CHECKING:
    from continual_metaopt.compiled_run import PreparedRun

SIDE_BY_SIDE = ("metaoptimize", "fixed")  # learners that the population engine knows
FREE_IN_POPULATION = ("lr", "meta_lr", "gamma", "weight_decay", "lr_bounds")  # options that may differ within it
SECONDS_BETWEEN_LOOKS = 0.2  # at what runs have told
KILLED = "its process was killed twice, perhaps for lack of memory; it can go on from its last checkpoint"


class LocalPool:
    """Workers that do runs, with progress, and an orderly end at Ctrl-C.

    A thread for each of ``n_workers`` takes one task after the other. It does the runs itself if they are to be in
    threads; otherwise it prepares them and hands them to a process: one that has not imported torch if compiled code
    can do the run. Each thread has processes of its own, so that one that is killed takes no other's run with it: its
    run goes on once, from its last checkpoint, in a new process.

    Args:
        workers: runs at a time; None for one per processor.
        n_runs: number of runs, of all calls of ``run`` together.
        show_progress: draw progress bars with the time left.
        side_by_side: let runs of equal networks learn in one batched computation.
        threads: do the runs in threads of this process.
        n_samples: samples of all runs together, by which progress is measured.
    """

    def __init__(
        self,
        workers: int | None,
        n_runs: int,
        show_progress: bool,
        side_by_side: bool = False,
        threads: bool = False,
        n_samples: int = 0,
    ) -> None:
        self._side_by_side, self._in_threads = side_by_side, threads
        self._threads = ThreadPoolExecutor(
            max(1, min(workers or n_processors(), n_runs)), initializer=_leave_ctrl_c_to_others
        )
        self._messages: queue.Queue[Any] = queue.Queue()
        self._stop: Any = threading.Event() if threads else _SharedFlag()
        self._of_thread = threading.local()
        self._processes: list[_Process] = []
        if threads:
            _worker.update(messages=self._messages, stop=self._stop)
        self._display = ProgressDisplay(n_runs, self._messages, show_progress, n_samples)

    def __enter__(self) -> "LocalPool":
        self._display.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.end()
        self._display.stop()

    def run(self, jobs: Sequence[Job], stage: str) -> None:
        """Do runs; returns when all have ended.

        Raises:
            StudyInterrupted: after Ctrl-C; nothing recorded is lost.
            RunsFailed: some runs failed; the others have been run.
        """
        self._display.stage(stage)
        tasks = _alike(jobs) if self._side_by_side else [[job] for job in jobs]
        tasks.sort(key=_n_done, reverse=True)  # so that what has been done is counted before the time left is told
        futures = {self._threads.submit(self._do, task): task for task in tasks}
        try:
            self._wait(futures)
        except KeyboardInterrupt:
            self._display.note("stopping: finishing the records of the runs under way …")
            self._stop.set()
            self._threads.shutdown(wait=True, cancel_futures=True)
            raise StudyInterrupted from None
        failures = {
            path: reason
            for future, task in futures.items()
            for number, (_, path) in enumerate(task)
            if (reason := _failure(future, number, path)) is not None
        }
        if failures:
            raise RunsFailed(failures, len(jobs))

    def _do(self, task: list[Job]) -> list[str]:
        """Do one run, or several side by side; returns the states in which they ended."""
        self._display.add_earlier(_n_done(task))
        try:
            return self._try(task)
        except BrokenProcessPool:
            self._display.note(f"{_name(task)}: its process was killed; a new one goes on from the last checkpoint")
        try:
            return self._try(task)
        except BrokenProcessPool:
            for _, path in task:
                RunDirectory(path).finish("failed", KILLED, None, keep_parts=True)
            return ["failed"] * len(task)

    def _try(self, task: list[Job]) -> list[str]:
        first, path = task[0]
        if len(task) > 1:
            states: list[str] = self._work("torch", task, _side_by_side, task)
            return states
        if self._in_threads:
            return [self._work("thread", task, _in_this_process, first, path)]
        with alone_in(path, self._stop.is_set):
            state = earlier_state(path, first)
            if state is not None:
                return [state]
            try:
                prepared = _prepare(first, path)
            except Exception as error:
                return [fail(RunDirectory(path), error)]
        if prepared is not None:
            return [self._work("compiled", task, _by_compiled_code, prepared, path)]
        return [self._work("torch", task, _by_torch, first, path)]

    def _work(self, kind: str, task: list[Job], do: Callable[..., Any], *arguments: Any) -> Any:
        """Do what ``do`` does in this thread's process of a kind, or in the thread itself; returns what it returns."""
        if self._stop.is_set():
            raise StudyInterrupted
        if self._in_threads:
            return _work(_name(task), do, *arguments)
        process = getattr(self._of_thread, kind, None)
        if process is None:
            process = _Process(_torch_context() if kind == "torch" else _plain_context(), self._stop)
            setattr(self._of_thread, kind, process)
            self._processes.append(process)
        return process.do(_work, _name(task), do, *arguments)

    def _wait(self, futures: dict[Future[list[str]], list[Job]]) -> None:
        ended: queue.SimpleQueue[Future[list[str]]] = queue.SimpleQueue()
        for future in futures:
            future.add_done_callback(ended.put)  # waiting for all of thousands would look at each, again and again
        n_left = len(futures)
        while n_left:
            done = _those_there(ended, SECONDS_BETWEEN_LOOKS)
            n_left -= len(done)
            for process in list(self._processes):
                process.hand_over(self._messages)
            configs = [config for future in done for config, _ in futures[future]]
            self._display.update(len(configs), sum(map(n_samples_of, configs)))


def _those_there(ended: "queue.SimpleQueue[Future[list[str]]]", seconds: float) -> "list[Future[list[str]]]":
    """All that is in a queue; if there is nothing, what comes within so many seconds."""
    there = []
    with suppress(queue.Empty):
        there.append(ended.get(timeout=seconds))
        while True:
            there.append(ended.get_nowait())
    return there


class _Process:
    """A process that does one thing after the other; started when first needed, and anew after it was killed.

    Its messages have a queue of their own: a process that is killed while it writes one keeps the queue locked.
    """

    def __init__(self, context: Any, stop: "_SharedFlag") -> None:
        self._context, self._stop = context, stop
        self._executor: Executor | None = None
        self._messages: Any = None

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function there.

        Raises:
            BrokenProcessPool: the process was killed.
        """
        if self._executor is None:
            self._messages = self._context.Queue()
            self._executor = ProcessPoolExecutor(
                1, mp_context=self._context, initializer=_start_worker, initargs=(self._messages, self._stop)
            )
        try:
            return self._executor.submit(function, *arguments).result()
        except BrokenProcessPool:
            self.end()
            raise

    def hand_over(self, messages: "queue.Queue[Any]") -> None:
        """Move what the process has told to another queue."""
        while self._messages is not None:
            try:
                messages.put(self._messages.get_nowait())
            except (queue.Empty, OSError, ValueError):
                break

    def end(self) -> None:
        """Let the process end."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


class _SharedFlag:
    """An event that processes share without a lock, which a process that is killed could keep."""

    def __init__(self) -> None:
        self._value: Any = _plain_context().RawValue("b", 0)

    def set(self) -> None:
        self._value.value = 1

    def is_set(self) -> bool:
        return bool(self._value.value)


def _plain_context() -> Any:
    return multiprocessing.get_context("spawn")


def _name(task: list[Job]) -> str:
    """What progress calls a run, or several side by side."""
    name = title(task[0][0])
    return name if len(task) == 1 else f"{name}, and {len(task) - 1} others"


def _torch_context() -> Any:
    """How workers that need torch are started: where that is safe, as copies of a process that has imported everything.

    They start at once then, and share the memory that the imports have filled. Those that do without torch import
    little, and are started one by one.
    """
    if not sys.platform.startswith("linux"):
        return _plain_context()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["continual_metaopt.running"])
    return context


def _leave_ctrl_c_to_others() -> None:
    """Keep Ctrl-C from this thread, and from the processes that it starts; the main thread decides what it means."""
    if hasattr(signal, "pthread_sigmask"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # which lets Ctrl-C come to the thread that starts it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def n_processors() -> int:
    """Processors that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _n_done(task: list[Job]) -> int:
    """Samples that earlier attempts at runs have learned from."""
    return sum(n_done_before(path, config) for config, path in task)


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


@contextmanager
def _alone(path: Path, should_stop: ShouldStop) -> Iterator[None]:
    """Let nobody else work on a run, nor this worker if it is to stop.

    The next command may have begun since the main process was killed, and wait for its turn.
    """
    with alone_in(path, should_stop):
        if should_stop():
            raise Interrupted
        yield


# What is imported here is imported by the process or thread that needs it


def _prepare(config: RunConfig, path: Path) -> "PreparedRun | None":
    from continual_metaopt.preparing import prepare

    return prepare(config, path)


def _by_compiled_code(prepared: "PreparedRun", path: Path, tell: Any, should_stop: Any) -> str:
    from continual_metaopt.compiled_run import run_compiled

    with _alone(path, should_stop):
        return earlier_state(path, prepared.config) or run_compiled(prepared, path, tell, should_stop)


def _by_torch(config: RunConfig, path: Path, tell: Any, should_stop: Any) -> str:
    from continual_metaopt.running import run_by_torch

    with _alone(path, should_stop):
        return earlier_state(path, config) or run_by_torch(config, path, tell, should_stop)


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
