"""``compare``: a study in Python, with arrays and benchmarks as streams."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import continual_metaopt
from continual_metaopt import register_learner
from continual_metaopt.analysis import Runs, load_runs
from continual_metaopt.runs.components import ConfigError
from continual_metaopt.streams import make_stream, plan_stream
from continual_metaopt.streams.benchmark import StreamBenchmark
from continual_metaopt.study import comparing
from continual_metaopt.study.comparing import compare
from continual_metaopt.study.jobs import StudyInterrupted
from tests.continual_metaopt.conftest import STUDY, exactly, study_content, write_study
from tests.streams.synthetic import coded_arrays

ONE_LEARNER = {"learners": [{"label": "learned", "name": "metaoptimize", "lr": 0.001}], "seeds": [0]}


def quickly(study: Any, tmp_path: Path, **options: Any) -> Runs:
    return compare(study, **{"out": tmp_path / "out", "threads": True, "progress": False} | options)


def test_a_dictionary_is_the_study_of_a_file(tmp_path: Path) -> None:
    runs = quickly(STUDY, tmp_path)
    assert runs.labels == ["tuned", "learned"]
    assert set(runs.table["purpose"]) == {"report"}
    assert sorted(set(runs.table["seed"])) == [0, 1]
    again = quickly(write_study(tmp_path / "study.yaml"), tmp_path)
    assert again.table["path"].tolist() == runs.table["path"].tolist()  # nothing was done twice
    assert again.table["wall_time"].tolist() == runs.table["wall_time"].tolist()
    fewer = quickly(STUDY, tmp_path, seeds=[1])
    assert set(fewer.table["seed"]) == {1}


def test_it_is_a_public_name() -> None:
    assert continual_metaopt.compare is compare


def test_arrays_as_source(tmp_path: Path) -> None:
    arrays = coded_arrays()
    options = {"name": "class_split", "classes_per_experience": 4}
    runs = quickly(study_content(ONE_LEARNER | {"stream": options | {"source": arrays}}), tmp_path)
    expected = plan_stream("class_split", source=arrays, classes_per_experience=4, seed=0).info.fingerprint
    assert runs.table["fingerprint"].tolist() == [expected]
    assert runs.first_config()["stream"]["source"].startswith(f"npz:{tmp_path}/out/sources/arrays-")
    given = quickly(study_content(ONE_LEARNER | {"stream": options}), tmp_path / "other", source=arrays)
    assert given.table["fingerprint"].tolist() == [expected]


def in_order(split: Any) -> list[tuple[Any, Any]]:
    return [(np.asarray(x).tolist(), int(y)) for experience in split for x, y, *_ in experience.dataset]


def of_avalanche() -> Any:
    from avalanche.benchmarks import tensors_benchmark

    x, y = torch.arange(40.0).reshape(20, 2) / 40, torch.arange(20) % 2
    parts = [(x[:8], y[:8]), (x[8:], y[8:])]
    return tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=[0, 0], complete_test_set_only=False)


@pytest.mark.parametrize("kind", ["ours", "avalanche"])
def test_a_benchmark_as_stream(tmp_path: Path, benchmark: StreamBenchmark, kind: str) -> None:
    given = benchmark if kind == "ours" else of_avalanche()
    for stream in (given, {"benchmark": given}):
        runs = quickly(study_content(ONE_LEARNER | {"stream": stream}), tmp_path)
    config = runs.first_config()
    lengths = [len(experience.dataset) for experience in given.train_stream]
    assert config["stream_info"]["boundaries"] == np.cumsum([0, *lengths])[:-1].tolist()
    options = {name: value for name, value in config["stream"].items() if name != "name"}
    assert in_order(make_stream("array_stream", **options).train_stream) == in_order(given.train_stream)
    assert in_order(make_stream("array_stream", **options).test_stream) == in_order(given.test_stream)
    assert runs.experiences["test_accuracy"].notna().all()


def test_several_streams_of_arrays(tmp_path: Path) -> None:
    x, y = np.arange(20.0).reshape(10, 2) / 20, np.arange(10) % 2
    streams = [{"label": label, "name": "array_stream", "source": (x + k, y)} for k, label in enumerate("ab")]
    runs = quickly(study_content(ONE_LEARNER | {"stream": None, "streams": streams}), tmp_path)
    assert sorted(Path(path).parts[-3] for path in runs.table["path"]) == ["a", "b"]
    assert len(set(runs.table["fingerprint"])) == 2


@pytest.mark.slow
def test_in_processes_with_the_folder_that_the_command_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = compare(study_content(ONE_LEARNER), workers=1)
    assert len(runs) == len(load_runs("runs/tiny")) == 1
    assert "1 of 1 runs" not in capfd.readouterr().out


@pytest.mark.usefixtures("registries")
def test_what_a_notebook_has_defined_is_run_in_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def note(parts: Any, out: Path, pools: Any) -> Any:
        chosen.append(pools.threads)
        raise StudyInterrupted

    monkeypatch.setattr(comparing, "run_studies", note)

    def mine(model: torch.nn.Module, *, lr: float = 0.01) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=lr)

    study = study_content({"learners": [{"name": "mine"}]})
    register_learner("mine")(mine)
    for module, main in (("my_module", ModuleType("__main__")), ("__main__", ModuleType("__main__"))):
        mine.__module__ = module
        monkeypatch.setitem(sys.modules, "__main__", main)
        with pytest.raises(KeyboardInterrupt, match=exactly("what is recorded is kept; the same call goes on")):
            compare(study, out=tmp_path)
    main.__file__ = "script.py"  # which the processes import
    with pytest.raises(KeyboardInterrupt):
        compare(study, out=tmp_path)
    assert chosen == [False, True, False]


def test_mistakes_name_the_field(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tiny: network\.name: unknown network 'mpl'\. Did you mean 'mlp'\?"):
        quickly(study_content({"network": {"name": "mpl"}}), tmp_path)
    with pytest.raises(ValueError, match=r"^unknown study 'nothing'"):
        compare("nothing")
    stream = {"name": "array_stream", "source": (np.ones((4, 2)), np.arange(4))}
    with pytest.raises(ConfigError, match=r"^network: 'paper_cnn' does not fit vectors of 2 numbers"):
        quickly(study_content({"stream": stream, "network": {"name": "paper_cnn"}}), tmp_path)
