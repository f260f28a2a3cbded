"""Step sizes that a run has recorded, as a trajectory that other learners can replay, unchanged or changed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.analysis.files import with_home
from continual_metaopt.analysis.records import read_config, read_status
from continual_metaopt.streams.registry import unknown_name

Change = Literal["none", "shifted", "frozen", "smoothed", "folded", "exchanged", "exchanged_courses"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Trajectory:
    """The step sizes of a run's blocks over its stream. Each holds until the next one.

    Attributes:
        blocks: names of the blocks.
        steps: at which step sizes were recorded, int64 [rows], in rising order.
        step_sizes: float64 [rows, blocks].
        boundaries: first step of each experience of the recorded run.
        n_samples: length of its stream.

    Example:
        >>> Trajectory(("all",), np.array([0, 2]), np.array([[0.1], [0.2]]), boundaries=(0,), n_samples=4).at(3)
        array([0.2])
    """

    blocks: tuple[str, ...]
    steps: NDArray[np.int64]
    step_sizes: Array
    boundaries: tuple[int, ...]
    n_samples: int

    def at(self, steps: int | NDArray[np.int64]) -> Array:
        """Give the step sizes of all blocks at a step, [blocks], or at several steps, [steps, blocks]."""
        rows: Array = self.step_sizes[np.maximum(np.searchsorted(self.steps, steps, side="right") - 1, 0)]
        return rows

    @property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the hash of all that it holds."""
        known = [*self.blocks, "", *map(str, self.boundaries), "", str(self.n_samples), ""]
        content = hashlib.sha256("\n".join(known).encode())
        content.update(self.steps.astype("<i8").tobytes())
        content.update(np.ascontiguousarray(self.step_sizes, "<f8").tobytes())
        return content.hexdigest()[:12]

    @property
    def experiences(self) -> NDArray[np.int64]:
        """The experience that each row belongs to, [rows]."""
        return np.searchsorted(self.boundaries, self.steps, side="right") - 1

    @property
    def places(self) -> Array:
        """The place of each row in its experience, from 0 to below 1, [rows]."""
        starts = np.array(self.boundaries)
        lengths = np.diff([*self.boundaries, self.n_samples])
        within: Array = (self.steps - starts[self.experiences]) / lengths[self.experiences]
        return within


def read_trajectory(path: str | Path) -> Trajectory:
    """Read the step sizes that a finished run has recorded.

    Args:
        path: the run directory.

    Raises:
        ValueError: there is no run, or it has not finished, or it has recorded no step sizes; the message says so.
    """
    from continual_metaopt.analysis.runs import read_table

    path = Path(*with_home([str(path)]))
    try:
        is_there = (path / "config.json").exists() and (path / "status.json").exists()
    except OSError:
        is_there = False
    if not is_there:
        raise ValueError(
            f"there is no run at '{path}' whose step sizes could be replayed; give the directory of a finished run"
        )
    config, state = read_config(path), read_status(path)["state"]
    info = config["stream_info"]
    if state != "finished":
        raise ValueError(
            f"the run at '{path}' is {state}, so its step sizes cannot be replayed; give that of a finished run"
        )
    table = read_table(path, config, "step_sizes", ["step", "block", "step_size"])
    if table.empty:
        raise ValueError(f"the run at '{path}' has recorded no step sizes; give a run of another learner")
    blocks = tuple(dict.fromkeys(table["block"].astype(str)))
    by_block = table.astype({"block": str}).pivot(index="step", columns="block", values="step_size")[list(blocks)]
    return Trajectory(
        blocks,
        by_block.index.to_numpy(np.int64),
        by_block.to_numpy(np.float64),
        tuple(map(int, info["boundaries"])),
        int(info["n_samples"]),
    )


def with_digest(options: dict[str, Any]) -> dict[str, Any]:
    """Add the digest of the trajectory that a learner's options name; give them as they are if they name none.

    Raises:
        ValueError: the trajectory cannot be read, or is another one than the digest says.
    """
    if not options.get("trajectory"):
        return options
    trajectory = read_trajectory(options["trajectory"])
    require_digest(trajectory, options.get("digest", ""), options["trajectory"])
    return options | {"digest": trajectory.digest}


