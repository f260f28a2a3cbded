import builtins
import json
import re
import shutil
import struct

import numpy as np
import pandas as pd
import pytest

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.export import MAX_POINTS, export, scalars

from .synthetic import write_regression, write_run

ABOUT = ["run_id", "study", "label", "seed"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    sizes, gradients = {"first": [0.1, 0.2], "last": [0.3, 0.4]}, {"meta_gradient": {"first": [1.5, -2.5]}}
    learner = {"name": "metaoptimize", "lr": 1, "lr_bounds": [1e-10, 1.0]}
    write_run(
        *(root, "Meta, α₀ = 1/2", 0, [1, 0, 1, 1]),
        step_sizes=sizes,
        measurements=gradients,
        record_every=2,
        test_accuracy=[0.5, None],
        config={"learner": learner, "run_id": "ID0"},
    )
    config = {"learner": {"name": "fixed", "lr": 0.5}, "run_id": "ID1"}
    write_run(root, "Fixed", 1, [0, 1], n_samples=4, state="running", parts=2, config=config)
    return load_runs(root)


@pytest.mark.parametrize("fmt", ["csv", "parquet"])
def test_tables(runs, tmp_path, fmt):
    paths = export(runs, tmp_path / "out", fmt)
    assert [path.name for path in paths] == [
        f"{name}.{fmt}" for name in ("runs", "samples", "step_sizes", "measurements", "experiences")
    ]
    tables = {path.stem: (pd.read_csv if fmt == "csv" else pd.read_parquet)(path) for path in paths}
    assert tables["runs"]["run_id"].tolist() == ["ID1", "ID0"]
    assert tables["runs"]["state"].tolist() == ["running", "finished"]
    assert tables["runs"]["learner.lr"].tolist() == [0.5, 1.0]
    assert tables["runs"]["learner.lr_bounds"].tolist()[1] == "[1e-10, 1.0]"
    samples = tables["samples"]
    assert samples.columns.tolist() == [*ABOUT, "step", "experience", "correct", "loss"]
    assert samples[[*ABOUT, "step", "correct"]].to_numpy().tolist() == [
        ["ID1", "synthetic", "Fixed", 1, 0, False],
        ["ID1", "synthetic", "Fixed", 1, 1, True],
        *(["ID0", "synthetic", "Meta, α₀ = 1/2", 0, i, c] for i, c in enumerate([True, False, True, True])),
    ]
    # columns that runs of earlier versions lack are empty
    assert tables["step_sizes"]["q05"].isna().all()
    assert tables["step_sizes"]["step_size"].tolist() == [0.1, 0.3, 0.2, 0.4]
    assert tables["measurements"][["step", "block", "value"]].to_numpy().tolist() == [
        [0, "first", 1.5],
        [2, "first", -2.5],
    ]
    classes = tables["experiences"]["classes"].tolist()[-1]
    assert (json.loads(classes) if fmt == "csv" else classes.tolist()) == ["2", "3"]
    np.testing.assert_equal(tables["experiences"]["test_accuracy"].tolist(), [np.nan, 0.5, np.nan])


def test_long_streams_are_summarised_as_numbers_at_steps(tmp_path):
    n = 2 * MAX_POINTS + 1  # stretches of three samples
    write_run(tmp_path, "A", correct=[1, 0, 0] * (n // 3) + [1] * (n % 3), n_experiences=1, parts=4)
    runs = load_runs(tmp_path)
    found = list(scalars(runs, runs.table["path"].item()))
    accuracy = [(scalar.step, scalar.value) for scalar in found if scalar.tag == "online/accuracy"]
    assert accuracy == [(3 * i + 2, pytest.approx(1 / 3)) for i in range(n // 3)]
    assert len(accuracy) <= MAX_POINTS
    assert sum(scalar.tag == "online/loss" for scalar in found) == len(accuracy)


@pytest.mark.parametrize(
    ("errors", "losses"),
    [([4, 2], [("online/loss", 0, 2.0), ("online/loss", 1, 1.0)]), ([np.nan, 2], [("online/loss", 1, 1.0)])],
)
def test_a_regression_has_no_accuracy_and_losses_that_were_kept(tmp_path, errors, losses):
    write_regression(tmp_path, "LMS", 0, errors)
    runs = load_runs(tmp_path)
    assert list(scalars(runs, runs.table["path"].item())) == losses


EXPECTED = {
    "online/accuracy": [(0, 1), (1, 0), (2, 1), (3, 1)],
    "online/loss": [(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5)],
    "step_size/first": [(0, 0.1), (2, 0.2)],
    "step_size/last": [(0, 0.3), (2, 0.4)],
    "meta_gradient/first": [(0, 1.5), (2, -2.5)],
    "experience/online_accuracy": [(1, 0.5), (3, 1)],
    "experience/test_accuracy": [(1, 0.5)],
}


def test_tensorboard(runs, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    folders = export(runs, tmp_path / "out", "tensorboard")
    assert [folder.name for folder in folders] == ["Fixed-seed1-ID1", "Meta-alpha0-1-2-seed0-ID0"]
    assert json.loads((folders[1] / "run.json").read_text("utf-8"))["run_id"] == "ID0"
    with pytest.raises(FileNotFoundError):  # which an export beside runs must not be taken for
        load_runs(tmp_path / "out")
    events = accumulator(str(folders[1]), size_guidance={"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == set(EXPECTED)
    for tag, values in EXPECTED.items():
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [
            (step, pytest.approx(value)) for step, value in values
        ]
    # the run took two seconds until its last sign of life, at 100 samples a second
    times = [event.wall_time for event in events.Scalars("online/loss")]
    assert times[0] == pytest.approx(pd.Timestamp("2026-01-01T00:00:00Z").timestamp() - 2.0)
    assert times[1] - times[0] == pytest.approx(0.01, abs=1e-5)


def wandb_records(path):
    """The records of an offline run: a file of LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), 7, []
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


@pytest.mark.slow
def test_wandb(runs, tmp_path):
    pytest.importorskip("wandb")
    folders = export(runs, tmp_path / "out", "wandb")
    assert len(folders) == 2
    (path,) = (file for folder in folders for file in folder.glob("run-ID0.wandb"))
    found: dict[str, list[tuple[int, float]]] = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            for tag in values.keys() & EXPECTED.keys():
                found.setdefault(tag, []).append((values["_step"], values[tag]))
    assert found == {tag: [(step, pytest.approx(value)) for step, value in rows] for tag, rows in EXPECTED.items()}


@pytest.mark.parametrize("fmt", ["tensorboard", "wandb"])
def test_what_is_missing_is_said(runs, tmp_path, fmt, monkeypatch):
    real_import = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == fmt:
            raise ModuleNotFoundError(f"No module named '{fmt}'", name=fmt)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    message = (
        f"^this format needs the package {fmt}, of which {fmt} is missing; install it: "
        rf"in the clone, pip install -e '\.\[{fmt}\]'$"
    )
    with pytest.raises(ModuleNotFoundError, match=message):
        export(runs, tmp_path / "out", fmt)
    assert not (tmp_path / "out").exists()


def test_only_an_earlier_export_is_replaced(runs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    write_run(tmp_path / "theirs")
    export(runs, out, "parquet")
    export(runs, out, "csv")
    assert sorted(path.name for path in out.iterdir()) == [
        *("experiences.csv", "export.json", "measurements.csv", "runs.csv", "samples.csv", "step_sizes.csv"),
    ]
    (out / "notes.txt").write_text("mine")
    refused = "which no export has written; choose another folder, which need not exist"
    with pytest.raises(FileExistsError, match=f"^{out} holds 'notes.txt', {refused}$"):
        export(runs, out, "csv")
    (out / "notes.txt").unlink()
    for mark in ("[]", "{", '{"files": 3}'):
        (out / "export.json").write_text(mark)
        with pytest.raises(FileExistsError, match=f"^{out} holds 'experiences.csv', {refused}$"):
            export(runs, out, "csv")
    with pytest.raises(FileExistsError, match=f"^{tmp_path / 'theirs'} holds '.+', {refused}$"):
        export(runs, tmp_path / "theirs", "csv")
    monkeypatch.chdir(tmp_path / "theirs")
    for current in (".", ".."):
        with pytest.raises(ValueError, match=r"cannot be the current one, or hold it; give another$"):
            export(runs, current, "csv")
    with pytest.raises(ValueError, match=r"^fmt must be one of csv, parquet, tensorboard, wandb, not 'xls'$"):
        export(runs, tmp_path / "new", "xls")


@pytest.mark.parametrize("place", ["notes.txt", "{run}/my notes.txt", "{run}/plugins/mine.json", "{run}/mine/"])
def test_files_of_the_user_in_an_export_stay(runs, tmp_path, place):
    pytest.importorskip("tensorboard")
    out = tmp_path / "out"
    place = place.format(run=export(runs, out, "tensorboard")[0].name)
    mine = out / place
    if place.endswith("/"):
        mine.mkdir()
    else:
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
    before = sorted(out.rglob("*"))

    message = f"^{out} holds '{place.rstrip('/')}', which no export has written; choose another folder"
    with pytest.raises(FileExistsError, match=message):
        export(runs, out, "tensorboard")

    assert sorted(out.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_is_not_exported_to(runs, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "out").symlink_to("theirs")
    with pytest.raises(FileExistsError, match=f"^{tmp_path / 'out'} is a link, which an export does not follow; give"):
        export(runs, tmp_path / "out", "csv")
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize("text", ["x/../../../../theirs", "..", "../theirs", "/tmp/theirs", "a\\b", ".hidden", "CON\n"])
@pytest.mark.parametrize("key", ["run_id", "label", "study"])
def test_texts_of_records_lead_nowhere_else(tmp_path, text, key):
    pytest.importorskip("tensorboard")
    write_run(tmp_path / "runs", "A", 0, [1, 0], n_samples=2, config={key: text})
    folders = export(load_runs(tmp_path / "runs"), tmp_path / "out", "tensorboard")
    assert [folder.parent for folder in folders] == [tmp_path / "out"]
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", folders[0].name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_copies_of_a_run_have_folders_of_their_own(tmp_path):
    pytest.importorskip("tensorboard")
    for copy in ("a", "b"):
        write_run(tmp_path / "runs" / copy, "A", 0, [1, 0], n_samples=2, config={"run_id": "ID"})
    folders = export(load_runs(tmp_path / "runs"), tmp_path / "out", "tensorboard")
    assert [folder.name for folder in folders] == ["A-seed0-ID", "A-seed0-ID-2"]


def test_a_run_that_ends_while_it_is_exported_is_exported_whole(tmp_path, monkeypatch):
    run = write_run(tmp_path / "runs", "A", 0, [1, 0, 1, 1, 0, 1], n_samples=6, state="running", parts=3)
    whole = write_run(tmp_path / "whole", "A", 0, [1, 0, 1, 1, 0, 1], n_samples=6)
    runs, given = load_runs(run), []
    for batch in runs.batches(str(run), "samples", ["step", "correct"]):
        given += batch.to_pydict()["step"]
        if len(given) == len(batch):  # after the first part
            (whole / "samples.parquet").rename(run / "samples.parquet")
            shutil.rmtree(run / "samples")
    assert given == [0, 1, 2, 3, 4, 5]


def test_a_damaged_table_is_named(tmp_path):
    write_run(tmp_path / "runs", "A")
    (write_run(tmp_path / "runs", "B") / "samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"samples\.parquet: cannot be read as a table with step, experience"):
        export(load_runs(tmp_path / "runs"), tmp_path / "out", "csv")
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]
