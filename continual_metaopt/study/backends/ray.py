"""Runs on the machines of a Ray cluster, one task per run.

Where a node sees the study's folder, its runs are written there, and a run whose node is lost goes on from its last
checkpoint on another. Where it does not, runs are written to the node's own temporary folder and come back as a whole
when they end; one whose node is lost begins again. Images are decoded where the command was given, and put into Ray's
object store: each node receives them once, and its processes share them in memory.
"""

import contextlib
import functools
import os
import socket
import tempfile
import time
import uuid
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from continual_metaopt.analysis.files import is_regular, open_regular, read_regular, write_whole
from continual_metaopt.runs.components import import_modules
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.facts import describe_software
from continual_metaopt.runs.files import CHECKPOINT, COMPILED_CHECKPOINT, files_of_run, read_json, write_json
from continual_metaopt.runs.outcome import earlier_state, reason_of
from continual_metaopt.runs.owner import alone_in
from continual_metaopt.runs.run import do_run
from continual_metaopt.streams import plan_stream
from continual_metaopt.streams.lazy_images import LazyImages
from continual_metaopt.streams.sources import SourceArguments, receive_source, sources_loaded
from continual_metaopt.study.jobs import BackendError, Job, RunsFailed, StudyInterrupted, title
from continual_metaopt.study.progress import ProgressDisplay

RESTARTS = 10  # of a run whose node or process is lost
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_MESSAGES = 1.0
SECONDS_TO_CHECK_A_NODE = 120.0
TOKEN = ".study-folder-"  # a file whose name begins so tells a node whether its folder of that name is this one


@dataclass(frozen=True)
class _Task:
    """What a node is told of a run.

    Attributes:
        config, path: of the run; an absolute path.
        token: the file that a node sees if it shares the study's folder, and what it holds.
        working_folder: of the command; relative paths of files count from there.
        sources: arguments of ``load_source``, and a reference to its result.
        earlier: files of the run directory where there is a checkpoint that not every node sees.
    """

    config: RunConfig
    path: Path
    token: tuple[Path, str]
    working_folder: str
    versions: dict[str, str | None]
    sources: list[tuple[SourceArguments, Any]]
    earlier: dict[str, bytes]


@dataclass(frozen=True)
class _Outcome:
    """What comes back: why the run failed, None if it did not; and its files, where they are not in their place."""

    failure: str | None
    files: dict[str, bytes] | None


class RayPool:
    """A Ray cluster that does runs, with progress, and an orderly end at Ctrl-C.

    Args:
        address: of the cluster: "auto", "HOST:PORT", "ray://HOST:PORT", or "local" for a new one on this machine.
        workers: runs at a time; None for one per processor of the cluster.
        n_runs: number of runs in all.
        show_progress: whether to draw bars.
        folder: of the study.

    Raises:
        BackendError: Ray is not installed, there is no cluster at the address, or a node has other versions.
    """

    def __init__(self, address: str, workers: int | None, n_runs: int, show_progress: bool, folder: Path) -> None:
        self._ray = _import_ray()
        self._address, self._workers, self._folder = address, workers, folder.absolute()
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._display = ProgressDisplay(n_runs, self._queue, show_progress)
        self._sources: dict[str, list[tuple[SourceArguments, Any]]] = {}
        self._sent: dict[Path, set[str]] = {}  # names of the files of a run that its node was given

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
            self._token = _write_token(self._folder)
            self._versions = describe_software()
            self._all_share = all(self._check_nodes())
        except BaseException:
            ray.shutdown()
            raise
        self._display.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._display.stop()
        self._token[0].unlink(missing_ok=True)
        self._ray.shutdown()

    def run(self, jobs: Sequence[Job], stage: str) -> None:
        """Do runs; returns when all have ended.

        Raises:
            StudyInterrupted: after Ctrl-C; nothing recorded is lost.
            RunsFailed: some runs failed; the others have been run.
        """
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
        """Runs to have with the cluster: some more than it can do at once, so that no processor waits."""
        return self._workers or 4 + int(1.5 * self._ray.cluster_resources().get("CPU", 0))

    def _submit(self, job: Job, pending: dict[Any, Job], failures: dict[Path, str]) -> None:
        config, path = job
        try:
            if earlier_state(path, config) is not None:
                self._display.update(n_ended=1)
                return
            earlier = {}
            if not self._all_share:
                with alone_in(path):
                    earlier = _files_of(path)
            self._sent[path] = set(earlier)
            task = _Task(
                config,
                path.absolute(),
                self._token,
                str(Path.cwd()),
                self._versions,
                self._sources_of(config),
                earlier,
            )
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
                outcome = ray.get(future)
                if outcome.files is not None:
                    _replace(path, outcome.files, self._sent[path])
                failure = outcome.failure
            except ray.exceptions.RayTaskError as error:
                failure = reason_of(error.cause)
            except ray.exceptions.RayError as error:
                first_line = str(error).strip().partition("\n")[0]
                failure = f"its process or node was lost, and Ray has given up; Ray says: {first_line}"
            except OSError as error:
                failure = reason_of(error)
            if failure is not None:
                failures[path] = failure
            del pending[future]
        self._display.update(n_ended=len(done))

    def _sources_of(self, config: RunConfig) -> list[tuple[SourceArguments, Any]]:
        """What the stream's images are in the object store; they are put there at its first run."""
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

    def _check_nodes(self) -> list[bool]:
        """Whether each node sees the study's folder.

        Raises:
            BackendError: a node has other versions than this process, or lacks the package.
        """
        ray = self._ray
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            return [False]  # there may be some later
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        check = ray.remote(num_cpus=0, max_retries=1)(_check)
        checks = [
            check.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(self._versions, self._token)
            for node in nodes
        ]
        shared = []
        for node, future in zip(nodes, checks, strict=True):
            name = node["NodeManagerHostname"]
            try:
                shared.append(bool(ray.get(future, timeout=SECONDS_TO_CHECK_A_NODE)))
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, BackendError):
                    raise BackendError(str(error.cause)) from None
                raise BackendError(
                    f"the node {name} cannot do runs ({reason_of(error.cause)}); install there: pip install "
                    f"'continual-metaopt[ray]=={self._versions['continual-metaopt']}'"
                ) from None
            except ray.exceptions.RayError:  # it is lost, or very busy; its runs check its versions again
                shared.append(False)
        return shared


