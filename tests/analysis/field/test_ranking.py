"""The ranking of many learners, untuned and tuned, from synthetic runs."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.families import family
from continual_metaopt.analysis.field.figures import ranking_dots
from continual_metaopt.analysis.field.ranking import caption, columns_of, ranking
from continual_metaopt.analysis.scripts import ranking as script
from tests.analysis.synthetic import write_counts, write_regression, write_trial


def write_learner(
    root: Path, label: str, order: int, counts: list[int], tuned: float | None = None, **learner: Any
) -> None:
    """Reported runs of 10 samples on as many seeds as there are counts of correct predictions."""
    options = {"name": "fixed", "lr": 0.1, **learner} | ({} if tuned is None else {"lr": tuned})
    config = {"entry": label, "order": order, "tuned": [] if tuned is None else ["lr"], "learner": options}
    name = label if tuned is None else f"{label}, lr = {tuned}"
    write_counts(root, {name: counts}, config=config, learned=options["name"] != "fixed")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SGD and a second way to tune it; Lion, whose tuned setting was not reported; COCOB, with nothing to tune."""
    root = tmp_path_factory.mktemp("runs")
    write_learner(root, "SGD", 0, [4, 6])
    write_learner(root, "SGD", 0, [5, 7], tuned=0.3)
    write_learner(root, "SGD by TPE", 1, [9, 9], tuned=0.9)
    write_learner(root, "Lion", 2, [8, 8], base="lion")
    write_learner(root, "COCOB", 3, [6, 5], name="cocob")
    for label, options in (("SGD", {}), ("SGD by TPE", {}), ("Lion", {"base": "lion"})):
        for lr, n_correct in ((0.1, 4), (0.3, 7), (0.9, 8 if "TPE" in label else 5)):
            write_trial(root, label, 100, n_correct, lr=lr, **options)
    return root


def ranked(study: Path, **options: Any) -> pd.DataFrame:
    selection = load_runs(study, purpose="selection")
    return ranking(load_runs(study), selection=selection, **options).set_index("learner")


@pytest.fixture(scope="module")
def table(study: Path) -> pd.DataFrame:
    return ranked(study)


def test_a_place_is_that_of_the_tuned_setting_where_it_was_reported(table: pd.DataFrame) -> None:
    assert list(table.index) == ["SGD by TPE", "Lion", "SGD", "COCOB"]
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert table["untuned"].tolist() == [50, 80, 50, 55]  # SGD's untuned runs are those of both ways to tune it
    assert table["tuned"].tolist() == pytest.approx([90, math.nan, 60, math.nan], nan_ok=True)
    assert table["gain"].tolist() == pytest.approx([40, math.nan, 10, math.nan], nan_ok=True)
    assert table.loc["SGD", "gain_ci"] == pytest.approx(0)  # paired: 10 points on each seed
    assert table["setting"].tolist() == ["lr = 0.9", "", "lr = 0.3", ""]
    assert table["family"].tolist() == ["fixed step size"] * 3 + ["no step size to choose"]


def test_differences_are_paired_with_the_best_fixed_learner(study: Path, table: pd.DataFrame) -> None:
    assert (table.attrs["baseline"], table.attrs["baseline_accuracy"]) == ("SGD by TPE (tuned)", 90)
    (line,) = [
        line for line in ranking_dots(table.reset_index()).axes[0].get_lines() if list(line.get_xdata()) == [90, 90]
    ]
    assert list(line.get_ydata()) == [0, 1]  # from the bottom to the top
    assert table["difference"].tolist() == pytest.approx([math.nan, -10, -30, -35], nan_ok=True)
    assert table.loc["Lion", "difference_ci"] == pytest.approx(0)
    other = ranked(study, baseline="COCOB")
    assert other.loc["Lion", "difference"] == pytest.approx(25)
    assert math.isnan(other.loc["COCOB", "difference"])


def test_tuning_is_told_of_learners_whose_setting_was_not_reported_too(table: pd.DataFrame) -> None:
    assert table["tuning_runs"].tolist() == pytest.approx([3, 3, 3, math.nan], nan_ok=True)
    assert table["selection_score"].tolist() == pytest.approx([80, 70, 70, math.nan], nan_ok=True)
    assert table.loc["SGD", "lost_at_3x"] == pytest.approx(30)  # below; above it is 20