def require_digest(trajectory: Trajectory, digest: str, path: str | Path) -> None:
    """Check that a trajectory is the one that is meant; none in particular if the digest is empty.

    Raises:
        ValueError: it is another one.
    """
    if digest and digest != trajectory.digest:
        raise ValueError(
            f"the step sizes at '{path}' have the digest {trajectory.digest}, not {digest}: another run is there now; "
            "leave digest out to replay that one"
        )


def changed(trajectory: Trajectory, change: Change, shift: float = 0.5) -> Trajectory:
    """Change the step sizes of a trajectory; means are geometric.

    Args:
        trajectory: as recorded.
        change: "none"; "shifted", within each experience, so that at a place there are the step sizes of the place
            ``shift`` later, those of the experience's beginning after those of its end; "frozen" at each block's mean
            over the stream; "smoothed", each block's moving mean over the length of an experience, which keeps level
            and trend; "folded", each block's mean over the stream times its mean course within an experience, over the
            experiences after the first, which keeps level and course; "exchanged", each block with the step sizes of
            the next one, the last with those of the first; "exchanged_courses", likewise, but with each block's own
            mean over the stream.
        shift: share of an experience, in [0, 1].

    Raises:
        ValueError: unknown change, or the trajectory has too few experiences or blocks for it.
    """
    if change not in get_args(Change):
        raise ValueError(unknown_name("change", change, list(get_args(Change))))
    if not 0 <= shift <= 1:
        raise ValueError(f"shift must be a share of an experience, between 0 and 1, but is {shift}")
    if change == "none":
        return trajectory
    n_experiences, n_blocks = len(trajectory.boundaries), len(trajectory.blocks)
    if change == "folded" and n_experiences < 2:
        raise ValueError('change="folded" needs a run of at least two experiences, but this one had 1')
    if change in ("exchanged", "exchanged_courses") and n_blocks < 2:
        raise ValueError(f'change="{change}" needs at least two blocks, but the run had only "{trajectory.blocks[0]}"')
    if change == "exchanged":
        return replace(trajectory, step_sizes=np.roll(trajectory.step_sizes, -1, axis=1))
    rules: dict[str, Callable[[Trajectory, Array], Array]] = {
        "shifted": lambda own, logs: _shifted(own, logs, shift),
        "frozen": lambda own, logs: np.broadcast_to(logs.mean(axis=0), logs.shape),
        "smoothed": _smoothed,
        "folded": _folded,
        "exchanged_courses": lambda own, logs: logs.mean(axis=0) + np.roll(logs - logs.mean(axis=0), -1, axis=1),
    }
    return replace(trajectory, step_sizes=np.exp(rules[change](trajectory, np.log(trajectory.step_sizes))))


def _shifted(own: Trajectory, logs: Array, shift: float) -> Array:
    shifted = logs.copy()
    for experience in np.unique(own.experiences):
        rows = own.experiences == experience
        shifted[rows] = np.roll(logs[rows], -round(shift * int(rows.sum())), axis=0)
    return shifted


def _rows_of_an_experience(own: Trajectory) -> int:
    return int(np.median(np.unique(own.experiences, return_counts=True)[1]))


def _smoothed(own: Trajectory, logs: Array) -> Array:
    """Means over so many rows as an experience has, centred; towards the ends over the stream's first or last ones."""
    width = _rows_of_an_experience(own)
    sums = np.concatenate([np.zeros((1, logs.shape[1])), np.cumsum(logs, axis=0)])
    starts = np.clip(np.arange(len(logs)) - width // 2, 0, len(logs) - width)
    means: Array = (sums[starts + width] - sums[starts]) / width
    return means


def _folded(own: Trajectory, logs: Array) -> Array:
    grid = np.arange(_rows_of_an_experience(own)) / _rows_of_an_experience(own)
    later = np.unique(own.experiences)[1:]
    folded = np.empty_like(logs)
    for block in range(logs.shape[1]):
        course = np.zeros(len(grid))
        for experience in later:
            rows = own.experiences == experience
            recorded = logs[rows, block]
            course += np.interp(grid, own.places[rows], recorded - recorded.mean()) / len(later)
        folded[:, block] = logs[:, block].mean() + np.interp(own.places, grid, course - course.mean())
    return folded
