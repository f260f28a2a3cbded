"""The last layer of a network, of fixed size or growing."""

from torch import nn


def output_layer(n_inputs: int, n_outputs: int, growing: bool = False) -> nn.Module:
    """A linear layer that makes a network's outputs.

    Args:
        n_inputs: numbers that come in.
        n_outputs: outputs; a growing layer begins without any class and does not look at this.
        growing: whether it is a ``GrowingHead``, which grows as classes appear.
    """
    if not growing:
        return nn.Linear(n_inputs, n_outputs)
    from continual_metaopt.networks.growing_head import GrowingHead  # imports Avalanche

    return GrowingHead(n_inputs)