def test_costs_are_those_of_pytorch_s_operations(study: Path) -> None:
    costs = pd.DataFrame(
        [("SGD", "torch", 0.8, 0.7, 0.0), ("SGD", "compiled", 0.9, 0.9, 0.0), ("Lion", "torch", 1.1, 0.9, 4.0)],
        columns=["learner", "engine", "time_ratio", "memory_ratio", "state_bytes_per_parameter"],
    )

    table = ranked(study, costs=costs)

    assert table["time_ratio"].tolist() == pytest.approx([math.nan, 1.1, 0.8, math.nan], nan_ok=True)
    assert columns_of(table.reset_index())["memory × AdamW"] == ["", "0.90", "0.70", ""]


def test_the_ranking_as_text(table: pd.DataFrame) -> None:
    columns = columns_of(table.reset_index())
    first, second, *_ = zip(*columns.values(), strict=True)

    assert list(columns)[:5] == ["learner", "untuned (%)", "tuned (%)", "tuned − untuned", "− best fixed"]
    assert (first[0], second[0]) == ("1. SGD by TPE", "2. Lion")
    assert second[2:4] == ("", "")
    assert first[5:7] == ("3 × 10", "80.0")
    assert "the best learner with fixed step sizes, “SGD by TPE (tuned)”" in caption(table)
    assert "over 2 seeds" in caption(table)


def test_seeds_in_two_groups_are_shown_one_by_one(tmp_path: Path) -> None:
    write_learner(tmp_path, "SGD", 0, [5, 5, 5])
    write_learner(tmp_path, "Prodigy", 1, [1, 9, 9])
    table = ranking(load_runs(tmp_path), baseline="SGD")

    columns = columns_of(table)

    assert columns["learner"] == ["1. Prodigy", "2. SGD"]
    assert columns["untuned (%)"] == ["median 90.0 (10.0, 90.0, 90.0)", "50.0 ± 0.0"]
    assert columns["− SGD"] == ["median +40.0 (−40.0, +40.0, +40.0)", ""]
    assert "the median and the single seeds in brackets stand instead of a mean" in caption(table)
    points = [line.get_xydata().tolist() for line in ranking_dots(table).axes[0].lines]
    assert [[10, 0], [90, 0], [90, 0]] in points
    assert [[90, 0]] in points  # the median


def test_regressions_are_not_ranked(tmp_path: Path) -> None:
    write_regression(tmp_path, "LMS", 0, [1.0])

    with pytest.raises(ValueError, match=r"^these runs are of a regression, which is not ranked; comparison_table"):
        ranking(load_runs(tmp_path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fixed", "fixed step size"),
        ("torch:NAdam", "fixed step size"),
        ("pytorch_optimizer:TRAC", "no step size to choose"),
        ("pytorch_optimizer:DAdaptLion", "no step size to choose"),
        ("pytorch_optimizer:ScheduleFreeAdamW", "no step size to choose"),
        ("pytorch_optimizer:AdaBelief", "fixed step size"),
        ("dadapt_adagrad", "no step size to choose"),
        ("idbd_rmsprop", "learned step sizes"),
        ("metaoptimize", "MetaOptimize"),
        ("cosine_restarts_told", "schedule, or told of changes"),
        ("mine", "other"),
    ],
)
def test_families(name: str, kind: str) -> None:
    assert family(name) == kind


def test_the_command(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([str(study), "--out", str(tmp_path / "out")]) == 0

    out = capsys.readouterr().out
    expected = [tmp_path / "out" / f"ranking.{suffix}" for suffix in ("csv", "md", "tex", "png", "pdf", "txt")]
    assert out.splitlines()[-6:] == [str(path) for path in expected]
    assert pd.read_csv(expected[0])["learner"].tolist() == ["SGD by TPE", "Lion", "SGD", "COCOB"]
    assert all(path.stat().st_size > 200 for path in expected)
