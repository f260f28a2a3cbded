"""DoG and LDoG of the package dog-optimizer, with the iterate averaging that belongs to them."""

from collections.abc import Callable
from typing import Any

import dog as package
import torch
from torch import nn
from torch.optim import Optimizer

from continual_metaopt.optim.blocks import Granularity, blocks
from continual_metaopt.optim.registry import DECAY_IN_GRADIENT, LearnerSpec

DOG = LearnerSpec(
    "dog",
    "DoG with iterate averaging (dog-optimizer)",
    family="no step size to choose",
    space={"reps_rel": (1e-6, 1e-2, "log"), "weight_decay": DECAY_IN_GRADIENT},
    paper='Ivgi, Hinder and Carmon (2023), "DoG is SGD\'s best friend: a parameter-free dynamic step size schedule"',
)

LDOG = LearnerSpec(
    "ldog",
    "LDoG, DoG for each tensor (dog-optimizer)",
    family="no step size to choose",
    space={"reps_rel": (1e-6, 1e-2, "log"), "weight_decay": DECAY_IN_GRADIENT},
    paper='Ivgi, Hinder and Carmon (2023), "DoG is SGD\'s best friend: a parameter-free dynamic step size schedule"',
)


class DoG(package.DoG):
    """DoG that tells its step sizes and can be copied.

    Known of the original: the sum of squared gradients below the step size is never forgotten, so that a step size
    cannot recover after a change; every parameter must have a gradient; a parameter that is replaced by a larger one
    does not fit its record of initial weights; weight decay is added to ``p.grad`` in place.
    """

    def step_size_report(self) -> dict[str, float]:
        """Give η of each param group at the latest step, and 0 before the first."""
        return {
            group.get("name", f"group{index}"): float(group["eta"][0]) if "eta" in group else 0.0
            for index, group in enumerate(self.param_groups)
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_first_step": self._first_step}


class LDoG(DoG, package.LDoG):
    """LDoG, likewise; a step size for each param group where a group holds one parameter."""


class Averaging(Optimizer):
    """Add polynomial-decay averaging to an optimizer, as the package's ``PolynomialDecayAverager``.

    x̄ₜ = (1 − (1 + γ)/(t + γ)) x̄ₜ₋₁ + (1 + γ)/(t + γ) xₜ (Shamir and Zhang, 2013). ``eval()`` puts x̄ into the
    parameters and ``train()`` the weights x, at which gradients are to be taken. Unlike the package's averager, which
    averages a copy of the network, this one does not average buffers, and is part of the optimizer's state.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make an update at the weights x, and average them.

        Raises:
            RuntimeError: the parameters hold the average.
        """
        if any(group.get("shows_average") for group in self.param_groups):
            raise RuntimeError("the parameters hold averaged weights; call train() before taking gradients and step()")
        loss = super().step(closure)
        for group in self.param_groups:
            group["n_averaged"] = n = group.get("n_averaged", 0) + 1
            weight = (group["averaging"] + 1) / (group["averaging"] + n)
            for p in group["params"]:
                state = self.state[p]
                if "other_weights" not in state:
                    state["other_weights"] = p.clone(memory_format=torch.preserve_format)
                state["other_weights"].mul_(1 - weight).add_(p, alpha=weight)
        return loss

    def eval(self) -> None:
        """Let the parameters hold the average x̄."""
        self._show_average(True)

    def train(self) -> None:
        """Let the parameters hold the weights x."""
        self._show_average(False)

    @torch.no_grad()
    def _show_average(self, shows: bool) -> None:
        for group in self.param_groups:
            if group.get("shows_average", False) == shows:
                continue
            group["shows_average"] = shows
            for p in group["params"]:
                if "other_weights" in self.state[p]:
                    shown = p.clone()
                    p.copy_(self.state[p]["other_weights"])
                    self.state[p]["other_weights"].copy_(shown)


class AveragedDoG(Averaging, DoG):
    """DoG with iterate averaging."""


class AveragedLDoG(Averaging, LDoG):
    """LDoG with iterate averaging."""


def dog(
    model: nn.Module,
    *,
    reps_rel: float = 1e-6,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    init_eta: float | None = None,
    averaging: float | None = 8.0,
    step_sizes: Granularity | list[list[str]] = "scalar",
) -> DoG:
    """Step by the distance from the initial weights over the root of the summed squared gradients (DoG).

    Args:
        model: the network.
        reps_rel: initial distance, relative to 1 + the norm of the initial weights.
        lr: factor c on the step size, best left at 1.
        weight_decay: factor on the weights in the gradient.
        eps: added to the sum of squared gradients.
        init_eta: first step size, in place of ``reps_rel``.
        averaging: γ of the average of past weights, which predicts in their place; None to predict with the weights.
        step_sizes: which parameters share a step size: "scalar", "blockwise", "layerwise", or lists of name prefixes.

    Example:
        >>> dog(nn.Linear(2, 1)).step_size_report()
        {'all': 0.0}
    """
    return _make((DoG, AveragedDoG), blocks(model, step_sizes), averaging, reps_rel, lr, weight_decay, eps, init_eta)


def ldog(
    model: nn.Module,
    *,
    reps_rel: float = 1e-6,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    init_eta: float | None = None,
    averaging: float | None = 8.0,
) -> DoG:
    """Step as DoG, with a step size for each weight matrix and bias vector (LDoG).

    Args:
        model: the network.
        reps_rel: initial distance, relative to 1 + the norm of the initial weights.
        lr: factor c on the step size, best left at 1.
        weight_decay: factor on the weights in the gradient.
        eps: added to the sum of squared gradients.
        init_eta: first step size, in place of ``reps_rel``.
        averaging: γ of the average of past weights, which predicts in their place; None to predict with the weights.

    Example:
        >>> ldog(nn.Linear(2, 1)).step_size_report()
        {'weight': 0.0, 'bias': 0.0}
    """
    return _make((LDoG, AveragedLDoG), blocks(model, "tensor"), averaging, reps_rel, lr, weight_decay, eps, init_eta)


def _make(kinds: tuple[Any, Any], groups: list[dict[str, Any]], averaging: float | None, *settings: Any) -> DoG:
    if averaging is not None:
        for group in groups:
            group["averaging"] = averaging
    optimizer: DoG = kinds[averaging is not None](groups, *settings)
    return optimizer
