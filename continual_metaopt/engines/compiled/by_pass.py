"""Optimizers whose update is a compiled pass: elementwise ones, and those of PyTorch whose rule is one of ours."""

from collections import ChainMap
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from continual_metaopt.engines.compiled.elementwise import NotWritten, elementwise_pass, on_base_pass
from continual_metaopt.engines.compiled.passes import Pass
from continual_metaopt.engines.compiled.rules import BASE_RULES
from continual_metaopt.engines.wrapped import why_not_on_the_cpu, why_step_is_needed
from continual_metaopt.optim import base_updates
from continual_metaopt.optim.base import Group, OnBase, numbers_of
from continual_metaopt.optim.base_updates import BASE_UPDATES, BaseUpdate, zeros
from continual_metaopt.optim.elementwise import Elementwise, sqrt
from continual_metaopt.optim.peers.continual_backprop import ContinualBackprop

OF_TORCH = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad)
SETTINGS = ("setting0", "setting1", "setting2")  # of a base update, as numbers of a group


@dataclass(frozen=True)
class ByPass:
    """An optimizer's pass, and where its numbers are.

    Attributes:
        of: the pass.
        numbers: gives those of a param group.
        kept: gives what is kept for a parameter of a group, by the names of the pass, and its "step", if it has one.
        begin: prepares a group, before a pass.
        end: brings a group up to date, after a pass.
    """

    of: Pass
    numbers: Callable[[Group], dict[str, float]]
    kept: Callable[[Group, Tensor], MutableMapping[str, Any]]
    begin: Callable[[Group], None] = lambda group: None
    end: Callable[[Group], None] = lambda group: None


def by_pass_or_why_not(optimizer: Optimizer) -> tuple[ByPass | None, str]:
    """Give an optimizer's pass; or None and what keeps its update from being one."""
    kind = type(optimizer)
    if not isinstance(optimizer, Elementwise | OnBase) and kind not in OF_TORCH:
        return None, f"{kind.__name__} is not written as functions of single numbers"
    objection = why_step_is_needed(optimizer) or why_not_on_the_cpu(optimizer)
    if objection is not None:
        return None, objection
    dtypes = {param.dtype for group in optimizer.param_groups for param in group["params"]}
    if len(dtypes) > 1:
        return None, "the parameters are of different types"
    try:
        if isinstance(optimizer, Elementwise):
            return _elementwise(optimizer), ""
        if isinstance(optimizer, OnBase):
            return _on_base(optimizer), ""
        return _of_torch(optimizer), ""
    except NotWritten as reason:
        return None, str(reason)


def _elementwise(optimizer: Elementwise) -> ByPass:
    if type(optimizer)._update is not Elementwise._update:
        raise NotWritten(f"{type(optimizer).__name__} has an update of its own")
    names = _names(optimizer, optimizer.numbers)
    return ByPass(
        elementwise_pass(type(optimizer), names),
        optimizer.numbers,
        lambda group, param: optimizer.state_of(param),
        optimizer.begin_update,
        optimizer.end_update,
    )


def _on_base(optimizer: OnBase) -> ByPass:
    kind = type(optimizer)
    replaces = isinstance(optimizer, ContinualBackprop)  # after the update, which is the base's but for restarts
    owner = ContinualBackprop if replaces else OnBase
    if any(getattr(kind, name) is not getattr(owner, name) for name in ("_update", "_move")):
        raise NotWritten(f"{kind.__name__} has an update of its own")

    def numbers(group: Group) -> dict[str, float]:
        return _settings(BASE_UPDATES[group["base"]]()) | optimizer.numbers(group)

    def kept(group: Group, param: Tensor) -> MutableMapping[str, Any]:
        state = optimizer.state_of(param, BASE_UPDATES[group["base"]]())
        return ChainMap(state["base"], state)

    bases = [BASE_UPDATES[group["base"]] for group in optimizer.param_groups]
    return _based(optimizer, bases, kind, numbers, kept, replaces)


class _DecayInGradient(OnBase):
    """Add weight decay to the gradient, as SGD and Adam of PyTorch do."""

    @staticmethod
    def adjusted(w: Any, g: Any, decay_in_gradient: float) -> Any:
        return g + decay_in_gradient * w


