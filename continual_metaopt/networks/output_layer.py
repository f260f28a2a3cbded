"""The last layer of a network, of fixed size or growing."""

from torch import nn


def output_layer(n_inputs: int, n_outputs: int, growing: bool = False) -> nn.Module:
    """Make the layer of a network's outputs: a linear one, or a ``GrowingHead``, which begins without any class."""
    if not growing:
        return nn.Linear(n_inputs, n_outputs)
    from continual_metaopt.networks.growing_head import GrowingHead  # imports Avalanche

    return GrowingHead(n_inputs)
