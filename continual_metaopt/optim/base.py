"""What optimizers here are built on: checked settings, additions to a base update, own noise."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from continual_metaopt.optim.base_updates import BASE_UPDATES, Base, BaseUpdate, zeros
from continual_metaopt.optim.protocol import named_groups
from continual_metaopt.streams.registry import unknown_name

Group = dict[str, Any]


class CheckedOptimizer(Optimizer, ABC):
    """Check the settings of each param group when it is added.

    Parameters are tensors or param groups, as for any torch optimizer, and a group may have settings and a "name" of
    its own. A setting that is out of range is a ValueError.
    """

    # names of settings that must be so; those below one must not be negative either
    not_negative: ClassVar[tuple[str, ...]] = ()
    positive: ClassVar[tuple[str, ...]] = ()
    below_one: ClassVar[tuple[str, ...]] = ()

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters; a ValueError names a setting that is out of range."""
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
        """Give the current step size of each group by its name; the geometric mean where a group has many."""
        return {name: self._step_size(group) for name, group in named_groups(self)}

    def _step_size(self, group: Group) -> float:
        return float(group["lr"])

    def _check(self, group: Group) -> None:
        """Raise a ValueError if a setting is out of range; derived entries of the group may be made here."""
        require_not_negative(group, *self.not_negative)
        require_positive(group, *self.positive)
        require_decays(group, *self.below_one)

    @abstractmethod
    def _update(self, loss: Any) -> None:
        """Make the update of all parameters; ``loss`` is what the closure returned, None without one."""

    def _prepared_state(self, param: Tensor, *names: str) -> dict[str, Any]:
        """A parameter's state, with zeros under these names from its first update on."""
        state = self.state[param]
        if not state:
            state.update({name: zeros(param) for name in names})
        return state


class OnBase(CheckedOptimizer):
    """Make a base update w ← (1 − α κ) w − α u with its default settings; subclasses add to it.

    By itself it is SGD, AdamW and the other base updates in torch's form. What a subclass adds are static functions of
    numbers, as ``elementwise`` describes them, so that compiled code can execute them too:

        adjusted(w, g, …) -> g               what the base update takes for the gradient
        after(before, w, …) -> (w, …)        the weight after the step, and the new numbers of ``keeps``;
                                             ``noise`` is an argument as well
        plan(…) -> numbers of ``plans``      entries of a param group that are set after the step

    Args:
        params: tensors or param groups, as for any torch optimizer.
        lr: step size α.
        base: name of the base update that makes the direction u.
        weight_decay: decoupled weight decay κ.
        **settings: further settings of the param groups.

    Raises:
        ValueError: a setting is out of range.
    """

    not_negative: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    keeps: ClassVar[tuple[str, ...]] = ()
    adjusted: ClassVar[Callable[..., Any] | None] = None
    after: ClassVar[Callable[..., Any] | None] = None
    plans: ClassVar[tuple[str, ...]] = ()
    plan: ClassVar[Callable[..., Any] | None] = None

    def __init__(self, params: ParamsT, lr: float, *, base: Base, weight_decay: float, **settings: Any) -> None:
        super().__init__(params, {"lr": lr, "base": base, "weight_decay": weight_decay, **settings})

    def _check(self, group: Group) -> None:
        super()._check(group)
        require_known("base update", group["base"], BASE_UPDATES)

    def numbers(self, group: Group) -> dict[str, float]:
        """Give a group's settings as the numbers that the functions take."""
        return numbers_of(group)

    def state_of(self, param: Tensor, base: BaseUpdate) -> dict[str, Any]:
        """Give what is kept for a parameter, beginning with its first update."""
        state = self.state[param]
        if "base" not in state:
            state["base"] = base.init(param)
        for name in self.keeps:
            if name not in state:
                state[name] = zeros(param)
        if self.after is not None and draws(self.after):
            state["base"].setdefault("step", 0)
        return state

    def _update(self, loss: Any) -> None:
        for group in self.param_groups:
            base, numbers = BASE_UPDATES[group["base"]](), self.numbers(group)
            for param, grad in gradients(self, group):
                state = self.state_of(param, base)
                if self.adjusted is not None:
                    grad = call(self.adjusted, numbers | state, w=param, g=grad)
                if self.after is None:
                    self._move(param, grad, base, group)
                    continue
                before, step = param.clone(), state["base"].get("step", 0)
                self._move(param, grad, base, group)
                known = numbers | state
                if draws(self.after):
                    state["base"]["step"] = step + 1  # which some base updates count
                    known["noise"] = noise_for(self, param, numbers["seed"], step + 1)
                new, *kept = as_tuple(call(self.after, known, before=before, w=param))
                for name, value in zip(self.keeps, kept, strict=True):
                    state[name].copy_(value)
                param.copy_(new)
            if self.plan is not None:
                group.update(zip(self.plans, as_tuple(call(self.plan, numbers)), strict=True))

    def _move(self, param: Tensor, grad: Tensor, base: BaseUpdate, group: Group) -> None:
        """Make one parameter's step, with torch's operations in torch's order."""
        numerator, denominator, divisor = base.direction(self.state[param]["base"], grad)
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        if denominator is None:
            param.add_(numerator, alpha=-group["lr"] / divisor)
        else:
            param.addcdiv_(numerator, denominator, value=-group["lr"] / divisor)


