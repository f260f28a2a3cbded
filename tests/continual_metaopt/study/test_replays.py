"""Studies with learners that replay others' runs: these are done first, and what cannot be replayed is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from continual_metaopt.optim.controls.trajectories import read_trajectory
from continual_metaopt.optim.registry import is_told
from continual_metaopt.runs.components import ConfigError
from continual_metaopt.study.config import StudyConfig, grid
from continual_metaopt.study.load import packaged_studies
from tests.continual_metaopt.conftest import exactly, read_tables, write_study
from tests.studies import load_study, run_study

CLOSED = {"label": "closed", "name": "metaoptimize", "lr": 0.001, "meta_lr": 0.05, "base": "adamw_released"}
REPLAY = {"label": "replay", "name": "replayed_step_sizes", "base": "adamw_released"}


def study(*learners: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"learners": list(learners), "selection_seeds": None, "engine": "torch"} | changes


@pytest.mark.slow
def test_replays_follow_the_runs_that_they_replay(tmp_path: Path) -> None:
    replays = [
        REPLAY | {"replays": {"learner": "closed"}},  # before what it replays
        CLOSED,
        REPLAY | {"label": "next", "replays": {"learner": "closed", "seed": "next"}},
        REPLAY | {"label": "frozen", "change": "frozen", "replays": {"learner": "closed"}},
    ]
    config = load_study(write_study(tmp_path / "tiny.yaml", study(*replays)))
    result = run_study(config, tmp_path / "out", workers=1, threads=True)

    described = [json.loads((path / "config.json").read_text()) for path in result.runs]
    by_label = {(d["label"], d["seed"]): path for d, path in zip(described, result.runs, strict=True)}
    assert len(by_label) == 8
    recorded = {seed: read_trajectory(by_label["closed", seed]) for seed in (0, 1)}
    for (label, seed), replayed in {("replay", 0): 0, ("replay", 1): 1, ("next", 0): 1, ("next", 1): 0}.items():
        tables = read_tables(by_label[label, seed])
        assert tables["step_sizes"]["step_size"].to_pylist() == recorded[replayed].step_sizes.flatten().tolist()
    assert len(set(read_tables(by_label["frozen", 0])["step_sizes"]["step_size"].to_pylist())) == 2

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").rglob("*.parquet")}
    assert run_study(config, tmp_path / "out", workers=1, threads=True) == result
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").rglob("*.parquet")}


@pytest.mark.slow
def test_a_run_that_diverged_is_not_replayed(tmp_path: Path) -> None:
    diverging = CLOSED | {"lr": 1e30, "lr_bounds": [1e-10, 1e35], "base": "sgd"}
    entries = [diverging, REPLAY | {"replays": {"learner": "closed"}}, CLOSED | {"label": "other"}]
    config = load_study(write_study(tmp_path / "tiny.yaml", study(*entries, seeds=[0])))

    with pytest.raises(ConfigError) as error:
        run_study(config, tmp_path / "out", workers=1, threads=True)

    assert str(error.value).startswith("'replay' was not run on seed 0: learners.1: learner.trajectory: the run at ")
    assert str(error.value).endswith(" is diverged, so its step sizes cannot be replayed; give that of a finished run")
    states = [json.loads(path.read_text())["state"] for path in (tmp_path / "out").rglob("status.json")]
    assert sorted(states) == ["diverged", "finished"]


@pytest.mark.parametrize(
    ("learners", "changes", "message"),
    [
        (
            [CLOSED, REPLAY | {"replays": {"learner": "closd"}}],
            {},
            "learners.1.replays.learner: unknown label 'closd'. Did you mean 'closed'? Known: closed, replay",
        ),
        (
            [CLOSED, REPLAY | {"replays": {"learner": "replay"}}],
            {},
            "learners.1.replays.learner: 'replay' is tuned or a replay itself; name one that is neither",
        ),
        (
            [CLOSED | {"tune": {"lr": [0.1, 0.2]}}, REPLAY | {"replays": {"learner": "closed"}}],
            {"selection_seeds": [100]},
            "learners.1.replays.learner: 'closed' is tuned or a replay itself; name one that is neither",
        ),
        (
            [CLOSED, REPLAY | {"replays": {"learner": "closed"}, "tune": {"change": ["frozen", "none"]}}],
            {"selection_seeds": [100]},
            "learners.1.replays: reported runs alone are replayed, so a replay cannot be tuned",
        ),
        (
            [CLOSED, REPLAY | {"replays": {"learner": "closed", "seed": "next"}}],
            {"seeds": [0]},
            'learners.1.replays.seed: "next" needs at least two seeds',
        ),
        (
            [CLOSED, CLOSED | {"label": "deaf", "replays": {"learner": "closed"}}],
            {},
            "learners.1.replays: the learner 'metaoptimize' has no option trajectory",
        ),
    ],
)
def test_impossible_replays_are_refused(
    tmp_path: Path, learners: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    path = write_study(tmp_path / "tiny.yaml", study(*learners, **changes))
    with pytest.raises(ConfigError, match=exactly(f"{path}: {message}")):
        load_study(path)


def test_the_packaged_study_answers_what_earns_the_gain() -> None:
    why = StudyConfig.model_validate(yaml.safe_load(packaged_studies()["why"]))

    study = load_study("why")
    assert study.config == why
    replays = {entry.options.get("change", "none") for entry in why.learners if entry.replays}
    assert replays == {"none", "shifted", "frozen", "smoothed", "folded", "exchanged", "exchanged_courses"}
    assert {entry.replays.seed for entry in why.learners if entry.replays} == {"same", "next"}
    closed = {entry.label: entry.options for entry in why.learners if entry.name == "metaoptimize"}
    for entry in why.learners:
        assert (entry.options["base"], entry.options["weight_decay"]) == ("adamw_released", 0.1)
        assert ("anew" in entry.label) is is_told(entry.name)
        assert entry.replays is None or entry.replays.learner in closed
    tuned = next(learner for learner in study.learners if learner.entry.name == "fixed_per_block")
    assert tuned.search is not None
    assert all(low <= tuned.entry.options[name] <= high for name, (low, high, _) in tuned.search.space.items())
    assert all(len(grid(entry.tune)) > 1 for entry in why.learners if isinstance(entry.tune, dict))
