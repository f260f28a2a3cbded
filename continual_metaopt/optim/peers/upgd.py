"""UPGD: perturbed gradient descent that leaves useful weights alone."""

from typing import Any, ClassVar

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import settings_of
from continual_metaopt.optim.elementwise import Elementwise, Reduction, exp, where
from continual_metaopt.optim.registry import NOISE, LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "upgd",
    "UPGD: perturbed gradient descent that leaves useful weights alone",
    family="made for changing streams",
    space={
        "lr": (1e-5, 3e-2, "log"),
        "weight_decay": [0.0, 1e-4, 1e-3, 1e-2],
        "beta_utility": [0.9, 0.99, 0.999, 0.9999],
        "sigma": NOISE,
    },
    paper=(
        'Elsayed, Mahmood, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning", '
        "ICLR 2024, with first-order global utility, weight by weight, as the stand-alone optimizer in the README"
        " of the authors' repository"
    ),
    fixed=True,
)


class UPGD(Elementwise):
    """Perturb useless weights and leave useful ones alone (UPGD, first order, with global utility).

    With gradient g, noise ξ from N(0, 1), decay β of the utility, noise scale σ and weight decay κ:

        u ← β u − (1 − β) g w                      utility: what the loss would gain without the weight
        s = sigmoid(u / (1 − βᵗ) / η)              η: the largest u of all weights of all groups
        w ← (1 − α κ) w − 2 α (g + σ ξ) (1 − s)

    The authors' repository has two sets of defaults and two step lengths. Here are the README's: 2 α, α = 1e-5,
    κ = 0.001, β = 0.999, σ = 0.001. Its experiment code (``FirstOrderGlobalUPGD``) steps by α instead of 2 α and has
    κ = 0, β = 0, σ = 1: there, take half the step size and give those. The repository of weight clipping has a third
    form, with the README's defaults and α instead of 2 α.

    Known defects of the original, which are kept because they are the algorithm that was published: η is the largest
    of the uncorrected utilities while u in the numerator is corrected for its start at 0, so that s is 0 or 1 for
    almost every weight in the first 1 / (1 − β) steps; and where all utilities are negative their order is reversed.
    Not kept: the original fails at parameters without gradient, and makes all weights NaN where all utilities are 0
    (0 / 0, which counts as 0 here).

    Args:
        lr: step size α.
        weight_decay: decoupled weight decay κ.
        beta_utility: decay β of the running mean of the utility.
        sigma: scale σ of the noise.
        seed: of the noise, which is the optimizer's own.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> UPGD([w], lr=0.1, sigma=0.0).step()
        >>> round(w.item(), 4)
        0.9999
    """

    keeps = ("utility",)
    measures: ClassVar[dict[str, Reduction]] = {"largest": "max"}
    over_all_groups = True
    not_negative = ("lr", "weight_decay", "sigma", "seed")
    below_one = ("beta_utility",)

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        weight_decay: float = 0.001,
        beta_utility: float = 0.999,
        sigma: float = 0.001,
        seed: int = 0,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    @staticmethod
    def measure(w: Any, g: Any, utility: Any, beta_utility: float) -> Any:
        """Move the utility."""
        return beta_utility * utility - (1 - beta_utility) * g * w

    @staticmethod
    def move(
        w: Any,
        g: Any,
        utility: Any,
        noise: Any,
        lr: float,
        weight_decay: float,
        beta_utility: float,
        sigma: float,
        largest: float,
        step: int,
    ) -> Any:
        """Move the utility, and by its share the weight."""
        utility = beta_utility * utility - (1 - beta_utility) * g * w
        scaled = utility / ((1 - beta_utility**step) * largest)
        scaled = where(scaled == scaled, scaled, 0.0)
        w = (1 - lr * weight_decay) * w - 2 * lr * (g + sigma * noise) / (1 + exp(scaled))
        return w, utility


upgd = learner_of(UPGD)
