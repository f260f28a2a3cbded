"""Throughput is measured of any learner, in turns with others; here of tiny networks in few samples."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import throughput
from continual_metaopt.optim.registry import MissingPackageError

LINEAR = "linear:input_shape=[1,8,8]"
BESIDE = ["Naive, torch:AdamW", "Naive, torch:SGD", "plain loop, torch:AdamW"]


def measure(tmp_path: Path, *learners: str, status: int = 0) -> pd.DataFrame:
    options = ["--network", LINEAR, "--samples", "10", "--turns", "2", "--out", str(tmp_path / "t.csv")]
    assert throughput.main(["--learners", *learners, *options]) == status
    return pd.read_csv(tmp_path / "t.csv", index_col="learner")


def test_learners_and_own_optimizers_are_measured_in_both_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = measure(tmp_path, "fixed", "own:Adam", "own:SignSGD")
    assert list(table.index) == [*BESIDE, "fixed", "own:Adam", "own:SignSGD"]
    assert table["engine"].tolist()[3:] == ["compiled", "fused", "fused"]
    assert (table.drop(index=BESIDE).drop(columns="engine") > 0).all(axis=None)
    assert table["to_naive"].iloc[0] == 1
    assert capsys.readouterr().out.startswith("| learner ")


def test_without_jax_its_row_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput.importlib.util, "find_spec", lambda name: None)
    assert list(measure(tmp_path, throughput.JAX).index) == BESIDE
    assert "skipped jax_scan: JAX is not installed (in the clone, pip install -e '.[jax]')\n" in capsys.readouterr().err


def test_the_scan_in_jax_has_a_row(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    table = measure(tmp_path, throughput.JAX)
    assert table["auto_samples_per_second"]["jax_scan"] > 0
    assert table["engine"]["jax_scan"] == "JAX"


def test_a_learner_that_cannot_be_measured_is_told(tmp_path: Path) -> None:
    table = measure(tmp_path, "torch:SGD", "nobody", status=1)
    assert table["problem"]["nobody"].startswith("ConfigError: learner.name: unknown learner 'nobody'")
    assert table["auto_to_torch"]["torch:SGD"] > 0


def test_own_adam_is_adam() -> None:
    own, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(own.state_dict())
    optimizers = throughput.Adam(own.parameters(), {"lr": 0.1}), torch.optim.Adam(theirs.parameters(), 0.1)
    for i in range(3):
        for model, optimizer in zip((own, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.full((1, 3), i + 1.0)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(own.weight, theirs.weight)


def test_all_are_those_whose_packages_are_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(name: str) -> None:
        if name == "lion":
            raise MissingPackageError(name, "lion_pytorch")

    monkeypatch.setattr(throughput, "learner_factory", find)
    names = throughput.all_learners()
    assert {"metaoptimize", "upgd", "torch:RMSprop", "own:Adam", "jax_scan"} <= set(names)
    assert "lion" not in names
    assert capsys.readouterr().err.startswith("left out: the learner 'lion' needs a package")
