"""Result files of a benchmark: made from runs, checked, and compared."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from continual_metaopt.analysis import benchmark_result, load_runs
from continual_metaopt.analysis.benchmark_result import (
    DEFINITIONS,
    Definition,
    Result,
    compare_results,
    make_result,
    read_result,
    schema,
    write_result,
)
from continual_metaopt.analysis.scripts.benchmark_result import main

from .synthetic import write_run

NAME = "tiny v1"
OPTIONS: dict[str, Any] = {"classes_per_experience": 2, "labels": "within", "replacement": False}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark of ten samples and two seeds."""
    info = {"n_experiences": 2, "n_samples": 10, "boundaries": [0, 5], "stationary": None, "batch_size": 1}
    definition = Definition(
        name=NAME,
        stream="class_split v1",
        stream_info=info,
        stream_options=OPTIONS,
        network={"name": "mlp"},
        seeds=(0, 1),
    )
    monkeypatch.setitem(benchmark_result.DEFINITIONS, NAME, definition)


def write(root: Path, label: str = "A", n_correct: tuple[int, ...] = (6, 8), **changes: Any) -> Path:
    """Runs of one learner, a seed for each number of correct predictions."""
    config = {"learner": {"name": "fixed", "lr": 0.1}, "versions": {"python": "3.11"}, **changes.pop("config", {})}
    info = {"source_hash": "images", **changes.pop("stream_info", {})}
    for seed, correct in enumerate(n_correct):
        write_run(
            root,
            label,
            seed,
            [1] * correct + [0] * (10 - correct),
            stream=OPTIONS | changes.get("stream", {}),
            stream_info=info,
            config=config,
            **{name: value for name, value in changes.items() if name != "stream"},
        )
    return root


def result_of(root: Path, label: str | None = None) -> Result:
    runs = load_runs(root, purpose=None)
    return make_result(runs.select(purpose="report"), runs.select(purpose="selection"), NAME, label)


def message(text: str) -> str:
    return f"^{re.escape(text)}$"


def test_a_result_says_what_was_reached_and_how(tmp_path: Path) -> None:
    tuned = {"learner": {"name": "fixed", "lr": 0.1}, "entry": "A", "tuned": ["lr"]}
    write(tmp_path, "A, lr = 0.1", config=tuned)
    write(tmp_path, "A", config={"entry": "A", "tuned": []})
    for number, lr in enumerate((0.1, 0.2)):
        tried = tuned | {"purpose": "selection", "learner": {"name": "fixed", "lr": lr}}
        stream_info = {"n_samples": 4, "source_hash": "images"}
        write_run(tmp_path, f"A, lr = {lr}", 100 + number, [1] * 4, config=tried, stream_info=stream_info)

    result = result_of(tmp_path, "A, lr = 0.1")

    assert result_of(tmp_path, "A").tuning.runs == 0
    assert (result.label, result.chosen) == ("A, lr = 0.1", {"lr": 0.1})
    assert result.tuning.model_dump() == {"seeds": [100, 101], "runs": 2, "samples": 8}
    assert [(one.seed, one.stream_fingerprint, one.state) for one in result.seeds] == [
        (0, "stream-0", "finished"),
        (1, "stream-1", "finished"),
    ]
    assert [one.online_accuracy for one in result.seeds] == [0.6, 0.8]
    assert [one.experience_accuracy for one in result.seeds] == [[1.0, 0.2], [1.0, 0.6]]
    assert (result.source_hash, result.engine, result.told) == ("images", {0: "torch", 1: "torch"}, False)
    path = write_result(result, tmp_path / "result.json")
    assert read_result(path) == result


