import subprocess
import sys

import pytest

from analysis.scripts import comparison_table, meta_parameters, online_accuracy, sliding_accuracy, step_sizes

from .synthetic import write_run, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return str(write_study(tmp_path_factory.mktemp("study")))


@pytest.mark.parametrize(
    ("script", "options", "name"),
    [
        (online_accuracy, ["--learners", "Meta", "AdamW", "--diverged", "exclude"], "online_accuracy"),
        (sliding_accuracy, ["--window", "10", "--width", "full"], "sliding_accuracy"),
        (step_sizes, ["--learners", "Meta", "--blocks", "head", "--steps", "0", "100"], "step_sizes"),
    ],
)
def test_figures(script, options, name, study, tmp_path, capsys):
    assert script.main([study, "--out", str(tmp_path / "out"), *options]) == 0
    expected = [tmp_path / "out" / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in expected]
    assert all(path.stat().st_size > 1000 for path in expected)


def test_comparison_table(study, tmp_path, capsys):
    assert comparison_table.main([study, "--out", str(tmp_path), "--baseline", "Scalar"]) == 0
    output = capsys.readouterr().out
    assert "− Scalar" in output
    assert "Mean over 2 seeds" in output
    written = [str(tmp_path / f"comparison.{suffix}") for suffix in ("csv", "md", "tex")]
    assert output.splitlines()[-3:] == written


def test_several_streams(tmp_path, capsys):
    write_run(tmp_path, "A", 0)
    write_run(tmp_path, "A", 1, stream_info={"stationary": "repeat"})
    assert comparison_table.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "class_split-v1-stationary-repeat\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (step_sizes, ["--learners", "Lion"], "no run is labelled 'Lion'; the labels are: Meta; Scalar; AdamW"),
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


def test_learned_meta_parameters_are_drawn(tmp_path, capsys):
    write_run(tmp_path / "runs", "A", step_sizes={"all": [1e-3]}, measurements={"momentum": {"all": [0.9, 0.8]}})
    assert meta_parameters.main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.p*")) == ["momentum.pdf", "momentum.png"]
    write_run(tmp_path / "others", "A", step_sizes={"all": [1e-3]})
    assert meta_parameters.main([str(tmp_path / "others"), "--out", str(tmp_path)]) != 0
    assert "no learned weight decays or momenta have been recorded" in capsys.readouterr().err
