"""The files of a run directory."""

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from continual_metaopt.analysis.files import is_regular, write_whole
from continual_metaopt.analysis.records import read_object
from continual_metaopt.analysis.run_directory import (
    CHECKPOINT,
    COMPILED_CHECKPOINT,
    CONFIG,
    DAMAGED,
    REASON,
    STATUS,
    TABLES,
    WRITTEN,
)

_NAMES = (
    CONFIG,
    STATUS,
    WRITTEN,
    CHECKPOINT,
    COMPILED_CHECKPOINT,
    *(f"{name}.parquet" for name in TABLES),
)
_TEMPORARY = re.compile(rf"\.({'|'.join(map(re.escape, _NAMES))}|part-\d+\.parquet)\.\d+\.tmp")


class Written(NamedTuple):
    """List what a run that has not ended has written: parts of each table, whole tables, and checkpoints."""

    n_parts: int = 0
    tables: bool = False
    checkpoints: tuple[str, ...] = ()


def move_aside(run: Path, names: Iterable[str], what: str, then: str) -> str:
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
    """Tell whether a run directory holds tables, parts of them, or a checkpoint."""
    names = (CHECKPOINT, COMPILED_CHECKPOINT, *(f"{name}.parquet" for name in TABLES))
    return any(os.path.lexists(run / name) for name in names) or any(parts_of(run, name) for name in TABLES)


def is_marked(run: Path, run_id: str) -> bool:
    """Tell from its status or name whether a directory without a readable description is a run's.

    So is one that holds nothing but what a run leaves that never began.
    """
    try:
        status = read_json(run / STATUS)
    except (OSError, ValueError):
        status = {}
    if run.name.endswith(f"-{run_id}") or status.get("run_id") == run_id:
        return True
    began_nothing = status.get("state") == "failed" and "owner" in status and "run_id" not in status
    damaged = [folder.name for folder in damaged_folders(run)]
    expected = {*damaged, STATUS} if began_nothing else {*damaged}
    return all(_TEMPORARY.fullmatch(entry.name) or entry.name in expected for entry in run.iterdir())


def damaged_folders(run: Path) -> list[Path]:
    """Find the folders of ``set_aside``, in order."""
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


def make_way(run: Path, n_parts: int) -> None:
    """Remove the tables of an attempt that did not end, but for so many parts of each; set aside others in the way."""
    written, others = _written(run), []
    for name in TABLES:
        if os.path.lexists(run / f"{name}.parquet"):
            if written.tables:
                (run / f"{name}.parquet").unlink()
            else:
                others.append(f"{name}.parquet")
        _remove_parts(run, name, range(n_parts, written.n_parts))
        others += [f"{name}/{part.name}" for number, part in parts_of(run, name).items() if number >= n_parts]
        if n_parts == 0 and os.path.lexists(run / name) and ((run / name).is_symlink() or not (run / name).is_dir()):
            others.append(name)
    _remove_temporary_files(run)
    if others:
        listed = f"'{run / others[0]}' is not on the list of what this run has written; it"
        move_aside(run, others, listed, "goes on" if n_parts else "begins again")


def _remove_parts(run: Path, name: str, numbers: range) -> None:
    """Remove parts of a table, half-written ones too, and the folder if nothing else is in it."""
    for number, part in parts_of(run, name).items():
        if number in numbers:
            part.unlink(missing_ok=True)
    _remove_temporary_files(run / name)
    if not (run / name).is_symlink() and (run / name).is_dir() and not any((run / name).iterdir()):
        (run / name).rmdir()


def _written(run: Path) -> Written:
    """Read what an attempt that did not end has written, by its own list; nothing without one."""
    try:
        content = read_json(run / WRITTEN)
        checkpoints = tuple(name for name in (CHECKPOINT, COMPILED_CHECKPOINT) if name in content["checkpoints"])
        return Written(int(content["n_parts"]), content["tables"] is True, checkpoints)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return Written()


def part_of(run: Path, name: str, number: int) -> Path:
    """Name the file of a part of a table."""
    return run / name / f"part-{number:05d}.parquet"


def parts_of(run: Path, name: str) -> dict[int, Path]:
    """Find the parts of a table, by number."""
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
