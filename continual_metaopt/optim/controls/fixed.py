"""Step sizes that stay as they are."""

from torch import nn

from continual_metaopt.optim.base_updates import Base
from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.registry import ON_A_BASE, LearnerSpec

FIXED = LearnerSpec(
    "fixed",
    "a base update with a fixed step size",
    family="fixed step size",
    space=ON_A_BASE,
    on_a_base=True,
)

FIXED_PER_BLOCK = LearnerSpec(
    "fixed_per_block",
    "a base update with a fixed step size for each block",
    family="fixed step size",
    space=ON_A_BASE,
    on_a_base=True,
)


def fixed(model: nn.Module, *, lr: float = 1e-3, base: Base = "adamw", weight_decay: float = 0.01) -> MetaOptimize:
    """Learn with one fixed step size.

    Args:
        model: the network.
        lr: step size α.
        base: base update.
        weight_decay: decoupled weight decay κ.

    Example:
        >>> fixed(nn.Linear(2, 1), lr=0.01).step_size_report()
        {'all': 0.01}
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

    Example:
        >>> fixed_per_block(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), lr_1=0.1).step_size_report()
        {'0': 0.001, '1': 0.1}
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
