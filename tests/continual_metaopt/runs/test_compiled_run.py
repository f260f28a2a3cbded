"""Runs on plain arrays: the records that ``OnlineLearner`` leaves, in processes that have not imported torch."""

import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from continual_metaopt import register_network
from continual_metaopt.engines.compiled import learner as compiled_learner
from continual_metaopt.engines.undisturbed import random_numbers_kept
from continual_metaopt.runs import run
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.preparing import Beginning, prepare
from continual_metaopt.runs.run import run_one
from continual_metaopt.study.backends import local
from continual_metaopt.study.jobs import RunsFailed
from continual_metaopt.study.running import run_jobs
from tests.continual_metaopt.conftest import read_tables
from tests.continual_metaopt.runs.conftest import COMPILED, assert_same_run, stop_at

PERMUTED = {"name": "permuted_inputs", "n_experiences": 3, "samples_per_experience": 50}
SPLIT = {"name": "class_split", "classes_per_experience": 5}
TRACKING = {"name": "tracking", "n_samples": 130, "samples_per_experience": 50}
MLP = {"name": "mlp", "hidden": [8]}


def config_of(
    stream: dict[str, Any] = PERMUTED, network: dict[str, Any] = MLP, seed: int = 0, **learner: Any
) -> RunConfig:
    learner = {"name": "metaoptimize", "lr": 3e-3} | learner
    return RunConfig(
        stream=Component(**stream),
        network=Component(**network),
        learner=Component(**learner),
        seed=seed,
        record_every=10,
    ).resolved()


