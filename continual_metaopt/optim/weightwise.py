"""What optimizers with a step size of its own for each weight have in common."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from continual_metaopt.optim.protocol import step_sizes_of_groups

Group = dict[str, Any]

LOWEST = 1e-30  # mean step size of a group whose "lr" is set to 0: the proportions within the group remain


class Weightwise(Optimizer, ABC):
    """A torch optimizer that keeps a log step size for each weight, apart from the step size it started from.

    The step sizes of a group are α = reference · exp(log_ratio), with one ``log_ratio`` per weight in ``state``, 0 at
    first. ``group["lr"]`` reads as their geometric mean; writing it, as a scheduler does, rescales all of them. Where a
    schedule ends at 0, their mean is 1e-30.

    Args:
        params: tensors or param groups, as for any torch optimizer. A group may have a "name" for reports.
        defaults: the settings, "lr" (initial step size, positive) and "meta_lr" (not negative) among them.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters.

        Raises:
            ValueError: a setting is out of range.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            require(group, "lr", group["lr"] > 0 and math.isfinite(group["lr"]), "be positive")
            require(group, "meta_lr", group["meta_lr"] >= 0 and math.isfinite(group["meta_lr"]), "not be negative")
            require_finite(group)
        except ValueError:
            self.param_groups.pop()
            raise
        group["reference"] = group["written"] = float(group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Learn from the gradients in ``p.grad``.

        Args:
            closure: evaluates the network again, calls ``backward`` and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: a gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._take_over_step_size(group)
        self._update()
        for group in self.param_groups:
            group["lr"] = group["written"] = self._mean_step_size(group)
        return loss

    def step_size_report(self) -> dict[str, float]:
        """Geometric mean of the step sizes of each group, by its name."""
        return step_sizes_of_groups(self)

    def weight_step_sizes(self, param: Tensor) -> Tensor:
        """Step size of each weight of a parameter, in the parameter's shape.

        Args:
            param: one of the optimizer's parameters.

        Raises:
            KeyError: the parameter is not the optimizer's.
        """
        for group in self.param_groups:
            if any(param is own for own in group["params"]):
                rescaled = _rescaled_reference(group)
                ratio = (
                    self.state[param]["log_ratio"].exp() if self.state.get(param) else torch.ones_like(param.detach())
                )
                return rescaled * ratio
        raise KeyError("this parameter does not belong to the optimizer")

    @abstractmethod
    def _update(self) -> None:
        """Make the update of all parameters."""

    def _prepared_state(self, param: Tensor, *names: str) -> dict[str, Any]:
        """A parameter's state, made of zeros at its first update."""
        state = self.state[param]
        if not state:
            for name in ("log_ratio", *names):
                state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state

    def _take_over_step_size(self, group: Group) -> None:
        if group["lr"] == group["written"]:
            return
        require(group, "lr", group["lr"] >= 0 and math.isfinite(group["lr"]), "not be negative")
        group["reference"] = _rescaled_reference(group)

    def _mean_step_size(self, group: Group) -> float:
        sums = [self.state[param]["log_ratio"].sum() for param in group["params"] if self.state.get(param)]
        n_weights = sum(param.numel() for param in group["params"])
        mean = sum((total.to(sums[0]) for total in sums), torch.zeros(())).double().cpu() / n_weights
        return float(group["reference"] * mean.exp())  # of a tensor, so that it overflows to infinity


def _rescaled_reference(group: Group) -> float:
    """A group's reference after somebody wrote to "lr", or as it is."""
    if group["lr"] == group["written"]:
        return float(group["reference"])
    return float(group["reference"] * (max(group["lr"], LOWEST) / group["written"]))


def require(group: Group, name: str, fulfilled: bool, wish: str) -> None:
    """Check a setting.

    Raises:
        ValueError: it is not fulfilled; the message says what the setting must be.
    """
    if not fulfilled:
        raise ValueError(f"{name} must {wish}, but is {group[name]}")


def require_finite(settings: Mapping[str, Any]) -> None:
    """Check that settings which are numbers, or hold numbers, are finite.

    Raises:
        ValueError: one is not.
    """
    for name, value in settings.items():
        numbers = value if isinstance(value, tuple | list) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{name} must be finite, but is {value}")


def gradients(optimizer: Optimizer, group: Group) -> Iterator[tuple[Tensor, Tensor]]:
    """The parameters of a group that have a gradient, with it.

    Raises:
        ValueError: the gradient is sparse or complex.
    """
    for param in group["params"]:
        if param.grad is not None:
            if param.grad.is_sparse or param.is_complex():
                kind = "complex parameters" if param.is_complex() else "sparse gradients"
                raise ValueError(f"{type(optimizer).__name__} does not work with {kind}")
            yield param, param.grad
