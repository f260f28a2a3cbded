"""Replayed step sizes: a base update with the step sizes that another run has recorded, open loop.

A control for learned step sizes: what a learner gains by the step sizes as such, a replay gains as well.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base_updates import Base
from continual_metaopt.optim.blocks import Granularity, blocks
from continual_metaopt.optim.controls.trajectories import Change, Trajectory, changed, read_trajectory, require_digest
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.registry import LearnerSpec

LEARNER = LearnerSpec(
    "replayed_step_sizes",
    "a base update with the step sizes that another run has recorded",
    family="schedule, or told of changes",
    space="its step sizes are those of another run",
    fixed=True,
)


class ReplayedStepSizes(MetaOptimize):
    """Let step sizes follow a trajectory: ``group["lr"]`` is that of the next step.

    A step size holds until the next recorded one, and the last one after the end. Of boundaries the optimizer
    knows what the trajectory does: those of the recorded run.

    Args:
        params: param groups whose names are those of the trajectory's blocks.
        trajectory: step sizes to replay; None if they are not known yet, which is an error at the first step.
        base: name of the base update.
        weight_decay: decoupled weight decay κ.

    Raises:
        ValueError: the names of the groups are not those of the trajectory's blocks, or a setting is out of range.

    Example:
        >>> import numpy as np
        >>> plan = Trajectory(("group0",), np.array([0, 2]), np.array([[0.1], [0.2]]), boundaries=(0,), n_samples=4)
        >>> optimizer = ReplayedStepSizes([torch.nn.Parameter(torch.ones(1))], plan)
        >>> optimizer.go_to(3)
        >>> optimizer.step_size_report()
        {'group0': 0.2}
    """

    def __init__(
        self, params: ParamsT, trajectory: Trajectory | None, *, base: Base = "adamw", weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, base=base, meta_lr=0.0, weight_decay=weight_decay)
        self.trajectory = trajectory
        if trajectory is None:
            return
        names = self.block_names()
        if set(names) != set(trajectory.blocks):
            raise ValueError(
                f"the trajectory has step sizes of {', '.join(trajectory.blocks)}, but the network's blocks are "
                f"{', '.join(names)}; take the network and the step_sizes of the run that is replayed"
            )
        order = [trajectory.blocks.index(name) for name in names]
        self.trajectory = replace(trajectory, blocks=tuple(names), step_sizes=trajectory.step_sizes[:, order])
        self.go_to(0)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"trajectory": self.trajectory}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make the base update of all parameters; arguments and result as of any torch optimizer.

        Raises:
            ValueError: there are no step sizes to replay, or a gradient is sparse or complex.
        """
        if self.trajectory is None:
            raise ValueError(
                "there are no step sizes to replay: give trajectory, the directory of a finished run, or, in a study, "
                "replays, the label of another learner"
            )
        loss = super().step(closure)
        self.go_to(self.n_done + 1)
        return loss

    @property
    def n_done(self) -> int:
        """Number of steps that have been made."""
        return int(self.param_groups[0]["n_done"])

    def go_to(self, n_done: int) -> None:
        """Take the step sizes that hold after so many steps, all of which have been made."""
        if self.trajectory is not None:
            for group, step_size in zip(self.param_groups, self.trajectory.at(n_done).tolist(), strict=True):
                group["n_done"], group["lr"] = n_done, step_size


def replayed_step_sizes(
    model: nn.Module,
    *,
    trajectory: str = "",
    digest: str = "",
    change: Change = "none",
    shift: float = 0.5,
    base: Base = "adamw",
    weight_decay: float = 0.01,
    step_sizes: Granularity = "blockwise",
    batch_size: int = 1,
) -> ReplayedStepSizes:
    """Replay the step sizes that another run has recorded, as they are or changed.

    Args:
        model: the network.
        trajectory: directory of the run whose step sizes are replayed. In a study, ``replays`` names a learner instead.
        digest: of the trajectory; a run fills it in, so that its identity follows from the step sizes, not from where
            they lie.
        change: "none", "shifted" within each experience, "frozen" at each block's geometric mean, "smoothed" (level and
            trend without the course within experiences), "folded" (level and mean course within experiences without
            the trend), "exchanged" (each block has the next one's), "exchanged_courses" (likewise, about its own mean).
        shift: by how much of an experience "shifted" shifts.
        base: base update.
        weight_decay: decoupled weight decay κ.
        step_sizes: which parameters share a step size, as in the run that is replayed.
        batch_size: samples that are learned from at once; a run fills it in.

    Raises:
        ValueError: there is no such run, it does not fit the network, or samples come in mini-batches.
    """
    if batch_size > 1:
        raise ValueError(f"step sizes are replayed sample by sample, but samples come in mini-batches of {batch_size}")
    plan = None
    if trajectory:
        recorded = read_trajectory(trajectory)
        require_digest(recorded, digest, trajectory)
        plan = changed(recorded, change, shift)
    return ReplayedStepSizes(blocks(model, step_sizes), plan, base=base, weight_decay=weight_decay)


replayed_step_sizes.names_blocks = True  # type: ignore[attr-defined]
