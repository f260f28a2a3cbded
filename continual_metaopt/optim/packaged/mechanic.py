"""Mechanic of the package mechanic-pytorch, around optimizers of torch."""

from collections.abc import Callable
from typing import Any, Literal

import mechanic_pytorch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.optim.blocks import blocks
from continual_metaopt.optim.registry import LearnerSpec

LEARNER = LearnerSpec(
    "mechanic",
    "Mechanic around AdamW or SGD (mechanic-pytorch)",
    family="no step size to choose",
    space={"lr": (1e-3, 1e1, "log"), "s_init": (1e-10, 1e-4, "log")},
    paper='Cutkosky, Defazio and Mehta (2023), "Mechanic: a learning rate tuner"',
)

BASES = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def mechanic(
    model: nn.Module,
    *,
    base: Literal["adamw", "sgd"] = "adamw",
    lr: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float | None = None,
    s_decay: float = 0.01,
    betas: tuple[float, ...] = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999),
    s_init: float = 1e-8,
    eps: float = 1e-8,
    store_delta: bool = False,
) -> Optimizer:
    """Learn one factor on all updates of another optimizer.

    Known of the original: its state refers to tensors by themselves, so that it is lost when saved, and closures are
    called without gradients, both of which are mended here; a network whose head grows is not followed.

    Args:
        model: the network.
        base: the other optimizer.
        lr: its step size, which does not matter much.
        momentum: of SGD.
        weight_decay: of the other optimizer; torch's default for that if not given.
        s_decay: λ, which pulls the factor down as weight decay does.
        betas: discounts of the learners of the factor, which is the sum of what they learn.
        s_init: scale of the first factor.
        eps: added to denominators.
        store_delta: whether the sum of updates is stored, rather than computed from the weights.

    Example:
        >>> mechanic(nn.Linear(2, 1)).param_groups[0]["lr"]
        1.0
    """
    wrapped: Any = mechanic_pytorch.mechanize(
        BASES[base], s_decay=s_decay, betas=betas, s_init=s_init, eps=eps, store_delta=store_delta
    )

    class Mechanic(wrapped):
        """Tells its step size, can be saved, and has gradients enabled for closures."""

        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            with torch.no_grad():  # and as it was afterwards, also if the step fails
                super().step()
            return loss

        def step_size_report(self) -> dict[str, float]:
            """Give the learned factor Σs on the other optimizer's step size, times that; 0 before the first step."""
            state = self.state.get("_mechanic")
            factor = 0.0 if state is None else max(float(state["s"].sum()), 0.0)
            return {group["name"]: factor * float(group["lr"]) for group in self.param_groups}

        def state_dict(self) -> dict[str, Any]:
            saved: dict[str, Any] = super().state_dict()
            if "_mechanic" in saved["state"]:
                numbers = {id(p): number for number, p in enumerate(_parameters(self))}
                saved["state"]["_mechanic"] = {
                    numbers[id(key)] if isinstance(key, Tensor) else key: value
                    for key, value in saved["state"]["_mechanic"].items()
                }
            return saved

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            if "_mechanic" in self.state:
                parameters = _parameters(self)
                self.state["_mechanic"] = {
                    parameters[key] if isinstance(key, int) else key: value
                    for key, value in self.state["_mechanic"].items()
                }

    options = {"momentum": momentum} if base == "sgd" else {}
    if weight_decay is not None:
        options["weight_decay"] = weight_decay
    optimizer: Optimizer = Mechanic(blocks(model, "scalar"), lr=lr, **options)
    return optimizer


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
