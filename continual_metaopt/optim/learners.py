"""The learners of this package: MetaOptimize with learned and with fixed step sizes, and its relatives."""

from torch import nn

from continual_metaopt.optim.base_updates import Base
from continual_metaopt.optim.blocks import Granularity, blocks
from continual_metaopt.optim.curvature import CurvatureKind
from continual_metaopt.optim.meta_updates import Meta
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.settings import DEFAULT_GAMMA, Discount, MetaParameter, StepSizeParametrisation, Trace
from continual_metaopt.optim.traces import DEFAULT_LIMIT, UpdateOrder
from continual_metaopt.optim.two_horizons import AUTO


def metaoptimize(
    model: nn.Module,
    *,
    lr: float = 1e-5,
    base: Base = "adamw",
    meta: Meta = "adam",
    meta_lr: float = 1e-2,
    gamma: Discount = "auto",
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
    trace: Trace = "dutch",
    curvature: CurvatureKind = "exact",
    curvature_smoothing: float = 0.0,
    curvature_clip: tuple[float, float] | None = None,
    trace_memory_limit: float | None = DEFAULT_LIMIT,
) -> MetaOptimize:
    """Learn the step sizes of a network's blocks online.

    Args:
        model: the network.
        lr: initial step size α₀.
        base: base update.
        meta: meta update.
        meta_lr: meta step size η.
        gamma: discount γ of the trace, whose horizon is 1 / (1 − γ) samples; "auto" for two horizons and none to choose
            (not with Lion as meta update, nor with exact traces).
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
        trace: "hessian_free"; "dutch", which also revises the weights when a step size changes; or an exact trace,
            "l", "2x2" or "full", which differentiates the loss twice.
        curvature: what stands for the Hessian in exact traces: "exact", "gauss_newton" or "diagonal".
        curvature_smoothing: weight of the past in a running mean of the curvature.
        curvature_clip: limits of the factor by which a step shrinks a trace, such as (0, 1); None for none.
        trace_memory_limit: bytes that exact traces may take; None for no limit.

    Raises:
        ValueError: settings are out of range, or do not go together.
    """
    if gamma == AUTO and meta == "lion":
        raise ValueError(
            'gamma="auto" takes a share off the meta gradient, but the meta update "lion" sees its sign alone: '
            "give gamma a number, such as 0.999"
        )
    return MetaOptimize(
        blocks(model, step_sizes),
        lr,
        base=base,
        meta=meta,
        meta_lr=meta_lr,
        gamma=DEFAULT_GAMMA if gamma == AUTO and horizon is not None else gamma,
        weight_decay=weight_decay,
        lr_bounds=lr_bounds,
        horizon=horizon,
        learn=learn,
        update_order=update_order,
        parametrisation=parametrisation,
        meta_every=meta_every,
        max_meta_change=max_meta_change,
        effective_step_bound=effective_step_bound,
        trace=trace,
        curvature=curvature,
        curvature_smoothing=curvature_smoothing,
        curvature_clip=curvature_clip,
        trace_memory_limit=trace_memory_limit,
    )
