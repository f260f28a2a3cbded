"""MetaOptimize's settings, and their checks."""

import math
from collections.abc import Iterator
from typing import Any, Literal, cast

from continual_metaopt.optim.base import Group, require_known
from continual_metaopt.optim.base_updates import BaseUpdate
from continual_metaopt.optim.blocks import FINE, StepSizes
from continual_metaopt.optim.traces import TraceRule, UpdateOrder
from continual_metaopt.optim.two_horizons import AUTO, LONG_GAMMA, SHORT_GAMMA

MetaParameter = Literal["lr", "weight_decay", "momentum"]
StepSizeParametrisation = Literal["log", "linear"]
Trace = Literal["hessian_free", "dutch", "l", "2x2", "full"]
Discount = float | Literal["auto"]
WEIGHT_DECAY_BOUNDS = (1e-10, 10.0)
MOMENTUM_BOUNDS = (1e-6, 1 - 1e-6)
DEFAULT_GAMMA = 0.999


def discounts(group: Group) -> tuple[float, ...]:
    """Give the discounts γ of a group's traces, of which there are two with ``gamma="auto"``."""
    return (SHORT_GAMMA, LONG_GAMMA) if group["gamma"] == AUTO else (group["gamma"],)


def check_exact(rule: TraceRule, group: Group) -> None:
    """Check that a group's settings go with exact traces; a ValueError says what does not."""
    if group["gamma"] == AUTO:
        raise ValueError(f'trace="{rule.variant}" needs a number as gamma; gamma="auto" goes with trace="hessian_free"')
    for option, value in (
        ("learn", ("lr",)),
        ("parametrisation", "log"),
        ("update_order", rule.update_order),
        ("meta_weight_decay", 0.0),
    ):
        if group[option] != value:
            raise ValueError(
                f'trace="{rule.variant}" goes with {option}={value!r}, not with {group[option]!r}; '
                + ("all groups have the same one" if option == "update_order" else 'use trace="hessian_free" for that')
            )


def kinds(group: Group) -> Iterator[str]:
    """Name what a group keeps a record of: its step size, learned or not, and what else it learns."""
    yield "lr"
    for kind in group["learn"]:
        if kind != "lr":
            yield kind


def is_fine(group: Group) -> bool:
    """Tell whether a group learns several step sizes."""
    return group["step_sizes"] in FINE and group["meta_lr"] > 0


def momentum_of(base: BaseUpdate) -> float:
    """Give the momentum that a base update starts from.

    Raises:
        ValueError: its step does not depend on one, or not smoothly.
    """
    if not hasattr(base, "with_momentum"):
        raise ValueError(
            f"{base} has no momentum that could be learned; take sgdm, adamw, or one of their released forms "
            "(Lion's step is a sign, which does not change with the momentum but for jumps)"
        )
    return float(cast(Any, base).momentum)


def check_written(name: str, kind: str, value: Any) -> None:
    """Check what others have written to a group; a ValueError names the block."""
    what = {"lr": "step size", "weight_decay": "learned weight_decay", "momentum": "learned momentum"}[kind]
    if not 0 <= value < (1 if kind == "momentum" else math.inf):
        limit = "below 1" if kind == "momentum" else "finite"
        raise ValueError(f"the {what} of block '{name}' was set to {value}; it must not be negative, and {limit}")


def check_group(group: Group) -> None:
    """Check a group's settings; a ValueError says what is out of range, or does not go with another."""
    if group["step_sizes"] in ("blockwise", "layerwise"):
        kind = group["step_sizes"]
        raise ValueError(f'step_sizes="{kind}" needs the network: write MetaOptimize(blocks(model, "{kind}"))')
    require_known("kind of step sizes", group["step_sizes"], StepSizes)
    require_known("order of updates", group["update_order"], UpdateOrder)
    require_known("parametrisation", group["parametrisation"], StepSizeParametrisation)
    for kind in group["learn"]:
        require_known("meta-parameter to learn", kind, MetaParameter)
    if not group["learn"] or len(set(group["learn"])) < len(group["learn"]):
        raise ValueError(
            f"learn must name what is to be learned, each once, not {group['learn']}; meta_lr=0 for nothing"
        )
    low, high = group["lr_bounds"]
    if not 0 < low < high < math.inf:
        raise ValueError(f"lr_bounds must be two finite positive numbers, the lower first, not {group['lr_bounds']}")
    if not 0 <= group["meta_lr"] < math.inf:
        raise ValueError(f"meta_lr must be finite and not negative, but is {group['meta_lr']}")
    if group["gamma"] == AUTO:
        if group["learn"] != ("lr",):
            raise ValueError(f'gamma="auto" is for step sizes alone, not for learn={group["learn"]}')
    elif isinstance(group["gamma"], str) or not 0 <= group["gamma"] <= 1:
        raise ValueError(f'gamma must be between 0 and 1, or "auto", but is {group["gamma"]!r}')
    for option in ("weight_decay", "meta_weight_decay"):
        if not 0 <= group[option] < math.inf:
            raise ValueError(f"{option} must be finite and not negative, but is {group[option]}")
    if isinstance(group["lr"], str) or not 0 < group["lr"] < math.inf:
        raise ValueError(f"lr must be finite and positive, but is {group['lr']!r}")
    if group["meta_lr"] > 0 and "lr" in group["learn"] and not low <= group["lr"] <= high:
        raise ValueError(f"lr = {group['lr']} is outside lr_bounds = {group['lr_bounds']}")
    for kind, of, bounds in (
        ("weight_decay", "logarithm", WEIGHT_DECAY_BOUNDS),
        ("momentum", "logit", MOMENTUM_BOUNDS),
    ):
        if kind in group["learn"] and not bounds[0] <= group[kind] <= bounds[1]:
            raise ValueError(
                f"to learn the {of} of {kind}, start between {bounds[0]} and {bounds[1]}, not with {group[kind]}"
            )
    if not (isinstance(group["meta_every"], int) and group["meta_every"] >= 1):
        raise ValueError(f"meta_every must be a whole number of steps, at least 1, but is {group['meta_every']}")
    limit = group["max_meta_change"]
    if limit is not None and not 0 < limit < math.inf:
        raise ValueError(f"max_meta_change must be finite and positive, or None for no bound, but is {limit}")
