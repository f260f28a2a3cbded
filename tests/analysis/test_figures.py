import itertools
import math
import re
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from continual_metaopt.analysis import figures, load_runs, write_report
from continual_metaopt.analysis.field.figures import accuracy_against_time, ranking_dots
from continual_metaopt.analysis.figures import COLOURS, WIDTHS, ranks, save, sliding_accuracy, step_size_trajectories
from continual_metaopt.analysis.figures.style import _style, label_powers, log_ticks, new_figure

from .synthetic import sawtooth, write_counts, write_regression, write_run, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return load_runs(write_study(tmp_path_factory.mktemp("study")))


def positions(axes):
    """Positions of the vertical lines."""
    *_, lines = (c for c in axes.collections if type(c).__name__ == "LineCollection")
    return [segment[0][0] for segment in lines.get_segments()]


@pytest.mark.parametrize(
    ("draw", "score", "expected"),
    [
        (figures.online_accuracy_by_experience, "online", [[75, 25], [100, 75]]),
        (figures.test_accuracy_by_experience, "test", [[50, 50], [100, 50]]),
    ],
)
def test_accuracy_by_experience(tmp_path, draw, score, expected):
    write_run(tmp_path, "A", 0, [1, 1, 0, 0], test_accuracy=[0.5, 0.75])
    write_run(tmp_path, "A", 1, [1, 0, 1, 0], test_accuracy=[0.5, 0.25])
    correct = [1, 1, 1] if score == "online" else [1, 0]
    write_run(tmp_path, "B", 0, correct, n_samples=4, state="diverged", test_accuracy=[1, None])
    figure = draw(load_runs(tmp_path))
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("experience", f"{score} accuracy (%)")
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == ["A", "B"]
    assert lines[0].get_xdata().tolist() == [1, 2]
    np.testing.assert_allclose([line.get_ydata() for line in lines], expected)
    assert len(axes.collections) == 1  # one seed has no band
    assert figure.get_figwidth() == 3.3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["A", "B"]
    (chosen,) = draw(load_runs(tmp_path), ["B"]).axes[0].get_lines()
    assert (chosen.get_color(), chosen.get_linestyle()) == (lines[1].get_color(), lines[1].get_linestyle())
    assert [line.get_color() for line in lines] == list(COLOURS[:2])


def test_sliding_accuracy(study):
    figure = sliding_accuracy(study, 20)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "sample"
    assert axes.get_ylabel() == "online accuracy (%),\nlast 20 samples"
    assert len(axes.get_lines()) == 3
    assert positions(axes) == [50, 100, 150]
    line = axes.get_lines()[0]
    assert line.get_xdata()[0] == 20
    expected = np.mean([study.correct(path)[:20].mean() for path in study.select(label="Meta").table["path"]])
    assert line.get_ydata()[0] == pytest.approx(100 * expected)
    assert "last 12 samples" in sliding_accuracy(study).axes[0].get_ylabel()  # a quarter of 50
    with pytest.raises(ValueError, match="the window must have 1 to 200 samples, not 201"):
        sliding_accuracy(study, 201)


def test_long_curves_are_thinned_and_many_experiences_show_the_trend(tmp_path):
    write_run(tmp_path, correct=[1, 0] * 1500, n_experiences=30)
    (axes,) = sliding_accuracy(load_runs(tmp_path)).axes
    assert "last 100 samples" in axes.get_ylabel()
    assert 900 < len(axes.get_lines()[0].get_xdata()) <= 1000


