"""What optimizers of param groups have in common: settings checked on entry, closures, a report of step sizes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from continual_metaopt.optim.protocol import step_sizes_of_groups
from continual_metaopt.optim.weightwise import Group, require, require_finite


class CheckedOptimizer(Optimizer, ABC):
    """A torch optimizer that checks the settings of each param group when it is added."""

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters.

        Raises:
            ValueError: a setting is out of range.
        """
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
            require_finite(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Learn from the gradients in ``p.grad``.

        Args:
            closure: evaluates the network again, calls ``backward`` and returns the loss.

        Returns:
            The loss that the closure returned, or None.

        Raises:
            ValueError: a gradient is sparse or complex, or the optimizer needs a closure and there is none.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
            loss = result[0] if isinstance(result, tuple) else result  # (loss, output) where graphs are wanted
        self._update(loss)
        return loss

    def step_size_report(self) -> dict[str, float]:
        """Current step size of each group, by its name."""
        return step_sizes_of_groups(self)

    @abstractmethod
    def _check(self, group: Group) -> None:
        """Raise a ValueError if a setting is out of range; derived entries of the group may be made here."""

    @abstractmethod
    def _update(self, loss: Any) -> None:
        """Make the update of all parameters; ``loss`` is what the closure returned, None without one."""


def require_not_negative(group: Group, *names: str) -> None:
    """Check that settings are finite and at least 0.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        require(group, name, math.isfinite(group[name]) and group[name] >= 0, "not be negative")


def require_positive(group: Group, *names: str) -> None:
    """Check that settings are finite and above 0.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        require(group, name, math.isfinite(group[name]) and group[name] > 0, "be positive")


def require_decays(group: Group, *names: str) -> None:
    """Check that settings are at least 0 and below 1.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        require(group, name, 0 <= group[name] < 1, "be at least 0 and below 1")
