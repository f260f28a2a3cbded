"""Granularity: how many weights share a step size.

"scalar" and "group" give one number to a block of param groups; the fine ones give each parameter a tensor of its own
that broadcasts against it: one number per tensor (shape []), per output unit ([out, 1, …]) or per weight.
"""

from typing import Literal

import torch
from torch import Tensor

StepSizes = Literal["scalar", "group", "tensor", "node", "weight"]

FINE = ("tensor", "node", "weight")


def shape_of(granularity: str, param: Tensor) -> torch.Size:
    """Shape of a parameter's own step sizes. An output unit is an index of the first dimension.

    Example:
        >>> shape_of("node", torch.zeros(8, 3, 5, 5))
        torch.Size([8, 1, 1, 1])
    """
    if granularity == "weight":
        return param.shape
    if granularity == "node":
        return torch.Size([*param.shape[:1], *[1] * (param.dim() - 1)])
    return torch.Size([])


def summed(granularity: str, product: Tensor) -> Tensor:
    """A product of a parameter's shape, summed over the weights that share a step size."""
    if granularity == "weight":
        return product
    if granularity == "node":
        return product.sum(dim=tuple(range(1, product.dim())), keepdim=True) if product.dim() > 1 else product
    return product.sum()
