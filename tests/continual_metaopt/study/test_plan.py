"""What studies say that they will take, before they begin."""

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.commands.main import main
from continual_metaopt.optim.registry import LEARNERS, TORCH_PREFIX
from continual_metaopt.runs import speed
from continual_metaopt.runs.components import ConfigError
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.study.expand import Study
from continual_metaopt.study.overview import bytes_below
from continual_metaopt.study.plan import ASSUMED_SPEED, LearnerPlan, StudyPlan, plan_study, require_disk_space
from tests.continual_metaopt.conftest import described, exactly, write_study
from tests.studies import load_study, run_study

TUNING = {"trials": 3, "samples": 60, "stream": {"n_experiences": 2, "samples_per_experience": 30}}
LEARNERS_OF_STUDY: list[dict[str, Any]] = [
    {"label": "AdamW", "name": "fixed"},
    {"label": "AdamW again", "name": "fixed", "tune": {"space": {"lr": [1e-3, 1e-2, "log"]}}},
    {"label": "Lion", "name": "fixed", "base": "lion", "tune": {}},
    {"name": "cocob"},
]


def planned_study(path: Path, **changes: Any) -> Study:
    return load_study(write_study(path, {"tuning": TUNING, "learners": LEARNERS_OF_STUDY, **changes}))


def write_earlier(folder: Path, study: Study, learner: int, speed: float, **changes: Any) -> None:
    """As much of an earlier run's directory as tells its speed."""
    folder.mkdir(parents=True)
    config = {
        "learner": study.learners[learner].untuned.model_dump(mode="json"),
        "network": study.runs["report"].network.model_dump(mode="json"),
    }
    status = {"state": "finished", "samples_per_second": speed, "owner": {"host": socket.gethostname(), "pid": 1}}
    config = described({}, **config | {k: v for k, v in changes.items() if k in config})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "status.json").write_text(json.dumps(status | {k: v for k, v in changes.items() if k in status}))


def test_runs_and_samples_are_counted(tmp_path: Path) -> None:
    plan = plan_study(planned_study(tmp_path / "study.yaml", selection_seeds=[100, 101]), [tmp_path], workers=2)

    # 3 settings × 2 seeds × 60 samples; 2 seeds × 120 samples, with the untuned setting once for both AdamWs
    counts = [(p.selection_runs, p.selection_samples, p.reported_runs, p.reported_samples) for p in plan.learners]
    assert counts == [(6, 360, 4, 480), (6, 360, 2, 240), (0, 0, 2, 240), (0, 0, 2, 240)]
    assert (plan.runs, plan.samples) == (22, 1920)
    assert {(p.samples_per_second, p.basis) for p in plan.learners} == {(ASSUMED_SPEED, "an assumption")}
    assert plan.hours == pytest.approx(1920 / ASSUMED_SPEED / 3600 / 2)


def test_tuned_runs_of_the_best_are_counted_once_for_all(tmp_path: Path) -> None:
    learners = [{name: value for name, value in entry.items() if value != {}} for entry in LEARNERS_OF_STUDY]
    changes = {"learners": learners, "selection_seeds": [100, 101]}
    study = planned_study(tmp_path / "study.yaml", tuning=TUNING | {"best": 2}, **changes)
    write_earlier(tmp_path / "adamw", study, 0, 100)
    write_earlier(tmp_path / "lion", study, 2, 50)

    plan = plan_study(study, [tmp_path], workers=1)

    assert [p.reported_runs for p in plan.learners] == [2, 0, 2, 2, 4]
    row = plan.learners[-1]
    assert (row.label, row.selection_runs, row.reported_samples) == ("tuned, the best 2 of 3", 0, 480)
    assert row.samples_per_second == pytest.approx(3 / (1 / 100 + 1 / 100 + 1 / 50))
    assert "(speeds: earlier runs, other learners' runs)" in plan.summary()
    assert plan.runs == study.n_runs
    of_all = planned_study(tmp_path / "study.yaml", tuning=TUNING | {"best": 7}, **changes)
    assert of_all.n_runs == planned_study(tmp_path / "study.yaml", **changes).n_runs


def test_grids_without_a_budget_are_counted_too(tmp_path: Path) -> None:
    plan = plan_study(load_study(write_study(tmp_path / "study.yaml")), [], workers=1)

    assert [(p.selection_runs, p.selection_samples, p.reported_runs) for p in plan.learners] == [(2, 240, 2), (0, 0, 2)]


def test_speeds_are_those_of_this_machine_s_earlier_runs(tmp_path: Path) -> None:
    study = planned_study(tmp_path / "study.yaml")
    runs = tmp_path / "runs"
    for number, per_second in enumerate([100, 300, 200]):
        write_earlier(runs / f"adamw{number}", study, 0, per_second)
    write_earlier(runs / "another network", study, 3, 7, network={"name": "linear"})
    write_earlier(runs / "another machine", study, 3, 7, owner={"host": "elsewhere", "pid": 1})
    write_earlier(runs / "diverged", study, 3, 7, state="diverged")
    for name, file, content in [("a", "status", ""), ("b", "config", "{"), ("c", "config", '{"learner": {}}')]:
        write_earlier(runs / f"damaged {name}", study, 3, 7)
        (runs / f"damaged {name}" / f"{file}.json").write_text(content)

    plan = plan_study(study, [runs, runs / "adamw1", tmp_path / "nothing"], workers=1)

    assert [(p.samples_per_second, p.basis) for p in plan.learners] == [
        (200, "earlier runs"),
        (200, "earlier runs"),
        (200, "earlier runs alike"),
        (200, "other learners' runs"),
    ]
    # what was measured comes before the runs of other settings, but not before those of the same
    asked: dict[str, RunConfig] = {}
    plan = plan_study(study, [runs], workers=1, speeds=lambda runs: asked.update(runs) or {"Lion": 30.0})
    assert [(p.samples_per_second, p.basis) for p in plan.learners[1:]] == [
        (200, "earlier runs"),
        (30, "measured here"),
        (200, "other learners' runs"),
    ]
    assert {label: run.learner.options.get("base") for label, run in asked.items()} == {"Lion": "lion", "cocob": None}
    write_earlier(runs / "lion", study, 2, 50)
    assert plan_study(study, [runs], workers=1).learners[2].samples_per_second == 50


