"""A network, or its head, that begins anew at each experience: a control that knows where experiences begin."""

from typing import Any, Literal

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group
from continual_metaopt.optim.base_updates import Base
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.registry import ON_A_BASE, LearnerSpec

LEARNER = LearnerSpec(
    "reinitialised_told",
    "a base update; network or head begin anew at experiences it is told of",
    family="schedule, or told of changes",
    space=ON_A_BASE,
    on_a_base=True,
)

Part = Literal["network", "head"]


class Reinitialised(MetaOptimize):
    """Learn with a fixed step size, and begin anew with weights and moments at each experience.

    ``begin_experience`` tells it where one begins. The parameters of groups with ``reinitialise`` then take the values
    again that they had before their first step, and the base update forgets what it knew of them. The others go on.
    Where a parameter has grown, its new part takes those that it was given then.

    Args:
        lr: step size α.
        base: name of the base update.
        weight_decay: decoupled weight decay κ.
        reinitialise: whether the parameters of a group begin anew; each group may say so for itself.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> optimizer = Reinitialised([w], lr=0.1)
        >>> optimizer.step()
        >>> optimizer.begin_experience()
        >>> w.item()
        1.0
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        base: Base = "adamw",
        weight_decay: float = 0.01,
        reinitialise: bool = True,
    ) -> None:
        self.reinitialise = reinitialise
        super().__init__(params, lr, base=base, meta_lr=0.0, weight_decay=weight_decay)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"reinitialise": self.reinitialise}

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, which may say itself whether to ``reinitialise``.

        Raises:
            ValueError: a setting is out of range.
        """
        param_group.setdefault("reinitialise", self.reinitialise)
        super().add_param_group(param_group)

    def begin_experience(self) -> None:
        """Let the parameters begin anew."""
        for group in self.param_groups:
            for param in group["params"] if group["reinitialise"] else []:
                if "initial" in self.state[param]:
                    param.data.copy_(self._initial(param))
                    self.state[param].update(self.base.init(param))

    def prepared_state(self, group: Group, param: Tensor) -> dict[str, Any]:
        """Give a parameter's state, made at its first update; with its initial values, where it begins anew."""
        state = super().prepared_state(group, param)
        if group["reinitialise"]:
            self._initial(param)
        return state

    def _initial(self, param: Tensor) -> Tensor:
        """What a parameter began with; what has been added to it since the last call begins with the values of now."""
        state, shape = self.state[param], list(param.shape)
        if state.get("shape") != shape:
            values = param.detach().clone()
            if "initial" in state:
                known = tuple(map(slice, state["shape"]))
                values[known] = state["initial"][known]
            state["initial"], state["shape"] = values, shape
        initial: Tensor = state["initial"]
        return initial


def reinitialised_told(
    model: nn.Module,
    *,
    part: Part = "network",
    lr: float = 1e-3,
    base: Base = "adamw",
    weight_decay: float = 0.01,
) -> Reinitialised:
    """Set the network or its head back to its initial weights at every experience, of which it is told.

    Args:
        model: the network.
        part: "network", or "head" for its last block alone.
        lr: step size α.
        base: base update.
        weight_decay: decoupled weight decay κ.

    Example:
        >>> len(reinitialised_told(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), part="head").param_groups)
        2
    """
    groups: list[Group] = blocks(model, "blockwise")
    for group in groups[:-1]:
        group["reinitialise"] = part == "network"
    return Reinitialised(groups, lr, base=base, weight_decay=weight_decay)
