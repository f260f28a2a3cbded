"""Writing files whole or not at all, and naming them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    The content is on the disk before the file has its name, so that a machine that goes down leaves no empty file.

    Args:
        path: the file to be written; its folder is made if it does not exist.
        write: called with the temporary path.

    Returns:
        `path`.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # a link that somebody has left there would be followed
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def file_names(labels: Iterable[str], separator: str = "_") -> dict[str, str]:
    """Names of files for labels: letters, digits and dots, with a separator for everything else.

    Args:
        labels: all labels whose files share a folder, each once.
        separator: between words.

    Returns:
        Label → name. Where several would have the same name, all but the first have a number too.
    """
    names: dict[str, str] = {}
    known: Counter[str] = Counter()
    for label in labels:
        name = re.sub(r"[^\w.]+", separator, label).strip(separator)
        known[name.casefold()] += 1  # some file systems do not tell capital letters from small ones
        repeated = known[name.casefold()]
        names[label] = name if repeated == 1 else f"{name}{separator}{repeated}"
    return names
