"""Run directories: whole files, parts, and what is kept of an earlier attempt."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from continual_metaopt.analysis.run_directory import TABLES
from continual_metaopt.engines.observations import Observations
from continual_metaopt.runs import directory as recording
from continual_metaopt.runs.directory import RunDirectory, write_whole
from continual_metaopt.runs.files import read_json, write_json
from continual_metaopt.runs.tables import SCHEMAS, arrow_array
from tests.continual_metaopt.conftest import exactly, files_of, read_tables

ENGINE = {"name": "torch", "reason": "the only engine"}


def portion(first_step: int, n: int, experience: int = 0) -> Observations:
    steps = range(first_step, first_step + n)
    return Observations(
        experience,
        first_step,
        correct=[step % 3 == 0 for step in steps],
        loss=[step / 7 for step in steps],
        step_sizes=[(step, block, 10.0**-step) for step in steps if step % 2 == 0 for block in ("a", "b")],
        measurements=[(step, "quantity", None if step % 2 else "a", "value", -step / 3) for step in steps],
    )


def add_experience(directory: RunDirectory, experience: int, **changes: Any) -> None:
    row = {
        "experience": experience,
        "classes": ["cat", "dog"],
        "first_step": 5 * experience,
        "n_samples": 5,
        "n_seen_before": 0,
        "n_correct": 2,
        "online_accuracy": 0.4,
        "mean_loss": 0.25,
        "test_accuracy": None,
    }
    directory.add_experience(**row | changes)


def save(path: Path, progress: dict[str, Any]) -> None:
    path.write_text(json.dumps(progress), encoding="utf-8")


def with_parts(path: Path, *, began: bool = True) -> RunDirectory:
    """A run that has learned from ten samples, with a checkpoint after each five, and from two more."""
    directory = RunDirectory(path)
    if began:
        directory.start({"run_id": "abc"})
    for experience in range(2):
        directory.observe(portion(5 * experience, 5, experience))
        add_experience(directory, experience)
        directory.checkpoint(save, ENGINE)
    directory.observe(portion(10, 2, 2))
    return directory


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def parts_of(path: Path) -> dict[str, list[pa.Table]]:
    return {name: [pq.read_table(part) for part in sorted((path / name).iterdir())] for name in TABLES}


@pytest.mark.parametrize("before", [None, "old"])
def test_a_writer_that_fails_leaves_no_trace(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "file.txt"
    if before is not None:
        path.write_text(before, encoding="utf-8")
    seen: list[str] = []

    def write(temporary: Path) -> None:
        temporary.write_text("half of", encoding="utf-8")
        seen.extend(name for name in names_in(tmp_path) if name != path.name)
        raise OSError("disk full")

    with pytest.raises(OSError, match=exactly("disk full")):
        write_whole(path, write)

    assert len(seen) == 1
    assert seen[0].startswith(".")  # hidden while it is incomplete
    assert names_in(tmp_path) == ([path.name] if before else [])
    assert before is None or path.read_text(encoding="utf-8") == before


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_whole(tmp_path / "file.txt", lambda path, text=text: path.write_text(text, encoding="utf-8"))

    assert names_in(tmp_path) == ["file.txt"]
    assert (tmp_path / "file.txt").read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("text", ["", '{"state": "runn', "\x00\x00"])
def test_damaged_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "status.json"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match=r"is damaged \(.+\)$") as caught:
        read_json(path)

    assert str(caught.value).startswith(f"'{path}' ")


def test_merged_tables_equal_the_parts(tmp_path: Path) -> None:
    directory = with_parts(tmp_path)
    parts = parts_of(tmp_path)
    assert {len(tables) for tables in parts.values()} == {2}
    directory.finish("finished", None, ENGINE)

    tables = read_tables(tmp_path)
    for name, schema in SCHEMAS.items():
        assert tables[name].schema.equals(schema), name
        together = pa.concat_tables(parts[name])
        assert tables[name].slice(0, len(together)).equals(together), name
    assert tables["samples"].to_pydict() == {
        "step": list(range(12)),
        "experience": [0] * 5 + [1] * 5 + [2] * 2,
        "correct": [step % 3 == 0 for step in range(12)],
        "loss": pa.array([step / 7 for step in range(12)], pa.float32()).to_pylist(),
    }
    assert tables["step_sizes"]["step_size"].to_pylist() == [10.0**-step for step in range(0, 12, 2) for _ in "ab"]
    assert tables["measurements"]["block"].to_pylist() == ["a", None] * 6
    assert tables["experiences"]["experience"].to_pylist() == [0, 1]
    assert tables["experiences"]["test_accuracy"].to_pylist() == [None, None]
    assert sorted(names_in(tmp_path)) == sorted(["config.json", "status.json", *(f"{name}.parquet" for name in TABLES)])


def test_a_run_without_any_samples_has_empty_tables(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.start({})
    directory.finish("diverged", "the loss is nan at sample 0", ENGINE)

    assert {
        name: (table.num_rows, table.schema.equals(SCHEMAS[name])) for name, table in read_tables(tmp_path).items()
    } == dict.fromkeys(TABLES, (0, True))


def test_regression_has_neither_right_nor_wrong(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.start({})
    directory.observe(Observations(0, 0, correct=[None, None], loss=[0.5, 0.25]))
    add_experience(directory, 0, n_correct=None, online_accuracy=None)
    directory.finish("finished", None, ENGINE)

    tables = read_tables(tmp_path)
    assert tables["samples"]["correct"].to_pylist() == [None, None]
    assert tables["samples"].schema.equals(SCHEMAS["samples"])
    assert tables["experiences"]["n_correct"].to_pylist() == [None]


def test_a_run_that_may_go_on_keeps_its_parts(tmp_path: Path) -> None:
    with_parts(tmp_path).finish("failed", "interrupted by the user", None, keep_parts=True)

    assert {name: [len(part) for part in parts] for name, parts in parts_of(tmp_path).items()} == {
        "samples": [5, 5, 2],
        "step_sizes": [6, 4, 2],
        "measurements": [5, 5, 2],
        "experiences": [1, 1, 0],
    }
    assert not list(tmp_path.glob("*.parquet"))
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["reason"], status["step"]) == ("failed", "interrupted by the user", 12)
    assert status["engine"] == ENGINE  # known from the checkpoint
    assert (tmp_path / "checkpoint.pt").exists()


def test_resuming_removes_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with_parts(tmp_path).finish("failed", "killed", None, keep_parts=True)
    expected = {name: parts[:2] for name, parts in parts_of(tmp_path).items()}
    progress = read_json(tmp_path / "checkpoint.pt")
    # as if the earlier attempt had been killed while it merged its parts
    (tmp_path / "samples.parquet").write_bytes(b"whole, but of another attempt")
    write_json(tmp_path / "written.json", read_json(tmp_path / "written.json") | {"tables": True})

    directory = RunDirectory(tmp_path)
    directory.resume(progress)

    assert parts_of(tmp_path) == expected
    assert not (tmp_path / "samples.parquet").exists()
    assert not (tmp_path / "damaged").exists()
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["step"]) == ("running", 10)
    directory.observe(portion(10, 2, 2))
    directory.finish("finished", None, ENGINE)
    assert read_tables(tmp_path)["samples"]["step"].to_pylist() == list(range(12))


def test_wall_time_goes_on_over_resumptions(tmp_path: Path) -> None:
    with_parts(tmp_path)
    progress = read_json(tmp_path / "checkpoint.pt") | {"wall_time": 1000.0, "learning_time": 4.0}

    directory = RunDirectory(tmp_path)
    directory.resume(progress)
    directory.observe(portion(10, 2))
    directory.finish("finished", None, ENGINE)

    status = read_json(tmp_path / "status.json")
    assert 1000.0 <= status["wall_time"] < 1010.0
    assert status["samples_per_second"] == 3.0


def test_starting_removes_what_an_earlier_attempt_has_listed(tmp_path: Path) -> None:
    with_parts(tmp_path).finish("failed", "killed", None, keep_parts=True)
    assert read_json(tmp_path / "written.json") == {"n_parts": 3, "tables": False, "checkpoints": ["checkpoint.pt"]}
    (tmp_path / "experiences.parquet").write_bytes(b"another's")

    RunDirectory(tmp_path).start({"run_id": "new"})

    assert (tmp_path / "damaged" / "experiences.parquet").read_bytes() == b"another's"
    assert not any((tmp_path / name).exists() or (tmp_path / f"{name}.parquet").exists() for name in TABLES)
    assert read_json(tmp_path / "config.json") == {"run_id": "new"}
    assert read_json(tmp_path / "status.json")["step"] == 0


def test_tables_that_could_not_all_be_merged_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, write: Any) -> Path:
        if path.name == "measurements.parquet":
            raise OSError("disk full")
        return write_whole(path, write)

    directory = with_parts(tmp_path)
    with monkeypatch.context() as disk:
        disk.setattr(recording, "write_whole", full)
        with pytest.raises(OSError, match=exactly("disk full")):
            directory.finish("finished", None, ENGINE)
    directory.finish("failed", "disk full", None, keep_parts=True)
    assert (tmp_path / "samples.parquet").exists()

    RunDirectory(tmp_path).resume(read_json(tmp_path / "checkpoint.pt"))

    assert not (tmp_path / "samples.parquet").exists()
    assert not (tmp_path / "damaged").exists()


def test_an_attempt_that_did_not_begin_leaves_the_records_alone(tmp_path: Path) -> None:
    with_parts(tmp_path).finish("failed", "interrupted by the user", None, keep_parts=True)
    before = files_of(tmp_path)
    status = read_json(tmp_path / "status.json")

    RunDirectory(tmp_path).finish("failed", "OSError: no data", None, keep_parts=True)

    after = files_of(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"status.json"}
    assert before.keys() == after.keys()
    now = read_json(tmp_path / "status.json")
    assert (now["state"], now["reason"]) == ("failed", "OSError: no data")
    kept = ("step", "wall_time", "samples_per_second", "engine")
    assert {name: now[name] for name in kept} == {name: status[name] for name in kept}


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([1, None, 3], pa.int32()),
        (np.arange(10)[::3], pa.int32()),
        ([True, None, False] * 5, pa.bool_()),
        ([True] * 9, pa.bool_()),
        ([0.1, math.inf, -0.0, 1 / 3], pa.float32()),
        ([None, 0.1], pa.float64()),
        (["a", None, "ü€", ""], pa.string()),
        ([None] * 3, pa.string()),
        ([["cat", "dög"], [], None, ["x"]], pa.list_(pa.string())),
        *(([], kind) for kind in (pa.int32(), pa.bool_(), pa.float32(), pa.string(), pa.list_(pa.string()))),
    ],
)
def test_arrays_are_those_of_arrow(column: Any, kind: pa.DataType) -> None:
    made, wanted = arrow_array(column, kind), pa.array(column, kind)
    made.validate(full=True)
    assert made.equals(wanted)
    assert made.null_count == wanted.null_count
