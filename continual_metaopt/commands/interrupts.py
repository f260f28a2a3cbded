"""The program ``continual-metaopt``: the command line, with Ctrl-C answered from the first moment on.

What the command line needs takes a second to import, so none of it is imported at the top of this file.
"""

import contextlib
import errno
import os
import signal
import sys
from typing import Any

from continual_metaopt.study.signals import TO_STOP

NOTHING_BEGUN = "Interrupted before any run began; the same command starts again."
GONE = (errno.EPIPE, errno.EIO)  # of output that nobody reads any more, as in `… | head` or a closed terminal


def ctrl_c_raises() -> None:
    """From here on there is something to bring to its end: let Ctrl-C and the like raise ``KeyboardInterrupt``."""
    for number in TO_STOP:
        if signal.getsignal(number) is end_at_once:
            signal.signal(number, signal.default_int_handler)


def end_at_once(number: int, frame: Any) -> None:
    """End without a traceback, whatever is being imported."""
    with contextlib.suppress(OSError):
        print(f"\n{NOTHING_BEGUN}", file=sys.stderr, flush=True)
    os._exit(130)
