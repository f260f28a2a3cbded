"""One run in a process of another machine, which imports no more than the run needs."""

from pathlib import Path

from continual_metaopt.compiled_run import run_compiled
from continual_metaopt.config import RunConfig
from continual_metaopt.in_use import alone_in
from continual_metaopt.recording import RunDirectory, read_json
from continual_metaopt.under_way import OnProgress, ShouldStop, earlier_state, fail, reason_of


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
        from continual_metaopt.preparing import prepare

        prepared = prepare(config, path)
    except Exception as error:
        return fail(RunDirectory(path), error)
    if prepared is not None:
        return run_compiled(prepared, path, tell, should_stop)
    from continual_metaopt.running import run_by_torch

    return run_by_torch(config, path, tell, should_stop)
