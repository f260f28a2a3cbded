"""Run directories (docs/run-directory.md): what a run leaves on disk, so written that nothing recorded is lost."""

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from continual_metaopt.analysis.files import is_regular, real_folder, write_whole
from continual_metaopt.analysis.run_directory import (
    CHECKPOINT,
    COMPILED_CHECKPOINT,
    CONFIG,
    STATUS,
    TABLES,
    WRITTEN,
)
from continual_metaopt.engines.observations import Observations, recorded_steps
from continual_metaopt.optim.protocol import QUANTILES
from continual_metaopt.runs.damage import is_damage, notes_on_damages, set_aside
from continual_metaopt.runs.files import Written, make_way, part_of, read_json, remove_leftovers, write_json
from continual_metaopt.runs.owner import require_own, this_process
from continual_metaopt.runs.tables import SCHEMAS, as_batch, read_part, write_table


class RunDirectory:
    """Write the directory of one run, so that nothing recorded is lost when the process is killed.

    Tables grow in memory until ``checkpoint`` writes them as one more part each; ``finish`` merges the parts. Whenever
    the process is killed, ``load_checkpoint`` and ``resume`` find what the last checkpoint needs.

    Args:
        path: the directory, made if it is not there.

    Example:
        >>> import tempfile
        >>> directory = RunDirectory(Path(tempfile.mkdtemp()) / "run")
        >>> directory.start({"run_id": "a"})
        >>> directory.observe(Observations(experience=0, first_step=0, correct=[True, False], loss=[0.5, 1.5]))
        >>> directory.finish("finished", None, {"name": "torch"})
        >>> read_json(directory.path / "status.json")["n_correct"]
        1
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
        """Count the rows that no checkpoint holds yet."""
        return sum(batch.num_rows for batches in self._rows.values() for batch in batches)

    def start(self, config: dict[str, Any]) -> None:
        """Begin a run: write its configuration and say that it is running.

        What an earlier attempt left is removed, as far as it is on that attempt's list; what else is in the way is set
        aside.
        """
        make_way(self.path, 0)
        (self.path / WRITTEN).unlink(missing_ok=True)
        write_json(self.path / CONFIG, config)
        self._begin(config)

    def resume(self, progress: dict[str, Any]) -> None:
        """Go on after a checkpoint, given the ``progress`` that it holds; later parts as in ``start``."""
        self._n_parts = progress["n_parts"]
        self.wall_time, self.learning_time = progress["wall_time"], progress["learning_time"]
        self._status |= {"step": progress["step"], "n_correct": progress.get("n_correct")}
        make_way(self.path, self._n_parts)
        self._checkpoints = {name for name in (CHECKPOINT, COMPILED_CHECKPOINT) if is_regular(self.path / name)}
        self._begin(read_json(self.path / CONFIG))

    def observe(self, observations: Observations, samples_every: int = 1) -> None:
        """Add what a learner observed.

        Args:
            observations: of consecutive samples.
            samples_every: distance in steps between the samples that get a row; all of them are counted.
        """
        steps = recorded_steps(observations.first_step, len(observations), samples_every)
        rows = slice(steps.start - observations.first_step, None, samples_every)
        values = observations.correct[rows], observations.loss[rows]
        self._add("samples", [np.array(steps), np.full(len(steps), observations.experience), *values])
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
        self._add_rows("experiences", [tuple(row[name] for name in TABLES["experiences"])])

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
            for name in TABLES:
                write_whole(self.path / f"{name}.parquet", partial(write_table, self._read_parts(name), name))
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
        self._rows[name].append(as_batch(name, columns))

    def _add_rows(self, name: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            self._add(name, list(zip(*rows, strict=True)))

    def _write_parts(self, merge: bool = False) -> None:
        self._require_there()
        require_own(self.path)
        self._merged |= merge
        listed = Written(self._n_parts + 1, self._merged, tuple(sorted(self._checkpoints)))
        write_json(self.path / WRITTEN, listed._asdict())  # before it is so, whenever the process is killed
        for name, schema in SCHEMAS.items():
            rows = pa.Table.from_batches(self._rows[name], schema=schema)
            part = part_of(self.path, name, self._n_parts)
            real_folder(part.parent)
            write_whole(part, partial(write_table, [rows], name))
        # only now, so that after an error they can be written again
        self._rows = {name: [] for name in TABLES}
        self._n_parts += 1

    def _read_parts(self, name: str) -> Iterator[pa.Table]:
        """The parts of this attempt, one after the other."""
        for number in range(self._n_parts):
            part = part_of(self.path, name, number)
            try:
                yield read_part(part, name)
            except (OSError, ValueError, pa.ArrowException) as error:
                if not is_damage(error):
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
            self.path / STATUS,
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
        """Read what the status of an earlier attempt says about its progress."""
        path = self.path / STATUS
        earlier = read_json(path) if is_regular(path) else {}
        progress = ("run_id", "step", "n_correct", "wall_time", "samples_per_second", "engine", "notes")
        return {name: value for name, value in earlier.items() if name in progress}
