"""A transformer that reads text, in the shape of Llama 2."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from continual_metaopt.networks.symbols import check_reads_symbols, symbols_and_places

ROTARY_BASE = 10000.0


class Transformer(nn.Module):
    """A decoder in the shape of llama2.c (Karpathy, 2023; Touvron et al., 2023).

    It has root mean square normalisation, rotary positions, SwiGLU, no biases, and outputs that share their weights
    with the embedding of symbols. The blocks that can have a step size each are "embedding", "layer1", "layer2", … and
    "norm", the last normalisation. Weights are normal with a standard deviation of 0.02, divided by √(2 depth) where a
    layer adds to what it was given.

    The rows of a mini-batch are read as consecutive symbols, in their order. Each sees those of its window that came
    before, as far as its place in the window says, and itself. So the stream's ``context`` is how far back the network
    sees, and nothing is carried from one mini-batch to the next.

    Args:
        n_outputs: number of different symbols.
        input_shape: (2,), a symbol and its place in its window.
        width: numbers per symbol.
        depth: number of layers.
        heads: attention heads of each layer; the width is a multiple of twice their number.
        multiple_of: the hidden layer has 8/3 of the width, rounded up to a multiple of this.

    Raises:
        ValueError: the inputs are no symbols, a size is below 1, or heads do not divide the width into even parts.

    Example:
        >>> sum(parameter.numel() for parameter in Transformer().parameters())
        123200
    """

    def __init__(
        self,
        n_outputs: int = 256,
        input_shape: Sequence[int] = (2,),
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        multiple_of: int = 32,
    ) -> None:
        super().__init__()
        check_reads_symbols("transformer", input_shape)
        if min(width, depth, heads, multiple_of) < 1:
            raise ValueError("width, depth, heads and multiple_of must be at least 1")
        if width % (2 * heads):
            raise ValueError(
                f"{heads} heads do not divide a width of {width} into even parts; choose a width that is a multiple of "
                f"{2 * heads}"
            )
        hidden = -(-int(8 * width / 3) // multiple_of) * multiple_of
        self.embedding = nn.Embedding(n_outputs, width)
        for number in range(1, depth + 1):
            self.add_module(f"layer{number}", TransformerLayer(width, heads, hidden))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.depth, self.head_width = depth, width // heads
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                adds = name.endswith(("projection.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 * ((2 * depth) ** -0.5 if adds else 1))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [n, symbols] after each of the symbols [n, 2]."""
        symbols, places = symbols_and_places(x)
        row = torch.arange(len(x), device=x.device)
        hidden_ones = (row > row[:, None]) | (row < (row - places)[:, None])
        angles = rotary_angles(row, self.head_width)
        tokens = self.embedding(symbols)
        for number in range(1, self.depth + 1):
            tokens = self.get_submodule(f"layer{number}")(tokens, angles, hidden_ones)
        return functional.linear(self.norm(tokens), self.embedding.weight)


class TransformerLayer(nn.Module):
    """Self-attention and a gated hidden layer, each added to its input after normalising that."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.queries = nn.Linear(width, width, bias=False)
        self.keys = nn.Linear(width, width, bias=False)
        self.values = nn.Linear(width, width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-5)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, tokens: Tensor, angles: Tensor, hidden_ones: Tensor) -> Tensor:
        """Tokens [n, width] from tokens, rotary angles [n, head width / 2] and what each does not see, bool [n, n]."""
        tokens = tokens + self.projection(self._attention(self.norm1(tokens), angles, hidden_ones))
        x = self.norm2(tokens)
        y: Tensor = tokens + self.down(functional.silu(self.gate(x)) * self.up(x))
        return y

    def _attention(self, x: Tensor, angles: Tensor, hidden_ones: Tensor) -> Tensor:
        n, width = x.shape
        by_head = [part(x).view(n, self.heads, -1).transpose(0, 1) for part in (self.queries, self.keys, self.values)]
        queries, keys, values = rotate(by_head[0], angles), rotate(by_head[1], angles), by_head[2]
        similarity = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
        mixed = similarity.masked_fill(hidden_ones, -torch.inf).softmax(dim=-1) @ values
        return mixed.transpose(0, 1).reshape(n, width)


def rotary_angles(positions: Tensor, width: int) -> Tensor:
    """Angles of rotary positions (Su et al., 2021), [n, width / 2]: position × 10000^(−2 i / width).

    Example:
        >>> rotary_angles(torch.tensor([0, 3]), 4)
        tensor([[0.0000, 0.0000],
                [3.0000, 0.0300]])
    """
    exponents = torch.arange(0, width, 2, device=positions.device) / width
    return positions[:, None] * ROTARY_BASE**-exponents


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of neighbouring numbers of [heads, n, width] by its angle [n, width / 2].

    Example:
        >>> rotate(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[torch.pi / 2]])).round()
        tensor([[[-0., 1.]]])
    """
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2)


def transformer_15m(n_outputs: int = 32000, input_shape: Sequence[int] = (2,)) -> Transformer:
    """Make the transformer of llama2.c's smallest published model: 288 wide, 6 layers, 6 heads, eight blocks.

    Args:
        n_outputs: number of different symbols.
        input_shape: (2,), a symbol and its place in its window.

    Example:
        >>> sum(parameter.numel() for parameter in transformer_15m().parameters())
        15191712
    """
    return Transformer(n_outputs, input_shape, width=288, depth=6, heads=6)
