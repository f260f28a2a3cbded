import math
import re

import numpy as np
import pytest

from analysis import load_runs
from analysis.statistics import (
    best_fixed,
    counted_runs,
    held_out_accuracy,
    is_regression,
    mean_interval,
    mean_squared_error,
    online_accuracy,
    paired_differences,
    sample_scores,
    windowed_accuracy,
)

from .synthetic import write_regression, write_run

T_2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom
T_1 = 12.706204736432095


def test_mean_interval_by_hand():
    mean, half_width = mean_interval([1, 2, 3])
    assert mean == 2
    assert half_width == pytest.approx(T_2 / math.sqrt(3))  # the standard deviation is 1
    assert mean_interval([1, 2, 3], confidence=0.9)[1] == pytest.approx(2.919985580353726 / math.sqrt(3))


def test_mean_interval_over_the_first_axis():
    mean, half_width = mean_interval([[0, 5], [2, 5]])
    np.testing.assert_allclose(mean, [1, 5])
    np.testing.assert_allclose(half_width, [T_1, 0])  # standard deviation sqrt(2), divided by sqrt(2)


def test_mean_interval_of_too_few():
    mean, half_width = mean_interval([4])
    assert mean == 4
    assert math.isnan(half_width)
    assert all(math.isnan(value) for value in mean_interval([]))
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, not 95"):
        mean_interval([1, 2], confidence=95)


def test_windowed_accuracy_looks_back():
    np.testing.assert_allclose(windowed_accuracy([1, 0, 0, 1], 2), [np.nan, 0.5, 0, 0.5])
    np.testing.assert_allclose(windowed_accuracy([1, 0], 1), [1, 0])
    np.testing.assert_allclose(windowed_accuracy([1, 0], 2), [np.nan, 0.5])
    for window in (0, 3):
        with pytest.raises(ValueError, match=f"the window must have 1 to 2 samples, not {window}"):
            windowed_accuracy([1, 0], window)


@pytest.fixture
def mixed(tmp_path):
    """Finished at 3/4, diverged after 1 of 2 correct, running and failed."""
    write_run(tmp_path, "A", 0, [1, 0, 1, 1])
    write_run(tmp_path, "A", 1, [1, 0], n_samples=4, state="diverged", parts=1)
    write_run(tmp_path, "A", 2, [1, 1], n_samples=4, state="running", parts=1)
    write_run(tmp_path, "A", 3, [1], n_samples=4, state="failed", parts=1)
    return load_runs(tmp_path)


def test_online_accuracy_with_diverged_runs(mixed):
    chance = online_accuracy(mixed)
    np.testing.assert_allclose(chance["online_accuracy"], [3 / 4, (1 + 2 / 2) / 4, np.nan, np.nan])
    assert chance["state"].tolist() == ["finished", "diverged", "running", "failed"]
    assert chance["run"].tolist() == mixed.table["path"].tolist()
    exclude = online_accuracy(mixed, "exclude")
    np.testing.assert_allclose(exclude["online_accuracy"], [3 / 4, np.nan, np.nan, np.nan])
    with pytest.raises(ValueError, match="diverged must be 'chance' or 'exclude', not 'zero'"):
        online_accuracy(mixed, "zero")


def test_a_run_that_diverged_at_once_is_at_chance(tmp_path):
    run = write_run(tmp_path, correct=[], n_samples=4, n_outputs=4, state="diverged")
    assert online_accuracy(load_runs(run))["online_accuracy"].tolist() == [0.25]


def test_sample_scores(mixed):
    assert sample_scores(mixed, mixed.table["path"][1]).tolist() == [1, 0, 0.5, 0.5]


def test_regression_has_no_accuracy(tmp_path):
    run = write_run(tmp_path, correct=[None, None])
    message = f"^{re.escape(str(run))}: has no accuracy, since its stream is a regression$"
    with pytest.raises(ValueError, match=message):
        online_accuracy(load_runs(run))
    with pytest.raises(ValueError, match=message):
        sample_scores(load_runs(run), str(run))


def test_the_same_seed_twice_is_an_error(tmp_path):
    first = write_run(tmp_path, "A", 0, folder="first")
    second = write_run(tmp_path, "A", 0, folder="second")
    message = f"{first} and {second} are both 'A' with seed 0: leave one of them out"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        counted_runs(load_runs(tmp_path))


def test_held_out_accuracy(tmp_path):
    write_run(tmp_path, "A", 0, test_accuracy=[0.8, 0.6])
    write_run(tmp_path, "A", 1, [1, 0], n_samples=4, state="diverged", test_accuracy=[0.9, None])
    write_run(tmp_path, "B", 0)
    write_run(tmp_path, "C", 0, [1, 0], n_samples=4, state="running", test_accuracy=[0.9, None])
    runs = load_runs(tmp_path)
    np.testing.assert_allclose(held_out_accuracy(runs), [0.7, (0.9 + 0.5) / 2, np.nan, np.nan])
    np.testing.assert_allclose(held_out_accuracy(runs, "exclude"), [0.7, np.nan, np.nan, np.nan])


@pytest.fixture
def paired(tmp_path):
    """B minus A is 1/4, 2/4 and 3/4; C has one common seed; D none."""
    for seed, n_correct in enumerate([2, 3, 4]):
        write_run(tmp_path, "A", seed, [1] + [0] * 3)
        write_run(tmp_path, "B", seed, [1] * n_correct + [0] * (4 - n_correct), learned=True)
    write_run(tmp_path, "C", 0, [0, 0, 0, 0])
    write_run(tmp_path, "C", 7, [1, 1, 1, 1])
    write_run(tmp_path, "D", 8)
    return tmp_path


def test_paired_differences_by_hand(paired):
    differences = paired_differences(load_runs(paired), "A")
    assert differences.index.tolist() == ["B", "C", "D"]
    assert differences["pairs"].tolist() == [3, 1, 0]
    np.testing.assert_allclose(differences["difference"], [0.5, -0.25, np.nan])
    np.testing.assert_allclose(differences["half_width"], [T_2 * 0.25 / math.sqrt(3), np.nan, np.nan])
    with pytest.raises(ValueError, match="no run is labelled 'E'; the labels are: A; B; C; D"):
        paired_differences(load_runs(paired), "E")


def test_best_fixed(paired):
    assert best_fixed(load_runs(paired)) == "D"  # B is better than A, but learns its step sizes
    assert best_fixed(load_runs(paired).select(label=["A", "B"])) == "A"
    assert best_fixed(load_runs(paired).select(label="B")) is None


def test_mean_squared_error_is_twice_the_loss_after_the_burn_in(tmp_path):
    write_regression(tmp_path, "LMS", 0, [9, 1, 2, 3])
    write_regression(tmp_path, "LMS", 1, [9], n_samples=4, state="diverged")
    runs = load_runs(tmp_path)
    assert is_regression(runs)
    assert mean_squared_error(runs)["squared_error"].tolist() == [3.75, np.inf]
    assert mean_squared_error(runs, burn_in=1)["squared_error"].tolist() == [2.0, np.inf]
    excluded = mean_squared_error(runs, "exclude")["squared_error"]
    assert excluded.iloc[0] == 3.75
    assert np.isnan(excluded.iloc[1])
    with pytest.raises(ValueError, match=r"^the burn-in must have 0 to 3 samples, not 4$"):
        mean_squared_error(runs, burn_in=4)
