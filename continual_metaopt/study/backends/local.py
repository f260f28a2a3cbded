"""Runs on this machine, several at a time, in processes or threads."""

import errno
import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import resource_tracker, spawn, util
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.outcome import reason_of
from continual_metaopt.runs.run import execute_run, prepare_run, run_one, why_it_failed
from continual_metaopt.study.jobs import Job, RunsFailed, StudyInterrupted, title
from continual_metaopt.study.lengths import n_done_before, n_samples_of
from continual_metaopt.study.progress import ProgressDisplay
from continual_metaopt.study.signals import TO_STOP

SECONDS_BETWEEN_LOOKS = 0.2  # at what runs have told
FROM_CHECKPOINT = "it can go on from its last checkpoint"
KILLED = f"its process was killed twice, perhaps for lack of memory; {FROM_CHECKPOINT}"
LONGEST_SOCKET = 100  # bytes of the path of a socket that every system allows
NOT_IN_A_WORKER = (
    "runs are to be done while this script is imported, which each of their processes does too; put what does them "
    "below `if __name__ == '__main__':`, or do them in threads (threads=True)"
)


class WorkerEnded(Exception):
    """A worker's process ended before its work was done; the message is the reason for its run's status.

    ``is_final`` tells whether a new process would end in the same way.
    """

    def __init__(self, reason: str, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


class LocalPool:
    """Do runs on this machine, several at a time, with progress and an orderly end at Ctrl-C.

    A thread for each of ``workers`` takes one run after the other. It does the runs itself if they are to be in
    threads; otherwise it prepares them and hands them to a process: one that has not imported torch if compiled code
    can do the run. Each thread has processes of its own, so that one that is killed takes no other's run with it: its
    run goes on once, from its last checkpoint, in a new process.

    Args:
        workers: runs at a time; None for one per processor.
        n_runs: number of runs, of all calls of ``run`` together.
        show_progress: draw progress bars with the time left.
        threads: do the runs in threads of this process.
        n_samples: samples of all runs together, by which progress is measured.
    """

    def __init__(
        self,
        workers: int | None,
        n_runs: int,
        show_progress: bool,
        threads: bool = False,
        n_samples: int = 0,
    ) -> None:
        self._in_threads = threads
        self._threads = ThreadPoolExecutor(
            max(1, min(workers or n_processors(), n_runs)), initializer=_leave_ctrl_c_to_others
        )
        self._messages: queue.Queue[Any] = queue.Queue()
        if not threads:
            require_no_worker()
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
        try:
            self._threads.shutdown(wait=True, cancel_futures=True)
        finally:
            for process in self._processes:
                process.ask_to_end()
            for process in self._processes:
                process.end()
            self._display.stop()

    def run(self, jobs: Sequence[Job], stage: str) -> None:
        """Do runs, as ``Pool.run`` says."""
        self._display.stage(stage)
        for _, path in jobs:
            path.parent.mkdir(parents=True, exist_ok=True)
        # what has been done is counted before the time left is told
        futures = {self._threads.submit(self._do, job): job for job in sorted(jobs, key=n_done_before, reverse=True)}
        try:
            self._wait(futures)
        except KeyboardInterrupt:
            self._stop.set()
            self._display.note("stopping: finishing the records of the runs under way …")
            self._threads.shutdown(wait=True, cancel_futures=True)
            raise StudyInterrupted from None
        failures = {
            path: reason
            for future, (_, path) in futures.items()
            if (reason := why_it_failed(path, future.result)) is not None
        }
        if failures:
            raise RunsFailed(failures, len(jobs))

    def _do(self, job: Job) -> str:
        """Do a run; returns the state in which it ended."""
        self._display.add_earlier(n_done_before(job))
        try:
            return self._try(job)
        except WorkerEnded as ended:
            if ended.is_final:
                return _fail(job, ended)
            self._display.note(f"{title(job[0])}: its process ended; a new one goes on from the last checkpoint")
        try:
            return self._try(job)
        except WorkerEnded as ended:
            return _fail(job, ended)

    def _try(self, job: Job) -> str:
        config, path = job
        if not path.parent.is_dir():  # which the run would make anew
            raise FileNotFoundError(errno.ENOENT, "The runs' folder was moved or removed", str(path.parent))
        if self._in_threads:
            return self._work("thread", config, run_one, config, path)
        prepared = prepare_run(config, path, self._stop.is_set)
        if isinstance(prepared, str):
            return prepared
        return self._work("torch" if prepared is None else "compiled", config, execute_run, config, prepared, path)

    def _work(self, kind: str, config: RunConfig, do: Callable[..., str], *arguments: Any) -> str:
        """Do what ``do`` does in this thread's process of a kind, or in the thread itself; returns what it returns."""
        if self._stop.is_set():
            raise StudyInterrupted
        if self._in_threads:
            return _work(title(config), do, *arguments)
        process = getattr(self._of_thread, kind, None)
        if process is None:
            process = _Process(_torch_context() if kind == "torch" else _plain_context(), self._stop, self._messages)
            setattr(self._of_thread, kind, process)
            self._processes.append(process)
        state: str = process.do(_work, title(config), do, *arguments)
        return state

    def _wait(self, futures: dict[Future[str], Job]) -> None:
        ended: queue.SimpleQueue[Future[str]] = queue.SimpleQueue()
        for future in futures:
            future.add_done_callback(ended.put)  # waiting for all of thousands would look at each, again and again
        n_left = len(futures)
        while n_left:
            done = _those_there(ended, SECONDS_BETWEEN_LOOKS)
            n_left -= len(done)
            self._display.update(len(done), sum(n_samples_of(futures[future][0]) for future in done))


def _those_there(ended: "queue.SimpleQueue[Future[str]]", seconds: float) -> "list[Future[str]]":
    """Take all that is in a queue; if there is nothing, what comes within so many seconds."""
    there = []
    with suppress(queue.Empty):
        there.append(ended.get(timeout=seconds))
        while True:
            there.append(ended.get_nowait())
    return there


class _Process:
    """Let a process do one thing after the other; it is started when first needed, and anew after it was killed.

    It is given work, tells how far it is, and answers through a pipe, which needs no locks that the system may lack, or
    that a process that is killed could keep.
    """

    def __init__(self, context: Any, stop: "_SharedFlag", messages: "queue.Queue[Any]") -> None:
        self._context, self._stop, self._messages = context, stop, messages
        self._process: Any = None
        self._connection: Any = None

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function there.

        Raises:
            WorkerEnded: the process ended instead.
        """
        try:
            if self._process is None:
                self._start()
            self._connection.send((function, arguments))
            while (answer := self._connection.recv())[0] == TOLD:
                self._messages.put(answer[1])
        except (EOFError, ConnectionError):
            process = self._process
            self.end()
            raise _why_it_ended(process.exitcode if process is not None else None) from None
        outcome, content = answer
        if outcome == RAISED:
            raise content
        return content

    def _start(self) -> None:
        connection, others_end = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(others_end, self._stop))
        with others_end:
            try:
                process.start()
            except BaseException:
                connection.close()
                raise
        self._process, self._connection = process, connection

    def ask_to_end(self) -> None:
        """Let the process end when it has done its work."""
        if self._process is not None:
            self._connection.close()

    def end(self) -> None:
        """Let the process end, and wait for that."""
        self.ask_to_end()
        if self._process is not None:
            self._process.join()
            self._process = None


TOLD, RETURNED, RAISED = range(3)  # what a worker sends: how far it is, or what its work has led to


def _why_it_ended(status: int | None) -> WorkerEnded:
    """Say why a process ended, given its exit status; None if it could not be started."""
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return WorkerEnded(KILLED if name == "SIGKILL" else f"its process was ended twice by {name}; {FROM_CHECKPOINT}")
    error = _error_at_start()
    if error is not None:
        return WorkerEnded(f"its process could not begin ({error})", is_final=True)
    return WorkerEnded(f"its process ended twice, with status {status}; {FROM_CHECKPOINT}")


PROBE = """
import pickle, sys, multiprocessing.process, multiprocessing.spawn
multiprocessing.process.current_process()._inheriting = True
try:
    multiprocessing.spawn.prepare(pickle.load(sys.stdin.buffer))
    import continual_metaopt.study.backends.local
    import continual_metaopt.runs.compiled_run, continual_metaopt.runs.learner_run
except BaseException as error:
    sys.stdout.buffer.write(b"\\0" + f"{type(error).__name__}: {error}".encode())
"""


def _error_at_start() -> str | None:
    """Find what a process like a worker raises while it imports what workers import; None if nothing."""
    begin = {name: value for name, value in spawn.get_preparation_data("worker").items() if name != "authkey"}
    done = subprocess.run([sys.executable, "-c", PROBE], input=pickle.dumps(begin), capture_output=True, check=False)
    said = done.stdout.rpartition(b"\0")
    return said[2].decode() if said[1] else None


def require_no_worker() -> None:
    """Refuse to begin runs in a process that has itself been started to do runs, and imports the user's script.

    Raises:
        RuntimeError: this is such a process.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(NOT_IN_A_WORKER)


class _SharedFlag:
    """Share an event between processes without a lock or shared memory, by closing the other end of a pipe."""

    def __init__(self) -> None:
        self._is_set, self._not_set = multiprocessing.Pipe(duplex=False)

    def set(self) -> None:
        self._not_set.close()

    def is_set(self) -> bool:
        return self._is_set.poll()

    def __getstate__(self) -> dict[str, Any]:
        return {"_is_set": self._is_set}


def _plain_context() -> Any:
    return multiprocessing.get_context("spawn")


def _torch_context() -> Any:
    """Start workers that need torch as copies of a process that has imported everything, where that is safe.

    They start at once then, and share the memory that the imports have filled. Those that do without torch import
    little, and are started one by one.
    """
    socket = Path(util.get_temp_dir()) / "listener-12345678"  # by which it is told what to start
    if not sys.platform.startswith("linux") or len(os.fsencode(socket)) > LONGEST_SOCKET:
        return _plain_context()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["continual_metaopt.study.backends.preloaded"])
    return context