def test_what_a_diverged_run_did_not_see_is_chance(tmp_path: Path) -> None:
    write(tmp_path, n_correct=(6,))
    write_run(
        tmp_path,
        "A",
        1,
        [1, 1, 1, 1],
        n_samples=10,
        state="diverged",
        stream=OPTIONS,
        stream_info={"source_hash": "images"},
        config={"learner": {"name": "fixed", "lr": 0.1}},
    )

    diverged = result_of(tmp_path).seeds[1]

    assert (diverged.state, diverged.online_accuracy) == ("diverged", pytest.approx(0.7))
    assert diverged.experience_accuracy == pytest.approx([0.9, 0.5])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_correct": (6,)}, "A: tiny v1 needs the seeds 0, 1, but 1 is missing; run it too"),
        ({"n_correct": (6, 8, 9)}, "A: tiny v1 has the seeds 0, 1, each once, and no others, not 0, 1, 2"),
        (
            {"config": {"network": {"name": "mlp", "hidden": [8]}}},
            "{run}: does not follow tiny v1: the network has the option 'hidden'",
        ),
        (
            {"config": {"network": {"name": "lenet"}}},
            '{run}: does not follow tiny v1: network.name is "lenet", not "mlp"',
        ),
        (
            {"stream": {"labels": "global"}},
            '{run}: does not follow tiny v1: stream.labels is "global", not "within"',
        ),
        (
            {"stream_info": {"stationary": "shuffled"}},
            '{run}: does not follow tiny v1: stream_info.stationary is "shuffled", not null',
        ),
        (
            {"stream_info": {"definition": "class_split v2"}},
            '{run}: does not follow tiny v1: stream_info.definition is "class_split v2", not "class_split v1"',
        ),
        ({"state": "failed"}, "{run}: the run is failed; bring it to an end first"),
        (
            {"config": {"learner": {"name": "aruba_told"}}},
            "A: the learner is told where experiences begin, so its label must say 'told', which 'A' does not",
        ),
        (
            {"config": {"tuned": ["lr"], "entry": "A"}},
            "A: lr was chosen by tuning, but the runs that served for it are not there; give their folder as well",
        ),
        (
            {"stream_info": {"source_hash": None}},
            "A: the runs did not record what their images hold (source_hash); repeat them",
        ),
    ],
)
def test_runs_that_do_not_follow_the_definition_are_refused(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    write(tmp_path, **changes)

    with pytest.raises(ValueError, match=message(expected.format(run=tmp_path / "A-0"))):
        result_of(tmp_path)


def test_a_told_learner_may_say_so(tmp_path: Path) -> None:
    write(tmp_path, "ARUBA (told)", config={"learner": {"name": "aruba_told"}})
    assert result_of(tmp_path).told


def test_a_file_is_of_one_setting_of_one_learner(tmp_path: Path) -> None:
    write(tmp_path / "one", n_correct=(6,))
    second = write(tmp_path / "two", config={"learner": {"name": "fixed", "lr": 0.2}}) / "A-1"
    runs = load_runs(tmp_path / "one" / "A-0", second)
    with pytest.raises(ValueError, match=r"have different settings; a result file is of one setting$"):
        make_result(runs, None, NAME)
    both = load_runs(write(tmp_path / "three", "B"), tmp_path / "one")
    with pytest.raises(ValueError, match=message("a result file is of one learner; choose with --label: A; B")):
        make_result(both, None, NAME)
    with pytest.raises(ValueError, match=message("no run is labelled 'C'; the labels are: A; B")):
        make_result(both, None, NAME, "C")
    with pytest.raises(
        ValueError, match=r"^there is no benchmark 'other'; there are 'class-split-100x10 v1', 'tiny v1'$"
    ):
        make_result(both, None, "other", "B")


def edited(result: Result, changes: Mapping[str, Any]) -> Result:
    content = json.loads(result.model_dump_json())
    for path, value in changes.items():
        *parents, last = path.split(".")
        part = content
        for parent in parents:
            part = part[int(parent) if isinstance(part, list) else parent]
        part[last] = value
    return Result.model_validate(content)


def test_results_are_compared_seed_by_seed(tmp_path: Path) -> None:
    better, worse = (result_of(write(tmp_path / name, name, n)) for name, n in (("A", (6, 8)), ("B", (5, 6))))

    table = compare_results({"b.json": worse, "a.json": better})

    assert list(table["file"]) == ["a.json", "b.json"]
    assert list(table["online_accuracy"]) == pytest.approx([70, 55])
    assert table["difference"].tolist() == pytest.approx([np.nan, -15], nan_ok=True)
    # Student's t with one degree of freedom, times the standard error of (−10, −20)
    assert table["difference_ci"].iloc[1] == pytest.approx(12.7062 * 5, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"seeds.1.stream_fingerprint": "other"},
            "a.json and b.json are of different streams: b.json has the same images in another order "
            "(source_hash images and images; fingerprints differ for the seeds 1)",
        ),
        (
            {"source_hash": "others"},
            "a.json and b.json are of different streams: b.json has other images "
            "(source_hash images and others; fingerprints differ for no seed)",
        ),
        (
            {"definition": "class-split-100x10 v1"},
            "b.json: class-split-100x10 v1 needs the seeds 0, 1, 2, 3, 4, but 2, 3, 4 are missing; run them too",
        ),
        ({"definition": "other"}, "there is no benchmark 'other'; there are 'class-split-100x10 v1', 'tiny v1'"),
        (
            {"tuning.seeds": [1, 7], "tuning.runs": 2},
            "b.json: settings were chosen on the reported seed 1; use others",
        ),
        (
            {"seeds.0.online_accuracy": 0.9},
            "b.json: the accuracy of seed 0, 0.9000, is not the mean of its experiences, 0.6000",
        ),
        (
            {"seeds.0.experience_accuracy": [0.6]},
            "b.json: seed 0 has accuracies of 1 experiences, not 2",
        ),
        (
            {"learner.name": "cosine_restarts_told"},
            "b.json: the learner is told where experiences begin, so its label must say 'told', which 'A' does not",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    result = result_of(write(tmp_path))
    with pytest.raises(ValueError, match=message(expected)):
        compare_results({"a.json": result, "b.json": edited(result, changes)})


def test_results_of_two_definitions_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = DEFINITIONS[NAME].model_copy(update={"name": "tiny v2"})
    monkeypatch.setitem(benchmark_result.DEFINITIONS, "tiny v2", later)
    result = result_of(write(tmp_path))
    expected = "a.json is a result of tiny v1 and b.json of tiny v2: only results of one definition can be compared"
    with pytest.raises(ValueError, match=message(expected)):
        compare_results({"a.json": result, "b.json": edited(result, {"definition": "tiny v2"})})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "{file}: is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ("{}", "{file}: is not a result file: definition: Field required"),
        ("[]", "{file}: is not a result file: the file: Input should be"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(expected.replace("{file}", str(tmp_path / "a.json")))):
        read_result(tmp_path / "a.json")


def test_the_schema_beside_the_code_is_that_of_the_files() -> None:
    file = Path(benchmark_result.__file__).with_name("benchmark_result.schema.json")
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(schema()))


def test_the_command_writes_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a"), write(tmp_path / "b", "B", (5, 6))
    for name in "ab":
        out = str(tmp_path / f"{name}.json")
        assert main([str(tmp_path / name), "--definition", NAME, "--out", out]) == 0
    capsys.readouterr()

    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(tmp_path)]) == 0

    out = capsys.readouterr().out
    assert out.index("70.00 ± 127.06") < out.index("55.00 ± 63.53")
    assert "−15.00 ± 63.53" in out
    assert (tmp_path / "benchmark.md").read_text().startswith("| learner ")
    assert main(["compare", str(tmp_path / "c.json")]) == 2
    assert "c.json" in capsys.readouterr().err


def test_the_benchmark_is_what_the_study_of_table_2_runs() -> None:
    from continual_metaopt.runs.components import resolve
    from continual_metaopt.study.load import load_study

    study = load_study("table2")
    definition = DEFINITIONS["class-split-100x10 v1"]
    stream, network = (resolve(kind, component, kind).options for kind, component in study.components.items())
    assert {name: stream[name] for name in definition.stream_options} == definition.stream_options
    assert network | {"name": study.network.name} == definition.network
    assert tuple(study.seeds) == definition.seeds
