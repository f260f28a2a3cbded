"""How a run ends, and what is said about it."""

import errno
from collections.abc import Callable
from pathlib import Path

from continual_metaopt.analysis.files import is_regular, real_folder
from continual_metaopt.analysis.run_directory import CHECKPOINT, COMPILED_CHECKPOINT, CONFIG, ENDED, STATES, STATUS
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.damage import set_aside
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.files import has_records, is_marked, read_json, remove_leftovers, write_json
from continual_metaopt.runs.owner import RunInUse

OnProgress = Callable[[int, int], None]
ShouldStop = Callable[[], bool]


def no_progress(done: int, total: int) -> None:
    """Default ``on_progress``: do nothing."""


def never() -> bool:
    """Default ``should_stop``: never."""
    return False


class Interrupted(Exception):
    """The run was asked to stop; it can go on later."""


def fail(directory: RunDirectory, error: Exception) -> str:
    """Record that a run failed, in a way that it may go on later; returns that state.

    Raises:
        OSError: not even the status can be written.
        RunInUse: another process works on the run, so nothing is written.
    """
    if isinstance(error, RunInUse):
        raise error
    reason = reason_of(error)
    try:
        directory.finish("failed", reason, None, keep_parts=True)
    except RunInUse:
        raise
    except Exception:  # no room for the last rows, perhaps, which are made again from the last checkpoint
        try:
            directory.say("failed", reason)
        except Exception as second:
            raise OSError(f"{reason}; its status could not be written ({second})") from error
    return "failed"


GOES_ON = "the same command then goes on from the last checkpoint"
NO_ROOM = f"The disk is full: make room; {GOES_ON}"
NO_ACCESS = f"Access is needed: change permissions, or mount the disk for writing; {GOES_ON}"
NO_MEMORY = (
    "There is not enough memory: do fewer runs at a time, or take a smaller network or a lower memory_limit of the "
    f"stream; {GOES_ON}"
)
WORDS_OF_NO_MEMORY = ("allocate memory", "out of memory", "failed to map segment")
ADVICE = {
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EROFS: NO_ACCESS,
    errno.EACCES: NO_ACCESS,
    errno.EPERM: NO_ACCESS,
    errno.ENOMEM: NO_MEMORY,
    errno.ENOENT: f"A file is missing: bring it back; {GOES_ON}",
}


def reason_of(error: BaseException) -> str:
    """Say in a run's status what went wrong, and what to do about it.

    Example:
        >>> reason_of(MemoryError()).partition(":")[0]
        'MemoryError. There is not enough memory'
    """
    if isinstance(error, Interrupted):
        return "interrupted by the user"
    if isinstance(error, RunInUse):
        return str(error)
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    no_memory = isinstance(error, MemoryError) or any(words in reason.lower() for words in WORDS_OF_NO_MEMORY)
    advice = NO_MEMORY if no_memory else ADVICE.get(getattr(error, "errno", None) or 0)
    return f"{reason}. {advice}" if advice else reason


def earlier_state(path: Path, config: RunConfig) -> str | None:
    """Tell how the run in a directory ended for good, or None if it has not.

    The place and the label in tables and figures that its study now gives to a run that has ended are noted, and what
    its end left half done is brought to an end. A damaged status is set aside, and the run goes on from its checkpoint
    or begins again. Where the description is damaged or missing, or the status of a run without checkpoint is missing,
    all that was recorded is set aside.

    Raises:
        FileExistsError: the directory holds another run, or what no run has written, or is a link.
    """
    real_folder(path)
    if not path.is_dir() or not any(path.iterdir()):
        return None
    try:
        record = read_json(path / CONFIG)
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError | ValueError):
            raise
        if not is_marked(path, config.run_id):
            raise _not_a_run(path, error) from error
        if has_records(path) or not isinstance(error, FileNotFoundError):
            set_aside(path, path / CONFIG, error)
        return None
    if "run_id" not in record:
        raise _not_a_run(path)
    if record["run_id"] != config.run_id:
        raise FileExistsError(
            f"'{path}' already holds another run ({record['run_id']}); choose another folder with --out"
        )
    status = path / STATUS
    goes_on = any(is_regular(path / name) for name in (CHECKPOINT, COMPILED_CHECKPOINT))
    try:
        told = read_json(status)
        state: str = told.get("state", "")
        if state not in STATES:
            raise ValueError(f"state {state!r} is none of {', '.join(STATES)}")
    except FileNotFoundError as error:
        if not goes_on and has_records(path):
            set_aside(path, status, error)
        return None
    except ValueError as error:
        set_aside(path, status, error, [status.name] if goes_on else [])
        return None
    if state not in ENDED:
        return None
    remove_leftovers(path)
    if told.pop("superseded", None):  # by a version of the study that was given up again
        write_json(status, told)
    named = {"order": config.order, "label": config.label, "entry": config.entry}
    if any(record.get(name) != value for name, value in named.items()):
        write_json(path / CONFIG, record | named)
    return state


def _not_a_run(path: Path, error: Exception | None = None) -> FileExistsError:
    """What to say of a directory that no run has written, or perhaps none, if there is an error in its description."""
    names = sorted(entry.name for entry in path.iterdir())
    what = f"'{path}' holds '{names[0]}', which no run has written"
    if "study.json" in names:
        what = f"'{path}' is a study's folder"
    elif isinstance(error, ValueError):
        what = f"{error}, so that nobody can tell whose folder it is in"
    return FileExistsError(f"{what}; choose another folder with --out, which need not exist")
