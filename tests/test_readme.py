"""The examples of the README, and of the page about extending, do what these say."""

import linecache
import re
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt import OnlineLearner, make_optimizer
from continual_metaopt.contract import run_contract
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.optim.registry import LEARNERS

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _learners_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LEARNERS, "_entries", dict(LEARNERS._entries))


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
