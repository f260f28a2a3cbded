"""The benchmark of hypergradients: its closed forms agree with samples, its errors with hand-computed ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import hypergradients


@pytest.mark.parametrize("start", [None, 3.0])
def test_expected_hypergradients_are_the_means_of_sampled_ones(start: float | None) -> None:
    expected = hypergradients.expected_quadratic(start, 60)
    sampled = hypergradients.sampled_quadratic(start, 60, 4000, 0)
    assert list(expected) == list(sampled) == ["greedy", "Hessian-free", "exact"]
    for kind, values in expected.items():
        half = [
            values.mean(axis=0) - by.mean(axis=0)
            for by in (sampled[kind], hypergradients.sampled_quadratic(start, 60, 4000, 1)[kind])
        ]
        spread = np.abs(half[0] - half[1]) + 0.01 * np.abs(values).mean(axis=0)
        assert (np.abs(half[0] + half[1]) / 2 < 4 * spread).all(), kind


def test_exact_hypergradients_arrive_at_the_closed_form() -> None:
    for start in (None, 3.0):
        exact = hypergradients.expected_quadratic(start, 6000)["exact"]
        np.testing.assert_allclose(exact[-1], hypergradients.true_hypergradient(), rtol=1e-6)


def test_the_closed_form_is_the_derivative_of_the_loss_that_sgd_settles_at(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, eps = hypergradients.true_hypergradient(), 1e-5
    losses = []
    for sign in (1, -1):
        alpha = 0.1 * np.exp(sign * eps)
        square = alpha**2 / (1 - (1 - alpha * hypergradients.CURVATURES) ** 2)
        losses.append(hypergradients.by_block(hypergradients.CURVATURES * square / 2))
    np.testing.assert_allclose((losses[0] - losses[1]) / (2 * eps), truth, rtol=1e-6)


def test_errors_by_hand() -> None:
    found = hypergradients.errors(np.array([3.0, 0.0]), np.array([3.0, 4.0]))
    assert found == {"error": pytest.approx(0.8), "cosine": pytest.approx(0.6)}
    assert np.isnan(list(hypergradients.errors(None, np.array([1.0])).values())).all()


def test_window_means_by_hand() -> None:
    assert hypergradients.snapshots_of(np.arange(10.0)[:, np.newaxis], 6, 2).tolist() == [[0.5], [2.5], [4.5]]


def test_errors_are_shown_with_two_decimals_or_as_powers() -> None:
    assert [hypergradients.error_shown(x) for x in (0.125, 5.0, 0.0001)] == ["0.12", "5.00", "1e-04"]


def test_the_numbers_kept_are_those_of_tensors_and_lists() -> None:
    assert hypergradients.numbers_kept({"a": [1.0, np.float64(2), "b", 3], "params": [0.5]}) == 2


@pytest.mark.slow
def test_tables_and_figures_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hypergradients, "TAUS", (60, 120))
    monkeypatch.setattr(hypergradients, "DIGITS_STEPS", 130)
    monkeypatch.setattr(hypergradients, "DIGITS_END", 20)
    monkeypatch.setattr(hypergradients, "CENTRE", hypergradients.CENTRE | {"tau": 120, "window": 5})
    monkeypatch.setitem(hypergradients.SWEPT, "tau", (60, 120))
    monkeypatch.setattr("sys.argv", ["hypergradients", "--seeds", "2", "--out", str(tmp_path)])

    hypergradients.main()

    table = pd.read_csv(tmp_path / "around_centre.csv")
    assert set(table["estimate"]) == {
        "local", "mean", "truncated", "exact", "glocal, greedy", "glocal, Hessian-free", "glocal, exact",
    }  # fmt: skip
    assert set(table["problem"]) >= {"quadratic settled, expected", "digits, next sample"}
    settled = table[(table["problem"] == "quadratic settled, expected") & (table["tau"] == 120)]
    errors = settled.groupby("estimate")["error"].min()
    assert errors["glocal, exact"] < errors["truncated"] < errors["local"]
    assert (tmp_path / "error.png").exists()
    assert (tmp_path / "cosine.png").exists()
    output = capsys.readouterr().out
    assert output.count("| digits, next sample ") == output.count("| quadratic settled, 1 stream ") == 2
