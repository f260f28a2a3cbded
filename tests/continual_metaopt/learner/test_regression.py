"""Runs of a regression: the loss, null accuracies, every kind of learner and engine, resuming, and the report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from continual_metaopt.analysis import comparison_table, load_runs, write_report
from continual_metaopt.engines import torch_engine
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.run import run_one
from continual_metaopt.streams import make_stream, plan_stream
from tests.continual_metaopt.conftest import read_tables

STREAM = {"n_inputs": 4, "n_relevant": 2, "n_samples": 120, "samples_per_experience": 50}
LMS = {"name": "fixed", "base": "sgd", "lr": 0.05, "weight_decay": 0.0}


def tracking_run(learner: dict[str, Any], **settings: Any) -> RunConfig:
    return RunConfig(
        stream=Component(name="tracking", **STREAM),
        network=Component(name="linear", bias=False),
        learner=Component(**learner),
        seed=2,
        record_every=10,
        **settings,
    ).resolved()


def losses_of_lms(step_size: float) -> list[float]:
    """Half the squared error of each prediction, in plain Python."""
    w, losses = np.zeros(4), []
    for experience in make_stream("tracking", **STREAM, seed=2).train_stream:
        for x, y, _ in experience.dataset:
            error = float(y) - float(w @ x.numpy())
            losses.append(error**2 / 2)
            w += step_size * error * x.numpy()
    return losses


@pytest.mark.parametrize("engine", ["torch", "fused", "compiled"])
def test_lms_leaves_half_its_squared_errors(tmp_path: Path, engine: Any) -> None:
    assert run_one(tracking_run(LMS, engine=engine), tmp_path) == "finished"

    tables = read_tables(tmp_path)
    assert tables["samples"]["correct"].null_count == 120
    np.testing.assert_allclose(tables["samples"]["loss"], losses_of_lms(0.05), rtol=1e-4, atol=1e-6)
    experiences = tables["experiences"].to_pydict()
    assert experiences["n_samples"] == [50, 50, 20]
    assert [experiences[name] for name in ("n_correct", "online_accuracy", "test_accuracy")] == [[None] * 3] * 3
    assert read_json(tmp_path / "config.json")["stream_info"]["task"] == "regression"


def test_a_small_network_learns_from_slow_bits(tmp_path: Path) -> None:
    """Its error falls below half that of the best constant, and each flip is the beginning of an experience."""
    stream = {"n_samples": 6000, "flip_every": 3000, "stationary": "repeat"}
    config = RunConfig(
        stream=Component(name="bit_flipping", **stream),
        network=Component(name="mlp", hidden=[5]),
        learner=Component(name="fixed", base="sgd", lr=0.03, weight_decay=0.0),
    ).resolved()
    assert run_one(config, tmp_path) == "finished"
    targets = np.concatenate([s.batch(slice(None))[1] for s in plan_stream("bit_flipping", **stream).train])
    losses = read_tables(tmp_path)["samples"]["loss"].to_numpy()
    assert 2 * losses[5000:].mean() < 0.5 * targets[5000:].var()
    assert read_tables(tmp_path)["experiences"]["first_step"].to_pylist() == [0, 3000]


@pytest.mark.parametrize("name", ["idbd", "autostep", "idbd_network", "metaoptimize", "glocal"])
def test_learners_run_by_name_and_resume(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "MAX_SAMPLES", 20)
    config = tracking_run({"name": name}, engine="torch")
    assert run_one(config, tmp_path / "whole") == "finished"
    calls = iter([False, False, True])
    assert run_one(config, tmp_path / "parts", should_stop=lambda: next(calls)) == "failed"
    assert run_one(config, tmp_path / "parts") == "finished"

    whole, parts = read_tables(tmp_path / "whole"), read_tables(tmp_path / "parts")
    assert all(whole[table].equals(parts[table]) for table in ("samples", "step_sizes", "experiences"))
    assert read_json(tmp_path / "whole" / "config.json")["learned_step_sizes"] is True
    assert whole["step_sizes"].num_rows == 12


@pytest.mark.parametrize("learner", [LMS | {"lr": 900.0}, {"name": "idbd", "meta_lr": 20.0}])
def test_step_sizes_that_are_too_large_diverge(tmp_path: Path, learner: dict[str, Any]) -> None:
    assert run_one(tracking_run(learner), tmp_path) == "diverged", read_json(tmp_path / "status.json")
    assert comparison_table(load_runs(tmp_path))["squared_error"].tolist() == [np.inf]


def test_the_report_has_errors_in_place_of_accuracies(tmp_path: Path) -> None:
    run_one(tracking_run(LMS), tmp_path / "run")
    table = comparison_table(load_runs(tmp_path))
    assert table["squared_error"].item() == pytest.approx(2 * np.mean(losses_of_lms(0.05)), rel=1e-4)
    written = {path.name for path in write_report(load_runs(tmp_path), tmp_path / "report")}
    assert {"comparison.md", "squared_error.png"} <= written
    assert not any("accuracy" in name for name in written)