def by_learner(config: RunConfig, path: Path, should_stop: Callable[[], bool] = lambda: False) -> str:
    """The same run by ``OnlineLearner``."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run, "_prepare", lambda config, path: None)
        return run_one(config, path, should_stop=should_stop)


@pytest.mark.parametrize("do", [run_one, by_learner])
def test_compilation_does_not_count_as_learning(
    do: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, compile_ = [], compiled_learner.CompiledLearner.compile

    def slowly(learner: Any, samples: Any) -> None:
        if not slept:
            slept.append(time.sleep(1.2))
        compile_(learner, samples)

    run_one(config_of(seed=1), tmp_path / "warm")
    monkeypatch.setattr(compiled_learner.CompiledLearner, "compile", slowly)
    assert do(config_of(), tmp_path / "run") == "finished"
    assert slept
    assert read_json(tmp_path / "run/status.json")["samples_per_second"] > 150 / 1.2


# --------------------------------------------------------------------------------------------------- the same records


@pytest.mark.parametrize(
    "config",
    [
        config_of(),
        config_of(seed=1, gamma=0.99, trace="hessian_free", step_sizes="scalar", base="lion", meta="sgd"),
        config_of(seed=2, base="adamw_released", meta="adam_released", max_meta_change=0.01),
        config_of(name="fixed", lr=1e-2, base="sgdm"),
        config_of(SPLIT | {"labels": "global"}, seed=3),
        config_of(SPLIT | {"stationary": "shuffled"}, {"name": "paper_cnn"}),
        config_of(TRACKING, {"name": "linear"}, lr=1e-3),
        config_of().model_copy(update={"evaluate": False, "engine": "compiled"}),
    ],
    ids=lambda config: f"{config.stream.name}-{config.network.name}-{config.learner.options['base']}-{config.engine}",
)
def test_the_record_is_that_of_online_learner(tmp_path: Path, config: RunConfig) -> None:
    assert prepare(config, tmp_path) is not None

    assert run_one(config, tmp_path / "arrays") == by_learner(config, tmp_path / "learner") == "finished"

    assert_same_run(tmp_path / "arrays", tmp_path / "learner")
    assert read_json(tmp_path / "arrays" / "status.json")["engine"] == COMPILED


@pytest.mark.parametrize("lr", [1e6, 1e30])
def test_a_diverged_run_is_recorded_as_that_of_online_learner(tmp_path: Path, lr: float) -> None:
    config = config_of(base="sgd", lr=lr, lr_bounds=[1e-10, 1e32])

    assert run_one(config, tmp_path / "arrays") == by_learner(config, tmp_path / "learner") == "diverged"

    assert_same_run(tmp_path / "arrays", tmp_path / "learner")
    assert read_json(tmp_path / "arrays" / "status.json")["step"] < 20


@pytest.mark.usefixtures("registries")
def test_a_label_that_does_not_fit_is_recorded_as_by_online_learner(tmp_path: Path) -> None:
    @register_network("narrow")
    def narrow(n_outputs: int, input_shape: tuple[int, int, int]) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))

    config = config_of(SPLIT | {"labels": "global"}, {"name": "narrow"})

    assert run_one(config, tmp_path / "arrays") == by_learner(config, tmp_path / "learner") == "failed"

    ours, theirs = (read_json(tmp_path / name / "status.json") for name in ("arrays", "learner"))
    assert ours["reason"] == theirs["reason"]
    assert ours["reason"].startswith("ValueError: label ")
    assert ours["step"] == theirs["step"]
    parts = [sorted((tmp_path / name / "samples").iterdir()) for name in ("arrays", "learner")]
    assert [part.read_bytes() for part in parts[0]] == [part.read_bytes() for part in parts[1]]


@pytest.mark.parametrize(
    "config",
    [
        config_of().model_copy(update={"engine": "torch"}),
        config_of().model_copy(update={"engine": "fused"}),
        config_of().model_copy(update={"device": "cuda"}),
        config_of(name="torch:NAdam"),
        config_of(step_sizes="node"),
    ],
    ids=["torch", "fused", "cuda", "another optimizer", "many step sizes"],
)
def test_what_compiled_code_cannot_do_is_left_to_torch(tmp_path: Path, config: RunConfig) -> None:
    assert prepare(config, tmp_path) is None


def test_preparing_draws_no_random_numbers_of_others(tmp_path: Path) -> None:
    config = config_of()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert prepare(config, tmp_path) is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_that_put_random_numbers_back_do_not_change_initial_weights(tmp_path: Path, registries: None) -> None:
    """As where a run begins in one thread while that of another one traces a network, or measures an accuracy."""
    entered, begun = threading.Event(), threading.Event()

    @register_network("slow_to_begin")
    def slow_to_begin(n_outputs: int, input_shape: tuple[int, int, int]) -> torch.nn.Module:
        begun.set()
        time.sleep(0.2)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, n_outputs))

    def put_back() -> None:
        with random_numbers_kept():
            entered.set()
            begun.wait(0.1)

    config = config_of().model_copy(update={"network": Component(name="slow_to_begin")})
    alone = Beginning(config)
    begun.clear()
    other = threading.Thread(target=put_back)
    other.start()
    entered.wait()
    beside = Beginning(config)
    other.join()
    assert all(map(torch.equal, alone.model.parameters(), beside.model.parameters()))


# --------------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("network", [MLP, {"name": "paper_cnn"}], ids=["mlp", "cnn"])
@pytest.mark.parametrize(("first", "second"), [(run_one, by_learner), (by_learner, run_one)])
def test_either_goes_on_with_what_the_other_has_begun(
    tmp_path: Path, first: Any, second: Any, network: dict[str, Any]
) -> None:
    config = config_of(network=network)
    by_learner(config, tmp_path / "whole")

    assert first(config, tmp_path / "run", should_stop=stop_at(2)) == "failed"
    assert second(config, tmp_path / "run", should_stop=stop_at(3)) == "failed"
    assert len(list((tmp_path / "run").glob("checkpoint.*"))) == 1
    assert first(config, tmp_path / "run") == "finished"

    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_checkpoint_is_plain_arrays_and_json(tmp_path: Path) -> None:
    run_one(config_of(), tmp_path, should_stop=stop_at(4))

    with np.load(tmp_path / "checkpoint.npz", allow_pickle=False) as content:
        about = json.loads(str(content["about"]))
        assert {name: content[name].dtype.kind for name in content.files if name != "about"} == dict.fromkeys(
            ("weights", "momentum", "second_moment", "trace", "long_trace", "steps", "blocks", "kept", "numbers"), "f"
        )
        assert (content["steps"] == 70).all()
    assert (about["run_id"], about["n_samples"], about["n_ended"]) == (config_of().run_id, 70, 1)
    assert about["progress"]["step"] == 70


def test_what_goes_to_a_worker_needs_no_torch(tmp_path: Path) -> None:
    """Also when it comes from a checkpoint of PyTorch's."""
    by_learner(config_of(), tmp_path, stop_at(4))

    sent = pickle.dumps(prepare(config_of(), tmp_path))

    assert b"torch" not in sent.replace(b"torch_engine", b"")
    assert pickle.loads(sent).checkpoint["n_samples"] == 70


