"""An optimizer's state and settings, as the compiled engine has them in arrays: read before learning, written after."""

import math
from collections.abc import MutableMapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.optim import Optimizer

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.engines.compiled.by_pass import ByPass, by_pass_or_why_not
from continual_metaopt.engines.compiled.learner import CompiledLearner, NetworkTables, aligned_zeros
from continual_metaopt.engines.compiled.network import from_kernel_layout, to_kernel_layout
from continual_metaopt.engines.compiled.rules import BASE_RULES, kernel_rules, parameter_settings
from continual_metaopt.optim.base import number_of
from continual_metaopt.optim.controls.replayed_step_sizes import ReplayedStepSizes
from continual_metaopt.optim.metaoptimize import LONG_TRACE, MetaOptimize
from continual_metaopt.optim.peers.continual_backprop import RESTARTS, ContinualBackprop, Known, no_restarts
from continual_metaopt.optim.peers.glocal import Glocal
from continual_metaopt.optim.peers.sequential_units import HiddenUnits, hidden_units
from continual_metaopt.optim.two_horizons import AUTO

META_STATE = {"step": k.META_STEP, "exp_avg": k.META_MEAN, "exp_avg_sq": k.META_SQUARE}  # and its columns
UNIT_SETTINGS = ("replacement_rate", "maturity", "decay")  # in the order of their columns
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
        row[k.META_EVERY], row[k.META_DECAY] = first["meta_every"], first.get("meta_weight_decay", 0.0)
        row[k.META_GRADIENT] = first["learned"]["meta_gradient"]
        row[k.PENDING], row[k.N_PENDING] = (first["learned"].get(name, 0) for name in ("pending", "n_pending"))
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
            if block[0]["meta_every"] > 1:
                kept |= {"pending": row[k.PENDING], "n_pending": int(row[k.N_PENDING])}
            self.optimizer.take_step_size(block, row[k.STEP_SIZE], kept)

    def end(self, learner: CompiledLearner) -> None:
        """Let a replay know how far it is."""
        if isinstance(self.optimizer, ReplayedStepSizes):
            self.optimizer.go_to(int(learner.learned.blocks[0, k.N_REPLAYED]))


class GlocalState(MetaOptimizeState):
    """That of ``Glocal``: the kernels add up the local hypergradients of a window, of which the optimizer learns."""

    optimizer: Glocal

    def begin(self, learner: CompiledLearner) -> None:
        """Begin the collection anew, if it must be."""
        super().begin(learner)
        self.optimizer.begin_step()

    def load_block(self, learner: CompiledLearner, index: int, block: list[Group]) -> None:
        """Copy what a block has learned to its row, and the current window."""
        super().load_block(learner, index, block)
        row, collection = learner.learned.blocks[index], self.optimizer.collection()
        row[k.META_STEP] = collection["in_window"]
        place = self._place(index)
        row[k.META_MEAN] = 0.0 if place is None else collection["sums"][place]
        if not any(param.requires_grad for group in block for param in group["params"]):
            row[k.META_GRADIENT] = 0.0

    def _place(self, index: int) -> int | None:
        """The number of what a block learns."""
        learn = [block[0]["meta_lr"] > 0 for block in self.blocks()]
        return sum(learn[:index]) if learn[index] else None

    def store_block(self, learner: CompiledLearner, index: int, block: list[Group]) -> None:
        """Copy the window's sum and the last hypergradient; nothing else has changed."""
        row, place = learner.learned.blocks[index].tolist(), self._place(index)
        if place is not None:
            collection = self.optimizer.collection()
            collection["in_window"], collection["sums"][place] = int(row[k.META_STEP]), row[k.META_MEAN]
            block[0]["learned"]["meta_gradient"] = row[k.META_GRADIENT]

    def go_on(self, learner: CompiledLearner) -> None:
        """Let the optimizer learn from the window, and begin with the next one, and with new traces if it must be."""
        blocks, collection = list(enumerate(self.blocks())), self.optimizer.collection()
        for index, block in blocks:
            self.store_block(learner, index, block)
        if collection["of"]:
            self.optimizer.end_window()
            if not collection["snapshots"]:
                for number, (start, stop) in enumerate(learner.network.parameters[:, [k.START, k.STOP]].tolist()):
                    if learner.network.settings[number, k.GAMMA] > 0:
                        learner.learned.trace[start:stop] = 0
        for index, block in blocks:
            self.load_block(learner, index, block)


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

    def end(self, learner: CompiledLearner) -> None:
        """Nothing is left to do."""