class _RMSprop(Elementwise):
    """PyTorch's, by the names of its state."""

    keeps = ("square_avg", "momentum_buffer")

    @staticmethod
    def move(
        w: Any,
        g: Any,
        square_avg: Any,
        momentum_buffer: Any,
        lr: float,
        alpha: float,
        eps: float,
        momentum: float,
        weight_decay: float,
    ) -> Any:
        g = g + weight_decay * w
        square_avg = alpha * square_avg + (1 - alpha) * g * g
        momentum_buffer = momentum * momentum_buffer + g / (sqrt(square_avg) + eps)
        return w - lr * momentum_buffer, square_avg, momentum_buffer


class _Adagrad(Elementwise):
    """PyTorch's, by the names of its state."""

    keeps = ("sum",)

    @staticmethod
    def move(w: Any, g: Any, sum: Any, lr: float, lr_decay: float, eps: float, weight_decay: float, step: int) -> Any:
        g = g + weight_decay * w
        sum = sum + g * g
        return w - lr / (1 + (step - 1) * lr_decay) * g / (sqrt(sum) + eps), sum


WRITTEN_ANEW: dict[type, type[Elementwise]] = {torch.optim.RMSprop: _RMSprop, torch.optim.Adagrad: _Adagrad}


def _written_anew(optimizer: Optimizer) -> ByPass:
    """The pass of an optimizer of PyTorch whose rule is none of our base updates."""

    def kept(group: Group, param: Tensor) -> MutableMapping[str, Any]:
        state = optimizer.state[param]
        if not state:  # Adagrad makes its own at once
            state.update(step=torch.zeros(()), square_avg=zeros(param))
            if group["momentum"] > 0:
                state["momentum_buffer"] = zeros(param)
        return state

    def numbers(group: Group) -> dict[str, float]:
        return numbers_of(group) | {"lr": float(group["lr"])}

    return ByPass(elementwise_pass(WRITTEN_ANEW[type(optimizer)], _names(optimizer, numbers)), numbers, kept)


def _of_torch(optimizer: Optimizer) -> ByPass:
    kind = type(optimizer)
    for name in ("maximize", "amsgrad", "nesterov", "dampening", "differentiable", "centered"):
        if any(group.get(name) for group in optimizer.param_groups):
            raise NotWritten(f"there is no compiled code for {kind.__name__} with {name}")
    if kind in WRITTEN_ANEW:
        return _written_anew(optimizer)
    decay = "weight_decay" if kind is torch.optim.AdamW else "decay_in_gradient"

    def base(group: Group) -> BaseUpdate:
        if kind is torch.optim.SGD:
            return base_updates.SGDm(group["momentum"]) if group["momentum"] else base_updates.SGD()
        return base_updates.AdamW(tuple(map(float, group["betas"])), group["eps"])  # type: ignore[arg-type]

    def numbers(group: Group) -> dict[str, float]:
        decays = {"weight_decay": 0.0, decay: float(group["weight_decay"])}
        return _settings(base(group)) | {"lr": float(group["lr"])} | decays

    def kept(group: Group, param: Tensor) -> MutableMapping[str, Any]:
        needed = base(group).init(param)
        state = optimizer.state[param] if needed else {}
        for name, value in needed.items():
            if state.get(name) is None:
                state[name] = torch.zeros(()) if name == "step" else value
        return state

    adds = OnBase if decay == "weight_decay" else _DecayInGradient
    return _based(optimizer, [type(base(group)) for group in optimizer.param_groups], adds, numbers, kept)


def _based(
    optimizer: Optimizer, bases: list[type], kind: type[OnBase], numbers: Any, kept: Any, restarts: bool = False
) -> ByPass:
    if len(set(bases)) > 1:
        raise NotWritten("param groups have different base updates")
    if bases[0] not in BASE_RULES:
        raise NotWritten(f"there is no kernel for {bases[0].__name__}")
    rule = BASE_RULES[bases[0]]
    names = _names(optimizer, numbers)
    moments = rule.momentum or "", rule.second_moment or ""
    n_settings = sum(name in SETTINGS for name in names)
    return ByPass(on_base_pass(rule.name, moments, n_settings, kind, names, restarts), numbers, kept)


def _settings(base: BaseUpdate) -> dict[str, float]:
    settings = BASE_RULES[type(base)].settings(base)
    return dict(zip(SETTINGS, map(float, settings), strict=False))


def _names(optimizer: Optimizer, numbers: Callable[[Group], dict[str, float]]) -> tuple[str, ...]:
    """Names of the numbers that all groups have."""
    given = [numbers(group) for group in optimizer.param_groups]
    return tuple(name for name in given[0] if all(name in others for others in given))
