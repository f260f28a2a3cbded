"""Optimizers that are written once, as functions of single numbers: PyTorch and compiled code both execute them.

``Elementwise`` gives the functions tensors. The compiled engine gives them one weight after the other
(``engines/compiled/elementwise.py``). So their text may hold assignments, arithmetic, comparisons, calls of functions
that are written likewise, and those of this module; an ``if`` may ask for a setting, but not for a weight: there,
``where`` chooses. Settings are computed in double precision, and rounded where they meet a weight.
"""

import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from continual_metaopt.optim.base import (
    CheckedOptimizer,
    Group,
    arguments_of,
    as_tuple,
    call,
    draws,
    gradients,
    noise_for,
    numbers_of,
    require_not_negative,
)

Reduction = Literal["sum", "max"]

LOWEST = 1e-30  # mean step size of a group whose "lr" is set to 0: the proportions within the group remain


def sqrt(x: Any) -> Any:
    """Take the square root."""
    return torch.sqrt(x) if isinstance(x, Tensor) else math.sqrt(x)


def exp(x: Any) -> Any:
    """Take the exponential."""
    return torch.exp(x) if isinstance(x, Tensor) else math.exp(x)


def log(x: Any) -> Any:
    """Take the natural logarithm: −∞ of 0, and not a number of what is below."""
    if isinstance(x, Tensor):
        return torch.log(x)
    return math.log(x) if x > 0 else -math.inf if x == 0 else math.nan


def sign(x: Any) -> Any:
    """Take the sign: −1, 0 or 1."""
    return torch.sign(x) if isinstance(x, Tensor) else float((x > 0) - (x < 0))


def maximum(a: Any, b: Any) -> Any:
    """Take the larger of two; what is not a number wins."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    return a.clamp(min=b) if isinstance(a, Tensor) else b.clamp(min=a) if isinstance(b, Tensor) else max(a, b)


def minimum(a: Any, b: Any) -> Any:
    """Take the smaller of two; what is not a number wins."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    return a.clamp(max=b) if isinstance(a, Tensor) else b.clamp(max=a) if isinstance(b, Tensor) else min(a, b)


def where(condition: Any, a: Any, b: Any) -> Any:
    """Take ``a`` where the condition holds, and ``b`` elsewhere."""
    return torch.where(condition, a, b) if isinstance(condition, Tensor) else a if condition else b


def _lr(lr: float) -> float:
    return lr


class Elementwise(CheckedOptimizer):
    """Make each update in three parts, which a subclass writes as static functions of numbers.

        measure(w, g, …) -> contributions        what each weight adds to the numbers of ``measures``; may be left out
        decide(…) -> numbers of ``decides``      what a group makes of them; may be left out
        move(w, g, …) -> (w, …)                  the new weight, and the new numbers of ``keeps``

    Their arguments are told by their names: ``w`` and ``g`` are a weight and its gradient, names of ``keeps`` what is
    kept for this weight, names of ``measures`` what was measured, ``step`` the number of this update of the parameter,
    counted from 1, ``noise`` (of ``move``) a number from N(0, 1) for this weight and step, which the group's "seed"
    tells, ``loss`` (of ``decide``, with ``wants_loss``) the loss, and all others the ``numbers`` of the group.

    ``log_step_size``, a function like them, in double precision, gives the logarithm of a weight's step size; what is
    reported is its mean over the group, without weights where it is not finite. Without it, or if it is finite nowhere,
    ``step_size``, a function of the group's numbers, gives the group's: its "lr".

    A group of which no parameter has a gradient decides nothing, unless all groups are measured together.

    Attributes:
        keeps: names of the numbers kept for each weight in ``state``, 0 at first.
        from_weights: names of those of them that are the weight itself at first, before any update.
        predicts_with: name of that of them which predicts in place of the weight, if the optimizer switches weights.
        measures: names of what is measured, and how the weights' contributions are reduced.
        decides: names of the entries of a param group that ``decide`` gives anew, in the order of its results.
        over_all_groups: whether all groups are measured together.
        wants_loss: whether ``step`` needs a closure that returns the loss.
    """

    keeps: ClassVar[tuple[str, ...]] = ()
    from_weights: ClassVar[tuple[str, ...]] = ()
    predicts_with: ClassVar[str] = ""
    measures: ClassVar[dict[str, Reduction]] = {}
    decides: ClassVar[tuple[str, ...]] = ()
    over_all_groups: ClassVar[bool] = False
    wants_loss: ClassVar[bool] = False

    measure: ClassVar[Callable[..., Any] | None] = None
    decide: ClassVar[Callable[..., Any] | None] = None
    move: ClassVar[Callable[..., Any]]
    log_step_size: ClassVar[Callable[..., Any] | None] = None
    step_size: ClassVar[Callable[..., float]] = staticmethod(_lr)

    def numbers(self, group: Group) -> dict[str, float]:
        """Give a group's settings, and what it has learned, as the numbers that the functions take."""
        return numbers_of(group)

    def begin_update(self, group: Group) -> None:
        """Prepare a group for updates, where a schedule may have changed its settings."""

    def end_update(self, group: Group) -> None:
        """Bring a group's entries up to date after updates."""

    def state_of(self, param: Tensor) -> MutableMapping[str, Any]:
        """Give what is kept for a parameter, from its first update on."""
        begins = not self.state.get(param)
        state = self._prepared_state(param, *self.keeps)
        for name in self.from_weights if begins else ():
            state[name].copy_(param.detach())
        if counts_steps(type(self)):
            state.setdefault("step", 0)
        return state

    def _step_size(self, group: Group) -> float:
        numbers = self.numbers(group)
        if self.log_step_size is None:
            return float(call(self.step_size, numbers))
        parts = [
            call(self.log_step_size, numbers | _double(state), w=param.detach().double())
            for param in group["params"]
            if (state := self.state.get(param))
        ]
        logs = torch.cat([part.flatten() for part in parts]) if parts else torch.zeros(0)
        logs = logs[logs.isfinite()]
        return float(logs.mean().exp()) if len(logs) else float(call(self.step_size, numbers))

    def _update(self, loss: Any) -> None:
        if self.wants_loss:
            loss = loss_value(loss, type(self).__name__)
        members = []
        for group in self.param_groups:
            self.begin_update(group)
            pairs = [(param, grad, self.state_of(param)) for param, grad in gradients(self, group)]
            for _, _, state in pairs:
                if "step" in state:
                    state["step"] += 1
            members.append((group, self.numbers(group), pairs))
        measured = [self._measured(numbers, pairs) for _, numbers, pairs in members]
        if self.over_all_groups:
            total = {name: _reduce([own[name] for own in measured], how) for name, how in self.measures.items()}
            measured = [total] * len(members)
        for (group, numbers, pairs), own in zip(members, measured, strict=True):
            numbers.update(own)
            if self.decide is not None and (pairs or self.over_all_groups):
                decided = as_tuple(call(self.decide, numbers, loss=loss))
                group.update(new := dict(zip(self.decides, decided, strict=True)))
                numbers.update(new)
            for param, grad, state in pairs:
                known = {**numbers, **state}
                if draws(self.move):
                    known["noise"] = noise_for(self, param, numbers["seed"], state["step"])
                new_weight, *kept = as_tuple(call(self.move, known, w=param, g=grad))
                for name, value in zip(self.keeps, kept, strict=True):
                    state[name].copy_(value)
                param.copy_(new_weight)
            self.end_update(group)

    def _measured(self, numbers: dict[str, float], pairs: list[tuple[Tensor, Tensor, Any]]) -> dict[str, float]:
        if self.measure is None:
            return {}
        parts = [as_tuple(call(self.measure, {**numbers, **state}, w=param, g=grad)) for param, grad, state in pairs]
        return {
            name: _reduce([float(part[i].sum() if how == "sum" else part[i].max()) for part in parts], how)
            for i, (name, how) in enumerate(self.measures.items())
        }


