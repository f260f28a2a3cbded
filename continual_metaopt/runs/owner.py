"""One process at a time works on a run directory, since what two of them wrote there would be mixed.

Among the processes of one machine, the system's lock on the directory decides. It ends with its process, however that
ends, and leaves no file. Of a process on another machine that shares the directory, ``status.json`` tells: while the
run goes on, it is written with each checkpoint.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from continual_metaopt.analysis.files import read_regular
from continual_metaopt.runs.processes import describe_owner, folder_lock, is_alive, this_process

SECONDS_FOR_OTHERS = 30.0  # to end: workers whose main process was killed write a checkpoint first
SECONDS_UNTIL_DEAD = 90.0  # without a change of status.json, of which one is due every 30 seconds
SECONDS_BETWEEN_LOOKS = 0.1


class RunInUse(RuntimeError):
    """Another process works on the run; the message says which."""


@contextmanager
def alone_in(run: Path, should_stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """See to it that nobody else works on a run while the ``with`` statement lasts; others are given time to end.

    Args:
        run: the run directory; made if it is not there.
        should_stop: asked while waiting; True ends that.

    Raises:
        RunInUse: at the beginning of the ``with`` statement, if another process goes on working on the run.
    """
    run.mkdir(parents=True, exist_ok=True)
    with folder_lock(run) as take_it:
        _wait(take_it, run, SECONDS_FOR_OTHERS, should_stop)
        _wait_for_machines(run, should_stop)
        yield


def require_own(run: Path) -> None:
    """Check that no other process has begun to work on a run that this one works on.

    Raises:
        RunInUse: another one has, because this one gave no sign of life for a while.
    """
    owner = _worker_on(_read(run))
    if owner:
        raise RunInUse(f"'{run}' was taken over by {describe_owner(owner)}, so this process has stopped")


def _wait(is_over: Callable[[], bool], run: Path, seconds: float, should_stop: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not is_over():
        if time.monotonic() > deadline or should_stop():
            raise _in_use(run)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _wait_for_machines(run: Path, should_stop: Callable[[], bool]) -> None:
    """Wait for an owner that the lock does not tell of: on another machine, or where there are no such locks."""
    found = _read(run)
    owner = _worker_on(found)
    alive = is_alive(owner) if owner else False
    if alive:
        _wait(lambda: not (_worker_on(_read(run)) and is_alive(owner)), run, SECONDS_FOR_OTHERS, should_stop)
    if alive is not None:
        return
    start = last_change = time.monotonic()
    while time.monotonic() < last_change + SECONDS_UNTIL_DEAD and _worker_on(now := _read(run)):
        if now != found:
            found, last_change = now, time.monotonic()
        if last_change > start + SECONDS_FOR_OTHERS or should_stop():
            raise _in_use(run)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _in_use(run: Path) -> RunInUse:
    owner = _worker_on(_read(run))
    who = describe_owner(owner) if owner else "another process"
    return RunInUse(
        f"'{run}' is in use by {who}. Wait until it has ended, or stop it there, and give the command again"
    )


def _read(run: Path) -> bytes:
    try:
        return read_regular(run / "status.json")
    except (OSError, ValueError):
        return b""


def _worker_on(status: bytes) -> dict[str, Any]:
    """The other process that works on a run, given its status; nothing if none does."""
    try:
        content = json.loads(status)
        owner = dict(content["owner"]) if content["state"] == "running" else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    here = this_process()
    return {} if all(owner.get(name) == here[name] for name in ("host", "pid")) else owner
