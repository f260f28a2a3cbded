"""``import continual_metaopt``: quick, and complete."""

import importlib.metadata
import resource
import subprocess
import sys

import pytest

import continual_metaopt
from continual_metaopt.commands.main import main

from .conftest import environment, exactly


@pytest.mark.parametrize("name", continual_metaopt.__all__)
def test_public_names_can_be_imported(name: str) -> None:
    found = getattr(continual_metaopt, name)

    assert callable(found)
    assert found.__module__.startswith(("continual_metaopt.", "streams."))
    assert name in dir(continual_metaopt)


def test_the_names_are_those_promised() -> None:
    namespace: dict[str, object] = {}
    exec("from continual_metaopt import *", namespace)

    assert namespace.keys() - {"__builtins__"} == {
        *("LeNet", "MLP", "MetaOptimize", "MetaOptimizeStrategy", "OnlineLearner", "PaperCNN", "ResNet18", "ViTTiny"),
        *("KeepOptimizerState", "blocks", "compare", "diagnostics", "online_metrics"),
        *("make_optimizer", "register_base_update", "register_learner", "register_network"),
    }


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    version = importlib.metadata.version("continual-metaopt")

    assert continual_metaopt.__version__ == version
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"continual-metaopt {version}\n"


def test_the_optimizer_is_imported_without_avalanche_in_two_seconds() -> None:
    code = "import sys; from continual_metaopt import MetaOptimize; print('avalanche' in sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert found.stdout.strip() == "False", found.stderr
    # processors' time, since others may be using them
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match=exactly("module 'continual_metaopt' has no attribute 'Optimize'")):
        _ = continual_metaopt.Optimize


@pytest.mark.parametrize(
    "module", ["continual_metaopt", "continual_metaopt.study.config", "continual_metaopt.commands.main"]
)
def test_torch_is_imported_only_when_needed(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'avalanche', 'pandas') if m in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())

    assert found.stdout.strip() == "[]"
