"""Whether a process that works on a folder still lives, on this machine or another one that shares the folder."""

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

LARGEST_PID = 2**31 - 1


def this_process() -> dict[str, Any]:
    """Facts by which another process can tell whether this one lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "born": _born(os.getpid())}


def is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether a process lives; None if that cannot be told from here.

    Args:
        owner: its "host" and "pid"; also "machine" and "born", where known, as ``this_process`` gives them.
    """
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return None
    if owner.get("machine", _machine()) != _machine():  # booted anew, or another container of the same name
        return None
    if not 0 < owner["pid"] <= LARGEST_PID or not _exists(owner["pid"]):
        return False
    born = _born(owner["pid"])
    return owner.get("born") in (None, born)  # else another process has been given its number


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[Callable[[], bool]]:
    """The system's lock on a folder, among the processes and threads of this machine; it leaves no file.

    Yields:
        A function that tries to take it, for the rest of the ``with`` statement; returns False if another has it. True,
        too, on Windows and on a file system that has no such locks.
    """
    if sys.platform == "win32":
        yield lambda: True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield lambda: _locks(descriptor)
    finally:
        os.close(descriptor)


def _locks(descriptor: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True


def _exists(pid: int) -> bool:
    if sys.platform == "win32":  # os.kill would end the process there
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended, and only its parent does not know yet, where the system tells."""
    fields = _process_table(pid)
    return bool(fields) and fields[0] == "Z"


def _born(pid: int) -> str | None:
    """When a process began, in the system's own count, where it tells."""
    fields = _process_table(pid)
    return fields[19] if len(fields) > 19 else None


def _process_table(pid: int) -> list[str]:
    """What Linux says of a process, from its state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _machine() -> str | None:
    """What tells this start of this machine, or this container, from others, where the system tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def describe_owner(owner: dict[str, Any]) -> str:
    """Which process it is, and since when where that is known."""
    if "pid" not in owner:
        return "an unknown owner"
    pid, host, since = (str(owner.get(name))[:80] for name in ("pid", "host", "since"))  # perhaps a stranger's
    return f"process {pid} on {host}" + (f" since {since}" if "since" in owner else "")
