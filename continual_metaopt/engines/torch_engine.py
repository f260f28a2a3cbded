"""The torch engine: predict, score, learn, for any network, loss and optimizer."""

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from continual_metaopt.engines.observations import (
    MAX_SAMPLES,
    MAX_SECONDS,
    NOT_A_CLASS,
    Diverged,
    Measurement,
    Observations,
    check_finite,
    label_does_not_fit,
    numbers_at_end,
    recorded_steps,
    weights_are_due,
    weights_not_finite,
)
from continual_metaopt.engines.undisturbed import undisturbed
from continual_metaopt.optim.metaoptimize import NonFiniteMetaGradient
from continual_metaopt.optim.protocol import (
    closure_for,
    geometric_mean,
    quantiles_of,
    reported_step_sizes,
    step_sizes_of,
    switches_weights,
    wants_graph,
)

TAKE_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)
FUNCTIONS_OF_CLASSES = (functional.cross_entropy, functional.nll_loss, functional.multi_margin_loss)

Differentiate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def learn(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Any,
    samples: Iterator[tuple[Tensor, Tensor]],
    observations: Observations,
    record_every: int,
    update: Callable[..., Any],
    at_most: int = MAX_SAMPLES,
    differentiate: Differentiate | None = None,
) -> bool:
    """Learn from samples, one mini-batch at a time, until they end or the call has lasted long enough.

    Args:
        samples: pairs of inputs [n, …] and targets [n, …].
        observations: filled in place; says at which step the samples begin.
        record_every: distance in steps between recorded step sizes.
        update: makes the optimizer's update.
        differentiate: what to do in place of ``by_autograd``: it is given inputs and targets, returns output and loss,
            and leaves the gradients behind.

    Returns:
        Whether there may be more samples.

    Raises:
        Diverged: the loss, a meta gradient or a weight is not finite. ``observations`` holds what came before.
    """
    differentiate = differentiate or partial(by_autograd, model, optimizer, criterion)
    deadline = time.monotonic() + MAX_SECONDS
    at_most = min(at_most, MAX_SAMPLES)
    for x, y in samples:
        output, loss = differentiate(x, y)
        check_finite(loss.item(), observations.next_step)
        observe(observations, optimizer, criterion, output, y, loss, record_every, update, len(y))
        n = len(observations)
        if n >= at_most or n + len(y) > MAX_SAMPLES or time.monotonic() >= deadline:
            return True
    return False


def by_autograd(model: nn.Module, optimizer: Optimizer, criterion: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Predict, and compute the gradients with PyTorch's autograd, unless the optimizer wants the graph for that.

    Where an optimizer predicts with other weights than it learns at (``switches_weights``), the prediction and its loss
    are those of the former, and the gradients, from a second pass, those at the latter, which the parameters hold then.

    Returns:
        The network's output, and its loss, a scalar.

    Raises:
        ValueError: a label does not fit the network's outputs.
    """
    forget_gradients(optimizer)
    if switches_weights(optimizer):
        seen = predict_before_learning(model, optimizer, criterion, x, y)
        loss_of(criterion, model(x), y).backward()
        return seen
    output = model(x)
    loss = loss_of(criterion, output, y)
    if not wants_graph(optimizer):
        loss.backward()
    return output, loss


@torch.no_grad()
def predict_before_learning(
    model: nn.Module, optimizer: Any, criterion: Any, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict with the weights that an optimizer has for that, and leave those that it learns at in the parameters.

    Returns:
        The network's output, and its loss, a scalar.

    Raises:
        ValueError: a label does not fit the network's outputs.
    """
    optimizer.eval()
    output = model(x)
    loss = loss_of(criterion, output, y)
    optimizer.train()
    return output, loss


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
    criterion: Any,
    output: Tensor,
    target: Tensor,
    loss: Tensor,
    record_every: int,
    update: Callable[..., Any],
    n_new: int = 1,
) -> None:
    """Make the update of one mini-batch and add to ``observations`` what was seen of its new samples.

    The prediction, the loss, the step sizes and the other learned values are those from before the update, the meta
    gradients the update's own. An optimizer with weights to predict with (``switches_weights``) is left with these in
    the parameters. Values are recorded where one of the new samples is at a multiple of ``record_every``, the
    first of these if there are several.

    Args:
        observations: filled in place.
        output: prediction [n, outputs] made before the update; the first rows are those of the new samples.
        target: labels [n].
        loss: of the prediction, a scalar.
        update: makes the update; it is given the closure that the optimizer wants, if any (``closure_for``).
        n_new: number of new samples; others, such as those of a replay memory, may come after them.

    Raises:
        Diverged: a meta gradient is not finite, and nothing has been added; or weights are not finite after the update,
            where it is time to check them.
    """
    first = observations.next_step
    recorded = recorded_steps(first, n_new, record_every)
    step_sizes = reported_step_sizes(optimizer) if recorded else {}
    others: dict[str, dict[str, Any]] = getattr(optimizer, "meta_parameter_report", dict)() if recorded else {}
    closure = closure_for(optimizer, loss, output)
    losses = [loss.item()] if n_new == 1 else losses_of(criterion, output[:n_new], target[:n_new], loss)
    try:
        if closure is None:
            update()
        else:
            update(closure)
    except NonFiniteMetaGradient as error:
        raise Diverged(first, str(error), "meta_gradient", error.block) from error
    if switches_weights(optimizer):
        optimizer.eval()  # type: ignore[attr-defined]  # so that whoever looks at the network sees what predicts
    observations.correct += are_correct(output[:n_new], target[:n_new])
    observations.loss += losses
    for step in recorded[:1]:
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
    if weights_are_due(first, n_new):
        check_weights(optimizer, observations.next_step)


