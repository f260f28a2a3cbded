"""The learners that MetaOptimize makes: with learned and with fixed step sizes."""

from typing import Literal

from torch import nn

from continual_metaopt.optim.blocks import Granularity, blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize

Base = Literal[
    "sgd", "sgdm", "rmsprop", "adamw", "lion", "sgdm_released", "rmsprop_released", "adamw_released"
]  # fmt: skip
Meta = Literal["sgd", "rmsprop", "adam", "lion", "rmsprop_released", "adam_released"]


def metaoptimize(
    model: nn.Module,
    *,
    lr: float = 1e-5,
    base: Base = "adamw",
    meta: Meta = "adam",
    meta_lr: float = 1e-2,
    gamma: float = 0.999,
    weight_decay: float = 0.01,
    step_sizes: Granularity | list[list[str]] = "blockwise",
    lr_bounds: tuple[float, float] = (1e-10, 1.0),
) -> MetaOptimize:
    """Learn the step sizes of a network's blocks online.

    Args:
        model: the network.
        lr: initial step size α₀.
        base: base update.
        meta: meta update.
        meta_lr: meta step size η.
        gamma: discount γ of the trace; 1 / (1 − γ) is its horizon in samples.
        weight_decay: decoupled weight decay κ.
        step_sizes: which parameters share a step size: "scalar", "blockwise", "layerwise", or lists of name prefixes.
        lr_bounds: the step sizes stay within these.
    """
    return MetaOptimize(
        blocks(model, step_sizes),
        lr,
        base=base,
        meta=meta,
        meta_lr=meta_lr,
        gamma=gamma,
        weight_decay=weight_decay,
        lr_bounds=lr_bounds,
    )


def fixed(model: nn.Module, *, lr: float = 1e-3, base: Base = "adamw", weight_decay: float = 0.01) -> MetaOptimize:
    """Learn with one fixed step size.

    Args:
        model: the network.
        lr: step size α.
        base: base update.
        weight_decay: decoupled weight decay κ.
    """
    return MetaOptimize(blocks(model, "scalar"), lr, base=base, meta_lr=0.0, weight_decay=weight_decay)
