"""Learners with equal seeds see equal samples in equal order, whatever they learn with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from continual_metaopt.analysis import comparison_table, load_runs
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.runs.files import read_json
from continual_metaopt.streams import make_stream
from continual_metaopt.study.config import StudyConfig
from continual_metaopt.study.expand import expand
from tests.continual_metaopt.conftest import read_tables
from tests.studies import run_study

STREAMS: dict[str, dict[str, Any]] = {
    "permuted": {"name": "permuted_inputs", "n_experiences": 2, "samples_per_experience": 30},
    "gradual": {"name": "permuted_inputs", "n_experiences": 2, "samples_per_experience": 30, "transition_width": 20},
    "split": {"name": "class_split", "classes_per_experience": 5, "samples_per_experience": 30},
    "shuffled": {"name": "class_split", "labels": "global", "n_experiences": 1, "stationary": "shuffled"},
}
# They hardly move, so that the loss of a sample tells which one it is.
STILL = {"lr": 1e-10, "base": "adamw"}
ONE_TRACE = {"gamma": 0.999, "trace": "hessian_free"}
LEARNERS: list[dict[str, Any]] = [
    {"label": "fixed", "name": "fixed", **STILL},
    {"label": "scalar", "name": "metaoptimize", "step_sizes": "scalar", "meta_lr": 1e-6, **STILL, **ONE_TRACE},
    {"label": "blockwise", "name": "metaoptimize", "meta_lr": 1e-6, **STILL, **ONE_TRACE},
]
TORCHS_OWN = {"label": "torch", "name": "torch:SGD", "lr": 1e-10}
SEEDS = [0, 1]


def losses(stream: dict[str, Any], seed: int) -> list[float]:
    """Of the network as it is at the beginning, on all samples of the stream as Avalanche presents them."""
    benchmark = make_stream(**stream, seed=seed)
    torch.manual_seed(seed)
    network = MLP(
        n_outputs=benchmark.info.for_learner.n_outputs,
        input_shape=benchmark.info.for_learner.input_shape,
        hidden=(8,),
    )
    with torch.no_grad():
        return [
            float(cross_entropy(network(x[None]), torch.tensor([y])))
            for experience in benchmark.train_stream
            for x, y, _ in experience.dataset
        ]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("engine", "stream"),
    [
        *((engine, "permuted") for engine in ("torch", "fused", "compiled", "auto")),
        ("auto", "gradual"),
        ("compiled", "split"),
        pytest.param("auto", "shuffled", marks=pytest.mark.slow),
    ],
)
def test_learners_with_equal_seeds_see_equal_samples_in_equal_order(engine: str, stream: str, tmp_path: Path) -> None:
    study = StudyConfig.model_validate(
        {
            "name": "still",
            "stream": STREAMS[stream],
            "network": {"name": "mlp", "hidden": [8]},
            "learners": [*LEARNERS, TORCHS_OWN] if engine in ("auto", "torch") else LEARNERS,
            "seeds": SEEDS,
            "engine": engine,
            "evaluate": False,
        }
    )
    paths = run_study(expand(study), tmp_path, workers=1).runs
    assert len(paths) == len(study.learners) * len(SEEDS)

    fingerprints = {seed: make_stream(**STREAMS[stream], seed=seed).info.fingerprint for seed in SEEDS}
    assert len(set(fingerprints.values())) == len(SEEDS)
    expected = {seed: losses(STREAMS[stream], seed) for seed in SEEDS}
    for path in paths:
        config = read_json(path / "config.json")
        assert config["stream_info"]["fingerprint"] == fingerprints[config["seed"]]
        np.testing.assert_allclose(read_tables(path)["samples"]["loss"], expected[config["seed"]], rtol=1e-4)
        assert not np.allclose(expected[config["seed"]], np.roll(expected[config["seed"]], 1), rtol=1e-2)
    assert comparison_table(load_runs(tmp_path), baseline="fixed")["pairs"].tolist()[1:] == [2] * (
        len(study.learners) - 1
    )
