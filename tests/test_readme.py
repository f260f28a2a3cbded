"""The examples of the README, and of the page about extending, do what these say."""

import json
import linecache
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from continual_metaopt import OnlineLearner, compare, make_optimizer
from continual_metaopt.commands.main import main
from continual_metaopt.contract import run_contract
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.optim.base_names import BASE_UPDATES
from continual_metaopt.optim.registry import LEARNERS
from continual_metaopt.runs.components import Component, ConfigError
from continual_metaopt.runs.config import RunConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _names_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in (LEARNERS, BASE_UPDATES):
        monkeypatch.setattr(names, "_entries", dict(names._entries))


def example(containing: str, page: str = "README.md") -> str:
    """The one Python example of a page that contains a text."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    (found,) = [text for text in examples if containing in text]
    return found


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


def test_use_in_avalanche_and_as_an_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    on_embedded_data = example("MetaOptimizeStrategy").replace(
        'source="cifar100", classes_per_experience=10', 'source="digits", classes_per_experience=5'
    )
    exec(on_embedded_data, names)
    accuracy, report = capsys.readouterr().out.split(maxsplit=1)
    assert 0.2 <= float(accuracy) <= 1
    assert "'conv1': " in report
    exec(example("optimizer = MetaOptimize("), names)
    assert names["optimizer"].step_size_report() == dict.fromkeys(["conv1", "conv2", "linear1", "linear2"], 1e-4)


def test_a_new_optimizer() -> None:
    text = example('@register_learner("sign_sgd"', "docs/extending.md")
    assert len(text.splitlines()) <= 20
    names: dict[str, Any] = {}
    exec(text, names)
    assert set(run_contract(names["sign_sgd"]).values()) == {None}
    optimizer = make_optimizer("sign_sgd", MLP(), lr=0.5)
    (weight, *_) = optimizer.param_groups[0]["params"]
    before = weight.detach().clone()
    weight.grad = -weight.detach()
    optimizer.step()
    assert weight.equal(before + 0.5 * before.sign())


def test_a_new_elementwise_optimizer_is_compiled() -> None:
    text = example("(Elementwise)", "docs/extending.md")
    assert len(text.splitlines()) <= 25
    names: dict[str, Any] = {}
    linecache.cache["<example>"] = (len(text), None, text.splitlines(keepends=True), "<example>")
    exec(compile(text, "<example>", "exec"), names)
    learner = OnlineLearner(model=(model := MLP()), optimizer=names["normalised_momentum"](model), engine="compiled")
    assert learner.engine["name"] == "compiled"


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with the base update of the page, found from the working directory."""
    (tmp_path / "my_package").mkdir()
    text = example("@register_base_update", "docs/extending.md")
    (tmp_path / "my_package" / "__init__.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_package"
    sys.modules.pop("my_package", None)


@pytest.mark.parametrize("name", ["metaoptimize", "fixed", "l2_init"])
def test_a_new_base_update_is_an_option_once_it_is_imported(my_package: str, name: str) -> None:
    learner = Component(name=name, base="sign_momentum", lr=0.5)
    before = r"^learner.base: Input should be 'sgd', .* or 'adamw_released' \(given: 'sign_momentum'\)$"
    with pytest.raises(ConfigError, match=before):
        RunConfig(learner=learner).resolved()
    assert RunConfig(learner=learner, imports=[my_package]).resolved().learner.options["base"] == "sign_momentum"
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = make_optimizer("fixed", model, base="sign_momentum", lr=0.5)
    weight = model.weight.item()
    model.weight.grad = torch.tensor([[-3.0]])
    optimizer.step()
    assert model.weight.item() == pytest.approx(weight * (1 - 0.5 * 0.01) + 0.5)


@pytest.mark.slow
def test_a_new_base_update_runs_in_a_study_and_from_the_command_line(my_package: str, tmp_path: Path) -> None:
    names = ("metaoptimize", "fixed", "l2_init")
    stream = {"name": "permuted_inputs", "n_experiences": 1, "samples_per_experience": 30}
    study: dict[str, Any] = {
        "name": "own",
        "imports": [my_package],
        "stream": stream,
        "network": {"name": "mlp", "hidden": [4]},
        "learners": [{"name": name, "lr": 1e-3, "base": "sign_momentum"} for name in names],
        "seeds": [0],
    }
    compare(study, out=tmp_path / "runs", workers=1, progress=False)
    given = [f"--stream.{name.replace('_', '-')}={value}" for name, value in stream.items()]
    own = ["--imports", my_package, "--learner.base", "sign_momentum"]
    assert main(["run", *own, *given, "--network.hidden=4", "--quiet", "--out", str(tmp_path / "runs" / "one")]) == 0
    ends = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((tmp_path / "runs").rglob("status.json"))]
    assert [end["state"] for end in ends] == ["finished"] * 4
    assert {end["engine"]["name"] for end in ends} == {"fused"}
    assert all("there is no kernel for SignMomentum" in end["engine"]["reason"] for end in ends)
