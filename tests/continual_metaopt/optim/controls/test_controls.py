"""Learners that are controls: replayed step sizes, fixed ones per block, and networks that begin anew."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from continual_metaopt.contract import run_contract
from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.compiled import learner as compiled_learner
from continual_metaopt.learner import online_learner
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.controls.reinitialised import reinitialised_told
from continual_metaopt.optim.controls.replayed_step_sizes import ReplayedStepSizes
from continual_metaopt.optim.controls.trajectories import Trajectory
from continual_metaopt.optim.dynamic_parameters import follow_parameters
from continual_metaopt.optim.protocol import step_sizes_of
from continual_metaopt.optim.registry import learner_factory
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.run import run_one
from tests.continual_metaopt.conftest import STREAM, exactly, read_tables

PLAN = Trajectory(("0", "2"), np.array([0, 2, 4]), np.array([[0.1, 0.2], [0.01, 0.02], [0.03, 0.0]]), (0,), 6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def replaying(model: nn.Module) -> ReplayedStepSizes:
    """With the first block's step sizes of the plan for the first block of a network, the second's for all others."""
    groups = blocks(model)
    plan = Trajectory(
        tuple(group["name"] for group in groups),
        PLAN.steps,
        PLAN.step_sizes[:, [min(i, 1) for i in range(len(groups))]],
        PLAN.boundaries,
        PLAN.n_samples,
    )
    return ReplayedStepSizes(groups, plan, base="adamw_released")


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> None:
    for step in range(n):
        optimizer.zero_grad()
        x = torch.randn(1, 6, generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(x), torch.tensor([step % 3])).backward()
        optimizer.step()


CONTROLS: dict[str, Any] = {
    "replayed_step_sizes": replaying,
    "reinitialised_told": partial(reinitialised_told, base="adamw_released"),
    "head of reinitialised_told": partial(reinitialised_told, part="head"),
    "fixed_per_block": partial(learner_factory("fixed_per_block"), lr=0.01),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_contract_is_fulfilled(name: str) -> None:
    assert {wish: finding for wish, finding in run_contract(CONTROLS[name]).items() if finding} == {}


def test_each_step_has_the_step_size_that_was_recorded_for_it() -> None:
    model = network()
    optimizer = replaying(model)
    seen = []
    for _ in range(6):
        seen.append(list(step_sizes_of(optimizer).values()))
        learn(model, optimizer, 1)
    assert seen == [[0.1, 0.2]] * 2 + [[0.01, 0.02]] * 2 + [[0.03, 0.0]] * 2


def test_a_replay_moves_weights_by_the_step_sizes_in_force() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    plan = Trajectory(("w",), np.array([0, 1]), np.array([[0.5], [0.25]]), (0,), 2)
    optimizer = ReplayedStepSizes([{"params": [weight], "name": "w"}], plan, base="sgd", weight_decay=0.0)
    for expected in (-0.5, -0.75, -1.0):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert weight.item() == expected


def test_blocks_that_do_not_fit_are_refused() -> None:
    plan = Trajectory(("conv1", "head"), np.array([0]), np.ones((1, 2)), (0,), 2)
    message = (
        "the trajectory has step sizes of conv1, head, but the network's blocks are w; "
        "take the network and the step_sizes of the run that is replayed"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        ReplayedStepSizes([{"params": [nn.Parameter(torch.zeros(1))], "name": "w"}], plan)


def test_without_step_sizes_the_first_step_says_what_is_missing() -> None:
    model = network()
    message = (
        "there are no step sizes to replay: give trajectory, the directory of a finished run, or, in a study, replays, "
        "the label of another learner"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        learn(model, learner_factory("replayed_step_sizes")(model), 1)


def test_mini_batches_are_refused() -> None:
    message = "step sizes are replayed sample by sample, but samples come in mini-batches of 8"
    with pytest.raises(ValueError, match=exactly(message)):
        learner_factory("replayed_step_sizes")(network(), batch_size=8)


# ------------------------------------------------------------------------------------------------- fixed, per block


def test_step_sizes_of_single_blocks() -> None:
    optimizer = learner_factory("fixed_per_block")(network(), lr=0.5, lr_2=0.25)
    assert step_sizes_of(optimizer) == {"0": 0.5, "2": 0.25}


def test_equal_step_sizes_per_block_are_one_fixed_step_size() -> None:
    weights = []
    for name in ("fixed", "fixed_per_block"):
        model = network()
        learn(model, learner_factory(name)(model, lr=0.01, base="adamw_released"), 5)
        weights.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    assert weights[0].equal(weights[1])


def test_an_unknown_block_is_named() -> None:
    message = "there is no option 'lr_1'; step sizes of blocks are lr_0, lr_2"
    with pytest.raises(ValueError, match=exactly(message)):
        learner_factory("fixed_per_block")(network(), lr_1=0.1)


# ------------------------------------------------------------------------------------------------- begin anew


@pytest.mark.parametrize("part", ["network", "head"])
def test_weights_and_moments_begin_anew_at_boundaries_alone(part: Any) -> None:
    model, fresh = network(), network()
    optimizer = reinitialised_told(model, part=part, lr=0.1)
    optimizer.begin_experience()  # the first, before any step
    learn(model, optimizer, 4)
    trained = [param.detach().clone() for param in model.parameters()]

    optimizer.begin_experience()

    for i, (param, before, initial) in enumerate(zip(model.parameters(), trained, fresh.parameters(), strict=True)):
        anew = part == "network" or i >= 2
        assert param.equal(initial if anew else before)
        assert optimizer.state[param]["step"] == (0 if anew else 4)
    if part == "network":
        learn(model, optimizer, 4)
        assert all(param.equal(before) for param, before in zip(model.parameters(), trained, strict=True))


def test_a_head_that_has_grown_begins_anew_with_the_weights_of_its_new_part() -> None:
    model = network()
    optimizer = reinitialised_told(model, lr=0.1)
    optimizer.begin_experience()
    initial = model[2].weight.detach().clone()
    learn(model, optimizer, 3)

    old, trained = dict(model.named_parameters()), model[2].weight.detach().clone()
    model[2] = nn.Linear(8, 5)
    with torch.no_grad():
        model[2].weight[:3] = trained
    added = model[2].weight[3:].detach().clone()
    follow_parameters(optimizer, old, dict(model.named_parameters()))
    restored = copy.deepcopy(model)
    successor = reinitialised_told(restored, lr=0.1)
    successor.load_state_dict(optimizer.state_dict())  # a checkpoint between growing and beginning anew

    for grown, told in ((model, optimizer), (restored, successor)):
        for _ in range(2):
            told.begin_experience()
            assert grown[2].weight.equal(torch.cat([initial, added]))
            learn(grown, told, 3)


# ------------------------------------------------------------------------------------------------- in runs


@pytest.mark.slow
def test_a_replay_on_the_same_seed_repeats_the_closed_loop(tmp_path: Path) -> None:
    """Exactly what was recorded holds for each sample where meta updates come as often as records."""
    base = {"base": "adamw_released", "weight_decay": 0.1}
    closed = {"name": "metaoptimize", "meta": "adam_released", "lr": 1e-3, "meta_lr": 0.05, "trace": "hessian_free"}

    def run(name: str, learner: dict[str, Any]) -> dict[str, Any]:
        config = RunConfig(
            stream=Component(**STREAM),
            network=Component(name="mlp", hidden=[8]),
            learner=Component(**learner, **base),
            record_every=10,
            engine="torch",
        ).resolved()
        assert run_one(config, tmp_path / name) == "finished"
        return read_tables(tmp_path / name)

    recorded = run("closed", closed | {"meta_every": 10})
    replayed = run("replay", {"name": "replayed_step_sizes", "trajectory": str(tmp_path / "closed")})
    frozen = run("frozen", {"name": "replayed_step_sizes", "trajectory": str(tmp_path / "closed"), "change": "frozen"})

    assert len(set(recorded["step_sizes"]["step_size"].to_pylist())) > 10
    assert replayed["step_sizes"]["step_size"].equals(recorded["step_sizes"]["step_size"])
    losses = [tables["samples"]["loss"].to_numpy() for tables in (recorded, replayed, frozen)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert np.abs(losses[2] - losses[0]).max() > 1e-2


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("closed") / "run"
    closed = Component(name="metaoptimize", base="adamw_released", lr=1e-3, meta_lr=0.05)
    assert run_one(RunConfig(**COMMON, learner=closed, record_every=10).resolved(), path) == "finished"
    return path


COMMON = {"stream": Component(**STREAM), "network": Component(name="mlp", hidden=[8])}
IN_RUNS: dict[str, Any] = {
    "replay": {"name": "replayed_step_sizes"},
    "exchanged": {"name": "replayed_step_sizes", "change": "exchanged"},
    "network anew": {"name": "reinitialised_told", "lr": 0.01},
    "head anew": {"name": "reinitialised_told", "lr": 0.01, "part": "head"},
}


def described(learner: dict[str, Any], recorded: Path, **settings: Any) -> RunConfig:
    trajectory = {"trajectory": str(recorded)} if learner["name"] == "replayed_step_sizes" else {}
    component = Component(**learner, **trajectory, base="adamw_released", weight_decay=0.1)
    return RunConfig(**COMMON, learner=component, **settings).resolved()


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_RUNS)
def test_every_engine_does_the_same(name: str, recorded_run: Path, tmp_path: Path) -> None:
    runs = {}
    for engine in ("torch", "fused", "compiled"):
        assert run_one(described(IN_RUNS[name], recorded_run, engine=engine), tmp_path / engine) == "finished"
        assert json.loads((tmp_path / engine / "status.json").read_text())["engine"]["name"] == engine
        runs[engine] = read_tables(tmp_path / engine)
    for engine in ("fused", "compiled"):
        assert runs[engine]["step_sizes"]["step_size"].equals(runs["torch"]["step_sizes"]["step_size"])
        np.testing.assert_allclose(runs[engine]["samples"]["loss"], runs["torch"]["samples"]["loss"], rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "compiled"])
@pytest.mark.parametrize("name", ["replay", "head anew"])
def test_resumes_bit_for_bit(
    name: str, engine: str, recorded_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (torch_engine, compiled_learner, online_learner):
        monkeypatch.setattr(module, "MAX_SAMPLES", 30)
    config = described(IN_RUNS[name], recorded_run, engine=engine)
    assert run_one(config, tmp_path / "whole") == "finished"
    calls = iter([False, False, True])
    assert run_one(config, tmp_path / "resumed", should_stop=lambda: next(calls, False)) == "failed"
    assert run_one(config, tmp_path / "resumed") == "finished"
    whole, resumed = read_tables(tmp_path / "whole"), read_tables(tmp_path / "resumed")
    assert all(whole[name].equals(resumed[name]) for name in ("samples", "step_sizes"))
