"""What happens inside a network that learns: the mathematics of the diagnostics, on tensors.

``diagnostics`` measures them while any Avalanche strategy learns; docs/diagnostics.md tells what each means.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from continual_metaopt.engines.undisturbed import undisturbed

SMALLEST_LOSS = 1e-8

ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardtanh,  # and ReLU6
    nn.LeakyReLU,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.SELU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WITH_UNITS = (nn.Linear, *CONVOLUTIONS)


def plasticity(loss_before: float, loss_after: float) -> float:
    """Share of a sample's loss that the update on this sample took away: clip(1 − after / before, 0, 1).

    Losses before the update of less than 1e-8 count as 1e-8.

    Source: Elsayed and Mahmood (2024), "Addressing loss of plasticity and catastrophic forgetting in continual
    learning"; the clipping at both ends as in their released code.

    Returns:
        Between 0 (the update did not help) and 1 (nothing of the loss is left); NaN if a loss is NaN.
    """
    share = 1 - loss_after / max(loss_before, SMALLEST_LOSS)
    return share if math.isnan(share) else min(max(share, 0.0), 1.0)


def unit_activity(activations: Tensor, unit_axis: int = 1) -> Tensor:
    """Mean absolute activation of each unit over a batch, and over places where a unit is a convolution's channel.

    Args:
        activations: of one layer, [n, units, …] with the units along ``unit_axis``.

    Returns:
        [units].

    Example:
        >>> unit_activity(torch.tensor([[1.0, -4.0], [3.0, 0.0]]))
        tensor([2., 2.])
    """
    others = [axis for axis in range(activations.dim()) if axis != unit_axis % activations.dim()]
    return activations.detach().abs().mean(dim=others)


def dormant(activity: Tensor, threshold: float) -> Tensor:
    """Which units of a layer are τ-dormant: those whose activity is at most τ times the layer's mean activity.

    In a layer in which nothing is active, all units are dormant.

    Source: Sokar, Agarwal, Castro and Evci (2023), "The dormant neuron phenomenon in deep reinforcement learning",
    definition 3.1: sᵢ = E|hᵢ(x)| / (1/H Σₖ E|hₖ(x)|) ≤ τ.

    Args:
        activity: of the layer's units, [units], as ``unit_activity``.
        threshold: τ; 0 for units that are never active.

    Returns:
        bool [units].

    Example:
        >>> dormant(torch.tensor([0.1, 0.9, 2.0]), 0.5)
        tensor([ True, False, False])
    """
    return activity <= threshold * activity.mean()


def effective_rank(singular_values: Tensor) -> float:
    """Exponential of the entropy of the singular values divided by their sum; 0 for the zero matrix.

    Source: Roy and Vetterli (2007), "The effective rank: a measure of effective dimensionality".

    Returns:
        From 1 to the number of singular values that are not 0; NaN if one is not finite.
    """
    values = singular_values.detach().cpu().double()
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def stable_rank(singular_values: Tensor) -> float:
    """‖A‖_F² / ‖A‖₂², the sum of the squared singular values over the largest; 0 for the zero matrix.

    Source: Rudelson and Vershynin (2007), "Sampling from large matrices". It is another quantity than the "srank" of
    Kumar et al. (2021), which counts the singular values that make up 99 % of their sum.

    Returns:
        From 1 to the rank; NaN if a singular value is not finite.
    """
    values = singular_values.detach().cpu().double()
    largest = values.max()
    if largest == 0:
        return 0.0
    return float((values / largest).square().sum())


def singular_values(features: Tensor) -> Tensor:
    """Singular values of a matrix of features, not centred; NaN if there are features that are not finite.

    Returns:
        [min(samples, features)], in descending order.
    """
    matrix = features.detach()
    if not bool(matrix.isfinite().all()):
        return matrix.new_full((min(matrix.shape),), math.nan)
    return torch.linalg.svdvals(matrix)


def norm(parts: Iterable[Tensor]) -> float:
    """Euclidean norm of all numbers in some tensors together, with one transfer from their device."""
    return math.hypot(*numbers(torch.linalg.vector_norm(part.detach()) for part in parts))


def distance(parts: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    """Euclidean distance between tensors and others of the same shapes, all of them together."""
    return norm(part.detach() - other for part, other in zip(parts, others, strict=True))


def numbers(tensors: Iterable[Tensor]) -> list[float]:
    """Tensors of one number each as numbers, with one transfer from the device."""
    on_devices = list(tensors)
    if not on_devices:
        return []
    transferred: list[float] = torch.stack([tensor.to(on_devices[0].device) for tensor in on_devices]).tolist()
    return transferred


def forgetting(best: Sequence[float], now: Sequence[float]) -> float:
    """Mean over past experiences of the best accuracy that there was at an earlier end minus the accuracy now.

    Source: Chaudhry et al. (2018), "Riemannian walk for incremental learning".

    Args:
        best: of each past experience, the best held-out accuracy at the ends of experiences before the last one.
        now: of each, the accuracy at the end of the last experience.

    Returns:
        Between −1 (everything is predicted better than ever) and 1; NaN if there is no past experience.
    """
    drops = [before - after for before, after in zip(best, now, strict=True)]
    return sum(drops) / len(drops) if drops else math.nan


def parameter_blocks(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """A network's trainable parameters by top-level child, as ``blocks(model, "blockwise")``, whatever the optimizer.

    Returns:
        Block name → name in the network → parameter.
    """
    members: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members.setdefault(name.split(".")[0], {})[name] = parameter
    return members


@dataclass
class Representation:
    """What a network makes of a batch.

    Attributes:
        activity: (block, mean absolute activation of each unit [units]) of each activation function, as they ran. The
            block is the top-level child that holds the layer whose outputs the function was applied to.
        features: of the last hidden layer, that is, the inputs of the linear layer that ran last, [n, features]; None
            if no layer ran before that.
    """

    activity: list[tuple[str, Tensor]]
    features: Tensor | None


def representation(model: nn.Module, inputs: Tensor, at_once: int = 32) -> Representation:
    """Look into a network while it predicts a batch; nothing in it changes.

    Activations are seen where a module of ``torch.nn`` computes them, not where a forward method calls a function.

    Args:
        at_once: samples predicted at once; few stay in the processor's cache.
    """
    ran: list[tuple[str, nn.Module]] = []  # layers with weights
    activity: list[tuple[str, Tensor]] = []
    features: list[Tensor] = []

    def look(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, WITH_UNITS):
            if isinstance(module, nn.Linear) and ran:
                features[-1:] = [inputs[0].flatten(1)]
            ran.append((name, module))
        elif ran:
            layer, producer = ran[-1]
            axis = 1 if isinstance(producer, CONVOLUTIONS) else -1
            activity.append((layer.split(".")[0], unit_activity(output, axis)))

    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, module, inputs, output))
        for name, module in model.named_modules()
        if isinstance(module, (*WITH_UNITS, *ACTIVATIONS))
    ]
    parts = []
    try:
        with undisturbed(model):
            for part in inputs.split(at_once):
                ran, activity, features = [], [], []
                model(part)
                parts.append((len(part), activity, features))
    finally:
        for handle in handles:
            handle.remove()
    together = [
        (layers[0][0], sum((n * units for (n, *_), (_, units) in zip(parts, layers, strict=True)), 0) / len(inputs))
        for layers in zip(*(activity for _, activity, _ in parts), strict=True)
    ]
    last = [part for *_, features in parts for part in features]
    return Representation(together, torch.cat(last) if last else None)


def dormant_shares(activity: Sequence[tuple[str, Tensor]], threshold: float) -> dict[str, float]:
    """Share of dormant units in each block, and in the whole network under the name ""."""
    marks: dict[str, list[Tensor]] = {}
    for block, units in activity:
        for name in (block, ""):
            marks.setdefault(name, []).append(dormant(units, threshold))
    return {name: float(torch.cat(parts).float().mean()) for name, parts in marks.items()}
