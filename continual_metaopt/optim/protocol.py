"""What an engine asks of an optimizer, whoever wrote it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from continual_metaopt.optim.summaries import geometric_mean


def wants_graph(optimizer: "Optimizer") -> bool:
    """Whether an optimizer differentiates the loss again, so that ``backward`` must not free its graph."""
    return bool(getattr(optimizer, "wants_graph", False))


def switches_weights(optimizer: "Optimizer") -> bool:
    """Whether an optimizer predicts with other weights, after ``eval()``, than it learns at, after ``train()``."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


@contextmanager
def weights_to_predict_with(optimizer: "Optimizer") -> Iterator[None]:
    """Between gradients and update, the parameters hold here what predicts; after it exactly what they held before."""
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
    """The closure for ``optimizer.step`` after a forward pass, and a backward pass unless it ``wants_graph``.

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
    """Current step size of each block of any optimizer: what it reports itself, or "lr" of its param groups.

    Where a block holds many step sizes, it is their geometric mean.
    """
    return {name: geometric_mean(value) for name, value in reported_step_sizes(optimizer).items()}


def reported_step_sizes(optimizer: "Optimizer") -> dict[str, Any]:
    """As ``step_sizes_of``, but with all step sizes, in a tensor, where a block holds many."""
    report = getattr(optimizer, "step_size_report", None)
    if report is not None:
        reported: dict[str, Any] = report()
        return reported
    return step_sizes_of_groups(optimizer)


def step_sizes_of_groups(optimizer: "Optimizer") -> dict[str, float]:
    """What "lr" is in each param group of any optimizer, by the group's name; nothing of groups without it."""
    return {
        str(group.get("name", f"group{index}")): float(group["lr"])
        for index, group in enumerate(optimizer.param_groups)
        if "lr" in group
    }
