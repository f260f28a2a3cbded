"""DoG and LDoG: step sizes from the distance gone and the gradients met, with iterate averaging.

The rules are those of the authors' package ``dog-optimizer`` 1.0.3, which the tests compare with.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require_positive, settings_of
from continual_metaopt.optim.elementwise import Elementwise, Reduction, sqrt
from continual_metaopt.optim.registry import DECAY_IN_GRADIENT, LearnerSpec, learner_of

DOG = LearnerSpec(
    "dog",
    "DoG with iterate averaging",
    family="no step size to choose",
    space={"reps_rel": (1e-6, 1e-2, "log"), "weight_decay": DECAY_IN_GRADIENT},
    paper='Ivgi, Hinder and Carmon (2023), "DoG is SGD\'s best friend: a parameter-free dynamic step size schedule"',
)

LDOG = LearnerSpec(
    "ldog",
    "LDoG, DoG for each tensor",
    family="no step size to choose",
    space={"reps_rel": (1e-6, 1e-2, "log"), "weight_decay": DECAY_IN_GRADIENT},
    paper='Ivgi, Hinder and Carmon (2023), "DoG is SGD\'s best friend: a parameter-free dynamic step size schedule"',
)


def distance_over_gradients(
    squared_distance: float,
    square: float,
    distance: float,
    squares: float,
    reps_rel: float,
    lr: float,
    eps: float,
    init_eta: float,
) -> tuple[float, float, float]:
    """Give the largest distance, the sum of squares, and the step size."""
    if squares > 0:
        distance, squares = max(distance, sqrt(squared_distance)), squares + square
        return distance, squares, lr * distance / sqrt(squares)
    squares = eps + square
    if squares == 0:
        return distance, squares, 0.0
    if init_eta > 0:
        return 0.0, squares, init_eta
    distance = reps_rel * (1 + sqrt(squared_distance))
    return distance, squares, lr * distance / sqrt(squares)


def descend(w: Any, g: Any, start: Any, eta: float, weight_decay: float) -> Any:
    """Step along the gradient."""
    return w - eta * (g + weight_decay * w), start


class DoG(Elementwise):
    """Step by the distance from the initial weights over the root of the summed squared gradients (DoG).

    With gradient g of a param group, weight decay included, and initial weights w₀:

        r ← max(r, ‖w − w₀‖)                       r = ρ (1 + ‖w₀‖) at first
        G ← G + ‖g‖²                               G = ε at first
        w ← w − η g,    η = c r / √G               or the given first step size

    G is never forgotten, so that a step size cannot recover after a change. With a param group for each tensor, this is
    LDoG. A group's weights without a gradient do not count. The package adds weight decay to ``p.grad`` itself; here
    the gradient is left alone.

    Args:
        reps_rel: ρ, initial distance, relative to 1 + the norm of the initial weights.
        lr: factor c on the step size, best left at 1.
        weight_decay: factor on the weights in the gradient.
        eps: ε, added to the sum of squared gradients.
        init_eta: first step size, in place of ``reps_rel``.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> DoG([w], reps_rel=0.1).step()  # by 0.1 · (1 + 1) / 2 · 2
        >>> round(w.item(), 4)
        0.8
    """

    positive = ("lr", "reps_rel")
    not_negative: ClassVar[tuple[str, ...]] = ("weight_decay", "eps")
    keeps: ClassVar[tuple[str, ...]] = ("start",)
    from_weights: ClassVar[tuple[str, ...]] = ("start",)
    measures: ClassVar[dict[str, Reduction]] = {"squared_distance": "sum", "square": "sum"}
    decides: ClassVar[tuple[str, ...]] = ("distance", "squares", "eta")
    decide: ClassVar[Callable[..., Any] | None] = staticmethod(distance_over_gradients)
    move: ClassVar[Callable[..., Any]] = staticmethod(descend)

    def __init__(
        self,
        params: ParamsT,
        reps_rel: float = 1e-6,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        init_eta: float | None = None,
    ) -> None:
        super().__init__(params, settings_of(locals()))

    def _check(self, group: Group) -> None:
        super()._check(group)
        if group["init_eta"] is not None:
            require_positive(group, "init_eta")
        for name in self.decides:
            group.setdefault(name, 0.0)

    def numbers(self, group: Group) -> dict[str, float]:
        """Give no first step size as 0."""
        return {"init_eta": 0.0} | super().numbers(group)

    @staticmethod
    def measure(w: Any, g: Any, start: Any, squares: float, weight_decay: float) -> Any:
        """Square the way from the initial weights, or at first these themselves, and the gradient."""
        g = g + weight_decay * w
        away = w
        if squares > 0:
            away = w - start
        return away * away, g * g

    @staticmethod
    def step_size(eta: float) -> float:
        """Give that of the latest step, and 0 before the first."""
        return eta


class AveragedDoG(DoG):
    """Step as DoG, and predict with a polynomial-decay average of past weights (Shamir and Zhang, 2013).

        x̄ ← (1 − (1 + γ)/(t + γ)) x̄ + (1 + γ)/(t + γ) w

    ``eval()`` puts x̄ into the parameters, and ``train()`` the weights w, at which gradients are to be taken. Unlike the
    package's averager, which averages a copy of the network, this one does not average buffers, and is part of the
    optimizer's state.

    Args:
        averaging: γ.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> optimizer = AveragedDoG([w], reps_rel=0.1)
        >>> for _ in range(2):
        ...     w.grad = torch.tensor([2.0])
        ...     optimizer.step()
        >>> round(w.item(), 4)
        0.6586
        >>> optimizer.eval()
        >>> round(w.item(), 4)  # 0.1 · 0.8 + 0.9 · 0.6586
        0.6727
    """

    keeps = (*DoG.keeps, "other_weights")
    from_weights = (*DoG.from_weights, "other_weights")
    not_negative = (*DoG.not_negative, "averaging")
    predicts_with = "other_weights"
    decides = (*DoG.decides, "n_averaged")

    def __init__(
        self,
        params: ParamsT,
        reps_rel: float = 1e-6,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        init_eta: float | None = None,
        averaging: float = 8.0,
    ) -> None:
        Elementwise.__init__(self, params, settings_of(locals()) | {"shows_average": False})

    @staticmethod
    def decide(
        squared_distance: float,
        square: float,
        distance: float,
        squares: float,
        reps_rel: float,
        lr: float,
        eps: float,
        init_eta: float,
        n_averaged: float,
    ) -> tuple[float, float, float, float]:
        """Count the weights that are averaged, too."""
        distance, squares, eta = distance_over_gradients(
            squared_distance, square, distance, squares, reps_rel, lr, eps, init_eta
        )
        return distance, squares, eta, n_averaged + 1

    @staticmethod
    def move(
        w: Any,
        g: Any,
        start: Any,
        other_weights: Any,
        eta: float,
        weight_decay: float,
        averaging: float,
        n_averaged: float,
    ) -> Any:
        """Average as well."""
        w, start = descend(w, g, start, eta, weight_decay)
        share = (averaging + 1) / (averaging + n_averaged)
        return w, start, (1 - share) * other_weights + share * w

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make an update at the weights w, and average them.

        Raises:
            RuntimeError: the parameters hold the average.
        """
        if any(group["shows_average"] for group in self.param_groups):
            raise RuntimeError("the parameters hold averaged weights; call train() before taking gradients and step()")
        return super().step(closure)

    def eval(self) -> None:
        """Let the parameters hold the average x̄."""
        self._show_average(True)

    def train(self) -> None:
        """Let the parameters hold the weights w."""
        self._show_average(False)

    @torch.no_grad()
    def _show_average(self, shows: bool) -> None:
        for group in self.param_groups:
            if group["shows_average"] == shows:
                continue
            group["shows_average"] = shows
            for p in group["params"]:
                if self.state.get(p):
                    shown = p.clone()
                    p.copy_(self.state[p]["other_weights"])
                    self.state[p]["other_weights"].copy_(shown)


def averaged_or_not(
    params: ParamsT,
    reps_rel: float = 1e-6,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    init_eta: float | None = None,
    averaging: float | None = 8.0,
) -> DoG:
    """Step by the distance from the initial weights over the root of the summed squared gradients (DoG).

    Args:
        params: tensors or param groups, as for any torch optimizer.
        reps_rel: initial distance, relative to 1 + the norm of the initial weights.
        lr: factor c on the step size, best left at 1.
        weight_decay: factor on the weights in the gradient.
        eps: added to the sum of squared gradients.
        init_eta: first step size, in place of ``reps_rel``.
        averaging: γ of the average of past weights, which predicts in their place; None to predict with the weights.

    Example:
        >>> import torch
        >>> averaged_or_not([torch.ones(1)], averaging=None).step_size_report()
        {'group0': 0.0}
    """
    settings = reps_rel, lr, weight_decay, eps, init_eta
    return DoG(params, *settings) if averaging is None else AveragedDoG(params, *settings, averaging)


dog = learner_of(averaged_or_not, "scalar")
ldog = learner_of(averaged_or_not, blocks="tensor")
