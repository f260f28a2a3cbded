"""Prediction, loss and gradients by one graph of PyTorch's operations, traced once: the fast twin of autograd."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.engines.torch_engine import (
    by_autograd,
    forget_gradients,
    loss_of,
    predict_before_learning,
    require_classes,
)
from continual_metaopt.engines.traced.faster_operations import simplify, use_image_kernels
from continual_metaopt.engines.undisturbed import random_numbers_kept, random_state
from continual_metaopt.engines.wrapped import why_modules_are_needed, why_not_on_the_cpu
from continual_metaopt.optim.protocol import switches_weights, wants_graph

FEWEST_SAMPLES = 100  # in an experience; tracing and checking take longer than these take to learn from

Example = tuple[Tensor, Tensor, Sequence[Tensor]]  # input, target; output, loss and gradients by autograd
Comparison = Callable[[Sequence[Tensor], Sequence[Tensor]], bool]


class NotTraceable(Exception):
    """The message says what keeps a network's gradients from being computed by a traced graph."""


def why_not_traced(optimizer: Optimizer) -> str | None:
    """What keeps an optimizer from learning from a traced graph's gradients; None if nothing that it tells by itself.

    A graph leaves numbers in ``p.grad``, and nothing that could be differentiated again.
    """
    if wants_graph(optimizer):
        return "the optimizer differentiates the loss itself"
    return why_not_on_the_cpu(optimizer)


