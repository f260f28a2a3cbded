"""The noise of optimizers: against NumPy and SciPy, its distribution, and that it goes on after a state is loaded."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from continual_metaopt.engines.compiled.network import to_kernel_layout
from continual_metaopt.optim.base import noise_for
from continual_metaopt.optim.noise import fill
from continual_metaopt.optim.peers.shrink_and_perturb import ShrinkAndPerturb
from continual_metaopt.optim.peers.upgd import UPGD
from tests.continual_metaopt.optim import reference_noise as reference

N = 300_000


def drawn(seed: int = 0, step: int = 1, parameter: int = 0, n: int = N, dtype: Any = np.float64) -> NDArray[Any]:
    numbers = np.empty(n, dtype)
    fill(numbers, float(seed), float(step), float(parameter))
    return numbers


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """In standard deviations of what independent numbers have."""
    return float(np.mean(a * b) * len(a) ** 0.5)


@pytest.mark.parametrize("told", [(0, 1, 0), (1, 1, 0), (2**32 - 1, 10**9, 41), (7, 2, 3)], ids=str)
def test_it_is_that_of_the_reference(told: tuple[int, int, int]) -> None:
    expected = reference.noise(*told, N)
    np.testing.assert_allclose(drawn(*told), expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(drawn(*told, dtype=np.float32), expected, rtol=4e-7, atol=4e-7)


def test_few_numbers_are_the_first_of_many() -> None:
    for n in (1, 7, 64, 1001):
        np.testing.assert_allclose(drawn(n=n), drawn()[:n], rtol=0, atol=1e-14)


def test_its_moments_and_its_distribution_are_those_of_a_normal() -> None:
    numbers = np.concatenate([drawn(step=step) for step in range(1, 11)])
    n = len(numbers)
    assert abs(numbers.mean()) < 4 * n**-0.5
    assert abs(numbers.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(stats.skew(numbers)) < 4 * (6 / n) ** 0.5
    assert abs(stats.kurtosis(numbers)) < 4 * (24 / n) ** 0.5
    assert stats.kstest(numbers, "norm").pvalue > 0.001
    counts = np.bincount((stats.norm.cdf(numbers) * 1000).astype(int), minlength=1000)
    assert stats.chisquare(counts).pvalue > 0.001
    assert 4.5 < np.abs(numbers).max() < 6.5


def test_nothing_tells_one_number_from_another() -> None:
    numbers = drawn()
    for lag in (1, 2, 3, 8, 64, 1024, 2**16):
        assert abs(correlation(numbers[lag:], numbers[:-lag])) < 4, f"positions {lag} apart"
        assert abs(correlation(numbers[lag:] ** 2 - 1, numbers[:-lag] ** 2 - 1)) / 2 < 4, f"squares {lag} apart"
    for name in ("seed", "step", "parameter"):
        for other in (2, 3, 5, 2**16, 2**31):
            assert abs(correlation(numbers, drawn(**{name: other}))) < 4, f"{name} {other}"


def test_one_position_is_as_random_as_one_step() -> None:
    """What a weight meets in 20,000 steps, and in as many seeds and parameters."""
    for name in ("seed", "step", "parameter"):
        numbers = np.array([drawn(**{name: number}, n=4) for number in range(20_000)])
        for column in numbers.T:
            assert stats.kstest(column, "norm").pvalue > 0.001
            assert abs(correlation(column[1:], column[:-1])) < 4
        assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 4 / 20_000**0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_positions_are_those_of_compiled_code(dtype: torch.dtype) -> None:
    shapes = [(5,), (4, 3), (4, 3, 2, 5), (2, 3, 4), ()]
    params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    optimizer = ShrinkAndPerturb([{"params": params[:2]}, {"params": params[2:]}])
    for number, param in enumerate(params):
        noise = noise_for(optimizer, param, 3, 8)
        assert (noise.shape, noise.dtype, noise.is_contiguous()) == (param.shape, dtype, True)
        expected = torch.from_numpy(reference.noise(3, 8, number, param.numel())).to(dtype)
        found = torch.from_numpy(to_kernel_layout(noise.double().numpy())).to(dtype)
        torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


def steps(optimizer: torch.optim.Optimizer, n: int) -> None:
    for _ in range(n):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        optimizer.step()


@pytest.mark.parametrize("base", ["adamw", "sgd", None])
def test_it_goes_on_where_a_state_has_stopped(base: Any) -> None:
    def make() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
        if base is None:
            return params, UPGD(params, 0.1, sigma=1.0, seed=2)
        return params, ShrinkAndPerturb(params, 0.1, base=base, sigma=1.0, seed=2)

    (whole, at_once), (part, first), (rest, second) = make(), make(), make()
    steps(at_once, 5)
    steps(first, 3)
    with torch.no_grad():
        for param, old in zip(rest, part, strict=True):
            param.copy_(old)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))
    assert not any("generator" in group for group in second.param_groups)


def test_groups_may_have_seeds_of_their_own() -> None:
    params = [nn.Parameter(torch.zeros(100, dtype=torch.float64)) for _ in range(2)]
    groups: list[dict[str, Any]] = [{"params": params[:1]}, {"params": params[1:], "seed": 5}]
    optimizer = ShrinkAndPerturb(groups, 1.0, base="sgd", sigma=1.0, seed=4)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for number, (param, seed) in enumerate(zip(params, (4, 5), strict=True)):
        np.testing.assert_allclose(param.detach(), -reference.noise(seed, 1, number, 100), rtol=0, atol=1e-8)
