"""Random numbers of an optimizer's own, which leave everybody else's as they are and are saved with its state."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer


@contextmanager
def noise_of(optimizer: Optimizer) -> Iterator["Noise"]:
    """The optimizer's generator, seeded by the "seed" of its first param group, for the draws of one step.

    Its state is kept in the first group, under "generator", so that ``state_dict`` holds it.
    """
    group = optimizer.param_groups[0]
    generator = torch.Generator()
    if "generator" in group:
        generator.set_state(group["generator"])
    else:
        generator.manual_seed(group["seed"])
    yield Noise(generator)
    group["generator"] = generator.get_state()


class Noise:
    """Draws from a generator on the CPU, so that they are the same on every device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def normal_like(self, param: Tensor) -> Tensor:
        """Independent numbers from N(0, 1), in the shape, type and place of a parameter."""
        return torch.randn(param.shape, generator=self.generator, dtype=param.dtype).to(param.device)

    def uniform_like(self, param: Tensor, bound: float) -> Tensor:
        """Independent numbers from U(−bound, bound), in the shape, type and place of a parameter."""
        drawn = torch.rand(param.shape, generator=self.generator, dtype=param.dtype).to(param.device)
        return drawn.mul_(2 * bound).sub_(bound)
