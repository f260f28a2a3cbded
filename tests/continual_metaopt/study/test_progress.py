"""What a log shows of many runs: a line now and then."""

import queue
import re
import sys
from typing import Any

import pytest

from continual_metaopt.study import progress
from continual_metaopt.study.progress import ProgressDisplay


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def shown(clock: Clock, display: ProgressDisplay, seconds: float, messages: Any = (), ended: int = 0) -> None:
    """Let time go by, and something happen."""
    clock.now += seconds
    for message in messages:
        display._messages.put(message)
    display.update(ended, 1000 * ended)


def test_labels_are_no_markup_and_no_commands(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    display = ProgressDisplay(2, queue.SimpleQueue(), True)
    display.start()
    display.stage("runs [bold]")
    display.note("[/red] and [link=x]y[/link]\x1b]0;x\x07")
    shown(clock, display, 16, [("lr = [1e-3] [/bold]\x1b[2J", 5, 10)])
    display.stop()
    shown_text = capsys.readouterr().err
    for part in (
        "[/red] and [link=x]y[/link]\\x1b]0;x\\x07",
        "lr = [1e-3] [/bold]\\x1b[2J",
        "runs [bold]",
        "0 of 2 runs",
    ):
        assert part in shown_text


def test_what_takes_long_before_the_first_sample_is_said_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(4, queue.SimpleQueue(), True, n_samples=4000)
    display.add_earlier(500)
    for seconds in (5, 6, 2):
        shown(clock, display, seconds, [("a, seed 0", 500, 1000)])
    assert capsys.readouterr().err == f"{progress.COMPILING}\n"
    display = ProgressDisplay(4, queue.SimpleQueue(), True, n_samples=4000)
    shown(clock, display, 9, [("a, seed 0", 10, 1000)])
    shown(clock, display, 3)
    assert capsys.readouterr().err == ""


def test_a_pipe_is_no_terminal_whatever_the_environment_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a notebook does for its shell commands
    display = ProgressDisplay(2, queue.SimpleQueue(), True)
    display.start()
    display.update(1)
    display.stop()
    assert capsys.readouterr() == ("", "")


def test_rows_of_80_columns_keep_seed_and_numbers(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    display = ProgressDisplay(12, queue.SimpleQueue(), True, n_samples=12_000_000)
    display.start()
    display.stage("choosing settings")
    label = "MetaOptimize blockwise, γ = 0.999, lr = 0.00179, meta_lr = 0.0121"
    shown(clock, display, 100, [(f"{label}, seed {seed}", 100_000, 1_000_000) for seed in (100, 101)])
    capsys.readouterr()
    display._progress.refresh()
    display.stop()
    rows = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", row) for row in capsys.readouterr().err.splitlines()]
    assert all(len(row) <= 80 for row in rows)
    total, *runs = [row for row in rows if "━" in row][:3]
    assert "0 of 12 runs" in total
    assert "2,000 samples/s" in total
    assert "1.6 hours left" in total
    assert [
        ("MetaOptimize" in row, f"… seed {seed}" in re.sub(" +", " ", row))
        for row, seed in zip(runs, (100, 101), strict=True)
    ] == [(True, True)] * 2


def test_lines_in_a_log_come_after_twice_as_long_each_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(4, queue.SimpleQueue(), True, n_samples=4000)
    display.start()
    display.stage("choosing settings")
    display.add_earlier(500)  # of the run that an earlier command began

    shown(clock, display, 14)
    assert capsys.readouterr().err == f"{progress.COMPILING}\n"
    shown(clock, display, 1, [("a, seed 0", 600, 1000), ("a, seed 1", 200, 1000)])
    # 800 samples less the 500 of before in 15 s; 3,200 are left
    line = "choosing settings: 0 of 4 runs, 2 under way, 20 samples/s, 3 min left\n"
    assert capsys.readouterr().err == line
    shown(clock, display, 29, [("a, seed 0", None, None)], ended=1)
    assert capsys.readouterr().err == ""
    display.note("a, seed 1: something happened")
    shown(clock, display, 1, [("a, seed 1", 850, 1000)])
    # 1,850 less 500 in 45 s; 2,150 are left
    assert capsys.readouterr().err.splitlines() == [
        "a, seed 1: something happened",
        "choosing settings: 1 of 4 runs, 1 under way, 30 samples/s, 72 s left",
    ]
    for _ in range(10):
        shown(clock, display, 600)
    assert len(capsys.readouterr().err.splitlines()) == 10  # after 60, 120, … s they were due; then every ten minutes
    display.stop()


def test_runs_are_counted_where_samples_are_not_known(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(4, queue.SimpleQueue(), True)
    display.stage("runs")

    shown(clock, display, 20, [("b", 50, 100)], ended=1)

    assert capsys.readouterr().err == "runs: 1 of 4 runs, 1 under way, 33 s left\n"


def test_quiet_shows_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay(1, queue.SimpleQueue(), False, n_samples=1000)
    display.start()
    display.note("something happened")
    shown(clock, display, 1000, [("a", 10, 1000)], ended=1)
    display.stop()

    assert capsys.readouterr() == ("", "")
