"""A stream of the rows of a table: one row at a time, in the order in which they happened."""

import dataclasses
import inspect
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import yaml
from numpy.typing import NDArray

from continual_metaopt.streams.array_stream import Task, array_stream
from continual_metaopt.streams.options import require_at_least_one
from continual_metaopt.streams.plan import STATIONARY_ORDER, random_state
from continual_metaopt.streams.registry import UnknownNameError, unknown_name
from continual_metaopt.streams.source_files import open_regular
from continual_metaopt.streams.stream import Stream, about_stream, fingerprint_of

if TYPE_CHECKING:
    import pandas as pd

DEFINITION = "table v1"
PREFIX, OF_RIVER = "table:", "river:"
MOST_CATEGORIES = 100  # of a column of texts


@about_stream(
    source="the rows of a table",
    changes="whatever changes from row to row",
    when="where a column changes, at the boundaries that are given, or unknown",
    length="all rows, once each",
    head="one output for each class, or one for a number",
)
def table(
    source: str = "digits",
    *,
    target: str | None = None,
    columns: tuple[str, ...] = (),
    order_by: str | None = None,
    experience_by: str | None = None,
    boundaries: tuple[int, ...] = (),
    task: Task | None = None,
    scale: bool = True,
    n_samples: int | None = None,
    stationary: Literal["shuffled"] | None = None,
    seed: int = 0,
) -> Stream:
    r"""Each row of a table is a sample: predict one column from the others, then learn from it.

    Numbers are scaled as they come, by what is known then: each has the mean of its column over the rows so far taken
    off, itself included, and is divided by their standard deviation. So no scaled number tells of later rows. Texts
    become one input of 0 or 1 for each value that the column has anywhere in the table, and so do truth values. Targets
    that are numbers with a fraction are predicted as they are.

    Data sets of the package river, and its generators of drifting data, are tables too. The target's name is "target".

    Args:
        source: ``table:FILE`` of a file of comma-separated values with a row of names, or of Parquet; ``river:NAME`` of
            a class of ``river.datasets`` or ``river.datasets.synth``, such as river:SEA or "river:SEA(variant=2)"; or
            "digits", 64 numbers and a class.
        target: column that is predicted; the last one if not given.
        columns: columns that it is predicted from; if none are given, all but those that other options name.
        order_by: column that tells the order of rows, such as their time; the file's order if not given.
        experience_by: column whose change begins an experience. No learner is told.
        boundaries: numbers of the rows at which experiences begin, without the first one, instead.
        task: "classification" or "regression"; if not given, a regression if the target has numbers with a fraction.
        scale: whether numbers are scaled.
        n_samples: use only this many rows, the first ones, before they are ordered; needed for generators that never
            end.
        stationary: "shuffled" puts the rows in an order that the seed decides, which takes the change away.
        seed: decides this order, and what river's generators draw.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the source needs river, which is missing.
        ValueError: it is no table; a column is not there, is both target and input, has a missing value, dates, or too
            many different values.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "days.csv"
        >>> _ = path.write_text("wind,sky,rain\n1,grey,yes\n3,blue,no\n2,blue,no\n")
        >>> stream = table(f"table:{path}")
        >>> stream.train[0].batch(slice(0, 3))[0].tolist()
        [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    require_at_least_one(n_samples=n_samples)
    rows = _rows(source, n_samples, seed).iloc[:n_samples]
    for option, name in (("target", target), ("order_by", order_by), ("experience_by", experience_by)):
        if name is not None:
            _require_column(rows, option, name)
    for name in columns:
        _require_column(rows, "columns", name)
    if experience_by is not None and boundaries:
        raise ValueError("give either boundaries or experience_by, which says where experiences begin")
    target = str(rows.columns[-1]) if target is None else target
    if target in columns:
        raise ValueError(f"columns: '{target}' is what is predicted, so it cannot be an input; leave it out")
    if order_by is not None:
        rows = rows.loc[_complete(rows[order_by]).sort_values(kind="stable").index]
    if experience_by is not None:
        values = _complete(rows[experience_by]).to_numpy()
        boundaries = tuple((np.flatnonzero(values[1:] != values[:-1]) + 1).tolist())
    if stationary == "shuffled":  # before numbers are scaled, so that what scales them has come before
        rows = rows.iloc[random_state(seed, STATIONARY_ORDER).permutation(len(rows))]
    elif stationary is not None:
        raise ValueError(f'stationary must be None or "shuffled" for tables, not {stationary!r}')
    inputs = columns or [name for name in rows.columns if name not in (target, order_by, experience_by)]
    x = np.concatenate([_numbers(rows[name], scale) for name in inputs], axis=1)
    stream = array_stream((x, _targets(rows[target], task)), boundaries=boundaries, task=task)
    info = dataclasses.replace(
        stream.info,
        definition=DEFINITION,
        fingerprint=fingerprint_of(f"{DEFINITION}\n{stream.info.fingerprint}\n", []),
        source=source,
        stationary=stationary,
        # the rows of generators, and what scales shuffled rows, differ from seed to seed
        source_hash=None if stationary or source.startswith(OF_RIVER) else stream.info.source_hash,
    )
    return dataclasses.replace(stream, info=info)


def _rows(source: str, n_samples: int | None, seed: int) -> "pd.DataFrame":
    import pandas as pd

    if source == "digits":
        (x, y, *_) = _digits()
        return pd.DataFrame(x).rename(columns=str).assign(digit=y)
    if isinstance(source, str) and source.startswith(OF_RIVER):
        pairs = list(islice(_of_river(source, n_samples, seed), n_samples))
        return pd.DataFrame([{str(name): value for name, value in x.items()} for x, _ in pairs]).assign(
            target=[y for _, y in pairs]
        )
    if not (isinstance(source, str) and source.startswith(PREFIX)):
        raise ValueError(f"the source of a table is {PREFIX}FILE, {OF_RIVER}NAME or digits, not '{source}'")
    path = Path(source.removeprefix(PREFIX)).expanduser()
    read = pd.read_parquet if path.suffix == ".parquet" else pd.read_csv
    try:
        with open_regular(path) as file:
            rows = read(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no table at '{path}'; give the path of a .csv or .parquet file") from error
    except Exception as error:  # whatever pandas and pyarrow say of a damaged file
        raise ValueError(
            f"cannot read '{path}' ({str(error).strip()}); it must hold comma-separated values with a row of names, or "
            "be a .parquet file"
        ) from error
    if len(rows) == 0 or len(rows.columns) < 2:
        raise ValueError(f"'{path}' has {len(rows)} rows and {len(rows.columns)} columns; a stream needs rows, and two")
    return rows.reset_index(drop=True).rename(columns=str)


def _of_river(source: str, n_samples: int | None, seed: int) -> Iterable[tuple[dict[Any, Any], Any]]:
    """Make a data set of river, or one of its generators, with the seed if it takes one."""
    try:
        from river import datasets
        from river.datasets import base, synth
    except ImportError as error:
        raise ImportError(
            f"the source '{source}' needs the package river: in the clone, pip install -e '.[river]'"
        ) from error
    name, _, arguments = source.removeprefix(OF_RIVER).rstrip(")").partition("(")
    known = {
        name: kind
        for module in (datasets, synth)
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, base.Dataset)
    }
    if name not in known:
        raise UnknownNameError(unknown_name("data set of river", name, list(known)))
    options = yaml.safe_load("{" + arguments.replace("=", ": ") + "}")
    if "seed" in inspect.signature(known[name]).parameters:
        options = {"seed": seed} | options
    try:
        made = known[name](**options)
        if made.n_samples is None and n_samples is None:
            raise ValueError(f"{OF_RIVER}{name} never ends: give n_samples")
        if isinstance(made, base.RemoteDataset) and not made.is_downloaded:
            made.download(verbose=False)
    except TypeError as error:
        raise ValueError(f"{OF_RIVER}{name}: {error}") from error
    except OSError as error:
        raise FileNotFoundError(f"{OF_RIVER}{name} could not be downloaded ({error})") from error
    return cast(Iterable[tuple[dict[Any, Any], Any]], made)


def _digits() -> Any:
    from continual_metaopt.streams.sources import load_source

    images = load_source("digits").train
    return np.asarray(images.x).reshape(len(images.y), -1), images.y


def _require_column(rows: "pd.DataFrame", option: str, name: str) -> None:
    if name not in rows.columns:
        raise ValueError(f"{option}: the table has no column '{name}'; its columns are {', '.join(rows.columns)}")


def _complete(column: "pd.Series") -> "pd.Series":
    """Return a column without missing values."""
    missing = column.isna() if column.dtype.kind != "f" else ~np.isfinite(column)
    if missing.any():
        raise ValueError(
            f"column '{column.name}' has no number or text in {missing.sum():,} rows, first in row "
            f"{column.index[missing].min()}; fill them in, take these rows out, or name other columns"
        )
    return column


def _numbers(column: "pd.Series", scale: bool) -> NDArray[np.float64]:
    """Make inputs of a column, [rows, inputs]."""
    column = _complete(column)
    if column.dtype.kind in "mM":
        raise ValueError(f"column '{column.name}' has dates, which order_by takes; name other columns to predict from")
    if column.dtype.kind in "iuf":
        numbers = column.to_numpy(np.float64)[:, None]
        return _scaled(numbers) if scale else numbers
    values, place = np.unique(column.to_numpy().astype(str), return_inverse=True)
    if len(values) > MOST_CATEGORIES:
        raise ValueError(
            f"column '{column.name}' has {len(values):,} different texts, and at most {MOST_CATEGORIES} become inputs; "
            "name other columns, or make numbers of it"
        )
    return np.eye(len(values))[place]


def _scaled(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take off the mean over the rows so far, and divide by their standard deviation, or by 1 where it is 0."""
    moved = numbers - numbers[0]  # so that sums of squares lose no digits
    n = np.arange(1, len(moved) + 1)[:, None]
    mean = np.cumsum(moved, axis=0) / n
    variance = np.maximum(np.cumsum(moved**2, axis=0) / n - mean**2, 0)
    noise = 1e-12 * np.maximum.accumulate(moved**2, axis=0)  # what rounding makes of a variance of 0
    return np.asarray((moved - mean) / np.where(variance > noise, np.sqrt(variance), 1))


def _targets(column: "pd.Series", task: Task | None) -> NDArray[Any]:
    """Make targets of a column: numbers, or the places of its values among all in order."""
    column = _complete(column)
    if task == "regression" or (task is None and column.dtype.kind == "f" and (column % 1 != 0).any()):
        if column.dtype.kind not in "iuf":
            raise ValueError(f"column '{column.name}' has no numbers, which a regression predicts")
        return column.to_numpy(np.float64)
    values = column.to_numpy() if column.dtype.kind in "iuf" else column.to_numpy().astype(str)
    classes, targets = np.unique(values, return_inverse=True)
    if task is None and len(classes) > MOST_CATEGORIES:
        raise ValueError(
            f"column '{column.name}' has {len(classes):,} different values: say whether they are classes, "
            'task="classification", or numbers, task="regression"'
        )
    return targets
