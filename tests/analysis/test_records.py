import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from continual_metaopt.analysis import runs as runs_module
from continual_metaopt.analysis.html.html_charts import score_charts, trajectory_chart
from continual_metaopt.analysis.records import MAX_BYTES, REPAIR, read_object, read_status
from continual_metaopt.analysis.runs import load_runs
from continual_metaopt.analysis.tables import comparison_table

from .synthetic import write_run


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": [-Infinity]}', "-Infinity is no number of JSON"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": -9223372036854775809}', "the whole number -9223372036854775809 is too large"),
        ('{"a": ' + "1" * 5000 + "}", "the whole number " + "1" * 29 + "… is too large"),
        ('{"a": ' + "[" * 50 + "]" * 50 + "}", "it is nested more than 40 levels deep"),
        ('{"a": ' + "[" * 99_999 + "]" * 99_999 + "}", "it is nested more than 40 levels deep"),
        ('{"a": "\\ud800"}', "it holds text that is not Unicode"),
        ("[1]", "it is not a JSON object"),
        (" " * (MAX_BYTES + 1), "bytes, and at most 8,388,608 are read"),
    ],
    ids=["nan", "infinity", "large", "large whole", "long whole", "deep", "very deep", "surrogate", "list", "size"],
)
def test_json_that_is_none_for_a_record(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_object(path)


WRONG_CONFIG = {
    "seed": ["1", True, -1, 1.5],
    "label": [5, "a" * 10_001],
    "study": [None],
    "purpose": [["report"]],
    "stream": ["digits"],
    "network": [{}],
    "learner": [{"name": 3}, *({"name": "metaoptimize", "lr_bounds": bounds} for bounds in ([1, "2"], 1))],
    "blocks": ["all", [1]],
    "n_parameters": [[10]],
    "learned_step_sizes": [1],
    "evaluate": ["yes"],
    "order": ["first"],
    "tuned": [["lr"]],
    "record_samples_every": [0],
    "versions": [["3.11"]],
    "resumed": [[{"step": 1}]],
    "stream_info.n_samples": [0, 2**31, "4"],
    "stream_info.n_outputs": [2.0],
    "stream_info.boundaries": [[0, 9], [0, 0], [0]],
    "stream_info.task": ["guessing"],
    "stream_info.stationary": [{}],
    "stream_info.input_shape": [3],
}
WRONG_STATUS = {
    "step": ["3", -3],
    "n_correct": [[1]],
    "reason": [3],
    "notes": ["a", [1]],
    "wall_time": ["long", -1.0],
    "samples_per_second": [{}],
    "heartbeat": ["yesterday", "2026-01-01T00:00:00"],
    "owner": ["me", {"host": "a", "pid": "1"}],
    "engine": ["torch"],
    "state": [["finished"], "lost"],
}


def each(wrong):
    """One case for each wrong value of each field."""
    return [pytest.param(name, value, id=f"{name}-{str(value)[:9]}") for name in wrong for value in wrong[name]]


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("right"))


