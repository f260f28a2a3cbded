"""Runs of text: what they record, and that the recurrent network's state survives an interruption."""

import math
from pathlib import Path

import pytest

from continual_metaopt.analysis.explain import explain
from continual_metaopt.analysis.runs import load_runs
from continual_metaopt.analysis.tables import comparison_table
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.run import run_one
from tests.continual_metaopt.runs.conftest import assert_same_run, stop_at


def config_of(network: str) -> RunConfig:
    return RunConfig(
        stream=Component(name="text", samples_per_experience=80, context=8, unit="character"),
        network=Component(name=network, width=16),
        learner=Component(name="metaoptimize", lr=3e-3),
        record_every=10,
    ).resolved()


@pytest.mark.parametrize("network", ["recurrent", "transformer"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(network: str, tmp_path: Path) -> None:
    assert run_one(config_of(network), tmp_path / "finished") == "finished"
    assert run_one(config_of(network), tmp_path / "run", should_stop=stop_at(3)) == "failed"
    assert read_json(tmp_path / "run" / "status.json")["step"] == 48, "in the middle of an experience"
    assert run_one(config_of(network), tmp_path / "run") == "finished"

    assert_same_run(tmp_path / "run", tmp_path / "finished")


def test_every_symbol_is_recorded_and_bits_per_byte_follow(tmp_path: Path) -> None:
    assert run_one(config_of("recurrent"), tmp_path) == "finished"
    runs = load_runs(tmp_path)

    assert len(runs.samples) == 320
    info = read_json(tmp_path / "config.json")["stream_info"]
    assert (info["input_type"], info["bytes_per_sample"], info["batch_size"]) == ("int64", 1.0, 8)
    bits = comparison_table(runs)["bits_per_byte"].item()
    assert bits == pytest.approx(runs.samples["loss"].mean() / math.log(2), rel=1e-6)
    assert "Online accuracy" in explain(tmp_path)
