"""Progress of many runs: bars with the time left on a terminal, a line now and then in a log."""

import queue
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0


class ProgressDisplay:
    """Shows how far runs in other processes are.

    Args:
        n_runs: number of runs in all.
        messages: queue of (run, samples done, samples to do), the latter two None when the run has ended.
        show: whether to show anything.
    """

    def __init__(self, n_runs: int, messages: Any, show: bool) -> None:
        self._n_runs, self._messages = n_runs, messages
        self._console = Console(file=sys.stderr)
        self._draws = show and self._console.is_terminal
        self._writes_lines = show and not self._draws
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._draws,
            speed_estimate_period=60,
        )
        self._all = self._progress.add_task("", total=float(n_runs), speed="")
        self._runs: dict[str, TaskID] = {}
        self._shares: dict[str, float] = {}
        self._n_ended = 0
        self._stage = ""
        self._started = self._last_line = time.monotonic()

    def start(self) -> None:
        """Begin to draw."""
        self._progress.start()

    def stop(self) -> None:
        """Clear what was drawn."""
        self._progress.stop()

    def stage(self, name: str) -> None:
        """Name what is being done now."""
        self._stage = name

    def note(self, text: str) -> None:
        """Say something beside the bars."""
        if self._draws or self._writes_lines:
            self._progress.console.print(text, style="yellow", highlight=False)

    def update(self, n_ended: int) -> None:
        """Take in all messages, and ``n_ended`` more runs that have ended."""
        self._n_ended += n_ended
        while True:
            try:
                self._take(*self._messages.get_nowait())
            except queue.Empty:
                break
        completed = self._n_ended + sum(self._shares.values())
        description = f"{self._stage}: {self._n_ended} of {self._n_runs} runs"
        self._progress.update(self._all, completed=completed, description=description)
        now = time.monotonic()
        if self._writes_lines and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = f", {(now - self._started) * (self._n_runs / completed - 1):.0f} s left" if completed else ""
            self._console.print(f"{description}{left}", highlight=False)

    def _take(self, run: str, done: int | None, total: int | None) -> None:
        if done is None or total is None:
            self._shares.pop(run, None)
            task = self._runs.pop(run, None)
            if task is not None:
                self._progress.remove_task(task)
            return
        if run not in self._runs:
            self._runs[run] = self._progress.add_task(run, total=total, speed="")
        self._shares[run] = done / total
        task = self._runs[run]
        self._progress.update(task, completed=done)
        speed = self._progress.tasks[self._progress.task_ids.index(task)].speed
        self._progress.update(task, speed=f"{speed:,.0f} samples/s" if speed else "")
