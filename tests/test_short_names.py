"""``streams`` and ``analysis``: a user's own modules of these names, and ours where nobody has them."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .continual_metaopt.conftest import environment

LEARNER = """
import torch
from continual_metaopt import blocks, register_learner


@register_learner("my_sgd", "plain SGD")
def my_sgd(model, *, lr: float = 1e-2):
    return torch.optim.SGD(blocks(model, "scalar"), lr=lr)
"""
STUDY = {
    "name": "mine",
    "imports": ["my_learners"],
    "stream": {"name": "permuted_inputs", "n_experiences": 2, "samples_per_experience": 50},
    "network": {"name": "mlp", "hidden": [8]},
    "seeds": [0, 1],
    "learners": [{"name": "my_sgd"}],
}


def python(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=[("analysis/__init__.py", "streams.py"), ("analysis.py", "streams/__init__.py")])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with modules of the user's own that have the two names."""
    for name in request.param:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("NAME = 'my own'\n")
    return tmp_path


@pytest.mark.slow
def test_commands_and_their_workers_do_not_see_a_users_own_modules(folder: Path) -> None:
    (folder / "my_learners.py").write_text(LEARNER)
    (folder / "mine.yaml").write_text(yaml.safe_dump(STUDY))

    python("-m", "continual_metaopt", "compare", "mine.yaml", "--quiet", "--workers", "2", folder=folder)

    assert (folder / "runs" / "mine" / "report" / "comparison.csv").exists()


@pytest.mark.slow
def test_a_script_has_its_own_modules_and_all_of_ours(folder: Path) -> None:
    (folder / "script.py").write_text(
        "from continual_metaopt import MetaOptimizeStrategy\n"
        "from continual_metaopt.analysis import load_runs, write_report\n"
        "from continual_metaopt.streams import make_stream\n"
        "import analysis, streams\n"
        "make_stream('permuted_inputs', n_experiences=2, samples_per_experience=50)\n"
        "print(analysis.NAME, streams.NAME)\n"
    )

    assert python("script.py", folder=folder) == "my own my own\n"


def test_a_short_name_gives_the_same_modules(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import importlib, sys\n"
        "for name in ('streams', 'streams.samples', 'analysis', 'analysis.runs', 'analysis.scripts.sawtooth'):\n"
        "    assert importlib.import_module(name) is importlib.import_module(f'continual_metaopt.{name}'), name\n"
        "    assert sys.modules[name].__spec__.name == f'continual_metaopt.{name}', name\n"
        "try:\n"
        "    import streams.nothing\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    expected = "No module named 'streams.nothing'\n"
    assert python("script.py", folder=tmp_path) == expected
