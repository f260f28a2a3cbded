"""What an engine asks of an optimizer, whoever wrote it, and how many step sizes are summarised."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

QUANTILES = (0.05, 0.25, 0.75, 0.95)
MAX_VALUES = 1_000_000  # of which quantiles are taken


def wants_graph(optimizer: "Optimizer") -> bool:
    """Tell whether an optimizer differentiates the loss again, so that ``backward`` must not free its graph."""
    return bool(getattr(optimizer, "wants_graph", False))


def switches_weights(optimizer: "Optimizer") -> bool:
    """Tell whether an optimizer predicts with other weights, after ``eval()``, than it learns at, after ``train()``."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


@contextmanager
def weights_to_predict_with(optimizer: "Optimizer") -> Iterator[None]:
    """Load the weights used for prediction between gradients and update; restore exactly what was there on exit."""
    import torch

    if not switches_weights(optimizer):
        yield
        return
    params = [param for group in optimizer.param_groups for param in group["params"]]
    held = [param.detach().clone() for param in params]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for param, value in zip(params, held, strict=True):
                param.copy_(value)


def closure_for(optimizer: "Optimizer", loss: "Tensor", output: Any) -> Callable[[], Any] | None:
    """Make the closure for ``optimizer.step`` after a forward pass, and a backward pass unless it ``wants_graph``.

    Returns:
        One that returns (loss, output) with their graph, or the loss as a number, where the optimizer asks for it by
        an attribute ``wants_graph`` or ``wants_loss``; None for the others.
    """
    if wants_graph(optimizer):
        return lambda: (loss, output)
    if getattr(optimizer, "wants_loss", False):
        return lambda: loss.item()
    return None


def step_sizes_of(optimizer: "Optimizer") -> dict[str, float]:
    """Give the step size of each block of any optimizer: what it reports itself, or "lr" of its param groups.

    Where a block holds many step sizes, it is their geometric mean.

    Example:
        >>> import torch
        >>> step_sizes_of(torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1))
        {'group0': 0.1}
    """
    return {name: geometric_mean(value) for name, value in reported_step_sizes(optimizer).items()}


def reported_step_sizes(optimizer: "Optimizer") -> dict[str, Any]:
    """Do as ``step_sizes_of``, but give all step sizes, in a tensor, where a block holds many."""
    report = getattr(optimizer, "step_size_report", None)
    if report is not None:
        reported: dict[str, Any] = report()
        return reported
    return {name: float(group["lr"]) for name, group in named_groups(optimizer) if "lr" in group}


def named_groups(optimizer: "Optimizer") -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the param groups of any optimizer with their names: their own, or "group0" and so on."""
    for index, group in enumerate(optimizer.param_groups):
        yield str(group.get("name", f"group{index}")), group


def geometric_mean(values: Any) -> float:
    """Take the geometric mean of positive numbers in a tensor; a single number as it is."""
    if not _many(values):
        return float(values)
    return float(values.detach().double().log().mean().exp())


def geometric_mean_of_positive(tensors: "Iterable[Tensor]") -> float:
    """Take the geometric mean of all numbers above 0 in some tensors; 0 if there is none."""
    total, n = 0.0, 0
    for values in tensors:
        positive = values[values > 0].double()
        total, n = total + float(positive.log().sum()), n + positive.numel()
    return math.exp(total / n) if n else 0.0


def quantiles_of(values: Any) -> tuple[float, ...] | None:
    """Take the quantiles of ``QUANTILES`` of numbers in a tensor, interpolated; None for a single number.

    Of more than a million numbers, a million or so are taken at equal distances.
    """
    if not _many(values):
        return None
    thinned = values.detach().flatten()[:: -(-values.numel() // MAX_VALUES)].double()
    return tuple(thinned.quantile(thinned.new_tensor(QUANTILES)).tolist())


def _many(values: Any) -> bool:
    return getattr(values, "ndim", 0) > 0