class TracedGradients:
    """Predicts, and leaves the gradients of a mini-batch in ``p.grad``, as ``by_autograd`` does.

    Forward and backward pass are traced into one graph of ATen operations, which runs without modules and without
    autograd. A graph is used only if it gives autograd's output, loss and gradients, every bit of them, for three
    mini-batches: the one at hand, and two that are made from it. Then what PyTorch computes slowly for a single sample
    is left to compiled kernels (``use_image_kernels``), if results are still the same up to rounding.

    The graph is that of the network as it is now (``still_holds``), and for inputs of one shape; others are left to
    autograd. Each gradient is in memory of its own, laid out as its parameter, and new at every call, so that an
    optimizer may keep it or change it, as it may with autograd's; it is added to one that ``zero_grad`` has left.

    Args:
        model: the network, on the CPU.
        optimizer: of its parameters; one that ``why_not_traced`` has no objection to.

    Raises:
        NotTraceable: hooks, random numbers, buffers that change, or other things that a graph does not hold.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, criterion: Any, x: Tensor, y: Tensor) -> None:
        self.model, self.optimizer, self.criterion = model, optimizer, criterion
        self._refuse_what_no_graph_holds()
        self._description = self._describe()
        self._kinds = _kind(x), _kind(y)
        self._values = list(model.parameters())
        with random_numbers_kept(), self._gradients_kept():
            self._rehearse(x, y)
            examples = [(x, y, self._by_autograd(x, y))]
            self._n_outputs = examples[0][2][0].shape[-1]
            for other in _others(x, y, self._n_outputs):
                examples.append((*other, self._by_autograd(*other)))
            self._parameters = [param for param in self._owned() if param.grad is not None]
            self._graph = self._fastest(examples)
            self._shared = self._not_their_own(x, y)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Predict, and compute the gradients.

        Returns:
            The network's output, and its loss, a scalar.

        Raises:
            ValueError: a label does not fit the network's outputs.
        """
        if (_kind(x), _kind(y)) != self._kinds:
            return by_autograd(self.model, self.optimizer, self.criterion, x, y)
        require_classes(self.criterion, self._n_outputs, y)
        seen = None
        if switches_weights(self.optimizer):
            seen = predict_before_learning(self.model, self.optimizer, self.criterion, x, y)
        try:
            with torch.no_grad():
                output, loss, *gradients = self._graph(x, y, *self._values)
        except IndexError:
            return by_autograd(self.model, self.optimizer, self.criterion, x, y)  # which says what is wrong
        for index in self._shared:
            gradients[index] = torch.empty_like(self._parameters[index]).copy_(gradients[index])
        forget_gradients(self.optimizer)
        for param, gradient in zip(self._parameters, gradients, strict=True):
            if param.grad is None:
                param.grad = gradient
            else:  # which the optimizer's own zero_grad has kept, so that autograd would add to it
                param.grad.add_(gradient)
        return (output, loss) if seen is None else seen

    def still_holds(self, model: nn.Module, optimizer: Optimizer, criterion: Any, x: Tensor, y: Tensor) -> bool:
        """Whether nothing has changed since the graph was traced, and its results for a mini-batch are autograd's."""
        if (model, optimizer, criterion) != (self.model, self.optimizer, self.criterion):
            return False
        if (_kind(x), _kind(y)) != self._kinds or self._describe() != self._description:
            return False
        with random_numbers_kept(), self._gradients_kept():
            return self._agrees(_up_to_rounding, x, y, self._by_autograd(x, y))

    def _owned(self) -> Iterator[nn.Parameter]:
        return (param for group in self.optimizer.param_groups for param in group["params"])

    def _refuse_what_no_graph_holds(self) -> None:
        known = {id(param) for param in self.model.parameters()}
        wrapped = why_modules_are_needed(self.model, self.criterion)
        if wrapped is not None:
            raise NotTraceable(wrapped)
        if not all(id(param) in known for param in self._owned()):
            raise NotTraceable("the optimizer has parameters that are not the network's")

    def _describe(self) -> list[Any]:
        """All that belongs to network, loss and optimizer, but for the numbers in tensors; to be compared."""
        wrapped = why_modules_are_needed(self.model, self.criterion)
        return [_description(part) for part in (wrapped, _attributes(self.model, self.criterion), list(self._owned()))]

    def _rehearse(self, x: Tensor, y: Tensor) -> None:
        """Let a copy of the network learn from what is to be compared, so that the network itself stays as it is.

        Raises:
            NotTraceable: the copy has changed, or cannot take other samples.
        """
        try:
            model, criterion = copy.deepcopy((self.model, self.criterion))
            attributes = _attributes(model, criterion)
            buffers, inputs = list(model.buffers()), x.clone()
            others = [value for held in attributes for value in held.values() if isinstance(value, Tensor)]
            known, before = _description(attributes), [tensor.clone() for tensor in (*buffers, *others)]
            output = model(inputs)
            loss_of(criterion, output, y).backward()
            for other, target in _others(x, y, output.shape[-1]):
                loss_of(criterion, model(other), target).backward()
        except Exception as error:
            raise NotTraceable(f"a copy of the network cannot be tried ({_first_line(error)})") from error
        if not all(map(torch.equal, buffers, before)):
            raise NotTraceable("a buffer changes with each sample")
        if _description(attributes) != known or not all(map(torch.equal, others, before[len(buffers) :])):
            raise NotTraceable("the network changes itself when it predicts")
        if not torch.equal(inputs, x):
            raise NotTraceable("the network changes its input")

    @contextmanager
    def _gradients_kept(self) -> Iterator[None]:
        before = [(param, param.grad) for param in self.model.parameters()]
        try:
            yield
        finally:
            for param, gradient in before:
                param.grad = gradient

    def _by_autograd(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Output, loss and gradients of autograd, all with the weights that the parameters hold now.

        Raises:
            NotTraceable: computing them takes random numbers.
        """
        generators = random_state()
        for param in self.model.parameters():
            param.grad = None
        output = self.model(x)
        loss = loss_of(self.criterion, output, y)
        loss.backward()
        if random_state() != generators:
            raise NotTraceable("the network draws random numbers")
        return [output.detach(), loss.detach(), *(param.grad for param in self._owned() if param.grad is not None)]

    def _fastest(self, examples: Sequence[Example]) -> Callable[..., Sequence[Tensor]]:
        traced = self._trace(*examples[0][:2])
        simplify(traced)
        traced.recompile()
        self._graph = exact = traced.forward
        if not all(self._agrees(_exactly, *example) for example in examples):
            raise NotTraceable("its traced gradients are not those of autograd")
        use_image_kernels(traced)
        traced.recompile()
        self._graph = traced.forward
        return self._graph if all(self._agrees(_up_to_rounding, *example) for example in examples) else exact

    def _not_their_own(self, x: Tensor, y: Tensor) -> list[int]:
        """Numbers of the gradients whose memory is also something else's, or not laid out as their parameter's."""
        with torch.no_grad():
            before, now = self._graph(x, y, *self._values), self._graph(x, y, *self._values)
        others = Counter(_memory(tensor) for tensor in (x, y, *self._values, *before, *now))
        return [
            index
            for index, (param, gradient) in enumerate(zip(self._parameters, now[2:], strict=True))
            if others[_memory(gradient)] > 1 or gradient.stride() != param.stride()
        ]

    def _trace(self, x: Tensor, y: Tensor) -> torch.fx.GraphModule:
        from torch.fx.experimental.proxy_tensor import make_fx  # takes a second

        names = {id(param): name for name, param in self.model.named_parameters()}

        def step(x: Tensor, y: Tensor, *values: Tensor) -> list[Tensor]:
            by_name = dict(zip(names.values(), values, strict=True))
            output = torch.func.functional_call(self.model, by_name, (x,))
            loss = self.criterion(output, y)
            learned = [by_name[names[id(param)]] for param in self._parameters]
            return [output, loss, *torch.autograd.grad(loss, learned)]

        try:
            traced = make_fx(step)(x, y, *self._values)
            if any(_works_in_place(node) for node in traced.graph.nodes):
                traced = make_fx(torch.func.functionalize(traced))(x, y, *self._values)
        except Exception as error:
            raise NotTraceable(f"the network cannot be traced ({_first_line(error)})") from error
        return traced

    def _agrees(self, same: Comparison, x: Tensor, y: Tensor, expected: Sequence[Tensor]) -> bool:
        with torch.no_grad():
            found = self._graph(x, y, *self._values)
        alike = [(tensor.shape, tensor.dtype) for tensor in found] == [(t.shape, t.dtype) for t in expected]
        return alike and same(found, expected)


class _Identical:
    """An object that equals nothing but itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identical) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _description(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return _Identical(value), value.shape, value.dtype, value.requires_grad
    if isinstance(value, tuple | list):
        return [_description(part) for part in value]
    if isinstance(value, dict):
        return [(key, _description(part)) for key, part in value.items()]
    return _Identical(value)


def _attributes(model: nn.Module, criterion: Any) -> list[dict[str, Any]]:
    modules = [*model.modules(), *(criterion.modules() if isinstance(criterion, nn.Module) else ())]
    return [vars(module) for module in modules]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, bool]:
    return tensor.shape, tensor.dtype, tensor.is_contiguous()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _exactly(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, found, expected))


