"""Runs that are killed at any moment leave the record of runs that are not; ``killing`` can try every moment."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.continual_metaopt.conftest import environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are copied by fork")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_a_run_that_was_killed_at_any_moment_leaves_the_record_of_one_that_was_not(tmp_path: Path, engine: str) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.continual_metaopt.killing", engine, "0", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment(), check=False)

    assert done.returncode == 0, done.stderr
    n_killed, n_kinds = map(int, done.stdout.split())
    assert n_kinds >= 25
    assert n_killed >= n_kinds + 20