def test_step_size_trajectories(study):
    figure = step_size_trajectories(study)
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().strip() for axes in visible] == ["conv", "head", "all"]
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["Meta", "Scalar"]
    assert figure.get_supxlabel() == "sample"
    assert figure.get_supylabel() == "step size"
    assert figure.get_figwidth() == 6.8
    for axes in visible:
        assert axes.get_yscale() == "log"
        assert positions(axes) == [50, 100, 150]
        seeds = axes.collections[-2].get_segments()
        assert (len(seeds), len(axes.get_lines())) == (2, 1)  # and their median
        assert axes.get_xlim() == (0, 200)
    np.testing.assert_allclose(visible[0].get_lines()[0].get_ydata()[[0, 5]], [1e-2, 1e-2])
    assert visible[0].get_ylim() == visible[1].get_ylim()
    assert len([axes for axes in step_size_trajectories(study, ["AdamW"]).axes if axes.get_visible()]) == 1


def test_part_of_the_trajectories(study):
    figure = step_size_trajectories(study, ["Meta"], blocks=["head"], steps=(50, 100), width="column")
    (axes,) = figure.axes
    assert axes.get_xlim() == (50, 100)
    assert axes.get_lines()[0].get_xdata().tolist() == [50, 60, 70, 80, 90, 100]
    with pytest.raises(ValueError, match="'Scalar' has no block 'head'; its blocks are: all"):
        step_size_trajectories(study, blocks=["head"])


def test_the_band_holds_the_middle_half_of_many_step_sizes(tmp_path):
    factors = {"q05": 0.1, "q25": 0.5, "q75": 2.0, "q95": 10.0}
    for seed, scale in ((0, 1.0), (1, 3.0)):
        sizes = {"all": [scale * 1e-3, scale * 2e-3]}
        write_run(tmp_path, "A", seed, n_samples=4, learned=True, step_sizes=sizes, quantiles=factors)
    (axes,) = step_size_trajectories(load_runs(tmp_path)).axes
    (band,) = axes.collections[:1]
    heights = {round(float(y), 9) for y in band.get_paths()[0].vertices[:, 1]}
    assert heights == {1e-3, 2e-3, 4e-3, 8e-3}  # medians 2e-3 and 4e-3, times a half and two


def test_step_sizes_that_are_all_zero_are_drawn_without_complaint(tmp_path):
    write_run(tmp_path, "A", n_samples=4, learned=True, step_sizes={"all": [0.0, 0.0]})
    figure = step_size_trajectories(load_runs(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    assert figure.axes[0].get_yscale() == "log"


@pytest.mark.parametrize(
    ("quantity", "label", "values"),
    [("weight_decay", "weight decay", [0.01, 0.02]), ("momentum", "1 − momentum", [0.1, 0.01])],
)
def test_learned_weight_decays_and_momenta_are_drawn(tmp_path, quantity, label, values):
    learned = {"weight_decay": {"head": [0.01, 0.02]}, "momentum": {"head": [0.9, 0.99]}}
    write_run(tmp_path, "A", n_samples=4, learned=True, step_sizes={"head": [1e-3, 1e-3]}, measurements=learned)
    write_run(tmp_path, "B", n_samples=4, learned=True, step_sizes={"head": [1e-3, 1e-3]})
    runs = load_runs(tmp_path)
    assert figures.has_meta_parameter(runs, quantity)
    figure = figures.meta_parameter_trajectories(runs, quantity)
    (axes,) = figure.axes
    assert figure.get_supylabel() == label
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), values)
    without = runs.select(label="B")
    assert not figures.has_meta_parameter(without, quantity)
    with pytest.raises(ValueError, match=r"no learned (weight decays|momenta) have been recorded for these learners"):
        figures.meta_parameter_trajectories(without, quantity)


def test_many_blocks_are_thinned(tmp_path):
    write_run(tmp_path, "A", learned=True, step_sizes={f"b{i}": [1e-3, 2e-3] for i in range(40)})
    figure = step_size_trajectories(load_runs(tmp_path))
    titles = [axes.get_title().strip() for axes in figure.axes if axes.get_visible()]
    assert len(titles) == 12
    assert (titles[0], titles[-1]) == ("b0", "b39")
    assert figure.axes[0].texts[0].get_text() == "A (12 of 40 blocks)"


