"""How a study, or any folder of runs, is getting on: counts, progress, faults; read from the run directories alone."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from continual_metaopt.analysis.escaping import one_line
from continual_metaopt.analysis.records import read_config, read_status
from continual_metaopt.analysis.run_directory import ENDED
from continual_metaopt.runs.files import read_json
from continual_metaopt.runs.owner import describe_owner, is_alive
from continual_metaopt.study.jobs import lines_by_reason
from continual_metaopt.study.lock import LOCK, read_owner
from continual_metaopt.study.progress import duration

INTERRUPTED = "interrupted by the user"
SECONDS_WITHOUT_SIGN_OF_LIFE = 300.0  # runs give one every half minute
SUPERSEDED = "of an earlier version"
STATES = (*ENDED, "running", "stopped", "interrupted", "failed", "damaged", SUPERSEDED, "not begun")


@dataclass(frozen=True)
class RunState:
    """How one run is getting on.

    Attributes:
        path: its directory.
        state: "finished", "diverged", "running", "stopped" (it says that it is running, but nobody runs it),
            "interrupted" (by the user), "failed", "damaged" (its files cannot be read) or "of an earlier version" of
            the study, in which its learner had other options.
        about: for runs that have not finished, a sentence.
        notes: sentences about damaged files that were set aside.
    """

    path: Path
    state: str
    about: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overview:
    """How a folder of runs is getting on.

    Attributes:
        folder: the folder.
        runs: the state of each run directory in it.
        n_planned: number of runs of the study, None for a folder that is not a study's.
        n_bytes: size of all files.
        owner: who works on the study, None for nobody.
    """

    folder: Path
    runs: list[RunState]
    n_planned: int | None = None
    n_bytes: int = 0
    owner: str | None = None

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many runs there are in each state."""
        counts = {state: sum(run.state == state for run in self.runs) for state in STATES}
        current = len(self.runs) - counts[SUPERSEDED]
        return counts | {"not begun": max(0, (self.n_planned or 0) - current)}

    @property
    def is_sound(self) -> bool:
        """Whether nothing has failed or is damaged. Divergence is a result, and what has stopped can go on."""
        return not (self.counts["failed"] or self.counts["damaged"])

    def text(self) -> str:
        """A few lines for people."""
        counts = ", ".join(f"{n:,} {state}" for state, n in self.counts.items() if n)
        n_runs = sum(self.counts.values())
        lines = [
            f"{self.folder}: {n_runs:,} run{'s' * (n_runs != 1)}: {counts}; {decimal(self.n_bytes)} on disk",
            f"worked on by {self.owner}" if self.owner else "nobody works on it",
        ]
        for state in ("running", "stopped"):
            runs = [run for run in self.runs if run.state == state]
            lines += [f"{state}: {one_line(f'{run.path.name}: {run.about}')}" for run in runs]
        for state in ("diverged", "failed", "damaged"):
            reasons = {run.path: run.about for run in self.runs if run.state == state}
            lines += [f"{state}: {one_line(line)}" for line in lines_by_reason(reasons)]
        lines += [f"noted: {one_line(note)}" for run in self.runs for note in run.notes]
        return "\n".join(lines)


def overview(folder: Path) -> Overview:
    """Say how a study, or the runs at or below any folder, are getting on. Neither torch nor the tables are read.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it and no study.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    studies = studies_in(folder)
    runs = [_run_state(path) for path in run_directories(folder)]
    if not runs and not studies:
        raise FileNotFoundError(f"{folder}: no run directory (a directory with config.json) here or below")
    return Overview(
        folder=folder,
        runs=sorted(runs, key=lambda run: run.path),
        n_planned=_planned(studies),
        n_bytes=bytes_below(folder),
        owner=_owner(folder / LOCK),
    )


def run_directories(folder: Path) -> Iterator[Path]:
    """Find the run directories at or below a folder, also those of runs that have hardly begun."""
    for directory, subdirectories, files in os.walk(folder):
        if "status.json" in files or "config.json" in files:
            subdirectories.clear()  # what lies below belongs to the run
            yield Path(directory)


def bytes_below(folder: Path) -> int:
    """Add up the sizes of all files below a folder; 0 if there is none."""
    return sum(_size_of(Path(directory) / name) for directory, _, files in os.walk(folder) for name in files)


def _size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # removed meanwhile
        return 0


def studies_in(folder: Path) -> list[Path]:
    """Find the descriptions of the study in a folder: its own, or those of its parts; links are not followed."""
    parts = sorted(path for path in folder.glob("*/study.json") if not path.parent.is_symlink())
    return [path for path in (folder / "study.json", *parts) if os.path.lexists(path)]


def _run_state(path: Path) -> RunState:
    try:
        if not os.path.lexists(path / "status.json"):
            return RunState(path, *_running(path, {}))
        status = read_status(path)
        state, reason, notes = status["state"], status.get("reason") or "", tuple(status.get("notes", ()))
        if status.get("superseded"):
            return RunState(path, SUPERSEDED)
        if state == "running":
            return RunState(path, *_running(path, status), notes)
    except (OSError, ValueError) as error:
        return RunState(path, "damaged", str(error))
    return RunState(path, "interrupted" if reason == INTERRUPTED else state, reason, notes)


def _running(path: Path, status: dict[str, Any]) -> tuple[str, str]:
    """Whether a run that says that it is running does, and how far it is."""
    total = read_config(path)["stream_info"]["n_samples"]
    step, speed = status.get("step", 0), status.get("samples_per_second")
    parts = [f"{step / total:.0%} of {total:,} samples"]
    heartbeat = status.get("heartbeat")
    age = (datetime.now(UTC) - datetime.fromisoformat(heartbeat)).total_seconds() if heartbeat else None
    alive = is_alive(status.get("owner") or {})
    stopped = alive is False or (alive is None and age is not None and age > SECONDS_WITHOUT_SIGN_OF_LIFE)
    if speed and not stopped:
        parts += [f"{speed:,.0f} samples/s", f"{duration((total - step) / speed)} left"]
    if age is not None:
        parts.append(f"last sign of life {duration(max(0.0, age))} ago")
    if alive is False:
        parts.append("its process is dead; the command that began it goes on from its last checkpoint")
    return ("stopped" if stopped else "running"), ", ".join(parts)


def _planned(studies: list[Path]) -> int | None:
    """Number of runs of all studies together; None without any, or if one does not tell, as when it is damaged."""
    try:
        counts = [read_json(path).get("n_runs") for path in studies]
    except (OSError, ValueError):  # the runs tell what there is
        return None
    known = [count for count in counts if isinstance(count, int)]
    return sum(known) if known and len(known) == len(counts) else None


def _owner(lock: Path) -> str | None:
    try:
        owner = read_owner(lock)
    except OSError:
        return None
    return None if owner is None or is_alive(owner) is False else describe_owner(owner)
