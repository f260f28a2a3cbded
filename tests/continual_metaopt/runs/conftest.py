"""Small runs, and helpers to stop them and to compare what they leave."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.compiled import learner as compiled_learner
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.run import run_one
from tests.continual_metaopt.conftest import read_tables

N_SAMPLES, PORTION = 150, 20
COMPILED = {"name": "compiled", "reason": "network, loss and optimizer have compiled code"}


def config_of(
    *, seed: int = 0, evaluate: bool = True, learner: dict[str, Any] | None = None, **stream: Any
) -> RunConfig:
    return RunConfig(
        stream=Component(name="permuted_inputs", **{"n_experiences": 3, "samples_per_experience": 50} | stream),
        network=Component(name="mlp", hidden=[8]),
        learner=Component(**learner or {"name": "metaoptimize", "lr": 3e-3}),
        seed=seed,
        record_every=10,
        evaluate=evaluate,
        study="a study",
        order=4,
    ).resolved()


@contextmanager
def portions_of(n: int) -> Iterator[None]:
    """Let runs look up after every ``n`` samples, however long these take."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for engine in (torch_engine, compiled_learner):
            monkeypatch.setattr(engine, "MAX_SAMPLES", n)
            monkeypatch.setattr(engine, "MAX_SECONDS", 60.0)
        monkeypatch.setattr(compiled_learner, "FIRST_SAMPLES", n)
        yield


@pytest.fixture(autouse=True)
def _small_portions() -> Iterator[None]:
    with portions_of(PORTION):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    with portions_of(PORTION):
        assert run_one(config_of(), path) == "finished"
    return path


def stop_at(*calls: int) -> Callable[[], bool]:
    """Ask to stop at the nth portions, counted from 1."""
    n = 0

    def should_stop() -> bool:
        nonlocal n
        n += 1
        return n in calls

    return should_stop


def decisive(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything in a run directory that must not depend on when and how it was made."""
    status = read_json(path / "status.json")
    return read_json(path / "config.json"), {key: status[key] for key in ("state", "reason", "step", "engine")}


def assert_same_run(path: Path, expected: Path) -> None:
    assert decisive(path) == decisive(expected)
    ours, theirs = read_tables(path), read_tables(expected)
    for name, table in theirs.items():
        assert ours[name].equals(table), name
