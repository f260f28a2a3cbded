"""What learners cost is counted, and learners that cannot be measured are named."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks import cost
from continual_metaopt.optim import registry
from continual_metaopt.optim.packaged import MissingPackageError

LEARNERS = [
    {"label": "AdamW", "name": "fixed"},
    {"label": "SGD", "name": "torch:SGD"},
    {"label": "unstable", "name": "torch:SGD", "lr": 1e45},
    {"label": "not there", "name": "dog"},
]


def test_learners_are_measured_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def learner_factory(name: str, make=registry.learner_factory):  # type: ignore[no-untyped-def]
        if name == "dog":
            raise MissingPackageError(name, "dog")
        return make(name)

    monkeypatch.setattr("continual_metaopt.study.config.learner_factory", learner_factory)
    study = {
        "name": "s",
        "stream": {"name": "tracking"},
        "network": {"name": "mlp"},
        "seeds": [0],
        "learners": LEARNERS,
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    out = tmp_path / "out" / "cost.csv"
    arguments = ["--network", "linear", "--shape", "1", "8", "8", "--samples", "10", "--repeats", "3"]

    assert cost.main(["--study", str(tmp_path / "s.yaml"), *arguments, "--out", str(out)]) == 1

    table = pd.read_csv(out).set_index(["learner", "engine"])
    assert list(table.index)[:4] == [
        (cost.BASELINE, "torch"),
        ("AdamW", "torch"),
        ("AdamW", "compiled"),
        ("SGD", "torch"),
    ]
    assert table.index.is_unique  # a graph is not traced for so few samples
    assert table["time_ratio"].iloc[[0, 2]].tolist() == [1, 1]
    assert (table["step_us"].iloc[:4] > 0).all()
    assert (table["time_ratio_low"] <= table["time_ratio_high"]).iloc[:4].all()
    # two running means of 4 bytes; the compiled engine's memory is not counted
    assert table["state_bytes_per_parameter"].iloc[:4].tolist() == pytest.approx([8, 8, np.nan, 0], nan_ok=True)
    assert table["memory_ratio"].iloc[0] == 1 > table["memory_ratio"].iloc[3] > 0
    assert table["peak_kb"].iloc[0] > 650 * 4 / 1000  # gradients of 650 parameters, and more
    problems = table["problem"].dropna().tolist()
    assert any(problem.startswith("RuntimeError: ") for problem in problems)
    assert any("pip install dog-optimizer" in problem for problem in problems)
    assert len(problems) == 2
    assert out.with_suffix(".md").read_text().startswith("| learner ")
    assert "µs per step" in capsys.readouterr().out
