"""Shrink and perturb: weights decay and receive noise."""

from typing import Any

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import OnBase
from continual_metaopt.optim.base_updates import Base
from continual_metaopt.optim.registry import NOISE, ON_A_BASE, LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "shrink_and_perturb",
    "a base update whose steps also shrink weights and add noise",
    family="made for changing streams",
    space={**ON_A_BASE, "sigma": NOISE},
    paper=(
        'Ash, Adams, "On Warm-Starting Neural Network Training", NeurIPS 2020, in the form for streams, at each '
        'step, of Dohare et al., "Loss of plasticity in deep continual learning", Nature 2024'
    ),
    on_a_base=True,
)


class ShrinkAndPerturb(OnBase):
    """Shrink weights and perturb them in each base update, by amounts in proportion to the step size.

    With direction u of the base update, weight decay κ, noise scale σ and noise ξ from N(0, 1):

        w ← (1 − α κ) w − α u − α σ ξ

    That is the form of Elsayed & Mahmood (2024) with SGD, and of Elsayed et al. (2024, "Weight clipping …") with Adam,
    whose σ = 0.01 is the default. Their decay with Adam is part of the gradient; here it is decoupled, which is what
    "shrink" says. κ has no default there; 0.001 is what they give UPGD. Others do not multiply by α: for a factor
    1 − p and noise of size s, take κ = p / α and σ = s / α. Ash & Adams shrink and perturb once, when new data arrive;
    a learner on a stream is not told when they do.

    Args:
        lr: step size α.
        base: name of the base update.
        weight_decay: κ: a step shrinks weights by the factor 1 − α κ.
        sigma: σ: the noise of a step has standard deviation α σ.
        seed: of the noise, which is the optimizer's own.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> ShrinkAndPerturb([w], lr=0.1, base="sgd", weight_decay=0.5, sigma=0.0).step()
        >>> round(w.item(), 4)
        0.75
    """

    not_negative = (*OnBase.not_negative, "sigma", "seed")

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        base: Base = "adamw",
        weight_decay: float = 0.001,
        sigma: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(params, lr, base=base, weight_decay=weight_decay, sigma=sigma, seed=seed)

    @staticmethod
    def after(w: Any, lr: float, sigma: float, noise: Any) -> Any:
        """Perturb the weight."""
        return w - lr * sigma * noise


shrink_and_perturb = learner_of(ShrinkAndPerturb)
