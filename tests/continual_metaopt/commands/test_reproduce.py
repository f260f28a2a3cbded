"""The paper's experiments in one command: what is run and shown, and what is said where images are missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import gmean

from continual_metaopt import blocks
from continual_metaopt.analysis import load_runs
from continual_metaopt.commands import main as cli
from continual_metaopt.commands import reproduce
from continual_metaopt.networks import NETWORKS
from continual_metaopt.runs.files import read_json
from continual_metaopt.streams import sources
from continual_metaopt.study import load
from tests.continual_metaopt.conftest import exactly
from tests.studies import load_study

TINY: dict[str, Any] = {
    "name": "table2",
    "stream": {"name": "class_split", "source": "digits", "classes_per_experience": 2, "samples_per_experience": 24},
    "network": {"name": "mlp", "hidden": [8]},
    "seeds": [0, 1],
    "selection_seeds": [100],
    "record_every": 10,
    "evaluate": False,
    "learners": [
        {"label": "AdamW, fixed", "name": "fixed", "tune": {"lr": [1e-5, 0.01]}},
        {"label": "AdamW, blockwise, no discount", "name": "metaoptimize", "lr": 0.001},
    ],
}


BLOCKS = [["linear1"], ["linear2"]]
PUBLISHED = TINY | {
    "selection_seeds": [],
    "seeds": [0],
    "evaluate": True,
    "learners": [
        {"label": "released, fixed, 1e-4", "name": "fixed", "lr": 1e-4},
        {"label": "released, two blocks, γ = 0.999", "name": "metaoptimize", "lr": 0.001, "step_sizes": BLOCKS},
    ],
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short study in place of the packaged one."""
    monkeypatch.setattr(load, "packaged_studies", lambda: {"table2": yaml.safe_dump(TINY, allow_unicode=True)})


@pytest.mark.slow
@pytest.mark.usefixtures("in_process", "tiny")
def test_a_table_is_run_and_shown_beside_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["reproduce", "table2", "--out", str(tmp_path / "out"), "--workers", "1", "--seeds", "3", "4"]

    assert cli.main([*arguments, "--quiet"]) == 0

    shown = capsys.readouterr()
    report = tmp_path / "out" / "report"
    page = (report / "table2.md").read_text()
    assert shown.out.startswith(page)
    assert shown.err == ""
    assert "36.59" in page
    assert "Chosen on other seeds: AdamW, fixed, lr = " in page
    assert "AdamW: blockwise above fixed" in page
    assert {"table2_accuracy.csv", "table2_claims.csv", "table2_gaps.png"} <= {path.name for path in report.iterdir()}
    runs = sorted((tmp_path / "out" / "runs").glob("*/config.json"))
    assert [read_json(path)["seed"] for path in runs] == [3, 4, 3, 4]
    assert len(list((tmp_path / "out" / "selection").glob("*/config.json"))) == 2
    # the same command repeats no run, and warns of images of another shape
    before = [path.stat().st_mtime_ns for path in runs]
    assert cli.main(arguments) == 0
    again = capsys.readouterr()
    assert again.out == shown.out
    assert [path.stat().st_mtime_ns for path in runs] == before
    assert (
        "continual-metaopt: the source 'digits' has 10 classes of images of 8 × 8 with 1 channel, and CIFAR-100 100 of "
        "32 × 32 with 3: results are not comparable with the paper's" in again.err
    )


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_an_experiment_of_two_studies_has_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("published", "published_global")
    studies = {name: yaml.safe_dump(PUBLISHED | {"name": name}, allow_unicode=True) for name in names}
    monkeypatch.setattr(load, "packaged_studies", lambda: studies)

    assert cli.main(["reproduce", "published", "--out", str(tmp_path / "out"), "--workers", "1", "--quiet"]) == 0

    page = (tmp_path / "out" / "report" / "published.md").read_text()
    assert capsys.readouterr().out.startswith(page)
    for labels in ("within", "global"):
        assert f"## All columns, labels {labels}" in page
        assert len(list((tmp_path / "out" / labels / "runs").glob("*/config.json"))) == 2
    assert "36.59" in page


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_the_stationary_experiment_is_summed_up_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learners = [
        {"label": "SGDm, Adam, blockwise", "name": "metaoptimize", "lr": 0.001, "base": "sgdm"},
        {"label": "SGDm, fixed", "name": "fixed", "base": "sgdm", "tune": {"lr": [0.001]}},
    ]
    stream = {"name": "multi_epoch", "source": "digits", "classes": [0, 1], "batch_size": 20, "epochs": 3}
    study = TINY | {"name": "cifar10_small", "stream": stream, "evaluate": True}
    text = yaml.safe_dump(study | {"learners": learners})
    monkeypatch.setattr(load, "packaged_studies", lambda: {"cifar10_small": text})
    assert cli.main(["reproduce", "cifar10_small", "--out", str(tmp_path), "--workers", "1", "--quiet"]) == 0

    runs = load_runs(tmp_path)
    table = pd.read_csv(tmp_path / "report" / "cifar10_small_accuracy.csv").set_index("learner")
    for label in ("SGDm, Adam, blockwise", "SGDm, fixed (tuned)"):
        paths = runs.paths_of(label)
        last_pass = [runs.read(path, "samples")["correct"].iloc[-280:].mean() for path in paths]  # of 3 × 280
        tested = [
            runs.read(path, "measurements").query("quantity == 'test_accuracy'")["value"].iloc[-1] for path in paths
        ]
        assert table.loc[label, "training_accuracy"] == pytest.approx(100 * np.mean(last_pass), rel=1e-5)
        assert table.loc[label, "test_accuracy"] == pytest.approx(100 * np.mean(tested), rel=1e-5)
    sizes = [runs.read(path, "step_sizes") for path in runs.paths_of("SGDm, Adam, blockwise")]
    for block in ("linear1", "linear2"):
        last = [one.loc[one["block"] == block, "step_size"].iloc[-1] for one in sizes]
        assert table.loc["SGDm, Adam, blockwise", f"step_size/{block}"] == pytest.approx(gmean(last), rel=1e-5)
    claims = pd.read_csv(tmp_path / "report" / "cifar10_small_claims.csv")
    assert claims["claim"].tolist() == [
        "SGDm, Adam, blockwise, above the best fixed step size",
        "SGDm, Adam, blockwise: the last block's step size above the first's, at the end",
    ]
    difference = table["test_accuracy"]["SGDm, Adam, blockwise"] - table["test_accuracy"]["SGDm, fixed (tuned)"]
    assert claims["value"][0] == pytest.approx(difference, abs=1e-3)


