"""A program that kills runs at chosen moments, lets the same call go on, and compares what they leave.

    python -m tests.continual_metaopt.killing torch|compiled EVERY FOLDER

Each attempt is a copy of this process, which has imported everything and has one thread. Runs are killed at every
EVERYth operation on files, or, where that is 0, at one operation of each kind, such as the writing of a checkpoint; and
20 times at random. It says how many were killed, and at how many kinds; what differs is an error.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.files import write_whole
from continual_metaopt.analysis.run_directory import TABLES
from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.compiled import learner as compiled_learner
from continual_metaopt.runs import directory as recording
from continual_metaopt.runs import files, under_way
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json, write_json
from continual_metaopt.runs.run import run_one

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")  # audit events of what changes a folder
N_RANDOM = 20


def config_of(engine: Any) -> RunConfig:
    return RunConfig(
        stream=Component(name="permuted_inputs", n_experiences=2, samples_per_experience=10),
        network=Component(name="mlp", hidden=[4]),
        learner=Component(name="metaoptimize", lr=3e-3),
        record_every=10,
        engine=engine,
    ).resolved()


def checkpoint_often(n_samples: int) -> None:
    under_way.CHECKPOINT_SECONDS = 0.0
    for engine in (torch_engine, compiled_learner):
        engine.MAX_SAMPLES, engine.MAX_SECONDS = n_samples, 60.0
    compiled_learner.FIRST_SAMPLES = n_samples
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written


def in_a_copy(do: Callable[[], object], kill_after: float | None = None) -> int:
    """Do something in a copy of this process; returns its exit status, negative if it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            do()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Killer:
    """Kills this process before its ``at``th change of a folder, or when half of a file has been written."""

    def __init__(self, at: int) -> None:
        self.at, self.kinds = at, list[str]()
        sys.addaudithook(self._before_change)
        recording.write_whole = files.write_whole = self._write

    def _count(self, what: str, path: Path) -> bool:
        table = path.parent.name if "part-" in path.name else ""
        self.kinds.append(f"{what} {table} {re.sub('[0-9]+', '', path.name)}")
        return len(self.kinds) == self.at

    def _before_change(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or (event != "os.rename" and str(arguments[0]).endswith(".tmp")):
            return
        if self._count(event, Path(str(arguments[0]))):
            os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, path: Path, write: Callable[[Path], object]) -> Path:
        def write_half(temporary: Path) -> None:
            write(temporary)
            if self._count("write", path):
                os.truncate(temporary, temporary.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        return write_whole(path, write_half)


def content(run: Path) -> dict[str, Any]:
    """Everything in a run directory that must not depend on when it was made."""
    status = json.loads((run / "status.json").read_text())
    names = ("state", "reason", "step", "n_correct", "engine", "notes")
    return {
        "files": sorted(path.name for path in run.iterdir()),
        "config": json.loads((run / "config.json").read_text()),
        "status": {name: status[name] for name in names},
        "tables": {name: (run / f"{name}.parquet").read_bytes() for name in TABLES},
    }


def check_readable(run: Path, whole: Path) -> None:
    """What a killed run has left can be analysed: the beginning of each table."""
    if not (run / "config.json").exists():
        return
    runs = load_runs(run)
    for name in ("samples", "step_sizes", "measurements", "experiences"):
        steps = "experience" if name == "experiences" else "step"
        found = runs.read(str(run), name, [steps])[steps].tolist()
        assert found == pq.read_table(whole / f"{name}.parquet")[steps].to_pylist()[: len(found)], (run, name, found)


def _one_of(kind: str, kinds: list[str], randomly: random.Random) -> int:
    """The number of an operation of a kind, counted from 1."""
    return randomly.choice([number for number, other in enumerate(kinds, 1) if other == kind])


def main(engine: str, every: int, folder: Path) -> None:
    checkpoint_often(10)
    config, whole, randomly = config_of(engine), folder / "whole", random.Random(0)
    operations = folder / "operations.json"

    def attempt(run: Path, at: int = 0) -> None:
        killer = Killer(at)
        assert run_one(config, run) == "finished"
        if not operations.exists():
            write_json(operations, {"kinds": killer.kinds})

    assert run_one(config, whole) == "finished"  # fills caches
    shutil.rmtree(whole)
    start = time.monotonic()
    assert in_a_copy(lambda: attempt(whole)) == 0
    seconds = time.monotonic() - start
    expected, n_killed = content(whole), 0
    kinds = read_json(operations)["kinds"]
    moments = (
        range(1, len(kinds) + 1, every) if every else [_one_of(kind, kinds, randomly) for kind in dict.fromkeys(kinds)]
    )

    def check(run: Path, moment: object) -> None:
        assert in_a_copy(lambda: attempt(run)) == 0, moment
        found = content(run)
        assert found == expected, (moment, {key: found[key] for key in found if found[key] != expected[key]})
        shutil.rmtree(run)

    for number, at in enumerate(sorted(moments)):
        run = folder / str(at)
        assert in_a_copy(lambda run=run, at=at: attempt(run, at)) == -signal.SIGKILL, at
        check_readable(run, whole)
        n_killed += 1
        if number % 5 == 0:  # and while it goes on
            again = randomly.randrange(1, len(kinds))
            n_killed += in_a_copy(lambda run=run, again=again: attempt(run, again)) < 0
            check_readable(run, whole)
        check(run, at)
    n_at_operations = n_killed
    while n_killed - n_at_operations < N_RANDOM:
        run, times = folder / f"from {n_killed}", []
        for _ in range(5):
            times.append(randomly.uniform(0, seconds))
            n_killed += in_a_copy(lambda run=run: attempt(run), times[-1]) < 0
        if run.exists():
            check_readable(run, whole)
        check(run, times)
    before = content(whole), (whole / "status.json").stat().st_mtime_ns
    assert run_one(config, whole) == "finished"
    assert (content(whole), (whole / "status.json").stat().st_mtime_ns) == before  # not repeated
    print(n_killed, len({*kinds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
