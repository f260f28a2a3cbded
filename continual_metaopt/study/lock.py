"""One command at a time works on a study: a lock in the study's folder, which says who holds it.

The lock is a file, so that it also holds among machines that share the folder, and it is rewritten every few seconds
while its owner lives. Whether an owner on this machine is dead, the system tells. Of another machine's owner nothing is
known but whether the file changes while we watch it: the clocks of two machines need not agree, and any may jump.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from continual_metaopt.analysis.files import read_regular
from continual_metaopt.runs.processes import describe_owner, folder_lock, is_alive, this_process

LOCK = "lock.json"
SECONDS_BETWEEN_BEATS = 10.0
SECONDS_UNTIL_DEAD = 60.0  # without a change of the file
SECONDS_BETWEEN_LOOKS = 0.5
MOVED = (
    "was moved or removed while this command worked on it, so it has stopped; the command goes on when the folder is "
    "moved back, or when --out names its new place"
)


class StudyLocked(RuntimeError):
    """Another command works on the study; the message says which."""


class StudyLock:
    """The right to work on the study in a folder, while the ``with`` statement lasts.

    Args:
        folder: of the study; made if it is not there.
        say: tells the user why this takes a while.
        on_loss: called from another thread if the folder was moved, or if somebody else has taken the lock meanwhile,
            because this process did not live, or could not write, for a minute.

    Raises:
        StudyLocked: at the beginning of the ``with`` statement, if another command holds it.
    """

    def __init__(
        self, folder: Path, say: Callable[[str], None] = lambda text: None, on_loss: Callable[[], None] = lambda: None
    ) -> None:
        self._path, self._say, self._on_loss = folder / LOCK, say, on_loss
        self._token = uuid.uuid4().hex
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._beats = 0
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self.lost: str | None = None  # what has happened to the folder meanwhile

    def __enter__(self) -> "StudyLock":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            known = self._read()
            if known is None:
                continue
            if not _is_lock(known):
                raise _no_lock(f"'{self._path}' is of another program")
            owner = _owner(known)
            if is_alive(owner) or (is_alive(owner) is None and self._changes(known, owner)):
                raise StudyLocked(
                    f"'{self._path.parent}' is in use by another command, {describe_owner(owner)}. Wait until it has "
                    "ended or stop it there, or choose another folder with --out"
                )
            if self._remove(known):
                self._say(f"freed the lock of {describe_owner(owner)}, which is dead")
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._released.set()
        self._heart.join()
        if self.lost is None and self._holds():
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Make the lock file with all its content at once; False if it is there already."""
        temporary = self._write_beside()
        try:
            os.link(temporary, self._path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with self._path.open("xb") as file:
                    file.write(temporary.read_bytes())
            except FileExistsError:
                return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _write_beside(self) -> Path:
        temporary = self._path.with_name(f".{LOCK}.{self._token}.tmp")
        content = this_process() | {"since": self._since, "token": self._token, "beats": self._beats}
        try:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError:  # a full disk
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _read(self) -> bytes | None:
        try:
            return read_regular(self._path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise _no_lock(str(error)) from error

    def _holds(self) -> bool:
        """Whether the file is this command's own."""
        try:
            return _owner(self._read() or b"").get("token") == self._token
        except OSError:
            return False

    def _changes(self, known: bytes, owner: dict[str, Any]) -> bool:
        """Whether somebody rewrites or removes the file while we watch it."""
        self._say(
            f"'{self._path}' is of {describe_owner(owner)}; waiting up to {SECONDS_UNTIL_DEAD:.0f} s for a sign of life"
        )
        deadline = time.monotonic() + SECONDS_UNTIL_DEAD
        while time.monotonic() < deadline:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            now = self._read()
            if now is None:
                return False
            if now != known:
                return True
        return False

    def _remove(self, known: bytes) -> bool:
        """Remove a dead owner's file, but not one that another waiting command has put in its place meanwhile."""
        with folder_lock(self._path.parent) as take_it:
            while not take_it():
                time.sleep(0.01)
            if self._read() != known:
                return False
            self._path.unlink()
        return True

    def _beat(self) -> None:
        """Rewrite the file now and then, as long as it is ours."""
        while not self._released.wait(SECONDS_BETWEEN_BEATS):
            try:
                now = self._read()
            except OSError:
                continue
            owner = _owner(now or b"")
            if owner and owner.get("token") != self._token:
                self.lost = f"was taken over by {describe_owner(owner)}, so this command has stopped"
            elif now is None and not self._path.parent.exists():
                self.lost = MOVED
            if self.lost:
                self._on_loss()
                return
            self._beats += 1
            with contextlib.suppress(OSError):  # a disk that is full now may have space for the next beat
                self._write_beside().replace(self._path)


def _is_lock(content: bytes) -> bool:
    """Whether a file is a lock, perhaps one that was written by half where there are no hard links."""
    return "token" in _owner(content) or (content[:1] in (b"", b"{") and not _owner(content))


def _no_lock(what: str) -> FileExistsError:
    return FileExistsError(f"{what}, no lock of a command: move it elsewhere, or choose another folder with --out")


def _owner(content: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}