@torch.no_grad()
def check_weights(optimizer: Optimizer, step: int) -> None:
    """Stop at weights that are not numbers, which a loss need not show.

    Raises:
        Diverged: a weight is NaN or infinite.
    """
    if not all(bool(param.isfinite().all()) for group in optimizer.param_groups for param in group["params"]):
        raise weights_not_finite(step)


@torch.no_grad()
def state_at_end(model: nn.Module, optimizer: Optimizer, error: Diverged) -> list[Measurement]:
    """What to record of a learner that has diverged; gradients only where the loss was finite."""
    has_loss = error.measurements[0][3] != "loss"

    def tensors() -> Iterator[tuple[str, str, NDArray[Any]]]:
        for name, param in model.named_parameters():
            yield name, "weights", _array(param)
            if has_loss and param.grad is not None:
                yield name, "gradient", _array(param.grad)
            for key, value in optimizer.state.get(param, {}).items():
                if isinstance(value, Tensor) and value.shape == param.shape and value.is_floating_point():
                    yield name, str(key), _array(value)

    meta_gradients: dict[str, float] = getattr(optimizer, "meta_gradient_report", dict)()
    return numbers_at_end(error.step, tensors(), step_sizes_of(optimizer), meta_gradients)


def _array(tensor: Tensor) -> NDArray[Any]:
    numbers: NDArray[Any] = tensor.detach().to("cpu", torch.float64).numpy()
    return np.atleast_1d(numbers)


def loss_of(criterion: Any, output: Tensor, target: Tensor) -> Tensor:
    """The loss, or a clear error where a label is beyond the network's outputs.

    Raises:
        ValueError: a label does not fit the network's outputs.
    """
    require_classes(criterion, output.shape[-1], target)
    try:
        loss: Tensor = criterion(output, target)
    except IndexError as error:
        raise ValueError(label_does_not_fit(int(target.max()), output.shape[-1])) from error
    return loss


def require_classes(criterion: Any, n_outputs: int, target: Tensor) -> None:
    """Check that labels are classes, for losses that take classes, before such a loss leaves some of them out.

    Args:
        criterion: the loss. Where its ``ignore_index`` is not PyTorch's own, −100, somebody has chosen it, so that
            labels may have that value.
        n_outputs: of the network.
        target: labels [n], or targets of another kind, which are not checked.

    Raises:
        ValueError: a label does not fit the network's outputs.
    """
    takes_classes = isinstance(criterion, TAKE_CLASSES) or any(criterion is known for known in FUNCTIONS_OF_CLASSES)
    if not takes_classes or target.is_floating_point() or target.dim() != 1:
        return
    ignored = getattr(criterion, "ignore_index", NOT_A_CLASS)
    for label in target.tolist():
        if not 0 <= label < n_outputs and (label != ignored or ignored == NOT_A_CLASS):
            raise ValueError(label_does_not_fit(label, n_outputs))


@torch.no_grad()
def losses_of(criterion: Any, output: Tensor, target: Tensor, loss: Tensor) -> list[float]:
    """The loss of each sample of a mini-batch by itself, as far as the criterion can tell.

    Args:
        criterion: one that has ``reduction``, as PyTorch's losses do, or another.
        output: prediction [n, outputs].
        target: labels [n] or numbers [n, outputs].
        loss: of the mini-batch, which stands for each of its samples where the criterion cannot tell.
    """
    reduction = getattr(criterion, "reduction", None)
    if reduction not in ("mean", "sum") or getattr(criterion, "weight", None) is not None:
        return [loss.item()] * len(target)
    by_number = copy.copy(criterion)
    by_number.reduction = "none"
    parts = by_number(output, target).reshape(len(target), -1)
    losses: list[float] = (parts.mean(dim=1) if reduction == "mean" else parts.sum(dim=1)).tolist()
    return losses


def are_correct(output: Tensor, target: Tensor) -> list[bool | None]:
    """Whether each sample's largest output is at its label; None for regression."""
    if target.is_floating_point():
        return [None] * len(target)
    correct: list[bool | None] = (output.argmax(dim=1) == target).tolist()
    return correct


def accuracy(model: nn.Module, dataset: Any, device: torch.device, batch_size: int = 256) -> float:
    """Top-1 accuracy on a data set; the network is left as it was."""
    n_correct = 0
    with undisturbed(model):
        for start in range(0, len(dataset), batch_size):
            items = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            x = torch.stack([item[0] for item in items]).to(device)
            y = torch.tensor([int(item[1]) for item in items], device=device)
            n_correct += int((model(x).argmax(dim=1) == y).sum())
    return n_correct / len(dataset)