def test_trajectories_of_diverged_and_running_runs(tmp_path):
    sizes = {"all": [1e-3, np.inf]}
    write_run(tmp_path, "A", 0, [1, 0], n_samples=4, state="diverged", learned=True, step_sizes=sizes)
    write_run(tmp_path, "A", 1, [1, 0], n_samples=4, state="running", learned=True, step_sizes=sizes, parts=1)
    (axes,) = step_size_trajectories(load_runs(tmp_path)).axes
    low, high = axes.get_ylim()
    assert low < 1e-3 < high < 1


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (figures.online_accuracy_by_experience, (), "none of these runs has come to an end"),
        (step_size_trajectories, (), "no run has learned step sizes"),
        (step_size_trajectories, (["A"],), "no step sizes have been recorded"),
        (sliding_accuracy, (2, ["B"]), "no run is labelled 'B'; the labels are: A"),
        (
            figures.sliding_squared_error,
            (2,),
            "^these runs are of a classification; sliding_accuracy shows how they went$",
        ),
    ],
)
def test_figures_that_do_not_apply(tmp_path, draw, arguments, message):
    write_run(tmp_path, "A", 0, [1], n_samples=4, state="running", parts=1)
    with pytest.raises(ValueError, match=message):
        draw(load_runs(tmp_path), *arguments)


def test_unknown_width(study):
    with pytest.raises(ValueError, match="width must be one of column, text, page, not 'wide'"):
        sliding_accuracy(study, width="wide")


def test_nothing_is_clipped_with_eight_long_labels(tmp_path):
    for place in range(8):
        label = f"MetaOptimize with settings number {place}, and a name that needs more than one line"
        write_run(tmp_path, label, learned=True, step_sizes={"all": [1e-3, 1e-2]})
    runs = load_runs(tmp_path)
    figure = figures.online_accuracy_by_experience(runs)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0
    assert box.y1 < figure.axes[0].get_window_extent().y0
    figure = step_size_trajectories(runs, width="column")
    figure.draw_without_rendering()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent()
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1


