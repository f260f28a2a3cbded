"""The compiled engine: predict, score, learn as one compiled function, for sequential networks and many optimizers.

Between calls, weights and everything else that was learned are in the network and its optimizer, as with any engine.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.engines.compiled.by_pass import by_pass_or_why_not
from continual_metaopt.engines.compiled.learner import CompiledLearner, NetworkTables
from continual_metaopt.engines.compiled.network import (
    from_kernel_layout,
    network_for_kernels,
    to_kernel_layout,
    translate,
    why_not_translated,
    why_slower,
)
from continual_metaopt.engines.compiled.passes import set_step
from continual_metaopt.engines.compiled.rules import why_no_kernels
from continual_metaopt.engines.compiled.state import GlocalState, MetaOptimizeState, PassState, UnitsState
from continual_metaopt.engines.observations import MAX_SAMPLES, Observations
from continual_metaopt.engines.wrapped import tell_schedulers
from continual_metaopt.optim.controls.replayed_step_sizes import ReplayedStepSizes
from continual_metaopt.optim.metaoptimize import MetaOptimize
from continual_metaopt.optim.peers.continual_backprop import ContinualBackprop
from continual_metaopt.optim.peers.glocal import Glocal
from continual_metaopt.optim.protocol import step_sizes_of, switches_weights

Array = NDArray[Any]

MOST_AT_ONCE = 16  # samples of a mini-batch that the engine is fastest for in any network


def why_not_compiled(model: nn.Module, optimizer: Optimizer, criterion: Any) -> str | None:
    """What keeps a learner from being compiled; None if nothing does."""
    if isinstance(optimizer, MetaOptimize):
        objection = why_no_kernels(optimizer)
    else:
        objection = by_pass_or_why_not(optimizer)[1] or None
    watches = optimizer.activity if isinstance(optimizer, ContinualBackprop) else None
    objection = objection or why_not_translated(model, criterion, watches)
    if objection is not None:
        return objection
    if watches is not None and not set(watches.model.parameters()) <= set(model.parameters()):
        return "the optimizer watches another network"
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
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Any,
    sample: Sequence[Tensor] | None,
    batch_size: int = 1,
    only_if_faster: bool = True,
) -> tuple["CompiledEngine | None", str | None]:
    """The compiled engine of a learner, and None; or None and what keeps the learner from being compiled.

    Args:
        sample: inputs and targets of a mini-batch; both results are None if nothing but that is missing.
        only_if_faster: let it keep the learner from being compiled that another engine is faster.
    """
    objection = why_not_compiled(model, optimizer, criterion)
    if only_if_faster:
        objection = objection or why_slower(model, batch_size, MOST_AT_ONCE)
    if objection is not None or sample is None:
        return None, objection
    try:
        engine = CompiledEngine(model, optimizer, criterion, sample[0].shape[1:], batch_size)
    except ValueError as error:
        return None, str(error)
    if batch_size > 1 and engine.learner.outside is not None:
        return None, f"{type(optimizer).__name__} is compiled for single samples"
    objection = engine.why_not_sample(*sample[:2])
    return (engine, None) if objection is None else (None, objection)


class CompiledEngine:
    """Runs a learner that ``why_not_compiled`` has no objection to.

    Args:
        optimizer: of its parameters; those that it has not, or that need no gradient, are frozen.
        input_shape: of one sample: (channels, height, width) or (numbers,).
        batch_size: samples that are predicted, and then learned from, at once.

    Attributes:
        learner: network and optimizer as arrays.

    Raises:
        ValueError: the layers do not fit inputs of this shape.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Any,
        input_shape: Sequence[int],
        batch_size: int = 1,
    ) -> None:
        tables, self._parameters = translate(model, input_shape)
        self.optimizer = optimizer
        self.input_shape = tuple(input_shape)
        self._places = tables.places
        dtype = self._parameters[0].detach().numpy().dtype
        n, n_parameters = tables.n_weights, len(self._parameters)
        network = network_for_kernels(tables, criterion, dtype)
        blocks = list(step_sizes_of(optimizer))
        self._state = _state_of(optimizer, self._parameters, tables)
        learned = k.Learned(
            weights=np.zeros(n, dtype),
            steps=np.zeros(n_parameters),
            blocks=np.zeros((len(blocks), k.N_BLOCK_COLUMNS)),
            **self._state.arrays(n, dtype, len(blocks)),
        )
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.learner = CompiledLearner(
            tables,
            network,
            self._state.rules,
            learned,
            blocks,
            [names[id(parameter)] for parameter in self._parameters],
            self._state.fields,
            optimizer.trajectory if isinstance(optimizer, ReplayedStepSizes) else None,
            self._state.by_pass.of if isinstance(self._state, PassState) else None,
            batch_size,
        )
        if isinstance(self._state, UnitsState | GlocalState):
            self.learner.outside = self

    def go_on(self) -> None:
        """Do what compiled code has handed back."""
        cast(UnitsState | GlocalState, self._state).go_on(self.learner)

    def report(self) -> dict[str, dict[str, Any]]:
        """Give what the optimizer reports beside step sizes and meta gradients."""
        return getattr(self.optimizer, "meta_parameter_report", dict)()

    def why_not_sample(self, x: Tensor, y: Tensor) -> str | None:
        """What keeps the engine from learning from samples like those of this mini-batch; None if nothing does."""
        dtype, n_outputs = self._parameters[0].dtype, self.learner.tables.n_outputs
        if x.shape[1:] != self.input_shape or x.dtype != dtype:
            return f"inputs are {x.dtype} of shape {tuple(x.shape[1:])}, not {dtype} of shape {self.input_shape}"
        if self.learner.classifies and (y.is_floating_point() or y.shape != (len(x),)):
            return "the targets are not classes"
        if not self.learner.classifies and (y.dtype != dtype or y.shape != (len(x), n_outputs)):
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
        if switches_weights(self.optimizer):
            self.optimizer.train()  # type: ignore[attr-defined]
        self._state.begin(self.learner)
        learned, predicting = self.learner.learned, self.learner.predicting
        numbers = {id(param): number for number, param in enumerate(self._parameters)}
        for parameter, part in zip(self._parameters, self._places, strict=True):
            learned.weights[part] = to_kernel_layout(parameter.detach().numpy())
            predicting[part] = learned.weights[part]  # of frozen parameters, and before the first update
        self.learner.network.parameters[:, k.BLOCK] = k.FROZEN
        for index, block in enumerate(self._state.blocks()):
            self._state.load_block(self.learner, index, block)
            for group in block:
                for parameter in group["params"]:
                    if parameter.requires_grad:
                        self._load_parameter(numbers[id(parameter)], index, group)

    def _load_parameter(self, number: int, block: int, group: dict[str, Any]) -> None:
        state = self._state.of(group, self._parameters[number])
        part, learned = self._places[number], self.learner.learned
        self.learner.network.parameters[number, k.BLOCK] = block
        self.learner.network.settings[number] = self._state.settings(group, self._parameters[number])
        learned.steps[number] = float(state.get("step", 0))
        for key, array in self.learner.arrays_of_state():
            if key in state:
                array[part] = to_kernel_layout(state[key].numpy())

    def store(self) -> None:
        """Copy what has been learned into the network and its optimizer, which is left with what predicts."""
        table = self.learner.network.parameters
        numbers = {id(param): number for number, param in enumerate(self._parameters)}
        for index, block in enumerate(self._state.blocks()):
            for group in block:
                for parameter in group["params"]:
                    number = numbers[id(parameter)]
                    if table[number, k.BLOCK] != k.FROZEN:
                        self._store_parameter(number, group)
            self._state.store_block(self.learner, index, block)
        self._state.end(self.learner)
        if switches_weights(self.optimizer):
            self.optimizer.eval()  # type: ignore[attr-defined]

    def _store_parameter(self, number: int, group: dict[str, Any]) -> None:
        parameter, part, learned = self._parameters[number], self._places[number], self.learner.learned
        parameter.detach().numpy()[...] = from_kernel_layout(learned.weights[part], parameter.shape)
        state = self._state.of(group, parameter)
        set_step(state, learned.steps[number])
        for key, array in self.learner.arrays_of_state():
            if key in state:
                state[key].numpy()[...] = from_kernel_layout(array[part], parameter.shape)


def _state_of(
    optimizer: Optimizer, parameters: Sequence[Tensor], tables: NetworkTables
) -> MetaOptimizeState | PassState:
    if isinstance(optimizer, MetaOptimize):
        return GlocalState(optimizer) if isinstance(optimizer, Glocal) else MetaOptimizeState(optimizer)
    if isinstance(optimizer, ContinualBackprop):
        return UnitsState(optimizer, parameters, tables)
    return PassState(optimizer)


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
