"""L2 Init: a pull of the weights towards their initial values."""

from typing import Any

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import OnBase
from continual_metaopt.optim.base_updates import Base
from continual_metaopt.optim.registry import LR, LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "l2_init",
    "a base update with a pull towards the initial weights",
    family="made for changing streams",
    space={"lr": LR, "pull": (1e-5, 1e-1, "log")},
    paper=(
        'Kumar, Marklund, Van Roy, "Maintaining Plasticity in Continual Learning via Regenerative '
        'Regularization", CoLLAs 2024 (arXiv 2308.11958)'
    ),
    on_a_base=True,
)


class L2Init(OnBase):
    """Pull weights towards the initial ones w₀: a base update of the loss plus ½ λ ‖w − w₀‖².

    The gradient that the base update sees is g + λ (w − w₀), so that it is part of Adam's moments, as in the authors'
    code; with SGD it is a decoupled pull as well. The paper writes the penalty without the ½ that the code has.

    The state holds w − w₀, what the steps made so far sum up to. So weights that a growing head adds are pulled to the
    values that they had when they joined, and w₀ follows when the weights are changed from outside.

    The authors leave parameters of layer normalisation out of the penalty; here all parameters of a group have it, and
    a group may have ``pull=0``. Their configuration has λ = 0 until it is tuned (1e-2 to 1e-5); 1e-2 is the default of
    the re-implementation by Elsayed et al. ("Weight clipping for deep continual and reinforcement learning", 2024).
    That one differs from the authors': it takes the weights after the first step for the initial ones, and with Adam it
    puts the decay −λ w through Adam's moments but adds the pull λ w₀ outside of them, so that weights are drawn neither
    to w₀ nor to 0.

    Args:
        lr: step size α.
        base: name of the base update.
        pull: strength λ of the penalty ½ λ ‖w − w₀‖².
        weight_decay: decoupled weight decay κ, beside the pull.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> L2Init([w], lr=0.1, base="sgd").step()
        >>> round(w.item(), 4)
        0.8
    """

    keeps = ("moved",)
    not_negative = (*OnBase.not_negative, "pull")

    def __init__(
        self, params: ParamsT, lr: float = 1e-3, *, base: Base = "adamw", pull: float = 1e-2, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr, base=base, weight_decay=weight_decay, pull=pull)

    @staticmethod
    def adjusted(g: Any, moved: Any, pull: float) -> Any:
        """Add the gradient of the penalty."""
        return g + pull * moved

    @staticmethod
    def after(before: Any, w: Any, moved: Any) -> Any:
        """Add up the steps."""
        return w, moved - (before - w)


l2_init = learner_of(L2Init)
