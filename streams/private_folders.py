"""Folders that nobody but this user can write, for what is trusted when it is read again."""

import os
import tempfile
from pathlib import Path


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user can write, and those above it, if it is not there; return its path.

    Raises:
        OSError: it cannot be made or written, or it is a link or somebody else's, or others can write in it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if why := "it is a link" if folder.is_symlink() else distrusted(folder):
        raise PermissionError(why)
    tempfile.TemporaryFile(dir=folder).close()
    return folder


def distrusted(folder: Path, *trusted: int) -> str:
    """Tell why a folder may be somebody else's; empty if it is this user's or one of the ``trusted`` users'."""
    if os.name == "nt":
        return ""
    status = folder.stat()
    if status.st_uid not in (os.geteuid(), *trusted):
        return "it belongs to another user"
    return f"others may write to it; take that from them with chmod go-w '{folder}'" if status.st_mode & 0o022 else ""


def temporary_folder(purpose: str) -> Path:
    """Make or find this user's folder for temporary files of one purpose, which later processes find again.

    Raises:
        OSError: as of ``private_folder``; or there is no folder for temporary files.
    """
    user = os.geteuid() if os.name != "nt" else os.environ.get("USERNAME", "")
    return private_folder(Path(tempfile.gettempdir()) / f"continual-metaopt-{user}-{purpose}")
