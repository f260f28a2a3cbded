"""Outlines of learners and networks: they have the options of the real ones, and need no torch."""

import subprocess
import sys
from typing import Any

import pytest

from continual_metaopt.networks import NETWORKS
from continual_metaopt.optim.registry import SPECS
from continual_metaopt.runs.components import Kind, factory_of, options_model
from continual_metaopt.runs.outlines import NOT_OUTLINED, outline_of
from tests.continual_metaopt.conftest import environment

OF_THIS_PACKAGE: list[tuple[Kind, str]] = [
    *(("network", name) for name in NETWORKS.own),
    *(("learner", name) for name, spec in SPECS.items() if not spec.entry_point.startswith(NOT_OUTLINED)),
]
WITHOUT_TORCH = f"""
import sys
from continual_metaopt.runs.outlines import outline_of

for kind, name in {OF_THIS_PACKAGE}:
    outline_of(kind, name)
    assert not {{"torch", "avalanche"}} & sys.modules.keys(), name
"""


def options_of(kind: Kind, name: str, factory: Any) -> dict[str, Any]:
    model = options_model(kind, name, factory)
    fields = {name: (field.annotation, field.default, field.description) for name, field in model.model_fields.items()}
    return fields | {"others": model.model_config["extra"]}


@pytest.mark.parametrize(("kind", "name"), OF_THIS_PACKAGE)
def test_an_outline_has_the_options_of_what_it_stands_for(kind: Kind, name: str) -> None:
    outline, factory = outline_of(kind, name), factory_of(kind, name)

    assert outline is not factory
    assert options_of(kind, name, outline) == options_of(kind, name, factory)


def test_outlines_are_made_without_torch() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    found = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)

    assert (found.returncode, found.stderr) == (0, "")


def test_what_others_made_is_imported() -> None:
    assert outline_of("learner", "torch:AdamW").__module__ == "continual_metaopt.optim.registry"
    assert outline_of("stream", "tracking") is factory_of("stream", "tracking")