def test_save_writes_both_formats_and_leaves_settings_alone(study, tmp_path):
    before = dict(mpl.rcParams)
    figure = figures.online_accuracy_by_experience(study)
    png, pdf = save(figure, tmp_path / "new", "accuracy")
    assert (png, pdf) == (tmp_path / "new" / "accuracy.png", tmp_path / "new" / "accuracy.pdf")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in png.parent.iterdir()) == ["accuracy.pdf", "accuracy.png"]
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def usual(toothed, tmp_path_factory):
    """The bytes of a figure drawn with matplotlib's own settings."""
    (path,) = save(step_size_trajectories(toothed), tmp_path_factory.mktemp("usual"), "usual", ["png"])
    return path.read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"text.usetex": True},
        {"savefig.bbox": "tight", "savefig.facecolor": "black", "savefig.transparent": True},
        {"figure.facecolor": "black", "axes.facecolor": "black", "axes.labelcolor": "white", "font.family": "serif"},
        {"axes.formatter.use_mathtext": True, "axes.formatter.limits": (-1, 1), "figure.dpi": 300, "lines.marker": "o"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_figures_are_the_same_whatever_the_users_settings(toothed, usual, tmp_path, settings):
    with mpl.rc_context(settings):
        (ours,) = save(step_size_trajectories(toothed), tmp_path, "ours", ["png"])
    assert ours.read_bytes() == usual


def test_labels_are_never_read_as_mathematics(tmp_path):
    labels = [r"AdamW $\lr$", "$x$", "$", r"\$5 and $6$", "$_{$", "$\\frac{1}$"]
    for order, label in enumerate(labels):
        write_run(tmp_path, label, 0, [1, 1, 0, 0], config={"order": order}, folder=str(order))
    figure = figures.online_accuracy_by_experience(load_runs(tmp_path))
    save(figure, tmp_path / "out", "accuracy", ["png"])  # lays out every text
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels
    assert not any(text.get_parse_math() for text in figure.findobj(Text))


def test_powers_of_ten_are_plain_text(tmp_path):
    with _style():
        axes = new_figure("column", 2).subplots()
        axes.set_yscale("log")
        label_powers(axes.yaxis, minor_thresholds=(math.inf, math.inf))
        axes.set_ylim(1e-5, 1)
        labels = axes.yaxis.get_major_formatter().format_ticks([1e-5, 3e-4, 1, 10, 2e12])
        label_powers(axes.yaxis)
        axes.set_ylim(0.02, 0.05)
        within_a_decade = axes.yaxis.get_minor_formatter().format_ticks([0.03])
    assert labels == ["10⁻⁵", "3×10⁻⁴", "10⁰", "10¹", "2×10¹²"]
    assert within_a_decade == ["3×10⁻²"]


def test_a_figure_that_cannot_be_drawn_is_a_warning(tmp_path):
    def draw():
        raise RuntimeError("Failed to process string with tex because latex could not be found\nand more")

    message = (
        f"the figure '{tmp_path / 'accuracy'}' cannot be drawn and is left out "
        "(RuntimeError: Failed to process string with tex because latex could not be found)"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        assert figures.draw_and_save(draw, tmp_path, "accuracy") == []


def test_a_report_is_written_without_a_figure_that_cannot_be_drawn(study, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no font")

    monkeypatch.setattr(figures, "sliding_accuracy", fail)
    with pytest.warns(UserWarning, match=r"cannot be drawn and is left out \(RuntimeError: no font\)$"):
        paths = write_report(study.select(label="AdamW"), tmp_path)
    names = {path.name for path in paths}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert {"comparison.csv", "online_accuracy.png", "report.html"} <= names
    assert "sliding_accuracy.png" not in names


@pytest.mark.slow
def test_report(study, tmp_path):
    paths = write_report(study, tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert names[:3] == ["comparison.csv", "comparison.md", "comparison.tex"]
    figures = ["online_accuracy", "sliding_accuracy", "step_sizes"]
    assert names[3:] == [*(f"{name}.{suffix}" for name in figures for suffix in ("png", "pdf", "txt")), "report.html"]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert (
        (tmp_path / "comparison.md")
        .read_text(encoding="utf-8")
        .endswith("No run diverged. “samples/s” is the median over runs.\n")
    )
    assert (tmp_path / "step_sizes.txt").read_text(encoding="utf-8").endswith("below the axis. 2 seeds (0–1).\n")
    tex = (tmp_path / "comparison.tex").read_text(encoding="utf-8").splitlines()
    assert tex[0].startswith("% Mean over 2 seeds")
    assert tex[1].startswith(r"\begin{tabular}")


def test_report_leaves_out_what_does_not_apply(tmp_path):
    write_run(tmp_path / "runs", "A", 0, [1], n_samples=4, state="running", parts=1)
    paths = write_report(load_runs(tmp_path), tmp_path / "out")
    assert [path.name for path in paths] == ["comparison.csv", "comparison.md", "comparison.tex", "report.html"]


@pytest.mark.slow
def test_report_folds_the_step_sizes_of_the_best_learner_with_enough_experiences(tmp_path):
    step_sizes = {"all": [1e-3 * 2 ** (-(step % 16) / 16) for step in range(64)]}
    options = {"n_experiences": 4, "learned": True, "step_sizes": step_sizes}
    write_run(tmp_path / "runs", "best, short", 0, [1] * 64, **options | {"n_experiences": 2})
    write_run(tmp_path / "runs", "good", 0, [1, 1, 0, 1] * 16, **options)
    write_run(tmp_path / "runs", "bad", 0, [1, 0, 0, 0] * 16, **options)
    runs = load_runs(tmp_path)
    assert "sawtooth.pdf" not in {path.name for path in write_report(runs.select(label="best, short"), tmp_path / "a")}
    longer = runs.select(label=["good", "bad"])
    paths = write_report(longer, tmp_path / "b")
    assert {"sawtooth.png", "sawtooth.pdf"} < {path.name for path in paths}
    page = paths[-1].read_text(encoding="utf-8")
    assert page.count("Step sizes over the position within an experience, from boundary to boundary") == 1
    save(figures.folded_sawtooth(longer, "good"), tmp_path, "good", ("png",))
    assert (tmp_path / "good.png").read_bytes() == (tmp_path / "b" / "sawtooth.png").read_bytes()


def test_sliding_squared_error(tmp_path):
    for seed in range(2):
        write_regression(tmp_path, "LMS", seed, [4 + seed] * 40)
        write_regression(tmp_path, "IDBD", seed, [1] * 40 if seed else [1] * 30, n_samples=40, state="diverged")
    figure = figures.sliding_squared_error(load_runs(tmp_path), 10)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sample", "mean squared error,\nlast 10 samples")
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_allclose(lines["LMS"].get_ydata(), 4.5)
    assert lines["LMS"].get_xdata().tolist() == list(range(10, 41))
    drawn = np.isfinite(lines["IDBD"].get_ydata())
    assert drawn.tolist() == [True] * 21 + [False] * 10, "the line ends where a run diverged"
    low, high = axes.get_ylim()
    assert low < 1 < 4.5 < high <= 100


def test_nothing_is_drawn_where_no_run_lasted_for_a_window(tmp_path):
    write_regression(tmp_path, "LMS", 0, [1] * 5, n_samples=40, state="diverged")
    runs = load_runs(tmp_path)
    (axes,) = figures.sliding_squared_error(runs, 10).axes
    assert not np.isfinite(axes.get_lines()[0].get_ydata()).any()
    with pytest.raises(ValueError, match=r"^the window must have 1 to 40 samples, not 41$"):
        figures.sliding_squared_error(runs, 41)


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
    """Two seeds with blocks; "One" has a single step size."""
    root = tmp_path_factory.mktemp("diagnosed")
    steps = np.arange(0, 120, 10)
    for seed in range(2):
        for label, names in {"Many": ["conv1", "conv2"], "One": ["all"]}.items():
            write_run(
                root,
                label,
                seed,
                [1] * 120,
                n_experiences=3,
                step_sizes=dict.fromkeys(names, 0.001 * (1 + steps)),
                measurements={
                    "meta_gradient": dict.fromkeys(names, steps),
                    "gradient_norm": {"conv1": 1.0 + steps, "conv2": 2.0 + steps},
                    "dormant_units": {None: 0.1 + 0 * steps, "conv1": 0.2 + seed * steps / 100},
                    "trace_cosine": {name: np.cos(steps + seed) for name in names},
                },
                record_every=10,
            )
    return load_runs(root)


def test_around_boundaries(diagnosed):
    figure = figures.around_boundaries(diagnosed, "Many")
    labels = [" ".join(axes.get_ylabel().split()) for axes in figure.axes]
    assert labels == ["online accuracy (%)", "step size", "cos(h, g)", "gradient norm", "dormant units (%)"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear", "log", "linear"]
    assert figure.axes[-1].get_xlabel() == "samples since the boundary"
    assert figure.axes[0].get_xlim() == (-10, 30)  # of experiences of 40 samples
    assert figure.get_figwidth() == 3.3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["conv1", "conv2", "whole network"]
    colours = [line.get_color() for line in legend.get_lines()]
    assert colours == [*COLOURS[:2], "black"]

    gradient = figure.axes[3].get_lines()
    assert [line.get_color() for line in gradient[:2]] == colours[:2]
    assert gradient[0].get_xdata().tolist() == [-10, 0, 10, 20]
    np.testing.assert_allclose(gradient[0].get_ydata()[1], np.sqrt(41 * 81))
    assert gradient[-1].get_xdata() == [0, 0]  # marks the boundary
    dormant = figure.axes[4]
    np.testing.assert_allclose(dormant.get_lines()[0].get_ydata(), 10)
    (band,) = (c.get_paths()[0].vertices[:, 1] for c in dormant.collections[1:])
    assert (band.min(), band.max()) == (0, 100)  # shares lie within these, whatever the interval
    assert figure.axes[2].get_ylim()[0] >= -1.2


def test_a_single_step_size_is_the_whole_networks(diagnosed):
    figure = figures.around_boundaries(diagnosed, "One", quantities=["step_size", "gradient_norm"], before=20, after=20)
    assert [axes.get_lines()[0].get_color() for axes in figure.axes] == ["black", COLOURS[0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["conv1", "conv2", "whole network"]


def test_blocks_around_boundaries_can_be_chosen(diagnosed):
    figure = figures.around_boundaries(diagnosed, "Many", blocks=["conv2"], width="page")
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 2, 2, 2, 2]
    assert figure.get_figwidth() == 6.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": ["conv3"]}, "'Many' has recorded nothing of block 'conv3'; its blocks are: conv1, conv2"),
        (
            {"quantities": ["plasticity"]},
            "'Many' has recorded no 'plasticity'; it has: "
            "online_accuracy, step_size, trace_cosine, gradient_norm, dormant_units",
        ),
        ({"label": "None"}, "no run is labelled 'None'; the labels are: Many; One"),
    ],
)
def test_what_cannot_be_drawn_around_boundaries(diagnosed, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        figures.around_boundaries(diagnosed, **{"label": "Many"} | options)


def test_cumulative_accuracy(tmp_path):
    write_run(tmp_path, "A", 0, [1, 1, 0, 0] * 50)
    (axes,) = figures.cumulative_accuracy(load_runs(tmp_path)).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sample", "online accuracy (%),\nall samples so far")
    (line,) = axes.get_lines()
    drawn = dict(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True))
    assert min(drawn) == 3  # a hundredth of the stream, and one
    assert drawn[6] == pytest.approx(100 * 4 / 6)
    assert drawn[200] == 50
    assert positions(axes) == [100]


def test_sensitivity_curves(tmp_path):
    for lr, correct in ((1e-3, [1, 0]), (1e-2, [1, 1]), (1e-1, [0, 0])):
        for seed in range(2):
            learner = {"name": "fixed", "lr": lr}
            write_run(tmp_path, f"AdamW, lr = {lr:g}", seed, correct, config={"learner": learner})
    write_run(tmp_path, "Other, α₀ = 1e-3", 0, config={"learner": {"name": "other", "lr": 1e-3}})
    write_run(tmp_path, "Other, α₀ = 1e-2", 0, config={"learner": {"name": "other", "lr": 1e-2}})
    write_run(tmp_path, "Single", 0, config={"learner": {"name": "single", "lr": 1e-2}})
    runs = load_runs(tmp_path)
    figure = figures.sensitivity_curves(runs)
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["AdamW", "Other"]
    assert axes.get_xscale() == "log"
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_xydata(), [[1e-3, 50], [1e-2, 100], [1e-1, 0]])
    with pytest.raises(ValueError, match=r"^no learner of these runs was run with two values of gamma$"):
        figures.sensitivity_curves(runs, "gamma")


@pytest.fixture(scope="module")
def toothed(tmp_path_factory):
    root = tmp_path_factory.mktemp("toothed")
    for seed in range(2):
        teeth = sawtooth(2000, 5, 1e-3, 1e-2, record_every=10)
        sizes = {"conv": teeth * (1 + seed), "head": teeth**0}
        write_run(root, "A", seed, [1] * 2000, n_experiences=5, learned=True, step_sizes=sizes, record_every=10)
    write_run(root, "B", 0, [1] * 2000, n_experiences=5)
    return load_runs(root)


@pytest.mark.parametrize(("width", "inches"), WIDTHS.items())
def test_folded_sawtooth(toothed, width, inches):
    figure = figures.folded_sawtooth(toothed, "A", shifts=99, width=width)
    assert figure.get_figwidth() == inches
    assert figure.get_supxlabel() == "position within the experience"
    conv, head = figure.axes
    assert [" ".join(axes.get_title().split()).replace(":", "") for axes in (conv, head)] == [
        "conv × 8.91, p = 0.010",  # 19 twentieths of a decade
        "head × 1.00, p = 1.000",
    ]
    assert conv.get_yscale() == "log"
    lines = conv.get_lines()
    assert len(lines) == 5  # four experiences that follow a boundary, and their mean
    np.testing.assert_allclose(lines[-1].get_ydata(), 10 ** (0.475 - 0.05 * np.arange(20)), rtol=0.03)


def test_a_block_of_a_sawtooth_can_be_chosen(toothed):
    assert len(figures.folded_sawtooth(toothed, "A", blocks=["head"], shifts=99).axes) == 1


def test_what_cannot_be_laid_over_each_other(toothed):
    with pytest.raises(ValueError, match=r"^'A' has no block 'tail'; its blocks are: conv, head$"):
        figures.folded_sawtooth(toothed, "A", blocks=["tail"])
    with pytest.raises(ValueError, match=r"^no finished run of 'B' has recorded step sizes$"):
        figures.folded_sawtooth(toothed, "B")


def test_rank_diagram(tmp_path):
    first = [9 - seed % 2 for seed in range(7)]
    counts = {"Good": first, "Fair": [n - 1 for n in first], "Poor": [n - 2 for n in first]}
    runs = load_runs(write_counts(tmp_path, counts))
    figure = figures.rank_diagram(runs)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["Good", "Fair", "Poor"]
    means = [line.get_xdata()[0] for line in axes.get_lines() if line.get_markersize() == 4]
    assert means == [1, 2, 3]
    assert not [line for line in axes.get_lines() if line.get_linewidth() == 1.8]  # all differ: 3 × 2/2⁷ < 0.05
    (note,) = figure.texts
    assert "with 7 seeds p cannot be less than" in " ".join(note.get_text().split())
    figure = figures.rank_diagram(runs.select(seed=[0, 1, 2]))
    (bar,) = [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 1.8]
    assert list(bar.get_ydata()) == [-0.3, 2.3]
    figure.draw_without_rendering()
    box = figure.texts[0].get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.axes[0].get_tightbbox().y0


def test_ranks_of_many_learners_with_long_names_are_legible(tmp_path):
    long = ", weight_decay = 0.01, meta_lr = 0.001, lr = 0.001"
    counts = {f"Learner {place}" + long * (place == 3): [22 - place] * 2 for place in range(22)}
    figure = figures.rank_diagram(load_runs(write_counts(tmp_path, counts, 22)))
    (axes,) = figure.axes
    figure.draw_without_rendering()
    for axis in (axes.xaxis, axes.yaxis):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
    assert figure.texts[0].get_window_extent().y1 <= axes.get_tightbbox().y0
    assert figure.get_figheight() < 6


@pytest.mark.parametrize("width", ["column", "page"])
def test_accuracy_against_time_fits_and_names_whom_none_surpasses_in_less_time(width):
    rows = [
        ("A learner with a name that is long", "untuned", 1.0, 30.0),
        ("Another one with such a name", "tuned", 1.1, 40.0),
        ("Slow and bad", "tuned", 5.0, 35.0),
        ("Slow and good, which is a long name too", "untuned", 20.0, 41.0),
    ]
    table = pd.DataFrame(rows, columns=["learner", "setting", "relative_time", "online_accuracy"])
    table = table.assign(family="MetaOptimize", online_accuracy_ci=[1.0, math.nan, 1.0, 1.0])
    figure = accuracy_against_time(table, width=width)
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]
    named = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()][3:]
    assert named == [f"{n}: {rows[row][0]}, {rows[row][1]}" for n, row in ((1, 0), (2, 1), (3, 3))]
    for box in (axes.get_tightbbox(), figure.legends[0].get_window_extent()):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


def test_captions(study):
    text = figures.caption_of(figures.online_accuracy_by_experience)
    assert text.startswith("Lines are means over seeds of the online accuracy within each experience; bands are 95 %")
    assert "\n" not in text
    assert figures.caption_of(figures.online_accuracy_by_experience, study) == f"{text} 2 seeds (0–1)."
    with pytest.raises(ValueError, match=r"^save has no caption: its docstring needs a paragraph that begins with"):
        figures.caption_of(save)


def test_short_logarithmic_axes_have_several_ticks():
    for low, high in itertools.product((1e-5, 0.7, 3.3), (1.05, 1.5, 8, 40, 1e7)):
        ticks = log_ticks(low, low * high)
        assert 2 <= len(ticks) <= 6
        assert low <= min(ticks) <= max(ticks) <= low * high
    np.testing.assert_allclose(log_ticks(0.68, 1.3), [0.8, 1.0, 1.2])


def test_of_many_learners_the_chosen_have_colours_of_their_own(tmp_path):
    for order in range(10):
        write_run(tmp_path, f"L{order}", 0, [1, 0, 1, 1], config={"order": order})
    (axes,) = sliding_accuracy(load_runs(tmp_path), 2, ["L0", "L1", "L8"]).axes
    assert [line.get_color() for line in axes.get_lines()] == list(COLOURS[:3])


def test_ranks_of_very_many_learners_fit_on_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "MAX_ROWS", 4)
    monkeypatch.setattr(ranks, "ROWS_HEIGHT", 0.5)
    for order, seed in itertools.product(range(6), range(2)):
        write_run(tmp_path, f"L{order}", seed, [1, 0, 1, order % 2], config={"order": order})
    figure = figures.rank_diagram(load_runs(tmp_path))
    assert figure.get_figheight() < 2
    assert len(figure.axes[0].get_yticks()) == 4
    assert figure.texts[0].get_text().startswith("The best 4 of 6 learners.")


