"""What networks that read text have in common: they look symbols up."""

from collections.abc import Sequence

from torch import Tensor


def check_reads_symbols(network: str, input_shape: Sequence[int]) -> None:
    """Check that a stream presents symbols and their places in windows, as the stream ``text`` does.

    Raises:
        ValueError: it presents something else.

    Example:
        >>> check_reads_symbols("recurrent", (2,))
    """
    if tuple(input_shape) != (2,):
        shape = " × ".join(map(str, input_shape))
        raise ValueError(f"{network} reads text, symbols and their places in a window, not inputs of the shape {shape}")


def symbols_and_places(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split inputs int64 [n, 2] into symbols [n] and places [n].

    Raises:
        ValueError: the inputs are no whole numbers.
    """
    if x.is_floating_point():
        raise ValueError(
            f"this network reads text, whose symbols are whole numbers, not {x.dtype}; take the stream text"
        )
    return x[:, 0], x[:, 1]
