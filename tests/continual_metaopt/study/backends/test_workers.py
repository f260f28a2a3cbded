"""Workers of this machine: one that is killed takes nothing with it, and none outlives what started it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.runs.files import read_json
from continual_metaopt.study.backends import local
from continual_metaopt.study.expand import Study
from continual_metaopt.study.jobs import RunsFailed
from tests.continual_metaopt.conftest import STREAM, InProcess, environment, read_tables, write_study
from tests.studies import load_study, run_study


def tiny(tmp_path: Path, **changes: Any) -> Study:
    return load_study(write_study(tmp_path / "study.yaml", changes))


class KilledAtFirst(InProcess):
    """Processes that are killed by what is done there, so many times."""

    times = 0

    def do(self, function: Any, *args: Any) -> Any:
        if self.times and args[0].endswith("seed 1"):
            type(self).times -= 1
            raise local.WorkerEnded(local.KILLED)
        return super().do(function, *args)


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_whose_process_is_killed_goes_on_once_in_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(local, "_Process", KilledAtFirst)
    monkeypatch.setattr(KilledAtFirst, "times", times)
    study, out = tiny(tmp_path, learners=[{"name": "fixed"}], selection_seeds=None, seeds=[0, 1, 2]), tmp_path / "out"

    if times == 1:
        run_study(study, out, workers=2)
    else:
        with pytest.raises(RunsFailed) as caught:
            run_study(study, out, workers=2)
        (path,) = caught.value.failures
        assert str(caught.value) == f"1 of 3 runs failed:\n{path}: {local.KILLED}"
        assert read_json(path / "status.json")["reason"] == local.KILLED
    states = [read_json(path)["state"] for path in out.glob("runs/*/status.json")]
    assert sorted(states) == ["failed"] * (times - 1) + ["finished"] * (4 - times)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_a_worker_killed_by_the_system_takes_nothing_with_it(tmp_path: Path, engine: str) -> None:
    study = tiny(
        tmp_path,
        stream=STREAM | {"n_experiences": 12 if engine == "auto" else 2, "samples_per_experience": 1400},
        network={"name": "mlp", "hidden": [128]},
        learners=[{"name": "metaoptimize", "lr": 0.001}],
        selection_seeds=None,
        evaluate=False,
        engine=engine,
    )
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for path in tmp_path.glob("out/runs/*seed0*/status.json"):
                killed.append(read_json(path)["owner"]["pid"])
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()

    result = run_study(study, tmp_path / "out", workers=2)

    killer.join()
    assert len(killed) == 1
    assert [read_json(path / "status.json")["state"] for path in result.runs] == ["finished"] * 2
    assert read_json(result.runs[0] / "status.json")["owner"]["pid"] != killed[0]
    whole = run_study(study, tmp_path / "whole", workers=1, threads=True)
    for ours, theirs in zip(result.runs, whole.runs, strict=True):
        assert all(read_tables(ours)[name].equals(table) for name, table in read_tables(theirs).items())


KILLED = """
import multiprocessing, os, queue, signal
from continual_metaopt.study.backends.local import _Process, _SharedFlag

if __name__ == "__main__":
    process = _Process(multiprocessing.get_context("{method}"), _SharedFlag(), queue.Queue())
    print(process.do(os.getpid), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_an_idle_worker_ends_when_the_main_process_is_killed(tmp_path: Path, method: str) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(method=method))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )

    try:
        out, _ = process.communicate(timeout=60)  # the worker writes to this pipe, too, so this waits for its end
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("a worker was left running")

    assert process.returncode == -signal.SIGKILL
    assert int(out) != process.pid


FORK_SERVER = """
import threading
from multiprocessing import forkserver
from continual_metaopt.study.backends import local

def start():
    local._leave_ctrl_c_to_others()
    forkserver.ensure_running()

thread = threading.Thread(target=start)
thread.start()
thread.join()
with open(f"/proc/{forkserver._forkserver._forkserver_pid}/status") as status:
    print(next(line for line in status if line.startswith("SigBlk")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are started in another way")
def test_ctrl_c_does_not_reach_what_imports_for_workers() -> None:
    found = subprocess.run([sys.executable, "-c", FORK_SERVER], capture_output=True, text=True, env=environment())

    blocked = int(found.stdout.split()[1], 16)
    assert all(blocked & 1 << (number - 1) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
