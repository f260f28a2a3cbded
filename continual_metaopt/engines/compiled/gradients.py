"""Prediction, loss and gradients by the compiled kernels, for any optimizer that reads its gradients in ``p.grad``."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.engines.compiled.learner import make_memory, one_thread
from continual_metaopt.engines.compiled.network import (
    from_kernel_layout,
    network_for_kernels,
    translate,
    why_not_translated,
    why_slower,
)
from continual_metaopt.engines.torch_engine import by_autograd, forget_gradients, require_classes
from continual_metaopt.engines.wrapped import why_not_on_the_cpu
from continual_metaopt.optim.protocol import switches_weights

RULES = k.Rules(k.BY_PASS, np.zeros(0), k.META_SGD, np.zeros(3), False)


class NotCompiled(Exception):
    """The message says what keeps a network's gradients from being computed by compiled code."""


class CompiledGradients:
    """Predicts, and leaves the gradients of a mini-batch in ``p.grad``, as ``by_autograd`` does.

    The kernels read weights and write gradients where PyTorch has them, but for those of convolutions, which they hold
    in another order. Each gradient is in memory of its own, laid out as its parameter, and new at every call, so that
    an optimizer may keep it or change it, as it may with autograd's; it is added to one that ``zero_grad`` has left.
    Mini-batches of another kind, and parameters that have become others, are left to autograd.

    Args:
        model: the network as it is now, a sequence of layers that have kernels.
        optimizer: of its parameters; one that ``why_not_traced`` has no objection to.

    Raises:
        NotCompiled: network, loss or inputs have no compiled code, or none that is fast, or something is around layers
            or parameters.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, criterion: Any, x: Tensor, y: Tensor) -> None:
        self.model, self.optimizer, self.criterion = model, optimizer, criterion
        objection = (
            why_not_translated(model, criterion) or why_not_on_the_cpu(optimizer) or why_slower(model, len(x), 1)
        )
        if objection is not None:
            raise NotCompiled(objection)
        try:
            tables, self._parameters = translate(model, x.shape[1:])
        except ValueError as error:
            raise NotCompiled(str(error)) from error
        self._kind, self._n_outputs = (x.shape[1:], x.dtype), tables.n_outputs
        self._classifies = isinstance(criterion, nn.CrossEntropyLoss)
        self._kinds = [(param.shape, x.dtype, True, x.device) for param in self._parameters]
        owned = {id(param) for group in optimizer.param_groups for param in group["params"]}
        if not owned <= {id(param) for param in self._parameters}:
            raise NotCompiled("the optimizer has parameters that are not the network's")
        if not self._fits(x, y):
            raise NotCompiled("parameters, inputs and targets do not fit together")
        dtype = x.numpy().dtype
        self._network, self._memory = network_for_kernels(tables, criterion, dtype), make_memory(tables, dtype, 1)
        self._wanted = [id(param) in owned and param.requires_grad for param in self._parameters]
        self._network.parameters[self._wanted, k.BLOCK] = 0
        self._addresses = np.zeros((len(self._parameters), 2), np.int64)
        # of each convolution, its weights and their gradient in the order of the kernels, seen as PyTorch has them
        self._reordered = {
            number: [torch.from_numpy(from_kernel_layout(np.zeros(p.numel(), dtype), p.shape)) for _ in range(2)]
            for number, p in enumerate(self._parameters)
            if p.dim() == 4
        }
        self._predict(x[:0], y[:0], False)  # compiles

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Predict, and compute the gradients.

        Returns:
            The network's output, and its loss, a scalar.

        Raises:
            ValueError: a label does not fit the network's outputs.
        """
        if not self._fits(x, y):
            with torch.enable_grad():
                return by_autograd(self.model, self.optimizer, self.criterion, x, y)
        require_classes(self.criterion, self._n_outputs, y)
        forget_gradients(self.optimizer)
        if not switches_weights(self.optimizer):
            return self._predict(x, y, True)
        self.optimizer.eval()  # type: ignore[attr-defined]
        seen = self._predict(x, y, False)
        self.optimizer.train()  # type: ignore[attr-defined]
        self._predict(x, y, True)
        return seen

    def _fits(self, x: Tensor, y: Tensor) -> bool:
        """Whether parameters and a mini-batch are what the kernels can take."""
        if (x.shape[1:], x.dtype) != self._kind or x.requires_grad or len(x) == 0:
            return False
        if [
            (param.shape, param.dtype, param.is_contiguous(), param.device) for param in self._parameters
        ] != self._kinds:
            return False
        if self._classifies:
            return y.dtype == torch.int64 and y.shape == x.shape[:1]
        return y.dtype == x.dtype and y.shape == (len(x), self._n_outputs)

    def _predict(self, x: Tensor, y: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
        """Predict with the parameters as they are, and add to ``p.grad`` if it is wanted; returns output and loss."""
        gradients = []
        for number, (param, wanted) in enumerate(zip(self._parameters, self._wanted, strict=True)):
            gradient = torch.empty_like(param) if backward and wanted else param
            weights, to = self._reordered.get(number, (param, gradient))
            if weights is not param:
                weights.copy_(param)
            gradients.append((param, gradient, to))
            self._addresses[number] = weights.data_ptr(), to.data_ptr()
        inputs = np.ascontiguousarray(x.numpy().reshape(len(x), math.prod(self._kind[0])))
        outputs = np.empty((len(x), self._n_outputs), inputs.dtype)
        labels, targets = (y.numpy(), outputs) if self._classifies else (np.zeros(len(x), np.int64), y.numpy())
        arguments = self._network, RULES, self._memory, self._addresses, inputs, labels, targets, backward, outputs
        with one_thread:
            loss = k.gradients(*arguments)
        for param, gradient, to in gradients:
            if gradient is not param:
                if to is not gradient:
                    gradient.copy_(to)
                if param.grad is None:
                    param.grad = gradient
                else:  # which the optimizer's own zero_grad has kept, so that autograd would add to it
                    param.grad.add_(gradient)
        return torch.from_numpy(outputs), torch.tensor(loss, dtype=x.dtype)
