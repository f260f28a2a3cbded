"""The torch engine: predict, score, learn, for any network, loss and optimizer."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.engines.observations import (
    MAX_SAMPLES,
    MAX_SECONDS,
    Diverged,
    Observations,
    check_finite,
    label_does_not_fit,
)
from continual_metaopt.optim.metaoptimize import NonFiniteMetaGradient
from continual_metaopt.optim.registry import closure_for, reported_step_sizes, wants_graph
from continual_metaopt.optim.summaries import geometric_mean, quantiles_of


def learn(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Any,
    samples: Iterator[tuple[Tensor, Tensor]],
    observations: Observations,
    record_every: int,
    update: Callable[..., Any],
) -> bool:
    """Learn from samples, one at a time, until they end or the call has lasted long enough.

    Args:
        model: the network.
        optimizer: of its parameters.
        criterion: loss of (output, target).
        samples: pairs of input [1, …] and target [1].
        observations: filled in place; says at which step the samples begin.
        record_every: distance in steps between recorded step sizes.
        update: makes the optimizer's update.

    Returns:
        Whether there may be more samples.

    Raises:
        Diverged: the loss or a meta gradient is not finite. ``observations`` holds what came before.
    """
    deadline = time.monotonic() + MAX_SECONDS
    for x, y in samples:
        forget_gradients(optimizer)
        output = model(x)
        loss = loss_of(criterion, output, y)
        check_finite(loss.item(), observations.next_step)
        if not wants_graph(optimizer):
            loss.backward()
        observe(observations, optimizer, output, y, loss, record_every, update)
        if len(observations) >= MAX_SAMPLES or time.monotonic() >= deadline:
            return True
    return False


def forget_gradients(optimizer: Optimizer) -> None:
    """What ``optimizer.zero_grad()`` does, but without its entry in torch's profiler, which takes most of its time."""
    if getattr(optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:  # it does something of its own
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = None


def observe(
    observations: Observations,
    optimizer: Optimizer,
    output: Tensor,
    target: Tensor,
    loss: Tensor,
    record_every: int,
    update: Callable[..., Any],
) -> None:
    """Make the update of one sample and add to ``observations`` what was seen.

    The prediction, the loss, the step sizes and the other learned values are those from before the update, the meta
    gradients the update's own.

    Args:
        observations: filled in place.
        optimizer: that the update changes.
        output: prediction [n, outputs] made before the update; its first row is the new sample's.
        target: labels [n].
        loss: of the prediction, a scalar.
        record_every: distance in steps between recorded step sizes.
        update: makes the update; it is given the closure that the optimizer wants, if any (``closure_for``).

    Raises:
        Diverged: a meta gradient is not finite; nothing has been added.
    """
    step = observations.next_step
    recorded = step % record_every == 0
    step_sizes = reported_step_sizes(optimizer) if recorded else {}
    others: dict[str, dict[str, Any]] = getattr(optimizer, "meta_parameter_report", dict)() if recorded else {}
    closure = closure_for(optimizer, loss, output)
    loss_value = loss.item()
    try:
        if closure is None:
            update()
        else:
            update(closure)
    except NonFiniteMetaGradient as error:
        raise Diverged(step, str(error)) from error
    observations.correct.append(is_correct(output, target))
    observations.loss.append(loss_value)
    if recorded:
        observations.step_sizes += [(step, block, geometric_mean(value)) for block, value in step_sizes.items()]
        for block, values in step_sizes.items():
            quantiles = quantiles_of(values)
            if quantiles is not None:
                observations.quantiles[step, block] = quantiles
        observations.measurements += [
            (step, quantity, block, "value", geometric_mean(value))
            for block, values in others.items()
            for quantity, value in values.items()
        ]
        report = getattr(optimizer, "meta_gradient_report", dict)
        observations.measurements += [
            (step, "meta_gradient", block, "value", value) for block, value in report().items()
        ]


def loss_of(criterion: Any, output: Tensor, target: Tensor) -> Tensor:
    """The loss, or a clear error where a label is beyond the network's outputs.

    Raises:
        ValueError: a label does not fit the network's outputs.
    """
    try:
        loss: Tensor = criterion(output, target)
    except IndexError as error:
        raise ValueError(label_does_not_fit(int(target.max()), output.shape[-1])) from error
    return loss


def is_correct(output: Tensor, target: Tensor) -> bool | None:
    """Whether the first sample's largest output is at its label; None for regression."""
    if target.is_floating_point():
        return None
    return bool(output[0].argmax().item() == target[0].item())


@torch.no_grad()
def accuracy(model: nn.Module, dataset: Any, device: torch.device, batch_size: int = 256) -> float:
    """Top-1 accuracy on a data set; the network is left as it was.

    Args:
        model: the network.
        dataset: of (input, label, …).
        device: of the network.
        batch_size: samples evaluated at once.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    n_correct = 0
    for start in range(0, len(dataset), batch_size):
        items = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        x = torch.stack([item[0] for item in items]).to(device)
        y = torch.tensor([int(item[1]) for item in items], device=device)
        n_correct += int((model(x).argmax(dim=1) == y).sum())
    for module, mode in training.items():
        module.training = mode
    return n_correct / len(dataset)
