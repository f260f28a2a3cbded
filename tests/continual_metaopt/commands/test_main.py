"""The command line: what it prints, writes and returns, and what it says about mistakes."""

import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from continual_metaopt import analysis
from continual_metaopt.analysis.__main__ import names_of
from continual_metaopt.commands import main as cli
from continual_metaopt.commands import report
from continual_metaopt.commands.interrupts import NOTHING_BEGUN
from continual_metaopt.runs import preparing
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.outcome import NO_ACCESS, NO_ROOM
from continual_metaopt.streams import STREAMS, plan_stream
from continual_metaopt.study import claim
from continual_metaopt.study import running as study
from continual_metaopt.study.backends import local
from continual_metaopt.study.jobs import RunsFailed, StudyInterrupted
from continual_metaopt.study.lock import study_lock
from continual_metaopt.study.running import StudyResult
from tests.analysis.synthetic import write_counts, write_run
from tests.continual_metaopt.conftest import (
    STREAM,
    InProcess,
    environment,
    files_of,
    known_learners,
    learner_names,
    packaged_study_names,
    read_tables,
    write_study,
)
from tests.streams.synthetic import coded_images, encode, write_parquet
from tests.studies import load_study, run_study

TINY_RUN = [
    "run",
    *("--stream.n-experiences", "2", "--stream.samples-per-experience", "40", "--network.hidden", "8"),
    *("--record-every", "10", "--quiet"),
]
REPORT = {
    *("comparison.csv", "comparison.md", "comparison.tex", "report.html"),
    *("online_accuracy.pdf", "sliding_accuracy.pdf", "step_sizes.pdf"),
}


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    capsys.readouterr()
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do runs without their figures, which take longer."""
    monkeypatch.setattr(report, "_report", lambda *args, **options: None)


# ------------------------------------------------------------------------------------------------------------ list


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "networks",
            [
                "paper_cnn",
                "lenet",
                "resnet18",
                "resnet18_imagenet",
                "vit_tiny",
                "mlp",
                "mlp_300_150",
                "linear",
                "recurrent",
                "transformer",
                "transformer_15m",
            ],
        ),
        ("learners", learner_names()),
        ("studies", packaged_study_names()),
    ],
)
def test_everything_that_can_be_named_is_listed(
    capsys: pytest.CaptureFixture[str], kind: str, names: list[str]
) -> None:
    status, out, err = call(capsys, "list", kind)

    lines = [re.fullmatch(r"(\S+) {2,}(\S.*)", line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert all(lines)
    assert [line[1] for line in lines if line] == names


def test_streams_are_listed_with_what_they_say_about_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "list", "streams")

    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    names = [line.split()[0] for line in out.splitlines()[2:] if line.strip()]
    assert [name for name in names if name in STREAMS.own] == STREAMS.own
    in_table = set(re.findall(r"[^\s,()]+", out))
    for name in STREAMS.own:
        for phrase in asdict(STREAMS[name].about).values():
            assert set(re.findall(r"[^\s,()]+", phrase)) <= in_table, "no word is broken"


def test_streams_that_say_nothing_are_listed_with_their_description(
    capsys: pytest.CaptureFixture[str], offer: Callable[[str, str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STREAMS, "_entries", dict(STREAMS._entries))
    STREAMS.register("mine", "all of [mine]")(lambda seed=0: None)
    offer("continual_metaopt.streams", "theirs", "no_such_package:theirs")

    lines = call(capsys, "list", "streams")[1].splitlines()

    assert lines[-2:] == ["theirs  from no_such_package:theirs", "mine    all of [mine]"]


# ------------------------------------------------------------------------------------------------------------ preview


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["tracking", "--n-samples", "300"], ["preview/tracking_samples.png", "preview/tracking_timeline.png"]),
        (
            [
                *("class_split", "--classes-per-experience", "2", "--stationary", "repeat"),
                *("--seed", "3", "--out", "a/b.svg"),
            ],
            ["a/b_samples.svg", "a/b_timeline.svg"],
        ),
    ],
)
def test_a_preview_is_written_and_told_about(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], files: list[str]
) -> None:
    status, out, err = call(capsys, "preview", *arguments)

    options: dict[str, Any] = {"n_samples": 300}
    if arguments[0] == "class_split":
        options = {"classes_per_experience": 2, "stationary": "repeat", "seed": 3}
    info = plan_stream(arguments[0], **options).info
    n, n_experiences = info.for_learner.n_samples, len(info.experiences)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        *(f"wrote {file}" for file in files),
        f"{n:,} samples, {n_experiences} experience{'s' * (n_experiences != 1)}, "
        f"{info.for_learner.n_outputs} output{'s' * (info.for_learner.n_outputs != 1)}, "
        f"fingerprint {info.fingerprint}",
    ]
    assert sorted(str(file.relative_to(here)) for file in here.rglob("*.*")) == files
    assert all((here / file).stat().st_size > 5000 for file in files)


def interrupted(*args: Any, **options: Any) -> None:
    raise StudyInterrupted


@pytest.mark.usefixtures("in_process")
def test_which_files_are_taken_for_which_split_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [encode(image) for image in coded_images(range(40))]
    names = {"training": "my-train-0.parquet", "test": "my-test.parquet", "validation": "my-val.parquet"}
    for name in names.values():
        write_parquet(here / "images" / name, images, np.arange(40) % 2)
    told = "parquet:images: training: my-train-0.parquet; test: my-test.parquet; validation: my-val.parquet, not used"

    status, out, _ = call(capsys, "preview", "permuted_inputs", "--source", "parquet:images")
    assert (status, out.splitlines()[-1]) == (0, told)
    monkeypatch.setattr(analysis, "write_report", interrupted)  # whose figures take longest
    status, _, err = call(capsys, *TINY_RUN[:-1], "--stream.source", "parquet:images", "--out", "run")
    assert (status, err.splitlines()[0]) == (130, told)
    splits = read_json(here / "run" / "config.json")["stream_info"]["splits"]
    assert splits == names | {"validation": "my-val.parquet, not used"}
    monkeypatch.setattr(study, "run_studies", interrupted)
    path = write_study(here / "tiny.yaml", {"stream": STREAM | {"source": "parquet:images"}})
    status, _, err = call(capsys, "compare", path)
    assert (status, err.splitlines()[1]) == (130, told)


def test_a_preview_of_a_stream_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "own_stream_module.py").write_text(
        "from streams import plan_stream, register_stream\n"
        "@register_stream('own_stream')\n"
        "def own_stream(*, n: int = 40, seed: int = 0):\n"
        "    return plan_stream('tracking', n_samples=n, seed=seed)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(STREAMS, "_entries", dict(STREAMS._entries))
        status, out, _ = call(capsys, "preview", "--imports", "own_stream_module", "--n", "60", "own_stream")

    assert status == 0
    assert "60 samples, 1 experience, 1 output," in out


# ------------------------------------------------------------------------------------------------------ run and report


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_run_leaves_a_directory_and_a_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--learner.lr", "0.005", "--learner.step-sizes", "scalar", "--seed", "3", "--label", "mine")
    status, out, _ = call(capsys, *TINY_RUN, *options)

    (path,) = (here / "runs").iterdir()
    config = read_json(path / "config.json")
    assert status == 0
    assert path.name == f"mine-seed3-{config['run_id']}"
    assert (config["learner"]["lr"], config["learner"]["step_sizes"], config["learner"]["base"]) == (
        0.005,
        "scalar",
        "adamw",
    )
    assert (config["stream"]["n_experiences"], config["network"]["hidden"], config["record_every"]) == (2, [8], 10)
    assert read_json(path / "status.json")["state"] == "finished"
    assert read_tables(path)["samples"].num_rows == 80
    assert {file.name for file in (path / "report").iterdir()} >= REPORT
    assert "mine" in out
    assert f"wrote runs/{path.name}/report/comparison.csv" in out

    files = files_of(path)
    assert call(capsys, *TINY_RUN, *options)[0] == 0
    assert {name: files_of(path)[name] for name in files if "report" not in name} == {
        name: content for name, content in files.items() if "report" not in name
    }


@pytest.mark.slow
@pytest.mark.usefixtures("in_process", "unreported")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--learner.name", "torch:RMSprop", "--learner.lr", "0.01"],
            {"name": "torch:RMSprop", "lr": 0.01, "alpha": 0.99},
        ),
        (["--learner.name=fixed", "--learner.base", "lion"], {"name": "fixed", "base": "lion", "lr": 0.001}),
        (["--learner.name", "torch:Adafactor"], {"name": "torch:Adafactor", "eps": [None, 0.001]}),
        (["--stream.stationary", "repeat"], {"name": "metaoptimize"}),
    ],
)
def test_options_are_those_of_the_learner_that_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: dict[str, Any]
) -> None:
    assert call(capsys, *TINY_RUN, *options, "--no-evaluate", "--out", "out")[0] == 0

    learner = read_json(here / "out" / "config.json")["learner"]
    assert {name: learner[name] for name in expected} == expected
    assert read_json(here / "out" / "config.json")["evaluate"] is False


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_report_of_some_learners_and_columns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label, lr in (("SGD slow", "0.001"), ("SGD fast", "0.1"), ("other", "0.01")):
        arguments = ["--learner.name", "torch:SGD", "--learner.lr", lr, "--label", label, "--out", f"runs/{label}"]
        assert call(capsys, *TINY_RUN, *arguments)[0] == 0

    status, out, _ = call(capsys, "report", "runs", "--learners", "SGD", "--columns", "p (", "rank")

    assert status == 0
    assert [line.split("  ")[0] for line in out.splitlines()[2:5]] == ["SGD fast", "SGD slow", ""]
    assert out.splitlines()[0].split() == ["learner", "p", "(Holm)", "rank"]
    status, _, err = call(capsys, "report", "runs", "--learners", "Adam")
    assert (status, err) == (2, "continual-metaopt: no learner's name begins so; there are SGD fast; SGD slow; other\n")


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["figure", "online-accuracy"], ["online_accuracy.pdf", "online_accuracy.png", "online_accuracy.txt"]),
        (["table", "comparison_table"], ["comparison.csv", "comparison.md", "comparison.tex"]),
    ],
)
def test_figures_and_tables_by_name(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], written: list[str]
) -> None:
    write_counts(here / "runs", {"A": (1, 2), "B": (3, 4)})

    status, out, _ = call(capsys, *arguments, "runs", "--out", "made")

    assert status == 0
    assert sorted(path.name for path in (here / "made").iterdir()) == written
    assert str(Path("made", written[0])) in out


def test_a_shell_completes_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--tyro-print-completion", "bash"])
    script = capsys.readouterr().out
    for name in (*STREAMS, "paper_cnn", "metaoptimize", "figure", "--record-every"):
        assert name in script, name


def test_every_analysis_has_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {kind: call(capsys, kind)[1] for kind in ("figure", "table", "test")}

    for name in names_of(None):
        assert name == "archive" or any(f"\n  {name} " in text for text in listed.values()), name
    status, _, err = call(capsys, "test", "comparison_table", "runs")
    assert (status, err) == (
        2,
        "continual-metaopt test: error: there is no 'comparison_table'; there are comparisons, controls, sawtooth\n",
    )


def test_a_study_is_compared_and_reported_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(here / "tiny.yaml")

    status, out, err = call(capsys, "compare", "tiny.yaml", "--quiet", "--workers", "1")

    assert (status, err) == (0, "")
    assert "lr = 0.01" in out
    assert "learned" in out
    folder = here / "runs" / "tiny"
    assert {path.name for path in folder.iterdir()} == {"study.json", "runs", "selection", "report"}
    assert {path.name for path in (folder / "report").iterdir()} >= REPORT
    # the same table from the records alone
    status, again, err = call(capsys, "report", folder, "--out", "elsewhere")
    assert (status, err) == (0, "")
    assert again == out.replace("runs/tiny/report", "elsewhere")
    assert (here / "elsewhere" / "comparison.csv").read_bytes() == (folder / "report" / "comparison.csv").read_bytes()
    status, out, err = call(capsys, "export", folder, "--format", "parquet", "--purpose", "all")
    tables = ["runs", "samples", "step_sizes", "measurements", "experiences"]
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"wrote {folder}/export/parquet/{name}.parquet" for name in tables]
    assert len(pq.read_table(folder / "export" / "parquet" / "runs.parquet")) == 6
    (folder / "export" / "parquet" / "mine.txt").write_text("")
    refused = "which no export has written; choose another folder, which need not exist"
    message = f"{folder}/export/parquet holds 'mine.txt', {refused}"
    assert call(capsys, "export", folder, "--format", "parquet") == (2, "", f"continual-metaopt: {message}\n")
    status, out, err = call(capsys, "explain", next((folder / "runs").iterdir()))
    assert (status, err) == (0, "")
    assert "\nFinished: all 120 samples in " in out


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_several_networks_are_compared_one_by_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks = [{"label": "small", "name": "mlp", "hidden": [8]}, {"name": "linear"}]
    learners = [{"name": "fixed", "tune": {"lr": [0.001, 0.01]}}]
    write_study(here / "tiny.yaml", {"network": None, "networks": networks, "learners": learners, "seeds": [0]})

    status, out, err = call(capsys, "compare", "tiny.yaml", "--quiet")

    assert (status, err) == (0, "")
    assert [line for line in out.splitlines() if line in ("small", "linear")] == ["small", "linear"]
    folder = here / "runs" / "tiny"
    assert {path.name for path in folder.iterdir()} == {"small", "linear"}
    for name, study_name in (("small", "tiny.small"), ("linear", "tiny.linear")):
        assert {path.name for path in (folder / name).iterdir()} == {"study.json", "runs", "selection", "report"}
        assert (folder / name / "report" / "comparison.csv").exists()
        (run,) = (folder / name / "runs").iterdir()
        assert read_json(run / "config.json")["study"] == study_name
        assert len(list((folder / name / "selection").iterdir())) == 2
    assert call(capsys, "status", folder)[1].startswith(f"{folder}: 6 runs: 6 finished; ")
    again = call(capsys, "report", folder)[1].replace(str(folder), "runs/tiny")
    assert sorted(again.splitlines()) == sorted(out.splitlines())
    # another seed of both
    before = files_of(folder)
    write_study(here / "tiny.yaml", {"network": None, "networks": networks, "learners": learners, "seeds": [0, 1]})
    assert call(capsys, "compare", "tiny.yaml", "--quiet")[0] == 0
    kept = {name: content for name, content in before.items() if "/runs/" in name or "/selection/" in name}
    assert {name: files_of(folder)[name] for name in kept} == kept
    assert call(capsys, "status", folder)[1].startswith(f"{folder}: 8 runs: 8 finished; ")


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--learner.name", "metaoptimise"],
            f"unknown learner 'metaoptimise'. Did you mean 'metaoptimize'? Known: {known_learners()}",
        ),
        (["compare", "--workers", "0"], "--workers must be 1 or more, not 0; leave it out for one per processor"),
        (
            ["compare", "--plan", "--device", "cuda:7"],
            "the device cuda:7 is not possible: PyTorch finds no such device here; use cpu",
        ),
        (
            ["run", "--network.name=mpl"],
            "unknown network 'mpl'. Did you mean 'mlp'? "
            "Known: lenet, linear, mlp, mlp_300_150, paper_cnn, recurrent, resnet18, resnet18_imagenet, transformer, "
            "transformer_15m, vit_tiny",
        ),
        (
            ["run", "--learner.lr", "2"],
            "learner 'metaoptimize': lr = 2.0 is outside lr_bounds = (1e-10, 1.0)",
        ),
        (
            ["preview", "clas_split"],
            f"unknown stream 'clas_split'. Did you mean 'class_split'? Known: {', '.join(sorted(STREAMS.own))}",
        ),
        (
            ["preview", "class_split", "--source", "parquet:nothing"],
            "no parquet file or folder at 'nothing'; give the path of a .parquet file or a folder",
        ),
        (
            ["preview", "class_split", "--classes-per-experience", "3"],
            "10 classes do not divide into experiences of 3; classes_per_experience must be one of 2, 5, 10",
        ),
        (
            ["run", "--imports", "no_such_module", "--quiet"],
            "imports: cannot import 'no_such_module' (ModuleNotFoundError: No module named 'no_such_module')",
        ),
        (["compare", "missing.yaml"], "no study file at 'missing.yaml'"),
        (
            ["compare", "quik"],
            "unknown study 'quik'. Did you mean 'quick'? "
            "Known: cifar10, cifar10_small, class_split, field, imagenet, initial_step_size, published, "
            "published_global, quick, robustness, table2, table3, tables, text, tracking, trajectories, why "
            "(or the path of a .yaml file)",
        ),
        (["report", "nowhere"], "nowhere: no such directory"),
        (["explain", "nowhere"], "nowhere: no such directory"),
        (["export", "."], ".: no run directory (a directory with config.json) here or below"),
        (["report", "."], ".: no run directory (a directory with config.json) here or below"),
    ],
)
def test_mistakes_are_explained_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, out, err = call(capsys, *arguments)

    assert (status, out, err) == (2, "", f"continual-metaopt: {message}\n")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--learner.lrr", "1"], "--learner.lrr"),
        (["run", "--learner.lr", "fast"], "fast"),
        (["run", "--learner.name", "fixed", "--learner.gamma", "1"], "--learner.gamma"),
        (["list", "optimizers"], "optimizers"),
        (["preview", "class_split", "--sead", "1"], "--sead"),
        (["preview", "class_split", "--stationary", "always"], "always"),
        (["preview"], "name of the stream"),
        (["compare", "--sed", "1"], "--sed"),
        (["comapre"], "comapre"),
    ],
)
def test_unknown_arguments_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)

    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stream.source", "parquet:nothing"], "no parquet file or folder at 'nothing'"),
        (["--stream.source", "nothing"], "stream: unknown source 'nothing'"),
        (["--stream.n-experiences", "0"], "stream: n_experiences must be at least 1, not 0"),
        (["--learner.name", "idbd"], "learner 'idbd' cannot be made for the network 'mlp': "),
        (["--learner.name", "replayed_step_sizes"], "learner.trajectory: needed, the directory of a finished run"),
        (["--record-every", "0"], "record_every: Input should be greater than or equal to 10 (given: 0)"),
        (["--seed", "-1"], "seed: Input should be greater than or equal to 0 (given: -1)"),
        (["--out", "file"], "File exists: 'file'"),
        pytest.param(
            ["--device", "cuda"],
            "the device cuda is not possible: PyTorch finds no such device here; use cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is_recorded(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (here / "file").touch()
    status, out, err = call(capsys, "run", *options)

    assert (status, out) == (2, "")
    assert err.startswith(f"continual-metaopt: {said}")
    assert len(err.splitlines()) == 1
    assert [path.name for path in here.iterdir()] == ["file"]


@pytest.mark.usefixtures("in_process")
def test_what_finished_is_reported_beside_what_failed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_stream(*args: Any, plan_stream: Any = preparing.plan_stream, **options: Any) -> Any:
        if options["seed"] == 1:
            raise OSError("the disk is on fire")
        return plan_stream(*args, **options)

    monkeypatch.setattr(preparing, "plan_stream", plan_stream)
    write_study(here / "tiny.yaml", {"learners": [{"name": "fixed"}], "selection_seeds": None})

    status, out, err = call(capsys, "compare", "tiny.yaml", "--quiet", "--seeds", "7", "1", "--out", "my out")

    assert status == 1
    assert sorted(read_json(path)["seed"] for path in here.glob("my out/runs/*/config.json")) == [7]
    assert re.search(r"fixed +\|", out.replace("│", "|")) or "fixed" in out
    assert (here / "my out" / "report" / "comparison.csv").exists()
    (failed,) = (here / "my out" / "runs").glob("*seed1*")
    assert err.splitlines() == [
        "continual-metaopt: 1 of 2 runs failed:",
        f"{failed.relative_to(here)}: OSError: the disk is on fire",
        "This command tries them again: continual-metaopt compare tiny.yaml --quiet --seeds 7 1 --out 'my out'",
    ]
    assert call(capsys, "status", "my out")[0] == 1


@pytest.mark.usefixtures("in_process")
def test_a_study_that_another_command_works_on_has_an_exit_status_of_its_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(here / "tiny.yaml")

    with study_lock(here / "runs" / "tiny"):
        status, out, err = call(capsys, "compare", "tiny.yaml", "--quiet")

    assert (status, out) == (3, "")
    assert err.startswith(f"continual-metaopt: 'runs/tiny' is in use by another command, process {os.getpid()} on ")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), f"No space left on device. {NO_ROOM}"),
        (OSError(errno.EROFS, "Read-only file system", "out"), f"Read-only file system: 'out'. {NO_ACCESS}"),
        (OSError("the socket is gone"), "the socket is gone"),
    ],
)
def test_what_the_disk_does_not_take_is_said_with_what_to_do(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    def write_json(*args: Any) -> None:
        raise error

    write_study(here / "tiny.yaml")
    monkeypatch.setattr(claim, "write_json", write_json)

    assert call(capsys, "compare", "tiny.yaml", "--quiet") == (2, "", f"continual-metaopt: {said}\n")


@pytest.mark.slow
@pytest.mark.usefixtures("in_process", "unreported")
def test_damaged_files_that_were_set_aside_are_told_at_the_end(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *TINY_RUN, "--out", "out")[0] == 0
    (here / "out" / "status.json").write_text("{")

    status, _, err = call(capsys, *TINY_RUN, "--out", "out")

    (note,) = read_json(here / "out" / "status.json")["notes"]
    assert (status, err) == (0, f"noted: {note}\n")
    assert "noted: 'out/status.json' is damaged" in err


@pytest.mark.usefixtures("in_process")
def test_ctrl_c_while_the_report_is_drawn_says_how_to_have_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    write_study(here / "tiny.yaml", {"learners": [{"name": "fixed"}], "selection_seeds": None})
    monkeypatch.setattr(analysis, "write_report", interrupted)

    status, _, err = call(capsys, "compare", "tiny.yaml", "--quiet", "--out", "my out")

    message = "All runs are recorded; this command writes their report: continual-metaopt report 'my out'"
    assert (status, err) == (130, f"Interrupted. {message}\n")


STOPPED = """
import os, signal
from continual_metaopt.commands import entry, interrupts, main as cli

