"""A multilayer perceptron."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


class MLP(nn.Sequential):
    """Fully connected layers with ReLU between them; each layer is a block.

    Args:
        n_outputs: number of outputs.
        input_shape: shape of an input, such as (numbers,) or (channels, height, width).
        hidden: units of each hidden layer.
    """

    def __init__(
        self, n_outputs: int = 10, input_shape: Sequence[int] = (1, 8, 8), hidden: Sequence[int] = (128,)
    ) -> None:
        sizes = [math.prod(input_shape), *hidden, n_outputs]
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            if i > 1:
                layers[f"relu{i - 1}"] = nn.ReLU()
            layers[f"linear{i}"] = nn.Linear(inputs, outputs)
        super().__init__(layers)
