"""The program's entry point."""

import contextlib
import os
import signal
import sys

from continual_metaopt.commands.interrupts import GONE, end_at_once
from continual_metaopt.study.signals import TO_STOP


def main() -> int:
    """Run the command line with the arguments of this process; returns the exit status."""
    for number in TO_STOP:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):  # not where it is to be ignored
            signal.signal(number, end_at_once)
    os.environ["MPLBACKEND"] = "agg"  # no window is opened; a notebook names a backend that only it can use
    from continual_metaopt.commands.main import main as run_command_line

    status = run_command_line()
    try:
        if sys.stdout is not None:  # it was closed before the program began
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in GONE:
            status = 2
            with contextlib.suppress(OSError):
                print(f"the output cannot be written: {error.strerror}", file=sys.stderr, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would try again while it ends
    return status
