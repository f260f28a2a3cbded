"""What cannot be made shows before the first run, with the field that is to blame."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from continual_metaopt.runs.components import ConfigError
from continual_metaopt.study.check import check_study
from continual_metaopt.study.load import load_studies, packaged_studies
from tests.continual_metaopt.conftest import STREAM, exactly, write_study
from tests.streams.synthetic import encode, write_parquet
from tests.studies import changed, load_study

DIGITS = {"name": "class_split", "source": "digits"}
PREFIXES = [["linear1"], ["linear9"]]
NAMES = "linear1.weight, linear1.bias, linear2.weight, linear2.bias"


def test_the_network_s_parameters_are_counted(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "study.yaml"))
    state = torch.get_rng_state()

    assert check_study(study) == 64 * 8 + 8 + 8 * 10 + 10
    assert torch.equal(torch.get_rng_state(), state)


def test_a_learner_is_tried_only_with_settings_that_are_run(tmp_path: Path) -> None:
    """The default discount, "auto", does not go with this meta update."""
    lion = {"name": "metaoptimize", "meta": "lion", "trace": "hessian_free", "tune": {"gamma": [0.9, 1.0]}}
    check_study(load_study(write_study(tmp_path / "study.yaml", {"learners": [lion]})))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(packaged_studies()))
def test_packaged_studies_can_be_made(name: str, tmp_path: Path) -> None:
    labels = np.repeat(np.arange(100), 4)
    images = [encode(np.full((32, 32, 3), label, np.uint8)) for label in labels]
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}-00000-of-00001.parquet", images, labels)
    needs_images = "cifar" in packaged_studies()[name] or name == "imagenet"
    source = f"parquet:{tmp_path}" if needs_images else None
    if name == "tables":
        source = f"table:{tmp_path / 'table.csv'}"
        (tmp_path / "table.csv").write_text("x,up\n1,0\n2,1\n")
    if name == "text":
        source = f"text:{tmp_path}"
        for domain in yaml.safe_load(packaged_studies()[name])["stream"]["domains"]:
            (tmp_path / f"{domain}.txt").write_text("some text " * 100)

    for study in load_studies(name, source=source).values():
        without_tuning = [entry.model_copy(update={"tune": entry.tune or {}}) for entry in study.config.learners]
        # whose tuning is of more samples than there are
        assert check_study(changed(study, tuning=None, learners=without_tuning)) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"stream": DIGITS | {"classes_per_experience": 3}},
            "stream: 10 classes do not divide into experiences of 3; classes_per_experience must be one of 2, 5, 10",
            id="classes that do not divide",
        ),
        pytest.param(
            {"stream": DIGITS | {"classes_per_experience": 2, "n_experiences": 7}},
            "stream: n_experiences must be between 1 and 5, not 7",
            id="more experiences than there are",
        ),
        pytest.param(
            {"stream": STREAM | {"transition_width": 1000}},
            "stream: transition_width must be between 0 and the length of the shortest experience, 40, not 1000",
            id="transitions that overlap",
        ),
        pytest.param(
            {"network": {"name": "lenet"}, "stream": {"name": "tracking", "n_samples": 40}},
            "network: 'lenet' does not fit vectors of 20 numbers, but perhaps images; take mlp or linear",
            id="network for images",
        ),
        pytest.param(
            {"network": {"name": "mlp"}, "stream": {"name": "text"}},
            "network: 'mlp' does not fit text (RuntimeError: mat1 and mat2 must have the same dtype, but got Long and "
            "Float); take recurrent or transformer",
            id="network that does not read text",
        ),
        pytest.param(
            {"learners": [{"name": "fixed"}, {"name": "metaoptimize", "step_sizes": PREFIXES}]},
            "learners.1: learner 'metaoptimize' cannot be made for the network 'mlp': no trainable parameter's name "
            f"starts with 'linear9'; names: {NAMES}",
            id="prefixes of another network",
        ),
        pytest.param(
            {"learners": [{"name": "idbd"}]},
            "learners.0: learner 'idbd' cannot be made for the network 'mlp': IDBD and Autostep are defined for "
            "linear models, one nn.Linear, but the layers with trainable parameters here are: linear1 (Linear), "
            "linear2 (Linear); for networks use idbd_network",
            id="learner for linear models",
        ),
        pytest.param(
            {"learners": [{"name": "metaoptimize", "tune": {"step_sizes": ["scalar", PREFIXES]}}]},
            "learners.0: learner 'metaoptimize' cannot be made for the network 'mlp': no trainable parameter's name "
            f"starts with 'linear9'; names: {NAMES}",
            id="a value to try",
        ),
        pytest.param(
            {"tuning": {"trials": 2, "samples": 80, "stream": {"transition_width": 41}}},
            "tuning.stream: transition_width must be between 0 and the length of the shortest experience, 40, not 41",
            id="stream of selection runs",
        ),
    ],
)
def test_what_cannot_be_made_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    study = load_study(write_study(tmp_path / "study.yaml", changes))

    with pytest.raises(ConfigError, match=exactly(message)):
        check_study(study)


def test_missing_files_are_named(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "study.yaml", {"stream": STREAM | {"source": "parquet:nowhere"}}))

    message = "no parquet file or folder at 'nowhere'; give the path of a .parquet file or a folder"
    with pytest.raises(FileNotFoundError, match=exactly(message)):
        check_study(study)