def test_a_ranking_of_very_many_learners_fits_on_a_page():
    rows = [
        {"learner": f"L{place}", "setting": "", "family": "other", "untuned": 50.0, "untuned_ci": 1.0}
        | {"untuned_seeds": "", "tuned": math.nan, "tuned_ci": math.nan, "tuned_seeds": ""}
        for place in range(100)
    ]
    table = pd.DataFrame(rows)
    table.attrs["baseline_accuracy"] = 50.0
    figure = ranking_dots(table)
    assert figure.get_figheight() < 9.5
    assert figure.axes[0].get_xlabel().endswith("the best 76 of 100 learners")
    assert figure.axes[0].get_lines()[-1].get_xdata() == [50, 50]


def test_step_sizes_that_never_move_are_named_and_not_drawn(tmp_path):
    write_run(tmp_path, "still", 0, [1] * 4, learned=True, step_sizes={"all": [1.0] * 4})
    write_run(tmp_path, "moving", 0, [1] * 4, learned=True, step_sizes={"all": [1.0, 2.0, 3.0, 4.0]})
    runs = load_runs(tmp_path)
    figure = step_size_trajectories(runs)
    assert len(figure.axes) == 1
    assert figure.get_supxlabel() == "sample\nnot drawn, as they are constant: those of still"
    assert step_size_trajectories(runs, ["still"]).get_supxlabel() == "sample"


def test_maps_have_no_empty_panels(tmp_path):
    for label, lr in (("A", 0.1), ("A", 0.2), ("B", 0.3)):
        learner = {"name": label, "gamma": 1.0, "meta_lr": 0.1, "lr": lr}
        write_run(tmp_path, f"{label}, lr = {lr}", 0, [1, 0], config={"learner": learner})
    figure = figures.sensitivity_maps(load_runs(tmp_path))
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    assert titles == ["A\nα₀ = 0.1", "α₀ = 0.2", "B\nα₀ = 0.3"]
