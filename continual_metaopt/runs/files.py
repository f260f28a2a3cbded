"""The files of a run directory."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from continual_metaopt.analysis.files import is_regular, real_folder, write_whole
from continual_metaopt.analysis.records import read_object
from continual_metaopt.optim.protocol import QUANTILES

SCHEMA_VERSION = 1
CHECKPOINT, COMPILED_CHECKPOINT = "checkpoint.pt", "checkpoint.npz"  # of PyTorch's state, of plain arrays
ROW_GROUP = 2**18  # rows of a table that are written together, and so are in memory at once
WRITTEN = "written.json"  # lists what a run that has not ended has written, and removes at its end
DAMAGED = "damaged"  # folder of what cannot be read any more
REASON = "reason.txt"
TABLES = {
    "samples": pa.schema(
        [("step", pa.int32()), ("experience", pa.int32()), ("correct", pa.bool_()), ("loss", pa.float32())]
    ),
    "step_sizes": pa.schema(
        [
            ("step", pa.int32()),
            ("block", pa.string()),
            ("step_size", pa.float64()),
            *((f"q{round(100 * level):02d}", pa.float64()) for level in QUANTILES),
        ]
    ),
    "measurements": pa.schema(
        [
            ("step", pa.int32()),
            ("quantity", pa.string()),
            ("block", pa.string()),
            ("statistic", pa.string()),
            ("value", pa.float64()),
        ]
    ),
    "experiences": pa.schema(
        [
            ("experience", pa.int32()),
            ("classes", pa.list_(pa.string())),
            ("first_step", pa.int32()),
            ("n_samples", pa.int32()),
            ("n_seen_before", pa.int32()),
            ("n_correct", pa.int32()),
            ("online_accuracy", pa.float64()),
            ("mean_loss", pa.float64()),
            ("test_accuracy", pa.float64()),
        ]
    ),
}
_NAMES = (
    "config.json",
    "status.json",
    WRITTEN,
    CHECKPOINT,
    COMPILED_CHECKPOINT,
    *(f"{name}.parquet" for name in TABLES),
)
_TEMPORARY = re.compile(rf"\.({'|'.join(map(re.escape, _NAMES))}|part-\d+\.parquet)\.\d+\.tmp")


class Written(NamedTuple):
    """What a run that has not ended has written: so many parts of each table, whole tables, and checkpoints."""

    n_parts: int = 0
    tables: bool = False
    checkpoints: tuple[str, ...] = ()


def _move_aside(run: Path, names: Iterable[str], what: str, then: str) -> str:
    """Move entries of a run directory to a new folder "damaged", and say so there."""
    number = 1
    while os.path.lexists(folder := run / (DAMAGED if number == 1 else f"{DAMAGED}-{number}")):
        number += 1
    text = f"{what} is kept in '{folder}', and the run {then}"
    folder.mkdir()
    write_whole(folder / REASON, partial(Path.write_text, data=text + "\n", encoding="utf-8"))
    for name in names:
        if os.path.lexists(run / name):
            (folder / name).parent.mkdir(exist_ok=True)
            (run / name).rename(folder / name)
    return text


def has_records(run: Path) -> bool:
    """Whether a run directory holds tables, parts of them, or a checkpoint."""
    names = (CHECKPOINT, COMPILED_CHECKPOINT, *(f"{name}.parquet" for name in TABLES))
    return any(os.path.lexists(run / name) for name in names) or any(_parts(run, name) for name in TABLES)


def is_marked(run: Path, run_id: str) -> bool:
    """Whether a directory without a description that can be read is a run's, by its status or its name.

    So is one that holds nothing but what a run leaves that never began.
    """
    try:
        status = read_json(run / "status.json")
    except (OSError, ValueError):
        status = {}
    if run.name.endswith(f"-{run_id}") or status.get("run_id") == run_id:
        return True
    began_nothing = status.get("state") == "failed" and "owner" in status and "run_id" not in status
    damaged = [folder.name for folder in _damaged_folders(run)]
    expected = {*damaged, "status.json"} if began_nothing else {*damaged}
    return all(_TEMPORARY.fullmatch(entry.name) or entry.name in expected for entry in run.iterdir())


def _damaged_folders(run: Path) -> list[Path]:
    """The folders of ``set_aside``, in order."""
    folders = [folder for folder in run.glob(f"{DAMAGED}*") if not folder.is_symlink() and is_regular(folder / REASON)]
    return sorted(folders, key=lambda folder: (len(folder.name), folder.name))


def remove_leftovers(run: Path) -> None:
    """Remove what a run does not need once its tables are whole: their parts, the checkpoint, half-written files.

    Only what is on the run's list is removed. What cannot be removed does no harm.
    """
    if not is_regular(run / WRITTEN) or not all(is_regular(run / f"{name}.parquet") for name in TABLES):
        return
    written = _written(run)
    with suppress(OSError):
        for name in written.checkpoints:
            (run / name).unlink(missing_ok=True)
        for name in TABLES:
            _remove_parts(run, name, range(written.n_parts))
        _remove_temporary_files(run)
        (run / WRITTEN).unlink()


def _make_way(run: Path, n_parts: int) -> None:
    """Remove the tables of an attempt that did not end, but for so many parts of each; set aside others in the way."""
    written, others = _written(run), []
    for name in TABLES:
        if os.path.lexists(run / f"{name}.parquet"):
            if written.tables:
                (run / f"{name}.parquet").unlink()
            else:
                others.append(f"{name}.parquet")
        _remove_parts(run, name, range(n_parts, written.n_parts))
        others += [f"{name}/{part.name}" for number, part in _parts(run, name).items() if number >= n_parts]
        if n_parts == 0 and os.path.lexists(run / name) and ((run / name).is_symlink() or not (run / name).is_dir()):
            others.append(name)
    _remove_temporary_files(run)
    if others:
        listed = f"'{run / others[0]}' is not on the list of what this run has written; it"
        _move_aside(run, others, listed, "goes on" if n_parts else "begins again")


def _remove_parts(run: Path, name: str, numbers: range) -> None:
    """Remove parts of a table, half-written ones too, and the folder if nothing else is in it."""
    for number, part in _parts(run, name).items():
        if number in numbers:
            part.unlink(missing_ok=True)
    _remove_temporary_files(run / name)
    if not (run / name).is_symlink() and (run / name).is_dir() and not any((run / name).iterdir()):
        (run / name).rmdir()


def _written(run: Path) -> Written:
    """What an attempt that did not end has written, by its own list; nothing without one."""
    try:
        content = read_json(run / WRITTEN)
        checkpoints = tuple(name for name in (CHECKPOINT, COMPILED_CHECKPOINT) if name in content["checkpoints"])
        return Written(int(content["n_parts"]), content["tables"] is True, checkpoints)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return Written()


def _folder(run: Path, name: str) -> Path:
    """The folder of a table's parts.

    Raises:
        FileExistsError: it is a link.
    """
    folder = real_folder(run / name)
    folder.mkdir(exist_ok=True)
    return folder


def _parts(run: Path, name: str) -> dict[int, Path]:
    """The parts of a table by number."""
    if (run / name).is_symlink() or not (run / name).is_dir():
        return {}
    parts = {part.stem.removeprefix("part-"): part for part in (run / name).glob("part-*.parquet")}
    return {int(number): part for number, part in parts.items() if number.isdecimal()}


def _remove_temporary_files(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote."""
    if not folder.is_symlink() and folder.is_dir():
        for temporary in folder.iterdir():
            if _TEMPORARY.fullmatch(temporary.name) and (temporary.is_symlink() or is_regular(temporary)):
                temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: it is not a regular file, too large or damaged; the message names it.
    """
    try:
        return read_object(path)
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged ({error})") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all.

    Raises:
        ValueError: a number is not finite, which JSON has no name for.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def arrow_array(column: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Make what ``pa.array`` makes, which first imports pandas: half a second in each process that does runs.

    Args:
        column: numbers, truth values, texts, or lists of them; None for null.
        kind: the type of the array.
    """
    known = np.array([value is not None for value in column], bool)
    validity = None if known.all() else _bits(known)
    if pa.types.is_list(kind) or pa.types.is_string(kind):
        parts: list[Any] = [() if value is None else value for value in column]
        if pa.types.is_string(kind):
            parts = [value.encode() if value else b"" for value in parts]
        offsets = pa.py_buffer(np.cumsum([0, *map(len, parts)], dtype=np.int32))
        if pa.types.is_string(kind):
            return pa.Array.from_buffers(kind, len(parts), [validity, offsets, pa.py_buffer(b"".join(parts))])
        values = arrow_array([value for part in parts for value in part], kind.value_type)
        return pa.Array.from_buffers(kind, len(parts), [validity, offsets], children=[values])
    numbers = np.array(column if validity is None else [value or 0 for value in column], kind.to_pandas_dtype())
    return pa.Array.from_buffers(
        kind, len(numbers), [validity, _bits(numbers) if pa.types.is_boolean(kind) else pa.py_buffer(numbers)]
    )


def _bits(flags: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def _in_row_groups(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows of tables in row groups, which do not depend on where one table ends and the next one begins."""
    rest = pa.Table.from_batches([], schema)  # schema.empty_table() imports pandas
    for table in tables:
        rest = pa.concat_tables([rest, table])
        while len(rest) >= ROW_GROUP:
            yield rest.slice(0, ROW_GROUP).combine_chunks()
            rest = rest.slice(ROW_GROUP)
    if len(rest):
        yield rest.combine_chunks()


def _write_table(groups: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write row groups in encodings that suit their columns: less than half the size of Parquet's defaults."""
    strings = [field.name for field in schema if pa.types.is_string(field.type)]
    encodings = {
        field.name: "DELTA_BINARY_PACKED" if pa.types.is_integer(field.type) else "BYTE_STREAM_SPLIT"
        for field in schema
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    }
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=strings,
        column_encoding=encodings,
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=ROW_GROUP)
