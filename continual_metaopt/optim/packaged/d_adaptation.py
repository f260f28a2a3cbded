"""SGD, Adam and AdaGrad with D-Adaptation, of the package dadaptation.

Known of the originals: the estimate d never falls; weight decay is added to ``p.grad`` in place.
"""

import dadaptation
from torch import nn

from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.packaged import EstimatesDistance, options_of, silence
from continual_metaopt.optim.registry import DECAY_IN_GRADIENT, INITIAL_DISTANCE, LearnerSpec

DADAPT_SGD = LearnerSpec(
    "dadapt_sgd",
    "SGD with D-Adaptation (dadaptation)",
    family="no step size to choose",
    space={"d0": INITIAL_DISTANCE, "weight_decay": DECAY_IN_GRADIENT},
    paper='Defazio and Mishchenko (2023), "Learning-rate-free learning by D-Adaptation"',
)

DADAPT_ADAM = LearnerSpec(
    "dadapt_adam",
    "Adam with D-Adaptation (dadaptation)",
    family="no step size to choose",
    space={"d0": INITIAL_DISTANCE, "weight_decay": DECAY_IN_GRADIENT},
    paper='Defazio and Mishchenko (2023), "Learning-rate-free learning by D-Adaptation"',
)

DADAPT_ADAGRAD = LearnerSpec(
    "dadapt_adagrad",
    "AdaGrad with D-Adaptation (dadaptation)",
    family="no step size to choose",
    space={"d0": INITIAL_DISTANCE, "weight_decay": DECAY_IN_GRADIENT},
    paper='Defazio and Mishchenko (2023), "Learning-rate-free learning by D-Adaptation"',
)


class DAdaptSGD(dadaptation.DAdaptSGD):
    """SGD with D-Adaptation that tells its step size.

    Known of the original: a first gradient of zero ends in a division by zero; the norm of the first gradient is taken
    without weight decay.
    """

    def step_size_report(self) -> dict[str, float]:
        """Give d·α over the norm of the first gradient, and 0 before that is known."""
        return {
            group["name"]: group["d"] * group["lr"] / group["g0_norm"] if "g0_norm" in group else 0.0
            for group in self.param_groups
        }


class DAdaptAdam(EstimatesDistance, dadaptation.DAdaptAdam):
    """Adam with D-Adaptation that tells its step size."""


class DAdaptAdaGrad(EstimatesDistance, dadaptation.DAdaptAdaGrad):
    """AdaGrad with D-Adaptation that tells its step size, the factor on new gradients before AdaGrad's scaling."""


def dadapt_sgd(
    model: nn.Module,
    *,
    lr: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    growth_rate: float | None = None,
) -> DAdaptSGD:
    """Learn by SGD whose step size is a growing estimate of a distance, over the first gradient's norm.

    Args:
        model: the network.
        lr: factor on the step size, best left at 1.
        momentum: 1 − the share of a new iterate in the weights.
        weight_decay: factor on the weights in the gradient.
        d0: first estimate of the distance.
        growth_rate: largest factor by which it grows in one step; None for no limit.

    Example:
        >>> dadapt_sgd(nn.Linear(2, 1)).step_size_report()
        {'all': 0.0}
    """
    return DAdaptSGD(blocks(model, "scalar"), **options_of(locals()))


def dadapt_adam(
    model: nn.Module,
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = False,
    use_bias_correction: bool = False,
    d0: float = 1e-6,
    growth_rate: float | None = None,
) -> DAdaptAdam:
    """Learn by Adam whose step size is a growing estimate of the distance to the solution.

    Args:
        model: the network.
        lr: factor on the step size, best left at 1.
        betas: β₁ and β₂ of Adam.
        eps: ε of Adam.
        weight_decay: of the weights.
        decouple: whether weight decay is decoupled, as in AdamW.
        use_bias_correction: whether Adam's bias correction is applied.
        d0: first estimate of the distance.
        growth_rate: largest factor by which it grows in one step; None for no limit.

    Example:
        >>> dadapt_adam(nn.Linear(2, 1)).step_size_report()
        {'all': 1e-06}
    """
    options = options_of(locals())
    with silence():
        return DAdaptAdam(blocks(model, "scalar"), **options)


def dadapt_adagrad(
    model: nn.Module,
    *,
    lr: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
    d0: float = 1e-6,
    growth_rate: float | None = None,
) -> DAdaptAdaGrad:
    """Learn by AdaGrad whose step size is a growing estimate of the distance to the solution.

    Args:
        model: the network.
        lr: factor on the step size, best left at 1.
        momentum: 1 − the share of a new iterate in the weights.
        weight_decay: factor on the weights in the gradient.
        eps: ε of AdaGrad.
        d0: first estimate of the distance.
        growth_rate: largest factor by which it grows in one step; None for no limit.

    Example:
        >>> dadapt_adagrad(nn.Linear(2, 1)).step_size_report()
        {'all': 1e-06}
    """
    return DAdaptAdaGrad(blocks(model, "scalar"), **options_of(locals()))
