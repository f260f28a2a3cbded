"""A network, or its head, that begins anew at each experience: a control that knows where experiences begin."""

from typing import Any, Literal

from torch import nn
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.learners import Base
from continual_metaopt.optim.on_base import OnBase
from continual_metaopt.optim.weightwise import Group

Part = Literal["network", "head"]


class Reinitialised(OnBase):
    """A base update with a fixed step size, whose weights and moments begin anew at each experience.

    ``begin_experience`` tells it where one begins. The parameters of groups with ``reinitialise`` then take the values
    again that they had before their first step, and the base update forgets what it knew of them. The others go on.

    Args:
        params: tensors or param groups, as for any torch optimizer.
        lr: step size α.
        base: name of the base update.
        weight_decay: decoupled weight decay κ.
        reinitialise: whether the parameters of a group begin anew; each group may say so for itself.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        base: str = "adamw",
        weight_decay: float = 0.01,
        reinitialise: bool = True,
    ) -> None:
        super().__init__(params, lr, base=base, weight_decay=weight_decay, reinitialise=reinitialise)

    def begin_experience(self) -> None:
        """Let the parameters begin anew."""
        for group in self.param_groups:
            for param in group["params"] if group["reinitialise"] else []:
                state = self.state[param]
                if "initial" in state:
                    param.data.copy_(state["initial"])
                    state.pop("base", None)

    def _update(self, loss: Any) -> None:
        for group in self.param_groups:
            for param in group["params"] if group["reinitialise"] else []:
                if "initial" not in self.state[param]:
                    self.state[param]["initial"] = param.detach().clone()
        super()._update(loss)


def reinitialised_told(
    model: nn.Module,
    *,
    part: Part = "network",
    lr: float = 1e-3,
    base: Base = "adamw",
    weight_decay: float = 0.01,
) -> Reinitialised:
    """A base update, with the network or its head set back to its initial weights at every experience it is told of.

    Args:
        model: the network.
        part: "network", or "head" for its last block alone.
        lr: step size α.
        base: base update.
        weight_decay: decoupled weight decay κ.
    """
    groups: list[Group] = blocks(model, "blockwise")
    for group in groups[:-1]:
        group["reinitialise"] = part == "network"
    return Reinitialised(groups, lr, base=base, weight_decay=weight_decay)
