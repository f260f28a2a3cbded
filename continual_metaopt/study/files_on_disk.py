"""How much space files take up."""

import os
from pathlib import Path


def bytes_below(folder: Path) -> int:
    """Size of all files below a folder; 0 if there is none."""
    return sum(_size_of(Path(directory) / name) for directory, _, files in os.walk(folder) for name in files)


def _size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # removed meanwhile
        return 0
