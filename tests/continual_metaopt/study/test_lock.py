"""Who may work on a study: one command at a time, and a dead one does not keep others out."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.runs.processes import is_alive, this_process
from continual_metaopt.study import lock as study_lock
from continual_metaopt.study.lock import LOCK, StudyLock, StudyLocked
from tests.continual_metaopt.conftest import environment, exactly

SINCE = "2026-01-02T03:04:05+00:00"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_lock, "SECONDS_BETWEEN_BEATS", 0.02)
    monkeypatch.setattr(study_lock, "SECONDS_UNTIL_DEAD", 0.3)
    monkeypatch.setattr(study_lock, "SECONDS_BETWEEN_LOOKS", 0.01)


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_behind(folder: Path, **owner: Any) -> bytes:
    content = json.dumps(this_process() | {"since": SINCE, "token": "another", "beats": 3} | owner)
    (folder / LOCK).write_text(content)
    return content.encode()


def locked(folder: Path, pid: int, host: str, since: str = SINCE) -> str:
    return exactly(
        f"'{folder}' is in use by another command, process {pid} on {host} since {since}. Wait until it has ended or "
        "stop it there, or choose another folder with --out"
    )


def test_the_second_command_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with StudyLock(tmp_path / "study"):
        owner = json.loads((tmp_path / "study" / LOCK).read_text())
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
        with (
            pytest.raises(StudyLocked, match=locked(tmp_path / "study", os.getpid(), owner["host"], owner["since"])),
            StudyLock(tmp_path / "study"),
        ):
            pytest.fail("it was locked")
        assert json.loads((tmp_path / "study" / LOCK).read_text())["token"] == owner["token"]

    assert list((tmp_path / "study").iterdir()) == []
    with StudyLock(tmp_path / "study"):
        pass


def test_a_dead_owner_on_this_machine_keeps_nobody_out(tmp_path: Path, dead: int) -> None:
    left_behind(tmp_path, pid=dead)
    said: list[str] = []

    with StudyLock(tmp_path, said.append):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()

    assert said == [f"freed the lock of process {dead} on {socket.gethostname()} since {SINCE}, which is dead"]
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_no_sign_of_life(tmp_path: Path) -> None:
    if this_process()["born"] is None:
        pytest.skip("the system does not tell when a process began")
    left_behind(tmp_path, born="1")  # and our own number

    with StudyLock(tmp_path):
        pass


@pytest.fixture
def beating(tmp_path: Path) -> Iterator[Path]:
    """A folder whose lock another machine rewrites, with a clock that is a year behind."""
    ended = threading.Event()

    def beat() -> None:
        for beats in range(1000):
            (tmp_path / ".new").write_text(
                json.dumps({"host": "elsewhere", "pid": 7, "since": SINCE, "token": "theirs", "beats": beats})
            )
            (tmp_path / ".new").replace(tmp_path / LOCK)
            if ended.wait(0.05):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    while not (tmp_path / LOCK).exists():
        time.sleep(0.01)
    yield tmp_path
    ended.set()
    thread.join()


def test_an_owner_elsewhere_lives_while_its_file_changes(beating: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_lock, "SECONDS_UNTIL_DEAD", 30.0)  # a machine under load may delay signs of life
    said: list[str] = []

    with pytest.raises(StudyLocked, match=locked(beating, 7, "elsewhere")), StudyLock(beating, said.append):
        pytest.fail("it was locked")

    assert said == [
        f"'{beating / LOCK}' is of process 7 on elsewhere since {SINCE}; waiting up to 30 s for a sign of life"
    ]


@pytest.mark.parametrize("owner", [{"host": "elsewhere", "pid": 7}, {"machine": "before it was booted anew"}, None])
def test_an_owner_elsewhere_is_dead_when_its_file_does_not_change(tmp_path: Path, owner: dict[str, Any] | None) -> None:
    left_behind(tmp_path, **(owner or {}))
    if owner is None:
        (tmp_path / LOCK).write_text("{")  # damaged
    # neither a clock that jumped nor the time of the file decides
    os.utime(tmp_path / LOCK, (2**33, 2**33))
    said: list[str] = []
    started = time.monotonic()

    with StudyLock(tmp_path, said.append):
        assert time.monotonic() - started >= 0.3

    assert len(said) == 2
    assert said[1].startswith("freed the lock of ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.symlink_to("nowhere"), "is a link, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a link, not a file"),
        (os.mkfifo, "is a pipe, not a file"),
        (Path.mkdir, "is a folder, not a file"),
        (lambda path: path.write_text('{"lockfileVersion": 3}'), "is of another program"),
        (lambda path: path.write_text("mine"), "is of another program"),
    ],
)
def test_what_is_no_lock_is_left_alone_and_said(tmp_path: Path, make: Any, what: str) -> None:
    make(tmp_path / LOCK)
    before = (tmp_path / LOCK).lstat()[:-3]  # without times, of which reading changes one

    message = (
        f"'{tmp_path / LOCK}' {what}, no lock of a command: move it elsewhere, or choose another folder with --out"
    )
    with pytest.raises(FileExistsError, match=exactly(message)), StudyLock(tmp_path):
        pytest.fail("it was locked")

    assert (tmp_path / LOCK).lstat()[:-3] == before
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_whoever_slept_too_long_is_told_that_the_lock_is_another_s(tmp_path: Path) -> None:
    lost = threading.Event()

    with StudyLock(tmp_path, on_loss=lost.set) as lock:
        theirs = left_behind(tmp_path, host="elsewhere", pid=7)
        assert lost.wait(10)

    assert lock.lost == f"was taken over by process 7 on elsewhere since {SINCE}, so this command has stopped"
    assert (tmp_path / LOCK).read_bytes() == theirs, "it is not ours to remove"


def test_whoever_s_folder_is_moved_is_told_and_makes_no_new_one(tmp_path: Path) -> None:
    lost = threading.Event()

    with StudyLock(tmp_path / "study", on_loss=lost.set) as lock:
        (tmp_path / "study").rename(tmp_path / "elsewhere")
        assert lost.wait(10)

    assert lock.lost == (
        "was moved or removed while this command worked on it, so it has stopped; the command goes on when the folder "
        "is moved back, or when --out names its new place"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_a_lock_that_is_half_written_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(b"{")
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", write)

    with pytest.raises(OSError, match="No space"), StudyLock(tmp_path):
        pass

    assert list(tmp_path.iterdir()) == []


def test_of_two_that_free_a_dead_lock_one_gets_it(tmp_path: Path, dead: int) -> None:
    for _ in range(20):
        left_behind(tmp_path, pid=dead)
        inside: list[int] = []
        most: list[int] = []
        refused: list[str] = []

        def work(inside: list[int] = inside, most: list[int] = most, refused: list[str] = refused) -> None:
            try:
                with StudyLock(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.01)
                    inside.pop()
            except StudyLocked as error:
                refused.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(most) == 1
        assert len(most) + len(refused) == 3


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: Any) -> None:
        raise PermissionError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    with StudyLock(tmp_path), pytest.raises(StudyLocked), StudyLock(tmp_path):
        pytest.fail("it was locked")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells which processes are dead")
def test_a_killed_process_is_dead_before_its_parent_knows() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment())
    owner = {"host": socket.gethostname(), "pid": process.pid}
    assert is_alive(owner) is True

    process.send_signal(signal.SIGKILL)

    while is_alive(owner):
        time.sleep(0.01)
    assert is_alive(owner) is False
    process.communicate()
    assert is_alive({"host": "elsewhere", "pid": process.pid}) is None
    assert is_alive({}) is None
