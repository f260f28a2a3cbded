"""The learners that MetaOptimize makes: with learned and with fixed step sizes."""

from typing import Literal

from torch import nn

from continual_metaopt.optim.blocks import Granularity, blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize, MetaParameter, StepSizeParametrisation, UpdateOrder

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
    horizon: float | None = None,
    learn: tuple[MetaParameter, ...] = ("lr",),
    update_order: UpdateOrder = "base_first",
    parametrisation: StepSizeParametrisation = "log",
    meta_every: int = 1,
    max_meta_change: float | None = None,
    effective_step_bound: float | None = None,
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
        step_sizes: which parameters share a step size: "scalar", "blockwise", "layerwise", "tensor", "node" (output
            unit), "weight", or lists of name prefixes.
        lr_bounds: the step sizes stay within these.
        horizon: 1 / (1 − γ) in samples, in place of ``gamma``.
        learn: what is learned: "lr" (step size), "weight_decay", "momentum".
        update_order: "base_first" or "meta_first": whether a step is taken before its meta update or after it.
        parametrisation: "log" learns the logarithm of the step size, "linear" the step size itself.
        meta_every: meta updates are made at every so many samples, with the sum of their meta gradients.
        max_meta_change: bound on the change of a log step size in one meta update; None for none.
        effective_step_bound: bound on what a step takes off the loss, as Autostep's; see ``MetaOptimize``.
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
        horizon=horizon,
        learn=learn,
        update_order=update_order,
        parametrisation=parametrisation,
        meta_every=meta_every,
        max_meta_change=max_meta_change,
        effective_step_bound=effective_step_bound,
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
