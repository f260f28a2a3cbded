"""What tuning took, and what is lost when a step size is off, on made-up runs."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from continual_metaopt.analysis import Runs, comparison_table, format_table, load_runs
from continual_metaopt.analysis.tables import caption
from continual_metaopt.analysis.tuning import best_setting, scores_by_setting, sensitivity
from continual_metaopt.study.running import average_score

from .synthetic import write_regression, write_run, write_trial


def entry(label: str, order: int = 0, tuned: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    return {"entry": label, "order": order, "tuned": list(tuned), "learner": {"name": "fixed", **options}}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AdamW, tuned on two seeds of 10 samples and reported on two of 20; SGD, untuned."""
    root = tmp_path_factory.mktemp("study")
    counts = {1e-5: (1, 1), 3e-5: (4, 4), 1e-4: (7, 9), 3e-4: (5, 5), 1e-3: (6, 6)}
    for lr, of_seeds in counts.items():
        for seed, n_correct in enumerate(of_seeds, start=100):
            write_trial(root, "AdamW", seed, n_correct, lr=lr)
    for seed in (0, 1):
        write_run(root, "AdamW", seed, [1, 0] * 10, config=entry("AdamW", lr=1e-3))
        write_run(root, "AdamW, lr = 0.0001", seed, [1] * 20, config=entry("AdamW", tuned=("lr",), lr=1e-4))
        write_run(root, "SGD", seed, [0] * 20, config=entry("SGD", 1, lr=1e-3))
    return root


@pytest.fixture(scope="module")
def reported(study: Path) -> Runs:
    return load_runs(study)


@pytest.fixture(scope="module")
def selection(study: Path) -> Runs:
    return load_runs(study, purpose="selection")


@pytest.fixture(scope="module")
def table(reported: Runs, selection: Runs) -> pd.DataFrame:
    return comparison_table(reported, selection=selection)


def test_the_table_tells_what_tuning_took_and_what_is_lost(table: pd.DataFrame) -> None:
    table = table.set_index("learner")

    assert list(table.index) == ["AdamW", "AdamW (tuned)", "SGD"]
    tuned = table.loc["AdamW (tuned)"]
    assert (tuned["setting"], tuned["tuning_runs"], tuned["tuning_samples"]) == ("lr = 0.0001", 10, 100)
    assert tuned["selection_score"] == 80
    assert tuned["lost_at_3x"] == pytest.approx(80 - 40)  # below; above it is 80 - 50
    assert tuned["lost_at_10x"] == pytest.approx(80 - 10)
    columns = ["setting", "tuning_runs", "tuning_samples", "selection_score", "lost_at_3x", "lost_at_10x"]
    assert table.loc[["AdamW", "SGD"], columns].isna().all(axis=None)
    assert table["online_accuracy"].tolist() == [50, 100, 0]


def test_tuning_that_was_not_reported_stands_in_the_untuned_row(reported: Runs, selection: Runs) -> None:
    untuned_runs = reported.select(label=["AdamW", "SGD"])

    table = comparison_table(untuned_runs, selection=selection).set_index("learner")

    untuned = table.loc["AdamW"]
    assert table["setting"].isna().all()
    assert (untuned["tuning_runs"], untuned["selection_score"]) == (10, 80)
    assert untuned["lost_at_10x"] == pytest.approx(80 - 10)
    assert "in an untuned row, the chosen setting was not reported" in caption(table)


def test_the_table_as_text(table: pd.DataFrame) -> None:
    lines = format_table(table, "markdown").splitlines()

    heading, _, untuned, tuned, _ = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert heading[-3:] == ["tuning", "lost 3× off", "lost 10× off"]
    assert tuned[-3:] == ["10 × 10", "40.0", "70.0"]
    assert untuned[-3:] == ["", "", ""]
    assert "Settings were chosen on other seeds, with “tuning” runs × samples." in caption(table)
    assert "in percentage points, than those with a step size" in caption(table)


def test_without_selection_runs_the_table_tells_the_setting_alone(reported: Runs, selection: Runs) -> None:
    table = comparison_table(reported)

    assert table["setting"].fillna("").tolist() == ["", "lr = 0.0001", ""]
    assert not {"tuning_runs", "lost_at_3x"} & set(table.columns)
    assert "Chosen settings: AdamW (tuned): lr = 0.0001." in caption(table)
    assert "tuning" not in caption(table)
    assert comparison_table(reported, selection=selection.select(seed=-1)).equals(table)


def test_a_setting_stands_in_the_label_where_a_learner_has_several(study: Path, tmp_path: Path) -> None:
    config = entry("AdamW", tuned=("lr",), lr=3e-4) | {"study": "another"}
    write_run(tmp_path, "AdamW, lr = 0.0003", 0, [1] * 20, config=config)

    assert load_runs(study, tmp_path).labels == ["AdamW, lr = 0.0003", "AdamW", "AdamW, lr = 0.0001", "SGD"]
    assert load_runs(tmp_path).labels == ["AdamW (tuned)"]


def test_runs_of_another_study_or_stream_do_not_count(study: Path, reported: Runs, tmp_path: Path) -> None:
    config = entry("AdamW", tuned=("lr",), lr=3e-4) | {"purpose": "selection"}
    for number, (study_name, info) in enumerate([("other", {}), ("synthetic", {"source": "mnist"})]):
        written = {"config": config | {"study": study_name}, "stream_info": info, "folder": str(number)}
        write_run(tmp_path, "AdamW, lr = 0.0003", 100, [0] * 10, **written)

    table = comparison_table(reported, selection=load_runs(study, tmp_path, purpose="selection"))

    assert table["tuning_runs"].tolist()[1] == 10


