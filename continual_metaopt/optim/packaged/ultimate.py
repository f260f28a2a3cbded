"""Hyperoptimizers of the package gradient-descent-the-ultimate-optimizer, as optimizers of torch."""

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from gradient_descent_the_ultimate_optimizer import gdtuo as package
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.registry import LearnerSpec

LEARNER = LearnerSpec(
    "gdtuo",
    "hyperparameters by automatic gradients (gradient-descent-the-ultimate-optimizer)",
    family="learned step sizes",
    space={"lr": (1e-5, 1e-2, "log"), "meta_lr": (1e-10, 1e-5, "log")},
    paper='Chandra, Xie, Ragan-Kelley and Meijer (2022), "Gradient descent: the ultimate optimizer"',
)

Hyperoptimizable = Literal["sgd", "adagrad", "rmsprop", "rmsprop_alpha", "adam", "adam_baydin"]

KINDS = {
    "sgd": package.SGD,
    "adagrad": package.AdaGrad,
    "rmsprop": package.RMSProp,
    "rmsprop_alpha": package.RMSPropAlpha,
    "adam": package.Adam,
    "adam_baydin": package.AdamBaydin,
}


class Ultimate(Optimizer):
    """Drive a stack of the package's optimizers, each of which learns the hyperparameters of the one below.

    The package replaces a network's parameters by results of computations that depend on the hyperparameters, and lets
    autograd go through both in one. Here the parameters stay what they are, and the gradients that they were given are
    handed on to the results kept from the previous step, which is the same chain rule.

    Known of the original: the hypergradient is that of the next loss alone, and the step size itself is stepped, so
    that it can become negative. With single samples, the step size of hyperparameters in the package's README, 1e-5 for
    batches of 256, moves a step size of 1e-3 by more than itself within ten samples. Autograd's graphs can be neither
    saved nor copied, so that the first hypergradient after a checkpoint, or of a copy, is 0, as at the beginning. A
    network whose head grows is not followed.

    Args:
        groups: named param groups.
        stack: the package's optimizer of the parameters, with that of its hyperparameters inside.
    """

    def __init__(self, groups: list[dict[str, Any]], stack: Any) -> None:
        super().__init__(groups, {})
        self.stack = stack
        self.results: dict[str, Tensor] = {}  # of the previous step, with their graph

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the hyperparameters by the gradients that they get from the parameters', and then the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = {name: p for name, p in self._named().items() if p.grad is not None}
        with torch.enable_grad():
            self.stack.begin()
            self.stack.zero_grad()
            known = [name for name in parameters if name in self.results]
            if known:
                torch.autograd.backward(
                    [self.results[name] for name in known], [parameters[name].grad for name in known]
                )
            self.results = {name: _apart(p) for name, p in parameters.items()}
            self.stack.step(self.results)
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(self.results[name])
        return loss

    def step_size_report(self) -> dict[str, float]:
        """Give the step size α that is learned."""
        alpha = float(self.stack.parameters["alpha"].detach())
        squared = isinstance(self.stack, package.RMSProp | package.RMSPropAlpha)  # these learn its root
        return {group["name"]: alpha**2 if squared else alpha for group in self.param_groups}

    def state_dict(self) -> dict[str, Any]:
        """Give the hyperparameters and the running means, without the graph that led to them."""
        return {**super().state_dict(), "stack": _values(self.stack)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from saved hyperparameters and running means."""
        stack = state_dict["stack"]
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "stack"})
        _set_values(self.stack, stack)
        self.results = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "stack": _without_graph(self.stack), "results": {}}

    def _named(self) -> dict[str, Tensor]:
        parameters = [p for group in self.param_groups for p in group["params"]]
        return {str(number): p for number, p in enumerate(parameters)}


def gdtuo(
    model: nn.Module,
    *,
    base: Hyperoptimizable = "adam",
    lr: float = 1e-3,
    meta: Hyperoptimizable = "sgd",
    meta_lr: float = 1e-5,
) -> Ultimate:
    """Learn the step size and the other hyperparameters of an optimizer by an optimizer, through automatic gradients.

    Args:
        model: the network.
        base: optimizer of the parameters. "adam" and "rmsprop" also have their discounts learned, "adam_baydin" and
            "rmsprop_alpha" do not.
        lr: its initial step size α.
        meta: optimizer of its hyperparameters.
        meta_lr: that one's step size.

    Example:
        >>> round(gdtuo(nn.Linear(2, 1)).step_size_report()["all"], 6)
        0.001
    """
    return Ultimate(blocks(model, "scalar"), KINDS[base](alpha=lr, optimizer=KINDS[meta](alpha=meta_lr)))


def _apart(p: Tensor) -> Tensor:
    """A parameter with a gradient of its own memory, which others may overwrite before the graph is used."""
    assert p.grad is not None
    apart = p.detach().requires_grad_()
    apart.grad = p.grad.detach().clone()
    return apart


def _without_graph(stack: Any) -> Any:
    """A copy of a stack that has learned the same."""
    twin = copy.copy(stack)
    if not isinstance(stack, package.NoOpOptimizer):
        twin.optimizer = _without_graph(stack.optimizer)
        _set_values(twin, _values(stack))
    return twin


def _values(stack: Any) -> dict[str, Any]:
    """Everything that a stack has learned, as tensors without graph."""
    if isinstance(stack, package.NoOpOptimizer):
        return {}
    return {
        "parameters": {name: value.detach().clone() for name, value in stack.parameters.items()},
        "n_steps": getattr(stack, "num_stepments", 0),
        "means": {
            name: {key: value.detach().clone() for key, value in entry.items()}
            for name, entry in getattr(stack, "cache", {}).items()
        },
        "momenta": {name: value.detach().clone() for name, value in getattr(stack, "state", {}).items()},
        "optimizer": _values(stack.optimizer),
    }


def _set_values(stack: Any, values: dict[str, Any]) -> None:
    if isinstance(stack, package.NoOpOptimizer):
        return
    stack.parameters, stack.all_params_with_gradients = dict(values["parameters"]), []
    if hasattr(stack, "num_stepments"):
        stack.num_stepments = values["n_steps"]
    if hasattr(stack, "cache"):
        stack.cache = values["means"]
    if hasattr(stack, "state"):
        stack.state = values["momenta"]
    _set_values(stack.optimizer, values["optimizer"])
