"""The tables of a run as Parquet files: the same rows make the same file, and none of it needs pandas."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from continual_metaopt.analysis.files import open_regular
from continual_metaopt.analysis.run_directory import TABLES

ROW_GROUP = 2**18  # rows of a table that are written together, and so are in memory at once


def _type(name: str) -> pa.DataType:
    return pa.list_(pa.string()) if name == "list<string>" else pa.type_for_alias(name)


SCHEMAS = {
    table: pa.schema([(column, _type(kind)) for column, kind in columns.items()]) for table, columns in TABLES.items()
}


def as_batch(table: str, columns: Iterable[Sequence[Any]]) -> pa.RecordBatch:
    """Make rows of a table from its columns."""
    schema = SCHEMAS[table]
    arrays = [arrow_array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def read_part(path: Path, table: str) -> pa.Table:
    """Read a part of a table; null in columns that it lacks, because an earlier version began the run."""
    schema = SCHEMAS[table]
    with open_regular(path) as file:  # not by pq.read_table, which imports pandas
        part = pq.ParquetFile(file, page_checksum_verification=True).read(schema.names, use_threads=False)
    return pa.concat_tables([pa.Table.from_batches([], schema), part], promote_options="default")


def arrow_array(column: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Make what ``pa.array`` makes, which first imports pandas: half a second in each process that does runs.

    Args:
        column: numbers, truth values, texts, or lists of them; None for null.
        kind: the type of the array.

    Example:
        >>> arrow_array([0.5, None, 1.5], pa.float32()).to_pylist()
        [0.5, None, 1.5]
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
    """Group rows independently of where one table ends and the next one begins."""
    rest = pa.Table.from_batches([], schema)  # schema.empty_table() imports pandas
    for table in tables:
        rest = pa.concat_tables([rest, table])
        while len(rest) >= ROW_GROUP:
            yield rest.slice(0, ROW_GROUP).combine_chunks()
            rest = rest.slice(ROW_GROUP)
    if len(rest):
        yield rest.combine_chunks()


def write_table(parts: Iterable[pa.Table], table: str, path: Path) -> None:
    """Write a table in encodings that suit its columns: less than half the size of Parquet's defaults."""
    schema = SCHEMAS[table]
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
        for group in _in_row_groups(parts, schema):
            writer.write_table(group, row_group_size=ROW_GROUP)
