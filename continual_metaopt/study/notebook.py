"""A progress bar in a notebook."""

import sys
import time
from html import escape
from typing import Any

SECONDS_BETWEEN_DRAWINGS = 0.5


def notebook_bar() -> "NotebookBar | None":
    """Make a bar if this process is a notebook's kernel; None elsewhere."""
    if "IPython" not in sys.modules:
        return None
    shell = sys.modules["IPython"].get_ipython()
    return NotebookBar() if shell is not None and hasattr(shell, "kernel") else None


class NotebookBar:
    """A line of HTML below a cell that changes as runs go on."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn = 0.0

    def draw(self, completed: float, total: float, text: str, last: bool = False) -> None:
        """Show how much is completed, with a text beside the bar; at most twice a second unless it is the last time."""
        now = time.monotonic()
        if now - self._drawn < SECONDS_BETWEEN_DRAWINGS and not last:
            return
        self._drawn = now
        from IPython.display import HTML, display

        shown = HTML(f'<progress value="{completed:g}" max="{total:g}" style="width:20em"></progress> {escape(text)}')
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)
