"""Weight clipping: weights stay within the range that they were drawn from."""

import math
from typing import Any

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, OnBase
from continual_metaopt.optim.base_updates import Base
from continual_metaopt.optim.elementwise import maximum, minimum
from continual_metaopt.optim.registry import DECOUPLED_DECAY, LR, LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "weight_clipping",
    "a base update with weights clipped to the range of their initial values",
    family="made for changing streams",
    space={"lr": LR, "bound": [1.0, 2.0, 3.0, 5.0], "weight_decay": DECOUPLED_DECAY},
    paper=(
        'Elsayed, Lan, Lyle, Mahmood, "Weight Clipping for Deep Continual and Reinforcement Learning", RLC 2024 '
        "(arXiv 2407.01704)"
    ),
    on_a_base=True,
)


class WeightClipping(OnBase):
    """Clip each weight to ±ζ / √(fan in) after a base update.

    1 / √(fan in) bounds torch's initial weights and biases of linear layers and convolutions. A param group is a layer:
    its fan in is that of its first parameter with two or more dimensions, and goes for its biases too. A group without
    such a parameter, as of a normalisation, is not clipped. The authors' code gives any parameter of one dimension the
    bound of the weight before it, and so clips the scales of normalisations, which start from 1, to ±ζ / √(fan in).

    Args:
        params: param groups, one per layer.
        lr: step size α.
        base: name of the base update.
        bound: ζ: weights of a layer stay within ±ζ / √(fan in).
        weight_decay: decoupled weight decay κ.

    Example:
        >>> import torch
        >>> w = torch.ones(1, 4, requires_grad=True)
        >>> w.grad = torch.ones(1, 4)
        >>> WeightClipping([w], lr=0.1).step()
        >>> round(w[0, 0].item(), 4)
        0.5
    """

    positive = ("bound",)

    def __init__(
        self, params: ParamsT, lr: float = 1e-3, *, base: Base = "adamw", bound: float = 1.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr, base=base, weight_decay=weight_decay, bound=bound)

    def numbers(self, group: Group) -> dict[str, float]:
        """Add the limit of the group's weights."""
        fan_in = next((member[0].numel() for member in group["params"] if member.dim() > 1), None)
        return super().numbers(group) | {"limit": math.inf if fan_in is None else group["bound"] / math.sqrt(fan_in)}

    @staticmethod
    def after(w: Any, limit: float) -> Any:
        """Clip the weight."""
        return minimum(maximum(w, -limit), limit)


weight_clipping = learner_of(WeightClipping, blocks="layerwise")
