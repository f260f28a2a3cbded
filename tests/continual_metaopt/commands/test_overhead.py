"""The overhead of MetaOptimize, measured on a tiny network in turns of no length."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from continual_metaopt.commands import main as cli
from continual_metaopt.commands import overhead

LINEAR = "linear:input_shape=[1,8,8]"
COLUMNS = [
    *("learner", "engine", "step_us", "state_bytes_per_parameter"),
    *("time_ratio_low", "time_ratio", "time_ratio_high", "memory_ratio"),
]


@pytest.mark.slow
def test_overhead_is_relative_to_the_base_update_in_the_same_engine() -> None:
    text, table = overhead.measured(overhead.overhead([LINEAR], repeats=2, seconds=1e-9), None)
    assert len(text.splitlines()) == 2 + len(table)
    assert list(table.columns) == COLUMNS
    fixed = table["learner"].str.endswith(", fixed")
    assert (table["time_ratio"][fixed] == 1).all()
    assert fixed.sum() == 3 * 3
    found = table.set_index(["learner", "engine"])
    # 4 bytes each: two running means of AdamW, one of Lion, a trace, and a second one without a discount
    state = found["state_bytes_per_parameter"].xs("torch", level="engine").round()
    expected = {"fixed": 8, "scalar": 12, "blockwise": 12, "blockwise, no discount": 16}
    assert {name: state[f"adamw, {name}"] for name in expected} == expected
    assert (state["lion, fixed"], state["lion, blockwise"]) == (4, 8)
    assert found["memory_ratio"]["adamw, blockwise", "torch"] > 1
    assert ("adamw, blockwise, trace l", "torch") in found.index
    assert ("adamw, blockwise, trace l", "compiled") not in found.index  # it needs the loss's curvature


def test_state_counts_each_storage_once_and_no_numbers() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(10))])
    shared = torch.zeros(8)
    state = {"step": torch.tensor(1.0), "mean": shared[:4], "again": [shared[4:], {"other": torch.zeros(3)}]}
    optimizer.state[optimizer.param_groups[0]["params"][0]] = state
    assert overhead.state_bytes(optimizer) == (8 + 3) * 4


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--seeds", "1"], "--seeds"),
        (["--source", "digits"], "--source"),
        (["--data-root", "data"], "--data-root"),
        (["--workers", "2"], "--workers"),
        (["--plan"], "--plan"),
    ],
)
def test_it_takes_no_images(capsys: pytest.CaptureFixture[str], arguments: list[str], flag: str) -> None:
    assert cli.main(["reproduce", "overhead", *arguments]) == 2
    expected = f"overhead is measured on random images, one learner at a time; leave out {flag}"
    assert capsys.readouterr().err == f"continual-metaopt: {expected}\n"


def test_it_is_written_into_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "overhead", lambda: iter([{"learner": "adamw, fixed", "step_us": 12.5}]))

    assert cli.main(["reproduce", "overhead", "--out", str(tmp_path), "--quiet"]) == 0

    table, text = (tmp_path / "report" / f"overhead.{kind}" for kind in ("csv", "md"))
    assert capsys.readouterr().out == f"{text.read_text()}wrote {table}\nwrote {text}\n"
    assert pd.read_csv(table).to_dict("records") == [{"learner": "adamw, fixed", "step_us": 12.5}]
