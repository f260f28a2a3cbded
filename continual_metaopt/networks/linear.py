"""A linear model."""

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


class LinearModel(nn.Sequential):
    """Makes one linear layer, whose weights start at zero.

    Args:
        n_outputs: number of outputs.
        input_shape: shape of an input, such as (numbers,) or (channels, height, width).
        bias: whether the layer has a bias.

    Example:
        >>> import torch
        >>> LinearModel(n_outputs=2, input_shape=(1, 2, 2))(torch.ones(1, 1, 2, 2)).tolist()
        [[0.0, 0.0]]
    """

    def __init__(self, n_outputs: int = 1, input_shape: Sequence[int] = (20,), bias: bool = True) -> None:
        layer = nn.Linear(math.prod(input_shape), n_outputs, bias=bias)
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
        super().__init__(OrderedDict(flatten=nn.Flatten(), linear=layer))
