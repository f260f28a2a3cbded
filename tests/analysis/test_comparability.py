"""Whatever averages, pairs or draws runs together refuses those that did not see equal samples in equal order."""

import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from continual_metaopt.analysis import comparison_table, figures, load_runs, scripts, write_report
from continual_metaopt.analysis.comparisons import paired_comparisons, rank_learners, summary_table
from continual_metaopt.analysis.sawtooth import sawtooth_table
from continual_metaopt.analysis.statistics import (
    accuracy_by_setting,
    accuracy_over_setting,
    best_fixed,
    paired_differences,
)

from .synthetic import write_regression, write_run

SETTINGS = ("gamma", "meta_lr", "lr")

# Everything that takes several runs and makes one result of them.
STATISTICS = {
    "comparison_table": comparison_table,
    "paired_differences": lambda runs: paired_differences(runs, "A (tuned)"),
    "best_fixed": best_fixed,
    "accuracy_over_setting": lambda runs: accuracy_over_setting(runs, "lr"),
    "paired_comparisons": lambda runs: paired_comparisons(runs, "A (tuned)"),
    "rank_learners": rank_learners,
    "summary_table": summary_table,
    "sawtooth_table": sawtooth_table,
    "accuracy_by_setting": lambda runs: accuracy_by_setting(runs, SETTINGS),
}
FIGURES = {
    "online_accuracy_by_experience": figures.online_accuracy_by_experience,
    "sliding_accuracy": figures.sliding_accuracy,
    "cumulative_accuracy": figures.cumulative_accuracy,
    "sliding_bits_per_byte": figures.sliding_bits_per_byte,
    "sliding_squared_error": lambda runs: figures.sliding_squared_error(runs, 2),
    "step_size_trajectories": figures.step_size_trajectories,
    "meta_parameter_trajectories": lambda runs: figures.meta_parameter_trajectories(runs, "momentum"),
    "folded_sawtooth": lambda runs: figures.folded_sawtooth(runs, "A (tuned)"),
    "rank_diagram": figures.rank_diagram,
    "sensitivity_curves": figures.sensitivity_curves,
    "sensitivity_maps": figures.sensitivity_maps,
    "around_boundaries": lambda runs: figures.around_boundaries(runs, "A (tuned)"),
    "test_accuracy_by_experience": lambda runs: figures.test_accuracy_by_experience(runs),
}
OF_ONE_STUDY = {"published_cumulative_accuracy", "published_step_sizes", "published_test_accuracy"}  # test_published.py
SCRIPT_OPTIONS = {
    "squared_error": ["--window", "2"],
    "comparisons": ["--baseline", "A (tuned)"],
    "accuracy_against_cost": ["--reference", "A"],
    "initial_step_size": ["--purpose", "report"],
}
OF_ONE_DEFINITION = {"reproduction"}  # it takes only runs of certain studies
COPYING = {"archive"}  # it keeps each run as it is and makes no result of them
SCRIPTS = sorted(
    {module.name for module in pkgutil.iter_modules(scripts.__path__) if not module.name.startswith("_")}
    - OF_ONE_DEFINITION
    - COPYING
)


