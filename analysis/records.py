"""The files in a run directory, which a stranger may have made: bounded, and checked once for their form.

Descriptions are read here; tables are checked before `analysis.runs` and others read them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from continual_metaopt.analysis import run_directory
from continual_metaopt.analysis.files import read_regular
from continual_metaopt.analysis.run_directory import ADDED_COLUMNS, CONFIG, LARGEST, STATES, STATUS, TABLES, Kind

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

REPAIR = "repair it, or move the run directory elsewhere and repeat the run"  # advice about what cannot be read

MAX_BYTES = 8 * 2**20  # of a description
MAX_DEPTH = 40  # of objects and lists in each other
MAX_SHOWN = 2_000  # characters of a reason or a note
MAX_NOTES = 50

# What a file of so many bytes may hold: repeated values take little space, but hardly less than a bit each
VALUES_PER_BYTE, BYTES_PER_BYTE = 8, 64
MANY_VALUES, MANY_BYTES = 2**22, 2**25  # which any file may


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object that a stranger may have written: finite numbers, Unicode text, at most `MAX_DEPTH` levels.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is not a regular file, which the message names, or too large, or not such JSON.
        OSError: it cannot be read.
    """
    text = read_regular(path, MAX_BYTES)
    try:
        content = json.loads(text.decode("utf-8"), parse_constant=_refuse, parse_int=_whole, parse_float=_finite)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    if not _is_within(content, MAX_DEPTH):
        raise ValueError(_TOO_DEEP)
    if b"\\u" in text:
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("it holds text that is not Unicode") from None
    return content


_TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"


def read_config(directory: Path) -> dict[str, Any]:
    """Read `config.json`, what was run: all that `docs/run-directory.md` describes has its type.

    Raises:
        ValueError: the file cannot be read, or a field does not hold what it should; the message says what to do.
    """
    path = directory / CONFIG
    config = _read(path)
    version = config.get("schema_version")
    if version is None:
        raise ValueError(f"{path}: has no schema_version, so it is not a run's; pass only directories of runs")
    if version != run_directory.SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version {_shown(version)} is not supported, only {run_directory.SCHEMA_VERSION}; "
            "use the version of this package that wrote the run"
        )
    info = config.get("stream_info")
    missing = [key for key in run_directory.CONFIG_FIELDS if key not in config]
    missing += [
        f"stream_info.{key}" for key in run_directory.STREAM_FIELDS if not isinstance(info, dict) or key not in info
    ]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; {REPAIR}")
    mistake = (
        _first_mistake(config, run_directory.CONFIG_FIELDS | run_directory.CONFIG_MAY_HOLD)
        or _first_mistake(
            config["stream_info"], run_directory.STREAM_FIELDS | run_directory.STREAM_MAY_HOLD, "stream_info."
        )
        or _of_boundaries(config["stream_info"])
        or _of_learner(config)
    )
    if mistake:
        raise ValueError(f"{path}: {mistake}; {REPAIR}")
    return config


def read_status(directory: Path) -> dict[str, Any]:
    """Read `status.json`, how a run went, likewise; long texts are shortened.

    The state is "running" if the file has not been written yet.

    Raises:
        ValueError: as of `read_config`.
    """
    path = directory / STATUS
    if not os.path.lexists(path):
        # The two files are not written at the same instant: such a run has only just started.
        return {"state": "running", "reason": "status.json has not been written yet"}
    status = _read(path)
    if status.get("state") not in STATES:
        raise ValueError(f"{path}: state {_shown(status.get('state'))} is none of {', '.join(STATES)}; {REPAIR}")
    mistake = _first_mistake(status, run_directory.STATUS_MAY_HOLD)
    if mistake:
        raise ValueError(f"{path}: {mistake}; {REPAIR}")
    if status.get("reason"):
        status["reason"] = _shortened(status["reason"])
    if "notes" in status:
        status["notes"] = [_shortened(note) for note in status["notes"][:MAX_NOTES]]
    return status


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {REPAIR}") from error


def _first_mistake(content: Mapping[str, Any], kinds: Mapping[str, Kind], where: str = "") -> str | None:
    for name, kind in kinds.items():
        if name in content and not kind.holds(content[name]):
            return f"{where}{name} is {kind.words}, not {_shown(content[name])}"
    return None


def _of_boundaries(info: Mapping[str, Any]) -> str | None:
    starts = info["boundaries"]
    rising = all(start < following for start, following in zip(starts, [*starts[1:], info["n_samples"]], strict=True))
    if len(starts) == info["n_experiences"] and starts[0] == 0 and rising:
        return None
    return (
        f"stream_info.boundaries are the first steps of {info['n_experiences']} experiences, rising from 0 to below "
        f"{info['n_samples']}, not {_shown(starts)}"
    )


