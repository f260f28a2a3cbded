"""Every script in examples/ runs as it is and says what it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))

# name -> a pattern that the last lines match
OUTPUT = {
    "drop_in_optimizer": r"\{'linear1': '\d\.\d\de-\d\d', 'linear2': '\d\.\d\de-\d\d'\}",
    "own_stream": r"(online accuracy \d+\.\d%, then \{'linear1': .*\}\n){4}\Z",
    "plain_loop": r"online accuracy [5-9]\d\.\d% of 1500 samples; .* in plain_loop.csv\n\Z",
    "quadratic_bowl": r"(SGD, .* at the end [\d.]+\n){3}MetaOptimize from α = 0.001 .* at the end 0\.00\d+\n\Z",
    "ready_made_strategy": r"online accuracy [5-9]\d\.\d%\n\{'linear1': .*\}\n\Z",
    "replay_and_ewc": r"neither  online .*\nreplay   online accuracy .*\nEWC      online accuracy .* \d+\.\d%\n\Z",
}


def run(script: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # one thread is fastest for such small networks, and others may be using the cores
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "always"}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )


def our_warnings(stderr: str) -> list[str]:
    """Warnings that blame a file of this project."""
    ours = [line for line in stderr.splitlines() if line.startswith(str(ROOT)) and "site-packages" not in line]
    return [line for line in ours if "Warning: " in line]


@pytest.mark.slow
@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.stem in OUTPUT], ids=lambda path: path.stem)
def test_script(script: Path, tmp_path: Path) -> None:
    finished = run(script, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert re.search(OUTPUT[script.stem], finished.stdout), finished.stdout
    assert our_warnings(finished.stderr) == []
    assert "no QP solver" not in finished.stderr
    assert "Traceback" not in finished.stderr


def test_every_script_is_expected() -> None:
    assert sorted([*OUTPUT, "tensorboard_logging"]) == [path.stem for path in SCRIPTS]


@pytest.mark.slow
def test_the_curves_go_where_the_user_wants_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finished = run(ROOT / "examples" / "tensorboard_logging.py", tmp_path, "curves")
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"online accuracy [5-9]\d\.\d%\n.* tensorboard --logdir curves\n\Z", finished.stdout)
    assert our_warnings(finished.stderr) == []
    assert [path.name for path in tmp_path.iterdir()] == ["curves"]
    events = EventAccumulator(str(tmp_path / "curves")).Reload()
    names = {name.split("/")[0] for name in events.Tags()["scalars"]}
    assert {"Top1_Acc_Online", "Top1_Acc_Window500", "Loss_Online", "StepSize", "MetaGradient"} <= names
