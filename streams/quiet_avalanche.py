"""Import Avalanche without the warnings of packages that it imports in turn, and without a home that can be written.

qpsolvers, which only some of Avalanche's strategies use, warns at import that no solver is installed. Avalanche itself
reads a file in the user's home at import, and makes it if it is not there.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from continual_metaopt.streams.private_folders import temporary_folder

HOME = "USERPROFILE" if os.name == "nt" else "HOME"


@contextmanager
def home_for_avalanche() -> Iterator[None]:
    """Let Avalanche find its file, in a temporary folder if the user's home is missing or cannot be written."""
    try:
        _write_settings(Path("~/.avalanche").expanduser())
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        pass
    else:
        yield
        return
    before = os.environ.get(HOME)
    home = temporary_folder("home")
    _write_settings(home / ".avalanche")
    os.environ[HOME] = str(home)
    try:
        yield
    finally:
        del os.environ[HOME]
        if before is not None:
            os.environ[HOME] = before


def _write_settings(folder: Path) -> None:
    """Make Avalanche's file whole, or check it, so that no process reads what another one has half written."""
    file = folder / "config.json"
    if file.exists():
        json.loads(file.read_text(encoding="utf-8"))["dataset_location"]
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".config.json.{os.getpid()}.tmp"
    settings = {"dataset_location": os.path.expanduser("~/.avalanche/data")}  # noqa: PTH111, which needs no home
    temporary.write_text(json.dumps(settings), encoding="utf-8")
    temporary.replace(file)


with warnings.catch_warnings(), home_for_avalanche():
    warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)
    import avalanche.benchmarks
    import avalanche.training  # noqa: F401
