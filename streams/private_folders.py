"""Folders that nobody but this user can write, for what is trusted when it is read again."""

import os
import stat
import tempfile
from pathlib import Path


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user can write, if it is not there.

    Args:
        folder: its path; folders above it are made as needed.

    Returns:
        The path.

    Raises:
        OSError: it cannot be made or written, or it is somebody else's, or others can write in it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if os.name != "nt" and (
        not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022
    ):
        raise PermissionError(f"'{folder}' is a link or another user's folder, or others can write in it")
    tempfile.TemporaryFile(dir=folder).close()
    return folder


def temporary_folder(purpose: str) -> Path:
    """A folder of this user for temporary files that later processes find again, made if it is not there.

    Args:
        purpose: ends its name.

    Returns:
        Its path.

    Raises:
        OSError: as of ``private_folder``; or there is no folder for temporary files.
    """
    user = os.geteuid() if os.name != "nt" else os.environ.get("USERNAME", "")
    return private_folder(Path(tempfile.gettempdir()) / f"continual-metaopt-{user}-{purpose}")
