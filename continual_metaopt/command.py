"""The program ``continual-metaopt``: the command line, with Ctrl-C answered from the first moment on.

What the command line needs takes a second to import, so none of it is imported at the top of this file.
"""

import contextlib
import errno
import os
import signal
import sys
from typing import Any

NOTHING_BEGUN = "Interrupted before any run began; the same command starts again."
GONE = (errno.EPIPE, errno.EIO)  # of output that nobody reads any more, as in `… | head` or a closed terminal
TO_STOP = [  # signals that ask to stop: Ctrl-C, what schedulers send before they kill, and the end of a terminal
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def main() -> int:
    """Run the command line with the arguments of this process; returns the exit status."""
    for number in TO_STOP:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):  # not where it is to be ignored
            signal.signal(number, _end_at_once)
    os.environ["MPLBACKEND"] = "agg"  # no window is opened; a notebook names a backend that only it can use
    from continual_metaopt.cli import main as run_command_line

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


def ctrl_c_raises() -> None:
    """From here on there is something to bring to its end: let Ctrl-C and the like raise ``KeyboardInterrupt``."""
    for number in TO_STOP:
        if signal.getsignal(number) is _end_at_once:
            signal.signal(number, signal.default_int_handler)


def _end_at_once(number: int, frame: Any) -> None:
    """End without a traceback, whatever is being imported."""
    with contextlib.suppress(OSError):
        print(f"\n{NOTHING_BEGUN}", file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
