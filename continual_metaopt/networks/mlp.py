"""Multilayer perceptrons."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from continual_metaopt.networks.normalisation import WITHOUT_GROUPS, Norm, check_norm, normalised
from continual_metaopt.networks.output_layer import output_layer


class MLP(nn.Sequential):
    """Fully connected layers with ReLU between them; each layer is a block.

    Args:
        n_outputs: number of outputs.
        input_shape: shape of an input, such as (numbers,) or (channels, height, width).
        hidden: units of each hidden layer.
        norm: "layer" or "batch" to normalise what goes into each ReLU, or "none".
        growing_head: whether outputs appear as classes do, instead of ``n_outputs`` from the beginning.

    Raises:
        ValueError: unknown normalisation.

    Example:
        >>> [tuple(parameter.shape) for parameter in MLP(input_shape=(1, 8, 8), hidden=(5,)).parameters()]
        [(5, 64), (5,), (10, 5), (10,)]
    """

    def __init__(
        self,
        n_outputs: int = 10,
        input_shape: Sequence[int] = (1, 8, 8),
        hidden: Sequence[int] = (128,),
        norm: Norm = "none",
        growing_head: bool = False,
    ) -> None:
        check_norm(norm, WITHOUT_GROUPS)
        sizes = [math.prod(input_shape), *hidden]
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for i, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            layers[f"linear{i}"] = normalised(nn.Linear(inputs, outputs), norm)
            layers[f"relu{i}"] = nn.ReLU()
        layers[f"linear{len(sizes)}"] = output_layer(sizes[-1], n_outputs, growing_head)
        super().__init__(layers)


def mlp_300_150(
    n_outputs: int = 10,
    input_shape: Sequence[int] = (1, 28, 28),
    norm: Norm = "none",
    growing_head: bool = False,
) -> MLP:
    """Make the MLP of UPGD's experiments (Elsayed & Mahmood, 2024): 300 and 150 hidden units, three blocks.

    Args:
        n_outputs: number of outputs.
        input_shape: shape of an input.
        norm: "layer" or "batch" to normalise what goes into each ReLU, or "none".
        growing_head: whether outputs appear as classes do, instead of ``n_outputs`` from the beginning.

    Raises:
        ValueError: unknown normalisation.

    Example:
        >>> sum(parameter.numel() for parameter in mlp_300_150().parameters())
        282160
    """
    return MLP(n_outputs, input_shape, (300, 150), norm, growing_head)
