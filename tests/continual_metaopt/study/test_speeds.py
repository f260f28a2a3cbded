"""Speeds that are measured once and kept."""

from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.runs.config import RunConfig
from continual_metaopt.study import speeds
from continual_metaopt.study.speeds import speeds_here

RUN = RunConfig(stream={"name": "tracking"}, network={"name": "linear"}, learner={"name": "fixed"}).resolved()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "speeds"


def changed(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(RUN.model_dump() | changes).resolved()


def unmeasured(run: RunConfig) -> float:
    raise AssertionError(run)


def test_speeds_are_kept_and_looked_up(cache: Path) -> None:
    assert speeds_here({"a": RUN}) == {}

    assert speeds_here({"a": RUN}, lambda run: 30) == {"a": 30}

    assert speeds_here({"b": RUN}) == {"b": 30}
    assert speeds_here({"b": RUN}, unmeasured) == {"b": 30}
    assert len(list(cache.iterdir())) == 1


def test_runs_that_are_alike_are_measured_once_in_the_order_of_their_learners() -> None:
    runs = {"a": RUN, "b": changed(network={"name": "mlp"}), "c": changed(seed=1), "d": changed(engine="torch")}
    runs["e"] = changed(learner={"name": "fixed", "lr": 0.5})
    asked: list[RunConfig] = []

    def measure(run: RunConfig) -> float:
        asked.append(run)
        return float(len(asked))

    assert speeds_here(runs, measure) == {"a": 1, "b": 2, "c": 1, "d": 3, "e": 1}
    assert asked == [runs["e"], runs["b"], runs["d"]]


@pytest.mark.parametrize(
    "change",
    [
        {"learner": {"name": "fixed", "base": "sgd"}},
        {"network": {"name": "mlp"}},
        {"network": {"name": "mlp", "hidden": [8]}},
        {"stream": {"name": "tracking", "n_inputs": 7}},
        {"engine": "torch"},
        {"record_every": 10},
        {"imports": ["json"]},
    ],
    ids=str,
)
def test_what_decides_a_speed_has_it_measured_anew(change: dict[str, Any]) -> None:
    speeds_here({"a": RUN}, lambda run: 30.0)

    assert speeds_here({"a": changed(**change)}) == {}


def test_another_machine_and_other_code_have_speeds_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds_here({"a": RUN}, lambda run: 30.0)

    with monkeypatch.context() as patch:
        patch.setattr(speeds.socket, "gethostname", lambda: "elsewhere")
        assert speeds_here({"a": RUN}) == {}
    with monkeypatch.context() as patch:
        patch.setattr(speeds, "_code", lambda imports: "changed")
        assert speeds_here({"a": RUN}) == {}
    assert speeds_here({"a": RUN}) == {"a": 30}


def test_a_module_of_one_s_own_is_known_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "module_of_mine.py"
    module.write_text("a = 1")
    monkeypatch.syspath_prepend(tmp_path)
    run = changed(imports=["module_of_mine"])
    speeds_here({"a": run}, lambda run: 30.0)
    assert speeds_here({"a": run}) == {"a": 30}

    module.write_text("a = 2")
    speeds._code.cache_clear()  # as in the next process

    assert speeds_here({"a": run}) == {}


def test_what_cannot_be_measured_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(run: RunConfig) -> float:
        raise RuntimeError("no [bold]luck")

    assert speeds_here({"a": RUN, "b": changed(engine="torch")}, fail) == {}
    assert capsys.readouterr().err.splitlines() == [
        "measuring the speed of 2 learners, about 2 s each; it is kept for the next time",
        "a: its speed cannot be measured: RuntimeError: no [bold]luck",
        "b: its speed cannot be measured: RuntimeError: no [bold]luck",
    ]
    assert speeds_here({"a": RUN}, fail, show=False) == {}
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("content", ["", "{}", '{"samples_per_second": "fast"}', '{"samples_per_second": -1.0}'])
def test_a_damaged_file_is_replaced(content: str, cache: Path) -> None:
    speeds_here({"a": RUN}, lambda run: 30.0)
    (file,) = cache.iterdir()
    file.write_text(content)

    assert speeds_here({"a": RUN}) == {}
    assert speeds_here({"a": RUN}, lambda run: 40.0) == {"a": 40}
    assert speeds_here({"a": RUN}) == {"a": 40}


def test_without_a_folder_of_one_s_own_speeds_are_not_kept(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("in the way")

    assert speeds_here({"a": RUN, "b": RUN}, lambda run: 30.0) == {"a": 30, "b": 30}
    assert speeds_here({"a": RUN}) == {}
