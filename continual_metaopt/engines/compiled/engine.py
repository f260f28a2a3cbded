"""The compiled engine: predict, score, learn as one compiled function, for sequential networks and MetaOptimize.

Between calls, weights and everything else that was learned are in the network and its optimizer, as with any engine.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.engines.compiled.learner import CompiledLearner, aligned_zeros
from continual_metaopt.engines.compiled.network import (
    from_kernel_layout,
    loss_scale,
    to_kernel_layout,
    translate,
    why_not_translated,
)
from continual_metaopt.engines.compiled.rules import BASE_RULES, kernel_rules, parameter_settings, why_no_kernels
from continual_metaopt.engines.observations import MAX_SAMPLES, Observations
from continual_metaopt.engines.wrapped import tell_schedulers
from continual_metaopt.optim.controls.replayed_step_sizes import ReplayedStepSizes
from continual_metaopt.optim.metaoptimize import LONG_TRACE, MetaOptimize
from continual_metaopt.optim.two_horizons import AUTO

META_STATE = {"step": k.META_STEP, "exp_avg": k.META_MEAN, "exp_avg_sq": k.META_SQUARE}  # and its columns
TYPICAL_SIZES = {"step": k.HORIZON_STEP, "short_size": k.SHORT_SIZE, "long_size": k.LONG_SIZE}  # likewise

Array = NDArray[Any]


def why_not_compiled(model: nn.Module, optimizer: Optimizer, criterion: Any) -> str | None:
    """What keeps a learner from being compiled; None if nothing does."""
    objection = why_no_kernels(optimizer) or why_not_translated(model, criterion)
    if objection is not None:
        return objection
    owned = {id(param) for group in optimizer.param_groups for param in group["params"]}
    if not owned <= {id(param) for param in model.parameters()}:
        return "the optimizer has parameters that are not the network's"
    dtype = next(model.parameters()).dtype
    if any(param.dtype != dtype or param.device.type != "cpu" for param in model.parameters()):
        return "the parameters are of different types, or not all on the CPU"
    if not any(param.requires_grad for param in model.parameters()):
        return "all parameters are frozen"
    return None


def compiled_or_why_not(
    model: nn.Module, optimizer: Optimizer, criterion: Any, sample: Sequence[Tensor] | None
) -> tuple["CompiledEngine | None", str | None]:
    """The compiled engine of a learner, and None; or None and what keeps the learner from being compiled.

    Args:
        sample: input and target of a mini-batch of one; both results are None if nothing but that is missing.
    """
    objection = why_not_compiled(model, optimizer, criterion)
    if objection is not None or sample is None:
        return None, objection
    try:
        engine = CompiledEngine(model, cast(MetaOptimize, optimizer), criterion, sample[0].shape[1:])
    except ValueError as error:
        return None, str(error)
    objection = engine.why_not_sample(*sample[:2])
    return (engine, None) if objection is None else (None, objection)


class CompiledEngine:
    """Runs a learner that ``why_not_compiled`` has no objection to.

    Args:
        optimizer: of its parameters; those that it has not, or that need no gradient, are frozen.
        input_shape: of one sample: (channels, height, width) or (numbers,).

    Attributes:
        learner: network and optimizer as arrays.

    Raises:
        ValueError: the layers do not fit inputs of this shape.
    """

    def __init__(self, model: nn.Module, optimizer: MetaOptimize, criterion: Any, input_shape: Sequence[int]) -> None:
        tables, self._parameters = translate(model, input_shape)
        self.optimizer = optimizer
        self.input_shape = tuple(input_shape)
        self._places = tables.places
        dtype = self._parameters[0].detach().numpy().dtype
        blocks = list(optimizer.step_size_report())
        rule, n, n_parameters = BASE_RULES[type(optimizer.base)], tables.n_weights, len(self._parameters)
        parameters = np.zeros((n_parameters, k.N_PARAMETER_COLUMNS), np.int64)
        parameters[:, k.START] = [place.start for place in tables.places]
        parameters[:, k.STOP] = [place.stop for place in tables.places]
        network = k.Network(
            np.array(tables.layers, np.int64),
            np.array(tables.slopes, dtype),
            parameters,
            np.zeros((n_parameters, k.N_SETTINGS)),
            k.CROSS_ENTROPY if isinstance(criterion, nn.CrossEntropyLoss) else k.SQUARED_ERROR,
            loss_scale(criterion, tables.n_outputs),
        )
        learned = k.Learned(
            weights=np.zeros(n, dtype),
            momentum=np.zeros(n if rule.momentum else 0, dtype),
            second_moment=np.zeros(n if rule.second_moment else 0, dtype),
            trace=np.zeros(n, dtype),
            long_trace=np.zeros(0, dtype),  # until there are two horizons
            steps=np.zeros(n_parameters),
            blocks=np.zeros((len(blocks), k.N_BLOCK_COLUMNS)),
        )
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        keys = {"momentum": rule.momentum, "second_moment": rule.second_moment, "trace": "trace"}
        self.learner = CompiledLearner(
            tables,
            network,
            kernel_rules(optimizer),
            learned,
            blocks,
            [names[id(parameter)] for parameter in self._parameters],
            {field: key for field, key in keys.items() if key is not None} | {"long_trace": LONG_TRACE},
            optimizer.trajectory if isinstance(optimizer, ReplayedStepSizes) else None,
        )

    def why_not_sample(self, x: Tensor, y: Tensor) -> str | None:
        """What keeps the engine from learning from samples like this mini-batch of one; None if nothing does."""
        dtype, n_outputs = self._parameters[0].dtype, self.learner.tables.n_outputs
        if x.shape[1:] != self.input_shape or x.dtype != dtype:
            return f"inputs are {x.dtype} of shape {tuple(x.shape[1:])}, not {dtype} of shape {self.input_shape}"
        if self.learner.classifies and (y.is_floating_point() or y.shape != (1,)):
            return "the targets are not classes"
        if not self.learner.classifies and (y.dtype != dtype or y.shape != (1, n_outputs)):
            return f"targets are {y.dtype} of shape {tuple(y.shape[1:])}, not {dtype} of shape ({n_outputs},)"
        return None

    def compile(self, dataset: Any) -> None:
        """As ``CompiledLearner.compile``."""
        self.learner.compile(_DatasetSamples(dataset))

    def learn(
        self,
        dataset: Any,
        first: int,
        observations: Observations,
        record_every: int,
        at_most: int = MAX_SAMPLES,
        take_inputs: Callable[[Tensor], None] | None = None,
    ) -> bool:
        """Learn from samples of a data set of tuples (input, target, …).

        Args:
            take_inputs: given the inputs [n, …] that were learned from.

        Returns:
            Whether there are more samples.

        Raises:
            Diverged, ValueError: as ``CompiledLearner.learn``.
        """
        samples = _DatasetSamples(dataset)
        self.load()
        try:
            more = self.learner.learn(samples, first, observations, record_every, at_most)
        finally:
            self.store()
            tell_schedulers(self.optimizer)
        if take_inputs is not None:
            take_inputs(torch.from_numpy(samples.last_inputs))
        return more

    def load(self) -> None:
        """Copy what was learned so far from the network and its optimizer."""
        optimizer, learned = self.optimizer, self.learner.learned
        if len(learned.long_trace) == 0 and any(group["gamma"] == AUTO for group in optimizer.param_groups):
            learned = learned._replace(long_trace=aligned_zeros(len(learned.trace), self.learner.dtype))
            self.learner.learned = learned
        numbers = {id(parameter): number for number, parameter in enumerate(self._parameters)}
        for parameter, part in zip(self._parameters, self._places, strict=True):
            learned.weights[part] = to_kernel_layout(parameter.detach().numpy())
        self.learner.network.parameters[:, k.BLOCK] = k.FROZEN
        for index, block in enumerate(optimizer.blocks()):
            row, first = learned.blocks[index], block[0]
            row[k.STEP_SIZE] = optimizer.current_step_size(block)
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
            for group in block:
                for parameter in group["params"]:
                    if parameter.requires_grad:
                        self._load_parameter(numbers[id(parameter)], index, group)

    def _load_parameter(self, number: int, block: int, group: dict[str, Any]) -> None:
        state = self.optimizer.prepared_state(group, self._parameters[number])
        part, learned = self._places[number], self.learner.learned
        self.learner.network.parameters[number, k.BLOCK] = block
        self.learner.network.settings[number] = parameter_settings(group)
        learned.steps[number] = state.get("step", 0)
        for key, array in self._arrays_in_state():
            if key in state:
                array[part] = to_kernel_layout(state[key].numpy())

    def store(self) -> None:
        """Copy what has been learned into the network and its optimizer."""
        optimizer, learned = self.optimizer, self.learner.learned
        for number, (parameter, part) in enumerate(zip(self._parameters, self._places, strict=True)):
            if self.learner.network.parameters[number, k.BLOCK] == k.FROZEN:
                continue
            parameter.detach().numpy()[...] = from_kernel_layout(learned.weights[part], parameter.shape)
            state = optimizer.state[parameter]
            if "step" in state:
                state["step"] = int(learned.steps[number])
            for key, array in self._arrays_in_state():
                if key in state:
                    state[key].numpy()[...] = from_kernel_layout(array[part], parameter.shape)
        for row, block in zip(learned.blocks.tolist(), optimizer.blocks(), strict=True):
            if block[0]["meta_lr"] > 0:
                kept = {"log_ratio": row[k.LOG_RATIO], "meta_gradient": row[k.META_GRADIENT]}
                kept["meta_state"] = {name: row[column] for name, column in META_STATE.items()}
                kept["typical_sizes"] = {name: row[column] for name, column in TYPICAL_SIZES.items()}
                optimizer.take_step_size(block, row[k.STEP_SIZE], kept)
        if isinstance(optimizer, ReplayedStepSizes):
            optimizer.go_to(int(learned.blocks[0, k.N_REPLAYED]))

    def _arrays_in_state(self) -> Iterator[tuple[str, Array]]:
        """The arrays that hold a part of each parameter's state, with its key there."""
        for field, key in self.learner.states.items():
            array = getattr(self.learner.learned, field)
            if len(array):
                yield key, array


class _DatasetSamples:
    """Any data set of tuples (input, target, …) as ``Samples``, which keeps the inputs that were read last."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, steps: slice) -> tuple[Array, Array]:
        from continual_metaopt.streams.benchmark import read_samples  # which needs Avalanche, as this module does not

        inputs, targets = read_samples(self._dataset, steps)
        self.last_inputs = inputs
        return inputs, targets
