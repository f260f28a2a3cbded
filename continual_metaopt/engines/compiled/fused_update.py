"""An optimizer's step in one or two compiled passes over memory, for any network on the CPU: ``step``'s fast twin."""

from collections.abc import Callable, MutableMapping
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.engines.compiled import passes
from continual_metaopt.engines.compiled.by_pass import ByPass, by_pass_or_why_not
from continual_metaopt.engines.compiled.learner import room_for_update
from continual_metaopt.engines.compiled.rules import BASE_RULES, kernel_rules, parameter_settings, why_no_kernels
from continual_metaopt.engines.wrapped import tell_schedulers
from continual_metaopt.optim.base import OnBase
from continual_metaopt.optim.controls.replayed_step_sizes import ReplayedStepSizes
from continual_metaopt.optim.elementwise import Elementwise
from continual_metaopt.optim.metaoptimize import LONG_TRACE, MetaOptimize

Group = dict[str, Any]


def fused_update_of(optimizer: Optimizer) -> "FusedUpdate | FusedPass | None":
    """Make the fused update of an optimizer; None where it has none, or, as one of PyTorch's, is exact by itself."""
    if not all(param.is_contiguous() for group in optimizer.param_groups for param in group["params"]):
        return None
    if isinstance(optimizer, MetaOptimize):
        return FusedUpdate(optimizer) if why_no_kernels(optimizer) is None else None
    elementwise = getattr(type(optimizer), "_update", None) in (Elementwise._update, OnBase._update)
    by_pass = by_pass_or_why_not(optimizer)[0] if elementwise else None
    if by_pass is None or "noise" in by_pass.of.text:  # which is drawn in the order of the kernels' weights
        return None
    return FusedPass(optimizer, by_pass)


class FusedUpdate:
    """Does what ``optimizer.step()`` does, on the same state, in one compiled pass over memory.

    Parameters, gradients and state stay where they are. Sums are rounded in another order than by the plain step, so
    results agree to rounding errors only. As weights move in the same pass that computes the meta gradients, they have
    moved when a meta gradient turns out not to be finite.

    Args:
        optimizer: one that ``why_no_kernels`` has no objection to.
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
            addresses.append(_address(state, key) if key in state else 0)
        return [*addresses, param.numel()], state.get("step", 0)


class FusedPass:
    """Does what ``optimizer.step()`` does, on the same state, by the optimizer's compiled pass.

    Args:
        by_pass: its pass, which draws no noise.
    """

    def __init__(self, optimizer: Optimizer, by_pass: ByPass) -> None:
        self.optimizer, self._by_pass = optimizer, by_pass

    def __call__(self, closure: Callable[[], Any] | None = None) -> None:
        """Make one update from the gradients in ``p.grad``; ``closure`` gives the loss to optimizers that want it."""
        self._update(
            [
                (index, group, param)
                for index, group in enumerate(self.optimizer.param_groups)
                for param in group["params"]
                if param.grad is not None
            ],
            0.0 if closure is None else float(closure()),
        )
        tell_schedulers(self.optimizer)

    def compile(self) -> None:
        """Compile what an update calls, so that it does not count as learning."""
        self._update([], 0.0)

    def _update(self, members: list[tuple[int, Group, Tensor]], loss: float) -> None:
        groups, by_pass, of = self.optimizer.param_groups, self._by_pass, self._by_pass.of
        dtype = np.dtype(str(groups[0]["params"][0].dtype).removeprefix("torch."))
        for group in groups:
            by_pass.begin(group)
        numbers = np.array([[by_pass.numbers(group)[name] for name in of.numbers] for group in groups])
        gradients = [cast(Tensor, param.grad).contiguous() for _, _, param in members]  # kept until they are read
        kept = [by_pass.kept(group, param) for _, group, param in members]
        places = np.zeros((len(members), passes.KEPT + len(of.keeps)), np.int64)
        for row, (index, _, param), grad, state in zip(places, members, gradients, kept, strict=True):
            addresses = (param.data_ptr(), grad.data_ptr(), *(_address(state, name) for name in of.keeps))
            row[[passes.SIZE, passes.GROUP]] = param.numel(), index
            row[passes.WEIGHTS :] = addresses
        steps = np.array([float(state.get("step", 0)) for state in kept])
        blocks = np.zeros((len(groups), k.N_BLOCK_COLUMNS))
        tables = passes.Tables(of, dtype, places, steps, numbers, blocks)
        passes.run_pass(passes.address_of(of, dtype), tables.address, k.UPDATE, loss)
        for state, step in zip(kept, steps.tolist(), strict=True):
            passes.set_step(state, step)
        for group, row in zip(groups, numbers.tolist(), strict=True) if members else ():
            group.update({name: row[of.numbers.index(name)] for name in of.decides})
            by_pass.end(group)


def _address(state: MutableMapping[str, Any], name: str) -> int:
    """Where a part of a parameter's state lies in memory, contiguously from now on."""
    if not state[name].is_contiguous():  # a state that was loaded
        state[name] = state[name].contiguous()
    return int(state[name].data_ptr())
