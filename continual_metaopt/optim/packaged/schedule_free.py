"""Schedule-free SGD and AdamW of the package schedulefree.

The parameters hold the averaged weights x after ``eval()``, and the weights y, at which gradients are taken, after
``train()``; ``OnlineLearner`` switches between them. Switching is arithmetic and rounds, so that results differ in the
last digits from those of a loop that never switches. Known of the originals: the step scales ``p.grad`` in place; of
a parameter that is replaced by a larger one, the new part of z begins at zero instead of at the weights.
"""

import schedulefree
from torch import nn

from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.packaged import options_of
from continual_metaopt.optim.registry import DECOUPLED_DECAY, LR, LearnerSpec

SCHEDULEFREE_SGD = LearnerSpec(
    "schedulefree_sgd",
    "schedule-free SGD (schedulefree)",
    family="no step size to choose",
    space={"lr": (1e-3, 1e1, "log"), "momentum": [0.9, 0.95, 0.98]},
    paper='Defazio et al. (2024), "The road less scheduled"',
    fixed=True,
)

SCHEDULEFREE_ADAMW = LearnerSpec(
    "schedulefree_adamw",
    "schedule-free AdamW (schedulefree)",
    family="no step size to choose",
    space={"lr": LR, "weight_decay": DECOUPLED_DECAY},
    paper='Defazio et al. (2024), "The road less scheduled"',
    fixed=True,
)


def schedulefree_sgd(
    model: nn.Module,
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> schedulefree.SGDScheduleFree:
    """Learn by SGD with iterate averaging in place of a schedule of a fixed step size.

    Args:
        model: the network.
        lr: step size α.
        momentum: β, the share of the average x in the weights y at which gradients are taken.
        weight_decay: factor on the weights y in the gradient.
        warmup_steps: steps in which the step size rises linearly.
        r: power of the step number in the weights of the average.
        weight_lr_power: power of the step size in them.

    Example:
        >>> schedulefree_sgd(nn.Linear(2, 1)).param_groups[0]["lr"]
        1.0
    """
    return schedulefree.SGDScheduleFree(blocks(model, "scalar"), **options_of(locals()))


def schedulefree_adamw(
    model: nn.Module,
    *,
    lr: float = 0.0025,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> schedulefree.AdamWScheduleFree:
    """Learn by AdamW with iterate averaging in place of momentum and of a schedule of a fixed step size.

    Args:
        model: the network.
        lr: step size α.
        betas: the share β₁ of the average x in the weights y at which gradients are taken, and β₂ of Adam.
        eps: ε of Adam.
        weight_decay: factor on the weights y in the scaled gradient.
        warmup_steps: steps in which the step size rises linearly.
        r: power of the step number in the weights of the average.
        weight_lr_power: power of the step size in them.

    Example:
        >>> schedulefree_adamw(nn.Linear(2, 1)).param_groups[0]["lr"]
        0.0025
    """
    return schedulefree.AdamWScheduleFree(blocks(model, "scalar"), **options_of(locals()))
