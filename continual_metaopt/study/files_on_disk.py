"""What there is on the disk: run directories, and how much space files take up."""

import os
from collections.abc import Iterator
from pathlib import Path


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
