"""Studies: settings chosen on the selection seeds, reported runs, nothing done twice.

One study is run for all tests; what follows from it is tried on copies.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from continual_metaopt.analysis import load_runs
from continual_metaopt.runs import preparing, run
from continual_metaopt.runs.files import read_json, write_json
from continual_metaopt.runs.outcome import reason_of
from continual_metaopt.runs.run import run_one
from continual_metaopt.study import lock as study_lock
from continual_metaopt.study.backends import local
from continual_metaopt.study.claim import claim
from continual_metaopt.study.expand import Study
from continual_metaopt.study.jobs import Job, RunsFailed, run_folder_name
from continual_metaopt.study.lock import StudyLocked
from continual_metaopt.study.overview import overview
from continual_metaopt.study.running import StudyResult, average_score, run_jobs
from tests.continual_metaopt.conftest import (
    STREAM,
    STUDY,
    InProcess,
    described,
    exactly,
    files_of,
    read_tables,
    write_study,
)
from tests.studies import changed, load_study, run_study

ONE_TRACE = {"gamma": 0.999, "trace": "hessian_free"}


def tiny(tmp_path: Path, **changes: Any) -> Study:
    return load_study(write_study(tmp_path / "study.yaml", changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyResult]:
    """The tiny study, run in this process."""
    out = tmp_path_factory.mktemp("study") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_Process", None)  # so that it cannot be used
        return out, run_study(tiny(out.parent), out, workers=1, threads=True)


@pytest.fixture
def copied(done: tuple[Path, StudyResult], tmp_path: Path) -> Path:
    return shutil.copytree(done[0], tmp_path / "copy")


def runs_in(folder: Path) -> dict[str, dict[str, Any]]:
    """config.json of every run below a folder, by the run's path."""
    return {str(path.parent.relative_to(folder)): read_json(path) for path in sorted(folder.rglob("config.json"))}


def tables_of(folder: Path) -> dict[str, Any]:
    return {run: read_tables(folder / run) for run in runs_in(folder)}


def test_settings_are_chosen_on_the_selection_seeds(done: tuple[Path, StudyResult]) -> None:
    configs = runs_in(done[0] / "selection")

    assert sorted((c["seed"], c["purpose"], c["learner"]["lr"]) for c in configs.values()) == [
        (100, "selection", 1e-7),
        (100, "selection", 0.01),
    ]
    accuracy = {c["learner"]["lr"]: average_score(done[0] / "selection" / run) for run, c in configs.items()}
    assert accuracy[0.01] > accuracy[1e-7] > 0


def test_reported_runs_use_the_better_setting(done: tuple[Path, StudyResult]) -> None:
    configs = runs_in(done[0] / "runs").values()

    found = sorted((c["order"], c["label"], c["seed"], c["purpose"], c["learner"]["lr"]) for c in configs)
    assert found == [
        (0, "tuned, lr = 0.01", 0, "report", 0.01),
        (0, "tuned, lr = 0.01", 1, "report", 0.01),
        (1, "learned", 0, "report", 0.001),
        (1, "learned", 1, "report", 0.001),
    ]
    assert {c["study"] for c in configs} == {"tiny"}


def test_directories_are_where_the_result_says(done: tuple[Path, StudyResult]) -> None:
    out, result = done

    assert [path.parent for path in (*result.runs, *result.selection)] == [out / "runs"] * 4 + [out / "selection"] * 2
    assert [path.name.rpartition("-")[0] for path in result.runs] == [
        "tuned-lr-0.01-seed0",
        "tuned-lr-0.01-seed1",
        "learned-seed0",
        "learned-seed1",
    ]
    assert all(
        path.name.endswith(read_json(path / "config.json")["run_id"]) for path in (*result.runs, *result.selection)
    )
    assert all(read_json(path / "status.json")["state"] == "finished" for path in (*result.runs, *result.selection))
    assert {path.name for path in out.iterdir()} == {"study.json", "runs", "selection"}
    assert read_json(out / "study.json")["learners"][0] == STUDY["learners"][0] | {"label": "tuned", "replays": None}
    assert len(load_runs(out)) == 4  # selection runs are not reported