@pytest.mark.parametrize("name", ["cifar10", "cifar10_small"])
def test_the_stationary_experiments_compare_the_same_learners_with_six_blocks(name: str) -> None:
    config = load_study(name).config
    network = NETWORKS[config.network.name](**config.network.options)
    assert [group["name"] for group in blocks(network, "blockwise")][::5] == ["stem", "head"]
    labels = [learner.label for learner in load_study("cifar10").config.learners]
    assert [learner.label.rstrip("4567") for learner in config.learners] == [label.rstrip("4567") for label in labels]


@pytest.mark.parametrize(
    ("experiment", "dataset", "n_classes"),
    [("published", "cifar100", 100), ("table2", "cifar100", 100), ("cifar10", "cifar10", 10)],
)
def test_missing_images_are_told_with_what_to_give_instead(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    experiment: str,
    dataset: str,
    n_classes: int,
) -> None:
    def missing(*arguments: Any) -> Any:
        raise FileNotFoundError(f"source '{dataset}' was not found.")

    monkeypatch.setattr(sources, "_torchvision_split", missing)
    out = tmp_path / "out"

    status = cli.main(["reproduce", experiment, "--out", str(out), "--data-root", str(tmp_path)])

    assert status == 2
    assert capsys.readouterr().err == (
        f"continual-metaopt: source '{dataset}' was not found. The experiment takes any images of "
        f"{dataset.upper().replace('R1', 'R-1')}'s shape with --source, {n_classes} classes of about "
        f"{50_000 // n_classes} colour images of 32 × 32: --source parquet:FOLDER for Hugging Face's layout, or "
        "--source folder:DIR for DIR/CLASS/IMAGE\n"
    )
    assert not out.exists()


def test_a_folder_that_is_not_there_is_named() -> None:
    study = load_study("table2", source="parquet:nothing")
    message = "no parquet file or folder at 'nothing'; give the path of a .parquet file or a folder"
    with pytest.raises(FileNotFoundError, match=exactly(message)):
        reproduce._check_images(study)


def test_the_analogue_of_figure_3_has_the_papers_six_blocks_and_long_experiences() -> None:
    study = load_study("trajectories").config
    network = NETWORKS[study.network.name](n_outputs=20, **study.network.options)
    names = [str(group["name"]) for group in blocks(network, "blockwise")]
    assert names == ["stem", "stage1", "stage2", "stage3", "stage4", "head"]
    assert study.stream.options["classes_per_experience"] == 20  # of 500 images: 10,000 samples
    assert "analogue" in study.description
