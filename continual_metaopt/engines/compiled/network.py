"""Translates a sequential network of PyTorch into the tables that the compiled kernels work from."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import nn

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.engines.compiled.learner import NetworkTables
from continual_metaopt.engines.observations import NOT_A_CLASS
from continual_metaopt.engines.wrapped import why_modules_are_needed
from continual_metaopt.networks.losses import HalfSquaredError

ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: k.RELU, nn.LeakyReLU: k.LEAKY_RELU, nn.Tanh: k.TANH}
LAYERS = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.Flatten, nn.Identity, *ACTIVATIONS)


def why_not_translated(model: nn.Module, criterion: Any, but_for: Any = None) -> str | None:
    """What keeps a network and its loss from being compiled, hooks of an object aside; None if nothing does."""
    objection = _why_not_loss(criterion) or why_modules_are_needed(model, criterion, but_for=but_for)
    if objection is not None:
        return objection
    if not _is_sequential(model):
        return f"{_name(model)} is not a sequence of layers"
    layers = list(layers_of(model))
    if not any(type(layer) is nn.Linear for layer in layers):
        return "the network has no linear layer"
    for layer in layers:
        objection = _why_not_layer(layer)
        if objection is not None:
            return objection
    parameters = [id(parameter) for layer in layers for parameter in layer.parameters()]
    if len(set(parameters)) < len(parameters):
        return "layers share a parameter"
    if set(parameters) != {id(parameter) for parameter in model.parameters()}:
        return "the network has parameters beside those of its layers"
    return None


def why_slower(model: nn.Module, batch_size: int, most: int) -> str | None:
    """What makes mini-batches of this size slower with the kernels than with PyTorch's operations; None if nothing.

    The kernels work on one sample after the other, which takes longer than products of matrices where those are all
    that there is to compute.

    Args:
        most: samples at which the kernels are faster in any network.
    """
    if batch_size <= most or any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return None
    return f"mini-batches of {batch_size} without convolutions are faster with PyTorch's operations"


def _why_not_loss(criterion: Any) -> str | None:
    if type(criterion) is HalfSquaredError:
        return None
    if type(criterion) not in (nn.CrossEntropyLoss, nn.MSELoss):
        return f"there is no kernel for the loss {_name(criterion)}"
    if criterion.reduction not in ("mean", "sum"):
        return f"{_name(criterion)} has reduction={criterion.reduction!r}"
    if type(criterion) is nn.CrossEntropyLoss:
        if criterion.weight is not None or criterion.label_smoothing:
            return "CrossEntropyLoss has weights or label smoothing"
        if criterion.ignore_index != NOT_A_CLASS:
            return f"CrossEntropyLoss has ignore_index={criterion.ignore_index}"
    return None


def network_for_kernels(tables: NetworkTables, criterion: Any, dtype: DTypeLike) -> k.Network:
    """The tables of a network and its loss as the kernels take them, with all parameters frozen."""
    parameters = np.zeros((len(tables.places), k.N_PARAMETER_COLUMNS), np.int64)
    parameters[:, k.START] = [place.start for place in tables.places]
    parameters[:, k.STOP] = [place.stop for place in tables.places]
    parameters[:, k.BLOCK] = k.FROZEN
    parameters[:, k.GRADIENT_START] = parameters[:, k.START]
    return k.Network(
        np.array(tables.layers, np.int64),
        np.array(tables.slopes, dtype),
        parameters,
        np.zeros((len(parameters), k.N_SETTINGS)),
        k.CROSS_ENTROPY if isinstance(criterion, nn.CrossEntropyLoss) else k.SQUARED_ERROR,
        _loss_scale(criterion, tables.n_outputs),
        type(criterion) is HalfSquaredError or criterion.reduction == "mean",
    )


def _loss_scale(criterion: Any, n_outputs: int) -> float:
    """The factor on the sum of squared errors in a loss that has a kernel."""
    if type(criterion) is HalfSquaredError:
        return 0.5
    return 1 / n_outputs if criterion.reduction == "mean" else 1.0


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a sequence, also of sequences within it."""
    for child in model._modules.values():  # children() would leave out those that come a second time
        assert child is not None
        if _is_sequential(child):
            yield from layers_of(child)
        else:
            yield child


