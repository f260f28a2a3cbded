"""Hand runs to other tools: tidy tables as CSV or Parquet, event files for TensorBoard, offline runs for W&B."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pandas as pd
import pyarrow as pa

from continual_metaopt.analysis.escaping import no_formula
from continual_metaopt.analysis.extras import how_to_install
from continual_metaopt.analysis.files import file_names, is_regular, read_regular
from continual_metaopt.analysis.records import read_status
from continual_metaopt.analysis.run_directory import TABLES
from continual_metaopt.analysis.runs import Runs

Format = Literal["csv", "parquet", "tensorboard", "wandb"]

MARK = "export.json"  # lists what an export has written, so that the next one may replace it
MAX_POINTS = 1000  # of accuracy and loss per run, which are means over as many stretches of the stream
RUN_COLUMNS = ("run_id", "study", "label", "seed")  # that each row of each table begins with
_TYPES = {
    "run_id": pa.string(),
    "study": pa.string(),
    "label": pa.string(),
    "seed": pa.int64(),
    "step": pa.int64(),
    "first_step": pa.int64(),
    "experience": pa.int32(),
    "correct": pa.bool_(),
    "block": pa.string(),
    "quantity": pa.string(),
    "statistic": pa.string(),
    "classes": pa.list_(pa.string()),
    "n_samples": pa.int64(),
    "n_seen_before": pa.int64(),
    "n_correct": pa.int64(),
}  # all others are float64


class Scalar(NamedTuple):
    """A number that belongs to a step of a run, under a name such as `step_size/conv1`."""

    tag: str
    step: int
    value: float


def export(runs: Runs, out: str | os.PathLike[str], fmt: Format) -> list[Path]:
    """Write runs in another tool's format.

    Args:
        runs: the runs; those that are going on are written as far as they have come.
        out: a folder, made if it does not exist. One that an export has written is replaced, unless it holds any file
            that is not on that export's list.
        fmt: `"csv"` or `"parquet"`: a file for each table (runs, samples, step_sizes, measurements, experiences), every
            row of which begins with run_id, study, label and seed. `"tensorboard"`: a folder of event files per run.
            `"wandb"`: offline runs, for `wandb sync`. The latter two hold accuracy and loss as means over at most 1,000
            stretches of the stream, and everything else as recorded.

    Returns:
        The files, or folders of runs, that were written.

    Raises:
        ValueError: there is no such format, the folder is or holds the current one, or a record cannot be read.
        FileExistsError: the folder holds something else, or is a link.
        ModuleNotFoundError: the format needs a package that is not installed.
    """
    writers: Mapping[str, Callable[[Runs, Path], list[Path]]] = {
        "csv": partial(_write_tables, fmt="csv"),
        "parquet": partial(_write_tables, fmt="parquet"),
        "tensorboard": write_tensorboard,
        "wandb": write_wandb,
    }
    if fmt not in writers:
        raise ValueError(f"fmt must be one of {', '.join(get_args(Format))}, not {fmt!r}")
    folder = Path(out)
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ValueError(f"{out}: a folder that is replaced cannot be the current one, or hold it; give another")
    _require_own(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        made = temporary / "export"  # with the usual permissions
        made.mkdir()
        written = [path.relative_to(made) for path in writers[fmt](runs, made)]
        listed = {"format": fmt, "files": sorted(_files_below(made))}
        (made / MARK).write_text(json.dumps(listed, indent=1) + "\n", "utf-8")
        if folder.exists():
            _require_own(folder)  # still
            shutil.rmtree(folder)
        made.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [folder / path for path in written]


def write_tensorboard(runs: Runs, folder: Path) -> list[Path]:
    """Write the event files of each run into a folder of its own."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ModuleNotFoundError as error:
        raise _missing("tensorboard", error) from error
    folders = []
    for path, name in _folder_names(runs).items():
        config, status = runs.configs[path], read_status(Path(path))
        began, speed = _clock(status)
        folders.append(folder / name)
        writer = EventFileWriter(str(folders[-1]))
        for scalar in scalars(runs, path):
            summary = Summary(value=[Summary.Value(tag=scalar.tag, simple_value=scalar.value)])
            writer.add_event(Event(wall_time=began + scalar.step / speed, step=scalar.step, summary=summary))
        writer.close()
        # under another name than in a run directory, for which the folder would be taken
        (folders[-1] / "run.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return folders


def write_wandb(runs: Runs, folder: Path) -> list[Path]:
    """Write each run into `wandb` in the folder, as an offline run that `wandb sync` uploads."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise _missing("wandb", error) from error
    for path in runs.table["path"]:
        config, status = runs.configs[path], read_status(Path(path))
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, save_code=False)
        run = wandb.init(
            mode="offline",
            dir=str(folder),
            project=file_names([config["study"] or "continual-metaopt"], "-").popitem()[1],
            group=config["label"],
            name=f"{config['label']}, seed {config['seed']}",
            id=file_names([config["run_id"]], "-").popitem()[1],
            config=dict(config),
            settings=settings,
        )
        by_step = itertools.groupby(sorted(scalars(runs, path), key=lambda scalar: scalar.step), lambda s: s.step)
        for step, group in by_step:
            run.log({scalar.tag: scalar.value for scalar in group}, step=step)
        run.summary.update({key: status.get(key) for key in ("state", "reason", "wall_time", "samples_per_second")})
        run.finish()
    wandb.teardown()  # which waits until the last files have been written, as finish does not
    return sorted(path for path in (folder / "wandb").glob("offline-run-*") if path.is_dir())


def scalars(runs: Runs, run: str) -> Iterator[Scalar]:
    """All that was recorded of a run, as numbers with names and steps.

    Yields:
        Of samples, `online/accuracy` (not of a regression) and `online/loss`: means over at most 1,000 stretches of
        equal length, at the last sample of each. `step_size/BLOCK`, and `QUANTITY/BLOCK` of other measurements, with
        `/STATISTIC` where that is not `value`. Of each experience, `experience/online_accuracy` and
        `experience/test_accuracy` at its last sample. Values that were not recorded are left out.
    """
    length = max(1, math.ceil(runs.configs[run]["stream_info"]["n_samples"] / MAX_POINTS))
    yield from _means(runs, run, length)
    for batch in runs.batches(run, "step_sizes", ["step", "block", "step_size"]):
        for step, block, value in _rows(batch):
            yield Scalar(f"step_size/{block}", step, value)
    for batch in runs.batches(run, "measurements"):
        for step, quantity, block, statistic, value in _rows(batch):
            parts = [quantity, block, None if statistic == "value" else statistic]
            if value is not None:
                yield Scalar("/".join(part for part in parts if part is not None), step, value)
    columns = ["first_step", "n_samples", "online_accuracy", "test_accuracy"]
    for batch in runs.batches(run, "experiences", columns):
        for first, n, *values in _rows(batch):
            for name, value in zip(columns[2:], values, strict=True):
                if value is not None and not math.isnan(value):
                    yield Scalar(f"experience/{name}", first + n - 1, value)


def _means(runs: Runs, run: str, length: int) -> Iterator[Scalar]:
    """Means of accuracy and loss over stretches of the stream; the last stretch may be shorter."""
    rest = pd.DataFrame()
    for batch in itertools.chain(runs.batches(run, "samples", ["step", "correct", "loss"]), [None]):
        frame = rest if batch is None else pd.concat([rest, pd.DataFrame(batch.to_pydict())], ignore_index=True)
        if frame.empty:
            continue
        stretch = frame["step"] // length
        complete = stretch < stretch.iloc[-1] if batch is not None else stretch.notna()
        for _, part in frame[complete].groupby(stretch[complete]):
            step = int(part["step"].iloc[-1])
            if part["correct"].notna().all():
                yield Scalar("online/accuracy", step, float(part["correct"].astype(float).mean()))
            if part["loss"].notna().any():
                yield Scalar("online/loss", step, float(part["loss"].mean()))
        rest = frame[~complete]


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _write_tables(runs: Runs, folder: Path, fmt: Literal["csv", "parquet"]) -> list[Path]:
    """Write each table as a file; in CSV, lists are JSON, what is missing is empty, no text is a formula."""
    from pyarrow import csv, parquet

    open_writer = csv.CSVWriter if fmt == "csv" else partial(parquet.ParquetWriter, compression="zstd")
    prepare = _as_plain_text if fmt == "csv" else lambda batch: batch
    paths = [folder / f"{name}.{fmt}" for name in ("runs", *TABLES)]
    batches = prepare(_runs_batch(runs))
    with open_writer(str(paths[0]), batches.schema) as writer:
        writer.write(pa.Table.from_batches([batches]))
    for path, (name, columns) in zip(paths[1:], TABLES.items(), strict=True):
        schema = pa.schema([(column, _TYPES.get(column, pa.float64())) for column in (*RUN_COLUMNS, *columns)])
        with open_writer(str(path), prepare(pa.RecordBatch.from_pylist([], schema)).schema) as writer:
            for row in runs.table[["path", *RUN_COLUMNS]].to_dict("records"):
                for batch in runs.batches(row["path"], name):
                    about = [pa.array([row[column]] * len(batch), _TYPES[column]) for column in RUN_COLUMNS]
                    recorded = [batch.column(column).cast(schema.field(column).type) for column in columns]
                    whole = prepare(pa.RecordBatch.from_arrays([*about, *recorded], schema=schema))
                    writer.write(pa.Table.from_batches([whole]))
    return paths


def _runs_batch(runs: Runs) -> pa.RecordBatch:
    """The table of runs, with the settings of stream, network and learner as columns; lists and the like as JSON."""
    settings = []
    for path in runs.table["path"]:
        parts = ((part, runs.configs[path][part]) for part in ("stream", "network", "learner"))
        settings.append({f"{part}.{name}": _plain(value) for part, chosen in parts for name, value in chosen.items()})
    columns = {column: runs.table[column].tolist() for column in runs.table.columns}
    for name in dict.fromkeys(name for chosen in settings for name in chosen):
        values = [chosen.get(name) for chosen in settings]
        kinds = {type(value) for value in values if value is not None}
        mixed = len(kinds) > 1 and not kinds <= {int, float}
        columns[name] = [None if value is None else str(value) if mixed else value for value in values]
        if kinds == {int, float}:
            columns[name] = [None if value is None else float(value) for value in values]
    table = pa.Table.from_pandas(pd.DataFrame(columns, dtype=object), preserve_index=False)
    as_text = [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]
    return table.cast(pa.schema(as_text)).combine_chunks().to_batches()[0]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value)


def _as_plain_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    for index, field in enumerate(batch.schema):
        column = batch.column(index)
        if pa.types.is_list(field.type):
            column = pa.array(
                [None if value is None else json.dumps(value) for value in column.to_pylist()], pa.string()
            )
        elif pa.types.is_string(field.type):
            known = column.dictionary_encode()
            texts = pa.array([no_formula(text) for text in known.dictionary.to_pylist()], pa.string())
            column = pa.DictionaryArray.from_arrays(known.indices, texts).cast(pa.string())
        batch = batch.set_column(index, no_formula(field.name), column)
    return batch


def _clock(status: Mapping[str, Any]) -> tuple[float, float]:
    """When learning began, in seconds since 1970, and samples per second; as if its speed had been even."""
    heartbeat, wall_time = status.get("heartbeat"), status.get("wall_time") or 0.0
    ended = datetime.fromisoformat(heartbeat).timestamp() if heartbeat else 0.0
    return ended - wall_time, status.get("samples_per_second") or 1.0


def _folder_names(runs: Runs) -> dict[str, str]:
    """A name for a folder of each run, by its path: the label, the seed and the identity, and a number for a copy."""
    about = {
        path: (f"{config['label']}", f"seed{config['seed']}-{config['run_id']}")
        for path, config in runs.configs.items()
    }
    labels, identities = (file_names(dict.fromkeys(texts), "-") for texts in zip(*about.values(), strict=True))
    names = {path: f"{labels[label]}-{identities[identity]}" for path, (label, identity) in about.items()}
    copies = Counter[str]()
    for path, name in names.items():
        copies[name] += 1
        names[path] = f"{name}-{copies[name]}" if copies[name] > 1 else name
    return names


def _require_own(folder: Path) -> None:
    """Check that nothing but an earlier export would be replaced."""
    if folder.is_symlink():
        raise FileExistsError(f"{folder} is a link, which an export does not follow; give the folder itself")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    own: set[str] = set()
    if is_regular(folder / MARK):
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            own = {MARK, *json.loads(read_regular(folder / MARK))["files"]}
    others = sorted(_files_below(folder) - own) if folder.is_dir() else [folder.name]
    if others:
        raise FileExistsError(
            f"{folder} holds '{others[0]}', which no export has written; choose another folder, which need not exist"
        )


def _files_below(folder: Path) -> set[str]:
    """The paths in a folder of all files, links and empty folders."""
    found = set()
    for directory, subfolders, files in os.walk(folder):
        links = [name for name in subfolders if (Path(directory) / name).is_symlink()]
        empty = [] if subfolders or files or Path(directory) == folder else ["."]
        found |= {(Path(directory) / name).relative_to(folder).as_posix() for name in (*files, *links, *empty)}
    return found


def _missing(package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    message = (
        f"this format needs the package {package}, of which {error.name} is missing; "
        f"install it: {how_to_install(package)}"
    )
    return ModuleNotFoundError(message, name=error.name)
