"""A small recurrent network that reads text."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from continual_metaopt.networks.symbols import check_reads_symbols, symbols_and_places


class Recurrent(nn.Module):
    """Gated recurrent units (GRU; Cho et al., 2014) between an embedding of symbols and a linear layer: three blocks.

    The rows of a mini-batch are read as consecutive symbols, in their order. While the network learns, it goes on from
    the state in which the last mini-batch left it, through the whole stream. The state is never reset, neither where a
    window ends nor where an experience ends, since nobody tells the network. Gradients stop where a mini-batch begins
    (truncated backpropagation through time), so the stream's ``context`` says how far back they go. The state is a
    buffer of the network, so checkpoints hold it. It moves on only while gradients are recorded.

    In evaluation, the network begins each mini-batch with a state of zeros, and keeps its own state.

    Args:
        n_outputs: number of different symbols.
        input_shape: (2,), a symbol and its place in its window, which is not used.
        width: numbers per symbol, and units of each layer.
        depth: number of layers of recurrent units.

    Raises:
        ValueError: the inputs are no symbols.

    Example:
        >>> network = Recurrent(n_outputs=4, width=8)
        >>> network(torch.tensor([[3, 0], [1, 1]])).shape, bool(network.state.any())
        (torch.Size([2, 4]), True)
    """

    state: Tensor

    def __init__(
        self, n_outputs: int = 256, input_shape: Sequence[int] = (2,), width: int = 128, depth: int = 1
    ) -> None:
        super().__init__()
        check_reads_symbols("recurrent", input_shape)
        self.embedding = nn.Embedding(n_outputs, width)
        self.recurrent = nn.GRU(width, width, depth)
        self.linear = nn.Linear(width, n_outputs)
        self.register_buffer("state", torch.zeros(depth, width))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [n, symbols] after each of the symbols [n, 2]."""
        symbols, _ = symbols_and_places(x)
        before = self.state.clone() if self.training else torch.zeros_like(self.state)
        hidden, after = self.recurrent(self.embedding(symbols), before)
        if self.training and torch.is_grad_enabled():
            self.state.copy_(after.detach())
        output: Tensor = self.linear(hidden)
        return output