def translate(model: nn.Module, input_shape: Sequence[int]) -> tuple[NetworkTables, list[nn.Parameter]]:
    """Describe a network that ``why_not_translated`` has no objection to.

    Args:
        input_shape: of one sample: (channels, height, width) or (numbers,).

    Returns:
        Its tables, and its parameters in the order of the flat arrays.

    Raises:
        ValueError: the layers do not fit inputs of this shape.
    """
    tables = NetworkTables(n_inputs=math.prod(input_shape))
    builder = _Builder(tables, tuple(input_shape))
    layers = [layer for layer in layers_of(model) if type(layer) is not nn.Identity]
    # ReLU and maximum can change places without changing anything, and there is less to compute after pooling
    for i in range(len(layers) - 1):
        if type(layers[i]) is nn.ReLU and type(layers[i + 1]) is nn.MaxPool2d:
            layers[i], layers[i + 1] = layers[i + 1], layers[i]
    for layer in layers:
        builder.add(layer)
    if len(builder.shape) != 1:
        raise ValueError(f"the network's output has shape {builder.shape}, not one number per class")
    tables.n_outputs = builder.shape[0]
    return tables, builder.parameters


def to_kernel_layout(array: NDArray[Any]) -> NDArray[Any]:
    """A parameter, or its state, in the order in which the kernels hold it: outputs last in convolutions."""
    return (array.transpose(2, 3, 1, 0) if array.ndim == 4 else array).reshape(-1)


