"""The learners of this package: MetaOptimize with learned and with fixed step sizes, and its relatives."""

from typing import Literal

from torch import nn

from continual_metaopt.optim.autostep import Autostep
from continual_metaopt.optim.blocks import Granularity, blocks
from continual_metaopt.optim.curvature import CurvatureKind
from continual_metaopt.optim.glocal import Glocal, LocalTrace
from continual_metaopt.optim.hypergradient import SGDHD, AdamHD
from continual_metaopt.optim.idbd import IDBD
from continual_metaopt.optim.idbd_network import NetworkIDBD
from continual_metaopt.optim.koopman import Keep
from continual_metaopt.optim.metaoptimize import (
    DEFAULT_GAMMA,
    Discount,
    MetaOptimize,
    MetaParameter,
    StepSizeParametrisation,
    Trace,
)
from continual_metaopt.optim.traces import DEFAULT_LIMIT, UpdateOrder
from continual_metaopt.optim.two_horizons import AUTO

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


def fixed(model: nn.Module, *, lr: float = 1e-3, base: Base = "adamw", weight_decay: float = 0.01) -> MetaOptimize:
    """Learn with one fixed step size.

    Args:
        model: the network.
        lr: step size α.
        base: base update.
        weight_decay: decoupled weight decay κ.
    """
    return MetaOptimize(blocks(model, "scalar"), lr, base=base, meta_lr=0.0, weight_decay=weight_decay)


def fixed_per_block(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    base: Base = "adamw",
    weight_decay: float = 0.01,
    **lr_of_block: float | None,
) -> MetaOptimize:
    """Learn with a fixed step size for each block (top-level child) of the network.

    Args:
        model: the network.
        lr: step size α of blocks without one of their own.
        base: base update.
        weight_decay: decoupled weight decay κ.
        **lr_of_block: step sizes of single blocks, such as ``lr_conv1``.

    Raises:
        ValueError: there is no such block, or a setting is out of range.
    """
    groups = blocks(model, "blockwise")
    names = [f"lr_{group['name']}" for group in groups]
    for option in lr_of_block:
        if option not in names:
            raise ValueError(f"there is no option '{option}'; step sizes of blocks are {', '.join(names)}")
    for group, name in zip(groups, names, strict=True):
        own = lr_of_block.get(name)
        group["lr"] = lr if own is None else own
    return MetaOptimize(groups, lr, base=base, meta_lr=0.0, weight_decay=weight_decay)


fixed_per_block.names_blocks = True  # type: ignore[attr-defined]


def idbd(
    model: nn.Module,
    *,
    lr: float = 0.05,
    meta_lr: float = 0.01,
    max_change: float | None = None,
    min_log_step_size: float | None = None,
) -> IDBD:
    """IDBD, for linear models with squared error: a step size for each weight.

    Args:
        model: the network, one linear layer.
        lr: initial step size α₀.
        meta_lr: meta step size θ.
        max_change: largest change of a log step size at one sample; none if not given.
        min_log_step_size: least log step size; none if not given.
    """
    return IDBD(
        model,
        lr,
        meta_lr=meta_lr,
        max_change=max_change,
        min_log_step_size=min_log_step_size,
        params=blocks(model, "scalar"),
    )


def idbd_network(
    model: nn.Module,
    *,
    lr: float = 0.01,
    meta_lr: float = 0.01,
    max_change: float | None = None,
    min_log_step_size: float | None = None,
    step_sizes: Granularity | list[list[str]] = "blockwise",
) -> NetworkIDBD:
    """IDBD for networks: a step size for each weight.

    Args:
        model: the network.
        lr: initial step size α₀.
        meta_lr: meta step size θ.
        max_change: largest change of a log step size at one sample; none if not given.
        min_log_step_size: least log step size; none if not given.
        step_sizes: over which parameters the mean step sizes are reported.
    """
    return NetworkIDBD(
        blocks(model, step_sizes),
        lr,
        meta_lr=meta_lr,
        max_change=max_change,
        min_log_step_size=min_log_step_size,
    )


