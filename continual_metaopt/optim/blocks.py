"""Blocks: which parameters of a network share a step size."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from continual_metaopt.streams.registry import unknown_name

Granularity = Literal["scalar", "blockwise", "layerwise", "tensor", "node", "weight"]
StepSizes = Literal["scalar", "group", "tensor", "node", "weight"]  # of a param group

FINE = ("tensor", "node", "weight")  # with which each parameter of a group has step sizes of its own

PRIVATE_NAMES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # that wrappers of torch's give
WITHIN_BLOCKS = ("node", "weight")  # finer than param groups can be


def blocks(model: nn.Module, granularity: Granularity | Sequence[Sequence[str]] = "blockwise") -> list[dict[str, Any]]:
    """Divide a network's trainable parameters into named param groups, one per step size.

    Args:
        model: the network.
        granularity: "scalar" for one block of everything, "blockwise" for one block per top-level child that has
            parameters, "layerwise" for one per layer (module that has parameters of its own), "tensor" for one per
            parameter, "node" or "weight" for the blocks of "blockwise", in which MetaOptimize learns a step size per
            output unit or weight, or a list of blocks, each a list of parameter-name prefixes such as
            ``[["features"], ["classifier.0", "classifier.2"]]``.

    Wrappers of PyTorch and Avalanche (``torch.compile``, ``DataParallel``, ``DistributedDataParallel``,
    ``as_multitask``) do not count: blocks and names are those of the network inside.

    Returns:
        Param groups ``{"name": …, "params": […]}`` for any torch optimizer, in the network's order. Those of "node" and
        "weight" say so under "step_sizes".

    Example:
        >>> [(group["name"], len(group["params"])) for group in blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))]
        [('0', 2), ('1', 2)]

    Raises:
        ValueError: unknown granularity; a network without trainable parameters; prefixes that match nothing, that
            leave a parameter out, or claim one twice.
    """
    named = {name: param for name, param in _inner_names(model) if param.requires_grad}
    if not named:
        raise ValueError("the network has no trainable parameters")
    if not isinstance(granularity, str):
        owner = _owners_by_prefix(list(named), granularity)
    elif granularity == "scalar":
        owner = dict.fromkeys(named, "all")
    elif granularity in ("blockwise", *WITHIN_BLOCKS):
        owner = {name: name.split(".")[0] for name in named}
    elif granularity == "layerwise":
        owner = {name: name.rpartition(".")[0] or name for name in named}
    elif granularity == "tensor":
        owner = {name: name for name in named}
    else:
        raise ValueError(unknown_name("granularity", granularity, list(get_args(Granularity))))
    groups: dict[str, list[nn.Parameter]] = {}
    for name, param in named.items():
        groups.setdefault(owner[name], []).append(param)
    more = {"step_sizes": granularity} if granularity in WITHIN_BLOCKS else {}
    return [{"name": name, "params": params, **more} for name, params in groups.items()]


def shape_of(granularity: str, param: Tensor) -> torch.Size:
    """Give the shape of a parameter's own step sizes, which broadcasts against it.

    Example:
        >>> shape_of("node", torch.zeros(8, 3, 5, 5))  # an output unit is an index of the first dimension
        torch.Size([8, 1, 1, 1])
    """
    if granularity == "weight":
        return param.shape
    if granularity == "node":
        return torch.Size([*param.shape[:1], *[1] * (param.dim() - 1)])
    return torch.Size([])


def summed(granularity: str, product: Tensor) -> Tensor:
    """Sum a product of a parameter's shape over the weights that share a step size."""
    if granularity == "weight":
        return product
    if granularity == "node":
        return product.sum(dim=tuple(range(1, product.dim())), keepdim=True) if product.dim() > 1 else product
    return product.sum()


def _inner_names(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters with their names, without the parts of the names that come from wrappers."""
    inside = {f"{name}.{part}".lstrip(".") for name, module in model.named_modules() for part in _wrapped(module)}
    for name, param in model.named_parameters():
        parts = name.split(".")
        yield ".".join(part for i, part in enumerate(parts) if ".".join(parts[: i + 1]) not in inside), param


def _wrapped(module: nn.Module) -> Iterator[str]:
    """The name of the network in a wrapper; none of other modules."""
    yield from (name for name in PRIVATE_NAMES if name in module._modules)
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        yield "module"
    elif type(module).__name__ == "MultiTaskDecorator":  # Avalanche's, which optimizers do without
        yield "model"


def _owners_by_prefix(names: list[str], prefixes: Sequence[Sequence[str]]) -> dict[str, str]:
    owner: dict[str, str] = {}
    for block in prefixes:
        block = [block] if isinstance(block, str) else list(block)
        for prefix in block:
            matching = [name for name in names if name == prefix or name.startswith(f"{prefix}.")]
            if not matching:
                raise ValueError(f"no trainable parameter's name starts with '{prefix}'; names: {', '.join(names)}")
            for name in matching:
                if name in owner:
                    raise ValueError(f"parameter '{name}' is in two blocks, '{owner[name]}' and '{'+'.join(block)}'")
                owner[name] = "+".join(block)
    missing = [name for name in names if name not in owner]
    if missing:
        raise ValueError(f"no block contains {', '.join(missing)}")
    return owner
