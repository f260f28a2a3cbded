"""Array jobs: submitit's processes on this machine stand for tasks, and SLURM itself where it is installed."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.commands import main as cli
from continual_metaopt.runs import under_way
from continual_metaopt.runs.files import read_json, write_json
from continual_metaopt.study.backends import slurm
from continual_metaopt.study.backends.slurm import ArrayJobs, Portion, array_options
from continual_metaopt.study.jobs import BackendError, Job, RunsFailed, StudyInterrupted
from tests.continual_metaopt.conftest import STUDY, environment, exactly, files_of, read_tables, write_study
from tests.studies import load_study, run_study

pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(slurm, "SECONDS_FOR_FILES", 0.1)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


class Tasks(ArrayJobs):
    """Array jobs whose tasks are done at once, here; ``before`` may stop one."""

    def __init__(self, folder: Path, before: Any = None, **options: Any) -> None:
        super().__init__(options, None, 0, show_progress=False, folder=folder, cluster="local")
        self.submitted: list[list[Path]] = []
        self.before = before
        self.queue: Any = set()
        self._queue = lambda: self.queue() if callable(self.queue) else self.queue
        self._executor = self

    def batch(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()

    def submit(self, portion: Portion) -> Any:
        self.submitted.append([path for _, path in portion.jobs])
        if self.before is None or self.before(portion):
            portion()
        self.job_id = f"7_{len(self.submitted) - 1}"
        return type("Submitted", (), {"job_id": self.job_id})


def jobs_of(tmp_path: Path, **changes: Any) -> list[Job]:
    tmp_path.mkdir(exist_ok=True)
    study = load_study(write_study(tmp_path / "study.yaml", {"seeds": [0, 1, 2], **changes}))
    entry = study.learners[1]
    return [(entry.run(seed, entry.untuned), tmp_path / "out" / "runs" / f"seed{seed}") for seed in study.config.seeds]


@pytest.mark.parametrize(("per_task", "sizes"), [(0, [1, 1, 1]), (2, [2, 1]), (5, [3])])
def test_runs_in_tasks(tmp_path: Path, per_task: int, sizes: list[int]) -> None:
    jobs = jobs_of(tmp_path)
    with Tasks(tmp_path / "out", runs_per_task=per_task) as pool:
        pool.run(jobs, "runs")
        pool.run(jobs, "runs")

    assert [len(paths) for paths in pool.submitted] == sizes  # and nothing the second time
    assert {read_json(path / "status.json")["state"] for _, path in jobs} == {"finished"}


@pytest.mark.slow
def test_runs_that_failed_are_named_and_tried_again(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path)
    (lost, other), damaged = (path for _, path in jobs[:2]), jobs[2][1]
    write_json(damaged / "config.json", {"run_id": "another"})

    with Tasks(tmp_path / "out", before=lambda portion: portion.jobs[0][1] != lost) as pool:
        message = (
            f"2 of 3 runs failed:\n{damaged}: FileExistsError: '{damaged}' already holds another run (another); choose "
            f"another folder with --out\n{lost}: its array task was lost; its log is in '{tmp_path}/out/slurm'"
        )
        with pytest.raises(RunsFailed, match=exactly(message)):
            pool.run(jobs, "runs")
    assert read_json(other / "status.json")["state"] == "finished"

    (damaged / "config.json").unlink()
    with Tasks(tmp_path / "out") as pool:
        pool.run(jobs, "runs")
    assert pool.submitted == [[lost], [damaged]]


def test_runs_in_the_queue_are_not_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = jobs_of(tmp_path)
    first = Tasks(tmp_path / "out", before=lambda portion: False, runs_per_task=2)
    first.queue = {"7_0", "7_1"}

    def ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, first:
        patch.setattr(slurm.time, "sleep", ctrl_c)
        with pytest.raises(StudyInterrupted):
            first.run(jobs, "runs")

    again = Tasks(tmp_path / "out")

    def asked_twice() -> set[str]:  # the other task was cancelled
        again.queue = done_meanwhile
        return {"7_0"}

    def done_meanwhile() -> set[str]:
        Portion(jobs[:2])()
        return set()

    again.queue = asked_twice
    with again:
        again.run(jobs, "runs")
    assert again.submitted == [[jobs[2][1]]]


def test_an_unknown_queue_is_no_reason_to_do_runs_twice(tmp_path: Path) -> None:
    write_json(tmp_path / "out" / "slurm" / "submitted.json", {"7_0": []})
    pool = Tasks(tmp_path / "out")
    pool.queue = None
    message = "SLURM does not tell whether earlier jobs of this study are in its queue; try again later"
    with pool, pytest.raises(BackendError, match=exactly(message)):
        pool.run(jobs_of(tmp_path), "runs")
    assert pool.submitted == []


def test_options() -> None:
    assert array_options(["partition=short", "time=60", "array-parallelism=8"]) == {
        "partition": "short",
        "time": 60,
        "array_parallelism": 8,
    }
    for given in ("time", "=5", "time="):
        message = f"--slurm {given}: give options as KEY=VALUE, such as partition=short or time=60"
        with pytest.raises(BackendError, match=exactly(message)):
            array_options([given])


@pytest.mark.slow
def test_the_command_line_names_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(*given: Any) -> ArrayJobs:
        made.append(given)
        return Tasks(given[-1])

    monkeypatch.setattr(slurm, "ArrayJobs", make)
    study = write_study(tmp_path / "study.yaml")
    flags = ["--backend", "slurm", "--slurm", "partition=short", "time=60", "--workers", "3", "--quiet"]
    assert cli.main(["compare", str(study), "--out", str(tmp_path / "out"), *flags]) == 0
    assert made == [({"partition": "short", "time": 60}, 3, 6, False, tmp_path / "out")]


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = "SLURM's commands are not on this machine; give this command on a machine that submits jobs"
    with pytest.raises(BackendError, match=exactly(message)):
        ArrayJobs({}, None, 1, show_progress=False, folder=tmp_path)


def test_a_signal_saves_the_run_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = jobs_of(tmp_path)
    expected = jobs_of(tmp_path / "whole")
    Portion(expected)()
    portion = Portion(jobs)
    report, again = under_way.RunUnderWay.report, []

    def report_and_signal(self: Any) -> None:
        if not again and self.n_samples >= 40:
            monkeypatch.setattr(under_way.RunUnderWay, "report", report)
            os.kill(os.getpid(), signal.SIGUSR2)
            while not portion._stopping:
                time.sleep(0.01)
        report(self)

    monkeypatch.setattr(under_way.RunUnderWay, "report", report_and_signal)
    before = signal.signal(signal.SIGUSR2, lambda *_: again.append(portion.checkpoint()))
    try:
        portion()
    finally:
        signal.signal(signal.SIGUSR2, before)

    assert [(path / "checkpoint.npz").exists() for _, path in jobs] == [True, False, False]
    (delayed,) = again
    delayed.function()
    for (_, path), (_, other) in zip(jobs, expected, strict=True):
        assert read_tables(path) == read_tables(other)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_study_as_array_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Any) -> None:
    if cluster == "slurm" and (shutil.which("sinfo") is None or subprocess.run(["sinfo"], check=False).returncode):
        pytest.skip("SLURM is not at work here")
    if cluster == "slurm":
        monkeypatch.setattr(slurm, "SECONDS_BETWEEN_LOOKS", 1.0)
    changes = {"selection_seeds": None, "learners": STUDY["learners"][1:]}
    study = load_study(write_study(tmp_path / "study.yaml", changes))
    here = run_study(study, tmp_path / "here", workers=1)

    options = {"time": 5, "mem": "1000MB", "runs_per_task": 2}
    there = run_study(
        study,
        tmp_path / "there",
        backend=lambda n_runs, folder: ArrayJobs(options, 2, n_runs, False, folder, cluster),
    )
    assert [path.name for path in there.runs] == [path.name for path in here.runs]
    for path, other in zip(here.runs, there.runs, strict=True):
        assert read_tables(path) == read_tables(other)
    assert set(files_of(tmp_path / "there" / "runs")) == set(files_of(tmp_path / "here" / "runs"))
