"""Prodigy of the package prodigyopt."""

import prodigyopt
from torch import nn

from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.packaged import EstimatesDistance, options_of, silence
from continual_metaopt.optim.registry import DECOUPLED_DECAY, INITIAL_DISTANCE, LearnerSpec

LEARNER = LearnerSpec(
    "prodigy",
    "Prodigy, Adam with an estimated step size (prodigyopt)",
    family="no step size to choose",
    space={"d_coef": [0.25, 0.5, 1.0, 2.0, 4.0], "d0": INITIAL_DISTANCE, "weight_decay": DECOUPLED_DECAY},
    paper='Mishchenko and Defazio (2024), "Prodigy: an expeditiously adaptive parameter-free learner"',
)


class Prodigy(EstimatesDistance, prodigyopt.Prodigy):
    """Prodigy that tells its step size.

    Known of the original: the estimate d never falls; a network whose head grows is not followed, since its records of
    weights are flat.
    """


def prodigy(
    model: nn.Module,
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    growth_rate: float | None = None,
) -> Prodigy:
    """Learn by Adam whose step size is a growing estimate of the distance to the solution.

    Args:
        model: the network.
        lr: factor on the step size, best left at 1.
        betas: β₁ and β₂ of Adam.
        beta3: decay of the running means behind the estimate; the root of β₂ if not given.
        eps: ε of Adam.
        weight_decay: of the weights.
        decouple: whether weight decay is decoupled, as in AdamW.
        use_bias_correction: whether Adam's bias correction is applied.
        safeguard_warmup: leaves ``lr`` out of the estimate's denominator.
        d0: first estimate of the distance.
        d_coef: factor on the estimate.
        growth_rate: largest factor by which it grows in one step; None for no limit.

    Example:
        >>> prodigy(nn.Linear(2, 1)).step_size_report()
        {'all': 1e-06}
    """
    options = options_of(locals())
    with silence():
        return Prodigy(blocks(model, "scalar"), **options)
