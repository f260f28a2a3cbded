"""Do one run, from its description to its directory: local processes, threads, Ray and SLURM all come here.

A run is done alone in its directory, unless it has ended before: it is prepared, then executed. What these steps need
is imported by them, since preparing needs torch, and executing compiled code needs neither torch nor Avalanche.
"""

import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from continual_metaopt.engines.observations import Diverged
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.outcome import (
    Interrupted,
    OnProgress,
    ShouldStop,
    earlier_state,
    fail,
    never,
    no_progress,
    reason_of,
)
from continual_metaopt.runs.owner import alone_in

if TYPE_CHECKING:
    from continual_metaopt.runs.compiled_run import CompiledRun, PreparedRun
    from continual_metaopt.runs.learner_run import LearnerRun

T = TypeVar("T")


def run_one(
    config: RunConfig, path: Path, on_progress: OnProgress = no_progress, should_stop: ShouldStop = never
) -> str:
    """Do one run, or what is left of it, in this process.

    Args:
        config: a resolved description.
        path: the run directory.
        on_progress: called with the number of samples done and to do.
        should_stop: asked about twice a second; True ends the run so that it can go on later.

    Returns:
        The state that the run ended in: "finished", "diverged", or "failed" with the reason in ``status.json``.

    Raises:
        FileExistsError: the directory holds another run.
        RunInUse: another process works on the run.

    Example:
        >>> import tempfile
        >>> from continual_metaopt.runs.components import Component
        >>> stream = Component(name="tracking", n_samples=20, samples_per_experience=10)
        >>> network, learner = Component(name="linear"), Component(name="fixed", lr=0.1)
        >>> config = RunConfig(stream=stream, network=network, learner=learner)
        >>> path = Path(tempfile.mkdtemp()) / "run"
        >>> run_one(config.resolved(), path), read_json(path / "status.json")["step"]
        ('finished', 20)
    """

    def do(directory: RunDirectory) -> str:
        return _execute(config, _prepare(config, path), directory, on_progress, should_stop)

    return _unless_ended(config, path, should_stop, do)


def prepare_run(config: RunConfig, path: Path, should_stop: ShouldStop) -> "PreparedRun | str | None":
    """Prepare a run that another process will execute; arguments and errors as for ``run_one``.

    Returns:
        What ``execute_run`` is to be given, None if compiled code cannot do the run; a state if the run has ended.
    """
    return _unless_ended(config, path, should_stop, lambda directory: _prepare(config, path))


def execute_run(
    config: RunConfig, prepared: "PreparedRun | None", path: Path, on_progress: OnProgress, should_stop: ShouldStop
) -> str:
    """Execute a run that another process has prepared; otherwise as ``run_one``."""

    def do(directory: RunDirectory) -> str:
        if should_stop():  # the process that asked for the run was killed while this one waited for its turn
            raise Interrupted
        return _execute(config, prepared, directory, on_progress, should_stop)

    return _unless_ended(config, path, should_stop, do)


def why_it_failed(path: Path, do: Callable[[], str]) -> str | None:
    """Say why a run failed, given what returns its state; None if it finished or diverged."""
    try:
        state = do()
    except Exception as error:  # such as another run's directory, or one that is in use
        return reason_of(error)
    return str(read_json(path / "status.json")["reason"]) if state == "failed" else None


def _unless_ended(config: RunConfig, path: Path, should_stop: ShouldStop, do: Callable[[RunDirectory], T]) -> T | str:
    """Do a step of a run alone in its directory, unless the run has ended; returns its state if it has, or failed."""
    with alone_in(path, should_stop):
        ended = earlier_state(path, config)
        if ended is not None:
            return ended
        directory = RunDirectory(path)
        try:
            return do(directory)
        except Exception as error:
            return fail(directory, error)


def _prepare(config: RunConfig, path: Path) -> "PreparedRun | None":
    prepared: PreparedRun | None = imported("continual_metaopt.runs.preparing").prepare(config, path)
    return prepared


def _execute(
    config: RunConfig,
    prepared: "PreparedRun | None",
    directory: RunDirectory,
    on_progress: OnProgress,
    should_stop: ShouldStop,
) -> str:
    """Learn from all samples that are left, and record how the run ended; returns its state."""
    run = under_way(config, prepared, directory, on_progress, should_stop)
    try:
        run.learn()
    except Diverged as error:
        directory.measure(error.measurements)
        directory.finish("diverged", str(error), run.engine)
        return "diverged"
    directory.finish("finished", None, run.engine)
    return "finished"


def under_way(
    config: RunConfig,
    prepared: "PreparedRun | None",
    directory: RunDirectory,
    on_progress: OnProgress,
    should_stop: ShouldStop,
) -> "CompiledRun | LearnerRun":
    """Make what learns and records, by compiled code if the run was prepared for it; arguments as elsewhere here."""
    run: CompiledRun | LearnerRun
    if prepared is not None:
        module = imported("continual_metaopt.runs.compiled_run")
        run = module.CompiledRun(prepared, directory, on_progress, should_stop)
    else:
        module = imported("continual_metaopt.runs.learner_run")
        run = module.LearnerRun(config, directory, on_progress, should_stop)
    return run


_importing = threading.Lock()
_failed_imports: dict[str, Exception] = {}


def imported(name: str) -> Any:
    """Import a module; an error is raised again the next time, when packages that are half imported would raise others.

    Raises:
        Exception: whatever the module raised when it was first imported.
    """
    with _importing:
        if name in _failed_imports:
            raise _failed_imports[name]
        try:
            return importlib.import_module(name)
        except Exception as error:
            _failed_imports[name] = error
            raise