@pytest.mark.usefixtures("in_process")
def test_what_has_been_done_is_counted_before_the_time_left_is_told(
    done: tuple[Path, StudyResult], copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = [copied / path.relative_to(done[0]) for path in done[1].runs]
    shutil.rmtree(first)
    counted: list[Path] = []
    count = local.LocalPool._do

    def noting(self: local.LocalPool, job: Job) -> str:
        counted.append(job[1])
        return count(self, job)

    monkeypatch.setattr(local.LocalPool, "_do", noting)
    run_study(tiny(tmp_path), copied, workers=1)

    assert counted[-1] == first
    assert sorted(counted[-4:-1]) == sorted(others)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"seeds": [0, 1, 2]}, [("runs", "learned", 2), ("runs", "tuned, lr = 0.01", 2)]),
        (
            {"learners": [*STUDY["learners"], {"name": "torch:SGD", "lr": 0.01}]},
            [("runs", "torch:SGD", 0), ("runs", "torch:SGD", 1)],
        ),
        (
            {"selection_seeds": [100, 101]},
            [("selection", "tuned, lr = 0.01", 101), ("selection", "tuned, lr = 1e-07", 101)],
        ),
    ],
    ids=["seed", "learner", "selection seed"],
)
def test_only_what_is_new_is_run(copied: Path, tmp_path: Path, changes: dict[str, Any], new: list[Any]) -> None:
    before = files_of(copied)

    run_study(tiny(tmp_path, **changes), copied)

    after, configs = files_of(copied), runs_in(copied)
    assert {name: after[name] for name in before if name != "study.json"} == {
        name: content for name, content in before.items() if name != "study.json"
    }
    added = [run for run in configs if f"{run}/config.json" not in before]
    assert sorted((run.split("/")[0], configs[run]["label"], configs[run]["seed"]) for run in added) == new


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"stream": STREAM | {"samples_per_experience": 41}}, "stream.samples_per_experience = {}, not 41"),
        ({"network": {"name": "mlp", "hidden": [9]}}, "network.hidden = {}, not [9]"),
        ({"name": "another"}, "name = {}, not another"),
        ({"record_every": 11}, "record_every = {}, not 11"),
        ({"evaluate": False}, "evaluate = {}, not False"),
        ({"diagnostics": ["retention"]}, "diagnostics = {}, not ['retention']"),
    ],
)
def test_a_folder_with_another_study_is_refused(
    copied: Path, tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    before = files_of(copied)
    known: Any = read_json(copied / "study.json")
    for part in difference.split(" = ")[0].split("."):
        known = known[part]
    message = f"'{copied}' already holds a study with {difference.format(known)}; choose another folder with --out"

    with pytest.raises(FileExistsError, match=exactly(message)):
        claim(tiny(tmp_path, **changes), copied)

    assert files_of(copied) == before


def test_where_the_data_lie_and_defaults_spelled_out_do_not_make_another_study(copied: Path, tmp_path: Path) -> None:
    claim(tiny(tmp_path, stream=STREAM | {"data_root": "elsewhere", "stationary": None}), copied)


@pytest.mark.usefixtures("in_process")
def test_failing_runs_are_reported_once_and_others_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_stream(*args: Any, plan_stream: Any = preparing.plan_stream, **options: Any) -> Any:
        if options["seed"] != 1:
            raise FileNotFoundError("there are no images")
        return plan_stream(*args, **options)

    monkeypatch.setattr(preparing, "plan_stream", plan_stream)
    study = tiny(tmp_path, learners=[{"name": "fixed"}], selection_seeds=None, seeds=[0, 1, 2])

    with pytest.raises(RunsFailed) as caught:
        run_study(study, tmp_path / "out")

    first = tmp_path / "out" / "runs" / run_folder_name(run_of(study, 0))
    assert str(caught.value) == f"2 of 3 runs failed:\n{first} and 1 more: FileNotFoundError: there are no images"
    states = {
        path.parent.name.split("-")[1]: read_json(path)["state"] for path in tmp_path.glob("out/runs/*/status.json")
    }
    assert states == {"seed0": "failed", "seed1": "finished", "seed2": "failed"}


@pytest.mark.usefixtures("in_process")
def test_a_learner_whose_selection_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_optimizer(name: str, *args: Any, make_optimizer: Any = preparing.make_optimizer, **options: Any) -> Any:
        if options.get("lr") == 0.5:
            raise RuntimeError("out of memory")
        return make_optimizer(name, *args, **options)

    monkeypatch.setattr(preparing, "make_optimizer", make_optimizer)
    fails = {"label": "fails", "name": "fixed", "base": "sgd", "tune": {"lr": [0.1, 0.5]}}
    study = tiny(tmp_path, learners=[fails, *STUDY["learners"]])
    out = tmp_path / "out"

    with pytest.raises(RunsFailed) as caught:
        run_study(study, out)

    (failed,) = caught.value.failures
    assert str(caught.value).splitlines() == [
        "1 of 8 runs failed:",
        f"{failed}: {reason_of(RuntimeError('out of memory'))}",
        "'fails': no setting was chosen, because 1 of its selection runs failed; its tuned learner was not run on the "
        "reported seeds",
    ]
    labels = {(config["label"], config["seed"]) for config in runs_in(out / "runs").values()}
    assert labels == {("tuned, lr = 0.01", 0), ("tuned, lr = 0.01", 1), ("learned", 0), ("learned", 1)}
    assert sorted(path.name for path in caught.value.runs) == sorted(path.name for path in (out / "runs").iterdir())
    # with memory, the same command does what is left
    monkeypatch.undo()
    before = files_of(out / "runs")
    monkeypatch.setattr(local, "_Process", InProcess)
    assert len(run_study(study, out).runs) == 6
    assert {name: content for name, content in files_of(out / "runs").items() if name in before} == before


@pytest.mark.usefixtures("in_process")
def test_a_damaged_record_of_a_selection_run_is_a_failure_of_its_learner(copied: Path, tmp_path: Path) -> None:
    damaged = next((copied / "selection").iterdir())
    (damaged / "samples.parquet").write_bytes(b"PAR1")

    with pytest.raises(RunsFailed) as caught:
        run_study(tiny(tmp_path), copied)

    assert list(caught.value.failures) == [damaged]
    assert str(caught.value).splitlines()[1].startswith(f"{damaged}: its record cannot be read (")
    assert str(caught.value).splitlines()[1].endswith("; move its folder elsewhere to run again")


@pytest.mark.parametrize("content", ['{"name": "ti', "[]", None])
@pytest.mark.usefixtures("in_process")
def test_a_damaged_description_costs_no_runs(
    copied: Path, tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    before, path = files_of(copied), copied / "study.json"
    path.unlink()
    if content is None:
        path.symlink_to(tmp_path / "study.yaml")
    else:
        path.write_text(content, encoding="utf-8")

    run_study(tiny(tmp_path), copied)

    after = files_of(copied)
    assert after["study.json"][1] == before.pop("study.json")[1]
    assert {name: after[name] for name in before} == before
    assert os.path.lexists(copied / "study-damaged.json")
    assert re.search(
        rf"^noted: '{re.escape(str(path))}' is .+; it is kept as '{re.escape(str(copied))}/study-damaged.json', and "
        "written anew. All runs stay$",
        capsys.readouterr().err,
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("study.json", "{}", "'{}/study.json' is of no study of this program; choose another folder with --out"),
        ("config.json", "{}", "'{}' holds a config.json, as a run's directory does; choose another folder with --out"),
    ],
)
def test_a_folder_that_is_no_study_s_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content, encoding="utf-8")

    with pytest.raises(FileExistsError, match=exactly(message.format(tmp_path / "out"))):
        claim(tiny(tmp_path), tmp_path / "out")

    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(name, content)]


