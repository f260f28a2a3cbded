"""MetaOptimize's step in one pass over memory, for networks on the CPU: the fast twin of ``MetaOptimize.step``."""

from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.engines.compiled.learner import room_for_update
from continual_metaopt.engines.compiled.rules import BASE_RULES, kernel_rules, parameter_settings, why_no_kernels
from continual_metaopt.engines.wrapped import tell_schedulers
from continual_metaopt.optim.controls.replayed_step_sizes import ReplayedStepSizes
from continual_metaopt.optim.metaoptimize import LONG_TRACE, MetaOptimize

Group = dict[str, Any]


def why_not_fused(optimizer: Optimizer) -> str | None:
    """What keeps an optimizer's step from being fused; None if nothing does."""
    objection = why_no_kernels(optimizer)
    if objection is None and not all(p.is_contiguous() for group in optimizer.param_groups for p in group["params"]):
        objection = "a parameter is not contiguous"
    return objection


class FusedUpdate:
    """Does what ``optimizer.step()`` does, on the same state, in one compiled pass over memory.

    Parameters, gradients and state stay where they are. Sums are rounded in another order than by the plain step, so
    results agree to rounding errors only. As weights move in the same pass that computes the meta gradients, they have
    moved when a meta gradient turns out not to be finite.

    Args:
        optimizer: one that ``why_not_fused`` has no objection to.
    """

    def __init__(self, optimizer: MetaOptimize) -> None:
        self.optimizer = optimizer
        self._rule = BASE_RULES[type(optimizer.base)]
        self._rules = kernel_rules(optimizer)
        dtype = next(param.dtype for group in optimizer.param_groups for param in group["params"])
        self._room = room_for_update(str(dtype).removeprefix("torch."))

    def __call__(self) -> None:
        """Make one update from the gradients in ``p.grad``.

        Raises:
            NonFiniteMetaGradient: a meta gradient is NaN or infinite.
        """
        optimizer, blocks = self.optimizer, self.optimizer.blocks()
        optimizer.begin_step()
        self._update(
            blocks,
            [
                (index, group, param)
                for index, block in enumerate(blocks)
                for group in block
                for param in group["params"]
                if param.grad is not None
            ],
        )
        if isinstance(optimizer, ReplayedStepSizes):
            optimizer.go_to(optimizer.n_done + 1)
        tell_schedulers(optimizer)

    def compile(self) -> None:
        """Compile what an update calls, so that it does not count as learning."""
        self._update([], [])

    def _update(self, blocks: list[list[Group]], members: list[tuple[int, Group, Tensor]]) -> None:
        """Update parameters, given with the numbers of their blocks and with their groups."""
        optimizer, step_sizes = self.optimizer, [self.optimizer.current_step_size(block) for block in blocks]
        gradients = [
            cast(Tensor, param.grad).contiguous() for _, _, param in members
        ]  # kept until the kernel has read them
        rows = [self._row(group, param, grad) for (_, group, param), grad in zip(members, gradients, strict=True)]
        addresses = np.array([row for row, _ in rows], np.int64).reshape(-1, k.N_ADDRESS_COLUMNS)
        meta_gradients = np.empty((len(members), 2))
        k.update_in_place(
            self._rules.base,
            self._rules.base_settings,
            addresses,
            np.array([parameter_settings(group) for _, group, _ in members], np.float64).reshape(-1, k.N_SETTINGS),
            np.array([step for _, step in rows], np.float64),
            np.array([step_sizes[index] for index, _, _ in members], np.float64),
            self._room,
            meta_gradients,
        )
        if not members:
            return
        sums: dict[int, tuple[float, float]] = {}
        for (index, _, _), parts in zip(members, meta_gradients.tolist(), strict=True):
            short, long = sums.get(index, (0.0, 0.0))
            sums[index] = short + parts[0], long + parts[1]
        changes = optimizer.update_step_sizes(blocks, sums)
        if self._rules.revises:
            by_member = [changes.get(index, 0.0) if group["meta_lr"] > 0 else 0.0 for index, group, _ in members]
            k.revise_in_place(addresses, np.array(by_member, np.float64), self._room)

    def _row(self, group: Group, param: Tensor, grad: Tensor) -> tuple[list[int], int]:
        """Where a parameter and what belongs to it are in memory, and the number of this update."""
        state = self.optimizer.prepared_state(group, param)
        if "step" in state:
            state["step"] += 1
        addresses = [param.data_ptr(), grad.data_ptr()]
        for key in (self._rule.momentum or "", self._rule.second_moment or "", "trace", LONG_TRACE):
            tensor = state.get(key)
            if tensor is not None and not tensor.is_contiguous():  # a state that was loaded
                tensor = state[key] = tensor.contiguous()
            addresses.append(0 if tensor is None else tensor.data_ptr())
        return [*addresses, param.numel()], state.get("step", 0)