def _of_learner(config: Mapping[str, Any]) -> str | None:
    learner = config["learner"]
    bounds = learner.get("lr_bounds")
    if bounds is not None and not (
        isinstance(bounds, list) and len(bounds) == 2 and all(map(run_directory.NUMBER.holds, bounds))
    ):
        return f"learner.lr_bounds is a pair of numbers or null, not {_shown(bounds)}"
    absent = [name for name in config.get("tuned", ()) if name not in learner]
    return f"tuned names {_shown(absent[0])}, which the learner has not" if absent else None


def _shown(value: Any) -> str:
    return _shortened(json.dumps(value, ensure_ascii=False), 60)


def _shortened(text: str, most: int = MAX_SHOWN) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _is_within(content: Any, depth: int) -> bool:
    parts = content.values() if isinstance(content, dict) else content
    nested = [part for part in parts if isinstance(part, dict | list)]
    return depth > 0 and all(_is_within(part, depth - 1) for part in nested)


def _refuse(name: Literal["NaN", "Infinity", "-Infinity"] | str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(value := int(digits)) > LARGEST:
        raise ValueError(f"the whole number {_shortened(digits, 30)} is too large")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {_shortened(digits, 30)} is too large")
    return value


def most_rows(config: Mapping[str, Any], name: str) -> int:
    """Bound the rows that a table of a run may have."""
    info = config["stream_info"]
    n_samples, n_blocks = int(info["n_samples"]), max(1, len(config.get("blocks", ())))
    most = {
        "samples": 2 * n_samples + 1000,
        "experiences": 2 * int(info["n_experiences"]) + 1000,
        "step_sizes": (n_samples + 1000) * n_blocks,
        "measurements": 100 * (n_samples + int(info["n_experiences"]) + 100) * n_blocks,
    }
    return most[name]


def open_table(
    file: BinaryIO, config: Mapping[str, Any], name: str, columns: Sequence[str], as_categories: Sequence[str] = ()
) -> parquet.ParquetFile:
    """Open a table of a run, if by its description alone it can be one; nothing of it is read before that is clear.

    Args:
        file: the Parquet file, open.
        config: the content of the run's `config.json`, as far as that is known.
        name: of the table.
        columns: that will be read.
        as_categories: columns of text that are to be read as numbers, and each text once.

    Raises:
        ValueError: it has more rows than such a run has, or than so many bytes can hold, or a column of another type
            or none.
    """
    from pyarrow import parquet

    n_bytes = os.fstat(file.fileno()).st_size
    try:
        content = parquet.ParquetFile(file, read_dictionary=as_categories, page_checksum_verification=True)
    except KeyError as error:
        raise ValueError(f"it lacks {error.args[0]}") from error
    described, schema = content.metadata, content.metadata.schema.to_arrow_schema()
    groups = [described.row_group(number) for number in range(described.num_row_groups)]
    n_rows, most = max(described.num_rows, sum(group.num_rows for group in groups)), most_rows(config, name)
    if n_rows > most:
        raise ValueError(f"it has {n_rows:,} rows, but a run like this has at most {most:,}")
    for place in range(described.num_columns):
        chunks = [group.column(place) for group in groups]
        n_values, size = sum(c.num_values for c in chunks), sum(c.total_uncompressed_size for c in chunks)
        if n_values > max(MANY_VALUES, VALUES_PER_BYTE * n_bytes) or size > max(MANY_BYTES, BYTES_PER_BYTE * n_bytes):
            raise ValueError(f"{n_values:,} values with {size:,} bytes in a column are too many for {n_bytes:,} bytes")
    for column in columns:
        n_such = schema.names.count(column)
        if n_such != 1 and not (n_such == 0 and column in ADDED_COLUMNS.get(name, ())):
            raise ValueError(f"it lacks {column}" if not n_such else f"it has {column} {n_such} times")
        if n_such and not _is_of_type(TABLES[name][column], schema.field(column).type):
            raise ValueError(f"its column {column} has the type {str(schema.field(column).type)[:60]}")
    return content


def _is_of_type(wanted: str, kind: pa.DataType) -> bool:
    """Tell whether a column may have a type: any width of numbers will do, and null where nothing is known."""
    import pyarrow as pa

    if wanted == "string" and pa.types.is_dictionary(kind):
        kind = kind.value_type
    if wanted == "list<string>" and pa.types.is_list(kind):
        return pa.types.is_integer(kind.value_type) or _is_of_type("string", kind.value_type)
    allowed = {
        "string": (pa.types.is_string, pa.types.is_large_string),
        "list<string>": (),
        "bool": (pa.types.is_boolean,),
    }.get(wanted, (pa.types.is_integer, pa.types.is_floating))
    return pa.types.is_null(kind) or any(is_such(kind) for is_such in allowed)