class UnitsState(PassState):
    """That of ``ContinualBackprop``: the base update is a pass, and so few units are replaced that PyTorch does that.

    Args:
        parameters: of the network, in the order of the flat arrays.
        tables: of the network.
    """

    def __init__(self, optimizer: ContinualBackprop, parameters: Sequence[Tensor], tables: NetworkTables) -> None:
        super().__init__(optimizer)
        self.units_of, self.parameters, self.tables = optimizer, parameters, tables
        self._numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
        self._layers = {row[k.WEIGHT]: row for row in tables.layers}
        self._hidden: list[tuple[HiddenUnits, Group]] = []  # the layers that learn

    def begin(self, learner: CompiledLearner) -> None:
        """Prepare the groups, and copy what is known of units and restarts."""
        super().begin(learner)
        self._hidden = []
        for units in hidden_units(self.units_of.activity.model):
            group, trained = self.units_of.group_of(units), (units.before.weight, units.after.weight)
            if group is not None and all(weight.requires_grad for weight in trained):
                self._hidden.append((units, group))
        known = [self.units_of.use_of(units) for units, _ in self._hidden]
        rows = [self._row(units) for units, _ in self._hidden]
        firsts = np.cumsum([0, *(row[k.N_UNITS] for row in rows)])
        for row, first in zip(rows, firsts.tolist(), strict=False):
            row[k.FIRST_UNIT] = first
        lengths = [row[k.N_UNITS] * max(row[k.INPUTS_EACH], row[k.OUTGOING_EACH]) for row in rows]
        ages, utilities = (np.zeros(firsts[-1], learner.dtype) for _ in range(2))
        learner.units = k.Units(
            np.array(rows, np.int64).reshape(-1, 8),
            np.array([[group[name] for name in UNIT_SETTINGS] for _, group in self._hidden], np.float64).reshape(-1, 3),
            np.array([state["budget"] for state in known]),
            ages,
            utilities,
            np.zeros(max(lengths, default=0), learner.dtype),
        )
        for index, state in enumerate(known):
            for name, values in self._use(learner, index).items():
                values.copy_(state[name])
        learner.restarts = [_rows_and_columns(param) for param in self.parameters]
        for number, param in enumerate(self.parameters):
            for side, values in self.optimizer.state.get(param, {}).get(RESTARTS, {}).items():
                self._restarts(learner, number)[side].copy_(values)

    def _row(self, units: HiddenUnits) -> list[int]:
        """A hidden layer's row in the table of hidden layers, whose first unit is not known yet."""
        weight, n = units.after.weight, len(units.before.weight)
        number = self._numbers[id(weight)]
        layer, rows, weight_rows = self._layers[number], 1, len(weight)
        if layer[k.KIND] == k.CONV:
            rows, weight_rows = layer[k.HEIGHT] * layer[k.WIDTH], layer[k.KERNEL_HEIGHT] * layer[k.KERNEL_WIDTH]
        inputs = layer[k.INPUT], rows, layer[k.N_INPUTS] // (n * rows)
        return [0, n, *inputs, self.tables.places[number].start, weight_rows, weight.numel() // (n * weight_rows)]

    def _use(self, learner: CompiledLearner, index: int) -> dict[str, Tensor]:
        """Ages and utilities of a hidden layer, in the learner's memory."""
        units = learner.units
        first, n = units.layers[index, [k.FIRST_UNIT, k.N_UNITS]]
        return {
            "age": torch.from_numpy(units.ages[first : first + n]),
            "utility": torch.from_numpy(units.utilities[first : first + n]),
        }

    def _restarts(self, learner: CompiledLearner, number: int) -> dict[str, Tensor]:
        """The restarts of a parameter, in the learner's memory."""
        n_rows, numbers = learner.restarts[number]
        parts, param = (torch.from_numpy(numbers[:n_rows]), torch.from_numpy(numbers[n_rows:])), self.parameters[number]
        sides = ("outputs", "inputs") if param.dim() == 2 else ("inputs", "outputs")
        given = dict(zip(sides, parts, strict=True))
        return {side: given[side].view(like.shape) for side, like in no_restarts(param).items()}

    def go_on(self, learner: CompiledLearner) -> None:
        """Replace the units that are due."""

        def known(param: Tensor) -> Known:
            number = self._numbers[id(param)]
            part, learned = self.tables.places[number], learner.learned
            if frozen(learner, number):
                return self.units_of.known(param)

            def values(array: NDArray[Any]) -> Tensor:
                return torch.from_numpy(from_kernel_layout(array[part], param.shape))

            moments = {key: values(array) for key, array in learner.arrays_of_state()}
            return Known(values(learned.weights), moments, learned.steps[number], self._restarts(learner, number))

        for index, (units, group) in enumerate(self._hidden):
            if learner.units.budgets[index] >= 1:
                use = self._use(learner, index) | {"budget": float(learner.units.budgets[index])}
                self.units_of.replace(units, group, use, known)
                learner.units.budgets[index] = use["budget"]
        for number, param in enumerate(self.parameters):
            if frozen(learner, number):
                learner.learned.weights[self.tables.places[number]] = to_kernel_layout(param.detach().numpy())

    def end(self, learner: CompiledLearner) -> None:
        """Copy what is known of units and restarts to the optimizer."""
        for index, (units, _) in enumerate(self._hidden):
            state = self.units_of.use_of(units)
            state["budget"] = float(learner.units.budgets[index])
            for name, values in self._use(learner, index).items():
                state[name].copy_(values)
        for number, param in enumerate(self.parameters):
            state = {} if frozen(learner, number) else self.optimizer.state.get(param, {})
            if "step" in state.get("base", {}) and (RESTARTS in state or learner.restarts[number][1].any()):
                kept = state.setdefault(RESTARTS, no_restarts(param))
                for side, values in self._restarts(learner, number).items():
                    kept[side].copy_(values)


def frozen(learner: CompiledLearner, number: int) -> bool:
    """Whether a parameter does not learn now."""
    return bool(learner.network.parameters[number, k.BLOCK] == k.FROZEN)


def _rows_and_columns(param: Tensor) -> tuple[int, NDArray[Any]]:
    """The number of rows of a parameter in memory, which come again for each position of a kernel, and all restarts."""
    n_outputs, n_inputs = len(param), param.shape[1] if param.dim() > 1 else 1
    return n_outputs if param.dim() == 2 else n_inputs, np.zeros(n_outputs + n_inputs)
