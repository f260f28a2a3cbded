"""The compiled engine: predict, score, learn as one compiled function, for sequential networks and MetaOptimize.

Between calls, weights and everything else that was learned are in the network and its optimizer, as with any engine.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.engines import kernels as k
from continual_metaopt.engines.compiled_network import (
    NetworkTables,
    from_kernel_layout,
    loss_scale,
    to_kernel_layout,
    translate,
    why_not_translated,
)
from continual_metaopt.engines.compiled_rules import (
    BASE_RULES,
    aligned_zeros,
    kernel_rules,
    parameter_settings,
    room_for_update,
    why_no_kernels,
)
from continual_metaopt.engines.observations import MAX_SAMPLES, MAX_SECONDS, Diverged, Observations
from continual_metaopt.engines.torch_engine import label_does_not_fit
from continual_metaopt.optim.metaoptimize import LONG_TRACE, MetaOptimize
from continual_metaopt.optim.two_horizons import AUTO
from streams.benchmark import read_samples

FIRST_SAMPLES = 16  # in the first call, when it is not known yet how long a sample takes
SHORTEST_SECONDS = 1e-4  # that a call counts as; coarse clocks may not have moved meanwhile
META_STATE = {"step": k.META_STEP, "exp_avg": k.META_MEAN, "exp_avg_sq": k.META_SQUARE}  # and its columns
TYPICAL_SIZES = {"step": k.HORIZON_STEP, "short_size": k.SHORT_SIZE, "long_size": k.LONG_SIZE}  # likewise

Array = NDArray[Any]
_compiled_for: set[np.dtype[Any]] = set()  # kinds of numbers that the kernel was called with in this process


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


class CompiledEngine:
    """Runs a learner that ``why_not_compiled`` has no objection to.

    Args:
        model: the network.
        optimizer: of its parameters; those that it has not, or that need no gradient, are frozen.
        criterion: loss of (output, target).
        input_shape: of one sample: (channels, height, width) or (numbers,).

    Raises:
        ValueError: the layers do not fit inputs of this shape.
    """

    def __init__(self, model: nn.Module, optimizer: MetaOptimize, criterion: Any, input_shape: Sequence[int]) -> None:
        tables = translate(model, input_shape)
        self.optimizer = optimizer
        self.input_shape = tuple(input_shape)
        self.n_outputs = tables.n_outputs
        self.classifies = isinstance(criterion, nn.CrossEntropyLoss)
        self.dtype = tables.parameters[0].detach().numpy().dtype
        self._parameters = tables.parameters
        self._slices = tables.places
        self._rules = kernel_rules(optimizer)
        self._network = self._make_network(tables, criterion)
        self._learned = self._make_learned(tables)
        self._memory = self._make_memory(tables)
        self._seconds_per_sample: float | None = None

    def why_not_sample(self, x: Tensor, y: Tensor) -> str | None:
        """What keeps the engine from learning from samples like this mini-batch of one; None if nothing does."""
        dtype = self._parameters[0].dtype
        if x.shape[1:] != self.input_shape or x.dtype != dtype:
            return f"inputs are {x.dtype} of shape {tuple(x.shape[1:])}, not {dtype} of shape {self.input_shape}"
        if self.classifies and (y.is_floating_point() or y.shape != (1,)):
            return "the targets are not classes"
        if not self.classifies and (y.dtype != dtype or y.shape != (1, self.n_outputs)):
            return f"targets are {y.dtype} of shape {tuple(y.shape[1:])}, not {dtype} of shape ({self.n_outputs},)"
        return None

    def learn(
        self,
        dataset: Any,
        first: int,
        observations: Observations,
        record_every: int,
        at_most: int = MAX_SAMPLES,
        take_inputs: Callable[[Tensor], None] | None = None,
    ) -> bool:
        """Learn from samples, one at a time, until they end or the call has lasted long enough.

        Args:
            dataset: of tuples (input, target, …).
            first: number of the sample in it to begin with.
            observations: filled in place; says at which step of the stream that is.
            record_every: distance in steps between recorded step sizes.
            at_most: samples to learn from in this call.
            take_inputs: given the inputs [n, …] that were learned from.

        Returns:
            Whether there are more samples.

        Raises:
            Diverged: the loss or a meta gradient is not finite. ``observations`` holds what came before.
            ValueError: a label does not fit the network's outputs.
        """
        if self._seconds_per_sample is None:
            if self.dtype not in _compiled_for:
                self._learn(dataset, first, 0, observations, record_every)  # compiles
                _compiled_for.add(self.dtype)
            n = min(FIRST_SAMPLES, MAX_SAMPLES)
        else:
            n = int(min(max(MAX_SECONDS / self._seconds_per_sample, 1), MAX_SAMPLES))
        n = min(n, at_most, len(dataset) - first)
        start = time.monotonic()
        inputs = self._learn(dataset, first, n, observations, record_every)
        if n >= FIRST_SAMPLES:  # fewer say little, since each call takes time as well
            self._seconds_per_sample = max(time.monotonic() - start, SHORTEST_SECONDS) / n
        if take_inputs is not None:
            take_inputs(inputs)
        return first + n < len(dataset)

    def _learn(self, dataset: Any, first: int, n: int, observations: Observations, record_every: int) -> Tensor:
        x, y = read_samples(dataset, slice(first, first + n))
        bad_label = None
        if self.classifies:
            bad = np.flatnonzero((y < 0) | (y >= self.n_outputs))
            if len(bad):
                bad_label, n = int(y[bad[0]]), int(bad[0])
        x = np.ascontiguousarray(x[:n].reshape(n, math.prod(self.input_shape)), self.dtype)
        labels, targets = np.zeros(n, np.int64), np.zeros((n, self.n_outputs), self.dtype)
        if self.classifies:
            labels[:] = y[:n]
        else:
            targets[:] = y[:n].reshape(targets.shape)
        step = observations.next_step
        recorded = [s for s in range(step, step + n) if s % record_every == 0]
        correct, losses = np.zeros(n, np.bool_), np.zeros(n)
        step_sizes = np.zeros((len(recorded), len(self._learned.blocks)))
        meta_gradients = np.zeros_like(step_sizes)
        self._load()
        with _one_thread, flushed_denormals():
            n_learned, reason, value = k.learn(
                self._network,
                self._learned,
                self._rules,
                self._memory,
                x,
                labels,
                targets,
                step,
                record_every,
                correct,
                losses,
                step_sizes,
                meta_gradients,
            )
        self._store()
        observations.correct += correct[:n_learned].tolist() if self.classifies else [None] * n_learned
        observations.loss += losses[:n_learned].tolist()
        names = list(self.optimizer.step_size_report())
        for row, recorded_step in enumerate(recorded):
            if recorded_step < step + n_learned:
                values = zip(names, step_sizes[row].tolist(), strict=True)
                observations.step_sizes += [(recorded_step, name, size) for name, size in values]
                values = zip(names, meta_gradients[row].tolist(), strict=True)
                observations.measurements += [
                    (recorded_step, "meta_gradient", name, "value", gradient) for name, gradient in values
                ]
        if reason == k.LOSS_NOT_FINITE:
            raise Diverged(step + n_learned, f"the loss is {value}")
        if reason != k.LEARNED_ALL:
            raise Diverged(step + n_learned, f"the meta gradient of block '{names[reason]}' is {value}")
        if bad_label is not None:
            raise ValueError(label_does_not_fit(bad_label, self.n_outputs))
        return torch.from_numpy(x).view(n, *self.input_shape)

    def _load(self) -> None:
        """Copy what was learned so far from the network and its optimizer."""
        optimizer = self.optimizer
        if len(self._learned.long_trace) == 0 and any(group["gamma"] == AUTO for group in optimizer.param_groups):
            self._learned = self._learned._replace(long_trace=self._room(len(self._learned.trace)))
        learned = self._learned
        numbers = {id(parameter): number for number, parameter in enumerate(self._parameters)}
        for parameter, part in zip(self._parameters, self._slices, strict=True):
            learned.weights[part] = to_kernel_layout(parameter.detach().numpy())
        self._network.parameters[:, k.BLOCK] = k.FROZEN
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
            for group in block:
                for parameter in group["params"]:
                    if parameter.requires_grad:
                        self._load_parameter(numbers[id(parameter)], index, group)

    def _load_parameter(self, number: int, block: int, group: dict[str, Any]) -> None:
        state = self.optimizer.prepared_state(group, self._parameters[number])
        part, learned = self._slices[number], self._learned
        self._network.parameters[number, k.BLOCK] = block
        self._network.settings[number] = parameter_settings(group)
        learned.steps[number] = state.get("step", 0)
        for key, array in self._arrays_in_state():
            if key in state:
                array[part] = to_kernel_layout(state[key].numpy())

    def _store(self) -> None:
        """Copy what has been learned into the network and its optimizer."""
        optimizer, learned = self.optimizer, self._learned
        for number, (parameter, part) in enumerate(zip(self._parameters, self._slices, strict=True)):
            if self._network.parameters[number, k.BLOCK] == k.FROZEN:
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

    def _arrays_in_state(self) -> Iterator[tuple[str, Array]]:
        """The arrays that hold a part of each parameter's state, with its key there."""
        rule = BASE_RULES[type(self.optimizer.base)]
        if rule.momentum is not None:
            yield rule.momentum, self._learned.momentum
        if rule.second_moment is not None:
            yield rule.second_moment, self._learned.second_moment
        yield "trace", self._learned.trace
        if len(self._learned.long_trace):
            yield LONG_TRACE, self._learned.long_trace

    def _room(self, n: int) -> Array:
        return aligned_zeros(n, self.dtype)

    def _make_network(self, tables: NetworkTables, criterion: Any) -> k.Network:
        parameters = np.zeros((len(self._parameters), k.N_PARAMETER_COLUMNS), np.int64)
        parameters[:, k.START] = [place.start for place in tables.places]
        parameters[:, k.STOP] = [place.stop for place in tables.places]
        return k.Network(
            np.array(tables.layers, np.int64),
            np.array(tables.slopes, self.dtype),
            parameters,
            np.zeros((len(self._parameters), k.N_SETTINGS)),
            k.CROSS_ENTROPY if self.classifies else k.SQUARED_ERROR,
            loss_scale(criterion, tables.n_outputs),
        )

    def _make_learned(self, tables: NetworkTables) -> k.Learned:
        rule, n = BASE_RULES[type(self.optimizer.base)], tables.n_weights
        return k.Learned(
            self._room(n),
            self._room(n if rule.momentum else 0),
            self._room(n if rule.second_moment else 0),
            self._room(n),
            self._room(0),  # until there are two horizons
            np.zeros(len(self._parameters)),
            np.zeros((len(self.optimizer.blocks()), k.N_BLOCK_COLUMNS)),
        )

    def _make_memory(self, tables: NetworkTables) -> k.Memory:
        return k.Memory(
            self._room(tables.n_activations),
            self._room(tables.n_activations),
            self._room(tables.n_images),
            np.zeros(tables.n_winners, np.int32),
            self._room(tables.n_scratch),
            self._room(tables.n_weights),
            room_for_update(self.dtype),
            np.zeros((len(self.optimizer.blocks()), 2)),
        )


class _OneThread:
    """Within it, this process multiplies matrices on one thread, as long as any of its threads is within it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_within = 0
        self._controller: ThreadpoolController | None = None
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._controller is None:
                self._controller = ThreadpoolController()
            if self._n_within == 0:
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._n_within += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._n_within -= 1
            if self._n_within == 0:
                self._limit.restore_original_limits()


_one_thread = _OneThread()


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Within it, this thread computes with 0 in place of denormal numbers, which traces decay to and which are slow."""
    smallest = np.finfo(np.float32).smallest_subnormal
    flushed_before = smallest * np.float32(1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(bool(flushed_before))
