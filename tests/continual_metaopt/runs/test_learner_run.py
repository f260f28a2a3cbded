"""One run and its directory: complete, repeatable, resumable."""

import json
import math
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from continual_metaopt import register_learner, register_network
from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.run_directory import (
    CONFIG_FIELDS,
    CONFIG_MAY_HOLD,
    STATUS_MAY_HOLD,
    STREAM_FIELDS,
    STREAM_MAY_HOLD,
    TABLES,
)
from continual_metaopt.learner.metrics.names import Diagnostic
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.optim.base_updates import BASE_UPDATES
from continual_metaopt.optim.meta_updates import META_UPDATES
from continual_metaopt.runs import compiled_run, preparing, run, under_way
from continual_metaopt.runs import learner_run as running
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.run import run_one
from continual_metaopt.runs.tables import SCHEMAS
from continual_metaopt.streams import make_stream, sources
from tests.continual_metaopt.conftest import exactly, files_of, read_tables
from tests.continual_metaopt.runs.conftest import (
    COMPILED,
    N_SAMPLES,
    assert_same_run,
    config_of,
    stop_at,
)
from tests.streams.synthetic import write_folder

TOO_SHORT = "gradients by autograd: the experience is too short for tracing"


def learn_by(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs learn by an engine of one's choice."""

    class ByEngine(OnlineLearner):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options | {"engine": engine})

    monkeypatch.setattr(run, "_prepare", lambda config, path: None)
    monkeypatch.setattr(running, "OnlineLearner", ByEngine)


def failing_learner(at: int, error: Exception | float) -> None:
    """Register the learner "failing", whose step raises, or ruins the weights, at the nth call."""

    @register_learner("failing")
    class Failing(torch.optim.SGD):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__(model.parameters(), lr=0.01)
            self.calls = 0

        def step(self, closure: Any = None) -> Any:
            if getattr(self, "calls", None) is not None:
                self.calls += 1
                if self.calls == at:
                    if isinstance(error, Exception):
                        raise error
                    for group in self.param_groups:
                        for param in group["params"]:
                            param.data.fill_(error)
            return super().step(closure)


# -------------------------------------------------------------------------------------------- docs/run-directory.md


def test_a_finished_directory_has_the_documented_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        *("config.json", "status.json", "samples.parquet", "step_sizes.parquet"),
        *("measurements.parquet", "experiences.parquet"),
    }