# ---------------------------------------------------------------------------------------------------------- processes


PROBE = """
import os, sys
from continual_metaopt.runs.directory import RunDirectory

def finish(self, *arguments, finish=RunDirectory.finish, **options):
    finish(self, *arguments, **options)
    (self.path / "modules").write_text(f"{os.getpid()} {' '.join(sys.modules)}")

RunDirectory.finish = finish
"""


@pytest.mark.slow
def test_workers_import_neither_torch_nor_avalanche_nor_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe_of_modules.py").write_text(PROBE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunDirectory, "finish", RunDirectory.finish)  # which the probe changes here too
    plain = [config_of(TRACKING, {"name": "linear"}, seed, lr=1e-3) for seed in (0, 1)]  # digits need pandas
    configs = [config.model_copy(update={"imports": ("probe_of_modules",)}) for config in plain]
    monkeypatch.setattr(sys, "path", ["", *sys.path])

    run_jobs([(config, tmp_path / str(config.seed)) for config in configs], workers=2, show_progress=False)

    for config in configs:
        pid, *modules = (tmp_path / str(config.seed) / "modules").read_text().split()
        assert int(pid) != os.getpid()
        found = {name.partition(".")[0] for name in modules}
        assert "numba" in found
        assert not found & {"torch", "torchvision", "avalanche", "pandas"}
        by_learner(plain[config.seed], tmp_path / "learner" / str(config.seed))
        ours, theirs = (read_tables(folder / str(config.seed)) for folder in (tmp_path, tmp_path / "learner"))
        assert all(ours[name].equals(table) for name, table in theirs.items())


def test_an_engine_that_does_not_fit_fails_with_the_reason(tmp_path: Path) -> None:
    config = config_of(name="torch:NAdam").model_copy(update={"engine": "compiled"})

    assert run_one(config, tmp_path) == "failed"

    why = "NAdam is not written as functions of single numbers"
    reason = f'ValueError: engine="compiled" is not possible: {why}; use engine="auto"'
    assert read_json(tmp_path / "status.json")["reason"] == reason


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_twice_is_reported_and_can_go_on(tmp_path: Path) -> None:
    long = config_of(PERMUTED | {"n_experiences": 100, "samples_per_experience": 1000})
    path = tmp_path / "run"

    def kill() -> None:
        killed: set[int] = set()
        deadline = time.monotonic() + 300
        while len(killed) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
            owner = read_json(path / "status.json")["owner"]["pid"] if (path / "status.json").exists() else None
            if owner not in (None, *killed):
                os.kill(owner, signal.SIGKILL)
                killed.add(owner)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RunsFailed) as caught:
        run_jobs([(long, path)], show_progress=False)
    killer.join()

    assert str(caught.value) == f"1 of 1 runs failed:\n{path}: {local.KILLED}"
    assert read_json(path / "status.json")["state"] == "failed"
    assert prepare(long, path) is not None


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    run_one(config_of(), tmp_path, should_stop=stop_at(1))
    with np.load(tmp_path / "checkpoint.npz") as content:
        arrays = dict(content)
    np.savez(tmp_path / "checkpoint.npz", **arrays | {"blocks": arrays["blocks"][:, :-1]})

    assert run_one(config_of(), tmp_path) == "failed"

    reason = (
        f"'{tmp_path / 'checkpoint.npz'}' was written by another version of this package; go on with that version, "
        f"or move '{tmp_path}' elsewhere to run again"
    )
    assert read_json(tmp_path / "status.json")["reason"] == f"ValueError: {reason}"
