import math

import numpy as np
import pytest

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.field.controls import control_table
from continual_metaopt.analysis.field.figures import control_dots
from continual_metaopt.analysis.scripts import controls
from tests.analysis.synthetic import write_regression, write_run


@pytest.fixture(scope="module")
def runs_at(tmp_path_factory):
    """Two seeds of a learner and two controls; two experiences of four samples."""
    right = {
        "closed": [[0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]],
        "frozen": [[1, 1, 1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0, 1, 1]],
        "folded": [[0, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0]],
    }
    root = tmp_path_factory.mktemp("runs")
    for order, (label, seeds) in enumerate(right.items()):
        for seed, correct in enumerate(seeds):
            write_run(root, label, seed, correct, config={"order": order})
    return root


def test_differences_with_and_without_the_first_experience(runs_at):
    frozen, folded = control_table(load_runs(runs_at)).to_dict("records")
    # closed has 6 and 5 of 8, frozen 7 and 6; later 4 and 4 of 4, and 3 and 2
    assert (frozen["learner"], frozen["baseline"], frozen["pairs"]) == ("frozen", "closed", 2)
    assert frozen["mean"] == pytest.approx(100 * 13 / 16)
    assert (frozen["difference"], frozen["difference_ci"]) == (pytest.approx(12.5), pytest.approx(0))
    assert frozen["late_difference"] == pytest.approx(-37.5)
    assert frozen["late_difference_ci"] == pytest.approx(12.7062 * 12.5, rel=1e-4)
    # folded differs in one sample of the second seed, in the second experience
    assert (folded["difference"], folded["late_difference"]) == (pytest.approx(-6.25), pytest.approx(-12.5))


def test_pairs_of_controls(runs_at):
    (row,) = control_table(load_runs(runs_at), pairs=[("folded", "frozen")]).to_dict("records")
    assert (row["learner"], row["baseline"]) == ("folded", "frozen")
    assert row["difference"] == pytest.approx(-18.75)


def test_runs_that_have_not_finished_are_left_out(runs_at, tmp_path):
    write_run(tmp_path, "closed", 2, [1, 1, 1, 1], n_samples=8, state="running")
    write_run(tmp_path, "frozen", 2, [1, 1, 1, 1, 1, 1, 1, 1])
    assert control_table(load_runs(runs_at, tmp_path))["pairs"].tolist() == [2, 2]


def test_the_same_seed_twice_is_an_error(runs_at, tmp_path):
    write_run(tmp_path, "frozen", 0, [1] * 8, config={"network": {"name": "cnn"}})
    with pytest.raises(ValueError, match="are both 'frozen' with seed 0: leave one of them out"):
        control_table(load_runs(runs_at, tmp_path))


def test_a_stream_of_one_experience_has_nothing_after_the_first(tmp_path):
    for label in ("closed", "frozen"):
        write_run(tmp_path, label, 0, [1, 0], n_experiences=1)
    (row,) = control_table(load_runs(tmp_path)).to_dict("records")
    assert row["difference"] == 0
    assert math.isnan(row["late_difference"])


def test_unknown_labels_and_regressions_are_refused(runs_at, tmp_path):
    with pytest.raises(ValueError, match="'opened'"):
        control_table(load_runs(runs_at), "opened")
    for label in ("closed", "frozen"):
        write_regression(tmp_path, label, 0, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"^these runs are of a regression, which has no accuracy to compare$"):
        control_table(load_runs(tmp_path))


def test_the_figure_has_a_line_for_each_control(runs_at):
    axes = control_dots(control_table(load_runs(runs_at))).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["frozen", "folded"]
    assert axes.get_xlabel() == "difference from\n“closed” (points)"
    filled, hollow = (container.lines[0] for container in axes.containers)
    np.testing.assert_allclose(filled.get_xdata(orig=False), [12.5, -6.25])
    np.testing.assert_allclose(hollow.get_xdata(orig=False), [-37.5, -12.5])
    pairs = control_table(load_runs(runs_at), pairs=[("folded", "frozen"), ("frozen", "closed")])
    labels = [text.get_text() for text in control_dots(pairs).axes[0].get_yticklabels()]
    assert labels == ["folded − frozen", "frozen − closed"]


def test_names_in_the_figure_are_without_chosen_settings(runs_at, tmp_path):
    for label in ("fixed, lr = 0.1", "slow", "slow, lr = 0.1"):
        for seed in (0, 1):
            write_run(tmp_path, label, seed, [1] * 8, config={"order": 3, "entry": label.split(",")[0]})
    table = control_table(load_runs(runs_at, tmp_path), "closed")
    assert table["name"].tolist() == ["frozen", "folded", "fixed", "slow", "slow, lr = 0.1"]
    assert set(table["baseline_name"]) == {"closed"}


def test_the_script(runs_at, tmp_path, capsys):
    out = tmp_path / "out"
    assert controls.main([str(runs_at), "--out", str(out), "--format", "png"]) == 0
    assert controls.main([str(runs_at), "--out", str(out), "--pair", "folded", "frozen", "--format", "png"]) == 0
    printed = capsys.readouterr().out
    assert "+12.5" in printed
    names = ["controls.csv", "controls.md", "controls.tex", "controls.png", "controls.txt"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, *(f"pairs_of_{name}" for name in names)])
