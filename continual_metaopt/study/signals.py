"""The signals that ask a process to stop."""

import signal

TO_STOP = [  # signals that ask to stop: Ctrl-C, what schedulers send before they kill, and the end of a terminal
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
