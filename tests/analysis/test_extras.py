"""Messages tell to install extras from the clone, until there is a release."""

import tomllib
from pathlib import Path

from continual_metaopt.analysis.extras import how_to_install

ROOT = Path(__file__).parents[2]


def test_nothing_tells_to_install_what_no_index_has() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/tutorials/*.ipynb")]
    for folder in ("continual_metaopt", "streams", "analysis", "examples"):
        pages += (ROOT / folder).rglob("*.py")
    assert len(pages) > 200
    assert [path for path in pages if "continual-metaopt[" in path.read_text(encoding="utf-8")] == []


def test_the_extras_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra in ("peers", "ray", "slurm", "tpe", "tensorboard", "wandb", "jax"):
        assert extra in extras
        assert how_to_install(extra).endswith(f" pip install -e '.[{extra}]'")