@cache
def counts_steps(kind: type[Elementwise]) -> bool:
    """Tell whether an optimizer's functions ask for the number of the update, or for noise."""
    functions = (f for f in (kind.measure, kind.move, kind.log_step_size) if f is not None)
    return any("step" in arguments_of(f) or draws(f) for f in functions)


def _reduce(values: Iterable[float], how: Reduction) -> float:
    return sum(values) if how == "sum" else max(values, default=-math.inf)


def _double(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in state.items()}


def loss_value(loss: Any, who: str) -> float:
    """Give the number that a closure returned.

    Raises:
        ValueError: there was no closure, or it returned nothing.
    """
    if loss is None:
        raise ValueError(
            f"{who} needs the loss: call optimizer.step(closure) with a closure that returns it; "
            "after loss.backward(), optimizer.step(lambda: loss) does"
        )
    return float(loss)


class Weightwise(Elementwise):
    """Keep a log step size for each weight, apart from the step size it started from.

    The step sizes of a group are α = reference · exp(log_ratio), with one ``log_ratio`` per weight in ``state``, 0 at
    first. ``group["lr"]`` reads as the geometric mean of those of parameters that have had a gradient; writing it, as a
    scheduler does, rescales all of them. Where a schedule ends at 0, their mean is 1e-30. Settings "lr" and "meta_lr"
    are needed.
    """

    positive = ("lr",)
    not_negative: ClassVar[tuple[str, ...]] = ("meta_lr",)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, whose step size is the one to start from."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["reference"] = group["written"] = float(group["lr"])

    @staticmethod
    def log_step_size(log_ratio: Any, reference: float) -> Any:
        """Take the logarithm of a weight's step size."""
        return log(reference) + log_ratio

    def begin_update(self, group: Group) -> None:
        """Rescale the step sizes of a group whose "lr" has been set."""
        if group["lr"] != group["written"]:
            require_not_negative(group, "lr")
            group["reference"] *= max(group["lr"], LOWEST) / group["written"]

    def end_update(self, group: Group) -> None:
        """Let "lr" be the mean of the step sizes."""
        ratios = [self.state[param]["log_ratio"] for param in group["params"] if self.state.get(param)]
        total = sum(float(ratio.sum(dtype=torch.float64)) for ratio in ratios)
        mean = torch.tensor(total / max(sum(ratio.numel() for ratio in ratios), 1), dtype=torch.float64)
        group["lr"] = group["written"] = group["reference"] * mean.exp().item()  # which may be infinite

    def _step_size(self, group: Group) -> float:
        return float(group["lr"])
