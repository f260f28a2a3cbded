"""Learning-rate schedules: step sizes that follow a plan."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, OnBase, as_tuple, call, require
from continual_metaopt.optim.base_updates import Base
from continual_metaopt.optim.registry import ON_A_BASE, LearnerSpec, learner_of

COSINE = LearnerSpec(
    "cosine",
    "a base update with warm-up and a cosine over the stream's length",
    family="schedule, or told of changes",
    space=ON_A_BASE,
    paper='Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017',
    on_a_base=True,
)

COSINE_RESTARTS_TOLD = LearnerSpec(
    "cosine_restarts_told",
    "a base update with a cosine anew at each experience, of which it is told",
    family="schedule, or told of changes",
    space=ON_A_BASE,
    paper='Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017',
    on_a_base=True,
)


def half_cosine(progress: float, highest: float, lowest: float) -> float:
    """Follow half a period of a cosine, from ``highest`` at progress 0 to ``lowest`` at 1 and beyond."""
    return lowest + (highest - lowest) / 2 * (1 + math.cos(math.pi * min(progress, 1.0)))


class Scheduled(OnBase):
    """Plan the step size of each step: ``group["lr"]`` is that of the next one."""

    plans = ("lr", "n_done")
    plan: ClassVar[Callable[..., Any]]

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, with a plan of its own.

        Raises:
            ValueError: a setting is out of range.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["highest"], group["n_done"], group["period"] = group["lr"], 0, 0
        group["lr"] = self._planned(group)

    def _check(self, group: Group) -> None:
        super()._check(group)
        require(group, "final", 0 <= group["final"] <= 1, "be within 0 and 1")

    def _planned(self, group: Group) -> float:
        return float(as_tuple(call(self.plan, self.numbers(group) | {"n_done": group["n_done"] - 1}))[0])


class WarmUpCosine(Scheduled):
    """Warm up, then let the step size fall along a cosine, over the length of a stream.

    With n steps in all, n_w = warmup · n of them for the warm-up, and highest step size α, the step size of step t,
    counted from 0, is α (t + 1) / n_w for t < n_w, and then falls from α to final · α along half a period of a cosine.
    After the n-th step it stays at final · α.

    Args:
        lr: highest step size α.
        n_samples: length of the stream; a run fills it in.
        batch_size: number of samples that are learned from at once, which makes n; a run fills it in, too.
        base: name of the base update.
        weight_decay: decoupled weight decay κ.
        warmup: share of the steps that the warm-up takes.
        final: share of the highest step size that is left in the end.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> optimizer = WarmUpCosine([w], lr=0.1, n_samples=4, warmup=0.5)
        >>> optimizer.step_size_report()
        {'group0': 0.05}
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        n_samples: int,
        batch_size: int = 1,
        base: Base = "adamw",
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        final: float = 0.0,
    ) -> None:
        settings = {"n_steps": -(-n_samples // batch_size), "warmup": warmup, "final": final}
        super().__init__(params, lr, base=base, weight_decay=weight_decay, **settings)

    def _check(self, group: Group) -> None:
        super()._check(group)
        require(group, "n_steps", group["n_steps"] >= 1, "be at least 1")
        require(group, "warmup", 0 <= group["warmup"] < 1, "be at least 0 and below 1")

    @staticmethod
    def plan(highest: float, final: float, n_done: float, n_steps: float, warmup: float) -> tuple[float, float]:
        """Give the step size of the next step, and the number of those that are done."""
        n_done = n_done + 1
        warm = round(warmup * n_steps)
        if n_done < warm:
            return highest * (n_done + 1) / warm, n_done
        return half_cosine((n_done - warm) / (n_steps - warm), highest, final * highest), n_done


class CosineRestarts(Scheduled):
    """Let the step size fall along a cosine that begins anew at every experience, of which it is told.

    ``begin_experience`` tells it where one begins. An experience's cosine is as long as the experience before it was,
    since nobody knows how long this one will be; in the first the step size stays at the highest. (SGDR restarts after
    periods that are chosen in advance.)

    Args:
        lr: highest step size α.
        base: name of the base update.
        weight_decay: decoupled weight decay κ.
        final: share of the highest step size that is left at the end of a cosine.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> optimizer = CosineRestarts([w], lr=0.1)
        >>> optimizer.step()
        >>> optimizer.begin_experience()
        >>> optimizer.step()
        >>> optimizer.step_size_report()
        {'group0': 0.0}
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        base: Base = "adamw",
        weight_decay: float = 0.01,
        final: float = 0.0,
    ) -> None:
        super().__init__(params, lr, base=base, weight_decay=weight_decay, final=final)

    def begin_experience(self) -> None:
        """Begin the cosine anew."""
        for group in self.param_groups:
            if group["n_done"]:
                group["period"], group["n_done"] = group["n_done"], 0
                group["lr"] = self._planned(group)

    @staticmethod
    def plan(highest: float, final: float, n_done: float, period: float) -> tuple[float, float]:
        """Give the step size of the next step, and the number of those that are done."""
        n_done = n_done + 1
        return half_cosine(n_done / period if period > 0 else 0.0, highest, final * highest), n_done


cosine = learner_of(WarmUpCosine)
cosine_restarts_told = learner_of(CosineRestarts)
