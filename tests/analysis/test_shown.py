"""Runs and figures show themselves in a notebook."""

import shutil
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.image import imread

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.figures import cumulative_accuracy
from continual_metaopt.analysis.figures.shown import DOTS_PER_INCH
from continual_metaopt.analysis.statistics import online_accuracy

SAMPLE_RUNS = Path(__file__).parents[2] / "analysis" / "sample_runs"


def test_runs_in_a_line_and_as_a_table() -> None:
    runs = load_runs(SAMPLE_RUNS)
    assert repr(runs) == "Runs(15 runs of 5 learners on permuted_inputs v1, seeds 0, 1, 2; 15 finished)"
    summary = runs.summary()
    assert list(summary) == ["label", "runs", "online_accuracy", "samples_per_second"]
    assert summary["label"].tolist() == runs.labels
    assert summary["runs"].tolist() == [3] * 5
    expected = online_accuracy(runs).groupby("label", sort=False)["online_accuracy"].mean()
    assert np.allclose(summary["online_accuracy"], 100 * expected.loc[summary["label"]], atol=0.05)
    html = runs._repr_html_()
    assert html.startswith(f"<p>{runs!r}</p><table")
    assert html.count("<tr") == 6
    assert len(html) < 2000
    one = runs.select(label=runs.labels[0], seed=2)
    assert repr(one) == "Runs(1 run of 1 learner on permuted_inputs v1, seed 2; 1 finished)"


def test_runs_that_cannot_be_read_are_shown_without_accuracy(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE_RUNS, tmp_path / "runs")
    for file in (tmp_path / "runs").glob("*/samples.parquet"):
        file.write_bytes(b"damaged")
    runs = load_runs(tmp_path / "runs")
    assert runs.summary()["online_accuracy"].isna().all()
    assert "nan" not in runs._repr_html_().lower()


def test_no_runs() -> None:
    nothing = load_runs(SAMPLE_RUNS).select(seed=99)
    assert repr(nothing) == "Runs(no runs)"
    assert nothing._repr_html_()


def test_a_figure_is_a_picture_without_pyplot(tmp_path: Path) -> None:
    figure = cumulative_accuracy(load_runs(SAMPLE_RUNS))
    backend = matplotlib.rcParams._get_backend_or_none()
    (tmp_path / "shown.png").write_bytes(figure._repr_png_())
    assert matplotlib.rcParams._get_backend_or_none() == backend
    height, width, _ = imread(tmp_path / "shown.png").shape
    assert [width, height] == [int(inches * DOTS_PER_INCH) for inches in figure.get_size_inches()]
