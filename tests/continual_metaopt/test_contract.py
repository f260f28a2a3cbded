"""The contract tests find what is wrong with an optimizer, and nothing where nothing is."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from continual_metaopt.contract import CHECKS, load_target, main, run_contract

EXTERNAL_PACKAGE = """
import torch
from continual_metaopt import blocks

class Halving(torch.optim.Optimizer):
    "Goes down the gradient, with a step size that the package's own rule halves every ten steps."

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "count": 0})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["count"] += 1
            if group["count"] % 10 == 0:
                group["lr"] /= 2
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])
        return loss

def halving(model, *, lr: float = 0.1):
    return Halving(blocks(model), lr)
"""


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("metaoptimize", {"lr": 1e-3}),
        ("metaoptimize", {"lr": 1e-3, "base": "lion", "meta": "lion", "gamma": 0.99, "step_sizes": "scalar"}),
        (
            "metaoptimize",
            {"lr": 1e-3, "step_sizes": "node", "gamma": 0.99, "learn": ["lr", "weight_decay", "momentum"]},
        ),
        ("metaoptimize", {"lr": 1e-3, "step_sizes": "weight", "update_order": "meta_first", "meta_every": 3}),
        ("metaoptimize", {"lr": 1e-3, "meta_every": 2, "meta_weight_decay": 0.1}),
        ("metaoptimize", {"lr": 1e-3, "base": "sgdm", "parametrisation": "linear", "meta": "sgd", "meta_lr": 1e-6}),
        ("fixed", {"base": "rmsprop_released"}),
        ("torch:AdamW", {}),
        ("torch:SGD", {"lr": 0.1, "momentum": 0.9}),
    ],
)
def test_own_learners_and_torch_s_fulfil_it(target: str, options: dict[str, Any]) -> None:
    assert run_contract(partial(load_target(target), **options)) == dict.fromkeys(requirements())


def test_optimizers_for_linear_models_fulfil_it_there() -> None:
    assert run_contract(load_target("idbd"), linear=True) == dict.fromkeys(requirements())
    refused = run_contract(load_target("idbd"))
    assert all(finding and finding.startswith("ValueError: IDBD") for finding in list(refused.values())[:-1])


def requirements() -> list[str]:
    return [(check.__doc__ or "").splitlines()[0] for check in CHECKS]


class Careless(torch.optim.SGD):
    """Forgets its own count when saved, scales gradients in place, and says nothing of the loss."""

    count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            with torch.enable_grad():
                closure()
        self.count += 1
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    param.zero_()
                else:
                    param.grad.mul_(0.9**self.count)
                    param.sub_(param.grad, alpha=group["lr"])


def test_mistakes_are_found_and_named() -> None:
    findings = run_contract(lambda model: Careless(model.parameters(), lr=0.1))
    broken = {requirement: finding for requirement, finding in findings.items() if finding}
    assert list(broken) == [
        "state_dict, saved and loaded with weights_only=True, goes on bit for bit.",
        "A deep copy together with its network goes on bit for bit.",
        "A parameter whose gradient is None is left alone.",
        "step() writes neither to p.grad nor moves a parameter to other memory.",
        "step(closure) evaluates the closure and returns its loss.",
    ]
    assert broken["step(closure) evaluates the closure and returns its loss."] == "step returned None"
    assert "differs by up to" in broken["A parameter whose gradient is None is left alone."]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["torch:AdamW", "--option", "lr=1e-2", "--option", "amsgrad=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fulfilled  It is a torch.optim.Optimizer over the network's parameters."
    assert len(lines) == len(CHECKS)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("torch:AdamX", "unknown optimizer in torch.optim 'AdamX'"),
        ("no_such_module:Halving", "No module named 'no_such_module'"),
        ("math:Halving", "module 'math' has no attribute 'Halving'"),
    ],
)
def test_what_is_not_there_is_said(capsys: pytest.CaptureFixture[str], target: str, said: str) -> None:
    assert main([target]) == 2
    assert capsys.readouterr().err.startswith(f"python -m continual_metaopt.contract: {said}")


@pytest.mark.slow
def test_a_package_of_somebody_else_is_listed_tested_and_run(tmp_path: Path) -> None:
    (tmp_path / "halving_package.py").write_text(EXTERNAL_PACKAGE)
    info = tmp_path / "halving_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halving-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[continual_metaopt.learners]\nhalving = halving_package:halving\n")
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: external\nstream: {name: permuted_inputs, n_experiences: 2, samples_per_experience: 50}\n"
        "network: {name: mlp}\nseeds: [0]\nlearners: [{name: halving, lr: 0.2}]\n"
    )
    commands = [
        ["continual_metaopt.commands.main", "list", "learners"],
        ["continual_metaopt.contract", "halving_package:Halving"],
        ["continual_metaopt.commands.main", "compare", str(study), "--threads", "--quiet"],
    ]
    repository = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(repository)])}
    listed, checked, compared = (
        subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for command in commands
    )
    assert "from halving_package:halving" in listed
    assert checked.count("fulfilled") == len(CHECKS)
    assert "halving" in compared
