"""What all commands say, and how they end."""

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from continual_metaopt.analysis.escaping import for_terminal
from continual_metaopt.commands.interrupts import GONE
from continual_metaopt.optim.registry import MissingPackageError
from continual_metaopt.study.jobs import StudyInterrupted

if TYPE_CHECKING:
    from continual_metaopt.analysis import Runs

DEFAULT_STUDY = "quick"
PROGRAM = "continual-metaopt"
EXIT_FAILED, EXIT_USAGE, EXIT_LOCKED, EXIT_INTERRUPTED = 1, 2, 3, 130
ALL_RECORDED = "All samples so far are recorded; the same command goes on from there."


def complain(text: str) -> None:
    """Say what is wrong, if there still is somebody to hear it."""
    with contextlib.suppress(OSError):  # such as of a terminal that was closed
        print(for_terminal(text), file=sys.stderr, flush=True)


def said(error: Exception) -> str:
    """Say what went wrong: which file cannot be read or written, and what to do if it is because of the disk."""
    from continual_metaopt.runs.outcome import NO_ACCESS, NO_ROOM, reason_of

    if isinstance(error, ValueError | MissingPackageError):
        return str(error)
    if not isinstance(error, OSError):  # such as of PyTorch's libraries, where there is little memory
        return reason_of(error)
    text = error.strerror or str(error)
    if error.strerror and error.filename:
        text = f"{error.strerror}: '{error.filename}'"
    advice = {errno.ENOSPC: NO_ROOM, errno.EDQUOT: NO_ROOM, errno.EROFS: NO_ACCESS}.get(error.errno or 0)
    return f"{text}. {advice}" if advice else text


def interruption(folder: Path) -> BaseException:
    """Find out what to raise after Ctrl-C: whether there are runs to go on with is told."""
    return StudyInterrupted() if next(folder.rglob("status.json"), None) else KeyboardInterrupt()


def show(text: str) -> None:
    """Print, unless nobody reads it any more; output that cannot be written keeps no file from being written."""
    try:
        print(for_terminal(text), flush=True)
    except OSError as error:
        if error.errno not in GONE:
            complain(f"{PROGRAM}: the output cannot be written: {error.strerror}")
        stop_printing()


def show_written(paths: list[Path], text: str = "") -> None:
    """Print a text and the files that were written."""
    show("\n".join([text] * bool(text) + [f"wrote {path}" for path in paths]))


def complain_of_left_out(runs: "Runs") -> None:
    """Say which runs cannot be read, and why."""
    for reason in runs.left_out.values():
        complain(f"left out: {reason}")


def stop_printing() -> None:
    """Send whatever is printed from here on nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
