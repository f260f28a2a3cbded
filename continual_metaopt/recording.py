"""Run directories (docs/run-directory.md): what a run leaves on disk, so written that nothing recorded is lost."""

import errno
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from continual_metaopt.analysis.files import is_regular, open_regular, read_regular, real_folder, write_whole
from continual_metaopt.analysis.records import open_table, read_object
from continual_metaopt.engines.observations import Observations
from continual_metaopt.in_use import require_own
from continual_metaopt.optim.summaries import QUANTILES
from continual_metaopt.processes import this_process
from continual_metaopt.streams.stream import StreamInfo

SCHEMA_VERSION = 1
CHECKPOINT, COMPILED_CHECKPOINT = "checkpoint.pt", "checkpoint.npz"  # of PyTorch's state, of plain arrays
STATES = ("running", "finished", "diverged", "failed")
ROW_GROUP = 2**18  # rows of a table that are written together, and so are in memory at once
IN_CHECKPOINT = (  # of how far a run is; and of its records, under "progress"
    *("run_id", "n_samples", "n_correct", "n_ended", "n_correct_in_experience", "loss_in_experience", "progress"),
)
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


class RunDirectory:
    """The directory of one run while it is being written.

    Tables grow in memory until ``checkpoint`` writes them as one more part each; ``finish`` merges the parts. Whenever
    the process is killed, ``load_checkpoint`` and ``resume`` find what the last checkpoint needs.

    Args:
        path: the directory, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wall_time = 0.0
        self.learning_time = 0.0
        self._status: dict[str, Any] = {
            "state": "running",
            "reason": None,
            "step": 0,
            "n_correct": None,
            "engine": None,
            "notes": [],
        }
        self._rows: dict[str, list[pa.RecordBatch]] = {name: [] for name in TABLES}
        self._n_parts = 0
        self._checkpoints: set[str] = set()
        self._merged = False  # or begun to
        self._began = False
        self._running_since = time.monotonic()
        path.mkdir(parents=True, exist_ok=True)

    @property
    def n_unsaved(self) -> int:
        """How many rows there are that no checkpoint has yet."""
        return sum(batch.num_rows for batches in self._rows.values() for batch in batches)

    def start(self, config: dict[str, Any]) -> None:
        """Begin a run: write its configuration and say that it is running.

        What an earlier attempt left is removed, as far as it is on that attempt's list; what else is in the way is set
        aside.
        """
        _make_way(self.path, 0)
        (self.path / WRITTEN).unlink(missing_ok=True)
        write_json(self.path / "config.json", config)
        self._begin(config)

    def resume(self, progress: dict[str, Any]) -> None:
        """Go on after a checkpoint, given the ``progress`` that it holds; later parts as in ``start``."""
        self._n_parts = progress["n_parts"]
        self.wall_time, self.learning_time = progress["wall_time"], progress["learning_time"]
        self._status |= {"step": progress["step"], "n_correct": progress.get("n_correct")}
        _make_way(self.path, self._n_parts)
        self._checkpoints = {name for name in (CHECKPOINT, COMPILED_CHECKPOINT) if is_regular(self.path / name)}
        self._begin(read_json(self.path / "config.json"))

    def observe(self, observations: Observations, samples_every: int = 1) -> None:
        """Add what a learner observed.

        Args:
            observations: of consecutive samples.
            samples_every: distance in steps between the samples that get a row; all of them are counted.
        """
        first = -observations.first_step % samples_every
        correct, loss = observations.correct[first::samples_every], observations.loss[first::samples_every]
        steps = np.arange(observations.first_step + first, observations.next_step, samples_every)
        self._add("samples", [steps, np.full(len(steps), observations.experience), correct, loss])
        no_quantiles = (None,) * len(QUANTILES)
        self._add_rows(
            "step_sizes",
            [
                (step, block, size, *observations.quantiles.get((step, block), no_quantiles))
                for step, block, size in observations.step_sizes
            ],
        )
        self._add_rows("measurements", observations.measurements)
        self._status["step"] = observations.next_step
        if None not in observations.correct[:1]:
            self._status["n_correct"] = (self._status["n_correct"] or 0) + sum(map(bool, observations.correct))

    def measure(self, rows: list[tuple[int, str, str | None, str, float]]) -> None:
        """Add measurements: (step, quantity, block or None, statistic, value)."""
        self._add_rows("measurements", rows)

    def add_experience(self, **row: Any) -> None:
        """Add a row to the table of experiences."""
        self._add_rows("experiences", [tuple(row[name] for name in TABLES["experiences"].names)])

    def checkpoint(
        self, save: Callable[[Path, dict[str, Any]], None], engine: dict[str, str], name: str = CHECKPOINT
    ) -> None:
        """Write all rows since the last checkpoint as parts, then the learner's state, then the status.

        Args:
            save: writes the learner's state, and the progress it is given, to a path.
            engine: how the steps are executed, for the status.
            name: of the file, ``CHECKPOINT`` or ``COMPILED_CHECKPOINT``; one of the other kind is removed.

        Raises:
            RunInUse: another process has begun to work on the run.
        """
        self._status["engine"] = engine
        others, self._checkpoints = self._checkpoints - {name}, {*self._checkpoints, name}
        self._write_parts()
        write_whole(self.path / name, lambda path: save(path, self._progress()))
        for other in others:
            (self.path / other).unlink(missing_ok=True)
        self._write_status()

    def finish(self, state: str, reason: str | None, engine: dict[str, str] | None, keep_parts: bool = False) -> None:
        """End the run: merge the parts, say how it went, and remove the checkpoint.

        What an earlier attempt recorded stays as it is if this one failed before ``start`` or ``resume``.

        Args:
            state: "finished", "diverged" or "failed".
            reason: a sentence, or None.
            engine: how the steps were executed, if it came to that.
            keep_parts: leave parts and checkpoint, for a run that may go on later.

        Raises:
            RunInUse: another process has begun to work on the run.
            ValueError: a part is damaged; it has been set aside with all that was recorded.
        """
        if self._began:
            self._write_parts(merge=not keep_parts)
        if not keep_parts:
            for name, schema in TABLES.items():
                groups = _in_row_groups(self._read_parts(name), schema)
                write_whole(self.path / f"{name}.parquet", partial(_write_table, groups, schema))
        self._status |= {"engine": engine or self._status["engine"]}
        self.say(state, reason)
        if not keep_parts:
            remove_leftovers(self.path)

    def say(self, state: str, reason: str | None) -> None:
        """Write the status alone."""
        self._status |= {"state": state, "reason": reason}
        self._write_status()

    def _begin(self, config: dict[str, Any]) -> None:
        self._status |= {"run_id": config.get("run_id"), "notes": notes_on_damages(self.path)}
        self._began = True
        self._write_status()

    def _add(self, name: str, columns: Sequence[Any]) -> None:
        schema = TABLES[name]
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
        self._rows[name].append(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def _add_rows(self, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            self._add(name, list(zip(*rows, strict=True)))

    def _write_parts(self, merge: bool = False) -> None:
        self._require_there()
        require_own(self.path)
        self._merged |= merge
        listed = Written(self._n_parts + 1, self._merged, tuple(sorted(self._checkpoints)))
        write_json(self.path / WRITTEN, listed._asdict())  # before it is so, whenever the process is killed
        for name, schema in TABLES.items():
            table = pa.Table.from_batches(self._rows[name], schema=schema)
            part = _folder(self.path, name) / f"part-{self._n_parts:05d}.parquet"
            write_whole(part, partial(_write_table, _in_row_groups([table], schema), schema))
        # only now, so that after an error they can be written again
        self._rows = {name: [] for name in TABLES}
        self._n_parts += 1

    def _read_parts(self, name: str) -> Iterator[pa.Table]:
        """The parts of this attempt, one after the other."""
        parts = _parts(self.path, name)
        for number in range(self._n_parts):
            part = parts.get(number, _folder(self.path, name) / f"part-{number:05d}.parquet")
            try:
                with open_regular(part) as file:
                    yield pq.read_table(
                        file, schema=TABLES[name], partitioning=None, use_threads=False, page_checksum_verification=True
                    )
            except (OSError, ValueError, pa.ArrowException) as error:
                if not _is_damage(error):
                    raise
                self._began = False  # nothing of this attempt is recorded any more
                self._status |= {"step": 0, "n_correct": None}
                raise ValueError(set_aside(self.path, part, error)) from error

    def _progress(self) -> dict[str, Any]:
        self._update_wall_time()
        return {
            "n_parts": self._n_parts,
            "wall_time": self.wall_time,
            "learning_time": self.learning_time,
            "step": self._status["step"],
            "n_correct": self._status["n_correct"],
        }

    def _update_wall_time(self) -> None:
        now = time.monotonic()
        self.wall_time += now - self._running_since
        self._running_since = now

    def _require_there(self) -> None:
        """Check that the directory has not been moved or removed since, for a file to be written would make it anew."""
        if not self.path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "The run's folder was moved or removed", str(self.path))

    def _write_status(self) -> None:
        self._require_there()
        self._update_wall_time()
        speed = self._status["step"] / self.learning_time if self.learning_time else None
        write_json(
            self.path / "status.json",
            self._status
            | {
                "heartbeat": datetime.now(UTC).isoformat(timespec="seconds"),
                "owner": this_process(),
                "wall_time": round(self.wall_time, 3),
                "samples_per_second": round(speed, 1) if speed else None,
            }
            | ({} if self._began else self._earlier_progress()),
        )

    def _earlier_progress(self) -> dict[str, Any]:
        """What the status of an earlier attempt says of its progress."""
        path = self.path / "status.json"
        earlier = read_json(path) if is_regular(path) else {}
        progress = ("run_id", "step", "n_correct", "wall_time", "samples_per_second", "engine", "notes")
        return {name: value for name, value in earlier.items() if name in progress}


def load_checkpoint(
    run: Path, name: str, read: Callable[[Path], dict[str, Any]], run_id: str, stream: StreamInfo
) -> dict[str, Any] | None:
    """What a run directory's checkpoint holds, if it is whole and the parts that go with it are there.

    Otherwise all that was recorded is set aside (``set_aside``), and the run can begin again.

    Args:
        run: the run directory.
        name: of the file, ``CHECKPOINT`` or ``COMPILED_CHECKPOINT``.
        read: reads it: what ``RunUnderWay.progress`` returned, and more.
        run_id: of the run that is to go on.
        stream: what it learns from.

    Returns:
        None if there is nothing to go on from.

    Raises:
        ValueError: the checkpoint lacks something, because another version of this package wrote it.
    """
    path = run / name
    if not os.path.lexists(path):
        return None
    suspect = path
    try:
        open_regular(path).close()
        content = read(path)
        if missing := [name for name in IN_CHECKPOINT if name not in content]:
            raise KeyError(*missing)
        if content["run_id"] != run_id:
            raise ValueError(f"it belongs to run {content['run_id']}")
        _require_possible(content, stream)
        suspect = run / "config.json"
        described = {"stream_info": stream.as_record(), "blocks": read_json(suspect).get("blocks", [])}
        for table in TABLES:
            parts = _parts(run, table)
            for number in range(content["progress"]["n_parts"]):
                suspect = parts.get(number, run / table / f"part-{number:05d}.parquet")
                with open_regular(suspect) as part, open_table(part, described, table, TABLES[table].names):
                    pass
    except KeyError as error:
        raise ValueError(of_another_version(path)) from error
    except Exception as error:  # whatever NumPy, PyTorch or PyArrow make of damaged files
        if not _is_damage(error):
            raise
        set_aside(run, suspect, error)
        return None
    return content


def _require_possible(content: dict[str, Any], stream: StreamInfo) -> None:
    """Check that a run on a stream can have come as far as a checkpoint says.

    Raises:
        ValueError: it cannot.
    """
    n_ended, n_samples, progress = content["n_ended"], content["n_samples"], content["progress"]
    starts = [*stream.boundaries, stream.for_learner.n_samples]
    whole = {name: content[name] for name in ("n_ended", "n_samples", "n_correct", "n_correct_in_experience")}
    whole |= {f"progress.{name}": progress[name] for name in ("n_parts", "step")}
    for name, value in whole.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"its {name} is {value!r}, no number of anything")
    numbers = {"loss_in_experience": content["loss_in_experience"]}
    numbers |= {f"progress.{name}": progress[name] for name in ("wall_time", "learning_time")}
    for name, value in numbers.items():
        if not isinstance(value, float | int) or math.isnan(value):
            raise ValueError(f"its {name} is {value!r}, no number")
    if n_ended >= len(starts) or not starts[n_ended] <= n_samples <= starts[min(n_ended + 1, len(starts) - 1)]:
        raise ValueError(
            f"it has ended {n_ended} experiences after {n_samples} samples, but the stream's begin at {starts[:-1]}"
        )
    within = n_samples - starts[n_ended]
    counts = whole["n_correct_in_experience"], whole["n_correct"], progress.get("n_correct") or 0
    if counts[0] > within or counts[1] > n_samples or not 0 <= counts[2] <= n_samples or progress["step"] != n_samples:
        raise ValueError(f"its counts {counts} do not go with {n_samples} samples")


def of_another_version(checkpoint: Path) -> str:
    """What to do about a checkpoint that cannot be gone on from, although it is whole."""
    return (
        f"'{checkpoint}' was written by another version of this package; go on with that version, or move "
        f"'{checkpoint.parent}' elsewhere to run again"
    )


def set_aside(run: Path, file: Path, error: Exception, names: Iterable[str] = ()) -> str:
    """Move what a run has recorded, of which a file is damaged, to the folder "damaged", with a text that says why.

    Args:
        run: the run directory.
        file: the damaged file.
        error: what is wrong with it.
        names: what to move; if nothing is named, all, with a copy of ``config.json`` unless that is what is damaged.

    Returns:
        The text.
    """
    what = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({_first_line(error)})"
    names = list(names)
    if names:
        return _move_aside(run, names, f"'{file}' is {what}; it", "goes on without it")
    description = run / "config.json"
    tables = (entry for name in TABLES for entry in (name, f"{name}.parquet"))
    moved = [CHECKPOINT, COMPILED_CHECKPOINT, "status.json", WRITTEN, *tables]
    moved += [description.name] if file == description else []
    copied = read_regular(description) if is_regular(description) and file != description else None
    text = _move_aside(run, moved, f"'{file}' is {what}; what was recorded", "begins again")
    if copied is not None:
        write_whole(_damaged_folders(run)[-1] / description.name, partial(Path.write_bytes, data=copied))
    return text


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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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


def _is_damage(error: Exception) -> bool:
    """Whether an error is about what a file holds, or that it is not there, rather than about this machine."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return False
    return not isinstance(error, OSError) or error.errno in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def notes_on_damages(run: Path) -> list[str]:
    """The texts of ``set_aside``, as far as its folders have not been removed."""
    reasons = [folder / REASON for folder in _damaged_folders(run)]
    return [read_regular(reason).decode("utf-8", "replace").strip() for reason in reasons]


