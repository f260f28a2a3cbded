"""Speeds that are measured on a run's first samples."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.engines.observations import Observations
from continual_metaopt.runs import speed
from continual_metaopt.runs.directory import RunDirectory
from tests.continual_metaopt.runs.conftest import N_SAMPLES, PORTION, config_of

LEARNERS = [{"name": "metaoptimize"}, {"name": "upgd"}]  # one for compiled code, one for PyTorch


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Numbers of samples of the portions that are learned from, a second each."""
    portions: list[int] = []

    class Directory(RunDirectory):
        def observe(self, observations: Observations, samples_every: int = 1) -> None:
            super().observe(observations, samples_every)
            portions.append(len(observations))
            self.learning_time = float(len(portions))

    monkeypatch.setattr(speed, "RunDirectory", Directory)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return portions


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner["name"])
def test_the_first_portion_is_not_measured(learner: dict[str, Any], learned: list[int], tmp_path: Path) -> None:
    stream = {"n_experiences": 1, "samples_per_experience": 10 * PORTION}

    assert speed.measured_speed(config_of(learner=learner, **stream), seconds=1.5) == PORTION

    assert learned == [PORTION] * 3
    assert list(tmp_path.iterdir()) == []


def test_all_of_a_short_stream_is_measured(learned: list[int]) -> None:
    assert speed.measured_speed(config_of(), seconds=1000.0) == (N_SAMPLES - PORTION) / (len(learned) - 1)
    assert sum(learned) == N_SAMPLES
    learned.clear()

    assert speed.measured_speed(config_of(n_experiences=1, samples_per_experience=10)) == 10


def test_a_learner_that_diverges_has_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    with pytest.raises(Exception, match="the loss is"):
        speed.measured_speed(config_of(learner={"name": "fixed", "base": "sgd", "lr": 1e30}))

    assert list(tmp_path.iterdir()) == []