def test_runs_with_another_network_do_not_count(
    study: Path, reported: Runs, selection: Runs, table: pd.DataFrame, tmp_path: Path
) -> None:
    """A study with several networks has a folder for each, and chooses settings for each alone."""
    for number, (path, config) in enumerate(selection.configs.items()):
        copy = shutil.copytree(path, tmp_path / str(number))
        (copy / "config.json").write_text(json.dumps(config | {"network": {"name": "mlp", "hidden": [7]}}))

    both = comparison_table(reported, selection=load_runs(study, tmp_path, purpose="selection"))

    pd.testing.assert_frame_equal(both, table)


def test_runs_of_earlier_versions_have_no_tuning(tmp_path: Path) -> None:
    for seed, purpose in ((0, "report"), (100, "selection")):
        config = {"purpose": purpose, "learner": {"name": "fixed", "lr": 0.1}}
        write_run(tmp_path, "AdamW, lr = 0.1", seed, [1] * 10, config=config)

    table = comparison_table(load_runs(tmp_path), selection=load_runs(tmp_path, purpose="selection"))

    assert "setting" not in table


@pytest.mark.parametrize(
    ("tried", "lost"),
    [
        ({1.0: 9, 3.0: 5}, (0.4, math.nan)),
        ({1.0: 9, 0.3: 7, 3.0: 8, 10.0: 1}, (0.2, 0.8)),
        ({1.0: 9, 2.0: 5, 5.0: 3}, (0.4, math.nan)),  # 2 is nearer to 3 than 5 is, and 5 no nearer to 10 than 1.8 times
        ({1.0: 9, 5.6: 3, 18.0: 2}, (math.nan, 0.6)),  # 5.6 is nearer to 10 than to 3, and than 18 is
        ({1.0: 9, 1.5: 3, 30.0: 2}, (math.nan, math.nan)),
        ({1.0: 5, 3.0: 9}, (-0.4, math.nan)),
    ],
)
def test_the_nearest_setting_stands_for_a_factor(
    tmp_path: Path, tried: dict[float, int], lost: tuple[float, float]
) -> None:
    for lr, n_correct in tried.items():
        write_trial(tmp_path, "AdamW", 100, n_correct, lr=lr)

    found = sensitivity(load_runs(tmp_path, purpose="selection"), {"lr": 1.0})

    assert list(found) == [3, 10]
    assert list(found.values()) == pytest.approx(lost, nan_ok=True)


def test_settings_with_the_same_other_options_are_preferred(tmp_path: Path) -> None:
    tuned = ("lr", "weight_decay")
    for lr, decay, n_correct in [(1.0, 0.1, 9), (3.0, 0.0, 2), (2.5, 0.1, 8), (0.1, 0.0, 4)]:
        write_trial(tmp_path, "AdamW", 100, n_correct, tuned, lr=lr, weight_decay=decay)

    found = sensitivity(load_runs(tmp_path, purpose="selection"), {"lr": 1.0, "weight_decay": 0.1})

    assert found == pytest.approx({3: 0.1, 10: 0.5})


@pytest.mark.parametrize("chosen", [{"lr": 2.0}, {"weight_decay": 0.1}, {"lr": None}])
def test_there_is_no_sensitivity_without_the_chosen_step_size(tmp_path: Path, chosen: dict[str, Any]) -> None:
    for lr in (1.0, 3.0):
        write_trial(tmp_path, "AdamW", 100, 5, lr=lr)

    assert all(map(math.isnan, sensitivity(load_runs(tmp_path, purpose="selection"), chosen).values()))


def test_regressions_lose_squared_error(tmp_path: Path) -> None:
    for lr, errors in {1.0: [1.0, 1.0], 3.0: [2.0, 4.0], 0.1: [math.inf, math.inf]}.items():
        config = entry("LMS", tuned=("lr",), lr=lr)
        write_regression(
            tmp_path, f"LMS, lr = {lr}", 100, errors, config=config | {"purpose": "selection"}, folder=f"trial {lr}"
        )
    write_regression(tmp_path, "LMS, lr = 1.0", 0, [1.0, 1.0], config=entry("LMS", tuned=("lr",), lr=1.0))

    table = comparison_table(load_runs(tmp_path), selection=load_runs(tmp_path, purpose="selection"))

    assert (table["lost_at_3x"].item(), table["lost_at_10x"].item()) == (2.0, math.inf)
    assert "∞" in format_table(table, "terminal")
    assert "were better than those" in caption(table)


def test_diverged_trials_count_as_in_the_choice_of_settings(tmp_path: Path) -> None:
    """A larger step size is better until it diverges: the study counts that as 0, not as chance."""
    for seed in (100, 101):
        write_trial(tmp_path, "AdamW", seed, 2, lr=0.01)
    write_trial(tmp_path, "AdamW", 100, 3, lr=0.1)
    config = entry("AdamW", tuned=("lr",), lr=0.1) | {"purpose": "selection"}
    write_run(
        tmp_path, "AdamW, lr = 0.1", 101, [1, 1, 0], n_samples=10, state="diverged", config=config, folder="diverged"
    )
    selection = load_runs(tmp_path, purpose="selection")

    tried, score = scores_by_setting(selection, ["lr"])

    assert (score, sorted((setting["lr"], value) for setting, value in tried)) == (
        "online_accuracy",
        [(0.01, pytest.approx(0.2)), (0.1, pytest.approx(0.15))],
    )
    for setting, value in tried:
        trials = [Path(path) for path, config in selection.configs.items() if config["learner"]["lr"] == setting["lr"]]
        assert value == pytest.approx(sum(map(average_score, trials)) / len(trials))
    assert best_setting(selection) == {"lr": 0.01}
    assert sensitivity(selection, {"lr": 0.01})[10] == pytest.approx(0.05)
