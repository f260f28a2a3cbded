"""Who may work on a study: one command at a time, and a dead one does not keep others out."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.runs.owner import is_alive, this_process
from continual_metaopt.study import lock as study_lock_module
from continual_metaopt.study.lock import LOCK, StudyLocked, read_owner, study_lock
from tests.continual_metaopt.conftest import environment, exactly

SINCE = "2026-01-02T03:04:05+00:00"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_lock_module, "SECONDS_BETWEEN_BEATS", 0.02)
    monkeypatch.setattr(study_lock_module, "SECONDS_UNTIL_DEAD", 0.3)
    monkeypatch.setattr(study_lock_module, "SECONDS_BETWEEN_LOOKS", 0.01)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What filelock leaves of a process that was killed while it held a lease."""
    path = tmp_path_factory.mktemp("killed") / LOCK
    code = (
        "import filelock, os, sys\nlease = filelock.SoftFileLease(sys.argv[1], lease_duration=60.0)\n"
        "lease.acquire()\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, path])
    return path.read_text()


def lock_of(left: str, pid: int, host: str = "") -> bytes:
    """What a command leaves that dies; on this machine if no other is given."""
    owner = this_process() | {"since": SINCE, "pid": pid} | ({"host": host} if host else {})
    facts = {"pid": pid, "duration": study_lock_module.SECONDS_UNTIL_DEAD} | ({"host": host} if host else {})
    for name, value in facts.items():
        left = re.sub(f"^{name}=.*", f"{name}={value}", left, flags=re.MULTILINE)
    return f"{left}owner={json.dumps(owner)}\n".encode()


def put(folder: Path, content: bytes) -> bytes:
    """Put a file in the lock's place, as another machine would."""
    (folder / ".new").write_bytes(content)
    (folder / ".new").replace(folder / LOCK)
    return content


def locked(folder: Path, pid: int, host: str, since: str = SINCE) -> str:
    return exactly(
        f"'{folder}' is in use by another command, process {pid} on {host} since {since}. Wait until it has ended or "
        "stop it there, or choose another folder with --out"
    )


def test_the_second_command_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    study = tmp_path / "study"
    with study_lock(study):
        owner = read_owner(study / LOCK)
        assert owner is not None
        assert {name: owner[name] for name in ("host", "pid")} == {"host": socket.gethostname(), "pid": os.getpid()}
        with (
            pytest.raises(StudyLocked, match=locked(study, os.getpid(), owner["host"], owner["since"])),
            study_lock(study),
        ):
            pytest.fail("it was locked")
        assert read_owner(study / LOCK) == owner

    assert list(study.iterdir()) == []
    with study_lock(study):
        pass


@pytest.mark.parametrize("dead", [2**22 + 1, os.getpid()], ids=["no process", "another process of that number"])
def test_a_dead_owner_on_this_machine_keeps_nobody_out(tmp_path: Path, left: str, dead: int) -> None:
    put(tmp_path, lock_of(left, dead))
    said: list[str] = []

    with study_lock(tmp_path, said.append):
        assert (read_owner(tmp_path / LOCK) or {})["pid"] == os.getpid()

    assert said == [f"freed the lock of process {dead} on {socket.gethostname()} since {SINCE}, which is dead"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def beating(tmp_path: Path, left: str) -> Iterator[Path]:
    """A folder whose lock another machine touches, with a clock that is a year behind."""
    ended = threading.Event()
    put(tmp_path, lock_of(left, 7, "elsewhere"))

    def beat() -> None:
        for seconds in range(1000):
            os.utime(tmp_path / LOCK, (2**30 + seconds, 2**30 + seconds))
            if ended.wait(0.05):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    yield tmp_path
    ended.set()
    thread.join()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine under load may delay signs of life."""
    monkeypatch.setattr(study_lock_module, "SECONDS_UNTIL_DEAD", 30.0)


@pytest.mark.usefixtures("patient")
def test_an_owner_elsewhere_lives_while_its_file_changes(beating: Path) -> None:
    said: list[str] = []

    with pytest.raises(StudyLocked, match=locked(beating, 7, "elsewhere")), study_lock(beating, said.append):
        pytest.fail("it was locked")

    assert said == [
        f"'{beating / LOCK}' is of process 7 on elsewhere since {SINCE}; waiting up to 30 s for a sign of life"
    ]


@pytest.mark.parametrize("known", [True, False], ids=["elsewhere", "empty since power was lost"])
def test_an_owner_of_whom_only_the_file_tells_is_dead_when_it_does_not_change(
    tmp_path: Path, left: str, known: bool
) -> None:
    put(tmp_path, lock_of(left, 7, "elsewhere") if known else b"")
    # neither a clock that jumped nor the time of the file decides
    os.utime(tmp_path / LOCK, (2**33, 2**33))
    said: list[str] = []
    started = time.monotonic()

    with study_lock(tmp_path, said.append):
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
    ],
)
def test_what_is_no_lock_is_left_alone_and_said(tmp_path: Path, make: Any, what: str) -> None:
    make(tmp_path / LOCK)
    before = (tmp_path / LOCK).lstat()[:-3]  # without times, of which reading changes one

    message = (
        f"'{tmp_path / LOCK}' {what}, no lock of a command: move it elsewhere, or choose another folder with --out"
    )
    with pytest.raises(FileExistsError, match=exactly(message)), study_lock(tmp_path):
        pytest.fail("it was locked")

    assert (tmp_path / LOCK).lstat()[:-3] == before
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def interrupted(folder: Path, lose: Callable[[], object]) -> str:
    """What is said of a lock that is lost."""
    lost = threading.Event()

    def work() -> None:
        with study_lock(folder, on_loss=lost.set):
            lose()
            assert lost.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(StudyLocked) as found:
        work()
    return str(found.value)


def test_whoever_slept_too_long_is_told_that_the_lock_is_another_s(tmp_path: Path, left: str) -> None:
    theirs = lock_of(left, 7, "elsewhere")

    assert interrupted(tmp_path, lambda: put(tmp_path, theirs)) == (
        f"'{tmp_path}' was taken over by process 7 on elsewhere since {SINCE}, so this command has stopped"
    )

    assert (tmp_path / LOCK).read_bytes() == theirs, "it is not ours to remove"


def test_whoever_s_lock_is_removed_is_told(tmp_path: Path) -> None:
    assert interrupted(tmp_path, (tmp_path / LOCK).unlink) == (
        f"'{tmp_path}' is not this command's any more, so it has stopped: '{LOCK}' was removed"
    )


def test_whoever_s_folder_is_moved_is_told_and_makes_no_new_one(tmp_path: Path) -> None:
    study = tmp_path / "study"

    assert interrupted(study, lambda: study.rename(tmp_path / "elsewhere")) == (
        f"'{study}' was moved or removed while this command worked on it, so it has stopped; the command goes on when "
        "the folder is moved back, or when --out names its new place"
    )

    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_a_lock_that_is_half_written_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_until_full(path: Path, mode: str = "r", *, open: Any = Path.open, **options: Any) -> Any:
        if mode == "ab":
            raise OSError("No space left on device")
        return open(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_until_full)

    with pytest.raises(OSError, match="No space"), study_lock(tmp_path):
        pass

    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("patient")
def test_of_two_that_free_a_dead_lock_one_gets_it(tmp_path: Path, left: str) -> None:
    for _ in range(20):
        put(tmp_path, lock_of(left, 2**22 + 1))
        inside: list[int] = []
        most: list[int] = []
        refused: list[str] = []

        def work(inside: list[int] = inside, most: list[int] = most, refused: list[str] = refused) -> None:
            try:
                with study_lock(tmp_path):
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