def test_config_says_what_was_run(finished: Path) -> None:
    config = read_json(finished / "config.json")

    assert config.keys() == {"schema_version", *CONFIG_FIELDS, *CONFIG_MAY_HOLD} - {"resumed"}
    assert config["stream_info"].keys() == {*STREAM_FIELDS, *STREAM_MAY_HOLD, "splits"}
    assert config["schema_version"] == 1
    assert config["run_id"] == config_of().run_id
    assert {key: config[key] for key in ("study", "label", "order", "purpose", "seed", "record_every", "evaluate")} == {
        "study": "a study",
        "label": "metaoptimize",
        "order": 4,
        "purpose": "report",
        "seed": 0,
        "record_every": 10,
        "evaluate": True,
    }
    # with defaults filled in
    assert config["network"] == {"name": "mlp", "hidden": [8], "norm": "none", "growing_head": False}
    assert config["learner"] == {
        "name": "metaoptimize",
        "lr": 3e-3,
        "base": "adamw",
        "meta": "adam",
        "meta_lr": 0.01,
        "gamma": "auto",
        "weight_decay": 0.01,
        "step_sizes": "blockwise",
        "lr_bounds": [1e-10, 1.0],
        "learn": ["lr"],
        "update_order": "base_first",
        "parametrisation": "log",
        "meta_every": 1,
        "meta_weight_decay": 0.0,
        "max_meta_change": None,
        "trace": "dutch",
        "curvature": "exact",
        "curvature_smoothing": 0.0,
        "curvature_clip": None,
        "trace_memory_limit": 2e9,
    }
    assert config["stream"]["name"] == "permuted_inputs"
    assert (config["stream"]["source"], config["stream"]["stationary"]) == ("digits", None)
    info = config["stream_info"]
    assert info == make_stream(
        "permuted_inputs", n_experiences=3, samples_per_experience=50, seed=0
    ).info.as_record() | {"input_shape": [1, 8, 8]}
    assert (info["boundaries"], info["n_samples"], info["n_outputs"]) == ([0, 50, 100], 150, 10)
    assert config["blocks"] == ["linear1", "linear2"]
    assert config["n_parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert (config["learned_step_sizes"], config["family"]) == (True, "MetaOptimize")
    assert {"python", "torch", "avalanche-lib", "source_revision"} <= config["versions"].keys()
    assert config["platform"]["threads"] == 1


def test_status_says_how_it_went(finished: Path) -> None:
    status = read_json(finished / "status.json")

    assert status.keys() == {"state", *STATUS_MAY_HOLD} - {"superseded"}
    assert (status["state"], status["reason"], status["step"]) == ("finished", None, N_SAMPLES)
    assert datetime.fromisoformat(status["heartbeat"]).utcoffset().total_seconds() == 0
    assert status["owner"].keys() == {"host", "pid", "machine", "born"}
    assert status["wall_time"] > 0
    # learning is part of the time
    assert status["samples_per_second"] >= 0.99 * N_SAMPLES / status["wall_time"]
    assert status["engine"] == COMPILED


def documented_columns() -> dict[str, dict[str, str]]:
    """The columns of each table as docs/run-directory.md lists them, with their types in Arrow's words."""
    text = (Path(__file__).parents[3] / "docs" / "run-directory.md").read_text(encoding="utf-8")
    in_arrow = {"float32": "float", "float64": "double", "list of string": "list<string>"}
    columns: dict[str, dict[str, str]] = {}
    for line in text.partition("| table | column | type | meaning |\n|---|---|---|---|\n")[2].splitlines():
        if not line.startswith("|"):
            break
        table, names, kind = (part.strip() for part in line.split("|")[1:4])
        kind = re.split(", null|; int16| or null", kind)[0]
        known = columns.setdefault(table or list(columns)[-1], {})
        known |= dict.fromkeys(re.findall("`(.+?)`", names), in_arrow.get(kind, kind))
    return columns


def test_tables_have_the_documented_columns_and_rows(finished: Path) -> None:
    tables = read_tables(finished)

    assert documented_columns() == TABLES
    assert {name: table.schema for name, table in tables.items()} == SCHEMAS
    samples, step_sizes = tables["samples"].to_pydict(), tables["step_sizes"].to_pydict()
    assert samples["step"] == list(range(N_SAMPLES))
    assert samples["experience"] == [0] * 50 + [1] * 50 + [2] * 50
    assert all(math.isfinite(loss) and loss > 0 for loss in samples["loss"])
    assert step_sizes["step"] == [step for step in range(0, N_SAMPLES, 10) for _ in range(2)]
    assert step_sizes["block"] == ["linear1", "linear2"] * 15
    assert step_sizes["step_size"][:2] == [3e-3, 3e-3]
    assert len(set(step_sizes["step_size"])) > 15
    measurements = tables["measurements"].to_pydict()
    assert measurements["step"] == step_sizes["step"]
    assert measurements["block"] == step_sizes["block"]
    assert set(measurements["quantity"]) == {"meta_gradient"}
    assert set(measurements["statistic"]) == {"value"}
    assert measurements["value"][:2] == [0.0, 0.0]
    assert 0.0 not in measurements["value"][2:]


def test_experiences_sum_up_the_samples(finished: Path) -> None:
    tables = read_tables(finished)
    correct = tables["samples"]["correct"].to_pylist()
    info = make_stream("permuted_inputs", n_experiences=3, samples_per_experience=50, seed=0).info

    rows = tables["experiences"].to_pylist()

    assert [row["experience"] for row in rows] == [0, 1, 2]
    assert [row["classes"] for row in rows] == [[str(c) for c in e.classes] for e in info.experiences]
    assert [row["first_step"] for row in rows] == [0, 50, 100]
    assert [row["n_samples"] for row in rows] == [50] * 3
    assert [row["n_seen_before"] for row in rows] == [0] * 3
    assert [row["n_correct"] for row in rows] == [sum(correct[start : start + 50]) for start in (0, 50, 100)]
    assert [row["online_accuracy"] for row in rows] == [row["n_correct"] / 50 for row in rows]
    # better than chance on held-out images, and measured in 359ths
    assert all(0.1 < row["test_accuracy"] < 1 for row in rows)
    assert all(row["test_accuracy"] * 359 == pytest.approx(round(row["test_accuracy"] * 359)) for row in rows)
    assert sum(correct) > 0


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("learner", "network", "engine"),
    [
        ("metaoptimize", "mlp", COMPILED),
        ("metaoptimize", "paper_cnn", COMPILED),
        ("fixed", "mlp", COMPILED),
        (
            "fixed",
            "dropping",
            {"name": "fused", "reason": f"not compiled: there is no kernel for Dropout; {TOO_SHORT}"},
        ),
        (
            "metaoptimize",
            "cropping",
            {"name": "fused", "reason": f"not compiled: Cropping is not a sequence of layers; {TOO_SHORT}"},
        ),
        (
            "torch:NAdam",
            "dropping",
            {"name": "torch", "reason": "neither compiled nor fused: the experience is too short for tracing"},
        ),
    ],
)
def test_the_record_says_which_engine_ran_and_why(
    tmp_path: Path, learner: str, network: str, engine: dict[str, str]
) -> None:
    @register_network("dropping")
    def dropping(n_outputs: int, input_shape: tuple[int, int, int]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(64, n_outputs))

    @register_network("cropping")
    class Cropping(nn.Module):
        def __init__(self, n_outputs: int, input_shape: tuple[int, int, int]) -> None:
            super().__init__()
            self.layer = nn.Linear(16, n_outputs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x[:, 0, 2:6, 2:6].flatten(1))

    config = config_of(
        learner={"name": learner, "lr": 1e-3}, evaluate=False, n_experiences=1, samples_per_experience=30
    )
    config = config.model_copy(update={"network": Component(name=network)}).resolved()
    assert run_one(config, tmp_path) == "finished"
    assert read_json(tmp_path / "status.json")["engine"] == engine
    assert read_tables(tmp_path)["samples"].num_rows == 30


