"""Recorded step sizes are read as they are, and changed as the controls say, by values computed by hand."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from continual_metaopt.optim.controls.trajectories import Change, Trajectory, changed, read_trajectory
from continual_metaopt.runs.components import Component, ConfigError
from continual_metaopt.runs.config import RunConfig
from tests.continual_metaopt.conftest import described, exactly

# two blocks, three experiences of four samples, recorded at every second; exponents of 2
A = [0, 2, 4, 6, 6, 8]
B = [1, 1, 3, 1, 5, 1]
EXPONENTS = np.array([A, B], float).T
RECORDED = Trajectory(("a", "b"), np.arange(0, 12, 2), 2.0**EXPONENTS, (0, 4, 8), 12)


@pytest.mark.parametrize(
    ("change", "a", "b"),
    [
        ("none", A, B),
        ("shifted", [2, 0, 6, 4, 8, 6], [1, 1, 1, 3, 1, 5]),
        ("frozen", [13 / 3] * 6, [2] * 6),
        # over two rows: that before and the row itself, and the first two at the beginning
        ("smoothed", [1, 1, 3, 5, 6, 7], [1, 1, 2, 2, 3, 3]),
        # about the means of the experiences after the first: a falls by 1 and rises by 1, b (+1, −1) and (+2, −2)
        ("folded", [13 / 3 - 1, 13 / 3 + 1] * 3, [2 + 1.5, 2 - 1.5] * 3),
        ("exchanged", B, A),
        ("exchanged_courses", [e + 7 / 3 for e in B], [e - 7 / 3 for e in A]),
    ],
)
def test_changes(change: Change, a: list[float], b: list[float]) -> None:
    result = changed(RECORDED, change)

    np.testing.assert_allclose(np.log2(result.step_sizes), np.array([a, b]).T, rtol=1e-12)
    assert (result.blocks, result.boundaries, result.n_samples) == (("a", "b"), (0, 4, 8), 12)
    assert result.step_sizes.tobytes() == RECORDED.step_sizes.tobytes() if change == "none" else True


def test_means_within_experiences_stay_when_shifted() -> None:
    long = Trajectory(("a",), np.arange(10), np.exp(np.arange(10.0))[:, None], (0, 6), 10)

    logs = np.log(changed(long, "shifted", shift=1 / 3).step_sizes[:, 0])

    np.testing.assert_allclose(logs, [2, 3, 4, 5, 0, 1, 7, 8, 9, 6])


def test_a_course_is_folded_by_its_place_where_experiences_differ_in_length() -> None:
    # the first has two rows, the second four, the third two: the grid has the median's two
    logs = np.array([9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 0.0, 2.0])
    uneven = Trajectory(("a",), np.arange(8), np.exp(logs)[:, None], (0, 2, 6), 8)

    folded = np.log(changed(uneven, "folded").step_sizes[:, 0])

    # about their means, at places 0 and ½: (−1.5, 0.5) and (−1, 1), so (−1.25, 0.75), and (−1, 1) without its mean
    np.testing.assert_allclose(folded - logs.mean(), [-1, 1, -1, 0, 1, 1, -1, 1])


def test_a_step_size_holds_until_the_next() -> None:
    assert [RECORDED.at(step)[0] for step in (0, 1, 2, 3, 9, 10, 11, 50)] == [1, 1, 4, 4, 64, 256, 256, 256]


@pytest.mark.parametrize(
    ("trajectory", "change", "shift", "message"),
    [
        (RECORDED, "frosen", 0.5, "unknown change 'frosen'. Did you mean 'frozen'? Known: "),
        (RECORDED, "shifted", 1.5, "shift must be a share of an experience, between 0 and 1, but is 1.5"),
        (
            Trajectory(("a", "b"), np.arange(2), np.ones((2, 2)), (0,), 2),
            "folded",
            0.5,
            'change="folded" needs a run of at least two experiences, but this one had 1',
        ),
        (
            Trajectory(("all",), np.arange(2), np.ones((2, 1)), (0,), 2),
            "exchanged",
            0.5,
            'change="exchanged" needs at least two blocks, but the run had only "all"',
        ),
    ],
)
def test_impossible_changes_are_refused(trajectory: Trajectory, change: Any, shift: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        changed(trajectory, change, shift)


# ------------------------------------------------------------------------------------------------- reading, identity


def write_run(path: Path, factor: float = 1.0, state: str = "finished", rows: int = 6) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(described({"boundaries": [0, 4, 8], "n_samples": 12})))
    (path / "status.json").write_text(json.dumps({"state": state}))
    records = [
        (2 * i, block, factor * 2.0**e) for i, row in enumerate(EXPONENTS) for block, e in zip("ab", row, strict=True)
    ]
    frame = pd.DataFrame(records[: 2 * rows], columns=["step", "block", "step_size"])
    frame.astype({"step": "int32"}).to_parquet(path / "step_sizes.parquet")
    return path


def test_a_run_s_step_sizes_are_read_exactly(tmp_path: Path) -> None:
    read = read_trajectory(write_run(tmp_path / "run", factor=0.1))

    assert (read.blocks, read.boundaries, read.n_samples) == (("a", "b"), (0, 4, 8), 12)
    assert read.steps.tolist() == RECORDED.steps.tolist()
    assert read.step_sizes.tolist() == [[0.1 * 2.0**a, 0.1 * 2.0**b] for a, b in zip(A, B, strict=True)]


@pytest.mark.parametrize(
    ("state", "rows", "message"),
    [
        (None, 6, "there is no run at '{}' whose step sizes could be replayed; give the directory of a finished run"),
        ("running", 6, "the run at '{}' is running, so its step sizes cannot be replayed; give that of a finished run"),
        (
            "diverged",
            6,
            "the run at '{}' is diverged, so its step sizes cannot be replayed; give that of a finished run",
        ),
        ("finished", 0, "the run at '{}' has recorded no step sizes; give a run of another learner"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, state: str | None, rows: int, message: str) -> None:
    path = tmp_path / "run"
    if state is not None:
        write_run(path, state=state, rows=rows)
    with pytest.raises(ValueError, match=exactly(message.format(path))):
        read_trajectory(path)


def replay(path: Path, **options: Any) -> RunConfig:
    return RunConfig(learner=Component(name="replayed_step_sizes", trajectory=str(path), **options)).resolved()


def test_the_identity_of_a_replay_is_what_is_replayed_wherever_it_lies(tmp_path: Path) -> None:
    here, there = write_run(tmp_path / "here"), write_run(tmp_path / "there")
    other = write_run(tmp_path / "other", factor=1 + 1e-15)

    assert replay(here).run_id == replay(there).run_id
    assert replay(here).learner.options["digest"] == read_trajectory(there).digest
    assert len({replay(here).run_id, replay(other).run_id, replay(here, change="frozen").run_id}) == 3


def test_another_run_in_its_place_is_noticed(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    digest = read_trajectory(path).digest
    message = (
        f"learner.trajectory: the step sizes at '{path}' have the digest {digest}, not 123456789abc: another run is "
        "there now; leave digest out to replay that one"
    )
    with pytest.raises(ConfigError, match=exactly(message)):
        replay(path, digest="123456789abc")
