"""MetaOptimize's step in one pass over memory, for networks on the CPU: the fast twin of ``MetaOptimize.step``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from continual_metaopt.engines import fused_kernels as kernels
from continual_metaopt.optim import base_updates
from continual_metaopt.optim.metaoptimize import MetaOptimize

Constants = tuple[list[float], float]  # of the rule at a step, and the divisor of its direction


@dataclass(frozen=True)
class FusedRule:
    """How a base update is computed by the kernels.

    Attributes:
        number: of the rule in the kernels.
        momentum: key of the momentum in a parameter's state, or None.
        second_moment: key of the second moment, or None.
        constants: the rule's constants and its direction's divisor, given the base update and the step, from 1.
    """

    number: int
    momentum: str | None
    second_moment: str | None
    constants: Callable[[Any, int], Constants]


def _adamw_constants(base: base_updates.AdamW, step: int) -> Constants:
    beta1, beta2 = base.betas
    scale = (1 - beta2**step) ** -0.5
    return [1 - beta1, beta2, 1 - beta2, scale, base.eps], 1 - beta1**step


def _rmsprop_constants(base: base_updates.RMSProp, step: int) -> Constants:
    return [base.beta, 1 - base.beta, (1 - base.beta**step) ** -0.5, base.eps], 1.0


def _released_scale(decay: float, step: int) -> float:
    return (1 - decay) / (1 - decay**step)


RULES: dict[type, FusedRule] = {
    base_updates.SGD: FusedRule(kernels.SGD, None, None, lambda base, step: ([], 1.0)),
    base_updates.SGDm: FusedRule(kernels.SGDM, "momentum_buffer", None, lambda base, step: ([base.momentum], 1.0)),
    base_updates.RMSProp: FusedRule(kernels.RMSPROP, None, "exp_avg_sq", _rmsprop_constants),
    base_updates.AdamW: FusedRule(kernels.ADAMW, "exp_avg", "exp_avg_sq", _adamw_constants),
    base_updates.Lion: FusedRule(
        kernels.LION,
        "exp_avg",
        None,
        lambda base, step: ([base.betas[0], 1 - base.betas[0], base.betas[1], 1 - base.betas[1]], 1.0),
    ),
    base_updates.SGDmReleased: FusedRule(
        kernels.SGDM_RELEASED, "momentum_buffer", None, lambda base, step: ([base.momentum, 1 - base.momentum], 1.0)
    ),
    base_updates.RMSPropReleased: FusedRule(
        kernels.RMSPROP_RELEASED,
        None,
        "exp_avg_sq",
        lambda base, step: ([base.normalizer, _released_scale(base.normalizer, step), base.eps], 1.0),
    ),
    base_updates.AdamWReleased: FusedRule(
        kernels.ADAMW_RELEASED,
        "exp_avg",
        "exp_avg_sq",
        lambda base, step: ([base.momentum, base.normalizer, _released_scale(base.normalizer, step), base.eps], 1.0),
    ),
}


def why_not_fused(optimizer: Optimizer) -> str | None:
    """What keeps an optimizer's step from being fused; None if nothing does."""
    if type(optimizer) is not MetaOptimize:
        return "the optimizer is not MetaOptimize"
    if type(optimizer.base) not in RULES:
        return f"there is no kernel for {type(optimizer.base).__name__}"
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.device.type != "cpu" or param.dtype not in (torch.float32, torch.float64):
                return f"a parameter is {param.dtype} on {param.device.type}"
            if not param.is_contiguous():
                return "a parameter is not contiguous"
    return None


class FusedUpdate:
    """Does what ``optimizer.step()`` does, on the same state, in one pass over memory.

    Sums are rounded in another order than by the plain step, so results agree to rounding errors only. As weights move
    in the same pass that computes the meta gradients, they have moved when a meta gradient turns out not to be finite.

    Args:
        optimizer: one that ``why_not_fused`` has no objection to.
    """

    def __init__(self, optimizer: MetaOptimize) -> None:
        self.optimizer = optimizer
        self.rule = RULES[type(optimizer.base)]
        self._arrays: dict[Tensor, _Arrays] = {}

    def __call__(self) -> None:
        """Make one update from the gradients in ``p.grad``.

        Raises:
            NonFiniteMetaGradient: a meta gradient is NaN or infinite.
        """
        optimizer = self.optimizer
        for block in optimizer.blocks():
            step_size = optimizer.current_step_size(block)
            meta_gradient: float | None = None
            for group in block:
                for param in group["params"]:
                    if param.grad is not None:
                        meta_gradient = (meta_gradient or 0.0) + self._update(group, param, step_size)
            if meta_gradient is not None and block[0]["meta_lr"] > 0:
                optimizer.check_meta_gradient(block, meta_gradient)
                optimizer.update_step_size(block, meta_gradient)

    def _update(self, group: dict[str, Any], param: Tensor, step_size: float) -> float:
        state = self.optimizer.prepared_state(group, param)
        arrays = self._arrays.get(param)
        if arrays is None or not arrays.belong_to(param, state):
            held = {member for group in self.optimizer.param_groups for member in group["params"]}
            self._arrays = {known: views for known, views in self._arrays.items() if known in held}
            arrays = self._arrays[param] = _Arrays(param, state, self.rule)
        if "step" in state:
            state["step"] += 1
        constants, divisor = self.rule.constants(self.optimizer.base, state.get("step", 0))
        number = arrays.weights.dtype.type
        arrays.constants[: len(constants)] = constants
        decay = step_size * group["weight_decay"]
        assert param.grad is not None
        return float(
            kernels.update(
                self.rule.number,
                arrays.weights,
                param.grad.reshape(-1).numpy(),
                arrays.momentum,
                arrays.second_moment,
                arrays.trace,
                arrays.room,
                arrays.lanes,
                arrays.constants,
                number(step_size / divisor),
                number(decay),
                number(group["gamma"] * (1 - decay)),
            )
        )


class _Arrays:
    """NumPy views of a parameter and its state, which share their memory."""

    def __init__(self, param: Tensor, state: dict[str, Any], rule: FusedRule) -> None:
        self._address = param.data_ptr()
        self._keys = [rule.momentum or "", rule.second_moment or "", "trace"]
        self._state = [state.get(key) for key in self._keys]
        self.weights = param.detach().reshape(-1).numpy()
        empty = np.empty(0, self.weights.dtype)
        self.momentum, self.second_moment, self.trace = (
            empty if tensor is None else tensor.reshape(-1).numpy() for tensor in self._state
        )
        self.room = np.empty(kernels.PIECE, self.weights.dtype)
        self.lanes = np.empty(kernels.LANES, self.weights.dtype)
        self.constants = np.zeros(5, self.weights.dtype)

    def belong_to(self, param: Tensor, state: dict[str, Any]) -> bool:
        """Whether the parameter and its state still are the tensors that these arrays are views of."""
        return self._address == param.data_ptr() and all(
            state.get(key) is tensor for key, tensor in zip(self._keys, self._state, strict=True)
        )