def _leave_ctrl_c_to_others() -> None:
    """Keep Ctrl-C from this thread, and from the processes that it starts; the main thread decides what it means."""
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # which lets Ctrl-C come to the thread that starts it
        signal.pthread_sigmask(signal.SIG_BLOCK, TO_STOP)


def n_processors() -> int:
    """Count the processors that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fail(job: Job, ended: WorkerEnded) -> str:
    """Record that a run failed with its process; returns its state."""
    RunDirectory(job[1]).finish("failed", str(ended), None, keep_parts=True)
    return "failed"


_worker: dict[str, Any] = {}


class _Told:
    """Send messages to the main process."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection

    def put(self, message: Any) -> None:
        with suppress(OSError):  # it may have ended
            self._connection.send((TOLD, message))


def _serve(connection: "Connection[Any, Any]", stop: "_SharedFlag") -> None:
    """Do what the main process asks for, one thing after the other, until it ends."""
    for number in TO_STOP:  # the main process decides what they mean
        signal.signal(number, signal.SIG_IGN)
    _worker.update(messages=_Told(connection), stop=stop)
    with suppress(EOFError, ConnectionError):
        while True:
            request = connection.recv_bytes()
            try:
                function, arguments = pickle.loads(request)
                answer = RETURNED, function(*arguments)
            except Exception as error:
                answer = RAISED, _to_be_sent(error)
            connection.send(answer)


def _to_be_sent(error: Exception) -> Exception:
    """Return an error, or one that says the same if it cannot go to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(reason_of(error))
    return error


def _work(name: str, do: Callable[..., str], *arguments: Any) -> str:
    """Do what ``do`` does, and tell the main process meanwhile how far ``name`` is."""
    messages, stop = _worker["messages"], _worker["stop"]

    def should_stop() -> bool:
        return bool(stop.is_set()) or not _main_process_lives()

    def tell(done: int, total: int) -> None:
        messages.put((name, done, total))

    try:
        return do(*arguments, tell, should_stop)
    finally:
        messages.put((name, None, None))


def _main_process_lives() -> bool:
    main_process = multiprocessing.parent_process()
    return main_process is None or main_process.is_alive()
