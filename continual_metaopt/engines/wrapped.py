"""What others have put around a step or a layer: hooks, and functions in the place of methods.

PyTorch calls them; engines that do without ``optimizer.step`` or without modules would leave them out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim import optimizer as optimizers

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_post_accumulate_grad_hooks",
)
STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
GLOBAL_STEP_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
CALLED = ("__call__", "_call_impl", "forward", "_conv_forward")  # when a layer predicts
TORCH, OURS = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])


def why_step_is_needed(optimizer: Optimizer) -> str | None:
    """What is around an optimizer's step, so that nothing else can stand in for it; None if nothing is.

    A scheduler of PyTorch's wraps the step to see that it is called. It does not count: see ``tell_schedulers``.
    """
    if any(getattr(optimizer, hooks, None) for hooks in STEP_HOOKS):
        return "the optimizer has hooks"
    if any(getattr(optimizers, hooks, None) for hooks in GLOBAL_STEP_HOOKS):
        return "there are hooks for all optimizers"
    for name in _replaced(optimizer):
        if name != "step" or not _is_of_scheduler(optimizer.step):
            return f"the optimizer's {name}() has been replaced"
    steps = [vars(kind)["step"] for kind in type(optimizer).__mro__ if "step" in vars(kind)]
    return None if all(_is_from(step, TORCH, OURS) for step in steps) else "the optimizer's step() has been replaced"


def why_not_on_the_cpu(optimizer: Optimizer) -> str | None:
    """Which parameter is not of single or double precision on the CPU, as compiled code needs it; None if all are."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.device.type != "cpu" or param.dtype not in (torch.float32, torch.float64):
                return f"a parameter is {param.dtype} on {param.device.type}"
    return None


def tell_schedulers(optimizer: Optimizer) -> None:
    """Let PyTorch's schedulers know that an update has been made in place of ``optimizer.step``."""
    if "step" in vars(optimizer):
        optimizer._opt_called = True  # type: ignore[attr-defined]


def why_modules_are_needed(*roots: Any, but_for: Any = None) -> str | None:
    """What is around layers or parameters, so that nothing else can stand in for them; None if nothing is.

    Args:
        but_for: an object whose methods may be hooks.
    """
    if nn.modules.module._has_any_global_hook():
        return "there are hooks for all networks"
    for module in (module for root in roots if isinstance(root, nn.Module) for module in root.modules()):
        kind = type(module)
        if _has_hooks(module, but_for):
            return f"{kind.__name__} has hooks"
        if any(_has_hooks(parameter) for parameter in module.parameters(recurse=False)):
            return f"a parameter of {kind.__name__} has hooks"
        for name in (*_replaced(module), *(name for name in CALLED if not _is_torchs_own(kind, name))):
            return f"{kind.__name__}'s {name}() has been replaced"
    return None


def _has_hooks(part: Any, but_for: Any = None) -> bool:
    found = (hook for hooks in HOOKS for hook in (getattr(part, hooks, None) or {}).values())
    return any(but_for is None or getattr(hook, "__self__", None) is not but_for for hook in found)


def _replaced(thing: Any) -> Iterator[str]:
    """Names of an object's attributes that stand in the place of its class's methods."""
    return (name for name in vars(thing) if callable(getattr(type(thing), name, None)))


def _is_of_scheduler(step: Any) -> bool:
    """Whether a step is a scheduler's wrapper of the optimizer's own one, with nothing else in between."""
    code = getattr(step, "__code__", None)
    return code is not None and code.co_filename == lr_scheduler.__file__ and _is_from(step, TORCH, OURS)


def _is_torchs_own(kind: type, name: str) -> bool:
    """Whether a method of a class is as PyTorch has it, or not of PyTorch's classes at all."""
    owner = next((base for base in kind.__mro__ if name in vars(base)), None)
    if owner is None or not owner.__module__.startswith("torch."):
        return True
    return _is_from(vars(owner)[name], TORCH)


def _is_from(function: Any, *folders: str) -> bool:
    """Whether a function, and what it wraps, is code from these folders."""
    while function is not None:
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if code is None or not code.co_filename.startswith(folders):
            return False
        function = getattr(function, "__wrapped__", None)
    return True