def numbers_of(group: Group) -> dict[str, float]:
    """Give the settings of a param group that are numbers."""
    return {name: float(value) for name, value in group.items() if isinstance(value, int | float)}


@cache
def arguments_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Give the names of a function's arguments."""
    return tuple(inspect.signature(function).parameters)


def draws(function: Callable[..., Any]) -> bool:
    """Tell whether a function asks for noise."""
    return "noise" in arguments_of(function)


def call(function: Callable[..., Any], known: Mapping[str, Any], **others: Any) -> Any:
    """Call a function with arguments that are known by their names."""
    return function(*[others[name] if name in others else known[name] for name in arguments_of(function)])


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Give the results of a function that returns one or several."""
    return value if isinstance(value, tuple) else (value,)


def settings_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Take the settings out of a constructor's ``locals()``: all but the optimizer, its parameters and its network."""
    others = ("self", "__class__", "params", "model", "trainable")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items() if k not in others}


def gradients(optimizer: Optimizer, group: Group) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the parameters of a group that have a gradient, with it.

    Raises:
        ValueError: the gradient is sparse or complex.
    """
    for param in group["params"]:
        if param.grad is not None:
            if param.grad.is_sparse or param.is_complex():
                kind = "complex parameters" if param.is_complex() else "sparse gradients"
                raise ValueError(f"{type(optimizer).__name__} does not work with {kind}")
            yield param, param.grad


def require(group: Group, name: str, fulfilled: bool, wish: str) -> None:
    """Check a setting.

    Raises:
        ValueError: it is not fulfilled; the message says what the setting must be.
    """
    if not fulfilled:
        raise ValueError(f"{name} must {wish}, but is {group[name]}")


def require_known(what: str, value: Any, choices: Any) -> None:
    """Check that a value is among a ``Literal``'s, or the keys of a registry; a ValueError lists them."""
    known = list(get_args(choices) or choices)
    if value not in known:
        raise ValueError(unknown_name(what, str(value), known))


def require_finite(settings: Mapping[str, Any]) -> None:
    """Check that settings which are numbers, or hold numbers, are finite.

    Raises:
        ValueError: one is not.
    """
    for name, value in settings.items():
        numbers = value if isinstance(value, tuple | list) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{name} must be finite, but is {value}")


def require_not_negative(group: Group, *names: str) -> None:
    """Check that settings are finite and at least 0; a ValueError names one that is not."""
    for name in names:
        require(group, name, math.isfinite(group[name]) and group[name] >= 0, "not be negative")


def require_positive(group: Group, *names: str) -> None:
    """Check that settings are finite and above 0; a ValueError names one that is not."""
    for name in names:
        require(group, name, math.isfinite(group[name]) and group[name] > 0, "be positive")


def require_decays(group: Group, *names: str) -> None:
    """Check that settings are at least 0 and below 1; a ValueError names one that is not."""
    for name in names:
        require(group, name, 0 <= group[name] < 1, "be at least 0 and below 1")


def number_of(optimizer: Optimizer, param: Tensor) -> int:
    """Give the number of a parameter among those of an optimizer."""
    members = (member for group in optimizer.param_groups for member in group["params"])
    return next(number for number, member in enumerate(members) if member is param)


def noise_for(optimizer: Optimizer, param: Tensor, seed: float, step: float) -> Tensor:
    """Give the noise from N(0, 1) of a parameter's step: the same on every device, and in compiled code."""
    from continual_metaopt.optim.noise import fill  # which needs Numba, as nothing else here

    numbers = np.empty(param.numel(), np.float64 if param.dtype == torch.float64 else np.float32)
    fill(numbers, float(seed), float(step), float(number_of(optimizer, param)))
    drawn = torch.from_numpy(numbers)
    if param.dim() != 4:
        return drawn.view(param.shape).to(param)
    outputs, channels, height, width = param.shape  # which compiled code has in another order
    return drawn.view(height, width, channels, outputs).permute(3, 2, 0, 1).to(param).contiguous()


class Noise:
    """Draw from a generator on the CPU, so that numbers are the same on every device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform_like(self, param: Tensor, bound: float) -> Tensor:
        """Draw from U(−bound, bound), in the shape, type and place of a parameter."""
        drawn = torch.rand(param.shape, generator=self.generator, dtype=param.dtype).to(param.device)
        return drawn.mul_(2 * bound).sub_(bound)


@contextmanager
def noise_of(optimizer: Optimizer) -> Iterator[Noise]:
    """Lend the optimizer's own generator, seeded by the "seed" of its first param group, for the draws of one step.

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