@pytest.mark.parametrize("link", ["runs", "selection", "part", "part/runs"])
def test_a_study_does_not_write_through_a_link(tmp_path: Path, link: str) -> None:
    out = tmp_path / "out"
    (out / link).parent.mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    (out / link).symlink_to(tmp_path / "theirs")

    message = f"'{out / link}' is a link, and nothing is written through it; put a folder in its place"
    with pytest.raises(FileExistsError, match=exactly(message)):
        claim(tiny(tmp_path), out / "part" if "part" in link else out, out)

    assert not any((tmp_path / "theirs").iterdir())


@pytest.mark.usefixtures("in_process")
def test_options_edited_under_the_same_label_make_another_version(copied: Path, tmp_path: Path) -> None:
    before = {path.name for path in (copied / "runs").iterdir()}
    learned = STUDY["learners"][1]
    edited = tiny(tmp_path, learners=[STUDY["learners"][0], learned | {"lr": 0.002}])

    run_study(edited, copied)

    runs = load_runs(copied)
    assert (len(runs), runs.n_superseded) == (4, 2)
    assert {runs.configs[path]["learner"].get("lr") for path in runs.select(label="learned").table["path"]} == {0.002}
    assert overview(copied).counts | {"finished": 6, "of an earlier version": 2} == overview(copied).counts
    old = sorted(before - {Path(path).name for path in runs.table["path"]})
    assert len(old) == 2
    assert len(load_runs(copied / "runs" / old[0])) == 1  # which is named
    assert (
        overview(copied).text().splitlines()[0].startswith(f"{copied}: 8 runs: 6 finished, 2 of an earlier version; ")
    )
    # and back
    run_study(tiny(tmp_path), copied)
    assert {Path(path).name for path in load_runs(copied).table["path"]} == before


