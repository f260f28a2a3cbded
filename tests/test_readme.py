"""The README's examples do what it says."""

import re
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt import make_optimizer
from continual_metaopt.commands import main as cli
from continual_metaopt.contract import run_contract
from continual_metaopt.networks.mlp import MLP
from continual_metaopt.optim.registry import LEARNERS
from continual_metaopt.streams import STREAMS, make_stream

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON_EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(autouse=True)
def _registries_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (LEARNERS, STREAMS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def example(containing: str) -> str:
    (found,) = [text for text in PYTHON_EXAMPLES if containing in text]
    return found


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
    text = example("register_learner")
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


def described(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command line prints, which reads options off signature and docstring."""
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(list(arguments))
    return capsys.readouterr().out


def test_a_new_stream(capsys: pytest.CaptureFixture[str]) -> None:
    text = example("register_stream")
    assert len(text.splitlines()) <= 20
    exec(text, {})
    benchmark = make_stream("one_class_at_a_time", source="digits")
    assert [experience.classes for experience in benchmark.info.experiences] == [[k] for k in range(10)]
    assert {benchmark.train_stream[3].dataset[i][1] for i in range(20)} == {3}
    assert "--transition-width" in described(capsys, "preview", "one_class_at_a_time", "--help")
