"""Workers on this machine: what is said when they end before their work is done."""

import multiprocessing
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path

import pytest

from continual_metaopt.runs import run
from continual_metaopt.study.backends import local
from continual_metaopt.study.backends.local import WorkerEnded, _Process, _SharedFlag, _why_it_ended
from continual_metaopt.study.running import run_jobs
from tests.continual_metaopt.conftest import environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")

GOES_ON = "it can go on from its last checkpoint"


@pytest.mark.parametrize(
    ("status", "error", "reason", "is_final"),
    [
        (-signal.SIGKILL, None, f"its process was killed twice, perhaps for lack of memory; {GOES_ON}", False),
        (-signal.SIGSEGV, None, f"its process was ended twice by SIGSEGV; {GOES_ON}", False),
        (3, None, f"its process ended twice, with status 3; {GOES_ON}", False),
        (1, "ImportError: no x", "its process could not begin (ImportError: no x)", True),
        (None, "ImportError: no x", "its process could not begin (ImportError: no x)", True),
    ],
)
def test_reasons(
    monkeypatch: pytest.MonkeyPatch, status: int | None, error: str | None, reason: str, is_final: bool
) -> None:
    monkeypatch.setattr(local, "_error_at_start", lambda: error)
    ended = _why_it_ended(status)
    assert (str(ended), ended.is_final) == (reason, is_final)


@pytest.fixture
def worker() -> Iterator[_Process]:
    process = _Process(multiprocessing.get_context("spawn"), _SharedFlag(), queue.Queue())
    yield process
    process.end()


@pytest.mark.slow
def test_a_worker_returns_and_raises_and_is_started_anew(worker: _Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_error_at_start", lambda: None)
    first = worker.do(os.getpid)
    assert first not in (os.getpid(), None)
    assert worker.do(os.getpid) == first
    with pytest.raises(FileNotFoundError, match="nowhere"):
        worker.do(os.stat, "nowhere")
    with pytest.raises(WorkerEnded, match="killed twice"):
        worker.do(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(WorkerEnded, match="status 3"):
        worker.do(os._exit, 3)
    assert worker.do(os.getpid) not in (first, os.getpid())


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_worker_leaves_signals_to_the_main_process(worker: _Process, number: str) -> None:
    pid = worker.do(os.getpid)
    os.kill(pid, getattr(signal, number))
    assert worker.do(os.getpid) == pid


def test_an_error_that_cannot_be_sent_is_told_in_words() -> None:
    class Local(Exception):
        pass

    assert repr(local._to_be_sent(KeyError("a"))) == "KeyError('a')"
    assert repr(local._to_be_sent(Local("b"))) == "RuntimeError('Local: b')"


def test_an_import_that_fails_fails_again_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails_at_first.py").write_text(
        "import os\nif os.environ.setdefault('TRIED', '0') == '0':\n"
        "    os.environ['TRIED'] = '1'\n    raise ValueError('the reason')\nraise ImportError('not the reason')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(run, "_failed_imports", {})
    monkeypatch.setenv("TRIED", "0")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^the reason$"):
            run.imported("fails_at_first")


def test_a_path_that_is_too_long_for_sockets_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    methods = []
    for length in (10, 120):
        monkeypatch.setattr(util, "get_temp_dir", lambda length=length: "/" + "x" * length)
        methods.append(local._torch_context().get_start_method())
    assert methods == ["forkserver", "spawn"]


def test_runs_are_refused_while_a_worker_imports_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match=r"below `if __name__ == '__main__':`, or do them in threads"):
        run_jobs([])


SCRIPTS: dict[str, tuple[str, str]] = {
    "no guard": ("", f"RuntimeError: {local.NOT_IN_A_WORKER}"),
    "an error at import": (
        "if __name__ == '__mp_main__': raise ImportError('no x')",
        "ImportError: no x",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCRIPTS)
def test_an_error_while_a_worker_is_started_is_its_run_s_reason(tmp_path: Path, kind: str) -> None:
    beginning, error = SCRIPTS[kind]
    script = tmp_path / "script.py"
    lines = """
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.study.running import run_jobs
from pathlib import Path
options = {"n_experiences": 1, "samples_per_experience": 20}
learner = Component(name="fixed", lr=0.1)
config = RunConfig(stream=Component(name="permuted_inputs", **options), learner=learner, engine="torch").resolved()
run_jobs([(config, Path("run"))], show_progress=False)
"""
    script.write_text(beginning + lines)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"run: its process could not begin ({error})"
