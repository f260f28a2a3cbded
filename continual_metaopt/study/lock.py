"""One command at a time works on a study: a lock in the study's folder, which says who holds it.

The lock is a lease of ``filelock``: a file that its owner touches every few seconds while it lives, so that it also
holds among machines that share the folder. Whether an owner on this machine is dead, the system tells. Of another
machine's owner nothing is known but whether the file changes while we watch it: the clocks of two machines need not
agree, and any may jump.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import LeaseCompromise, SoftFileLease, Timeout

from continual_metaopt.analysis.files import read_regular
from continual_metaopt.runs.owner import describe_owner, is_alive, this_process

LOCK = "study.lock"
SECONDS_BETWEEN_BEATS = 5.0  # of which two tell that the lock is another's
SECONDS_UNTIL_DEAD = 60.0  # without a change of the file
SECONDS_BETWEEN_LOOKS = 0.5
MOVED = (
    "was moved or removed while this command worked on it, so it has stopped; the command goes on when the folder is "
    "moved back, or when --out names its new place"
)
_MARK = b"filelock/"  # what filelock's files begin with; lines of other names than its own it leaves to others
_OWNER = b"\nowner="


class StudyLocked(RuntimeError):
    """Another command works on the study; the message says which."""


@contextmanager
def study_lock(
    folder: Path, say: Callable[[str], None] = lambda text: None, on_loss: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the right to work on the study in a folder while the ``with`` statement lasts.

    Args:
        folder: of the study; made if it is not there.
        say: tells the user why this takes a while.
        on_loss: called from another thread if the folder was moved, or if somebody else has taken the lock meanwhile,
            because this process did not live, or could not write, for a minute. It interrupts what is being done.

    Raises:
        StudyLocked: at the beginning of the ``with`` statement, if another command holds it; in place of an exception
            that ends the statement, if the right was lost.
        FileExistsError: there is a file of the lock's name that is no lock.
    """
    path, released = folder / LOCK, threading.Event()
    lost: list[str] = []  # what has happened to the folder meanwhile

    def lose(what: str) -> None:
        lost.append(what)
        on_loss()

    def look_at_folder() -> None:
        while not released.wait(SECONDS_BETWEEN_BEATS):
            if not folder.exists():  # which is nothing to the lease: it goes with the folder
                return lose(MOVED)

    def look_at_reason(compromise: LeaseCompromise) -> None:
        if compromise.reason == "owner-changed":
            lose(f"was taken over by {_described(path)}, so this command has stopped")
        elif folder.exists():
            reason = f"'{LOCK}' was removed" if compromise.reason == "marker-missing" else compromise.error
            lose(f"is not this command's any more, so it has stopped: {reason}")

    lease = SoftFileLease(
        path,
        lease_duration=SECONDS_UNTIL_DEAD,
        heartbeat_interval=SECONDS_BETWEEN_BEATS,
        on_compromise=look_at_reason,
    )
    folder.mkdir(parents=True, exist_ok=True)
    before = None if read_owner(path) is None else _described(path)
    try:
        # longer than it takes until a silent owner counts as dead
        lease.acquire(2 * SECONDS_UNTIL_DEAD, SECONDS_BETWEEN_LOOKS, cancel_check=_signs_of_life(lease, path, say))
    except Timeout:
        raise StudyLocked(
            f"'{folder}' is in use by another command, {_described(path)}. Wait until it has ended or stop it there, "
            "or choose another folder with --out"
        ) from None
    watcher = threading.Thread(target=look_at_folder, daemon=True)
    watcher.start()
    try:
        owner = this_process() | {"since": datetime.now(UTC).isoformat(timespec="seconds")}
        with path.open("ab") as file:
            file.write(_OWNER[1:] + json.dumps(owner).encode() + b"\n")
        if before is not None:
            say(f"freed the lock of {before}, which is dead")
        yield
    except BaseException:
        if lost:
            raise StudyLocked(f"'{folder}' {lost[0]}") from None
        raise
    finally:
        released.set()
        watcher.join()
        lease.release()


def read_owner(path: Path) -> dict[str, Any] | None:
    """Who holds a study's lock, as ``this_process`` tells, with "since"; empty if unknown, None without a lock.

    Raises:
        FileExistsError: the file is no lock.
    """
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _no_lock(str(error)) from error
    if not content.startswith(_MARK[: len(content)]):
        raise _no_lock(f"'{path}' is of another program")
    try:
        owner = json.loads(content.partition(_OWNER)[2])
    except (ValueError, RecursionError):  # not yet, or half written
        return {}
    return owner if isinstance(owner, dict) else {}


def _described(path: Path) -> str:
    try:
        return describe_owner(read_owner(path) or {})
    except OSError:
        return describe_owner({})


def _signs_of_life(lease: SoftFileLease, path: Path, say: Callable[[str], None]) -> Callable[[], bool]:
    """Make a function that, asked now and then, says whether the lock's owner is known to live."""
    begun = time.monotonic()
    first: list[tuple[int, int]] = []  # what the file system said of the file

    def lives() -> bool:
        try:
            status, owner = path.stat(), read_owner(path) or {}
        except FileNotFoundError:
            return False
        stamp = status.st_ino, status.st_mtime_ns
        if not first:
            first.append(stamp)
            if is_alive(owner):
                return True
            who = describe_owner(owner)
            say(f"'{path}' is of {who}; waiting up to {SECONDS_UNTIL_DEAD:.0f} s for a sign of life")
        if status.st_size == 0 and stamp == first[0] and time.monotonic() > begun + SECONDS_UNTIL_DEAD:
            lease.force_break()  # a machine that lost power may leave it empty
        return stamp != first[0]

    return lives


def _no_lock(what: str) -> FileExistsError:
    return FileExistsError(f"{what}, no lock of a command: move it elsewhere, or choose another folder with --out")
