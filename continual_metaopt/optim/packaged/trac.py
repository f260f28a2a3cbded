"""TRAC of the package pytorch-optimizer, around optimizers of torch."""

from typing import Any, Literal

import pytorch_optimizer
import torch
from torch import nn

from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.registry import LR, LearnerSpec

LEARNER = LearnerSpec(
    "trac",
    "TRAC around Adam, AdamW or SGD (pytorch-optimizer)",
    family="no step size to choose",
    space={"lr": LR, "s_prev": (1e-10, 1e-4, "log")},
    paper='Muppidi, Zhang and Yang (2024), "Fast TRAC: a parameter-free optimizer for lifelong reinforcement learning"',
)

BASES = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class TRAC(pytorch_optimizer.TRAC):
    """TRAC that tells its step size.

    Differs from its authors' code in that it writes no log file, goes on where numbers are not finite (the learner then
    finds a loss that is not), and can be saved; the recursions are the same.

    Known of both: once Σs is negative the weights are back at the initial ones, where h = 0 from then on, so that Σs
    keeps its sign for good. With single samples this is often so after the second one, whose gradient need only oppose
    the first step; that is not a matter of rounding. The distance gone is recovered from the weights, whose rounding in
    single precision is larger than the first steps. The imaginary error function is a series in single precision, of
    about six digits; the package pads its coefficients by one zero more than the authors do. A network whose head grows
    is not followed, and copies cannot be made.
    """

    def step_size_report(self) -> dict[str, float]:
        """Give the learned factor Σs on the other optimizer's step size, times that; 0 before the first step."""
        state = self.state.get("trac")
        factor = 0.0 if state is None else max(float(state["s"]), 0.0)
        return {group["name"]: factor * float(group["lr"]) for group in self.param_groups}


def trac(
    model: nn.Module,
    *,
    base: Literal["adam", "adamw", "sgd"] = "adam",
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    betas: tuple[float, ...] = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999),
    num_coefs: int = 128,
    s_prev: float = 1e-8,
    eps: float = 1e-8,
) -> TRAC:
    """Learn one factor on the distance from the initial weights that another optimizer goes.

    Args:
        model: the network.
        base: the other optimizer.
        lr: its step size.
        weight_decay: of the other optimizer.
        betas: discounts of the learners of the factor, which is the sum of what they learn.
        num_coefs: coefficients of the series for the imaginary error function.
        s_prev: scale of the first factor.
        eps: added to denominators.

    Example:
        >>> trac(nn.Linear(2, 1)).step_size_report()
        {'all': 0.0}
    """
    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    return TRAC(
        BASES[base](blocks(model, "scalar"), **options), betas=betas, num_coefs=num_coefs, s_prev=s_prev, eps=eps
    )
