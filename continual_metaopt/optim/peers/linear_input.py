"""The inputs of a linear model, which IDBD and Autostep need beside its gradients."""

from typing import Any

import torch
from torch import Tensor, nn


class LinearInput:
    """Note the squared inputs of a network's one linear layer at each forward pass that can be learned from.

    For f = ½ (y − wᵀx)² the second derivative by wᵢ is xᵢ², and 1 by the bias; averaged over a mini-batch where there
    is one. A forward pre-hook takes them, also after the layer has been replaced by another one.

    Args:
        model: the network, with no other layer that has trainable parameters.

    Raises:
        ValueError: it is not linear.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layer: nn.Linear | None = None
        self._squares: Tensor | None = None
        self._watch(model)
        if self._layer is not model:
            model.register_forward_pre_hook(self._watch)

    def curvature(self, param: Tensor) -> Tensor:
        """Give the diagonal of the Hessian of ½ squared error by a parameter, from the last forward pass.

        Args:
            param: weight [outputs, inputs] or bias [outputs] of the linear layer.

        Returns:
            A tensor that can be broadcast to the parameter.

        Raises:
            RuntimeError: the network has not been run.
        """
        assert self._layer is not None
        if param is not self._layer.weight:
            return torch.ones_like(param)
        if self._squares is None:
            raise RuntimeError(
                "the optimizer has seen no input of the network; run output = model(x) with gradients enabled, on the "
                "very model that the optimizer was made with, before loss.backward() and step()"
            )
        return self._squares.to(param)

    def _watch(self, model: nn.Module, inputs: Any = None) -> None:
        layer = linear_layer(model)
        if layer is not self._layer:
            self._layer, self._squares = layer, None
            layer.register_forward_pre_hook(self._note)

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and layer is self._layer:
            (x,) = inputs
            self._squares = x.detach().reshape(-1, x.shape[-1]).square().mean(0)


def linear_layer(model: nn.Module) -> nn.Linear:
    """Find the linear layer of a linear model.

    Raises:
        ValueError: the network has other layers with trainable parameters, or none.
    """
    owners = {
        name: module
        for name, module in model.named_modules()
        if any(param.requires_grad for param in module.parameters(recurse=False))
    }
    layers = list(owners.values())
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        found = ", ".join(f"{name or 'itself'} ({type(module).__name__})" for name, module in owners.items())
        raise ValueError(
            "IDBD and Autostep are defined for linear models, one nn.Linear, but the layers with trainable parameters "
            f"here are: {found or 'none'}; for networks use idbd_network"
        )
    return layers[0]
