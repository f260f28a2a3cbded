"""Studies in files and in the package: what is accepted, what is refused in which words."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from continual_metaopt import PaperCNN
from continual_metaopt.optim.registry import make_optimizer
from continual_metaopt.runs.components import ConfigError
from continual_metaopt.streams import STREAMS
from continual_metaopt.study.config import StudyConfig
from continual_metaopt.study.load import load_studies, packaged_studies, study_description
from tests.continual_metaopt.conftest import STREAM, exactly, known_learners, write_study
from tests.studies import load_study

if TYPE_CHECKING:
    pass

LEARNED = {"name": "metaoptimize"}


# --------------------------------------------------------------------------------------------------------- studies


@pytest.mark.parametrize(
    ("name", "network"),
    [("quick", nn.Linear(2, 2)), ("class_split", PaperCNN()), ("published", PaperCNN()), ("tracking", nn.Linear(2, 2))],
)
def test_packaged_studies_are_valid(name: str, network: nn.Module) -> None:
    study = load_study(name)

    assert study.config.name == name
    assert study.config.description == study_description(packaged_studies()[name])
    labels = [learner.label for learner in study.learners]
    assert len(set(labels)) == len(labels) >= 5
    for position, learner in enumerate(study.learners):
        for one in (learner.untuned, *learner.candidates):
            run = learner.run(7, one)
            assert (run.order, run.seed, run.study, run.purpose) == (position, 7, name, "report")
            assert run.label.startswith(learner.label)
            make_optimizer(run.learner.name, network, **run.learner.options)


def test_a_yaml_file_is_read(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "tiny.yaml", {"description": "α and ω"})).config

    assert (study.name, study.description, study.seeds, study.selection_seeds) == ("tiny", "α and ω", [0, 1], [100])
    assert study.stream.options == {"n_experiences": 3, "samples_per_experience": 40}
    assert [(entry.label, entry.name) for entry in study.learners] == [("tuned", "fixed"), ("learned", "metaoptimize")]
    assert study.evaluate is True


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    assert load_study(write_study(tmp_path / "no-suffix")).config.name == "tiny"


def test_a_folder_does_not_hide_a_packaged_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after ``continual-metaopt compare quick --out quick``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").mkdir()

    assert load_study("quick").config.name == "quick"


def test_source_data_root_and_seeds_can_be_replaced(tmp_path: Path) -> None:
    path = write_study(tmp_path / "tiny.yaml")

    study = load_study(path, source="mnist", data_root=tmp_path / "data", seeds=(5, 6)).config

    assert study.stream.model_dump() == {**STREAM, "source": "mnist", "data_root": str(tmp_path / "data")}
    assert study.seeds == [5, 6]
    assert study.selection_seeds == [100]


GRID: dict[Any, Any] = {
    "stream": None,
    "network": None,
    "streams": [STREAM, {"label": "still", **STREAM, "stationary": "shuffled"}],
    "networks": [{"label": "small", "name": "mlp", "hidden": [8]}, {"name": "linear"}],
}


def test_streams_and_networks_may_be_lists(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study.yaml", GRID)

    parts = {label: part.config for label, part in load_studies(path, source="mnist").items()}

    assert {label: (part.name, part.stream.options, part.network.name) for label, part in parts.items()} == {
        f"{stream}-{network}": (
            f"tiny.{stream}-{network}",
            {"n_experiences": 3, "samples_per_experience": 40, "source": "mnist"} | more,
            name,
        )
        for stream, more in (("permuted_inputs", {}), ("still", {"stationary": "shuffled"}))
        for network, name in (("small", "mlp"), ("linear", "linear"))
    }


def test_a_list_of_networks_alone_leaves_the_stream_as_it_is(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study.yaml", {"network": None, "networks": GRID["networks"]})

    assert list(load_studies(path)) == ["small", "linear"]
    assert list(load_studies(write_study(path))) == [""]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": STREAM}, "streams: give either stream or streams"),
        ({"streams": []}, "streams: expected a list of entries such as {name: …}"),
        ({"networks": ["mlp"]}, "networks: expected a list of entries such as {name: …}"),
        ({"streams": [STREAM, STREAM]}, "streams: several have the label 'permuted_inputs'; give each its own"),
        (
            {"networks": [{"name": "mlp", "label": "a/b"}]},
            "networks.0: needs a label of letters, digits, '.', '_' and '-' that begins with a letter, a digit or '_' "
            "(given: 'a/b')",
        ),
        *(
            (
                {"stream": None, "streams": [{"label": label, **STREAM}]},
                "streams.0: needs a label of letters, digits, '.', '_' and '-' that begins with a letter, a digit or "
                f"'_' (given: {label!r})",
            )
            for label in ("..", ".", ".hidden", "-rf", "../x", "a\n")
        ),
        (
            {"networks": [{"name": "mlp"}, {"name": "linear", "hidden": [3]}]},
            "permuted_inputs-linear: network.hidden: there is no such option",
        ),
    ],
)
def test_mistakes_in_lists_are_named(tmp_path: Path, changes: dict[Any, Any], message: str) -> None:
    path = write_study(tmp_path / "study.yaml", GRID | changes)

    with pytest.raises(ConfigError, match=exactly(f"{path}: {message}")):
        load_studies(path)


def learner(**options: Any) -> dict[str, Any]:
    return {"learners": [{"name": "metaoptimize", **options}], "selection_seeds": None}


BASES = "'sgd', 'sgdm', 'rmsprop', 'adamw', 'lion', 'sgdm_released', 'rmsprop_released' or 'adamw_released'"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"sedes": [0]}, "sedes: there is no such option", id="unknown field"),
        pytest.param({"stream": None}, "stream: Field required", id="missing field"),
        pytest.param(learner(lrr=1), "learners.0: learner.lrr: there is no such option", id="unknown option"),
        pytest.param(
            {"stream": STREAM | {"n_classes": 3}},
            "stream.n_classes: there is no such option",
            id="unknown option of the stream",
        ),
        pytest.param(
            {"network": {"name": "paper_cnn", "hidden": [3]}},
            "network.hidden: there is no such option",
            id="unknown option of the network",
        ),
        pytest.param(
            {"stream": STREAM | {"seed": 3}},
            "stream.seed: there is no such option",
            id="the run supplies the seed",
        ),
        pytest.param(
            learner(lr="fast"),
            "learners.0: learner.lr: Input should be a valid number, "
            "unable to parse string as a number (given: 'fast')",
            id="wrong type",
        ),
        pytest.param(
            learner(base="adam"),
            f"learners.0: learner.base: Input should be {BASES} (given: 'adam')",
            id="unknown base",
        ),
        pytest.param(
            {"seeds": ["a"]},
            "seeds.0: Input should be a valid integer, unable to parse string as an integer (given: 'a')",
            id="wrong type in a list",
        ),
        pytest.param(
            {"diagnostics": ["rank"]},
            "diagnostics.0: Input should be 'plasticity', 'dormant_units', 'effective_rank', 'stable_rank', "
            "'weight_norm', 'gradient_norm', 'distance_from_initialisation', 'update_ratio', 'trace_cosine', "
            "'retention' or 'all' (given: 'rank')",
            id="unknown diagnostic",
        ),
        pytest.param(
            {"record_every": 5}, "record_every: Input should be greater than or equal to 10 (given: 5)", id="too often"
        ),
        pytest.param(
            {"stream": {"name": "permuted_input"}},
            "stream.name: unknown stream 'permuted_input'. Did you mean 'permuted_inputs'? "
            f"Known: {', '.join(sorted(STREAMS))}",
            id="unknown stream",
        ),
        pytest.param(
            {"network": {"name": "mpl"}},
            "network.name: unknown network 'mpl'. Did you mean 'mlp'? "
            "Known: lenet, linear, mlp, mlp_300_150, paper_cnn, recurrent, resnet18, resnet18_imagenet, transformer, "
            "transformer_15m, vit_tiny",
            id="unknown network",
        ),
        pytest.param(
            {"learners": [{"name": "fixed"}, {"name": "metaoptimise"}]},
            "learners.1: learner.name: unknown learner 'metaoptimise'. Did you mean 'metaoptimize'? "
            f"Known: {known_learners()}",
            id="unknown learner",
        ),
        pytest.param(
            learner(lr=2.0),
            "learners.0: learner 'metaoptimize': lr = 2.0 is outside lr_bounds = (1e-10, 1.0)",
            id="lr beyond its bounds",
        ),
        pytest.param(
            {"learners": [{"name": "fixed", "lr": -1}], "selection_seeds": None},
            "learners.0: learner 'fixed': lr must be finite and positive, but is -1.0",
            id="negative lr",
        ),
        pytest.param(
            {"learners": [{"name": "torch:AdamW", "lr": -1}], "selection_seeds": None},
            "learners.0: learner 'torch:AdamW': Invalid learning rate: -1.0",
            id="negative lr in torch",
        ),
        pytest.param(
            learner(tune={"lr": [0.1, 2.0]}) | {"selection_seeds": [9]},
            "learners.0: learner 'metaoptimize': lr = 2.0 is outside lr_bounds = (1e-10, 1.0)",
            id="a value to try is out of range",
        ),
        pytest.param(
            learner(tune={"lrr": [0.1]}) | {"selection_seeds": [9]},
            "learners.0: learner.lrr: there is no such option",
            id="unknown option to tune",
        ),
        pytest.param(
            {"selection_seeds": [7, 1, 0]},
            "selection_seeds: [0, 1] are among the reported seeds; choose on other seeds",
            id="selection on reported seeds",
        ),
        pytest.param(
            {"selection_seeds": None},
            "selection_seeds: needed where a learner has options to tune",
            id="nothing to select on",
        ),
        pytest.param(
            {"learners": [{"name": "fixed"}, {"name": "fixed", "lr": 0.1}]},
            "learners: several have the label 'fixed'; give each its own",
            id="same label twice",
        ),
        pytest.param(
            {"learners": []},
            "learners: List should have at least 1 item after validation, not 0 (given: [])",
            id="nobody",
        ),
        pytest.param(
            {"seeds": [0, -3]}, "seeds: seeds must be within 0 and 4294967295 (given: [0, -3])", id="negative seed"
        ),
        pytest.param(
            {"seeds": [2**32]}, "seeds: seeds must be within 0 and 4294967295 (given: [4294967296])", id="large"
        ),
        *(
            pytest.param(
                learner(**{option: value}),
                f"learners.0.{field}: a setting is a finite number (given: {given})",
                id=f"infinite {option}",
            )
            for option, value, field, given in (
                ("lr", math.inf, "lr", "inf"),
                ("meta_lr", math.inf, "meta_lr", "inf"),
                ("weight_decay", -math.inf, "weight_decay", "-inf"),
                ("lr_bounds", [1e-10, math.inf], "lr_bounds.1", "inf"),
                ("max_meta_change", math.inf, "max_meta_change", "inf"),
            )
        ),
        pytest.param(
            learner(tune={"lr": [0.1, math.inf]}) | {"selection_seeds": [9]},
            "learners.0.tune.lr.1: a setting is a finite number (given: inf)",
            id="an infinite value to try",
        ),
        pytest.param({"seeds": [4, 4]}, "seeds: a seed occurs twice (given: [4, 4])", id="same seed twice"),
        pytest.param(
            {"selection_seeds": [-1]},
            "selection_seeds: seeds must be within 0 and 4294967295 (given: [-1])",
            id="negative selection",
        ),
        pytest.param(
            {"name": "a/b"}, "name: String should match pattern '^\\w[\\w.-]*$' (given: 'a/b')", id="bad name"
        ),
        pytest.param({"name": ".."}, "name: String should match pattern '^\\w[\\w.-]*$' (given: '..')", id="leads out"),
        pytest.param(
            {"stream": "digits"},
            "stream: Input should be a valid dictionary or instance of Component (given: 'digits')",
            id="stream without a name",
        ),
        pytest.param({5: 6}, "5: Keys should be strings (given: 5)", id="a field that is a number"),
    ],
)
def test_mistakes_in_a_study_are_named(tmp_path: Path, changes: dict[Any, Any], message: str) -> None:
    path = write_study(tmp_path / "study.yaml", changes)

    with pytest.raises(ConfigError, match=exactly(f"{path}: {message}")):
        load_study(path)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study.yaml", {"seeds": [-1], "sedes": [1]})

    with pytest.raises(ConfigError) as caught:
        load_study(path)

    assert str(caught.value).splitlines() == [
        f"{path}: seeds: seeds must be within 0 and 4294967295 (given: [-1])",
        f"{path}: sedes: there is no such option",
    ]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_without_fields_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError, match=exactly(f"{path}: expected fields such as 'stream:' and 'learners:'")):
        load_study(path)


def test_broken_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: x\nseeds: [1, 2\n", encoding="utf-8")

    with pytest.raises(ConfigError, match=rf"(?s)^{re.escape(str(path))}: is not valid YAML: .*line 3"):
        load_study(path)


@pytest.mark.parametrize("name", ["nothing.yaml", "nothing.yml", "folder.yaml"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.yaml").mkdir()

    with pytest.raises(FileNotFoundError, match=exactly(f"no study file at '{tmp_path / name}'")):
        load_study(tmp_path / name)


def test_a_study_is_what_it_writes(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "tiny.yaml")).config

    assert StudyConfig.model_validate(study.model_dump(mode="json")) == study
