"""What is recorded about the software and the machine of a run."""

import functools
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@functools.cache
def describe_software() -> dict[str, str | None]:
    """Collect versions of Python, of the packages that matter, and of this package's source in a git checkout."""
    packages = ("continual-metaopt", "torch", "torchvision", "avalanche-lib", "numpy", "pyarrow")
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions | {"source_revision": _source_revision()}


def _source_revision() -> str | None:
    """Find the commit of the checkout that this file belongs to, "+changes" if it was modified; None without one."""
    root = Path(__file__).parents[2]
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
    """Describe operating system, processor and number of threads of a run."""
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": threads,
        "byte_order": sys.byteorder,
    }
