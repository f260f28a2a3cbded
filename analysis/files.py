"""Reading files that a stranger may have made, writing whole ones, naming them, and printing in any encoding."""

from __future__ import annotations

import io
import itertools
import os
import re
import stat
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

MAX_LENGTH = 120  # of a label in a file's name; most file systems allow 255 bytes in all
MAX_TEXT = 64 * 2**20  # bytes of a description such as config.json
_KINDS = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_regular(path: Path, at_most: int | None = None) -> BinaryIO:
    """Open a file of a record, of so many bytes at most, without waiting for anybody or following a link.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is not a regular file, or too large; the message names it.
        OSError: it cannot be opened.
    """
    _require_regular(path, path.lstat())  # first, since opening a device may do something
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        facts = os.fstat(descriptor)
        _require_regular(path, facts)
        if at_most is not None and facts.st_size > at_most:
            raise ValueError(f"'{path}' has {facts.st_size:,} bytes, and at most {at_most:,} are read")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, at_most: int = MAX_TEXT) -> bytes:
    """Read the whole of a file of a record; arguments and errors as for `open_regular`."""
    with open_regular(path, at_most) as file:
        return file.read(at_most)


def is_regular(path: Path) -> bool:
    """Whether there is a file, which is neither a link nor a pipe, a device or a folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def real_folder(folder: Path) -> Path:
    """Return a folder, which need not exist; one that is a link, which a stranger may have made, is refused."""
    if folder.is_symlink():
        raise FileExistsError(f"'{folder}' is a link, and nothing is written through it; put a folder in its place")
    return folder


def _require_regular(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "a device")
        raise ValueError(f"'{path}' is {kind}, not a file")


def with_home(arguments: Iterable[str]) -> list[str]:
    """Spell out `~` and `~name` at the beginning of paths, which shells leave to programs in `--out=~/x`."""
    flag_and_path = re.compile(r"(--[\w.-]+=)?(~[\w.-]*(?:/.*)?)", re.DOTALL)

    def spelt_out(argument: str) -> str:
        parts = flag_and_path.fullmatch(argument)
        if not parts:
            return argument
        return (parts[1] or "") + os.path.expanduser(parts[2])  # noqa: PTH111 (pathlib's raises where there is no home)

    return [spelt_out(argument) for argument in arguments]


def begin_command(argv: Sequence[str] | None) -> list[str]:
    """Take the arguments of a command, those of the process if None, `with_home`; and `print_with_replacements`."""
    print_with_replacements()
    return with_home(sys.argv[1:] if argv is None else argv)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, whose folder is made if need be, then rename it to `path`.

    The content is on the disk before the file has its name, so that a machine that goes down leaves no empty file.

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


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8; path, value and errors as of `write_whole`."""
    return write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))


def print_with_replacements() -> None:
    """From here on, print a question mark for what the encoding of this process's output lacks, rather than fail.

    Output that is redirected may have an old encoding without α, ₀ or −, as on Windows.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def print_to_reader(text: str) -> None:
    """Print a text, unless its reader has seen enough and is gone, as in `… | head`."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def file_names(labels: Iterable[str], separator: str = "_") -> dict[str, str]:
    """Names of files for labels and other texts of records, whoever made these: all writers take theirs from here.

    A name has ASCII letters, digits, dots, and a separator for everything else. It neither begins nor ends with a dot,
    leads nowhere else and is not too long. Greek letters are spelt out, since journals and arXiv take ASCII names only.

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
            re.sub(r"[^A-Za-z0-9_.]+", separator, _spelt_out(label))[:MAX_LENGTH].strip(f"{separator}.") or "unnamed"
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
