"""The commands in a report repeat what was run."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.html.commands import run_command, studies_of
from continual_metaopt.commands.printing import EXIT_INTERRUPTED
from tests.analysis.synthetic import write_run


def described(**options: Any) -> dict[str, Any]:
    """Content of a `config.json`, as far as commands need it."""
    parts = {"stream": {"name": "class_split"}, "network": {"name": "mlp"}, "learner": {"name": "fixed"}}
    return parts | options


@pytest.mark.parametrize(
    ("learner", "words"),
    [
        ({"lr": 3e-05}, ["--learner.lr", "3e-05"]),
        ({"weight_decay": None}, ["--learner.weight-decay", "None"]),
        ({"nesterov": True, "amsgrad": False}, ["--learner.nesterov", "--learner.no-amsgrad"]),
        ({"betas": [0.9, 0.999]}, ["--learner.betas", "0.9", "0.999"]),
        ({"base": "two words; $HOME"}, ["--learner.base", "two words; $HOME"]),
    ],
)
def test_options_as_flags(learner, words):
    command = run_command(described(learner={"name": "fixed", **learner}))
    parts = ["--stream.name", "class_split", "--network.name", "mlp", "--learner.name", "fixed"]
    assert shlex.split(command) == ["continual-metaopt", "run", *parts, *words]


@pytest.mark.parametrize("value", [{"lr": 1}, [["conv1", "conv2"], ["head"]]])
def test_values_that_flags_cannot_express(value):
    assert run_command(described(learner={"name": "fixed", "blocks": value})) is None


@pytest.mark.parametrize(
    ("record", "folder", "command", "from_record"),
    [
        (None, "runs", "continual-metaopt compare mine --source digits --seeds 0 1", None),
        (
            {"name": "mine", "seeds": [0, 1, 7], "engine": "torch", "device": "cpu"},
            "study/runs",
            "continual-metaopt compare mine --source digits --seeds 0 1 7 --engine torch",
            "continual-metaopt compare study.json",
        ),
        ({"name": "another", "seeds": [3]}, "runs", "continual-metaopt compare mine --source digits --seeds 0 1", None),
    ],
)
def test_studies(tmp_path, record, folder, command, from_record):
    for seed in (1, 0):
        write_run(tmp_path / folder, "A", seed, config={"study": "mine"})
    write_run(tmp_path / "alone", "A", 5, config={"study": ""})
    if record:
        (tmp_path / folder / ".." / "study.json").resolve().write_text(json.dumps(record))
    (study,) = studies_of(load_runs(tmp_path / folder, tmp_path / "alone"))
    assert (study.command, study.from_record, study.record) == (command, from_record, record if from_record else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {},
        {
            "stream": {"name": "class_split", "classes": [1, 2, 3, 4], "classes_per_experience": 2},
            "network": {"name": "mlp", "hidden": [8]},
            "learner": {"name": "metaoptimize", "base": "adamw_released", "meta": "adam_released", "gamma": 0.999},
            "seed": 3,
            "evaluate": False,
            "diagnostics": ["weight_norm", "plasticity"],
            "label": "it's a $label",
            "record_every": 20,
        },
    ],
)
def test_the_command_line_understands_a_command_as_the_same_run(given, tmp_path, monkeypatch):
    from continual_metaopt.commands import main as cli
    from continual_metaopt.runs.config import RunConfig
    from continual_metaopt.study import running as study

    config = RunConfig(**given).resolved()
    asked = []

    def catch(jobs: list[tuple[RunConfig, Path]], **options: Any) -> None:
        asked.extend(jobs)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "run_jobs", catch)
    command = run_command(config.model_dump(mode="json"))
    assert cli.main(shlex.split(command)[1:]) == EXIT_INTERRUPTED
    ((again, _),) = asked
    assert (again.run_id, again.label, again.seed) == (config.run_id, config.label, config.seed)


@pytest.mark.slow
def test_a_recorded_study_can_be_run_again_from_its_description(tmp_path):
    from continual_metaopt.study.claim import claim
    from tests.studies import load_study

    study = load_study("quick")
    claim(study, tmp_path)
    write_run(tmp_path / "runs", config={"study": "quick"})
    (found,) = studies_of(load_runs(tmp_path))
    description = tmp_path / "downloaded.json"
    description.write_text(json.dumps(found.record))
    again = load_study(description)
    for first, second in zip(study.learners, again.learners, strict=True):
        assert first.run(0, first.untuned).run_id == second.run(0, second.untuned).run_id
    assert again.config.seeds == study.config.seeds
