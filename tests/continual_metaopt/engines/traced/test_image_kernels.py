"""Compiled max-pooling and convolutions of images against PyTorch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from continual_metaopt.engines.traced.image_kernels import Convolution, max_pool

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@DTYPES
@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [((8, 8), (2, 2), (2, 2)), ((9, 7), (3, 2), (1, 3)), ((6, 11), (2, 3), (2, 2)), ((3, 5), (3, 5), (1, 1))],
)
def test_max_pooling_is_pytorchs_bit_for_bit(dtype: torch.dtype, size: Any, kernel: Any, stride: Any) -> None:
    x = numbers(2, 3, *size, dtype=dtype).relu()  # which makes many equal numbers
    x[0, 0, 1, 1], x[1, 2, 0, 0] = float("nan"), float("inf")
    for images in (x, torch.full_like(x, -float("inf"))):
        expected = torch.ops.aten.max_pool2d_with_indices(images, kernel, stride)
        for found, theirs in zip(max_pool(images, kernel, stride), expected, strict=True):
            torch.testing.assert_close(found, theirs, rtol=0, atol=0, equal_nan=True)


@DTYPES
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "stride", "padding"),
    [
        (3, 16, (8, 8), (3, 3), (1, 1), (1, 1)),
        (16, 32, (9, 7), (3, 3), (2, 2), (1, 1)),
        (9, 5, (6, 11), (2, 4), (3, 2), (0, 2)),  # more channels than are added up at once
        (4, 17, (5, 5), (1, 1), (2, 2), (0, 0)),
        (2, 3, (3, 4), (3, 4), (1, 1), (0, 0)),  # one position
        (1, 2, (4, 4), (5, 5), (1, 1), (3, 3)),  # the kernel is larger than the image, and partly in the padding
    ],
)
@pytest.mark.parametrize("biased", [True, False])
def test_convolutions_are_pytorchs_up_to_rounding(
    dtype: torch.dtype, channels: int, outputs: int, size: Any, kernel: Any, stride: Any, padding: Any, biased: bool
) -> None:
    weight = numbers(outputs, channels, *kernel, dtype=dtype).requires_grad_()
    bias = numbers(outputs, dtype=dtype, seed=1) if biased else None
    convolution = Convolution(channels, outputs, size, kernel, stride, padding, dtype)
    for seed in (2, 3):  # its room is used again
        x = numbers(1, channels, *size, dtype=dtype, seed=seed).requires_grad_()
        expected = torch.nn.functional.conv2d(x, weight, bias, stride, padding)
        delta = numbers(*expected.shape, dtype=dtype, seed=seed + 2)
        gradients = torch.autograd.grad(expected, (x, weight), delta)
        found = [convolution.forward(x.detach(), weight.detach(), bias)]
        found += [convolution.input_gradient(delta, weight.detach()), convolution.weight_gradient(delta)]
        for ours, theirs in zip(found, (expected, *gradients), strict=True):
            tolerance = 100 * torch.finfo(dtype).eps
            torch.testing.assert_close(ours, theirs.detach(), rtol=tolerance, atol=tolerance * 10)
