"""The data behind the charts of the HTML report."""

import base64

import numpy as np
import pytest

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.html import html_charts
from continual_metaopt.analysis.html.html_charts import pack, points_per_line, score_charts, trajectory_chart
from tests.analysis.synthetic import write_regression, write_run, write_study


def unpack(text, scale):
    numbers = np.frombuffer(base64.b64decode(text), dtype="<u2")
    low, high = (np.log([scale["low"], scale["high"]])) if scale["log"] else (scale["low"], scale["high"])
    values = low + (high - low) * numbers / 65534
    return np.where(numbers == 65535, np.nan, np.exp(values) if scale["log"] else values)


@pytest.mark.parametrize(
    ("lines", "log", "limits"),
    [
        ([[0.0, 50.0, 100.0], [25.0, np.nan, 75.0]], False, (0, 100)),
        ([[1e-10, 1e-5, 1.0]], True, (1e-10, 1)),
        ([[0.0, -1.0, 1e-3, 1e-1]], True, (1e-3, 1e-1)),
        ([[7.0, 7.0]], False, (7, 8)),
        ([[np.nan, np.inf]], False, (0, 1)),
        ([], False, (0, 1)),
    ],
)
def test_packed_lines(lines, log, limits):
    scale, packed = pack([np.array(line) for line in lines], log)
    assert (scale["low"], scale["high"]) == pytest.approx(limits)
    for text, line in zip(packed, lines, strict=True):
        known = np.where(np.isfinite(line) & (not log or np.greater(line, 0)), line, np.nan)
        np.testing.assert_allclose(unpack(text, scale), known, rtol=2e-4 if log else 0, atol=0 if log else 1e-3)


def test_three_decades_are_exact_to_a_ten_thousandth():
    line = np.geomspace(1e-5, 1e-2, 501)
    scale, (text,) = pack([line], log=True)
    assert np.abs(unpack(text, scale) / line - 1).max() < 6e-5


def test_accuracy_charts(tmp_path):
    write_run(tmp_path, "A", 0, [1, 0, 1, 1, 0, 0, 0, 1])  # per experience 75 and 25 %
    write_run(tmp_path, "A", 1, [1, 1, 1, 1, 0, 0, 1, 1])  # 100 and 50 %
    write_run(tmp_path, "B", 0, [1] * 8)
    sliding, by_experience = score_charts(load_runs(tmp_path), "chance")
    assert (sliding["name"], sliding["span"], sliding["boundaries"]) == ("sliding_accuracy", [0, 8], [4])
    assert sliding["x"] == {"first": 1, "distance": 1, "count": 8}  # a window of a quarter of an experience
    first, second = by_experience["learners"]
    np.testing.assert_allclose(unpack(first["mean"], by_experience["scale"]), [87.5, 37.5], atol=0.01)
    low, high = (unpack(edge, by_experience["scale"]) for edge in first["edges"])
    np.testing.assert_allclose([low[1], high[0]], [0, 100])  # 12.7 standard errors of 12.5 on either side
    assert second["edges"] == []
    assert by_experience["boundaries"] == []


def test_squared_errors_are_on_a_logarithmic_scale_and_end_where_a_run_diverged(tmp_path):
    write_regression(tmp_path, "LMS", 0, [4.0, 2.0, 1.0, 1.0])
    write_regression(tmp_path, "Fast", 0, [8.0, 9.0], n_samples=4, state="diverged")
    (chart,) = score_charts(load_runs(tmp_path), "chance")
    assert (chart["name"], chart["scale"]["log"], chart["x"]) == ("squared_error", True, [4])
    values = {one["learner"]: unpack(one["mean"], chart["scale"]).tolist() for one in chart["learners"]}
    labels = load_runs(tmp_path).labels
    assert values[labels.index("LMS")] == pytest.approx([2.0])
    assert np.isnan(values[labels.index("Fast")]).all()


def test_no_run_has_ended(tmp_path):
    write_run(tmp_path, "A", 0, [1], n_samples=4, state="running", parts=1)
    assert score_charts(load_runs(tmp_path), "chance") == []


