"""Runs that diverge, in each engine: what they record, and what is said about them."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from continual_metaopt import register_network
from continual_metaopt.analysis import comparison_table, load_runs
from continual_metaopt.analysis.explain import explain
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.run import run_one

ENGINES = ["torch", "fused", "compiled"]
FIXED = {"name": "fixed", "base": "sgd", "lr": 0.01, "weight_decay": 0.0}
HUGE = {"name": "fixed", "base": "sgd", "lr": 1e6}
LEARNED = {
    **{"name": "metaoptimize", "base": "sgd", "meta": "sgd", "trace": "hessian_free", "step_sizes": "blockwise"},
    **{"lr": 0.01, "gamma": 0.999},
}


def do_run(
    path: Path, engine: str, learner: dict[str, Any], network: str = "mlp", n: int = 100, n_experiences: int = 3
) -> str:
    """Do one run of n samples in each experience, and return what is said about it."""
    config = RunConfig(
        stream={"name": "permuted_inputs", "n_experiences": n_experiences, "samples_per_experience": n},  # type: ignore[arg-type]
        network={"name": network} | ({"hidden": [16]} if network == "mlp" else {}),  # type: ignore[arg-type]
        learner=learner,  # type: ignore[arg-type]
        engine=engine,  # type: ignore[arg-type]
        record_every=10,
        evaluate=False,
    ).resolved()
    assert run_one(config, path) == "diverged"
    assert read_json(path / "status.json")["engine"]["name"] == engine
    return re.sub("run [0-9a-f]{12}", "run ID", explain(path))


def rows_at_end(path: Path) -> set[tuple[str, str | None, str]]:
    """What was recorded of the sample at which a run ended, beside what is recorded at any step."""
    table = pq.read_table(path / "measurements.parquet").to_pylist()
    end = read_json(path / "status.json")["step"]
    return {
        (row["quantity"], row["block"], row["statistic"])
        for row in table
        if row["step"] == end and row["statistic"] != "value"
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_a_huge_step_size(tmp_path: Path, engine: str) -> None:
    text = do_run(tmp_path, engine, HUGE)

    assert text == (
        "fixed, seed 0 (learner fixed, network mlp, stream permuted_inputs), run ID.\n"
        "Diverged at sample 4 of 300, 4 samples into experience 1 of 3: the loss is nan.\n"
        "All weights were finite, the largest of them 1.9e+23 in linear2.weight, and the network's outputs\n"
        "overflowed.\n"
        "First went the loss. What had grown, first to last:\n"
        "- the loss: above 23 again and again from sample 1 on, 2.3e+33 at worst, 2.3e+33 at last.\n"
        "The step sizes were fixed: a smaller one (lr) is the first thing to try.\n"
        "Step sizes, which are not learned: all: 1e+06 throughout.\n"
    )
    assert {("not_finite", None, "loss"), ("largest", "linear1.bias", "weights"), ("step_size", "all", "at_end")} <= (
        rows_at_end(tmp_path)
    )


@pytest.mark.parametrize(
    "engine",
    ["compiled", *(pytest.param(engine, marks=pytest.mark.slow) for engine in ENGINES if engine != "compiled")],
)
def test_a_meta_step_size_that_is_too_large(tmp_path: Path, engine: str) -> None:
    text = do_run(tmp_path, engine, LEARNED | {"meta_lr": 10.0, "lr_bounds": [1e-10, 1e6]}, n=400)

    # exactly when numbers overflow depends on rounding; what went first does not
    line = r"Diverged at sample [\d,]+ of 1,200, \d+ samples into experience \d of 3: the meta gradient of block\n"
    assert re.search(line, text)
    assert (
        "First went the step size of block 'linear2'. What had grown, first to last:\n"
        "- the step size of block 'linear2': usually 0.0084, more than 10 times that between samples 40 and\n"
        "  50, up to 3.4.\n"
    ) in text
    assert (
        "A smaller meta step size (meta_lr), a lower upper bound of the step sizes (lr_bounds) or a bound on\n"
        "their changes (max_meta_change) would hold the step sizes back.\n"
        "Step sizes:\n"
    ) in text
    assert "most 3.4 at sample 50; at its lower bound\n  at 9" in text
    found = rows_at_end(tmp_path)
    assert {("not_finite", "linear1", "meta_gradient"), ("largest", "linear2.weight", "trace")} <= found
    assert {("meta_gradient", "linear2", "at_end"), ("step_size", "linear2", "at_end")} <= found
    table = comparison_table(load_runs(tmp_path))
    assert table["at_bound"].tolist() == [1]


@pytest.fixture
def ruined_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    from continual_metaopt import networks

    monkeypatch.setattr(networks.NETWORKS, "_entries", dict(networks.NETWORKS._entries))

    def register(name: str, ruin: Callable[[nn.Sequential], None]) -> None:
        @register_network(name)
        def make(n_outputs: int, input_shape: tuple[int, ...]) -> nn.Module:
            network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, n_outputs))
            with torch.no_grad():
                ruin(network)
            return network

    def one_is_nan(network: nn.Sequential) -> None:
        network[3].weight[2, 1] = math.nan

    def one_unit_is_off(network: nn.Sequential) -> None:
        network[1].bias[4] = -math.inf

    register("with_nan", one_is_nan)
    register("with_a_unit_off", one_unit_is_off)


@pytest.mark.usefixtures("ruined_networks")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_weight_that_is_not_a_number(tmp_path: Path, engine: str) -> None:
    text = do_run(tmp_path, engine, FIXED, "with_nan")

    assert text == (
        "fixed, seed 0 (learner fixed, network with_nan, stream permuted_inputs), run ID.\n"
        "Diverged at sample 0 of 300, 0 samples into experience 1 of 3: the loss is nan.\n"
        "Weights were not finite after 0 updates: 1 of 3.weight.\n"
        "Nothing on the record had grown before.\n"
        "Look for inputs or targets that are not finite; if there are none, a smaller step size (lr) is the\n"
        "first thing to try.\n"
        "No step sizes have been recorded.\n"
    )


@pytest.mark.usefixtures("ruined_networks")
@pytest.mark.parametrize(
    ("engine", "n", "n_experiences", "at", "place"),
    [(engine, 1, 1, 1, "its end") for engine in ENGINES]
    # compiled updates make NaN of an infinite weight, which the loss shows at once
    + [pytest.param("torch", 400, 3, 1000, "200 samples into experience 3 of 3", marks=pytest.mark.slow)],
)
def test_weights_are_looked_at_where_the_loss_stays_finite(
    tmp_path: Path, engine: str, n: int, n_experiences: int, at: int, place: str
) -> None:
    text = do_run(tmp_path, engine, FIXED, "with_a_unit_off", n, n_experiences)

    lines = text.splitlines()
    assert lines[1] == f"Diverged at sample {at:,} of {n_experiences * n:,}, {place}: weights are not finite."
    assert lines[2] == f"Weights were not finite after {at:,} update{'s' * (at > 1)}: 1 of 1.bias."
    assert pq.read_table(tmp_path / "samples.parquet").num_rows == at
    assert ("not_finite", "1.bias", "weights") in rows_at_end(tmp_path)


def test_a_diverged_run_counts_as_asked(tmp_path: Path) -> None:
    do_run(tmp_path, "torch", HUGE)
    runs = load_runs(tmp_path)
    n_correct = runs.correct_counts["n_correct"].item()

    chance, excluded = (comparison_table(runs, diverged=way).iloc[0] for way in ("chance", "exclude"))

    assert chance["online_accuracy"] == pytest.approx(100 * (n_correct + 296 / 10) / 300)
    assert math.isnan(excluded["online_accuracy"])
    assert (chance["diverged"], excluded["diverged"], chance["seeds"], excluded["seeds"]) == (1, 1, 1, 0)
