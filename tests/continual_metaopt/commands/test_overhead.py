"""What learning step sizes costs is measured beside the base optimizer."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from continual_metaopt.commands import overhead


@pytest.mark.slow
def test_each_engine_is_measured_against_its_own_base_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []
    take_turns = overhead.take_turns

    def noted(contenders: Any, images: Any, *others: Any) -> Any:
        turns.extend(one.strategy.engine for one in contenders)
        return take_turns(contenders, images, *others)

    monkeypatch.setattr(overhead, "take_turns", noted)
    options = {"network": "linear", "shape": (1, 8, 8), "seconds": 1e-9, "repeats": 3, "bases": ("adamw", "lion")}
    text, paths = overhead.write_overhead(tmp_path, show_progress=False, **options)

    table = pd.read_csv(tmp_path / "overhead.csv").set_index(["learner", "engine"])
    assert paths == [tmp_path / "overhead.md", tmp_path / "overhead.csv"]
    assert paths[0].read_text() == text
    assert table.index.is_unique
    reasons = [engine["reason"] for engine in turns if engine["name"] == "fused"]
    assert set(reasons) == {"asked for; gradients by a traced graph"}  # before the first turn
    assert {engine for _, engine in table.index} == {"torch", "fused", "compiled"}
    of_fixed = [label.endswith(", fixed") for label, _ in table.index]
    assert (table.loc[of_fixed, "time_ratio"] == 1).all()
    assert len(table.loc[of_fixed]) == 2 * 3
    assert (table["time_ratio_low"] <= table["time_ratio_high"]).all()
    state = table["state_bytes_per_parameter"].xs("torch", level="engine")
    # 4 bytes each: two running means of AdamW, one of Lion, a trace, and a second one without a discount
    expected = {"fixed": 8, "scalar": 12, "blockwise": 12, "blockwise, no discount": 16}
    assert {name: round(state[f"adamw, {name}"]) for name in expected} == expected
    assert (round(state["lion, fixed"]), round(state["lion, blockwise"])) == (4, 8)
    assert (table["memory_ratio"].isna() == [engine == "compiled" for _, engine in table.index]).all()
    assert table.loc[("adamw, blockwise", "torch"), "memory_ratio"] > 1
    assert ("adamw, blockwise, trace l", "torch") in table.index
    assert ("adamw, blockwise, trace l", "compiled") not in table.index  # it needs the loss's curvature


@pytest.mark.parametrize("base", overhead.BASES)
def test_learners_are_compared_with_their_own_base_update(base: str) -> None:
    measured = overhead.learners()
    assert measured[f"{base}, blockwise"][1] == f"{base}, fixed"
    assert measured[f"{base}, fixed"][0].options == {"base": base}


def test_state_counts_each_storage_once_and_no_weights() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(10))])
    weight = optimizer.param_groups[0]["params"][0]
    shared = torch.zeros(8)
    optimizer.state[weight] = {
        "step": torch.tensor(1.0),
        "mean": shared[:4],
        "again": [shared[4:], {"weights": weight.detach()[:2]}],
        "array": np.zeros((2, 3))[:1],
    }

    assert overhead.state_bytes(optimizer) == 8 * 4 + 6 * 8


@pytest.mark.parametrize(("seconds", "repeats"), [(0.0, 3), (0.1, 0)])
def test_turns_take_time(seconds: float, repeats: int) -> None:
    message = f"turns must take time, and there must be one at least, not {repeats} of {seconds} seconds"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        overhead.overhead(seconds=seconds, repeats=repeats)