@pytest.mark.parametrize("learner", [None, {"name": "dog", "reps_rel": 0.01}], ids=["metaoptimize", "dog"])
def test_compiled_code_leaves_the_record_of_the_torch_engine(
    learner: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_one(config_of(learner=learner), tmp_path / "compiled")
    learn_by("torch", monkeypatch)
    run_one(config_of(learner=learner), tmp_path / "torch")

    assert read_json(tmp_path / "compiled" / "status.json")["engine"]["name"] == "compiled"
    assert read_json(tmp_path / "torch" / "status.json")["engine"] == {"name": "torch", "reason": "asked for"}
    ours, theirs = read_tables(tmp_path / "compiled"), read_tables(tmp_path / "torch")
    for name, columns in TABLES.items():
        for column, kind in columns.items():
            found, expected = ours[name][column].to_pylist(), theirs[name][column].to_pylist()
            if kind in ("float", "double") and name != "experiences" and {*expected} - {None}:
                scale = max(map(abs, expected))
                assert found == pytest.approx(expected, rel=1e-3, abs=1e-3 * scale), column
            elif column == "mean_loss":
                assert found == pytest.approx(expected, rel=1e-3)
            elif column != "test_accuracy":
                assert found == expected, column
    # a prediction of 359 may be decided by rounding
    accuracies = [tables["experiences"]["test_accuracy"].to_pylist() for tables in (ours, theirs)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=1.01 / 359)


def test_the_record_of_many_step_sizes_and_of_what_else_is_learned(tmp_path: Path) -> None:
    options = {"step_sizes": "node", "learn": ["lr", "weight_decay", "momentum"], "gamma": 0.999}
    run_one(config_of(evaluate=False, learner={"name": "metaoptimize", "lr": 3e-3, **options}), tmp_path)

    assert read_json(tmp_path / "status.json")["state"] == "finished"
    assert read_json(tmp_path / "status.json")["engine"]["name"] == "fused"
    tables = read_tables(tmp_path)
    rows = tables["step_sizes"].to_pylist()
    start = {"step_size": 3e-3, **dict.fromkeys(("q05", "q25", "q75", "q95"), 3e-3)}
    assert rows[0] == {"step": 0, "block": "linear1"} | {k: pytest.approx(v, rel=1e-6) for k, v in start.items()}
    for row in rows[6:]:
        assert row["q05"] < row["q25"] < row["q75"] < row["q95"]
        assert row["q05"] < row["step_size"] < row["q95"]
    measured = tables["measurements"].to_pylist()
    for quantity, first in (("weight_decay", 0.01), ("momentum", 0.9)):
        values = [row for row in measured if row["quantity"] == quantity]
        assert [(row["step"], row["block"]) for row in values] == [(row["step"], row["block"]) for row in rows]
        assert values[0]["value"] == pytest.approx(first, rel=1e-6)
        assert len({row["value"] for row in values}) > 15


def test_repeated_samples_count_as_seen_before(tmp_path: Path) -> None:
    run_one(config_of(stationary="repeat", evaluate=False), tmp_path)

    rows = read_tables(tmp_path)["experiences"].to_pylist()
    assert [row["n_seen_before"] for row in rows] == [0, 50, 50]
    assert [row["test_accuracy"] for row in rows] == [None] * 3
    assert read_json(tmp_path / "config.json")["stream_info"]["stationary"] == "repeat"


@pytest.mark.parametrize("learner", [{"name": "torch:AdamW", "lr": 3e-3}, {"name": "fixed", "base": "sgd", "lr": 0.01}])
def test_learners_with_fixed_step_sizes_leave_a_full_record(tmp_path: Path, learner: dict[str, Any]) -> None:
    run_one(config_of(learner=learner, evaluate=False), tmp_path)

    config, tables = read_json(tmp_path / "config.json"), read_tables(tmp_path)
    assert config["learned_step_sizes"] is False
    assert config["blocks"] == ["all"]
    assert set(tables["step_sizes"]["step_size"].to_pylist()) == {learner["lr"]}
    assert tables["step_sizes"].num_rows == 15
    assert tables["samples"].num_rows == N_SAMPLES


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(("at", "n_experiences"), [(1, 0), (50, 1), (64, 1)])
def test_a_diverged_run_keeps_what_came_before(tmp_path: Path, at: int, n_experiences: int) -> None:
    failing_learner(at, math.nan)
    config = config_of(learner={"name": "failing"})

    assert run_one(config, tmp_path) == "diverged"

    # the update after sample `at` - 1 ruined the weights, which sample `at` shows
    status, tables = read_json(tmp_path / "status.json"), read_tables(tmp_path)
    assert status.keys() == {"state", *STATUS_MAY_HOLD} - {"superseded"}
    assert (status["state"], status["reason"], status["step"]) == ("diverged", f"the loss is nan at sample {at}", at)
    assert tables["samples"]["step"].to_pylist() == list(range(at))
    assert tables["experiences"].num_rows == n_experiences
    assert tables["step_sizes"]["step"].to_pylist() == list(range(0, at, 10))
    assert status["engine"]["name"] == "fused"
    assert not (tmp_path / "checkpoint.pt").exists()
    assert load_runs(tmp_path).correct_counts["n_rows"].tolist() == [at]
    files = files_of(tmp_path)
    assert run_one(config, tmp_path) == "diverged"
    assert files_of(tmp_path) == files


# -------------------------------------------------------------------------------------- repetition and resumption


def test_the_same_seed_leaves_the_same_record(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(999)  # whatever happened before in this process

    run_one(config_of(), tmp_path)

    assert_same_run(tmp_path, finished)


def test_progress_is_told_in_samples(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    run_one(config_of(evaluate=False), tmp_path, lambda done, total: told.append((done, total)))

    ends = [20, 40, 50, 70, 90, 100, 120, 140, 150]
    assert told == [(done, N_SAMPLES) for done in ends]


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param([1], id="first portion"),
        pytest.param([2], id="mid-experience"),
        pytest.param([3], id="all samples of an experience"),
        pytest.param([4], id="just after a boundary"),
        pytest.param([9], id="last sample"),
        pytest.param([1, 1, 2, 3, 1], id="again and again"),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    finished: Path, tmp_path: Path, stops: list[int]
) -> None:
    ends = [20, 40, 50, 70, 90, 100, 120, 140, 150]
    for stop in stops:
        torch.manual_seed(stop)
        assert run_one(config_of(), tmp_path, should_stop=stop_at(stop)) == "failed"
        status = read_json(tmp_path / "status.json")
        assert (status["state"], status["reason"]) == ("failed", "interrupted by the user")
        assert (tmp_path / "samples").is_dir()
        assert (tmp_path / "checkpoint.npz").exists()
        # what there is so far is a prefix of the whole
        runs = load_runs(tmp_path)
        assert runs.table["step"].tolist() == [len(runs.samples)] == [status["step"]]
        expected = read_tables(finished)["samples"].slice(0, status["step"])
        assert runs.samples["loss"].tolist() == expected["loss"].to_pylist()
    if len(stops) == 1:
        assert status["step"] == ends[stops[0] - 1]
    wall_time = status["wall_time"]

    assert run_one(config_of(), tmp_path) == "finished"

    assert_same_run(tmp_path, finished)
    assert not any(path.is_dir() for path in tmp_path.iterdir())
    assert not list(tmp_path.glob("checkpoint.*"))
    assert read_json(tmp_path / "status.json")["wall_time"] > wall_time > 0
    assert load_runs(tmp_path).samples["loss"].tolist() == read_tables(finished)["samples"]["loss"].to_pylist()


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    random, images = np.random.RandomState(0), tmp_path / "images"
    pictures = list(random.randint(256, size=(60, 4, 4), dtype=np.uint8))
    write_folder(images, pictures, ["one", "two"] * 30)
    config = config_of(source=f"folder:{images}", n_experiences=2, samples_per_experience=50)
    assert run_one(config, tmp_path / "run", should_stop=stop_at(2)) == "failed"
    before = read_json(tmp_path / "run" / "config.json")["stream_info"]["fingerprint"]

    sources._load_named.cache_clear()  # as in another process
    write_folder(images, [255 - pictures[0]], ["one"])
    assert run_one(config, tmp_path / "run") == "failed"
    now = make_stream("permuted_inputs", **config.stream.options).info.fingerprint
    assert read_json(tmp_path / "run" / "status.json")["reason"] == (
        f"ValueError: the run began with another stream (fingerprint {before}, now {now}): the stored images or the "
        f"stream's code have changed. Bring them back to go on, or move '{tmp_path / 'run'}' elsewhere to begin again"
    )

    sources._load_named.cache_clear()
    write_folder(images, pictures[:1], ["one"])
    assert run_one(config, tmp_path / "run") == "finished"


def test_a_run_that_goes_on_elsewhere_names_all_versions_and_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = config_of(n_experiences=2, samples_per_experience=50), tmp_path / "run"
    assert run_one(config, run, should_stop=stop_at(1)) == "failed"
    first, step = read_json(run / "config.json"), read_json(run / "status.json")["step"]
    assert "resumed" not in first
    known = first["versions"] | {"torch": "9.9"}
    monkeypatch.setattr(under_way, "describe_software", lambda: known)
    assert run_one(config, run, should_stop=stop_at(1)) == "failed"
    assert run_one(config, run) == "finished"
    assert read_json(run / "config.json") == first | {
        "resumed": [{"step": step, "versions": known, "platform": first["platform"]}]
    }


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between writing the parts of a checkpoint and its state: those parts are of no use."""
    monkeypatch.setattr(under_way, "CHECKPOINT_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    def save(self: Any, path: Path, progress: dict[str, Any], save: Any = compiled_run.CompiledRun._save) -> None:
        if progress["step"] == 120:
            raise Killed
        save(self, path, progress)

    with monkeypatch.context() as killing:
        killing.setattr(compiled_run.CompiledRun, "_save", save)
        with pytest.raises(Killed):
            run_one(config_of(), tmp_path)
    assert read_json(tmp_path / "status.json")["state"] == "running"
    assert read_json(tmp_path / "status.json")["step"] == 100
    assert len(list((tmp_path / "samples").iterdir())) == 7

    assert run_one(config_of(), tmp_path) == "finished"

    assert_same_run(tmp_path, finished)


def assert_resumes(tmp_path: Path, config: RunConfig, *stops: int, at: int) -> Path:
    """Check that a run that is stopped, last at a sample, leaves the record of one that is not; returns the latter."""
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    run_one(config, whole)
    for stop in stops:
        torch.manual_seed(stop)
        assert run_one(config, interrupted, should_stop=stop_at(stop)) == "failed"
    assert read_json(interrupted / "status.json")["step"] == at
    run_one(config, interrupted)
    assert_same_run(interrupted, whole)
    return whole


@pytest.mark.parametrize(
    "learner",
    [
        *({"name": "metaoptimize", "meta": meta, "gamma": 0.99 if meta == "lion" else "auto"} for meta in META_UPDATES),
        *({"name": "metaoptimize", "base": base, "step_sizes": "scalar"} for base in BASE_UPDATES if base != "adamw"),
        *({"name": f"torch:{name}"} for name in ("SGD", "AdamW", "Rprop", "NAdam")),
    ],
    ids=lambda learner: "-".join(map(str, learner.values())),
)
def test_every_learner_can_be_resumed(tmp_path: Path, learner: dict[str, Any]) -> None:
    options = {"n_experiences": 2, "samples_per_experience": 30, "evaluate": False}
    assert_resumes(tmp_path, config_of(learner=learner | {"lr": 1e-3}, **options), 3, at=50)


@pytest.mark.parametrize(
    ("engine", "stop"),  # all engines share what counts portions; here each is stopped amid an experience and at ends
    [("torch", 1), ("torch", 2), ("fused", 1), ("fused", 2), ("fused", 3), ("fused", 4), ("compiled", 3)],
)
def test_every_engine_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, stop: int) -> None:
    learn_by(engine, monkeypatch)
    config = config_of(n_experiences=2, samples_per_experience=30, evaluate=False)
    whole = assert_resumes(tmp_path, config, stop, at=[20, 30, 50, 60][stop - 1])
    assert read_json(whole / "status.json")["engine"]["name"] == engine


@pytest.mark.parametrize("engine", ["torch", "fused", "compiled"])
def test_diagnostics_are_recorded_and_go_on_as_if_nothing_had_happened(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    learn_by(engine, monkeypatch)
    config = config_of().model_copy(update={"diagnostics": get_args(Diagnostic), "diagnostics_every": 30})
    assert_resumes(tmp_path, config, 2, 2, 3, at=61)
    measured = read_tables(tmp_path / "whole")["measurements"].to_pandas()
    steps = {quantity: sorted(set(rows["step"])) for quantity, rows in measured.groupby("quantity")}
    assert steps.pop("meta_gradient") == list(range(0, 150, 10))
    assert (steps.pop("retention"), steps.pop("forgetting")) == ([50, 100, 150], [100, 150])
    late = {"dormant_units", "effective_rank", "stable_rank", "trace_cosine"}  # with nothing to measure at first
    assert steps == {
        quantity: list(range(30 if quantity in late else 0, 150, 30))
        for quantity in set(get_args(Diagnostic)) - {"retention"}
    }
    if engine == "compiled":  # as are those of the run without diagnostics
        plain, observed = read_tables(finished), read_tables(tmp_path / "whole")
        assert all(plain[name].equals(observed[name]) for name in ("samples", "step_sizes", "experiences"))


def test_dropout_goes_on_with_its_random_numbers(tmp_path: Path, registries: None) -> None:
    @register_network("dropping")
    def dropping(n_outputs: int, input_shape: tuple[int, int, int]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, n_outputs))

    config = config_of(evaluate=False).model_copy(update={"network": Component(name="dropping")})
    assert_resumes(tmp_path, config, 4, at=70)


def test_checkpoints_hold_plain_data_only(tmp_path: Path) -> None:
    config = config_of().model_copy(update={"engine": "fused"})
    run_one(config, tmp_path, should_stop=stop_at(4))

    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)

    assert (checkpoint["run_id"], checkpoint["n_samples"], checkpoint["n_ended"]) == (config.run_id, 70, 1)
    assert checkpoint["progress"]["step"] == 70
    assert checkpoint["model"].keys() == {"linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"}


# ---------------------------------------------------------------------------------------------- what is already there


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    files = files_of(finished)

    assert run_one(config_of(), finished, should_stop=lambda: pytest.fail("it ran")) == "finished"

    assert files_of(finished) == files


def test_another_runs_directory_is_refused(finished: Path) -> None:
    files = files_of(finished)
    message = f"'{finished}' already holds another run ({config_of().run_id}); choose another folder with --out"

    with pytest.raises(FileExistsError, match=exactly(message)):
        run_one(config_of(seed=1), finished)

    assert files_of(finished) == files


@pytest.mark.parametrize("content", [None, '{"run_id": ', "[]"])
@pytest.mark.parametrize("name", ["config.json", "status.json"])
def test_records_whose_description_is_lost_are_set_aside(
    finished: Path, tmp_path: Path, name: str, content: str | None
) -> None:
    path = Path(shutil.copytree(finished, tmp_path / "run"))
    (path / name).unlink()
    if content is not None:
        (path / name).write_text(content, encoding="utf-8")
    files = files_of(path)

    assert run_one(config_of(), path) == "finished"

    (note,) = read_json(path / "status.json")["notes"]
    assert note.startswith(f"'{path / name}' is {'missing' if content is None else 'damaged ('}")
    assert note.endswith(f"; what was recorded is kept in '{path / 'damaged'}', and the run begins again")
    kept = files_of(path / "damaged")
    assert {key: kept[key][1] for key in files} == {key: value[1] for key, value in files.items()}
    assert_same_run(path, finished)


OTHERS = {
    "samples/data.csv": "samples",
    "samples.parquet": "samples.parquet",
    "checkpoint.pt": "checkpoint.pt",
    ".draft.tmp": ".draft.tmp",
    "config.json": "config.json",
    "status.json": "status.json",
    "damaged/notes.txt": "damaged",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_that_is_no_run_s_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "project"
    (path / name).parent.mkdir(parents=True)
    (path / name).write_text('{"state": "finished"}', encoding="utf-8")
    files = files_of(path)

    message = (
        f"'{path}' holds '{OTHERS[name]}', which no run has written; choose another folder with --out, which need not "
        "exist"
    )
    with pytest.raises(FileExistsError, match=exactly(message)):
        run_one(config_of(), path)

    assert files_of(path) == files


def test_a_folder_whose_owner_nobody_can_tell_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    (tmp_path / "samples.parquet").write_text("somebody's", encoding="utf-8")
    files = files_of(tmp_path)

    with pytest.raises(
        FileExistsError, match=r"is damaged \(.+\), so that nobody can tell whose folder it is in; choose"
    ):
        run_one(config_of(), tmp_path)

    assert files_of(tmp_path) == files


def test_a_link_is_no_run_s_folder(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "run").symlink_to("theirs")

    message = f"'{tmp_path / 'run'}' is a link, and nothing is written through it; put a folder in its place"
    with pytest.raises(FileExistsError, match=exactly(message)):
        run_one(config_of(), tmp_path / "run")

    assert not any((tmp_path / "theirs").iterdir())


def test_files_of_the_user_in_a_run_s_folder_stay(finished: Path, tmp_path: Path) -> None:
    run, mine = tmp_path / "run", {}
    assert run_one(config_of(), run, should_stop=stop_at(1)) == "failed"
    for name in ("notes.txt", ".draft.tmp", "samples/notes.txt", "samples/.part.tmp", "step_sizes/part-old.parquet"):
        (run / name).write_text("mine", encoding="utf-8")
        mine[name] = files_of(run)[name]
    # in the places of the run's own files, which are listed
    for name in ("samples/part-00009.parquet", "measurements.parquet"):
        (run / name).write_text("mine", encoding="utf-8")
        mine[f"damaged/{name}"] = files_of(run)[name]

    assert run_one(config_of(), run) == "finished"
    (run / "checkpoint.pt").write_text("mine", encoding="utf-8")
    mine["checkpoint.pt"] = files_of(run)["checkpoint.pt"]
    assert run_one(config_of(), run) == "finished"

    assert read_json(run / "status.json")["notes"] == [
        f"'{run / 'samples' / 'part-00009.parquet'}' is not on the list of what this run has written; it is kept in "
        f"'{run / 'damaged'}', and the run goes on"
    ]
    left = files_of(run)
    assert {name: left[name] for name in mine} == mine
    assert left.keys() - mine.keys() == files_of(finished).keys() | {"damaged/reason.txt"}
    assert_same_run(run, finished)


def test_a_run_that_had_only_just_started_is_started_again(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"run_id": config_of().run_id}), encoding="utf-8")

    assert run_one(config_of(), tmp_path) == "finished"

    assert_same_run(tmp_path, finished)


@pytest.mark.usefixtures("registries")
def test_an_error_is_recorded_and_tried_again(tmp_path: Path) -> None:
    failing_learner(70, RuntimeError("out of luck"))
    config = config_of(learner={"name": "failing"}, evaluate=False)

    assert run_one(config, tmp_path) == "failed"

    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["reason"]) == ("failed", "RuntimeError: out of luck")
    assert status["step"] == 69  # all recorded
    assert len(load_runs(tmp_path).samples) == 69
    failing_learner(0, RuntimeError("never"))
    assert run_one(config, tmp_path) == "finished"
    assert read_tables(tmp_path)["samples"]["step"].to_pylist() == list(range(N_SAMPLES))


def test_data_that_is_missing_for_a_while_costs_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that could not begin must not touch the parts of the one before."""
    run_one(config_of(), tmp_path, should_stop=stop_at(5))
    files = files_of(tmp_path)

    def no_stream(*args: Any, **options: Any) -> Any:
        raise FileNotFoundError("not mounted")

    with monkeypatch.context() as unmounted:
        unmounted.setattr(preparing, "plan_stream", no_stream)
        assert run_one(config_of(), tmp_path) == "failed"

    now = files_of(tmp_path)
    assert {name for name in now.keys() | files.keys() if now.get(name) != files.get(name)} == {"status.json"}
    status = read_json(tmp_path / "status.json")
    assert (status["step"], status["reason"]) == (90, "FileNotFoundError: not mounted")
    assert run_one(config_of(), tmp_path) == "finished"
    assert_same_run(tmp_path, finished)


def test_missing_data_is_the_reason_of_a_run_that_cannot_begin(tmp_path: Path) -> None:
    assert run_one(config_of(source=f"parquet:{tmp_path / 'nothing'}"), tmp_path / "run") == "failed"

    status = read_json(tmp_path / "run" / "status.json")
    assert status["reason"].startswith(f"FileNotFoundError: no parquet file or folder at '{tmp_path / 'nothing'}'")
    assert (status["state"], status["step"]) == ("failed", 0)
