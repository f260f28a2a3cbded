"""MetaOptimize as an Avalanche strategy."""

from typing import Any

from torch import nn

from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.optim.blocks import Granularity
from continual_metaopt.optim.curvature import CurvatureKind
from continual_metaopt.optim.metaoptimize import metaoptimize
from continual_metaopt.optim.settings import Discount, MetaParameter, StepSizeParametrisation, Trace
from continual_metaopt.optim.traces import DEFAULT_LIMIT, UpdateOrder


class MetaOptimizeStrategy(OnlineLearner):
    """An ``OnlineLearner`` with MetaOptimize, ready to be trained on any Avalanche stream.

    Args:
        model: the network.
        lr: initial step size α₀.
        base: base update; see ``MetaOptimize``.
        meta: meta update.
        meta_lr: meta step size η.
        gamma: discount γ of the trace, whose horizon is 1 / (1 − γ) samples; "auto" for two horizons and none to choose
            (not with Lion as meta update, nor with exact traces).
        weight_decay: decoupled weight decay κ.
        step_sizes: which parameters share a step size: "scalar", "blockwise", "layerwise", "tensor", "node" (output
            unit), "weight", or lists of name prefixes.
        lr_bounds: the step sizes stay within these.
        learn: what is learned: "lr" (step size), "weight_decay", "momentum".
        update_order: "base_first" or "meta_first": whether a step is taken before its meta update or after it.
        parametrisation: "log" learns the logarithm of the step size, "linear" the step size itself.
        meta_every: meta updates are made at every so many samples, with the sum of their meta gradients.
        max_meta_change: bound on the change of a log step size in one meta update; None for none.
        trace: "hessian_free"; "dutch", which also revises the weights when a step size changes; or an exact trace,
            "l", "2x2" or "full", which differentiates the loss twice.
        curvature: what stands for the Hessian in exact traces: "exact", "gauss_newton" or "diagonal".
        curvature_smoothing: weight of the past in a running mean of the curvature.
        curvature_clip: limits of the factor by which a step shrinks a trace, such as (0, 1); None for none.
        trace_memory_limit: bytes that exact traces may take; None for no limit.
        **learner_options: see ``OnlineLearner``: ``plugins``, ``evaluator``, ``device``, ``recorder`` and the others.

    Example:
        >>> from streams import make_stream
        >>> benchmark = make_stream("permuted_inputs", n_experiences=2, samples_per_experience=300)
        >>> strategy = MetaOptimizeStrategy(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), lr=1e-3)
        >>> _ = strategy.train(benchmark.train_stream)
        >>> strategy.online_accuracy > 0.5
        True
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        lr: float = 1e-5,
        base: Any = "adamw",
        meta: Any = "adam",
        meta_lr: float = 1e-2,
        gamma: Discount = "auto",
        weight_decay: float = 0.01,
        step_sizes: Granularity | list[list[str]] = "blockwise",
        lr_bounds: tuple[float, float] = (1e-10, 1.0),
        learn: tuple[MetaParameter, ...] = ("lr",),
        update_order: UpdateOrder = "base_first",
        parametrisation: StepSizeParametrisation = "log",
        meta_every: int = 1,
        max_meta_change: float | None = None,
        trace: Trace = "dutch",
        curvature: CurvatureKind = "exact",
        curvature_smoothing: float = 0.0,
        curvature_clip: tuple[float, float] | None = None,
        trace_memory_limit: float | None = DEFAULT_LIMIT,
        **learner_options: Any,
    ) -> None:
        optimizer = metaoptimize(
            model,
            lr=lr,
            base=base,
            meta=meta,
            meta_lr=meta_lr,
            gamma=gamma,
            weight_decay=weight_decay,
            step_sizes=step_sizes,
            lr_bounds=lr_bounds,
            learn=learn,
            update_order=update_order,
            parametrisation=parametrisation,
            meta_every=meta_every,
            max_meta_change=max_meta_change,
            trace=trace,
            curvature=curvature,
            curvature_smoothing=curvature_smoothing,
            curvature_clip=curvature_clip,
            trace_memory_limit=trace_memory_limit,
        )
        super().__init__(model=model, optimizer=optimizer, **learner_options)
