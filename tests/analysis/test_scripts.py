import subprocess
import sys
from pathlib import Path

import pytest

from continual_metaopt.analysis.__main__ import main as by_name
from continual_metaopt.analysis.scripts import (
    around_boundaries,
    comparison_table,
    comparisons,
    cumulative_accuracy,
    initial_step_size,
    meta_parameters,
    online_accuracy,
    rank_diagram,
    sawtooth,
    sensitivity,
    sliding_accuracy,
    squared_error,
    step_sizes,
)
from continual_metaopt.analysis.scripts import test_accuracy as of_tests

from .synthetic import write_counts, write_regression, write_run, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return str(write_study(tmp_path_factory.mktemp("study")))


@pytest.mark.parametrize(
    ("script", "options", "name"),
    [
        (online_accuracy, ["--learners", "Meta", "AdamW", "--diverged", "exclude"], "online_accuracy"),
        (sliding_accuracy, ["--window", "10", "--width", "page"], "sliding_accuracy"),
        (cumulative_accuracy, ["--width", "text"], "cumulative_accuracy"),
        (rank_diagram, ["--test", "t"], "rank_diagram"),
        (step_sizes, ["--learners", "Meta", "--blocks", "head", "--steps", "0", "100"], "step_sizes"),
        (
            around_boundaries,
            ["--learners", "Meta", "--quantities", "step_size", "--blocks", "head", "--before", "20", "--after", "30"],
            "around_boundaries_Meta",
        ),
    ],
)
def test_figures(script, options, name, study, tmp_path, capsys):
    assert script.main([study, "--out", str(tmp_path / "out"), *options]) == 0
    expected = [tmp_path / "out" / f"{name}.{suffix}" for suffix in ("png", "pdf", "txt")]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in expected]
    assert all(path.stat().st_size > 1000 for path in expected[:2])