def write_two(root: Path, *stream_infos: dict[str, object], seeds: tuple[int, int] = (0, 0), regression=False) -> None:
    """Runs of the learners A and B with these differences in what is recorded of their streams."""
    records = {
        "step_sizes": {"all": [1e-3] * 24},
        "measurements": {"momentum": {"all": [0.9, 0.8] * 12}},
        "learned": True,
        "n_experiences": 3,
    }
    if not regression:
        records["test_accuracy"] = [0.5] * 3
    write = write_regression if regression else write_run
    for label, lr, seed, stream_info in zip("AB", (1e-3, 1e-2), seeds, stream_infos, strict=True):
        learner = {"name": "metaoptimize", "gamma": 0.9, "meta_lr": 0.01, "lr": lr}
        content = {"learner": learner, "entry": label, "tuned": ["lr"]}
        write(root, label, 100, [1, 0, 1, 1] * 6, config=content | {"purpose": "selection"}, **records)
        path = write(root, label, seed, [1, 0, 1, 1] * 6, config=content, **records) / "config.json"
        config = json.loads(path.read_text())
        config["stream_info"] |= stream_info
        path.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the folder of two runs, of a classification, a regression or text, whose streams are equal or not."""

    @cache
    def write(*, equal: bool, regression: bool = False, text: bool = False) -> Path:
        root = tmp_path_factory.mktemp("runs")
        first: dict[str, object] = {"bytes_per_sample": 1.0} if text else {}
        write_two(root, first, first if equal else first | {"fingerprint": "another"}, regression=regression)
        return root

    return write


def refusal(root: Path) -> str:
    return (
        f"{root / 'A-0'} and {root / 'B-0'} both have seed 0, but did not see the same samples in the same order: "
        'stream_info.fingerprint is "stream-0" and "another"; nothing else that is recorded differs, so the stored '
        "images or the stream's code have changed. They cannot be compared: leave one of them out, or move it "
        "elsewhere and repeat the run"
    )


@pytest.mark.parametrize("name", [*STATISTICS, *FIGURES])
def test_equal_seeds_with_other_samples_are_refused(name, written):
    combine = (STATISTICS | FIGURES)[name]
    kind = {"regression": "squared" in name, "text": "bits" in name}
    equal, unequal = (written(equal=equal, **kind) for equal in (True, False))
    combine(load_runs(equal))
    with pytest.raises(ValueError, match=f"^{re.escape(refusal(unequal))}$"):
        combine(load_runs(unequal / "A-0", unequal / "B-0"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_refuse_them_too(name, written, tmp_path, capsys):
    main = import_module(f"continual_metaopt.analysis.scripts.{name}").main
    options = ["--out", str(tmp_path / "out"), *SCRIPT_OPTIONS.get(name, [])]
    kind = {"regression": "squared" in name, "text": "bits" in name}
    equal, unequal = (written(equal=equal, **kind) for equal in (True, False))
    assert main([str(equal), *options]) == 0
    before = sorted((tmp_path / "out").iterdir())
    assert before
    assert main([str(unequal), *options]) == 2
    assert capsys.readouterr().err == f"python -m analysis.scripts.{name}: error: {refusal(unequal)}\n"
    assert sorted((tmp_path / "out").iterdir()) == before


@pytest.mark.parametrize("regression", [False, True])
def test_the_report_refuses_them_too(regression, written, tmp_path):
    unequal = written(equal=False, regression=regression)
    with pytest.raises(ValueError, match=re.escape(refusal(unequal))):
        write_report(load_runs(unequal), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_figure_is_among_those_that_are_tested_here():
    drawing = {
        name
        for name, function in inspect.getmembers(figures, inspect.isfunction)
        if not name.startswith("_") and list(inspect.signature(function).parameters)[:1] == ["runs"]
        if inspect.signature(function).return_annotation == "Figure"
    }
    assert drawing - OF_ONE_STUDY == set(FIGURES), (
        "add the figure to FIGURES, so that it is tested to refuse unequal streams"
    )


def test_runs_that_have_not_ended_are_drawn_and_thus_refused(tmp_path):
    write_run(tmp_path, "A", 0)
    write_run(tmp_path, "B", 0, [1], n_samples=4, state="running", parts=1, stream_info={"fingerprint": "another"})
    with pytest.raises(ValueError, match="did not see the same samples"):
        load_runs(tmp_path).require_one_stream()


def test_the_message_names_all_that_differs(tmp_path):
    write_two(
        tmp_path, {"source_hash": "aa"}, {"source_hash": "b" * 50, "fingerprint": "another", "boundaries": [0, 4, 12]}
    )
    expected = (
        'in the same order: stream_info.fingerprint is "stream-0" and "another"; '
        "stream_info.boundaries is [0, 8, 16] and [0, 4, 12]; "
        f'stream_info.source_hash is "aa" and "{"b" * 36}.... They cannot be compared'
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        load_runs(tmp_path).require_one_stream()


def test_seeds_from_changed_images_are_refused(tmp_path):
    write_two(tmp_path, {"source_hash": "aa"}, {"source_hash": "bb"}, seeds=(0, 1))
    message = (
        f"{tmp_path / 'A-0'} and {tmp_path / 'B-1'} saw different images: what was stored as source 'digits' has "
        "changed between them (source_hash aa and bb). They cannot be averaged: leave one of them out, or move it "
        "elsewhere and repeat the run"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        comparison_table(load_runs(tmp_path))


@pytest.mark.parametrize(
    ("stream_infos", "seeds"),
    [
        (({"source_hash": "aa"}, {"source_hash": "aa"}), (0, 1)),
        (({"source_hash": "aa"}, {}), (0, 0)),  # of an earlier version
        (({"source_hash": None}, {"source_hash": None}), (0, 1)),  # generated samples
    ],
)
def test_runs_of_equal_samples_go_together(stream_infos, seeds, tmp_path):
    write_two(tmp_path, *stream_infos, seeds=seeds)
    load_runs(tmp_path).require_one_stream()


def test_where_files_lay_makes_no_other_stream(tmp_path):
    write_run(tmp_path, "A", 0, stream={"data_root": "data"})
    write_run(tmp_path, "B", 0, stream={"data_root": "elsewhere"})
    assert comparison_table(load_runs(tmp_path), baseline="A")["pairs"].tolist() == [0, 1]