def _damaged_folders(run: Path) -> list[Path]:
    """The folders of ``set_aside``, in order."""
    folders = [folder for folder in run.glob(f"{DAMAGED}*") if not folder.is_symlink() and is_regular(folder / REASON)]
    return sorted(folders, key=lambda folder: (len(folder.name), folder.name))


def files_of_run(run: Path) -> dict[str, Path]:
    """The files in a directory that a run writes there, by their paths in it; no links, and nobody else's files."""
    found = [run / name for name in _NAMES]
    found += [part for name in TABLES for part in _parts(run, name).values()]
    for folder in _damaged_folders(run):
        found += [Path(directory) / name for directory, _, names in os.walk(folder) for name in names]
    return {path.relative_to(run).as_posix(): path for path in found if is_regular(path)}


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


def _in_row_groups(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows of tables in row groups, which do not depend on where one table ends and the next one begins."""
    rest = schema.empty_table()
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


def describe_software() -> dict[str, str | None]:
    """Versions of Python, of the packages that matter, and of this package's source where it is a git checkout."""
    packages = ("continual-metaopt", "torch", "torchvision", "avalanche-lib", "numpy", "pyarrow")
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions | {"source_revision": _source_revision()}


def _source_revision() -> str | None:
    """The commit of the checkout that this file belongs to, "+changes" if it was modified; None if there is none."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True, timeout=10)
            for command in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def describe_platform(threads: int) -> dict[str, Any]:
    """Operating system, processor and number of threads of a run."""
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": threads,
        "byte_order": sys.byteorder,
    }
