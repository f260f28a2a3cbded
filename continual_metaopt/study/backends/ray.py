"""Runs on the machines of a Ray cluster, one task per run.

All nodes see the study's folder, and write their runs there. A run whose node is lost goes on from its last checkpoint
on another. Images are decoded where the command was given, and put into Ray's object store: each node receives them
once, and its processes share them in memory.
"""

import contextlib
import functools
import os
import socket
import time
import uuid
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from continual_metaopt.analysis.extras import how_to_install
from continual_metaopt.analysis.files import is_regular
from continual_metaopt.runs.components import import_modules
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.facts import describe_software
from continual_metaopt.runs.outcome import earlier_state, reason_of
from continual_metaopt.runs.run import run_one, why_it_failed
from continual_metaopt.streams import plan_stream
from continual_metaopt.streams.lazy_images import LazyImages
from continual_metaopt.streams.sources import SourceArguments, receive_source, sources_loaded
from continual_metaopt.study.jobs import BackendError, Job, RunsFailed, StudyInterrupted, title
from continual_metaopt.study.progress import ProgressDisplay

RESTARTS = 10  # of a run whose node or process is lost
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_MESSAGES = 1.0
SECONDS_TO_CHECK_A_NODE = 120.0


@dataclass(frozen=True)
class _Task:
    """Tell a node about a run.

    Attributes:
        config, path: of the run; an absolute path.
        mark: the file that a node sees if it shares the study's folder.
        working_folder: of the command; relative paths of files count from there.
        sources: arguments of ``load_source``, and a reference to its result.
    """

    config: RunConfig
    path: Path
    mark: Path
    working_folder: str
    versions: dict[str, str | None]
    sources: list[tuple[SourceArguments, Any]]


class RayPool:
    """Do runs on a Ray cluster, with progress and an orderly end at Ctrl-C.

    Args:
        address: of the cluster: "auto", "HOST:PORT", "ray://HOST:PORT", or "local" for a new one on this machine.
        workers: runs at a time; None for one per processor of the cluster.
        n_runs: number of runs in all.
        show_progress: whether to draw bars.
        folder: of the study.

    Raises:
        BackendError: Ray is not installed, there is no cluster at the address, or a node has other versions or does
            not see the folder.
    """

    def __init__(self, address: str, workers: int | None, n_runs: int, show_progress: bool, folder: Path) -> None:
        self._ray = _import_ray()
        self._address, self._workers, self._folder = address, workers, folder.absolute()
        self._mark = self._folder / f".study-folder-{uuid.uuid4().hex}"  # which tells a node that it sees the folder
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._display = ProgressDisplay(n_runs, self._queue, show_progress)
        self._sources: dict[str, list[tuple[SourceArguments, Any]]] = {}

    def __enter__(self) -> "RayPool":
        ray = self._ray
        options = {"num_cpus": self._workers, "include_dashboard": False} if self._address == "local" else {}
        try:
            ray.init(self._address, log_to_driver=False, logging_level="warning", **options)
        except (OSError, RuntimeError, ValueError) as error:  # Ray's own message tells versions that differ
            raise BackendError(
                f"no Ray cluster that can be used at '{self._address}' ({error}); start one with 'ray start --head' "
                "and give its address, or use --address local"
            ) from error
        try:
            self._messages = ray.remote(num_cpus=0, max_restarts=-1)(_Messages).remote()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._mark.touch(exist_ok=False)
            self._versions = describe_software()
            self._check_nodes()
        except BaseException:
            self._leave()
            raise
        self._display.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._display.stop()
        self._leave()

    def _leave(self) -> None:
        self._mark.unlink(missing_ok=True)
        self._ray.shutdown()

    def run(self, jobs: Sequence[Job], stage: str) -> None:
        """Do runs, as ``Pool.run`` says."""
        self._display.stage(stage)
        failures: dict[Path, str] = {}
        waiting, pending = deque(jobs), dict[Any, Job]()
        stopping = False
        while pending or (waiting and not stopping):
            try:
                while waiting and not stopping and len(pending) < self._at_a_time():
                    self._submit(waiting.popleft(), pending, failures)
                self._collect(pending, failures, stopping)
            except KeyboardInterrupt:
                stopping = True
                self._display.note("stopping: finishing the records of the runs under way …")
        if stopping:
            raise StudyInterrupted
        if failures:
            raise RunsFailed(failures, len(jobs))

    def _at_a_time(self) -> int:
        """Count the runs to have with the cluster: some more than it can do at once, so that no processor waits."""
        return self._workers or 4 + int(1.5 * self._ray.cluster_resources().get("CPU", 0))

    def _submit(self, job: Job, pending: dict[Any, Job], failures: dict[Path, str]) -> None:
        config, path = job
        try:
            if earlier_state(path, config) is not None:
                self._display.update(n_ended=1)
                return
            sources = self._sources_of(config)
            task = _Task(config, path.absolute(), self._mark, str(Path.cwd()), self._versions, sources)
        except Exception as error:
            failures[path] = reason_of(error)
            self._display.update(n_ended=1)
            return
        n_gpus = 1 if config.device.startswith("cuda") else 0
        remote = self._ray.remote(num_cpus=1, num_gpus=n_gpus, max_retries=RESTARTS)(_do)
        pending[remote.options(name=title(config)).remote(task, self._messages)] = job

    def _collect(self, pending: dict[Any, Job], failures: dict[Path, str], stopping: bool) -> None:
        """Wait a moment, and take in what has come back until then."""
        ray = self._ray
        done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=SECONDS_BETWEEN_LOOKS)
        with contextlib.suppress(ray.exceptions.RayError):  # it is started again if its node was lost
            for message in ray.get(self._messages.take.remote(stopping), timeout=10 * SECONDS_BETWEEN_LOOKS):
                self._queue.put(message)
        for future in done:
            path = pending[future][1]
            try:
                failure = ray.get(future)
            except ray.exceptions.RayTaskError as error:
                failure = reason_of(error.cause)
            except ray.exceptions.RayError as error:
                first_line = str(error).strip().partition("\n")[0]
                failure = f"its process or node was lost, and Ray has given up; Ray says: {first_line}"
            if failure is not None:
                failures[path] = failure
            del pending[future]
        self._display.update(n_ended=len(done))

    def _sources_of(self, config: RunConfig) -> list[tuple[SourceArguments, Any]]:
        """Put the stream's images into the object store at its first run; returns where they are."""
        key = config.stream.model_dump_json()
        if key not in self._sources:
            import_modules(config.imports)
            with sources_loaded() as loaded:
                plan_stream(config.stream.name, **config.stream.options, seed=config.seed)
            known = {arguments: ref for sources in self._sources.values() for arguments, ref in sources}
            self._sources[key] = [
                (arguments, known.get(arguments) or self._ray.put(images))
                for arguments, images in loaded.items()
                if not isinstance(images.train.x, LazyImages)  # each node reads them for itself, from shared files
            ]
        return self._sources[key]

    def _check_nodes(self) -> None:
        """Check the nodes that are there now.

        Raises:
            BackendError: a node has other versions than this process, lacks the package, or does not see the study's
                folder.
        """
        ray = self._ray
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        check = ray.remote(num_cpus=0, max_retries=1)(_check_node)
        checks = [
            check.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(self._versions, self._mark)
            for node in nodes
        ]
        for node, future in zip(nodes, checks, strict=True):
            name = node["NodeManagerHostname"]
            try:
                ray.get(future, timeout=SECONDS_TO_CHECK_A_NODE)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, BackendError):
                    raise BackendError(str(error.cause)) from None
                raise BackendError(
                    f"the node {name} cannot do runs ({reason_of(error.cause)}); install version "
                    f"{self._versions['continual-metaopt']} there: {how_to_install('ray')}"
                ) from None
            except ray.exceptions.RayError:
                continue  # it is lost, or very busy; its runs check it again


