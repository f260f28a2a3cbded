"""The speed benchmark measures its contenders beside each other; here tiny ones, in turns of no length."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks import speed

LINEAR = "linear:input_shape=[1,8,8]"
SPEED_RATIO = ["speed_ratio_low", "speed_ratio", "speed_ratio_high"]
TIME_RATIO = ["time_ratio_low", "time_ratio", "time_ratio_high"]
COSTS = ["learner", "engine", "step_us", "state_bytes_per_parameter", *TIME_RATIO, "memory_ratio"]


@pytest.fixture
def measure(tmp_path: Path):  # type: ignore[no-untyped-def]
    def of(*arguments: str, status: int = 0) -> pd.DataFrame:
        out = tmp_path / "out" / "table.csv"
        assert speed.main([*arguments, "--repeats", "2", "--seconds", "1e-9", "--out", str(out)]) == status
        return pd.read_csv(out)

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "columns", "n_rows"),
    [
        (["engines", LINEAR], ["network", "learner", "samples_per_second", *SPEED_RATIO], len(speed.CONTENDERS) + 1),
        (["update", "80:4", "80:20"], ["parameters", "blocks", "optimizer", "ns_per_parameter", *TIME_RATIO], 2 * 4),
    ],
)
def test_all_contenders_are_measured(measure, arguments: list[str], columns: list[str], n_rows: int) -> None:  # type: ignore[no-untyped-def]
    table = measure(*arguments)
    assert list(table.columns) == columns
    assert len(table) == n_rows
    assert (table[columns[-4]] > 0).all()
    assert (table[columns[-3]].dropna() <= table[columns[-1]].dropna()).all()


@pytest.mark.slow
def test_networks_are_compared_with_the_first(measure, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    small = "vit_tiny:width=8,depth=1,heads=2,stages=1,input_shape=[1,8,8]"
    table = measure("networks", LINEAR, small)
    described = ["network", "parameters", "blocks", "engine"]
    assert list(table.columns) == [*described, "samples_per_second", *SPEED_RATIO]
    assert table[described].to_numpy().tolist() == [
        [LINEAR, 650, "1: linear", "compiled"],
        # (16 + 1)·8 + 8 + 5·8, 12·8² + 13·8, and 2·8 + 9·10
        [small, 1162, "3: embedding, stage1, head", "fused"],
    ]
    assert table["speed_ratio"].iloc[0] == 1
    assert capsys.readouterr().out.startswith("| network ")


@pytest.mark.slow
def test_traces_that_do_not_fit_are_told_with_what_they_would_take(measure, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(speed, "KINDS", ["exact"])
    table = measure("traces", "mlp:hidden=[32]")
    assert list(table.columns[4:]) == [*TIME_RATIO, "numbers_per_weight", "memory_mb"]
    found = table.set_index(["step_sizes", "trace"])
    n_weights = 3072 * 32 + 32 + 32 * 10 + 10
    numbers = {"hessian_free": (1, 1), "l": (12, 5 * n_weights), "2x2": (12, 11 * n_weights)}
    numbers["full"] = 28, n_weights * (n_weights + 11)
    for trace, (blocks, weight) in numbers.items():
        assert found["numbers_per_weight"]["blocks", trace] == pytest.approx(blocks, rel=1e-2)
        assert found["numbers_per_weight"]["weight", trace] == pytest.approx(weight, rel=1e-5)
    assert found["time_ratio"].isna().tolist() == [False] * 5 + [True] * 3


@pytest.mark.slow
def test_costs_of_a_study_are_relative_to_adamw(measure, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    learners = [{"label": "SGD", "name": "torch:SGD"}, {"label": "unstable", "name": "torch:SGD", "lr": 1e45}]
    study = {"name": "s", "stream": {"name": "tracking"}, "network": {"name": "mlp"}, "seeds": [0]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study | {"learners": learners}))
    table = measure("cost", LINEAR, "--study", str(tmp_path / "s.yaml"), status=1)
    problem = table[table["problem"].notna()]
    assert problem["learner"].tolist() == ["unstable"]
    assert problem["problem"].iloc[0].startswith("RuntimeError: ")
    found = table.dropna(subset="engine").set_index(["learner", "engine"])
    assert set(found.columns) == {*COSTS[2:], "problem"}
    adamw, fixed = "AdamW (torch.optim)", "AdamW (fixed)"
    assert set(found.index) == set(product((adamw, "SGD", fixed), ("torch", "fused", "compiled")))
    assert found["time_ratio"].loc[[(adamw, engine) for engine in ("torch", "fused", "compiled")]].tolist() == [1, 1, 1]
    assert found["state_bytes_per_parameter"].loc[[(adamw, "torch"), (fixed, "torch"), ("SGD", "torch")]].tolist() == [
        8,
        8,
        0,
    ]
    assert found["memory_ratio"][adamw, "torch"] == 1 > found["memory_ratio"]["SGD", "torch"] > 0
    assert np.isnan(found["memory_ratio"][fixed, "compiled"])