def _up_to_rounding(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether output, loss, and the gradient as a whole are the same up to rounding."""
    (output, loss, *gradients), (its_output, its_loss, *its_gradients) = found, expected
    parts = [([output], [its_output]), ([loss], [its_loss]), (gradients, its_gradients)]
    return all(_are_close(*part) for part in parts)


def _are_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    differences = [(a - b).abs().max().item() for a, b in zip(found, expected, strict=True) if a.numel()]
    largest = [b.abs().max().item() for b in expected if b.numel()]
    precision = min((torch.finfo(b.dtype).eps for b in expected), default=0.0) ** 0.5
    return max(differences, default=0.0) <= precision * max(largest, default=0.0)


def _others(x: Tensor, y: Tensor, n_outputs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Two other mini-batches, so that a graph that only repeats what it was traced with is found out."""
    if x.is_floating_point():
        flipped, moved = x.flip(tuple(range(1, x.dim()))), 0.25 - 0.5 * x
    else:  # symbols, which are looked up, so that only those that occur in the same column are known to fit
        flipped, moved = x.flip(0), torch.zeros_like(x)
    if y.is_floating_point():
        yield flipped, 0.5 - y
        yield moved, 2 * y
    else:
        yield flipped, (y + 1) % n_outputs
        yield moved, (y + n_outputs // 2) % n_outputs


def _works_in_place(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
