"""Lion of the package lion-pytorch.

Known of the original: it cannot be copied; ``decoupled_weight_decay`` divides by the first step size.
"""

import lion_pytorch
from torch import nn

from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.packaged import options_of
from continual_metaopt.optim.registry import DECOUPLED_DECAY, LearnerSpec

LEARNER = LearnerSpec(
    "lion",
    "Lion with a fixed step size (lion-pytorch)",
    family="fixed step size",
    space={"lr": (1e-6, 1e-2, "log"), "weight_decay": DECOUPLED_DECAY},
    paper='Chen et al. (2023), "Symbolic discovery of optimization algorithms"',
    fixed=True,
)


def lion(
    model: nn.Module,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
) -> lion_pytorch.Lion:
    """Step along the sign of an interpolated momentum, with a fixed step size (Lion).

    Args:
        model: the network.
        lr: step size α.
        betas: β₁ of the interpolation and β₂ of the momentum.
        weight_decay: of the weights, times α.
        decoupled_weight_decay: whether weight decay is independent of α.

    Example:
        >>> lion(nn.Linear(2, 1)).param_groups[0]["lr"]
        0.0001
    """
    return lion_pytorch.Lion(blocks(model, "scalar"), **options_of(locals()))