def test_hours_are_of_all_workers() -> None:
    learner = LearnerPlan("a", 10, 36_000, 10, 324_000, 100.0, "earlier runs")
    one, two = (StudyPlan("s", [learner, learner], workers, record_every=50, n_parameters=10**5) for workers in (1, 2))

    assert learner.hours == 1.0
    assert (one.hours, two.hours) == (2.0, 1.0)
    assert two.summary() == (
        "s: 40 runs with 720,000 samples, about 1.0 hours with 2 runs at a time (speeds: earlier runs), and about "
        "7.5 MB on disk; runs that have ended are not repeated."
    )
    assert "about 2.0 hours with 1 run at a time" in one.summary()
    assert " ".join(one.table().splitlines()[2].split()) == "a 10 × 3,600 10 × 32,400 100 earlier runs 1.0 hours 1.7 MB"


KEPT = Path(__file__).parents[3] / "analysis" / "sample_runs"


@pytest.mark.parametrize("path", sorted(KEPT.glob("*seed0*")), ids=lambda path: path.name.split("-seed")[0])
def test_the_size_of_records_is_about_that_of_records_here(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())

    plan = LearnerPlan("a", 0, 0, 1, config["stream_info"]["n_samples"], 1.0, "")

    assert plan.bytes(config["record_every"]) == pytest.approx(bytes_below(path), rel=0.2)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    planned_study(Path("study.yaml"))
    free = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)

    status = main(["compare", "study.yaml", "--quiet", "--out", "new/folder"])

    assert status == 2
    message = re.fullmatch(
        r"continual-metaopt: the study needs about 1\d\d\.\d kB more in 'new/folder', where 50\.0 kB are free; choose "
        r"a folder on another disk with --out, or record less: a larger record_every, fewer seeds or learners\n",
        capsys.readouterr().err,
    )
    assert message
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]
    # what is there already needs no more space
    (tmp_path / "new" / "folder").mkdir(parents=True)
    (tmp_path / "new" / "folder" / "records").write_bytes(bytes(150_000))
    study = load_study("study.yaml")
    require_disk_space(plan_study(study, [], 1).bytes, tmp_path / "new" / "folder")


def test_a_selection_run_must_be_as_long_as_the_study_says(tmp_path: Path) -> None:
    study = planned_study(tmp_path / "study.yaml", tuning=TUNING | {"samples": 61})
    message = (
        "tuning.samples is 61, but selection runs have 60 samples: choose options of the stream under tuning.stream "
        "that make them so long"
    )

    with pytest.raises(ConfigError, match=exactly(message)):
        plan_study(study, [], workers=1)
    with pytest.raises(ConfigError, match=exactly(message)):
        run_study(study, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_the_command_tells_the_plan_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path.with_name("cache")))
    monkeypatch.setattr(speed, "measured_speed", lambda run: {"fixed": 2000.0}[run.learner.name])
    planned_study(Path("study.yaml"))

    status = main(["compare", "study.yaml", "--plan", "--workers", "2"])

    out, err = capsys.readouterr()
    assert status == 0
    # AdamW's two entries are measured once
    assert err == (
        "measuring the speed of 3 learners, about 2 s each; it is kept for the next time\n"
        "cocob: its speed cannot be measured: KeyError: 'cocob'\n"
    )
    assert " ".join(out.splitlines()[2].split()) == "AdamW 3 × 60 4 × 120 2,000 measured here 60 s 56.1 kB"
    assert " ".join(out.splitlines()[5].split()) == "cocob 2 × 120 1,000 an assumption 60 s 16.4 kB"
    assert "tiny: 16 runs with 1,560 samples, about 60 s with 2 runs at a time" in out
    assert "2 seeds: an exact paired test cannot reach p < 0.05; that takes 6 seeds.\n" in out
    assert out.endswith("of that difference between seeds: 5 if it is 0.5, 10 if it is 1, 34 if it is 2.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.slow
def test_the_field_is_tuned_with_one_budget() -> None:
    pytest.importorskip("optuna")
    study = load_study("field")

    tuning, seeds = study.config.tuning, study.config.seeds
    assert tuning is not None
    assert (tuning.trials, tuning.samples, len(study.config.selection_seeds), len(seeds)) == (6, 10000, 2, 5)
    assert tuning.best == 12
    tuned = [learner for learner in study.learners if learner.search]
    assert {learner.n_selection_runs for learner in tuned} == {12}
    untuned = {learner.entry.name for learner in study.learners if not learner.search}
    assert untuned == {"metaoptimize", "vsgd", "cocob"}
    for_linear_models = {"idbd", "autostep"}
    names = {entry.name for entry in study.config.learners if not entry.name.startswith(TORCH_PREFIX)}
    assert names <= set(LEARNERS.own) - for_linear_models
    assert (len(study.learners), len(tuned), study.n_runs) == (45, 42, 784)  # as docs/tuning.md says
