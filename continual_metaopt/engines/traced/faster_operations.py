"""Rewrites of a traced graph of ATen operations that take time off it."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from continual_metaopt.engines.traced import image_kernels

aten = torch.ops.aten


def simplify(traced: GraphModule) -> None:
    """Leave out operations that do nothing: aliases, transposes of transposes, and what nobody reads.

    Results stay as they are, every bit of them.

    Args:
        traced: a graph without operations in place; changed, and to be recompiled.
    """
    graph = traced.graph
    graph.set_codegen(torch.fx.graph.CodeGen())  # arguments and results as they are, not packed into trees
    for node in cast(list[Any], list(graph.nodes)):
        if node.target is aten.alias.default:
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.t.default and _target(node.args[0]) is aten.t.default:
            node.replace_all_uses_with(node.args[0].args[0])
    graph.eliminate_dead_code()


def use_image_kernels(traced: GraphModule) -> None:
    """Let compiled kernels do what PyTorch does slowly for single images: max-pooling, and convolutions of small ones.

    Results stay the same up to rounding.

    Args:
        traced: a graph whose nodes know the shapes of their values; changed, and to be recompiled.
    """
    graph = traced.graph
    for node in cast(list[Any], list(graph.nodes)):
        if node.target is aten.max_pool2d_with_indices.default and _is_plain_pooling(node):
            x, kernel, *others = node.args
            stride = others[0] if others else kernel
            node.target, node.args = image_kernels.max_pool, (x, tuple(kernel), tuple(stride or kernel))
        elif node.target is aten.convolution.default and _is_of_small_image(node):
            _convolve(graph, node)
    graph.eliminate_dead_code()


def _target(node: Any) -> Any:
    return getattr(node, "target", None)


def _value(node: Any) -> Tensor:
    """A stand-in for the value of a node, with its shape, type and layout."""
    value: Tensor = node.meta["val"]
    return value


def _is_plain_pooling(node: Any) -> bool:
    x, _, *others = node.args
    options = dict(zip(("stride", "padding", "dilation", "ceil_mode"), others, strict=False))
    padded, spread = any(options.get("padding", ())), any(n > 1 for n in options.get("dilation", ()))
    return _value(x).dim() == 4 and _is_contiguous(x) and not (padded or spread or options.get("ceil_mode"))


def _is_contiguous(node: Any) -> bool:
    value = _value(node)
    return value.is_contiguous() and value.dtype in image_kernels.KINDS and value.device.type == "cpu"


def _is_of_small_image(node: Any) -> bool:
    """Whether a convolution is of one small image: PyTorch has no better way for it than to lay out its patches."""
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
    contiguous = _is_contiguous(x) and _is_contiguous(weight)
    if not contiguous or _value(x).dim() != 4 or len(_value(x)) != 1 or groups != 1 or transposed:
        return False
    images, weights = (torch.empty(_value(each).shape, dtype=_value(each).dtype) for each in (x, weight))
    sizes = None if bias is None else [len(weights)]
    biases = None if bias is None else torch.empty(len(weights), dtype=weights.dtype)
    choices: Any = torch._C  # whose stubs lack these
    try:
        backend = choices._select_conv_backend(
            images, weights, biases, stride, padding, dilation, transposed, output_padding, groups, sizes
        )
        return bool(backend == choices._ConvBackend.Slow2d)
    except (AttributeError, TypeError):  # not public, so it may be otherwise in another version of PyTorch
        return False


def _convolve(graph: Graph, node: Any) -> None:
    """Put compiled kernels in the place of a convolution and of its backward pass."""
    x, weight, bias, stride, padding, *_ = node.args
    (_, channels, *size), (outputs, _, *kernel) = _value(x).shape, _value(weight).shape
    convolution = image_kernels.Convolution(channels, outputs, size, kernel, stride, padding, _value(x).dtype)

    def replace(old: Any, function: Any, *args: Any) -> None:
        new = graph.call_function(function, args)
        new.meta = old.meta
        old.replace_all_uses_with(new)

    with graph.inserting_before(node):
        replace(node, convolution.forward, x, weight, bias)
    for backward in list(x.users):
        delta = backward.args[0]
        is_its = backward.target is aten.convolution_backward.default and backward.args[1:3] == (x, weight)
        if not (is_its and _is_contiguous(delta)):
            continue
        with graph.inserting_before(backward):
            for part in list(backward.users):
                if part.args[1] == 0:
                    replace(part, convolution.input_gradient, delta, weight)
                elif part.args[1] == 1:
                    replace(part, convolution.weight_gradient, delta)
                else:
                    replace(part, aten.sum.dim_IntList, delta, [0, 2, 3])
