"""One run in a process of another machine, which imports no more than the run needs."""

from pathlib import Path

from continual_metaopt.runs.compiled_run import CompiledRun, run_compiled
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.learner_run import LearnerRun
from continual_metaopt.runs.outcome import (
    OnProgress,
    ShouldStop,
    bring_to_end,
    earlier_state,
    fail,
    never,
    no_progress,
    reason_of,
)
from continual_metaopt.runs.owner import alone_in
from continual_metaopt.runs.preparing import prepare


def do_run(config: RunConfig, path: Path, tell: OnProgress, should_stop: ShouldStop) -> str | None:
    """Do one run, or what is left of it; without Avalanche where compiled code can do it.

    Args:
        config: a resolved description.
        path: the run directory.
        tell: called with the number of samples done and to do.
        should_stop: asked about twice a second; True ends the run so that it can go on later.

    Returns:
        Why the run failed; None if it finished or diverged.
    """
    try:
        with alone_in(path, should_stop):
            state = earlier_state(path, config) or _do(config, path, tell, should_stop)
    except Exception as error:  # such as another run's directory, or one that is in use
        return reason_of(error)
    return str(read_json(path / "status.json")["reason"]) if state == "failed" else None


def _do(config: RunConfig, path: Path, tell: OnProgress, should_stop: ShouldStop) -> str:
    try:
        from continual_metaopt.runs.preparing import prepare

        prepared = prepare(config, path)
    except Exception as error:
        return fail(RunDirectory(path), error)
    if prepared is not None:
        return run_compiled(prepared, path, tell, should_stop)
    from continual_metaopt.runs.learner_run import run_by_torch

    return run_by_torch(config, path, tell, should_stop)


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
    """

    def make() -> CompiledRun | LearnerRun:
        prepared = prepare(config, path)
        if prepared is not None:
            return CompiledRun(prepared, directory, on_progress, should_stop)
        return LearnerRun(config, directory, on_progress, should_stop)

    with alone_in(path):
        ended = earlier_state(path, config)
        if ended is not None:
            return ended
        directory = RunDirectory(path)
        return bring_to_end(directory, make)