@pytest.mark.parametrize(("field", "value"), each(WRONG_CONFIG))
def test_a_field_of_config_with_a_wrong_type_is_named(right, tmp_path, field, value):
    path = Path(shutil.copy(right / "config.json", tmp_path))
    part, _, name = field.rpartition(".")
    edit(path, **({part: json.loads(path.read_text())[part] | {name: value}} if part else {field: value}))
    named = "tuned names" if field == "tuned" else re.escape(field)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {named}.*{re.escape(REPAIR)}$") as error:
        load_runs(tmp_path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(("field", "value"), each(WRONG_STATUS))
def test_a_field_of_status_with_a_wrong_type_is_named(right, tmp_path, field, value):
    path = Path(shutil.copy(right / "status.json", tmp_path))
    edit(path, **{field: value})
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {field} .*{re.escape(REPAIR)}$"):
        read_status(tmp_path)


def test_long_texts_of_a_status_are_shortened(tmp_path):
    run = write_run(tmp_path, status={"reason": "a" * 10**6, "notes": ["b" * 10**4] * 60})
    status = read_status(run)
    assert (len(status["reason"]), len(status["notes"]), len(status["notes"][0])) == (2000, 50, 2000)


def test_one_odd_record_stops_no_other(tmp_path):
    write_run(tmp_path, "A", 0)
    odd = write_run(tmp_path, "B", 0) / "config.json"
    edit(odd, seed="0")
    (tmp_path / "C").mkdir()
    (tmp_path / "C" / "config.json").write_text("{}")
    damaged = write_run(tmp_path, "D", 0) / "samples.parquet"
    damaged.write_bytes(b"PAR1")
    runs = load_runs(tmp_path)
    assert (runs.labels, set(runs.left_out)) == (["A", "D"], {str(odd.parent), str(tmp_path / "C")})
    readable = runs.readable()
    assert (readable.labels, set(readable.left_out)) == (["A"], {*runs.left_out, str(damaged.parent)})
    assert str(damaged) in readable.left_out[str(damaged.parent)]
    with pytest.raises(ValueError, match=re.escape(str(damaged))):
        load_runs(damaged.parent).readable()


ODD_TABLES = {
    "rows": (
        pa.table({"correct": pa.array([True] * 1009)}),
        "it has 1,009 rows, but a run like this has at most 1,008",
    ),
    "type": (pa.table({"correct": ["yes"]}), "its column correct has the type string"),
    "nested": (
        pa.table({"correct": [{"a": [True]}]}),
        "its column correct has the type struct<a: list<element: bool>>",
    ),
    "missing": (pa.table({"step": [1]}), "it lacks correct"),
    "twice": (pa.Table.from_arrays([pa.array([True])] * 2, ["correct"] * 2), "it has correct 2 times"),
}


@pytest.mark.parametrize("odd", ODD_TABLES)
def test_a_table_that_is_none_of_the_run_is_not_read(tmp_path, odd, monkeypatch):
    table, message = ODD_TABLES[odd]
    run = write_run(tmp_path)
    pq.write_table(table, run / "samples.parquet")
    monkeypatch.setattr(pq.ParquetFile, "read", None)  # its description tells
    with pytest.raises(ValueError, match=rf"samples\.parquet: cannot be read as a table .*\({re.escape(message)}\)"):
        load_runs(run).read(str(run), "samples", ["correct"])


def test_few_bytes_hold_no_millions_of_values(tmp_path):
    run = write_run(tmp_path, correct=[1, 0])
    config = json.loads((run / "config.json").read_text())
    edit(run / "config.json", stream_info=config["stream_info"] | {"n_samples": 2**31 - 1})
    rows = pa.repeat(True, 5_000_000)
    pq.write_table(pa.table({"correct": rows}), run / "samples.parquet", compression="zstd")
    assert (run / "samples.parquet").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"\(5,000,000 values with .* bytes in a column are too many for"):
        load_runs(run).read(str(run), "samples", ["correct"])


def test_no_name_is_longer_than_names_are(tmp_path):
    run = write_run(tmp_path, step_sizes={"all": [1e-3]})
    table = pq.read_table(run / "step_sizes.parquet")
    place = table.schema.get_field_index("block")
    pq.write_table(table.set_column(place, "block", pa.array(["a" * 20_000])), run / "step_sizes.parquet")
    with pytest.raises(ValueError, match="its column block holds a text of more than 10,000 bytes"):
        load_runs(run).read(str(run), "step_sizes")


def test_small_tables_are_read_once_for_all_tables_and_charts(tmp_path, monkeypatch):
    for seed in (0, 1):
        sizes = {"a": [0.1, 0.2], "b": [0.3, 0.4]}
        write_run(tmp_path, "A", seed, [1, 0, 1, 1], learned=True, step_sizes=sizes, test_accuracy=[0.5, 0.5])
    opened, read_file = [], runs_module._read_file
    monkeypatch.setattr(runs_module, "_read_file", lambda *given: opened.append(given[0]) or read_file(*given))
    runs = load_runs(tmp_path).readable()
    comparison_table(runs)
    part = next(iter(runs.by_stream().values()))
    comparison_table(part)
    score_charts(part, "chance")
    trajectory_chart(part, "step_size")
    assert len(opened) == len(set(opened)) == 6


def test_what_a_run_adds_while_it_goes_on_is_read(tmp_path):
    run = write_run(tmp_path, correct=[1, 0], n_samples=4, state="running", parts=1)
    runs = load_runs(run)
    assert runs.correct(str(run)).tolist() == [1, 0]
    part = run / "samples" / "part-00000.parquet"
    pq.write_table(pq.read_table(part), run / "samples" / "part-00001.parquet")
    assert runs.correct(str(run)).tolist() == [1, 0, 1, 0]
