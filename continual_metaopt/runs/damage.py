"""Files of a run that cannot be read any more are set aside, never removed."""

import errno
import math
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from continual_metaopt.analysis.files import is_regular, open_regular, read_regular, write_whole
from continual_metaopt.analysis.records import open_table
from continual_metaopt.analysis.run_directory import CHECKPOINT, COMPILED_CHECKPOINT, REASON, TABLES, WRITTEN
from continual_metaopt.runs.files import damaged_folders, move_aside, part_of, read_json
from continual_metaopt.streams.stream import StreamInfo

COUNTED = ("n_samples", "n_correct", "n_ended", "n_correct_in_experience", "loss_in_experience")
IN_CHECKPOINT = ("run_id", *COUNTED, "progress")  # how far a run is; and its records, under "progress"


def load_checkpoint(
    run: Path, name: str, read: Callable[[Path], dict[str, Any]], run_id: str, stream: StreamInfo
) -> dict[str, Any] | None:
    """Read a run directory's checkpoint, if it is whole and the parts that go with it are there.

    Otherwise all that was recorded is set aside (``set_aside``), and the run can begin again.

    The file's ``name`` is ``CHECKPOINT`` or ``COMPILED_CHECKPOINT``; ``read`` gives what ``RunUnderWay.progress``
    returned, and more. ``run_id`` and ``stream`` are those of the run that is to go on.

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
            for number in range(content["progress"]["n_parts"]):
                suspect = part_of(run, table, number)
                with open_regular(suspect) as part, open_table(part, described, table, list(TABLES[table])):
                    pass
    except KeyError as error:
        raise ValueError(of_another_version(path)) from error
    except Exception as error:  # whatever NumPy, PyTorch or PyArrow make of damaged files
        if not is_damage(error):
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
    whole = {name: content[name] for name in COUNTED if name != "loss_in_experience"}
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
    """Say what to do about a whole checkpoint that this version cannot resume from."""
    return (
        f"'{checkpoint}' was written by another version of this package; go on with that version, or move "
        f"'{checkpoint.parent}' elsewhere to run again"
    )


def set_aside(run: Path, file: Path, error: Exception, names: Iterable[str] = ()) -> str:
    """Move what a run has recorded, of which a file is damaged, to the folder "damaged", with a text that says why.

    What ``names`` lists is moved; if that is nothing, all, with a copy of ``config.json`` unless that is what is
    damaged. Returns the text.
    """
    what = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({_first_line(error)})"
    names = list(names)
    if names:
        return move_aside(run, names, f"'{file}' is {what}; it", "goes on without it")
    description = run / "config.json"
    tables = (entry for name in TABLES for entry in (name, f"{name}.parquet"))
    moved = [CHECKPOINT, COMPILED_CHECKPOINT, "status.json", WRITTEN, *tables]
    moved += [description.name] if file == description else []
    copied = read_regular(description) if is_regular(description) and file != description else None
    text = move_aside(run, moved, f"'{file}' is {what}; what was recorded", "begins again")
    if copied is not None:
        write_whole(damaged_folders(run)[-1] / description.name, partial(Path.write_bytes, data=copied))
    return text


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_damage(error: Exception) -> bool:
    """Tell whether an error is about a damaged or missing file, rather than about this machine."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return False
    return not isinstance(error, OSError) or error.errno in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


def notes_on_damages(run: Path) -> list[str]:
    """Collect the texts of ``set_aside``, as far as its folders have not been removed."""
    reasons = [folder / REASON for folder in damaged_folders(run)]
    return [read_regular(reason).decode("utf-8", "replace").strip() for reason in reasons]