def from_kernel_layout(numbers: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """The inverse of ``to_kernel_layout``: a view of the numbers in PyTorch's shape."""
    if len(shape) != 4:
        return numbers.reshape(shape)
    outputs, channels, height, width = shape
    return numbers.reshape(height, width, channels, outputs).transpose(3, 2, 0, 1)


class _Builder:
    """Adds layers one after the other, and knows the shape of what the last one puts out."""

    def __init__(self, tables: NetworkTables, shape: tuple[int, ...]) -> None:
        self.tables = tables
        self.shape = shape
        self.parameters: list[nn.Parameter] = []
        self._output = 0  # where the last layer's output is
        self._channels_last = False
        tables.n_activations = _aligned(tables.n_inputs)

    def add(self, layer: nn.Module) -> None:
        if type(layer) is nn.Linear:
            self._add_linear(layer)
        elif type(layer) is nn.Conv2d:
            self._add_conv(layer)
        elif type(layer) is nn.MaxPool2d:
            self._add_max_pool(layer)
        elif type(layer) is nn.Flatten:
            self._flatten()
        else:
            if self.tables.layers and self.tables.layers[-1][k.KIND] == k.TANH:
                self._copy()  # its derivative is computed from its output, which must not be overwritten
            self._row(ACTIVATIONS[type(layer)], self.shape, in_place=True)
            self.tables.slopes[-1] = getattr(layer, "negative_slope", 0.0)

    def _add_linear(self, layer: nn.Linear) -> None:
        if self.shape != (layer.in_features,):
            raise ValueError(f"{layer} does not fit an input of shape {self.shape}")
        row = self._row(k.LINEAR, (layer.out_features,))
        row[k.ROW] = self.tables.n_row
        self.tables.n_row += _aligned(layer.in_features) + _aligned(layer.out_features)
        self._add_parameters(row, layer)

    def _add_conv(self, layer: nn.Conv2d) -> None:
        padding = (0, 0) if layer.padding == "valid" else layer.padding
        row = self._add_window(k.CONV, layer, layer.kernel_size, layer.stride, padding, layer.out_channels)
        if self._geometry[0] != layer.in_channels:
            raise ValueError(f"{layer} does not fit an input with {self._geometry[0]} channels")
        self._add_parameters(row, layer)
        channels, height, width = self._geometry
        out_channels, out_height, out_width = self.shape
        padded = channels * (height + 2 * row[k.PAD_HEIGHT]) * (width + 2 * row[k.PAD_WIDTH])
        row[k.PADDED] = self.tables.n_images
        self.tables.n_images += _aligned(padded)
        columns, patch = _aligned(out_channels), channels * math.prod(layer.kernel_size)
        widened = (out_height * out_width + patch) * (columns if columns > out_channels else 0)
        of_input = (out_channels + out_width) * _aligned(patch) + padded
        self.tables.n_scratch = max(self.tables.n_scratch, widened + of_input)

    def _add_max_pool(self, layer: nn.MaxPool2d) -> None:
        row = self._add_window(k.MAX_POOL, layer, _pair(layer.kernel_size), _pair(layer.stride), (0, 0))
        row[k.WINNERS] = self.tables.n_winners
        self.tables.n_winners += row[k.N_OUTPUTS]

    def _add_window(
        self, kind: int, layer: nn.Module, kernel: Any, stride: Any, padding: Any, out_channels: int | None = None
    ) -> list[int]:
        """A layer that moves a window over an image."""
        if len(self.shape) != 3:
            raise ValueError(f"{layer} needs an image, not an input of shape {self.shape}")
        if not self._channels_last:
            self._reorder(k.CHANNELS_LAST)
        self._geometry = channels, height, width = self.shape
        size = [(n + 2 * p - w) // s + 1 for n, p, w, s in zip((height, width), padding, kernel, stride, strict=True)]
        if min(size) < 1:
            raise ValueError(f"{layer} does not fit an image of {height}×{width}")
        shape = (out_channels or channels, *size)
        row = self._row(kind, shape)
        row[k.CHANNELS : k.OUT_CHANNELS] = self._geometry
        row[k.OUT_CHANNELS : k.KERNEL_HEIGHT] = shape
        row[k.KERNEL_HEIGHT : k.PADDED] = [*kernel, *stride, *padding]
        return row

    def _copy(self) -> None:
        """A layer that copies its input: the transpose of one row."""
        row = self._row(k.CHANNELS_LAST, self.shape)
        row[k.CHANNELS], row[k.HEIGHT], row[k.WIDTH] = 1, math.prod(self.shape), 1

    def _flatten(self) -> None:
        if not self.shape:
            raise ValueError("Flatten does not fit single numbers")
        if self._channels_last:
            self._reorder(k.CHANNELS_FIRST)
        self.shape = (math.prod(self.shape),)

    def _reorder(self, kind: int) -> None:
        """Change the order of an image's numbers; with one channel or pixel it stays the same."""
        channels, height, width = self.shape
        self._channels_last = kind == k.CHANNELS_LAST
        if channels > 1 and height * width > 1:
            row = self._row(kind, self.shape)
            row[k.CHANNELS : k.OUT_CHANNELS] = self.shape

    def _row(self, kind: int, shape: tuple[int, ...], in_place: bool = False) -> list[int]:
        row = [0] * k.N_LAYER_COLUMNS
        output = self._output if in_place else self.tables.n_activations
        row[: k.WEIGHT] = [kind, self._output, output, math.prod(self.shape), math.prod(shape)]
        row[k.WEIGHT] = row[k.BIAS] = -1
        row[k.BACKWARD] = int(bool(self.parameters))
        if not in_place:
            self.tables.n_activations += _aligned(math.prod(shape))
        self._output, self.shape = output, shape
        self.tables.layers.append(row)
        self.tables.slopes.append(0.0)
        return row

    def _add_parameters(self, row: list[int], layer: nn.Linear | nn.Conv2d) -> None:
        for column, parameter in ((k.WEIGHT, layer.weight), (k.BIAS, layer.bias)):
            if parameter is not None:
                row[column] = len(self.parameters)
                self.parameters.append(cast(nn.Parameter, parameter))
                start = self.tables.n_weights
                self.tables.places.append(slice(start, start + parameter.numel()))
                self.tables.n_weights = _aligned(start + parameter.numel())


def _why_not_layer(layer: nn.Module) -> str | None:
    if type(layer) not in LAYERS:
        return f"there is no kernel for {_name(layer)}"
    usual: dict[str, Any] = {}
    if isinstance(layer, nn.Conv2d):
        usual = {"dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        if layer.padding == "same":
            return "Conv2d has padding='same'"
    elif isinstance(layer, nn.MaxPool2d):
        usual = {"padding": 0, "dilation": 1, "return_indices": False, "ceil_mode": False}
    elif isinstance(layer, nn.Flatten):
        usual = {"start_dim": 1, "end_dim": -1}
    for name, value in usual.items():
        if getattr(layer, name) != value:
            return f"{_name(layer)} has {name}={getattr(layer, name)!r}"
    if isinstance(layer, nn.LeakyReLU) and layer.negative_slope < 0:
        return "LeakyReLU has a negative slope below 0"
    return None


def _aligned(n: int) -> int:
    """The next beginning of a line of the cache, in numbers."""
    return -(-n // k.ALIGNMENT) * k.ALIGNMENT


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _name(module: Any) -> str:
    return str(getattr(module, "__name__", type(module).__name__))


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value
