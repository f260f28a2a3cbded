"""Runs that are killed at any moment leave the record of runs that are not."""

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are copied by fork")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "every"), [("compiled", 3), ("torch", 5)])
def test_a_run_that_was_killed_at_any_moment_leaves_the_record_of_one_that_was_not(
    tmp_path: Path, engine: str, every: int
) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.continual_metaopt.killing", engine, str(every), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment(), check=False)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 40