def _import_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise BackendError(
            "the backend ray needs the package ray: pip install 'continual-metaopt[ray]', or use --backend local"
        ) from error
    return ray


class _Messages:
    """Between the runs and the command: how far they are, and whether they are to stop. An actor in the cluster."""

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
    """Tells how far a run is, and hears whether it is to stop, without waiting for either."""

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
        """Whether the last answer was to stop."""
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


def _do(task: _Task, messages: Any) -> _Outcome:
    """Do a run, in a process of a node."""
    _check_versions(task.versions)
    reporter = _Reporter(title(task.config), messages)
    if reporter.should_stop():
        return _Outcome("stopped before it began", None)
    with contextlib.suppress(OSError):
        os.chdir(task.working_folder)
    _receive(task.sources)
    shares = _shares(task.token)
    try:
        with contextlib.nullcontext(task.path) if shares else _folder_of_this_node(task.earlier) as path:
            failure = do_run(task.config, path, reporter.tell, reporter.should_stop)
            return _Outcome(failure, None if shares else _files_of(path))
    finally:
        reporter.end()


def _receive(sources: list[tuple[SourceArguments, Any]]) -> None:
    # Images in the object store cannot be written to, and nobody does; PyTorch warns that one could
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    for arguments, reference in sources:
        receive_source(arguments, functools.partial(_import_ray().get, reference))


@contextlib.contextmanager
def _folder_of_this_node(files: dict[str, bytes]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="continual-metaopt-") as folder:
        path = Path(folder) / "run"
        _write(path, files)
        if is_regular(path / "status.json"):  # its owner has ended, which only the other machine can tell
            write_json(path / "status.json", read_json(path / "status.json") | {"state": "failed"})
        yield path


def _check(versions: dict[str, str | None], token: tuple[Path, str]) -> bool:
    """Check a node; returns whether it sees the study's folder."""
    _check_versions(versions)
    return _shares(token)


def _check_versions(wanted: dict[str, str | None]) -> None:
    here = _versions_here()
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


_versions_here = functools.cache(describe_software)


def _write_token(folder: Path) -> tuple[Path, str]:
    """A new file, and what it holds."""
    token = uuid.uuid4().hex
    path = folder / f"{TOKEN}{token}"
    with path.open("x", encoding="ascii") as file:
        file.write(token)
    return path, token


def _shares(token: tuple[Path, str]) -> bool:
    path, content = token
    try:
        return read_regular(path, len(content)).decode("ascii") == content
    except (OSError, ValueError):
        return False


def _files_of(folder: Path) -> dict[str, bytes]:
    """Content of all files in a run directory that a run writes, by path; none if there is no such folder."""
    contents = {}
    for name, path in files_of_run(folder).items():
        with open_regular(path) as file:
            contents[name] = file.read()
    return contents


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise OSError(f"a node sent a file that is not in its run directory: '{name}'")
        write_whole(folder / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]


def _replace(folder: Path, files: dict[str, bytes], earlier: set[str]) -> None:
    """Put what a node sent in place of what it was given, which it has removed as far as it has not sent it back.

    Without a checkpoint a run begins again, and without a status it has not ended: these come last.
    """
    for name in sorted(earlier & {CHECKPOINT, COMPILED_CHECKPOINT}) + sorted(earlier - files.keys()):
        (folder / name).unlink(missing_ok=True)
    order = ("status.json", COMPILED_CHECKPOINT, CHECKPOINT)
    _write(folder, {name: files[name] for name in sorted(files, key=(*sorted(files.keys() - {*order}), *order).index)})
