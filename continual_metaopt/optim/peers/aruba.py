"""ARUBA: step sizes from how far a weight moved and how large its gradients were in past experiences."""

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import settings_of
from continual_metaopt.optim.elementwise import Elementwise, log, sqrt
from continual_metaopt.optim.registry import LearnerSpec, learner_of

LEARNER = LearnerSpec(
    "aruba_told",
    "ARUBA: a step size for each weight from past experiences, of which it is told",
    family="schedule, or told of changes",
    space={"lr": (1e-3, 1.0, "log"), "zeta": [0.1, 1.0, 10.0]},
    paper=(
        'Khodak, Balcan, Talwalkar, "Adaptive Gradient-Based Meta-Learning Methods", NeurIPS 2019 (arXiv '
        "1906.02717), with the authors' released code"
    ),
)


class ARUBA(Elementwise):
    """Descend with step sizes √(b / G), one per weight, that change where an experience begins.

    ``begin_experience`` tells it where. When the k-th experience is over, in which a weight has moved from φ to w:

        b ← b + ½ (w − φ)² + ε² / (k + 1)^p              b = ε² at first
        G ← G + Σ g² + ζ² / (k + 1)^p                    G = ζ² at first; the sum is over the experience's steps

    Within an experience step sizes are constant; in the first they are all ε / ζ = ``lr``.

    The authors' tasks all start from a common φ, which they learn along with the step sizes, and a task's learner is
    thrown away. On a stream there is one learner, which goes on from where it is: φ is where an experience finds it.
    Nor are there tasks in which step sizes are not learned any more; so there is no ARUBA++, whose G goes on growing in
    those. The authors sum G over mini-batches of 10, here it is over a stream's steps.

    The state holds b − ε² and G − ζ², so that weights that a growing head adds start from ε / ζ.

    Args:
        lr: step size of the first experience, ε / ζ. The authors' default is 1, too much for most networks at single
            samples.
        zeta: ζ: as many squared gradients as the first step size is worth.
        power: p: how fast later experiences forget the first step size.

    Example:
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> ARUBA([w], lr=0.2).step()
        >>> round(w.item(), 4)
        0.6
    """

    positive = ("lr", "zeta")
    not_negative = ("power",)
    keeps = ("squared_moves", "squared_gradients", "moved", "squared_gradients_now")
    decides = ("n_done",)

    def __init__(self, params: ParamsT, lr: float = 1.0, *, zeta: float = 1.0, power: float = 1.0) -> None:
        super().__init__(params, settings_of(locals()) | {"n_done": 0, "n_experiences": 0})

    @torch.no_grad()
    def begin_experience(self) -> None:
        """Let the step sizes take in the experience that is over, if any step was made in it."""
        for group in self.param_groups:
            if group["n_done"] == 0:
                continue
            group["n_done"] = 0
            group["n_experiences"] += 1
            prior = group["zeta"] ** 2 / (group["n_experiences"] + 1) ** group["power"]
            for state in (self.state[param] for param in group["params"] if param in self.state):
                state["squared_moves"].addcmul_(state["moved"], state["moved"], value=0.5)
                state["squared_moves"].add_(prior * group["lr"] ** 2)
                state["squared_gradients"].add_(state["squared_gradients_now"]).add_(prior)
                state["moved"].zero_()
                state["squared_gradients_now"].zero_()

    @staticmethod
    def decide(n_done: float) -> float:
        """Count the steps of the experience."""
        return n_done + 1

    @staticmethod
    def move(
        w: Any,
        g: Any,
        squared_moves: Any,
        squared_gradients: Any,
        moved: Any,
        squared_gradients_now: Any,
        lr: float,
        zeta: float,
    ) -> Any:
        """Step along the gradient."""
        step = sqrt(_squared_step_size(squared_moves, squared_gradients, lr, zeta)) * g
        return w - step, squared_moves, squared_gradients, moved - step, squared_gradients_now + g * g

    @staticmethod
    def log_step_size(squared_moves: Any, squared_gradients: Any, lr: float, zeta: float) -> Any:
        """Take the logarithm of a weight's step size."""
        return log(_squared_step_size(squared_moves, squared_gradients, lr, zeta)) / 2


def _squared_step_size(squared_moves: Any, squared_gradients: Any, lr: float, zeta: float) -> Any:
    return (squared_moves + (lr * zeta) ** 2) / (squared_gradients + zeta**2)


aruba_told = learner_of(ARUBA)
