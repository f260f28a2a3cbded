"""What all commands say, and how they end."""

import contextlib
import errno
import os
import sys
from pathlib import Path

from continual_metaopt.analysis.escaping import for_terminal
from continual_metaopt.commands.interrupts import GONE
from continual_metaopt.study.jobs import StudyInterrupted

DEFAULT_STUDY = "quick"
PROGRAM = "continual-metaopt"
EXIT_FAILED, EXIT_USAGE, EXIT_LOCKED, EXIT_INTERRUPTED = 1, 2, 3, 130
ALL_RECORDED = "All samples so far are recorded; the same command goes on from there."


def _complain(text: str) -> None:
    """Say what is wrong, if there still is somebody to hear it."""
    with contextlib.suppress(OSError):  # such as of a terminal that was closed
        print(for_terminal(text), file=sys.stderr, flush=True)


def _said(error: OSError) -> str:
    """A sentence about files that cannot be read or written, and what to do if it is because of the disk."""
    from continual_metaopt.runs.outcome import NO_ACCESS, NO_ROOM

    said = (
        f"{error.strerror}: '{error.filename}'" if error.strerror and error.filename else error.strerror or str(error)
    )
    advice = {errno.ENOSPC: NO_ROOM, errno.EDQUOT: NO_ROOM, errno.EROFS: NO_ACCESS}.get(error.errno or 0)
    return f"{said}. {advice}" if advice else said


def _interruption(folder: Path) -> BaseException:
    """What to raise after Ctrl-C: whether there are runs to go on with is told."""
    return StudyInterrupted() if next(folder.rglob("status.json"), None) else KeyboardInterrupt()


def _print(text: str) -> None:
    """Print, unless nobody reads it any more; output that cannot be written keeps no file from being written."""
    try:
        print(for_terminal(text), flush=True)
    except OSError as error:
        if error.errno not in GONE:
            _complain(f"{PROGRAM}: the output cannot be written: {error.strerror}")
        _stop_printing()


def _stop_printing() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
