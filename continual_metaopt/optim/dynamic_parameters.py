"""Following a network whose parameters are replaced or added while it learns, such as one with a growing head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


def follow_parameters(optimizer: Optimizer, old: Mapping[str, Parameter], new: Mapping[str, Parameter]) -> None:
    """Bring any torch optimizer up to date with its network, keeping what it has learned.

    A parameter that was replaced under the same name (a head that grew) stays in its group, whose step size and other
    settings remain; of its state, the part that overlaps with the new shape is kept and the rest is as in a new state:
    zero, or the weights where the optimizer's ``from_weights`` names the entry. A new name joins the group of the
    parameters with the most similar names. Parameters that the optimizer was never given are left out as before.

    Args:
        optimizer: the optimizer; changed in place.
        old: the network's parameters by name when the optimizer last knew them.
        new: the network's parameters by name now.
    """
    owners = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    group_of_name = {name: owners[id(param)] for name, param in old.items() if id(param) in owners}
    for name, param in new.items():
        if id(param) in owners:
            continue
        before = old.get(name)
        if before is None:
            _add(optimizer, _nearest_group(name, group_of_name, optimizer), name, param)
        elif before is not param and name in group_of_name:
            _replace(optimizer, group_of_name[name], before, param)


def _add(optimizer: Optimizer, group: dict[str, Any], name: str, param: Parameter) -> None:
    group["params"].append(param)
    if "param_names" in group:
        group["param_names"].append(name)


def _replace(optimizer: Optimizer, group: dict[str, Any], before: Parameter, param: Parameter) -> None:
    position = next(i for i, member in enumerate(group["params"]) if member is before)
    group["params"][position] = param
    state = optimizer.state.pop(before, None)
    if state is not None and before.dim() == param.dim():
        new = {key: _resized(value, before, param) for key, value in state.items()}
        for key in getattr(optimizer, "from_weights", ()):
            overlap = tuple(slice(0, min(pair)) for pair in zip(before.shape, param.shape, strict=True))
            kept, new[key] = new[key][overlap].clone(), param.detach().clone(memory_format=torch.preserve_format)
            new[key][overlap] = kept
        optimizer.state[param] = new


def _resized(value: Any, before: Parameter, param: Parameter) -> Any:
    """A piece of state for the new shape: the overlapping part copied, the rest zero.

    Tensors that broadcast against the parameter, such as one number per output unit [out, 1], grow where it does, and
    so does each of several [n, *shape]. Scalars, and tensors of another kind of shape, are unchanged.
    """
    if isinstance(value, dict):
        return {key: _resized(part, before, param) for key, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    n_columns = value.dim() - before.dim()
    if n_columns > 0 and value.shape[n_columns:] == before.shape:
        sizes = [*value.shape[:n_columns], *param.shape]
    elif n_columns == 0 and all(size in (1, whole) for size, whole in zip(value.shape, before.shape, strict=True)):
        sizes = [
            size if size != whole else new
            for size, whole, new in zip(value.shape, before.shape, param.shape, strict=True)
        ]
    else:
        return value
    resized = torch.zeros_like(param, dtype=value.dtype, memory_format=torch.preserve_format)
    if sizes != list(param.shape):
        resized = resized.new_zeros(sizes)
    overlap = tuple(slice(0, min(pair)) for pair in zip(value.shape, sizes, strict=True))
    resized[overlap] = value[overlap].to(resized.device)
    return resized


def _nearest_group(name: str, group_of_name: Mapping[str, dict[str, Any]], optimizer: Optimizer) -> dict[str, Any]:
    """The group of the parameter whose name begins most alike; of several, the latest, which is most alike in age."""

    def likeness(known: str) -> int:
        parts = zip(name.split("."), known.split("."), strict=False)
        return next((i for i, (a, b) in enumerate(parts) if a != b), len(known.split(".")))

    best = max(reversed(list(group_of_name)), key=likeness, default=None)
    return optimizer.param_groups[-1] if best is None else group_of_name[best]
