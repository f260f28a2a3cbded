"""Glocal hypergradients by fast engines: the same windows, estimates and step sizes as by PyTorch."""

from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pytest
from torch import nn

from continual_metaopt.engines.compiled import learner as compiled_learner
from continual_metaopt.engines.compiled.fused_update import FusedUpdate, fused_update_of
from continual_metaopt.engines.compiled.rules import why_no_kernels
from continual_metaopt.learner import online_learner
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.peers.glocal import Glocal
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.preparing import prepare
from continual_metaopt.runs.run import run_one
from tests.continual_metaopt.conftest import read_tables
from tests.continual_metaopt.engines.compiled.test_engine import ENGINES, Make, Twins, made, part, samples

SMALL: dict[str, Any] = {"tau": 24, "window": 4, "delays": 2, "tolerance": 0.5, "meta_lr": 0.5}


def network() -> nn.Sequential:
    return made(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 5), nn.Tanh(), nn.Linear(5, 3)
    )


def glocal(**options: Any) -> Make:
    return lambda model: Glocal(blocks(model), **{"lr": 0.01, **SMALL, **options})


class GlocalTwins(Twins):
    """Twins whose collections have to agree, too."""

    def compare(self) -> None:
        super().compare()
        expected = self.learners[0].optimizer
        assert isinstance(expected, Glocal)
        theirs = expected.collection()
        for learner in self.learners[1:]:
            assert isinstance(learner.optimizer, Glocal)
            ours = learner.optimizer.collection()
            for name in ("of", "in_window", "n_collections", "n_skipped"):
                assert ours[name] == theirs[name]
            for name in ("sums", "snapshots"):
                self._close(ours[name], theirs[name], name)
            reports = (each.optimizer.meta_parameter_report() for each in (learner, self.learners[0]))
            found, wanted = ({(a, b): c for a, part in report.items() for b, c in part.items()} for report in reports)
            assert found == pytest.approx(wanted, rel=self.rtol)


@pytest.mark.parametrize("gamma", [1.0, 0.0, 0.9])
@pytest.mark.parametrize(
    "options", [{}, {"base": "sgd", "keep": "one", "tolerance": 0.9, "meta": "sgd", "step_sizes": "scalar"}]
)
def test_several_collections_are_those_of_pytorch(gamma: float, options: dict[str, Any]) -> None:
    data = samples(150, (2, 8, 6))
    twins = GlocalTwins(network(), glocal(gamma=gamma, **options), engines=ENGINES)
    for first, last in ((0, 3), (3, 40), (40, 48), (48, 150)):  # within a window, across collections, at an end
        assert twins.learn(part(data, first, last), record_every=5) is None
        twins.compare()
    optimizer = twins.learners[0].optimizer
    collection = optimizer.param_groups[0]["collection"]
    assert collection["n_collections"] == 6
    assert collection["n_skipped"] < 6
    assert set(optimizer.step_size_report().values()) != {0.01}


def test_either_engine_goes_on_in_the_window_of_the_other() -> None:
    data = samples(100, (2, 8, 6))
    twins = GlocalTwins(network(), glocal())
    for first in range(0, 100, 10):
        twins.learn(part(data, first, first + 10))
        twins.compare()
        twins.swap()


def test_fixed_frozen_and_new_blocks() -> None:
    """The collection begins anew where another block learns, with traces of 0 by all engines."""
    data = samples(120, (2, 8, 6))
    twins = GlocalTwins(network(), glocal(), engines=ENGINES)

    def learn(first: int, last: int) -> None:
        twins.learn(part(data, first, last))
        twins.compare()

    twins.change(lambda model, optimizer: optimizer.param_groups[1].update(meta_lr=0.0))
    learn(0, 30)
    twins.change(lambda model, optimizer: optimizer.param_groups[1].update(meta_lr=0.5))
    learn(30, 45)
    twins.change(lambda model, optimizer: model[0].requires_grad_(False))
    for learner in twins.learners:
        learner.optimizer.zero_grad()
    learn(45, 85)
    twins.change(lambda model, optimizer: [group.update(meta_lr=0.0) for group in optimizer.param_groups])
    learn(85, 95)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"trace": "l"}, 'trace="l" needs the curvature of the loss'),
        ({"learn": ("lr", "weight_decay")}, "learn=('lr', 'weight_decay') is set"),
    ],
)
def test_what_has_no_kernels(options: dict[str, Any], reason: str) -> None:
    assert why_no_kernels(glocal(**options)(network())) == f"there are no kernels where {reason}"
    assert isinstance(fused_update_of(glocal()(network())), FusedUpdate)


@pytest.mark.parametrize(
    "learner",
    [{"name": "glocal", **SMALL}, {"name": "continual_backprop", "replacement_rate": 0.05, "maturity": 10}],
)
def test_runs_stay_in_the_process_with_torch_and_resume(
    tmp_path: Path, learner: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (compiled_learner, online_learner):
        monkeypatch.setattr(module, "MAX_SAMPLES", 50)
    config = RunConfig(
        stream=Component(name="class_split", source="digits", classes_per_experience=2, samples_per_experience=60),
        network=Component(name="mlp", hidden=[5]),
        learner=Component(lr=0.01, **learner),
    ).resolved()
    assert prepare(config, tmp_path / "whole") is None
    assert run_one(config, tmp_path / "whole") == "finished"
    calls = iter([False, True])
    assert run_one(config, tmp_path / "parts", should_stop=lambda: next(calls)) == "failed"
    assert run_one(config, tmp_path / "parts") == "finished"
    whole, parts = read_tables(tmp_path / "whole"), read_tables(tmp_path / "parts")
    assert all(whole[table].equals(parts[table]) for table in ("samples", "step_sizes", "experiences"))
    assert read_json(tmp_path / "parts" / "status.json")["engine"]["name"] == "compiled"
