"""Run directories (docs/run-directory.md): what a run leaves on disk, so written that nothing recorded is lost."""

import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.files import write_whole
from continual_metaopt.engines.observations import Observations
from continual_metaopt.in_use import require_own
from continual_metaopt.optim.summaries import QUANTILES
from continual_metaopt.processes import this_process

SCHEMA_VERSION = 1
CHECKPOINT, COMPILED_CHECKPOINT = "checkpoint.pt", "checkpoint.npz"  # of PyTorch's state, of plain arrays
STATES = ("running", "finished", "diverged", "failed")
ROW_GROUP = 2**18  # rows of a table that are written together, and so are in memory at once
IN_CHECKPOINT = (  # of how far a run is; and of its records, under "progress"
    *("run_id", "n_samples", "n_correct", "n_ended", "n_correct_in_experience", "loss_in_experience", "progress"),
)
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
        self._began = False
        self._running_since = time.monotonic()
        path.mkdir(parents=True, exist_ok=True)

    @property
    def n_unsaved(self) -> int:
        """How many rows there are that no checkpoint has yet."""
        return sum(batch.num_rows for batches in self._rows.values() for batch in batches)

    def start(self, config: dict[str, Any]) -> None:
        """Begin a run: write its configuration and say that it is running. What an earlier attempt left is removed."""
        for name in TABLES:
            _remove_folder(self.path / name)
            (self.path / f"{name}.parquet").unlink(missing_ok=True)
        _remove_temporary_files(self.path)
        write_json(self.path / "config.json", config)
        self._begin()

    def resume(self, progress: dict[str, Any]) -> None:
        """Go on after a checkpoint, given the ``progress`` that ``checkpoint`` returned; later parts are removed."""
        self._n_parts = progress["n_parts"]
        self.wall_time, self.learning_time = progress["wall_time"], progress["learning_time"]
        self._status |= {"step": progress["step"], "n_correct": progress.get("n_correct")}
        for name in TABLES:
            (self.path / f"{name}.parquet").unlink(missing_ok=True)
            for number, part in _parts(self.path, name).items():
                if number >= self._n_parts:
                    part.unlink()
            _remove_temporary_files(self.path / name)
        _remove_temporary_files(self.path)
        self._begin()

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
        self._write_parts()
        write_whole(self.path / name, lambda path: save(path, self._progress()))
        for other in {CHECKPOINT, COMPILED_CHECKPOINT} - {name}:
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
            self._write_parts()
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

    def _begin(self) -> None:
        self._status["notes"] = notes_on_damages(self.path)
        self._began = True
        self._write_status()

    def _add(self, name: str, columns: Sequence[Any]) -> None:
        schema = TABLES[name]
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
        self._rows[name].append(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def _add_rows(self, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            self._add(name, list(zip(*rows, strict=True)))

    def _write_parts(self) -> None:
        self._require_there()
        require_own(self.path)
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
                yield pq.read_table(
                    part, schema=TABLES[name], partitioning=None, use_threads=False, page_checksum_verification=True
                )
            except (OSError, pa.ArrowException) as error:
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
        earlier = read_json(path) if path.exists() else {}
        progress = ("step", "n_correct", "wall_time", "samples_per_second", "engine", "notes")
        return {name: value for name, value in earlier.items() if name in progress}


def load_checkpoint(run: Path, name: str, read: Callable[[Path], dict[str, Any]], run_id: str) -> dict[str, Any] | None:
    """What a run directory's checkpoint holds, if it is whole and the parts that go with it are there.

    Otherwise all that was recorded is set aside (``set_aside``), and the run can begin again.

    Args:
        run: the run directory.
        name: of the file, ``CHECKPOINT`` or ``COMPILED_CHECKPOINT``.
        read: reads it: what ``RunUnderWay.progress`` returned, and more.
        run_id: of the run that is to go on.

    Returns:
        None if there is nothing to go on from.

    Raises:
        ValueError: the checkpoint lacks something, because another version of this package wrote it.
    """
    path = run / name
    if not path.exists():
        return None
    suspect = path
    try:
        content = read(path)
        if missing := [name for name in IN_CHECKPOINT if name not in content]:
            raise KeyError(*missing)
        if content["run_id"] != run_id:
            raise ValueError(f"it belongs to run {content['run_id']}")
        suspect = run / "config.json"
        read_json(suspect)
        for table in TABLES:
            parts = _parts(run, table)
            for number in range(content["progress"]["n_parts"]):
                suspect = parts.get(number, run / table / f"part-{number:05d}.parquet")
                pq.read_metadata(suspect)
    except KeyError as error:
        raise ValueError(of_another_version(path)) from error
    except Exception as error:  # whatever NumPy, PyTorch or PyArrow make of damaged files
        if not _is_damage(error):
            raise
        set_aside(run, suspect, error)
        return None
    return content


def of_another_version(checkpoint: Path) -> str:
    """What to do about a checkpoint that cannot be gone on from, although it is whole."""
    return (
        f"'{checkpoint}' was written by another version of this package; go on with that version, or remove "
        f"'{checkpoint.parent}' to run again"
    )


def set_aside(run: Path, file: Path, error: Exception, names: Iterable[str] = ()) -> str:
    """Move what a run has recorded, of which a file is damaged, to the folder "damaged", with a text that says why.

    Args:
        run: the run directory.
        file: the damaged file.
        error: what is wrong with it.
        names: what to move; all but ``config.json`` if nothing is named.

    Returns:
        The text.
    """
    tables = (entry for name in TABLES for entry in (name, f"{name}.parquet"))
    names = list(names) or [CHECKPOINT, COMPILED_CHECKPOINT, "status.json", *tables]
    number = 1
    while os.path.lexists(folder := run / (DAMAGED if number == 1 else f"{DAMAGED}-{number}")):
        number += 1
    problem = next(iter(str(error).strip().splitlines()), type(error).__name__)
    what = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({problem})"
    kept, then = ("what was recorded", "begins again") if len(names) > 1 else ("it", "goes on without it")
    text = f"'{file}' is {what}; {kept} is kept in '{folder}', and the run {then}"
    folder.mkdir()
    write_whole(folder / REASON, partial(Path.write_text, data=text + "\n", encoding="utf-8"))
    for name in names:
        if os.path.lexists(run / name):
            (run / name).rename(folder / name)
    return text


def _is_damage(error: Exception) -> bool:
    """Whether an error is about what a file holds, or that it is not there, rather than about this machine."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return False
    return not isinstance(error, OSError) or error.errno in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def notes_on_damages(run: Path) -> list[str]:
    """The texts of ``set_aside``, as far as its folders have not been removed."""
    folders = sorted(run.glob(f"{DAMAGED}*"), key=lambda folder: (len(folder.name), folder.name))
    return [(folder / REASON).read_text(encoding="utf-8").strip() for folder in folders if (folder / REASON).is_file()]


def remove_leftovers(run: Path) -> None:
    """Remove what a run does not need once its tables are whole: their parts, the checkpoint, half-written files.

    What cannot be removed does no harm.
    """
    if not all((run / f"{name}.parquet").exists() for name in TABLES):
        return
    for checkpoint in (CHECKPOINT, COMPILED_CHECKPOINT):
        with suppress(OSError):
            (run / checkpoint).unlink(missing_ok=True)
    for name in TABLES:
        with suppress(OSError):
            _remove_folder(run / name)
    with suppress(OSError):
        _remove_temporary_files(run)


def _folder(run: Path, name: str) -> Path:
    """The folder of a table's parts.

    Raises:
        FileExistsError: it is a link, by which a run would write into a folder that is not its own.
    """
    folder = run / name
    if folder.is_symlink():
        raise FileExistsError(f"'{folder}' is a link, but a run writes in its own folder only; remove the link")
    folder.mkdir(exist_ok=True)
    return folder


def _parts(run: Path, name: str) -> dict[int, Path]:
    """The parts of a table by number."""
    if (run / name).is_symlink():
        return {}
    parts = {part.stem.removeprefix("part-"): part for part in (run / name).glob("part-*.parquet")}
    return {int(number): part for number, part in parts.items() if number.isdecimal()}


def _remove_folder(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _remove_temporary_files(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote."""
    if not folder.is_symlink():
        for temporary in folder.glob(".*.tmp"):
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' is damaged ({error}); remove its folder to run again") from error
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
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
