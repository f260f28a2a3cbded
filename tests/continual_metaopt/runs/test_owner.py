"""Two processes never write into one run directory."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.runs import owner as in_use
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.files import read_json, write_json
from continual_metaopt.runs.outcome import fail
from continual_metaopt.runs.owner import RunInUse, alone_in, this_process
from tests.continual_metaopt.conftest import environment, exactly, files_of
from tests.continual_metaopt.runs.test_directory import ENGINE, portion, save

HELD = """
import os, sys
from pathlib import Path
from continual_metaopt.runs.owner import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    os.kill(os.getpid(), 9) if sys.stdin.readline() else None
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_use, "SECONDS_FOR_OTHERS", 0.3)
    monkeypatch.setattr(in_use, "SECONDS_UNTIL_DEAD", 0.3)
    monkeypatch.setattr(in_use, "SECONDS_BETWEEN_LOOKS", 0.01)


def status_of(run: Path, **status: Any) -> None:
    run.mkdir(exist_ok=True)
    write_json(run / "status.json", {"state": "running"} | status)


def refused(run: Path, by: str) -> str:
    return exactly(f"'{run}' is in use by {by}. Wait until it has ended, or stop it there, and give the command again")


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked")
def test_a_run_that_another_process_works_on_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", HELD, str(run)]
    other = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), bufsize=1
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"

    with pytest.raises(RunInUse, match=refused(run, "another process")), alone_in(run):
        pytest.fail("two work on it")
    other.stdin.write("be killed\n")
    other.stdin.close()
    with alone_in(run):  # waits for its end
        assert list(run.iterdir()) == []
    assert other.wait() < 0
    other.stdout.close()


def test_of_two_threads_one_waits(tmp_path: Path) -> None:
    seen = []

    def work(number: int) -> None:
        with alone_in(tmp_path):
            seen.append(number)
            time.sleep(0.02)
            seen.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert seen[::2] == seen[1::2]


@pytest.mark.parametrize("owner", [{"host": "elsewhere", "pid": 7}, this_process() | {"pid": os.getppid()}])
def test_a_live_owner_that_the_lock_does_not_tell_of_is_refused(
    tmp_path: Path, owner: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_use, "SECONDS_UNTIL_DEAD", 30.0)  # a machine under load may delay signs of life
    status_of(tmp_path, owner=owner | {"born": None})
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            status_of(tmp_path, owner=owner | {"born": None}, step=time.monotonic())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with (
            pytest.raises(RunInUse, match=refused(tmp_path, f"process {owner['pid']} on {owner['host']}")),
            alone_in(tmp_path),
        ):
            pytest.fail("two work on it")
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("status", "waits"),
    [
        ({"owner": {"host": "elsewhere", "pid": 7}}, True),
        ({"owner": this_process() | {"pid": 2**22 + 1}}, False),
        ({"owner": this_process()}, False),  # an earlier run of this very process
        ({"owner": {"host": "elsewhere", "pid": 7}, "state": "failed"}, False),
        ({"owner": {"host": this_process()["host"], "pid": 10**30}}, False),
        ({"owner": 5}, False),
        ({}, False),
    ],
)
def test_a_dead_owner_keeps_nobody_out(tmp_path: Path, status: dict[str, Any], waits: bool) -> None:
    status_of(tmp_path, **status)
    start = time.monotonic()

    with alone_in(tmp_path):
        assert (time.monotonic() - start >= 0.3) is waits


def test_a_process_whose_run_another_machine_has_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.start({"run_id": "abc"})
    directory.observe(portion(0, 5))
    directory.checkpoint(save, ENGINE)
    status_of(tmp_path, owner={"host": "elsewhere", "pid": 7})
    before = files_of(tmp_path)
    directory.observe(portion(5, 5))
    message = exactly(f"'{tmp_path}' was taken over by process 7 on elsewhere, so this process has stopped")

    with pytest.raises(RunInUse, match=message):
        directory.checkpoint(save, ENGINE)
    with pytest.raises(RunInUse, match=message):
        fail(directory, OSError("something else"))

    assert files_of(tmp_path) == before
    assert read_json(tmp_path / "status.json")["owner"]["host"] == "elsewhere"