def test_trajectories_of_learners_with_learned_step_sizes(tmp_path):
    runs = load_runs(write_study(tmp_path))
    chart = trajectory_chart(runs, "step_size")
    assert [runs.labels[one["learner"]] for one in chart["learners"]] == ["Meta", "Scalar"]
    meta = chart["learners"][0]
    assert meta["seeds"] == [0, 1]
    assert meta["x"] == {"first": 0, "distance": 10, "count": 20}
    assert [block["name"] for block in meta["blocks"]] == ["conv", "head"]
    conv, head = (unpack(block["seeds"][1], chart["scale"]) for block in meta["blocks"])
    recorded = runs.step_sizes.query("label == 'Meta' and seed == 1 and block == 'conv'")["step_size"]
    np.testing.assert_allclose(conv, recorded, rtol=1e-4)
    np.testing.assert_allclose(head, 3 * conv, rtol=2e-4)
    assert chart["boundaries"] == [50, 100, 150]


def test_a_run_that_stopped_early_has_no_values_after_it(tmp_path):
    write_run(tmp_path, "A", 0, [1] * 40, learned=True, step_sizes={"all": [1e-3] * 4}, record_every=10)
    broken = {"learned": True, "record_every": 10, "n_samples": 40, "state": "diverged"}
    write_run(tmp_path, "A", 1, [1] * 20, step_sizes={"all": [1e-2] * 2}, **broken)
    chart = trajectory_chart(load_runs(tmp_path), "step_size")
    first, second = (unpack(line, chart["scale"]) for line in chart["learners"][0]["blocks"][0]["seeds"])
    np.testing.assert_allclose(first, [1e-3] * 4)
    np.testing.assert_allclose(second, [1e-2, 1e-2, np.nan, np.nan])


def test_long_records_are_thinned_and_many_blocks_sampled(tmp_path):
    values = np.geomspace(1e-5, 1e-3, 100)
    write_run(
        tmp_path, "A", 0, [1] * 100, learned=True, step_sizes={f"b{i:02d}": values for i in range(30)},
        quantiles={"q05": 0.5, "q25": 0.8, "q75": 1.2, "q95": 2.0},
    )  # fmt: skip
    chart = trajectory_chart(load_runs(tmp_path), "step_size", max_points=40)
    (learner,) = chart["learners"]
    assert learner["x"] == {"first": 0, "distance": 3, "count": 34}
    assert (len(learner["blocks"]), learner["n_blocks"]) == (12, 30)
    assert [learner["blocks"][i]["name"] for i in (0, -1)] == ["b00", "b29"]
    low, high = (unpack(edge, chart["scale"]) for edge in learner["blocks"][0]["band"])
    np.testing.assert_allclose(low, 0.8 * values[::3], rtol=1e-4)
    np.testing.assert_allclose(high, 1.2 * values[::3], rtol=1e-4)
    assert "one value in 3 is drawn" in chart["explanation"]


def test_momenta_are_shown_as_their_distance_from_one(tmp_path):
    write_run(tmp_path, "A", 0, measurements={"momentum": {"all": [0.9, 0.99]}}, record_every=2)
    chart = trajectory_chart(load_runs(tmp_path), "momentum")
    np.testing.assert_allclose(unpack(chart["learners"][0]["blocks"][0]["seeds"][0], chart["scale"]), [0.1, 0.01])
    assert trajectory_chart(load_runs(tmp_path), "weight_decay") is None


@pytest.mark.parametrize(("n_blocks", "most", "points"), [(2, 1000, 500), (2, 2_000_000, 1000), (40, 600, 100)])
def test_points_per_line_keep_a_page_small(tmp_path, monkeypatch, n_blocks, most, points):
    monkeypatch.setattr(html_charts, "MAX_VALUES", most)
    write_run(tmp_path, "A", 0, learned=True, config={"blocks": [f"b{i}" for i in range(n_blocks)]})
    assert points_per_line([load_runs(tmp_path)]) == points
