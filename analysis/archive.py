"""Put the records of a study into one small file, to be kept or published."""

from __future__ import annotations

import io
import os
import tarfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from continual_metaopt.analysis.files import is_regular, open_regular, read_regular, write_whole
from continual_metaopt.analysis.run_directory import CONFIG, ENDED, STATUS, TABLES
from continual_metaopt.analysis.runs import load_runs
from continual_metaopt.analysis.statistics import is_regression

SUFFIX = ".tar.xz"
_OF_STUDY = "study.json"


def archive(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the run directories below a folder into one file, without the losses of single samples.

    These take nine tenths of the space, because they cannot be compressed. All else is kept bit for bit: whether each
    prediction was correct, mean losses of experiences, step sizes, measurements, descriptions. Of a regression, whose
    score they are, losses are kept. Unpacked (`tar -xf`), the directories are read as any others. The same runs make
    the same file.

    Args:
        folder: a study's folder, or a folder of run directories. Its name is that of the unpacked folder.
        out: the file, which ends in .tar.xz.

    Raises:
        FileNotFoundError: there are no runs.
        ValueError: `out` does not end in .tar.xz, a run has not ended, or a file of it cannot be read.
        OSError: the file cannot be written.
    """
    root, target = Path(folder).resolve(), Path(out)
    if not target.name.endswith(SUFFIX):
        raise ValueError(f"the archive is a {SUFFIX} file, but {target.name!r} was given")
    runs = load_runs(root, purpose=None)
    going_on = runs.table.loc[~runs.table["state"].isin(ENDED), "path"]
    if len(going_on):
        raise ValueError(
            f"runs that have not ended: {len(going_on)}, {going_on.iloc[0]} first; finish them or move them elsewhere"
        )
    contents = {path: read_regular(path) for path in [root / _OF_STUDY] if is_regular(path)}
    for run in map(Path, runs.table["path"]):
        contents |= {run / name: read_regular(run / name) for name in (CONFIG, STATUS)}
        for name in TABLES:
            if name != "samples" and os.path.lexists(path := run / f"{name}.parquet"):
                with open_regular(path) as file:
                    contents[path] = file.read()
        keep = is_regression(runs.among([str(run)]))
        contents[run / "samples.parquet"] = _samples(run / "samples.parquet", keep)
    return write_whole(
        target, partial(_write, {str(path.relative_to(root.parent)): contents[path] for path in contents})
    )


def _samples(path: Path, with_losses: bool) -> bytes:
    """The table of samples, with null in place of losses unless they are kept."""
    with open_regular(path) as file:
        rows = pq.read_table(file)
    if not with_losses:
        place = rows.schema.get_field_index("loss")
        none = pa.nulls(len(rows), rows.schema.field(place).type)
        rows = rows.set_column(place, rows.schema.field(place), none)
    written = io.BytesIO()
    pq.write_table(
        rows,
        written,
        compression="none",  # the archive's is better
        use_dictionary=[name for name in rows.column_names if name not in ("step", "loss")],
        column_encoding={"step": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    )
    return written.getvalue()


def _write(contents: dict[str, bytes], path: Path) -> None:
    with tarfile.open(path, "w:xz", preset=6) as file:
        for name in sorted(contents):
            entry = tarfile.TarInfo(name)
            entry.size = len(contents[name])
            file.addfile(entry, io.BytesIO(contents[name]))
