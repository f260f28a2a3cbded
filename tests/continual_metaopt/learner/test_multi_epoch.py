"""Runs of several passes over a source: held-out accuracy after each of them, whatever executes the steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from torch import nn

from continual_metaopt.engines import torch_engine
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.preparing import Beginning
from continual_metaopt.runs.run import run_one
from continual_metaopt.streams import make_stream
from tests.continual_metaopt.conftest import read_tables
from tests.streams.synthetic import write_folder
from tests.studies import load_study

N_PER_EPOCH = 1437 // 16 * 16
EPOCHS = 5
SMALL = 40 // 16 * 16  # samples of an epoch of the small source


def config_of(**settings: Any) -> RunConfig:
    stream = {"name": "multi_epoch", "batch_size": 16, "epochs": 2} | settings.pop("stream", {})
    return RunConfig(
        stream=Component(**stream),
        **{
            "network": Component(name="mlp", hidden=[16]),
            "learner": Component(name="metaoptimize", lr=1e-4, step_sizes="scalar", gamma=0.999, trace="hessian_free"),
            "record_every": 100,
            **settings,
        },
    ).resolved()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    """Describes runs on 40 training and 20 test images of two classes, of noise."""
    folder: Path = tmp_path_factory.mktemp("images")
    images = np.random.RandomState(0).randint(256, size=(60, 4, 4)).astype(np.uint8)
    for split, part in (("train", images[:40]), ("test", images[40:])):
        write_folder(folder / split, part, ["one", "other"] * (len(part) // 2))

    def config(stream: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
        return config_of(stream={"source": f"folder:{folder}", **(stream or {})}, **settings)

    return config


def measured(path: Path) -> list[tuple[int, float]]:
    """(samples learned from, held-out accuracy) of each measurement."""
    table = read_tables(path)["measurements"]
    table = table.filter(pc.equal(table["quantity"], "test_accuracy"))
    assert set(table["block"].to_pylist()) <= {None}
    assert set(table["statistic"].to_pylist()) <= {"value"}
    return list(zip(table["step"].to_pylist(), table["value"].to_pylist(), strict=True))


def test_metaoptimize_learns_digits_in_five_passes(tmp_path: Path) -> None:
    assert run_one(config_of(stream={"epochs": EPOCHS}), tmp_path) == "finished"
    tables, accuracies = read_tables(tmp_path), measured(tmp_path)
    assert [step for step, _ in accuracies] == [N_PER_EPOCH * done for done in range(1, EPOCHS + 1)]
    (experience,) = tables["experiences"].to_pylist()
    assert experience["n_samples"] == len(tables["samples"]) == EPOCHS * N_PER_EPOCH
    assert experience["test_accuracy"] == accuracies[-1][1] > 0.9
    assert accuracies[-1][1] > accuracies[0][1]
    correct = tables["samples"]["correct"].to_numpy(zero_copy_only=False).reshape(EPOCHS, N_PER_EPOCH)
    assert experience["online_accuracy"] == pytest.approx(correct.mean())
    assert correct[-1].mean() > correct[0].mean()
    info = read_json(tmp_path / "config.json")["stream_info"]
    assert (info["batch_size"], info["test_at"]) == (16, [step for step, _ in accuracies])


def test_learners_may_size_themselves_by_the_batch() -> None:
    assert make_stream("multi_epoch", batch_size=16).info.for_learner.batch_size == 16


@pytest.mark.parametrize(("engine", "batch_size"), [("torch", 16), ("fused", 16), ("compiled", 1)])
def test_measuring_does_not_change_what_is_learned(
    tmp_path: Path, engine: str, batch_size: int, small: Callable[..., RunConfig]
) -> None:
    """And it takes place amid the experience: the accuracy after the first pass is that of a run of one pass."""
    paths = {name: tmp_path / name for name in ("measured", "not measured", "shorter")}
    changes = {"measured": {}, "not measured": {"evaluate": False}, "shorter": {"stream": {"epochs": 1}}}
    for name, change in changes.items():
        stream = {"batch_size": batch_size} | change.get("stream", {})
        assert run_one(small(**change | {"engine": engine, "stream": stream}), paths[name]) == "finished"
    tables = [read_tables(path)["samples"] for path in paths.values()]
    n = 40 // batch_size * batch_size
    assert tables[0].equals(tables[1])
    assert tables[0].slice(0, n).equals(tables[2])
    assert measured(paths["not measured"]) == []
    assert measured(paths["measured"])[:1] == measured(paths["shorter"])
    assert [step for step, _ in measured(paths["measured"])] == [n, 2 * n]


def test_batch_normalisation_learns_by_batches_and_is_tested_by_running_statistics(
    tmp_path: Path, small: Callable[..., RunConfig]
) -> None:
    """Beside a plain loop."""
    network = Component(name="mlp", hidden=[16], norm="batch")
    config = small(network=network, learner=Component(name="torch:SGD", lr=0.1), seed=3)
    assert run_one(config, tmp_path) == "finished"

    begun = Beginning(config)
    model, optimizer, losses, accuracies = begun.model, begun.optimizer, [], []
    (train,), (test,) = begun.stream.train, begun.stream.test
    test_x, test_y = map(torch.from_numpy, test.batch(slice(None)))
    for start in range(0, 2 * SMALL, 16):
        x, y = map(torch.from_numpy, train.batch(slice(start, start + 16)))
        each = nn.functional.cross_entropy(model.train()(x), y, reduction="none")
        losses += each.tolist()
        optimizer.zero_grad()
        each.mean().backward()
        optimizer.step()
        if (start + 16) % SMALL == 0:
            right = model.eval()(test_x).argmax(1) == test_y
            accuracies.append((start + 16, right.double().mean().item()))
    assert read_tables(tmp_path)["samples"]["loss"].to_pylist() == pytest.approx(losses, rel=1e-5)
    assert measured(tmp_path) == accuracies


@pytest.mark.slow
def test_a_folder_in_imagenets_layout_is_learned_by_its_network(tmp_path: Path) -> None:
    """Images of any size, shrunk to one and augmented, in mini-batches, as the study of ImageNet says."""
    state = np.random.RandomState(0)
    for split, n in (("train", 16), ("test", 4)):
        images = [state.randint(256, size=(*state.randint(40, 90, 2), 3)).astype(np.uint8) for _ in range(n)]
        write_folder(tmp_path / "images" / split, images, ["n01", "n02"] * (n // 2))
    study = load_study("imagenet")
    stream = {"source": f"folder+resize=32:{tmp_path / 'images'}", "batch_size": 4, "epochs": 2}
    stream = Component(name=study.config.stream.name, **study.config.stream.options | stream)
    learner = next(learner.untuned for learner in study.learners if learner.label == "Lion, Lion, scalar")
    assert (
        run_one(RunConfig(stream=stream, network=study.config.network, learner=learner).resolved(), tmp_path / "run")
        == "finished"
    )
    assert [step for step, _ in measured(tmp_path / "run")] == [16, 32]


def test_resumed_runs_measure_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Callable[..., RunConfig]
) -> None:
    """Stopped before the first measurement, right after it, and in the second pass."""
    monkeypatch.setattr(torch_engine, "MAX_SAMPLES", 20)  # a portion of one mini-batch
    config = small(engine="torch")
    assert run_one(config, tmp_path / "whole") == "finished"
    calls: list[int] = []

    def note(done: int, total: int) -> None:
        calls.append(done)

    for _ in range(3):
        assert run_one(config, tmp_path / "parts", note, should_stop=lambda: True) == "failed"
    assert run_one(config, tmp_path / "parts", note) == "finished"
    assert calls == [16, SMALL, SMALL + 16, 2 * SMALL]
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")
    assert len(measured(tmp_path / "whole")) == 2
