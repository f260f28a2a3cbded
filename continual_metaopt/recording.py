"""Run directories (docs/run-directory.md): what a run leaves on disk, so written that nothing recorded is lost."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.files import write_whole
from continual_metaopt.engines.observations import Observations
from continual_metaopt.optim.summaries import QUANTILES

SCHEMA_VERSION = 1
CHECKPOINT, COMPILED_CHECKPOINT = "checkpoint.pt", "checkpoint.npz"  # of PyTorch's state, of plain arrays

TABLES = {
    "samples": pa.schema(
        [("step", pa.int32()), ("experience", pa.int16()), ("correct", pa.bool_()), ("loss", pa.float32())]
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
            ("experience", pa.int16()),
            ("classes", pa.list_(pa.string())),
            ("first_step", pa.int32()),
            ("n_samples", pa.int32()),
            ("n_seen_before", pa.int32()),
            ("n_correct", pa.int32()),
            ("online_accuracy", pa.float64()),
            ("test_accuracy", pa.float64()),
        ]
    ),
}


class RunDirectory:
    """The directory of one run while it is being written.

    Tables grow in memory until ``checkpoint`` writes them as one more part each; ``finish`` merges the parts.

    Args:
        path: the directory, made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wall_time = 0.0
        self.learning_time = 0.0
        self._status: dict[str, Any] = {"state": "running", "reason": None, "step": 0, "engine": None}
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in TABLES}
        self._n_parts = 0
        self._began = False
        self._running_since = time.monotonic()
        path.mkdir(parents=True, exist_ok=True)

    def start(self, config: dict[str, Any]) -> None:
        """Begin a run: write its configuration and say that it is running. What an earlier attempt left is removed."""
        for name in TABLES:
            shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / f"{name}.parquet").unlink(missing_ok=True)
        write_json(self.path / "config.json", config)
        self._began = True
        self._write_status()

    def resume(self, progress: dict[str, Any]) -> None:
        """Go on after a checkpoint, given the ``progress`` that ``checkpoint`` returned; later parts are removed."""
        self._n_parts = progress["n_parts"]
        self.wall_time, self.learning_time = progress["wall_time"], progress["learning_time"]
        self._status["step"] = progress["step"]
        for name in TABLES:
            (self.path / f"{name}.parquet").unlink(missing_ok=True)
            for part in self._parts(name)[self._n_parts :]:
                part.unlink()
        self._began = True
        self._write_status()

    def observe(self, observations: Observations) -> None:
        """Add what a learner observed."""
        steps = range(observations.first_step, observations.next_step)
        self._rows["samples"] += zip(
            steps, [observations.experience] * len(steps), observations.correct, observations.loss, strict=True
        )
        no_quantiles = (None,) * len(QUANTILES)
        self._rows["step_sizes"] += [
            (step, block, size, *observations.quantiles.get((step, block), no_quantiles))
            for step, block, size in observations.step_sizes
        ]
        self._rows["measurements"] += observations.measurements
        self._status["step"] = observations.next_step

    def measure(self, rows: list[tuple[int, str, str | None, str, float]]) -> None:
        """Add measurements: (step, quantity, block or None, statistic, value)."""
        self._rows["measurements"] += rows

    def add_experience(self, **row: Any) -> None:
        """Add a row to the table of experiences."""
        self._rows["experiences"].append(tuple(row[name] for name in TABLES["experiences"].names))

    def checkpoint(
        self, save: Callable[[Path, dict[str, Any]], None], engine: dict[str, str], name: str = CHECKPOINT
    ) -> None:
        """Write all rows since the last checkpoint as parts, then the learner's state, then the status.

        Args:
            save: writes the learner's state, and the progress it is given, to a path.
            engine: how the steps are executed, for the status.
            name: of the file, ``CHECKPOINT`` or ``COMPILED_CHECKPOINT``; one of the other kind is removed.
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
        """
        if self._began:
            self._write_parts()
        if not keep_parts:
            for name, schema in TABLES.items():
                parts = [pq.read_table(part, schema=schema) for part in self._parts(name)]
                table = pa.concat_tables(parts) if parts else schema.empty_table()
                write_whole(self.path / f"{name}.parquet", partial(_write_table, table))
        self._status |= {"state": state, "reason": reason, "engine": engine or self._status["engine"]}
        self._write_status()
        if not keep_parts:
            for name in TABLES:
                shutil.rmtree(self.path / name, ignore_errors=True)
            for checkpoint in (CHECKPOINT, COMPILED_CHECKPOINT):
                (self.path / checkpoint).unlink(missing_ok=True)

    def _write_parts(self) -> None:
        for name, schema in TABLES.items():
            columns = list(zip(*self._rows[name], strict=True)) or [()] * len(schema)
            arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
            table = pa.Table.from_arrays(arrays, schema=schema)
            (self.path / name).mkdir(exist_ok=True)
            part = self.path / name / f"part-{self._n_parts:05d}.parquet"
            write_whole(part, partial(_write_table, table))
            self._rows[name] = []
        self._n_parts += 1

    def _parts(self, name: str) -> list[Path]:
        return sorted((self.path / name).glob("part-*.parquet"))

    def _progress(self) -> dict[str, Any]:
        self._update_wall_time()
        return {
            "n_parts": self._n_parts,
            "wall_time": self.wall_time,
            "learning_time": self.learning_time,
            "step": self._status["step"],
        }

    def _update_wall_time(self) -> None:
        now = time.monotonic()
        self.wall_time += now - self._running_since
        self._running_since = now

    def _write_status(self) -> None:
        self._update_wall_time()
        speed = self._status["step"] / self.learning_time if self.learning_time else None
        write_json(
            self.path / "status.json",
            self._status
            | {
                "heartbeat": datetime.now(UTC).isoformat(timespec="seconds"),
                "owner": {"host": socket.gethostname(), "pid": os.getpid()},
                "wall_time": round(self.wall_time, 3),
                "samples_per_second": round(speed, 1) if speed else None,
            }
            | ({} if self._began else self._earlier_progress()),
        )

    def _earlier_progress(self) -> dict[str, Any]:
        """What the status of an earlier attempt says of its progress."""
        path = self.path / "status.json"
        earlier = read_json(path) if path.exists() else {}
        progress = ("step", "wall_time", "samples_per_second", "engine")
        return {name: value for name, value in earlier.items() if name in progress}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged ({error}); remove its folder to run again") from error
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write_table(table: pa.Table, path: Path) -> None:
    """Write a table in encodings that suit its columns: less than half the size of Parquet's defaults."""
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    encodings = {
        field.name: "DELTA_BINARY_PACKED" if pa.types.is_integer(field.type) else "BYTE_STREAM_SPLIT"
        for field in table.schema
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    }
    pq.write_table(
        table, path, compression="zstd", use_dictionary=strings, column_encoding=encodings, write_statistics=False
    )


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
