"""Compiled operations on the images of a mini-batch, where PyTorch's own are slow for one sample at a time.

Images are contiguous here, [samples, channels, height, width].
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray
from torch import Tensor

from continual_metaopt.engines.compiled.kernels import arrays_do_not_overlap, filled, multiply, pointer_to
from continual_metaopt.optim.compiling import compiled

Array = Any
CHANNELS_AT_ONCE = 8  # of an image, when patches are added up; a multiple of the rows that are multiplied at once
# arrays that tell the kernels of which type the numbers at an address are
KINDS: dict[torch.dtype, Any] = {
    torch.float32: np.zeros(0, np.float32),
    torch.float64: np.zeros(0, np.float64),
}


def max_pool(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What ``aten.max_pool2d_with_indices`` gives for contiguous images without padding, bit for bit.

    PyTorch's loop branches at every number, and the processor cannot foresee which way.

    Args:
        x: [n, channels, height, width].
        kernel: height and width of the window.
        stride: by which it moves.

    Returns:
        The maxima, and where each of them is in its channel (int64), both [n, channels, rows, columns].
    """
    n, channels, height, width = x.shape
    rows, columns = ((size - k) // s + 1 for size, k, s in zip((height, width), kernel, stride, strict=True))
    largest = x.new_empty((n, channels, rows, columns))
    winners = torch.empty((n, channels, rows, columns), dtype=torch.int32)
    _max_pool(
        x.data_ptr(), largest.data_ptr(), winners.data_ptr(), n * channels, height, width, rows, columns,
        *kernel, *stride, KINDS[x.dtype],
    )  # fmt: skip
    return largest, winners.long()


class Geometry(NamedTuple):
    """Sizes of a convolution: of the image, of what comes out, of the kernel, of its stride and of the padding."""

    channels: int
    height: int
    width: int
    outputs: int
    rows: int
    columns: int
    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    pad_height: int
    pad_width: int


class Convolution:
    """A convolution of one image, forward and backward, by products of matrices.

    The patches of the image that come under the kernel are laid out once, in room that is kept, and serve both ways.
    PyTorch lays them out twice, and its library multiplies matrices of such sizes at half the speed on some processors.
    The sums are rounded in another order than PyTorch's.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        size: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        positions = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]
        self._geometry = Geometry(*[channels, *size, outputs, *positions, *kernel, *stride, *padding])
        patch, columns = channels * kernel[0] * kernel[1], int(filled(positions[0] * positions[1]))
        widened = int(filled(outputs))
        self._patches = np.zeros((patch, columns), KINDS[dtype].dtype)
        self._sums = np.zeros((max(outputs, CHANNELS_AT_ONCE * kernel[0] * kernel[1]), columns), KINDS[dtype].dtype)
        self._turned = np.zeros((columns, widened), KINDS[dtype].dtype)
        self._products = np.zeros((patch, widened), KINDS[dtype].dtype)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What comes out, [1, outputs, rows, columns], of an image [1, channels, height, width]."""
        shape = self._geometry
        out = x.new_empty((1, shape.outputs, shape.rows, shape.columns))
        _lay_out(x.data_ptr(), shape, self._patches)
        bias_at = 0 if bias is None else bias.data_ptr()
        _convolve(self._patches, weight.data_ptr(), bias_at, out.data_ptr(), shape, self._sums)
        return out

    def input_gradient(self, delta: Tensor, weight: Tensor) -> Tensor:
        """Gradient with respect to the image, given the one with respect to what came out."""
        shape = self._geometry
        image = delta.new_empty((1, shape.channels, shape.height, shape.width))
        _input_gradient(delta.data_ptr(), weight.data_ptr(), image.data_ptr(), shape, self._sums)
        return image

    def weight_gradient(self, delta: Tensor) -> Tensor:
        """Gradient with respect to the weights, given the one with respect to what came out of the last image."""
        shape = self._geometry
        gradient = delta.new_empty((shape.outputs, shape.channels, shape.kernel_height, shape.kernel_width))
        _weight_gradient(
            delta.data_ptr(), self._patches, gradient.data_ptr(), shape, self._turned, self._products
        )  # fmt: skip
        return gradient


@compiled
def _take_larger(x: Array, first: int, step: int, place: int, largest: Array, winners: Array, to: int, n: int) -> None:
    """Put the larger numbers of ``x`` in the place of ``n`` of those in ``largest``, and where they are."""
    arrays_do_not_overlap()
    # as in PyTorch, what is not a number wins
    if step == 2:  # the same with a number that is known when this is compiled, which makes it vectors
        for i in range(n):
            value, j = x[np.uintp(first + i * 2)], np.uintp(to + i)
            larger = (value > largest[j]) | (value != value)
            largest[j] = value if larger else largest[j]
            winners[j] = np.int32(place + i * 2) if larger else winners[j]
    else:
        for i in range(n):
            value, j = x[np.uintp(first + i * step)], np.uintp(to + i)
            larger = (value > largest[j]) | (value != value)
            largest[j] = value if larger else largest[j]
            winners[j] = np.int32(place + i * step) if larger else winners[j]


@compiled
def _max_pool(
    x_at: int, largest_at: int, winners_at: int, channels: int, height: int, width: int, rows: int, columns: int,
    kernel_height: int, kernel_width: int, stride_height: int, stride_width: int, kind: Array,
) -> None:  # fmt: skip
    x = carray(pointer_to(x_at), channels * height * width, kind.dtype)
    largest = carray(pointer_to(largest_at), channels * rows * columns, kind.dtype)
    winners = carray(pointer_to(winners_at), channels * rows * columns, np.int32)
    largest[:] = -np.inf
    for channel in range(channels):
        for row in range(rows):
            to = (channel * rows + row) * columns
            for column in range(columns):
                winners[to + column] = row * stride_height * width + column * stride_width
            for ky in range(kernel_height):
                for kx in range(kernel_width):
                    place = (row * stride_height + ky) * width + kx
                    first = channel * height * width + place
                    _take_larger(x, first, stride_width, place, largest, winners, to, columns)


@compiled
def _inside(size: int, position: int, stride: int, padding: int, positions: int) -> tuple[int, int]:
    """The first position at which a place in the kernel is within the image, and the one after the last."""
    before = padding - position
    first = min((before + stride - 1) // stride, positions) if before > 0 else 0
    return first, max(first, min(positions, (size - 1 + before) // stride + 1))


@compiled
def _fill_with_zeros(a: Array, start: int, stop: int) -> None:
    for i in range(start, stop):
        a[np.uintp(i)] = 0


@compiled
def _copy(source: Array, source_at: int, step: int, target: Array, target_at: int, n: int) -> None:
    arrays_do_not_overlap()
    if step == 1:
        for i in range(n):
            target[np.uintp(target_at + i)] = source[np.uintp(source_at + i)]
    else:
        for i in range(n):
            target[np.uintp(target_at + i)] = source[np.uintp(source_at + i * step)]


@compiled
def _add(source: Array, source_at: int, target: Array, target_at: int, step: int, n: int) -> None:
    arrays_do_not_overlap()
    if step == 1:
        for i in range(n):
            target[np.uintp(target_at + i)] += source[np.uintp(source_at + i)]
    else:
        for i in range(n):
            target[np.uintp(target_at + i * step)] += source[np.uintp(source_at + i)]


@compiled
def _lay_out(image_at: int, shape: Geometry, patches: Array) -> None:
    """Write what is under each place of the kernel, at all positions, to a row of ``patches``."""
    image = carray(pointer_to(image_at), shape.channels * shape.height * shape.width, patches.dtype)
    flat, length = patches.reshape(-1), patches.shape[1]
    place = 0
    for channel in range(shape.channels):
        for ky in range(shape.kernel_height):
            for kx in range(shape.kernel_width):
                first, end = _inside(shape.width, kx, shape.stride_width, shape.pad_width, shape.columns)
                for row in range(shape.rows):
                    y = row * shape.stride_height + ky - shape.pad_height
                    to = place * length + row * shape.columns
                    if 0 <= y < shape.height:
                        start = (channel * shape.height + y) * shape.width
                        start += first * shape.stride_width + kx - shape.pad_width
                        _fill_with_zeros(flat, to, to + first)
                        _copy(image, start, shape.stride_width, flat, to + first, end - first)
                        _fill_with_zeros(flat, to + end, to + shape.columns)
                    else:
                        _fill_with_zeros(flat, to, to + shape.columns)
                place += 1


@compiled
def _add_up(patches: Array, channel: int, n: int, shape: Geometry, image: Array) -> None:
    """Add the patches of ``n`` channels to the pixels that they were laid out from."""
    flat, length = patches.reshape(-1), patches.shape[1]
    place = 0
    for c in range(channel, channel + n):
        for ky in range(shape.kernel_height):
            for kx in range(shape.kernel_width):
                first, end = _inside(shape.width, kx, shape.stride_width, shape.pad_width, shape.columns)
                for row in range(shape.rows):
                    y = row * shape.stride_height + ky - shape.pad_height
                    if 0 <= y < shape.height:
                        start = (c * shape.height + y) * shape.width + first * shape.stride_width + kx - shape.pad_width
                        at = place * length + row * shape.columns + first
                        _add(flat, at, image, start, shape.stride_width, end - first)
                place += 1


@compiled
def _convolve(patches: Array, weight_at: int, bias_at: int, out_at: int, shape: Geometry, room: Array) -> None:
    (patch, length), kind = patches.shape, patches.dtype
    positions = shape.rows * shape.columns
    weight = carray(pointer_to(weight_at), shape.outputs * patch, kind)
    bias = carray(pointer_to(bias_at), shape.outputs if bias_at else 0, kind)
    out = carray(pointer_to(out_at), shape.outputs * positions, kind)
    sums = out if positions == length else room.reshape(-1)
    for output in range(shape.outputs):
        start = bias[output] if bias_at else kind.type(0)
        for i in range(output * length, (output + 1) * length):
            sums[np.uintp(i)] = start
    multiply((weight, 0, patch, 1), (patches.reshape(-1), 0, length), (sums, 0, length), shape.outputs, length, patch)
    if positions < length:
        for output in range(shape.outputs):
            _copy(sums, output * length, 1, out, output * positions, positions)


@compiled
def _input_gradient(delta_at: int, weight_at: int, image_at: int, shape: Geometry, room: Array) -> None:
    (_, length), kind = room.shape, room.dtype
    positions, area = shape.rows * shape.columns, shape.kernel_height * shape.kernel_width
    patch = shape.channels * area
    weight = carray(pointer_to(weight_at), shape.outputs * patch, kind)
    delta = carray(pointer_to(delta_at), shape.outputs * positions, kind)
    image = carray(pointer_to(image_at), shape.channels * shape.height * shape.width, kind)
    image[:] = 0
    if positions < length:
        wide = np.zeros(shape.outputs * length, kind)
        for output in range(shape.outputs):
            _copy(delta, output * positions, 1, wide, output * length, positions)
        delta = wide
    for channel in range(0, shape.channels, CHANNELS_AT_ONCE):
        n = min(CHANNELS_AT_ONCE, shape.channels - channel)
        room[: n * area] = 0
        multiply(
            (weight, channel * area, 1, patch),
            (delta, 0, length),
            (room.reshape(-1), 0, length),
            n * area,
            length,
            shape.outputs,
        )
        _add_up(room, channel, n, shape, image)


@compiled
def _weight_gradient(
    delta_at: int, patches: Array, gradient_at: int, shape: Geometry, turned: Array, products: Array
) -> None:
    (patch, length), (_, widened), kind = patches.shape, turned.shape, patches.dtype
    positions = shape.rows * shape.columns
    delta = carray(pointer_to(delta_at), shape.outputs * positions, kind)
    gradient = carray(pointer_to(gradient_at), shape.outputs * patch, kind)
    _turn(delta, shape.outputs, positions, positions, turned.reshape(-1), widened)
    products[:] = 0
    flat = products.reshape(-1)
    rows, matrix = (patches.reshape(-1), 0, length, 1), (turned.reshape(-1), 0, widened)
    multiply(rows, matrix, (flat, 0, widened), patch, widened, positions)
    _turn(flat, patch, shape.outputs, widened, gradient, patch)


@compiled
def _turn(source: Array, rows: int, columns: int, source_row: int, target: Array, target_row: int) -> None:
    """Write the transpose of ``source`` [rows, columns] to ``target``."""
    arrays_do_not_overlap()
    for start in range(0, rows, 16):
        stop = min(start + 16, rows)
        for column in range(columns):
            for row in range(start, stop):
                target[np.uintp(column * target_row + row)] = source[np.uintp(row * source_row + column)]
