"""Streams of tables: what becomes of each kind of column, and that nothing tells of what is to come."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from continual_metaopt.runs.components import Component
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.run import run_one
from continual_metaopt.streams import plan_stream
from tests.continual_metaopt.conftest import exactly, read_tables

DAYS = pd.DataFrame(
    {
        "day": pd.to_datetime(["2021-03-03", "2021-03-01", "2021-03-02", "2021-03-04"]),
        "wind": [4, 2, 6, 4],
        "sky": ["grey", "blue", "grey", "black"],
        "warm": [True, False, False, True],
        "month": ["b", "a", "a", "b"],
        "rain": ["yes", "no", "no", "yes"],
    }
)
TO_PREDICT_FROM = ("wind", "sky", "warm")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def to(rows: pd.DataFrame = DAYS, suffix: str = "parquet") -> str:
        path = tmp_path / f"days.{suffix}"
        rows.to_parquet(path) if suffix == "parquet" else rows.to_csv(path, index=False)
        return f"table:{path}"

    return to


def presented(stream: Any, number: int = 0) -> tuple[list[Any], list[Any]]:
    x, y = stream.train[number].batch(slice(0, 100))
    return x.tolist(), y.tolist()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_by_hand(write: Any, suffix: str) -> None:
    """Wind in order of days is 2, 6, 4, 4: means so far 2, 4, 4, 4, variances 0, 4, 8/3, 2."""
    options = {"order_by": "day", "experience_by": "month", "columns": TO_PREDICT_FROM}
    stream = plan_stream("table", source=write(suffix=suffix), **options)
    # wind, then black, blue, grey, then False, True
    assert presented(stream, 0) == ([[0, 0, 1, 0, 1, 0], [1, 0, 0, 1, 1, 0]], [0, 0])
    assert presented(stream, 1) == ([[0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 1]], [1, 1])
    info = stream.info
    assert (info.definition, info.boundaries, info.source) == ("table v1", [0, 2], write(suffix=suffix))
    assert (info.for_learner.n_outputs, info.for_learner.input_shape) == (2, (6,))
    assert [len(samples) for samples in stream.test] == [0, 0]


def test_columns_that_other_options_name_are_no_inputs(write: Any) -> None:
    stream = plan_stream("table", source=write(), order_by="day", experience_by="month", target="wind")
    assert stream.info.for_learner.input_shape == (3 + 2 + 2,)  # sky, warm, rain
    assert presented(stream)[1] == [0, 2]  # of the winds 2, 4, 6
    regression = plan_stream("table", source=write(), order_by="day", target="wind", task="regression")
    assert (regression.info.for_learner.task, presented(regression)[1]) == ("regression", [[2], [6], [4], [4]])


def test_numbers_are_scaled_by_what_came_before() -> None:
    """Beside a plain loop; a column that never changes is 0, as is the first row."""
    state = np.random.RandomState(0)
    x = np.stack([state.normal(1e6, 3, 200), state.exponential(size=200), np.full(200, 0.1)], axis=1)
    rows = pd.DataFrame(x, columns=["a", "b", "c"]).assign(y=state.randint(2, size=200))
    expected = [
        (x[t] - x[: t + 1].mean(0)) / np.where(x[: t + 1].std(0) > 1e-9, x[: t + 1].std(0), 1) for t in range(200)
    ]
    found = np.array(inputs_of(rows))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    changed = rows.copy()
    changed.loc[120:, ["a", "b", "c"]] *= 7
    np.testing.assert_array_equal(np.array(inputs_of(changed))[:120], found[:120])
    np.testing.assert_allclose(inputs_of(rows, scale=False), x, rtol=1e-6)


def inputs_of(rows: pd.DataFrame, **options: Any) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        rows.to_parquet(Path(folder) / "rows.parquet")
        (train,) = plan_stream("table", source=f"table:{folder}/rows.parquet", **options).train
    return train.batch(slice(None))[0].tolist()  # type: ignore[no-any-return]


def test_shuffled_rows_are_scaled_by_what_then_comes_before(write: Any) -> None:
    options = {"source": write(), "columns": ("wind",), "stationary": "shuffled"}
    orders = {str(presented(plan_stream("table", seed=seed, **options))) for seed in range(20)}
    assert len(orders) > 5
    first, again = (plan_stream("table", seed=3, **options) for _ in range(2))
    assert first.info.fingerprint == again.info.fingerprint
    assert first.info.stationary == "shuffled"
    assert all(plan_stream("table", seed=seed, **options).train[0].batch(slice(0, 1))[0] == 0 for seed in range(5))


def test_fingerprints_tell_content_and_boundaries(write: Any) -> None:
    source = write()
    variants: list[dict[str, Any]] = [{}, {"boundaries": (2,)}, {"scale": False}, {"target": "sky"}]
    columns = {"columns": ("wind", "warm")}
    fingerprints = {plan_stream("table", source=source, **columns, **options).info.fingerprint for options in variants}
    write(DAYS.assign(wind=[4, 2, 6, 5]))
    assert len({*fingerprints, plan_stream("table", source=source, **columns).info.fingerprint}) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "days.csv"}, "the source of a table is table:FILE, river:NAME or digits, not 'days.csv'"),
        ({"n_samples": 0}, "n_samples must be at least 1, not 0"),
        ({"source": "table:no.csv"}, "no table at 'no.csv'; give the path of a .csv or .parquet file"),
        (
            {"target": "snow"},
            "target: the table has no column 'snow'; its columns are day, wind, sky, warm, month, rain",
        ),
        (
            {"columns": ("wind", "snow")},
            "columns: the table has no column 'snow'; its columns are day, wind, sky, warm, month, rain",
        ),
        (
            {"columns": ("wind", "rain")},
            "columns: 'rain' is what is predicted, so it cannot be an input; leave it out",
        ),
        ({}, "column 'day' has dates, which order_by takes; name other columns to predict from"),
        (
            {"experience_by": "month", "boundaries": (1,)},
            "give either boundaries or experience_by, which says where experiences begin",
        ),
        ({"stationary": "repeat"}, "stationary must be None or \"shuffled\" for tables, not 'repeat'"),
        ({"task": "regression", "columns": ("wind",)}, "column 'rain' has no numbers, which a regression predicts"),
        ({"boundaries": (4,), "columns": ("wind",)}, "boundaries must be rising numbers between 1 and 3, not [4]"),
    ],
)
def test_what_does_not_fit_is_named(write: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=exactly(message)):
        plan_stream("table", **{"source": write()} | options)


@pytest.mark.parametrize(
    ("wind", "message"),
    [
        (
            [4, None, 6, None],
            "column 'wind' has no number or text in 2 rows, first in row 1; fill them in, take these rows out, or name "
            "other columns",
        ),
        (
            [4, 2, np.inf, 4],
            "column 'wind' has no number or text in 1 rows, first in row 2; fill them in, take these rows out, or name "
            "other columns",
        ),
    ],
)
def test_missing_values_are_named(write: Any, wind: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=exactly(message)):
        plan_stream("table", source=write(DAYS.assign(wind=wind)), columns=("wind",))


@pytest.mark.parametrize("name", ["month", "day", "wind"])
def test_the_row_is_that_of_the_file_whatever_the_order(write: Any, name: str) -> None:
    rows = DAYS.assign(number=[3, 1, 2, 0])
    rows.loc[[0, 2], name] = None
    options = {"columns": ("wind",), "target": "rain", "experience_by": "month"}
    message = (
        f"column '{name}' has no number or text in 2 rows, first in row 0; fill them in, take these rows out, or name "
        "other columns"
    )
    by_number: list[dict[str, Any]] = [{"order_by": "number"}, {"order_by": "number", "stationary": "shuffled"}]
    for more in [{"order_by": "day"}] if name == "day" else by_number:
        with pytest.raises(ValueError, match=exactly(message)):
            plan_stream("table", source=write(rows), **options | more, seed=1)


def test_whole_numbers_are_classes_unless_there_are_many(write: Any) -> None:
    rows = pd.DataFrame({"x": np.arange(200.0), "y": np.arange(200) % 2.0})
    assert plan_stream("table", source=write(rows)).info.for_learner.task == "classification"
    assert plan_stream("table", source=write(rows.assign(y=rows["y"] / 4))).info.for_learner.task == "regression"
    message = (
        "column 'y' has 200 different values: say whether they are classes, task=\"classification\", or numbers, "
        'task="regression"'
    )
    with pytest.raises(ValueError, match=exactly(message)):
        plan_stream("table", source=write(rows.assign(y=np.arange(200))))
    sizes = plan_stream("table", source=write(rows.assign(y=np.arange(200))), task="classification").info.for_learner
    assert sizes.n_outputs == 200


def test_texts_are_categories_only_where_they_are_few(write: Any) -> None:
    rows = pd.DataFrame({"name": [f"n{k}" for k in range(101)], "y": [0, 1] * 50 + [0]})
    message = (
        "column 'name' has 101 different texts, and at most 100 become inputs; name other columns, or make numbers of "
        "it"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        plan_stream("table", source=write(rows))


@pytest.mark.parametrize(
    ("suffix", "content"), [("csv", b""), ("parquet", b"PAR1"), ("csv", b"a,b\n"), ("csv", b"a\n1\n")]
)
def test_files_that_are_no_tables(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"^(cannot read '.*' \(.*\); it must hold|'.*' has \d rows and \d columns; a stream)"
    ):
        plan_stream("table", source=f"table:{path}")


def test_data_sets_and_generators_of_river() -> None:
    synth = pytest.importorskip("river.datasets.synth")
    generated = list(synth.SEA(variant=1, seed=7).take(50))
    (train,) = plan_stream("table", source="river:SEA(variant=1)", n_samples=50, seed=7, scale=False).train
    x, y = train.batch(slice(None))
    np.testing.assert_allclose(x, [list(row.values()) for row, _ in generated], rtol=1e-6)
    assert y.tolist() == [int(target) for _, target in generated]
    whole = plan_stream("table", source="river:Phishing").info.for_learner
    assert (whole.n_samples, whole.input_shape, whole.n_outputs) == (1250, (9,), 2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("river:SAE", r"^unknown data set of river 'SAE'. Did you mean 'SEA'\? Known: "),
        ("river:SEA(size=3)", r"^river:SEA: .*unexpected keyword argument 'size'$"),
        ("river:SEA", r"^river:SEA never ends: give n_samples$"),
    ],
)
def test_what_river_lacks_is_named(source: str, message: str) -> None:
    pytest.importorskip("river")
    with pytest.raises(ValueError, match=message):
        plan_stream("table", source=source, **{} if source == "river:SEA" else {"n_samples": 10})


def test_without_river_it_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river", None)
    message = "the source 'river:SEA' needs the package river: in the clone, pip install -e '.[river]'"
    with pytest.raises(ImportError, match=exactly(message)):
        plan_stream("table", source="river:SEA", n_samples=10)


def test_a_run_records_it(tmp_path: Path, write: Any) -> None:
    state = np.random.RandomState(0)
    x = state.normal(size=300)
    rows = pd.DataFrame({"x": x, "colour": np.where(state.rand(300) < 0.5, "red", "blue"), "up": x > 0})
    config = RunConfig(
        stream=Component(name="table", source=write(rows, "csv"), boundaries=(200,)),
        network=Component(name="mlp", hidden=[8]),
        learner=Component(name="metaoptimize", lr=0.01),
    ).resolved()
    assert run_one(config, tmp_path / "run") == "finished"
    correct = read_tables(tmp_path / "run")["samples"]["correct"].to_numpy(zero_copy_only=False)
    assert len(correct) == 300
    assert correct[200:].mean() > 0.9


@pytest.mark.parametrize(
    ("source", "options"), [("digits", {"stationary": "shuffled"}), ("river:SEA", {"n_samples": 20})]
)
def test_seeds_whose_rows_differ_are_one_source(source: str, options: dict[str, Any]) -> None:
    if source.startswith("river:"):
        pytest.importorskip("river")
    first, second = (plan_stream("table", source=source, seed=seed, **options).info for seed in (0, 1))
    assert first.fingerprint != second.fingerprint
    assert first.source_hash is second.source_hash is None  # else their runs could not be averaged
    assert plan_stream("table", source="digits").info.source_hash is not None
