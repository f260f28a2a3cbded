"""Which compiled rule computes a base or meta update, and where a parameter's state has what the rule needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch.optim import Optimizer

from continual_metaopt.engines.compiled import kernels
from continual_metaopt.engines.wrapped import why_not_on_the_cpu, why_step_is_needed
from continual_metaopt.optim import base_updates, meta_updates
from continual_metaopt.optim.controls.reinitialised import Reinitialised
from continual_metaopt.optim.controls.replayed_step_sizes import ReplayedStepSizes
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.peers.glocal import Glocal
from continual_metaopt.optim.settings import discounts


@dataclass(frozen=True)
class BaseRule:
    """How a base update is computed by the kernels.

    Attributes:
        name: of the rule in the kernels, whose number has this name in capitals.
        momentum: key of the momentum in a parameter's state, or None.
        second_moment: key of the second moment, or None.
        settings: the numbers that set the rule, given the base update.
    """

    name: str
    momentum: str | None
    second_moment: str | None
    settings: Callable[[Any], tuple[float, ...]]

    @property
    def number(self) -> int:
        """Number of the rule in the kernels."""
        return int(getattr(kernels, self.name))


BASE_RULES: dict[type, BaseRule] = {
    base_updates.SGD: BaseRule("SGD", None, None, lambda base: ()),
    base_updates.SGDm: BaseRule("SGDM", "momentum_buffer", None, lambda base: (base.momentum,)),
    base_updates.RMSProp: BaseRule("RMSPROP", None, "exp_avg_sq", lambda base: (base.beta, base.eps)),
    base_updates.AdamW: BaseRule("ADAMW", "exp_avg", "exp_avg_sq", lambda base: (*base.betas, base.eps)),
    base_updates.Lion: BaseRule("LION", "exp_avg", None, lambda base: base.betas),
    base_updates.SGDmReleased: BaseRule("SGDM_RELEASED", "momentum_buffer", None, lambda base: (base.momentum,)),
    base_updates.RMSPropReleased: BaseRule(
        "RMSPROP_RELEASED", None, "exp_avg_sq", lambda base: (base.normalizer, base.eps)
    ),
    base_updates.AdamWReleased: BaseRule(
        "ADAMW_RELEASED", "exp_avg", "exp_avg_sq", lambda base: (base.momentum, base.normalizer, base.eps)
    ),
}

META_RULES: dict[type, int] = {
    meta_updates.SGD: kernels.META_SGD,
    meta_updates.Adam: kernels.META_ADAM,
    meta_updates.RMSProp: kernels.META_ADAM,
    meta_updates.Lion: kernels.META_LION,
    meta_updates.AdamReleased: kernels.META_ADAM_RELEASED,
    meta_updates.RMSPropReleased: kernels.META_ADAM_RELEASED,
}


HAVE_KERNELS = (MetaOptimize, ReplayedStepSizes, Reinitialised, Glocal)


def why_no_kernels(optimizer: Optimizer) -> str | None:
    """What keeps an optimizer's update from being computed by the kernels; None if nothing does."""
    if not isinstance(optimizer, MetaOptimize) or type(optimizer) not in HAVE_KERNELS:
        return "the optimizer is not MetaOptimize"
    if isinstance(optimizer, ReplayedStepSizes) and optimizer.trajectory is None:
        return "there are no step sizes to replay"
    wrapped = why_step_is_needed(optimizer)
    if wrapped is not None:
        return wrapped
    optimizer = cast(MetaOptimize, optimizer)
    beyond = optimizer.why_not_plain()
    if beyond is not None:
        return f"there are no kernels where {beyond}"
    for update, rules in ((optimizer.base, BASE_RULES), (optimizer.meta, META_RULES)):
        if type(update) not in rules:
            return f"there is no kernel for {type(update).__name__}"
    dtypes = {param.dtype for group in optimizer.param_groups for param in group["params"]}
    return why_not_on_the_cpu(optimizer) or ("the parameters are of different types" if len(dtypes) > 1 else None)


def kernel_rules(optimizer: MetaOptimize) -> kernels.Rules:
    """An optimizer's rules and their settings, as the kernels take them."""
    base, meta = cast(Any, optimizer.base), cast(Any, optimizer.meta)
    meta_rule, constants = META_RULES[type(meta)], meta.constants
    if isinstance(optimizer, Glocal):
        meta_rule, constants = kernels.META_COLLECT, (optimizer.collecting.window, 0, 0)
    return kernels.Rules(
        BASE_RULES[type(base)].number,
        np.array(BASE_RULES[type(base)].settings(base), dtype=np.float64),
        meta_rule,
        np.array(constants, dtype=np.float64),
        optimizer.trace == "dutch",
    )


def parameter_settings(group: dict[str, Any]) -> tuple[float, float, bool, float, bool]:
    """What the kernels need to know about the parameters of a group: a row of their settings."""
    short, *long = discounts(group)
    learns = group["meta_lr"] > 0
    return short, group["weight_decay"], learns, long[0] if long else 0.0, bool(long) and learns
