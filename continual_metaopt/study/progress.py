"""Progress of many runs: bars with the time left on a terminal, a line now and then in a log."""

import contextlib
import queue
import sys
import threading
import time
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Column

from continual_metaopt.analysis.escaping import for_terminal, one_line
from continual_metaopt.study.notebook import notebook_bar

SECONDS_TO_START = 10.0  # after which it is said why nothing seems to happen
COMPILING = "starting; the first time, code is compiled, which takes about 40 s"
SECONDS_BETWEEN_LINES = (15.0, 600.0)  # at first, and at most: each takes twice as long as the one before


class ProgressDisplay:
    """Shows how far runs in other processes are.

    Args:
        n_runs: number of runs in all.
        messages: queue of (run, samples done, samples to do), the latter two None when the run has ended.
        show: whether to show anything.
        n_samples: samples of all runs together; progress is measured by runs where it is 0.
    """

    def __init__(self, n_runs: int, messages: Any, show: bool, n_samples: int = 0) -> None:
        self._n_runs, self._n_samples, self._messages = n_runs, n_samples, messages
        # a notebook's shell commands are told to write in colour, as if there were a terminal
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._console = Console(file=cast(IO[str], _FileThatMayGoAway(sys.stderr)), force_terminal=is_terminal)
        self._notebook = notebook_bar() if show else None
        self._draws = show and self._console.is_terminal and self._notebook is None
        self._writes_lines = show and not self._draws and self._notebook is None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            *(_numbers("{task.fields[which]}"), BarColumn(bar_width=12)),
            *(_numbers("{task.fields[speed]}"), _numbers("{task.fields[left]}")),
            console=self._console,
            expand=True,
            transient=True,
            disable=not self._draws,
            speed_estimate_period=60,
        )
        self._all = self._progress.add_task("", total=float(n_samples or n_runs), which="", speed="", left="")
        self._runs: dict[str, TaskID] = {}  # under way
        self._ended, self._samples_ended = 0, 0
        self._earlier = 0
        self._has_begun = False
        self._lock = threading.Lock()
        self._stage = ""
        self._started = self._last_line = time.monotonic()
        self._between_lines = SECONDS_BETWEEN_LINES[0]

    def start(self) -> None:
        """Begin to draw."""
        self._progress.start()

    def stop(self) -> None:
        """Clear what was drawn on a terminal; a notebook keeps the bar as it is at the end."""
        self._progress.stop()
        if self._notebook is not None:
            seconds = duration(time.monotonic() - self._started)
            self._notebook.draw(
                self._ended, self._n_runs, f"{self._ended} of {self._n_runs} runs, {seconds}", last=True
            )

    def stage(self, name: str) -> None:
        """Name what is being done now."""
        self._stage = name

    def note(self, text: str) -> None:
        """Say something beside the bars."""
        if self._draws or self._writes_lines:
            self._progress.console.print(for_terminal(text), style="yellow", markup=False, highlight=False)

    def add_earlier(self, n_samples: int) -> None:
        """Take note of samples that were done before this command, which tell nothing of its speed."""
        with self._lock:
            self._earlier += n_samples

    def update(self, n_ended: int, n_samples: int = 0) -> None:
        """Take in all messages, and ``n_ended`` more runs that have ended, with ``n_samples`` samples together."""
        self._ended += n_ended
        self._samples_ended += n_samples
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(*self._messages.get_nowait())
        seconds = time.monotonic() - self._started
        completed, speed, left = self._how_far(seconds)
        if not self._has_begun:
            self._has_begun = completed > self._earlier or seconds > SECONDS_TO_START
            if completed <= self._earlier:
                left = "starting"
                if seconds > SECONDS_TO_START:
                    self.note(COMPILING)
        which = f"{self._ended} of {self._n_runs} runs"
        self._progress.update(
            self._all,
            completed=completed,
            total=max(completed, self._n_samples or self._n_runs),
            description=self._stage,
            which=which,
            speed=speed,
            left=left,
        )
        if self._notebook is not None:
            text = ", ".join(filter(None, [f"{self._stage}: {which}", speed, left]))
            self._notebook.draw(completed, max(completed, self._n_samples or self._n_runs), text)
        now = time.monotonic()
        if self._writes_lines and now - self._last_line >= self._between_lines:
            self._last_line = now
            self._between_lines = min(2 * self._between_lines, SECONDS_BETWEEN_LINES[1])
            parts = [f"{self._stage}: {which}", f"{len(self._runs)} under way", speed, left]
            self._console.print(", ".join(filter(None, parts)), markup=False, highlight=False)

    def _how_far(self, seconds: float) -> tuple[float, str, str]:
        """What is completed, in samples or runs, how fast that goes, and how long the rest will take."""
        seconds, under_way = max(seconds, 1e-3), [self._task(run) for run in self._runs]
        if self._n_samples:
            completed = self._samples_ended + sum(task.completed for task in under_way)
            rate = max(0.0, completed - self._earlier) / seconds
            left = (self._n_samples - completed) / rate if rate else None
            return completed, f"{rate:,.0f} samples/s" if rate else "", _left(left)
        completed = self._ended + sum(task.completed / (task.total or 1) for task in under_way)
        return completed, "", _left(seconds * (self._n_runs / completed - 1) if completed else None)

    def _take(self, run: str, done: int | None, total: int | None) -> None:
        if done is None or total is None:
            if run in self._runs:
                self._progress.remove_task(self._runs.pop(run))
            return
        if run not in self._runs:
            label, _, seed = one_line(run).rpartition(", ")  # a long label is cut off, but not the seed
            self._runs[run] = self._progress.add_task(label, total=total, which=seed, speed="", left="")
        self._progress.update(self._runs[run], completed=done)
        task = self._task(run)
        speed = f"{task.speed:,.0f} samples/s" if task.speed else ""
        self._progress.update(task.id, speed=speed, left=_left(task.time_remaining))

    def _task(self, run: str) -> Task:
        return self._progress.tasks[self._progress.task_ids.index(self._runs[run])]


def _numbers(text: str) -> TextColumn:
    """A column as wide as what it shows."""
    return TextColumn(text, markup=False, justify="right", table_column=Column(no_wrap=True))


class _FileThatMayGoAway:
    """A pipe that its reader may close, or a terminal that may be closed, which is no reason to stop."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write, if anybody reads it."""
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def duration(seconds: float) -> str:
    """Write a time span for people.

    Example:
        >>> duration(40), duration(720), duration(12240)
        ('40 s', '12 min', '3.4 hours')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3420 else f"{seconds / 3600:,.1f} hours"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(max(0.0, seconds))} left"