@pytest.mark.usefixtures("in_process")
def test_labels_that_differ_in_signs_only_are_different_runs(tmp_path: Path) -> None:
    fixed = {"name": "fixed", "lr": 0.01}
    labels = ["A+", "A-", "+", "−", "a"]
    study = tiny(tmp_path, learners=[fixed | {"label": label} for label in labels], seeds=[0])

    result = run_study(study, tmp_path / "out")

    assert len({path.name for path in result.runs}) == 5
    assert [read_json(path / "config.json")["label"] for path in result.runs] == labels
    # a run is shown under the label that its study gives it now
    study = tiny(tmp_path, learners=[fixed | {"label": "A?"}], seeds=[0])
    (run,) = run_study(study, tmp_path / "out").runs
    assert run == result.runs[0]
    assert (read_json(run / "config.json")["label"], read_json(run / "config.json")["entry"]) == ("A?", "A?")


@pytest.mark.usefixtures("in_process")
def test_a_learner_that_is_left_out_keeps_its_records_but_not_its_place(copied: Path, tmp_path: Path) -> None:
    before = files_of(copied)

    result = run_study(tiny(tmp_path, learners=STUDY["learners"][:1]), copied)

    changed = {name for name, content in files_of(copied).items() if before[name] != content}
    assert changed == {"study.json"}
    assert files_of(copied).keys() == before.keys()
    assert [read_json(path / "config.json")["label"] for path in result.runs] == ["tuned, lr = 0.01"] * 2


@pytest.mark.usefixtures("in_process")
def test_a_command_that_has_lost_the_lock_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_lock, "SECONDS_BETWEEN_BEATS", 0.05)
    owner = {"host": "elsewhere", "pid": 7, "since": "today"}
    out, theirs = tmp_path / "out", f"filelock/2\nowner={json.dumps(owner)}\n"

    def prepare(*args: Any, prepare: Any = run._prepare) -> Any:
        (out / "theirs").write_text(theirs)
        (out / "theirs").replace(out / study_lock.LOCK)
        time.sleep(0.3)
        return prepare(*args)

    monkeypatch.setattr(run, "_prepare", prepare)
    message = f"'{out}' was taken over by process 7 on elsewhere since today, so this command has stopped"

    with pytest.raises(StudyLocked, match=exactly(message)):
        run_study(tiny(tmp_path), out, workers=1)

    assert (out / study_lock.LOCK).read_text() == theirs


def run_of(study: Study, seed: int) -> Any:
    learner = study.learners[0]
    return learner.run(seed, learner.candidates[0] if learner.candidates else learner.untuned)


def test_any_label_makes_a_folder_s_name(tmp_path: Path) -> None:
    for label, beginning in [("l" * 300, "l" * 120 + "-seed0-"), ("α", "run-seed0-"), ("β", "run-seed0-")]:
        study = tiny(tmp_path, learners=[{"name": "fixed", "label": label}], selection_seeds=None)
        assert run_folder_name(run_of(study, 0)).startswith(beginning)


@pytest.mark.usefixtures("in_process")
def test_a_directory_of_another_run_is_a_failure_of_that_run_only(tmp_path: Path) -> None:
    study = tiny(tmp_path, learners=[{"name": "fixed"}], selection_seeds=None)
    one, two = (tmp_path / name for name in ("one", "two"))
    run_jobs([(run_of(study, 0), one)], show_progress=False)

    with pytest.raises(RunsFailed) as caught:
        run_jobs([(run_of(study, 1), one), (run_of(study, 1), two)], show_progress=False)

    assert str(caught.value).splitlines()[0] == "1 of 2 runs failed:"
    assert str(caught.value).splitlines()[1].startswith(f"{one}: FileExistsError: '{one}' already holds another run (")
    assert read_json(two / "status.json")["state"] == "finished"


Recorded = tuple[str, list[Any]]  # a run's state, and whether its predictions were right, or their losses


class Pretended:
    """Stands in for workers: of each run, it records what the choice of settings reads."""

    def __init__(self, task: str, recorded: dict[float, list[Recorded]]) -> None:
        self.task, self.recorded = task, recorded  # the latter by step size, for each seed

    def run(self, jobs: Sequence[Job], stage: str) -> None:
        for config, path in jobs:
            path.mkdir(parents=True)
            state, values = self.recorded[config.learner.options["lr"]][config.seed % 100]
            write_json(path / "config.json", described({"task": self.task}))
            write_json(path / "status.json", {"state": state})
            pq.write_table(
                pa.table({"correct" if self.task == "classification" else "loss": values}), path / "samples.parquet"
            )


