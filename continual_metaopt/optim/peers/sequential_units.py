"""The hidden units of a sequential network: which weights lead to each and away from it, and how active it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d

UNITS_STAY = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Dropout,
    nn.Identity,
    nn.Flatten,
)


@dataclass(frozen=True)
class HiddenUnits:
    """The units between two layers: outputs of a linear layer, or channels of a convolution.

    Args:
        before: the layer whose outputs they are; its weight's first dimension counts them.
        after: the layer that they go into. Where a convolution's channels go into a linear layer, each is as many
            neighbouring inputs of it as the channel has positions.
    """

    before: Layer
    after: Layer

    def per_unit(self, weight: Tensor) -> Tensor:
        """View a tensor of the shape of ``after.weight`` by what leads away from each unit: [outputs, units, …]."""
        return weight.unflatten(1, (len(self.before.weight), -1)) if isinstance(self.after, nn.Linear) else weight

    def activity(self, inputs: Tensor) -> Tensor:
        """Take the mean absolute value of each unit over samples and positions [units], from inputs of ``after``."""
        if isinstance(self.after, nn.Linear):
            inputs = inputs.reshape(-1, inputs.shape[-1]).unflatten(1, (len(self.before.weight), -1))
        return mean_size(inputs)


def mean_size(values: Tensor) -> Tensor:
    """Take the mean absolute value of what belongs to each unit, over the other dimensions.

    Args:
        values: [n, units, …].

    Returns:
        A tensor [units].
    """
    others = [dimension for dimension in range(values.dim()) if dimension != 1]
    total: Tensor = torch.linalg.vector_norm(values, ord=1, dim=others)
    return total.mul_(values.shape[1] / values.numel())


class UnitActivity:
    """Note, at each forward pass that can be learned from, what each hidden unit of a network sends on.

    Evaluation under ``torch.no_grad()`` does not count. Forward pre-hooks take the inputs of layers, also after the
    last layer has been replaced by another one.

    Args:
        model: linear layers and convolutions, one after the other, with activations, pooling, dropout and flattening
            between them.

    Raises:
        ValueError: it is another kind of network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._units: list[HiddenUnits] = []
        self._inputs: dict[nn.Module, Tensor] = {}
        self._watch(model)
        model.register_forward_pre_hook(self._watch)

    def take(self) -> list[tuple[HiddenUnits, Tensor]]:
        """Take the hidden units of each layer and their activities in the last forward pass, and forget it.

        Raises:
            RuntimeError: the network has not been run since it was last asked for.
        """
        inputs, self._inputs = self._inputs, {}
        if self._units and not inputs:
            raise RuntimeError(
                "the optimizer has seen no activation of the network since its last step; run output = model(x) with "
                "gradients enabled, on the very model that the optimizer was made with, before loss.backward() and "
                "step()"
            )
        return [(units, units.activity(inputs[units.after])) for units in self._units if units.after in inputs]

    def _watch(self, model: nn.Module, inputs: Any = None) -> None:
        if not torch.is_grad_enabled() and inputs is not None:
            return
        watched = {units.after for units in self._units}
        self._units = hidden_units(model)
        self._inputs = {}
        for units in self._units:
            if units.after not in watched:
                units.after.register_forward_pre_hook(self._note)

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self._inputs[layer] = inputs[0].detach()


def hidden_units(model: nn.Module) -> list[HiddenUnits]:
    """Find the hidden units of a network's layers.

    Raises:
        ValueError: it is not sequential, or has a module of an unknown kind.
    """
    return [HiddenUnits(before, after) for before, after in pairwise(_layers(model))]


def _layers(module: nn.Module) -> Iterator[Layer]:
    """The layers of a network in their order.

    Raises:
        ValueError: it is not sequential, or has a module of an unknown kind.
    """
    kind = type(module)
    if isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward:
        for child in module:
            yield from _layers(child)
    elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        yield module
    elif _is_head(module):
        yield from (inner for inner in module.modules() if isinstance(inner, nn.Linear))
    elif not isinstance(module, UNITS_STAY):
        what = f"{kind.__name__} with groups" if isinstance(module, nn.Conv2d) else kind.__name__
        raise ValueError(
            "continual backprop replaces units of sequential networks, of nn.Linear and nn.Conv2d with activations, "
            f"pooling and nn.Flatten between them, as in mlp, lenet and paper_cnn without normalisation; not of {what}"
        )


def _is_head(module: nn.Module) -> bool:
    """Whether a module is a linear layer with something around it, such as Avalanche's growing heads."""
    owners = [inner for inner in module.modules() if any(True for _ in inner.parameters(recurse=False))]
    return len(owners) == 1 and isinstance(owners[0], nn.Linear)