def autostep(model: nn.Module, *, lr: float = 0.01, meta_lr: float = 0.01, time_constant: float = 1e4) -> Autostep:
    """Autostep, for linear models with squared error: a step size for each weight.

    Args:
        model: the network, one linear layer.
        lr: initial step size α₀.
        meta_lr: meta step size μ.
        time_constant: samples τ over which the normaliser of meta gradients forgets.
    """
    return Autostep(model, lr, meta_lr=meta_lr, time_constant=time_constant, params=blocks(model, "scalar"))


def sgd_hd(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    meta_lr: float = 1e-6,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    step_sizes: Granularity | list[list[str]] = "scalar",
) -> SGDHD:
    """SGD with hypergradient descent of the step size.

    Args:
        model: the network.
        lr: initial step size α₀.
        meta_lr: meta step size β.
        momentum: of the buffer of gradients.
        dampening: the buffer takes 1 − dampening of each gradient.
        nesterov: Nesterov's form of momentum.
        weight_decay: factor on the weights in the gradient.
        step_sizes: which parameters share a step size: "scalar", "blockwise", "layerwise", or lists of name prefixes.
    """
    return SGDHD(
        blocks(model, step_sizes),
        lr,
        meta_lr=meta_lr,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        weight_decay=weight_decay,
    )


def adam_hd(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    meta_lr: float = 1e-8,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step_sizes: Granularity | list[list[str]] = "scalar",
) -> AdamHD:
    """Adam with hypergradient descent of the step size.

    Args:
        model: the network.
        lr: initial step size α₀.
        meta_lr: meta step size β.
        betas: β₁ and β₂ of Adam.
        eps: ε of Adam.
        weight_decay: factor on the weights in the gradient.
        step_sizes: which parameters share a step size: "scalar", "blockwise", "layerwise", or lists of name prefixes.
    """
    return AdamHD(blocks(model, step_sizes), lr, meta_lr=meta_lr, betas=betas, eps=eps, weight_decay=weight_decay)


def glocal(
    model: nn.Module,
    *,
    lr: float = 1e-5,
    base: Base = "adamw",
    meta_lr: float = 0.3,
    tau: int = 2000,
    window: int = 50,
    delays: int = 10,
    tolerance: float = 0.1,
    keep: Keep = "modulus",
    gamma: float = 1.0,
    weight_decay: float = 0.01,
    step_sizes: Granularity | list[list[str]] = "blockwise",
    learn: tuple[MetaParameter, ...] = ("lr",),
    trace: LocalTrace = "hessian_free",
) -> Glocal:
    """Learn the step sizes of a network's blocks with Adam from estimated global hypergradients.

    Args:
        model: the network.
        lr: initial step size α₀.
        base: base update.
        meta_lr: step size η of Adam, per collection.
        tau: samples τ of a collection, a multiple of window.
        window: samples whose hypergradients are averaged to one snapshot.
        delays: snapshots that are stacked for the decomposition.
        tolerance: how far from 1 the eigenvalue of a mode that lasts may be.
        keep: by which distance: "modulus" for ||λ| − 1|, "one" for |λ − 1|.
        gamma: 0 for greedy hypergradients, 1 for those of all steps since the collection began.
        weight_decay: decoupled weight decay κ.
        step_sizes: which parameters share a step size: "scalar", "blockwise", "layerwise", "tensor", or lists of name
            prefixes.
        learn: what is learned: "lr" (step size), "weight_decay", "momentum".
        trace: "hessian_free", or "l" for exact curvature, at the cost of a Hessian-vector product per step size.
    """
    return Glocal(
        blocks(model, step_sizes),
        lr,
        base=base,
        meta_lr=meta_lr,
        tau=tau,
        window=window,
        delays=delays,
        tolerance=tolerance,
        keep=keep,
        gamma=gamma,
        weight_decay=weight_decay,
        learn=learn,
        trace=trace,
    )