ONCE_DIVERGED: list[Recorded] = [("finished", [True] * 4), ("diverged", [True] * 3)]  # 1/2: divergence is nothing right
STEADY: list[Recorded] = [("finished", [True, True, True, False]), ("finished", [True, True, False, False])]  # 5/8
ONCE_BEST: list[Recorded] = [("finished", [True] * 4), ("finished", [False] * 4)]  # 1/2
DIVERGED: list[Recorded] = [("diverged", [0.1])]
LARGE_LOSS: list[Recorded] = [("finished", [3.0, 4.0])]
SMALL_LOSS: list[Recorded] = [("finished", [3.0, 2.0])]


@pytest.mark.parametrize(
    ("task", "recorded", "chosen"),
    [
        ("classification", {0.1: ONCE_DIVERGED, 0.2: STEADY, 0.3: ONCE_BEST}, 0.2),
        ("classification", {0.3: ONCE_BEST, 0.1: ONCE_DIVERGED}, 0.3),  # the first of equals
        ("regression", {0.1: DIVERGED, 0.2: LARGE_LOSS, 0.3: SMALL_LOSS}, 0.3),
        ("regression", {0.1: DIVERGED, 0.2: LARGE_LOSS}, 0.2),
    ],
)
def test_the_setting_with_the_best_mean_is_chosen(
    tmp_path: Path, task: str, recorded: dict[float, list[Recorded]], chosen: float
) -> None:
    learners = [{"label": "a", "name": "fixed", "tune": {"lr": list(recorded)}}]
    seeds = [100 + i for i in range(len(next(iter(recorded.values()))))]
    study = tiny(tmp_path, learners=learners, seeds=[0], selection_seeds=seeds)

    pool = Pretended(task, recorded)
    result = run_study(study, tmp_path / "out", backend=lambda n_runs, folder: nullcontext(pool))

    assert [path.name.rpartition("-seed")[0] for path in result.runs] == [f"a-lr-{chosen}"]
    assert len(result.selection) == len(recorded) * len(seeds)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [False, True])
def test_the_number_of_workers_and_their_kind_change_nothing(
    done: tuple[Path, StudyResult], tmp_path: Path, threads: bool
) -> None:
    run_study(tiny(tmp_path), tmp_path / "out", workers=3, threads=threads)

    ours, theirs = tables_of(tmp_path / "out"), tables_of(done[0])
    assert ours.keys() == theirs.keys()
    assert all(ours[run][name].equals(table) for run, tables in theirs.items() for name, table in tables.items())


@pytest.mark.usefixtures("in_process")
def test_the_engine_of_a_study_is_that_of_its_runs(tmp_path: Path) -> None:
    study = tiny(tmp_path, engine="torch", learners=[{"name": "fixed"}], selection_seeds=None)

    result = run_study(study, tmp_path / "out")

    asked_for = {"name": "torch", "reason": "asked for"}
    assert [read_json(path / "status.json")["engine"] for path in result.runs] == [asked_for] * 2
    with pytest.raises(FileExistsError, match="already holds a study with engine = torch, not fused"):
        run_study(changed(study, engine="fused"), tmp_path / "out")


def test_a_device_that_is_not_there_fails_with_what_to_do(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = run_of(tiny(tmp_path), 0).model_copy(update={"device": "cuda"})

    assert run_one(config, tmp_path / "run") == "failed"

    reason = "ValueError: the device cuda is not possible: PyTorch finds no such device here; use cpu"
    assert read_json(tmp_path / "run" / "status.json")["reason"] == reason


@pytest.mark.usefixtures("in_process")
def test_running_again_repeats_nothing(done: tuple[Path, StudyResult], copied: Path, tmp_path: Path) -> None:
    before = files_of(copied)

    result = run_study(tiny(tmp_path), copied)

    after = files_of(copied)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {"study.json"}
    assert before["study.json"][1] == after["study.json"][1]
    assert [path.name for path in result.runs] == [path.name for path in done[1].runs]


@pytest.mark.usefixtures("in_process")
def test_nobody_else_works_on_a_study_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, out = tiny(tmp_path, learners=[{"name": "fixed"}], selection_seeds=None), tmp_path / "out"
    seen = []

    def prepare(*args: Any, prepare: Any = run._prepare) -> Any:
        with pytest.raises(StudyLocked, match=f"is in use by another command, process {os.getpid()} on "):
            run_study(study, out)
        seen.append(args)
        return prepare(*args)

    monkeypatch.setattr(run, "_prepare", prepare)

    run_study(study, out, workers=1)

    assert len(seen) == 2
    assert {path.name for path in out.iterdir()} == {"study.json", "runs"}