def main():
    interrupts.ctrl_c_raises()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        try:
            os.kill(os.getpid(), getattr(signal, name))
            print(name, "ignored")
        except KeyboardInterrupt:
            print(name, "stopped")
    print(os.environ["MPLBACKEND"])
    return 0

cli.main = main
entry.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("hang_up", ["stopped", "ignored"])
def test_signals_that_ask_to_stop_are_ctrl_c_unless_they_are_to_be_ignored(here: Path, hang_up: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", STOPPED],
        capture_output=True,
        text=True,
        env=environment() | {"MPLBACKEND": "module://a_notebook_s"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if hang_up == "ignored" else signal.SIG_DFL),
    )
    said = f"SIGINT stopped\nSIGTERM stopped\nSIGHUP {hang_up}\nagg\n"
    assert (found.returncode, found.stdout, found.stderr) == (0, said, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_files_are_written_although_the_output_cannot_be(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(here / "DIR", "A", 0, learned=True, step_sizes={"all": [0.1] * 4})

    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        status, _, err = call(capsys, "report", "DIR")

    assert (status, err) == (0, "continual-metaopt: the output cannot be written: No space left on device\n")
    assert {file.name for file in (here / "DIR" / "report").iterdir()} >= REPORT


# Says when the program begins to answer Ctrl-C, and stops at one of the modules that it then imports.
IMPORTED_UP_TO = """
import signal, sys, time
from importlib.abc import MetaPathFinder
from continual_metaopt.commands import entry

class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            print("importing", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
sys.exit(entry.main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("continual_metaopt.commands.main", signal.SIGINT),
        ("pydantic", signal.SIGTERM),
        ("pydantic", signal.SIGHUP),
    ],
)
def test_a_signal_while_the_program_is_imported_is_answered_with_a_sentence(
    here: Path, module: str, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTED_UP_TO, module],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (130, f"\n{NOTHING_BEGUN}\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no head")
@pytest.mark.parametrize("arguments", ["list streams", "report DIR"])
def test_a_reader_that_has_seen_enough_is_no_mistake(here: Path, arguments: str) -> None:
    write_run(here / "DIR", "A", 0, learned=True, step_sizes={"all": [0.1] * 4})
    command = f"{shlex.quote(sys.executable)} -m continual_metaopt {arguments}"

    found = subprocess.run(
        ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=environment(),
    )

    assert (found.stdout, found.stderr) == ("0\n", "")
    if "DIR" in arguments:
        assert {file.name for file in (here / "DIR" / "report").iterdir()} >= REPORT


def test_a_report_that_cannot_be_written_does_not_hide_what_failed(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path("out", "runs", "a")
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text("{}")

    def fail(*args: Any, **options: Any) -> None:
        raise RunsFailed({run: "its reason"}, 1, runs=[run])

    def no_room(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(study, "run_studies", fail)
    monkeypatch.setattr(report, "_report", no_room)

    assert call(capsys, "compare", "--quiet", "--out", "out") == (
        1,
        "",
        f"continual-metaopt: there is no report: No space left on device. {NO_ROOM}\n"
        f"continual-metaopt: 1 of 1 runs failed:\n{run}: its reason\n"
        "This command tries them again: continual-metaopt compare --quiet --out out\n",
    )


@pytest.mark.parametrize("command", [["run"], ["compare", "--quiet"]])
def test_interruptions_have_an_exit_status_of_their_own(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    begun: list[Path] = []

    def interrupted(*args: Any, **options: Any) -> None:
        for run in begun:
            run.mkdir(parents=True)
            (run / "status.json").write_text("{}")
        raise StudyInterrupted

    monkeypatch.setattr(study, "run_studies", interrupted)
    monkeypatch.setattr(study, "run_jobs", interrupted)

    assert call(capsys, *command, "--out", "out") == (130, "", f"{NOTHING_BEGUN}\n")
    begun.append(here / "out" / "runs" / "of_one_seed")
    message = "Interrupted. All samples so far are recorded; the same command goes on from there.\n"
    assert call(capsys, *command, "--out", "out") == (130, "", message)


# --------------------------------------------------------------------------------------------------- separate processes


WITHOUT_TORCH = """
import contextlib, os, sys
from continual_metaopt.commands.main import main

for command in sys.argv[1:]:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.suppress(SystemExit):
        assert main(command.split()) == 0
    assert not {"torch", "avalanche"} & sys.modules.keys(), command
"""


@pytest.mark.slow
def test_what_does_not_learn_does_not_import_torch(here: Path) -> None:
    write_run(here, "A", 0, learned=True, step_sizes={"all": [0.1] * 4}, folder="DIR")
    commands = ["--help", "compare --help", "reproduce --help", "list streams", "list learners", "list studies"]
    commands += ["preview class_split --classes-per-experience 5", "preview --help", "run --help"]
    commands += ["run --stream.name permuted_inputs --learner.name upgd --network.name resnet18 --help"]
    commands += [f"{name} DIR" for name in ("report", "status", "explain", "export")]

    command = [sys.executable, "-c", WITHOUT_TORCH, *commands]
    found = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)

    assert (found.returncode, found.stderr) == (0, "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyResult]:
    """A study long enough to be stopped, and its result if it is not."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_study(
        folder / "tiny.yaml",
        {
            "stream": {"name": "permuted_inputs", "n_experiences": 12, "samples_per_experience": 1400},
            "network": {"name": "mlp", "hidden": [128]},
            "learners": [{"name": "metaoptimize", "lr": 0.001}],
            "selection_seeds": None,
            "evaluate": False,
        },
    )
    return path, run_study(load_study(path), folder / "whole", threads=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_study_that_was_interrupted_and_killed_goes_on_with_the_same_command(
    here: Path, whole: tuple[Path, StudyResult]
) -> None:
    path, expected = whole
    command = [sys.executable, "-m", "continual_metaopt.commands.main", "compare", str(path)]
    command += ["--out", "out", "--workers", "2"]

    def statuses() -> list[dict[str, Any]]:
        return [read_json(file) for file in here.glob("out/runs/*/status.json")]

    def n_running() -> int:
        return sum(status["state"] == "running" for status in statuses())

    with started(command) as process:
        until(lambda: n_running() == 2, process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "Interrupted. All samples so far are recorded; the same command goes on from there."
    stopped = statuses()
    assert {(status["state"], status["reason"]) for status in stopped} == {("failed", "interrupted by the user")}
    assert all(0 < status["step"] < 16800 for status in stopped)

    with started(command) as process:
        until(lambda: n_running() > 0, process)
        stopped += statuses()
        process.kill()  # its workers live on for a moment: the next command has to wait for them
        process.wait()
        again = subprocess.run([*command, "--quiet"], capture_output=True, text=True, env=environment(), timeout=300)

    assert (again.returncode, again.stderr) == (0, "")
    for status in stopped:  # nothing was left running
        with pytest.raises(ProcessLookupError):
            os.kill(status["owner"]["pid"], 0)
    for run in expected.runs:
        ours, theirs = here / "out" / "runs" / run.name, read_tables(run)
        assert all(read_tables(ours)[name].equals(table) for name, table in theirs.items())
        assert read_json(ours / "status.json")["notes"] == []
        assert {file.name for file in ours.iterdir()} == {file.name for file in run.iterdir()}


@contextmanager
def started(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """A command under way, in a group of processes of its own, which does not outlive the test."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        # a shell lets what it starts in the background ignore Ctrl-C, and that would be inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(condition: Any, process: "subprocess.Popen[str]", seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


OWN_MODULE = """
import torch
from continual_metaopt import blocks, register_learner

@register_learner("own_sgd", "plain SGD under a name of one's own")
def own_sgd(model, *, rate: float = 0.1):
    return torch.optim.SGD(blocks(model, "scalar"), rate)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
def test_a_learner_from_a_module_of_one_s_own(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "own_module.py").write_text(OWN_MODULE)
    (here / "study.yaml").write_text(
        "name: own\nimports: [own_module]\nnetwork: {name: mlp}\nseeds: [0]\nlearners: [{name: own_sgd, rate: 0.05}]\n"
        "stream: {name: permuted_inputs, n_experiences: 1, samples_per_experience: 30}\n"
    )
    command = [sys.executable, "-m", "continual_metaopt.commands.main", "compare", "study.yaml", "--quiet"]
    compared = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert "own_sgd" in compared.stdout
    monkeypatch.setattr(local, "_Process", InProcess)
    learner = ("--imports", "own_module", "--learner.name", "own_sgd", "--learner.rate", "0.2")
    assert "own_sgd" in call(capsys, *TINY_RUN, *learner)[1]
    rates = {read_json(path)["learner"]["rate"] for path in here.glob("runs/**/config.json")}
    assert rates == {0.05, 0.2}


@pytest.mark.slow
def test_report_of_several_streams(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(here / "runs", "A", 0)
    write_run(here / "runs", "A", 1, stream_info={"stationary": "repeat"})
    status, printed, _ = call(capsys, "report", here / "runs", "--out", here / "out")
    assert status == 0
    assert re.findall("^class_split v1, .*$", printed, re.MULTILINE) == [
        "class_split v1, stationary=none",
        "class_split v1, stationary=repeat",
    ]
    assert f"wrote {here / 'out' / 'report.html'}\n" in printed


def test_report_compares_the_runs_of_several_folders(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, label, n_correct in (("mine", "A", 3), ("theirs", "B", 1)):
        for seed in (0, 1):
            write_run(here / folder, label, seed, [1] * n_correct + [0] * (4 - n_correct))

    status, printed, _ = call(capsys, "report", "mine", "theirs")

    assert status == 0
    assert "Differences from “A”" in printed
    assert [line.split()[:5] for line in printed.splitlines() if line[:2] in ("A ", "B ")] == [
        ["A", "2", "75.0", "±", "0.0"],
        ["B", "2", "25.0", "±", "0.0"],
    ]
    assert "−50.0 ± 0.0" in printed
    assert "wrote report/report.html\n" in printed
    write_run(here / "changed", "C", 0, [1, 1, 1, 1], stream_info={"fingerprint": "another"})
    status, printed, err = call(capsys, "report", "mine", "changed", "--out", "elsewhere")
    assert (status, printed) == (2, "")
    assert "both have seed 0, but did not see the same samples in the same order" in err
    assert not (here / "elsewhere").exists()


@pytest.mark.parametrize(
    ("command", "link"),
    [("report", "report"), ("export", "export"), ("export", "export/csv"), ("report", "part/report")],
)
def test_nothing_is_written_through_links_in_a_folder_of_records(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, link: str
) -> None:
    write_run(here / "theirs" / ("part" if "part" in link else ""), "A", 0)
    (here / "theirs" / Path(link).parent).mkdir(exist_ok=True)
    if "part" in link:
        (here / "theirs" / "part" / "study.json").write_text("{}")
    (here / "mine").mkdir()
    (here / "theirs" / link).symlink_to(here / "mine")

    status, _, err = call(capsys, command, here / "theirs")

    assert status == 2
    assert re.search(rf"^continual-metaopt: '?{re.escape(str(here / 'theirs' / link))}'? is a link, ", err)
    assert not any((here / "mine").iterdir())


def test_parts_of_a_study_that_are_links_are_not_reported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(here / "mine", "A", 0)
    (here / "mine" / "study.json").write_text("{}")
    (here / "theirs").mkdir()
    (here / "theirs" / "part").symlink_to(here / "mine")

    message = "continual-metaopt: theirs: no run directory (a directory with config.json) here or below\n"
    assert call(capsys, "report", "theirs") == (2, "", message)


def test_a_home_is_spelt_out_everywhere(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    write_run(here / "home" / "runs", "A", 0)

    assert call(capsys, "export", "~/runs", "--out=~/tables")[0] == 0

    assert (here / "home" / "tables" / "runs.csv").exists()
    assert [path.name for path in here.iterdir()] == ["home"]


def test_a_single_run_is_not_put_into_a_study_s_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(here / "study" / "runs", "A", 0)
    (here / "study" / "study.json").write_text("{}")
    before = files_of(here)

    message = "'study' is a study's folder; choose another folder with --out, which need not exist"
    assert call(capsys, *TINY_RUN, "--out", "study") == (2, "", f"continual-metaopt: {message}\n")

    assert files_of(here) == before


@pytest.mark.slow
def test_pipes_and_devices_are_not_waited_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "status.json", "samples.parquet", "step_sizes.parquet"):
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            run = write_run(here / "runs", "A", 0, learned=True, step_sizes={"all": [0.1] * 4})
            (run / name).unlink()
            make(run / name)
            for command, where in (("status", "runs"), ("explain", run), ("report", "runs"), ("export", "runs")):
                said = "".join(map(str, call(capsys, command, where)[1:]))
                assert "Traceback" not in said
            shutil.rmtree(here / "runs")


@pytest.mark.usefixtures("in_process")
def test_failed_runs_have_an_exit_status_of_their_own(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_stream(*args: Any, **options: Any) -> None:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(preparing, "plan_stream", plan_stream)
    status, out, err = call(capsys, *TINY_RUN, "--out", "my out")

    assert (status, out) == (1, "")
    assert err.splitlines() == [
        "continual-metaopt: 1 of 1 runs failed:",
        "my out: OSError: the disk is on fire",
        f"This command tries them again: {shlex.join(['continual-metaopt', *TINY_RUN, '--out', 'my out'])}",
    ]
