"""Writing files whole or not at all, naming them, and printing whatever the encoding."""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

MAX_BYTES = 120  # of a label in a file's name; most file systems allow 255 in all


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


def print_with_replacements() -> None:
    """From here on, print a question mark for what the encoding of this process's output lacks, rather than fail.

    Output that is redirected may have an old encoding without α, ₀ or −, as on Windows.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def file_names(labels: Iterable[str], separator: str = "_") -> dict[str, str]:
    """Names of files for labels: ASCII letters, digits, dots, and a separator for everything else; not too long.

    Greek letters are spelt out, since journals and arXiv take ASCII names only.

    Args:
        labels: all labels whose files share a folder, each once.
        separator: between words.

    Returns:
        Label → name. Where several would have the same name, all but the first have a number too.
    """
    names: dict[str, str] = {}
    known: set[str] = set()
    for label in labels:
        first = name = (
            short_name(re.sub(r"[^A-Za-z0-9_.]+", separator, _spelt_out(label)).strip(separator)) or "unnamed"
        )
        numbers = itertools.count(2)
        while name.casefold() in known:  # some file systems do not tell capital letters from small ones
            name = f"{first}{separator}{next(numbers)}"
        known.add(name.casefold())
        names[label] = name
    return names


def _spelt_out(label: str) -> str:
    """α as "alpha", ₀ as 0, é as e; other signs as they are."""
    letters = [letter for letter in unicodedata.normalize("NFKD", label) if not unicodedata.combining(letter)]
    names = ((letter, unicodedata.name(letter, "")) for letter in letters)
    return "".join(
        name.rsplit(" ", 1)[-1].lower() if name.startswith("GREEK SMALL LETTER") else letter for letter, name in names
    )


def short_name(name: str) -> str:
    """The beginning of a name, so short that a file system takes it with something before and behind."""
    return name.encode()[:MAX_BYTES].decode(errors="ignore")
