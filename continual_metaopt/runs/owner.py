"""Which process works on a run directory; one at a time, since what two of them wrote there would be mixed.

Among the processes of one machine, the system's lock on the directory decides. It ends with its process, however that
ends, and leaves no file. Of a process on another machine that shares the directory, ``status.json`` tells: while the
run goes on, it is written with each checkpoint.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import lock_descriptor

from continual_metaopt.analysis.files import read_regular

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
    # Windows opens no folders; there, as where the file system has no locks, status.json alone decides
    descriptor = os.open(run, os.O_RDONLY) if sys.platform != "win32" else None
    try:
        _wait(run, descriptor, should_stop)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def require_own(run: Path) -> None:
    """Check that no other process has begun to work on a run that this one works on.

    Raises:
        RunInUse: another one has, because this one gave no sign of life for a while.
    """
    owner = _worker_on(_read(run))
    if owner:
        raise RunInUse(f"'{run}' was taken over by {describe_owner(owner)}, so this process has stopped")


def this_process() -> dict[str, Any]:
    """Facts by which another process can tell whether this one lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "born": _born(psutil.Process())}


def is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether a process lives; None if that cannot be told from here.

    Args:
        owner: its "host" and "pid"; also "machine" and "born", where known, as ``this_process`` gives them.
    """
    pid, born = owner.get("pid"), owner.get("born")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int):
        return None
    if owner.get("machine", _machine()) != _machine():  # booted anew, or another container of the same name
        return None
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # has ended, and only its parent does not know yet
            return False
        # else another process has been given its number
        return born is None or (isinstance(born, float) and abs(born - _born(process)) < 2)
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError):
        return False


def describe_owner(owner: dict[str, Any]) -> str:
    """Which process it is, and since when where that is known."""
    if "pid" not in owner:
        return "an unknown owner"
    pid, host, since = (str(owner.get(name))[:80] for name in ("pid", "host", "since"))  # perhaps a stranger's
    return f"process {pid} on {host}" + (f" since {since}" if "since" in owner else "")


def _wait(run: Path, descriptor: int | None, should_stop: Callable[[], bool]) -> None:
    """Wait until the system's lock is ours, and no owner that it does not tell of lives or may live."""
    start = last_change = time.monotonic()
    is_locked, found = False, _read(run)
    while True:
        is_locked = is_locked or _locks(descriptor)
        status, now = _read(run), time.monotonic()
        if status != found:
            found, last_change = status, now
        owner = _worker_on(status)
        alive = is_alive(owner) if owner else False
        if is_locked and (alive is False or (alive is None and now > last_change + SECONDS_UNTIL_DEAD)):
            return
        patience_ends = start + SECONDS_FOR_OTHERS
        shows_life = not is_locked or alive or last_change > patience_ends
        if should_stop() or (now > patience_ends and shows_life):
            who = describe_owner(owner) if owner else "another process"
            raise RunInUse(
                f"'{run}' is in use by {who}. Wait until it has ended, or stop it there, and give the command again"
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _locks(descriptor: int | None) -> bool:
    try:
        return descriptor is None or lock_descriptor(descriptor, blocking=False)
    except OSError:  # a file system that has no such locks
        return True


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


def _born(process: psutil.Process) -> float:
    """Seconds from the machine's start to the process's, which no change of the clock alters."""
    return round(process.create_time() - psutil.boot_time(), 2)


def _machine() -> str | None:
    """What tells this start of this machine, or this container, from others, where the system tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None