def test_test_accuracy(study, tmp_path, capsys):
    out = tmp_path / "out"
    assert of_tests.main([study, "--out", str(out), "--learners", "Meta", "--format", "png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["learner", "task 1", "task 2", "task 3", "task 4"]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["Meta", *["50.0 ± 0.0"] * 4]
    assert lines[4].endswith("interval. 2 seeds (0–1).")
    assert lines[-3:] == [str(out / f"test_accuracy.{suffix}") for suffix in ("csv", "png", "txt")]
    rows = (out / "test_accuracy.csv").read_text().splitlines()
    assert rows[:2] == ["label,seed,experience,test_accuracy", "Meta,0,0,0.5"]
    assert len(rows) == 1 + 2 * 4


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (of_tests, [], "none of these runs recorded a test accuracy, so there is nothing to draw"),
        (meta_parameters, [], "no learned weight decays or momenta have been recorded"),
        (initial_step_size, ["--purpose", "report"], "of none of these learners a single option was tried"),
    ],
)
def test_runs_without_what_a_script_is_about(script, options, message, tmp_path, capsys):
    write_run(tmp_path, "A", step_sizes={"all": [1e-3]})
    assert script.main([str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_format_and_caption(study, tmp_path, capsys):
    assert online_accuracy.main([study, "--out", str(tmp_path), "--format", "svg"]) == 0
    expected = [tmp_path / "online_accuracy.svg", tmp_path / "online_accuracy.txt"]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in expected]
    text = expected[1].read_text(encoding="utf-8")
    assert text.startswith("Lines are means over seeds")
    assert text.endswith(". 2 seeds (0–1).\n")


def test_sawtooth(tmp_path, capsys):
    teeth = [10 ** -(place % 40 / 40) for place in range(200)]
    for seed in range(2):
        write_run(tmp_path, "A", seed, [1] * 200, n_experiences=5, learned=True, step_sizes={"all": teeth})
    options = ["--out", str(tmp_path / "out"), "--bins", "4", "--shifts", "19", "--format", "png"]
    assert sawtooth.main([str(tmp_path), *options]) == 0
    output = capsys.readouterr().out
    row = next(line for line in output.splitlines() if line.startswith("A ")).split()
    assert row[:6] == ["A", "all", "2", "0.75", "±", "0.00"]
    assert row[7] == "0.050"
    assert "95 % quantile of the amplitude when boundaries are shifted" in output
    names = ["sawtooth.csv", "sawtooth.md", "sawtooth.tex", "sawtooth_A.png", "sawtooth_A.txt"]
    assert output.splitlines()[-5:] == [str(tmp_path / "out" / name) for name in names]
    header, first = (tmp_path / "out" / "sawtooth.csv").read_text().splitlines()
    assert header.startswith(
        "learner,block,seeds,experiences,amplitude,amplitude_ci,chance_amplitude,peak,trough,rise,"
    )
    assert first.startswith("A,all,2,4,0.75,")


def test_comparisons(study, tmp_path, capsys):
    assert comparisons.main([study, "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "with 2 seeds p cannot be less than 0.5, and corrected for 2 comparisons (Holm) not less than 1" in output
    assert "Friedman's test that all are equal" in output
    names = [
        f"{name}.{suffix}" for name in ("summary", "paired_comparisons", "ranks") for suffix in ("csv", "md", "tex")
    ]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    rows = (tmp_path / "paired_comparisons.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["Meta", "AdamW"], ["Scalar", "AdamW"]]
    assert (tmp_path / "ranks.md").read_text(encoding="utf-8").startswith("| learner ")


def test_sensitivity(tmp_path, capsys):
    for number, (gamma, lr) in enumerate([(0.9, 1e-3), (0.9, 1e-2), (1.0, 1e-3)]):
        learner = {"name": "metaoptimize", "gamma": gamma, "meta_lr": 0.01, "lr": lr}
        label = f"Meta, gamma = {gamma}, lr = {lr}"
        write_run(tmp_path, label, correct=[1] * number + [0] * (4 - number), config={"learner": learner})
    write_run(tmp_path, "Fixed", config={"learner": {"name": "fixed", "lr": 1e-3}})
    assert sensitivity.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert [line.rsplit(".", 1)[-1] for line in output.splitlines()[-4:]] == ["png", "pdf", "txt", "csv"]
    assert [line.split()[-6:] for line in output.splitlines() if line.startswith("Meta")] == [
        ["1", "0.01", "50.0", "50.0", "0.0", "0.001"],
        ["0.9", "0.01", "0.0", "25.0", "25.0", "0.01"],
    ]
    assert "The largest lr is the best in 1 of 2 rows: Meta 1 of 2\n" in output
    assert (tmp_path / "out" / "sensitivity.csv").read_text().splitlines() == [
        "label,gamma,meta_lr,lr,n_runs,n_diverged,online_accuracy",
        "Meta,0.9,0.01,0.001,1,0,0",
        "Meta,0.9,0.01,0.01,1,0,0.25",
        "Meta,1,0.01,0.001,1,0,0.5",
    ]


def test_comparison_table(study, tmp_path, capsys):
    assert comparison_table.main([study, "--out", str(tmp_path), "--baseline", "Scalar"]) == 0
    output = capsys.readouterr().out
    assert "− Scalar" in output
    assert "Mean over 2 seeds" in output
    written = [str(tmp_path / f"comparison.{suffix}") for suffix in ("csv", "md", "tex")]
    assert output.splitlines()[-3:] == written


def test_squared_errors(tmp_path, capsys):
    for seed in range(2):
        write_regression(tmp_path, "LMS", seed, [9, 4 + seed, 2, 2])
    options = ["--window", "2", "--burn-in", "2", "--out", str(tmp_path / "out")]
    assert squared_error.main([str(tmp_path), *options]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mean squared error after 2 samples, ± 95 % interval over seeds",
        "LMS: 2.000 ± 0.000 (2 seeds)",
        *(str(tmp_path / "out" / f"squared_error.{suffix}") for suffix in ("png", "pdf", "txt")),
    ]


def test_several_streams(tmp_path, capsys):
    write_run(tmp_path, "A", 0)
    write_run(tmp_path, "A", 1, stream_info={"stationary": "repeat"})
    assert comparison_table.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "class_split-v1-stationary-repeat\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (step_sizes, ["--learners", "Lion"], "no run is labelled 'Lion'; the labels are: Meta; Scalar; AdamW"),
        (sensitivity, ["--settings", "a", "b", "c"], "no learner of these runs has numbers for a, b, c"),
        (sliding_accuracy, ["--window", "0"], "the window must have 1 to 200 samples, not 0"),
        (comparison_table, ["--purpose", "selection"], "none of the 6 runs found has the purpose 'selection'"),
    ],
)
def test_errors_are_one_line(script, options, message, study, tmp_path, capsys):
    assert script.main([study, "--out", str(tmp_path), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    name = script.__name__.rsplit(".", 1)[-1]
    assert line.startswith(f"python -m analysis.scripts.{name}: error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_as_a_module(tmp_path):
    command = [sys.executable, "-m", "analysis.scripts.online_accuracy", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"python -m analysis.scripts.online_accuracy: error: {tmp_path / 'none'}: no such directory\n"


def test_by_the_name_of_the_script(tmp_path, capsys):
    assert by_name([]) == 0
    listed = capsys.readouterr()
    assert listed.err == ""
    assert "  online_accuracy        Draw the online accuracy in each experience.\n" in listed.out
    scripts = list((Path(__file__).parents[2] / "analysis" / "scripts").glob("[!_]*.py"))
    assert len(listed.out.splitlines()) == 2 + len(scripts)
    assert by_name(["online_accuracy", str(tmp_path / "none")]) == 2
    message = f"python -m analysis online_accuracy: error: {tmp_path / 'none'}: no such directory\n"
    assert capsys.readouterr().err == message
    assert by_name(["accuracy"]) == 2
    expected = "python -m analysis: error: there is no 'accuracy'; there are accuracy_against_"
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.parametrize("package", ["analysis", "continual_metaopt.analysis"])
def test_the_packages_run_scripts(package, study, tmp_path):
    command = [sys.executable, "-m", package, "comparison_table", study, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "comparison.tex")


def test_initial_step_sizes(tmp_path, capsys):
    for order, (learner, option) in enumerate([("AdamW", "lr"), ("Prodigy", "d0")]):
        content = {"entry": learner, "order": order, "tuned": [option], "purpose": "selection"}
        for value, counts in ((1e-4, (1, 2)), (1e-3, (3, 4))):
            config = content | {"learner": {"name": learner.lower(), option: value}}
            write_counts(tmp_path, {f"{learner}, {option} = {value}": counts}, 4, config=config)
    config = {"tuned": ["lr", "beta"], "purpose": "selection", "learner": {"name": "two", "lr": 1.0, "beta": 0.5}}
    write_run(tmp_path, "two options", 100, config=config)

    assert initial_step_size.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0

    names = [line.rsplit("/", 1)[-1] for line in capsys.readouterr().out.splitlines()[-6:]]
    assert names == [f"initial_step_size.{suffix}" for suffix in ("csv", "md", "tex", "png", "pdf", "txt")]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "out" / "initial_step_size.md").read_text().splitlines()
    ]
    assert rows[0] == ["learner", "option", "0.0001", "0.001", "lost"]
    assert rows[2:4] == [["AdamW", "lr", "37.5", "87.5", "50.0"], ["Prodigy", "d0", "37.5", "87.5", "50.0"]]


def test_a_reader_that_has_seen_enough_is_no_mistake(study, tmp_path):
    command = [sys.executable, "-m", "analysis.scripts.comparison_table", study, "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (0, "")
    assert (tmp_path / "comparison.csv").exists()
