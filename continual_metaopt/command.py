"""The program ``continual-metaopt``: the command line, with Ctrl-C answered from the first moment on.

What the command line needs takes a second to import, so none of it is imported at the top of this file.
"""

import os
import signal
import sys
from typing import Any

NOTHING_BEGUN = "Interrupted before any run began; the same command starts again."


def main() -> int:
    """Run the command line with the arguments of this process; returns the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where Ctrl-C is to be ignored
        signal.signal(signal.SIGINT, _end_at_once)
    from continual_metaopt.cli import main as run_command_line

    status = run_command_line()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # as in `… | head`; Python would try again while it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def ctrl_c_raises() -> None:
    """From here on there is something to bring to its end: let Ctrl-C raise ``KeyboardInterrupt``."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_at_once(number: int, frame: Any) -> None:
    """End without a traceback, whatever is being imported."""
    print(f"\n{NOTHING_BEGUN}", file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