def _import_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise BackendError(
            f"the backend ray needs the package ray: {how_to_install('ray')}, or use --backend local"
        ) from error
    return ray


class _Messages:
    """Pass on, as an actor in the cluster, how far runs are and whether they are to stop."""

    def __init__(self) -> None:
        self._told: list[tuple[str, int | None, int | None]] = []
        self._stop = False

    def tell(self, *message: Any) -> bool:
        """Take a message; returns whether the run is to stop."""
        self._told.append(message)
        return self._stop

    def take(self, stop: bool) -> list[tuple[str, int | None, int | None]]:
        """Return the messages since the last time; ``stop`` is told to those who send others."""
        told, self._told, self._stop = self._told, [], stop
        return told


class _Reporter:
    """Tell how far a run is, and hear whether it is to stop, without waiting for either."""

    def __init__(self, name: str, messages: Any) -> None:
        self._ray = _import_ray()
        self._name, self._messages = name, messages
        self._answer: Any = None
        self._stop = self._send(0, 1, wait=True)
        self._last = time.monotonic()

    def tell(self, done: int, total: int) -> None:
        """Tell how many samples are done, now and then."""
        if time.monotonic() - self._last >= SECONDS_BETWEEN_MESSAGES:
            self._last = time.monotonic()
            self._stop = self._stop or self._send(done, total)

    def should_stop(self) -> bool:
        """Tell whether the last answer was to stop."""
        return self._stop

    def end(self) -> None:
        """Tell that the run has ended."""
        self._send(None, None)

    def _send(self, done: int | None, total: int | None, wait: bool = False) -> bool:
        """Send a message; returns the answer to it, or the one to the message before where that has come."""
        before, self._answer = self._answer, self._messages.tell.remote(self._name, done, total)
        asked = self._answer if wait else before
        if asked is None:
            return False
        try:
            return bool(self._ray.get(asked, timeout=10 if wait else 0))
        except self._ray.exceptions.RayError:  # no answer yet, or it is being started again elsewhere
            return False


def _do(task: _Task, messages: Any) -> str | None:
    """Do a run, in a process of a node; returns why it failed, None if it did not."""
    _check_node(task.versions, task.mark)
    reporter = _Reporter(title(task.config), messages)
    if reporter.should_stop():
        return "stopped before it began"
    with contextlib.suppress(OSError):
        os.chdir(task.working_folder)
    _receive(task.sources)
    try:
        do = functools.partial(run_one, task.config, task.path, reporter.tell, reporter.should_stop)
        return why_it_failed(task.path, do)
    finally:
        reporter.end()


def _receive(sources: list[tuple[SourceArguments, Any]]) -> None:
    # Images in the object store cannot be written to, and nobody does; PyTorch warns that one could
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    for arguments, reference in sources:
        receive_source(arguments, functools.partial(_import_ray().get, reference))


def _check_node(wanted: dict[str, str | None], mark: Path) -> None:
    """Check this node's versions, and that it sees the study's folder.

    Raises:
        BackendError: it has others, or does not.
    """
    here = describe_software()
    differ = [
        f"{name} {here.get(name)} instead of {version}"
        for name, version in wanted.items()
        if version != here.get(name) and not (name == "source_revision" and None in (version, here.get(name)))
    ]
    if differ:
        raise BackendError(
            f"the node {socket.gethostname()} has {', '.join(differ)}; results would not be comparable. Install the "
            "same versions on all nodes"
        )
    if not is_regular(mark):
        raise BackendError(
            f"the node {socket.gethostname()} does not see the study's folder '{mark.parent}'; choose one that all "
            "nodes share with --out"
        )
