"""What ``status`` says of a folder, from files that are written here by hand."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.filesize import decimal

from continual_metaopt.analysis.escaping import for_terminal
from continual_metaopt.commands import main as cli
from continual_metaopt.runs.owner import this_process
from continual_metaopt.study.lock import LOCK
from continual_metaopt.study.overview import bytes_below, overview
from tests.continual_metaopt.conftest import described

HERE = {"host": socket.gethostname(), "pid": os.getpid()}
DEAD = {"host": socket.gethostname(), "pid": 2**22 + 1}  # beyond the highest number of a process


def write_run(path: Path, state: str, seconds_ago: float = 20, **status: Any) -> None:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(described({"n_samples": 40_000})))
    heartbeat = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat()
    facts = {"state": state, "reason": None, "step": 10_000, "heartbeat": heartbeat, "owner": HERE}
    (path / "status.json").write_text(json.dumps(facts | {"samples_per_second": 1000.0} | status))


def lock_of(owner: dict[str, Any]) -> str:
    return f"filelock/2\nowner={json.dumps(owner)}\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for seed in range(3):
        write_run(tmp_path / "runs" / f"a{seed}", "finished", step=40_000)
    write_run(tmp_path / "runs" / "b0", "diverged", reason="the loss is nan")
    write_run(tmp_path / "runs" / "c0", "running")
    write_run(tmp_path / "runs" / "c1", "failed", reason="interrupted by the user")
    (tmp_path / "study.json").write_text(json.dumps({"n_runs": 9}))
    return tmp_path


def test_what_is_well_is_counted(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["status", str(study)])

    assert status == 0
    first, *others = capsys.readouterr().out.splitlines()
    counts = "3 finished, 1 diverged, 1 running, 1 interrupted, 3 not begun"
    assert first == f"{study}: 9 runs: {counts}; {decimal(bytes_below(study))} on disk"
    assert others == [
        "nobody works on it",
        "running: c0: 25% of 40,000 samples, 1,000 samples/s, 30 s left, last sign of life 20 s ago",
        f"diverged: {study / 'runs' / 'b0'}: the loss is nan",
    ]


def test_who_works_on_a_study_is_told(study: Path) -> None:
    lock = this_process() | {"since": "today"}
    (study / LOCK).write_text(lock_of(lock))
    assert overview(study).text().splitlines()[1] == (
        f"worked on by process {os.getpid()} on {socket.gethostname()} since today"
    )
    (study / LOCK).write_text(lock_of(lock | DEAD))
    assert overview(study).text().splitlines()[1] == "nobody works on it"


def test_failures_are_grouped_by_reason_and_change_the_exit_status(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        write_run(study / "runs" / f"d{seed}", "failed", reason="OSError: disk full")
    write_run(study / "selection" / "e", "failed", reason="ValueError: no")
    (study / "runs" / "b0" / "status.json").write_text("{")

    status = cli.main(["status", str(study)])

    assert status == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:-1] == [
        f"failed: {study / 'runs' / 'd0'} and 1 more: OSError: disk full",
        f"failed: {study / 'selection' / 'e'}: ValueError: no",
    ]
    assert lines[-1].startswith(
        f"damaged: {study / 'runs' / 'b0'}: {study / 'runs' / 'b0' / 'status.json'}: cannot be read ("
    )


def test_what_records_say_is_told_in_one_line_without_controls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", "failed", reason="OSError\nnobody works on it\x1b[2J\r" + "x" * 10**6)
    write_run(tmp_path / "b", "running", owner={"host": "b\x1b]0;x\x07", "pid": 1})
    write_run(tmp_path / "c", "finished", step="many")
    (tmp_path / LOCK).write_text(lock_of({"pid": 1, "host": "h" * 10**6, "since": "\x1b"}))

    assert cli.main(["status", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert printed == for_terminal(printed)
    assert len(printed) < 5000
    assert [line.split(":")[0] for line in printed.splitlines()[2:]] == ["running", "failed", "damaged"]


@pytest.mark.parametrize(
    ("owner", "seconds_ago", "state", "about"),
    [
        (
            DEAD,
            20,
            "stopped",
            "25% of 40,000 samples, last sign of life 20 s ago, its process is dead; the command that began it goes on "
            "from its last checkpoint",
        ),
        ({"host": "elsewhere", "pid": 1}, 3600, "stopped", "25% of 40,000 samples, last sign of life 1.0 hours ago"),
        (
            {"host": "elsewhere", "pid": 1},
            -3600,  # its clock is ahead
            "running",
            "25% of 40,000 samples, 1,000 samples/s, 30 s left, last sign of life 0 s ago",
        ),
    ],
)
def test_runs_that_nobody_runs_are_not_running(
    tmp_path: Path, owner: dict[str, Any], seconds_ago: float, state: str, about: str
) -> None:
    write_run(tmp_path / "run", "running", seconds_ago, owner=owner)

    (run,) = overview(tmp_path).runs

    assert (run.state, run.about) == (state, about)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "nowhere: no such folder"),
        (".", ".: no run directory (a directory with config.json) here or below"),
    ],
)
def test_a_folder_without_runs_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)

    assert cli.main(["status", folder]) == 2

    assert capsys.readouterr().err == f"continual-metaopt: {message}\n"


def test_what_was_set_aside_is_told(tmp_path: Path) -> None:
    note = "'a/checkpoint.npz' is damaged (empty); what was recorded is kept in 'a/damaged', and the run begins again"
    write_run(tmp_path / "a", "finished", notes=[note])
    write_run(tmp_path / "a" / "damaged", "failed")
    write_run(tmp_path / "b", "running", notes=[])

    found = overview(tmp_path)
    assert found.text().splitlines()[3:] == [f"noted: {note}"]
    assert (found.is_sound, len(found.runs)) == (True, 2)  # what was set aside is no run
