"""An optimizer's state and settings, as the compiled engine has them in arrays: read before learning, written after."""

import math
from collections.abc import MutableMapping
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike
from torch import Tensor
from torch.optim import Optimizer

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.engines.compiled.by_pass import ByPass, by_pass_or_why_not
from continual_metaopt.engines.compiled.learner import CompiledLearner, aligned_zeros
from continual_metaopt.engines.compiled.rules import BASE_RULES, kernel_rules, parameter_settings
from continual_metaopt.optim.base import number_of
from continual_metaopt.optim.controls.replayed_step_sizes import ReplayedStepSizes
from continual_metaopt.optim.metaoptimize import LONG_TRACE, MetaOptimize
from continual_metaopt.optim.two_horizons import AUTO

META_STATE = {"step": k.META_STEP, "exp_avg": k.META_MEAN, "exp_avg_sq": k.META_SQUARE}  # and its columns
TYPICAL_SIZES = {"step": k.HORIZON_STEP, "short_size": k.SHORT_SIZE, "long_size": k.LONG_SIZE}  # likewise

Group = dict[str, Any]


class MetaOptimizeState:
    """That of MetaOptimize, whose update the kernels make together with the backward pass.

    Attributes:
        fields: names of the arrays of ``kernels.Learned`` that are a parameter's state, with their keys there.
    """

    def __init__(self, optimizer: MetaOptimize) -> None:
        self.optimizer, self.rules = optimizer, kernel_rules(optimizer)
        rule = BASE_RULES[type(optimizer.base)]
        fields = {"momentum": rule.momentum, "second_moment": rule.second_moment, "trace": "trace"}
        self.fields = {field: key for field, key in fields.items() if key is not None} | {"long_trace": LONG_TRACE}

    def arrays(self, n: int, dtype: DTypeLike, n_blocks: int) -> dict[str, Any]:
        """Make the arrays of ``kernels.Learned`` for n weights."""
        sizes = {field: n * (field in self.fields) for field in ("momentum", "second_moment", "trace")}
        arrays = {field: np.zeros(size, dtype) for field, size in sizes.items()}
        nothing = {name: np.zeros(0, dtype) for name in ("long_trace", "kept")}  # until there are two horizons
        return arrays | nothing | {"numbers": np.zeros((n_blocks, 0))}

    def blocks(self) -> list[list[Group]]:
        """Give the param groups of each block."""
        return self.optimizer.blocks()

    def begin(self, learner: CompiledLearner) -> None:
        """Make room for what the optimizer's settings ask for now."""
        learned = learner.learned
        if len(learned.long_trace) == 0 and any(group["gamma"] == AUTO for group in self.optimizer.param_groups):
            learner.learned = learned._replace(long_trace=aligned_zeros(len(learned.trace), learner.dtype))

    def load_block(self, learner: CompiledLearner, index: int, block: list[Group]) -> None:
        """Copy what a block has learned to its row."""
        row, first = learner.learned.blocks[index], block[0]
        row[k.STEP_SIZE] = self.optimizer.current_step_size(block)
        row[k.META_LR] = first["meta_lr"]
        row[k.LOWEST], row[k.HIGHEST] = first["lr_bounds"]
        row[k.MAX_CHANGE] = math.inf if first["max_meta_change"] is None else first["max_meta_change"]
        row[k.REFERENCE], row[k.LOG_RATIO] = first["learned"]["reference"], first["learned"]["log_ratio"]
        row[k.META_GRADIENT] = first["learned"]["meta_gradient"]
        for kept, columns in (("meta_state", META_STATE), ("typical_sizes", TYPICAL_SIZES)):
            for name, column in columns.items():
                row[column] = first["learned"][kept][name]
        row[k.HAS_TWO_HORIZONS] = first["gamma"] == AUTO
        row[k.N_REPLAYED] = first.get("n_done", 0)

    def settings(self, group: Group, param: Tensor) -> tuple[float, ...]:
        """Give the settings of a parameter of a group."""
        return parameter_settings(group)

    def of(self, group: Group, param: Tensor) -> MutableMapping[str, Any]:
        """Give the state of a parameter, prepared for its first update."""
        return self.optimizer.prepared_state(group, param)

    def store_block(self, learner: CompiledLearner, index: int, block: list[Group]) -> None:
        """Copy a block's row to what it has learned."""
        row = learner.learned.blocks[index].tolist()
        if block[0]["meta_lr"] > 0:
            kept = {"log_ratio": row[k.LOG_RATIO], "meta_gradient": row[k.META_GRADIENT]}
            kept["meta_state"] = {name: row[column] for name, column in META_STATE.items()}
            kept["typical_sizes"] = {name: row[column] for name, column in TYPICAL_SIZES.items()}
            self.optimizer.take_step_size(block, row[k.STEP_SIZE], kept)

    def end(self, learned: k.Learned) -> None:
        """Let a replay know how far it is."""
        if isinstance(self.optimizer, ReplayedStepSizes):
            self.optimizer.go_to(int(learned.blocks[0, k.N_REPLAYED]))


class PassState:
    """That of an optimizer whose update is a compiled pass (``ByPass``); each param group is a block."""

    fields: dict[str, str] = {}  # noqa: RUF012  # of its own it has none
    rules = k.Rules(k.BY_PASS, np.zeros(0), k.META_SGD, np.zeros(3), False)

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.by_pass = optimizer, cast(ByPass, by_pass_or_why_not(optimizer)[0])

    def arrays(self, n: int, dtype: DTypeLike, n_blocks: int) -> dict[str, Any]:
        """Make the arrays of ``kernels.Learned`` for n weights."""
        nothing = {name: np.zeros(0, dtype) for name in ("momentum", "second_moment", "trace", "long_trace")}
        kept = np.zeros(n * len(self.by_pass.of.keeps), dtype)
        return nothing | {"kept": kept, "numbers": np.zeros((n_blocks, len(self.by_pass.of.numbers)))}

    def blocks(self) -> list[list[Group]]:
        """Give the param groups of each block."""
        return [[group] for group in self.optimizer.param_groups]

    def begin(self, learner: CompiledLearner) -> None:
        """Prepare the groups."""
        for group in self.optimizer.param_groups:
            self.by_pass.begin(group)

    def load_block(self, learner: CompiledLearner, index: int, block: list[Group]) -> None:
        """Copy a group's numbers to its row."""
        numbers = self.by_pass.numbers(block[0])
        learner.learned.numbers[index] = [numbers[name] for name in self.by_pass.of.numbers]

    def settings(self, group: Group, param: Tensor) -> tuple[float, ...]:
        """Give a parameter's number, which is all that the pass needs to know."""
        return (float(number_of(self.optimizer, param)), *(0.0,) * (k.N_SETTINGS - 1))

    def of(self, group: Group, param: Tensor) -> MutableMapping[str, Any]:
        """Give the state of a parameter, prepared for its first update."""
        return self.by_pass.kept(group, param)

    def store_block(self, learner: CompiledLearner, index: int, block: list[Group]) -> None:
        """Copy the numbers that the pass has changed to the group, and bring it up to date."""
        of, row = self.by_pass.of, learner.learned.numbers[index].tolist()
        block[0].update({name: row[of.numbers.index(name)] for name in of.decides})
        self.by_pass.end(block[0])

    def end(self, learned: k.Learned) -> None:
        """Nothing is left to do."""
