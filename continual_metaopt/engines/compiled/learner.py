"""A network and its learner as plain arrays: predict, score, learn as one compiled function; needs no torch.

``CompiledEngine`` makes a ``CompiledLearner`` of a network and an optimizer of PyTorch's.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import scipy
import scipy.linalg.cython_blas
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import ThreadpoolController

from continual_metaopt.engines.compiled import kernels as k
from continual_metaopt.engines.compiled import passes
from continual_metaopt.engines.compiled.denormals import flushed_denormals
from continual_metaopt.engines.observations import (
    MAX_SAMPLES,
    MAX_SECONDS,
    WEIGHTS_CHECKED_EVERY,
    Diverged,
    Measurement,
    Observations,
    check_finite,
    label_does_not_fit,
    numbers_at_end,
    recorded_steps,
    weights_are_due,
    weights_not_finite,
)
from continual_metaopt.optim.controls.trajectories import Trajectory
from continual_metaopt.streams.samples import Samples

FIRST_SAMPLES = 16  # in the first call, when it is not known yet how long a sample takes
SHORTEST_SECONDS = 1e-4  # that a call counts as; coarse clocks may not have moved meanwhile
PREDICTED_AT_ONCE = 256  # samples

Array = NDArray[Any]
_compiled_for: set[np.dtype[Any]] = set()  # kinds of numbers that the kernel was called with in this process


@dataclass
class NetworkTables:
    """A network as tables, and how much room its computation needs.

    Attributes:
        layers: a row per layer, as ``kernels.Network`` describes.
        slopes: of leaky ReLUs.
        places: where each parameter is in the flat arrays; the beginnings are aligned.
        n_weights, n_activations, n_images, n_winners, n_scratch, n_row: numbers to make room for.
        n_inputs, n_outputs: of the network.
    """

    layers: list[list[int]] = field(default_factory=list)
    slopes: list[float] = field(default_factory=list)
    places: list[slice] = field(default_factory=list)
    n_weights: int = 0
    n_activations: int = 0
    n_images: int = 0
    n_winners: int = 0
    n_scratch: int = 0
    n_row: int = 0
    n_inputs: int = 0
    n_outputs: int = 0


class Outside(Protocol):
    """What compiled code leaves to Python, in the process that has the optimizer."""

    def go_on(self) -> None:
        """Do what compiled code has handed back, in the learner's arrays."""

    def report(self) -> dict[str, dict[str, Any]]:
        """Give what the optimizer reports beside step sizes and meta gradients: block → quantity → value."""


class CompiledLearner:
    """Learns by compiled code from arrays. It can be pickled, with all that it has learned, if nothing is outside.

    Args:
        learned: what learning changes; copied.
        blocks: names of the blocks of parameters that have a step size of their own.
        states: names of the arrays of ``learned`` that are a parameter's state, by field.
        trajectory: step sizes to replay, in the order of the blocks; None to learn them, or to leave them.
        by_pass: makes the updates, where ``rules.base`` is ``kernels.BY_PASS``.
        batch_size: samples that are predicted, and then learned from, at once.

    Attributes:
        outside: goes on where compiled code hands back; None if it never does.
        units: hidden units whose use is to be known.
        restarts: of each parameter, for a pass that restarts weights, the number of rows, and the steps at which rows
            and columns were restarted, float64 [rows + columns]; empty if it does not.
    """

    def __init__(
        self,
        tables: NetworkTables,
        network: k.Network,
        rules: k.Rules,
        learned: k.Learned,
        blocks: Sequence[str],
        parameters: Sequence[str],
        states: dict[str, str],
        trajectory: Trajectory | None = None,
        by_pass: passes.Pass | None = None,
        batch_size: int = 1,
    ) -> None:
        self.tables, self.network, self.rules, self.blocks = tables, network, rules, list(blocks)
        self.by_pass, self.batch_size = by_pass, batch_size
        self.parameters, self.states, self.trajectory = list(parameters), states, trajectory
        self.learned = k.Learned(*(aligned(array) if array.ndim == 1 else array.copy() for array in learned))
        self.dtype = learned.weights.dtype
        self.classifies = network.loss == k.CROSS_ENTROPY
        self._memory = make_memory(tables, self.dtype, len(blocks))
        self.outside: Outside | None = None
        self.units = no_units(self.dtype)
        self.restarts: list[tuple[int, Array]] = []
        self._seconds_per_sample: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.outside is not None:
            raise TypeError("what is outside of compiled code cannot be pickled")
        rest = self.parameters, self.states, self.trajectory, self.by_pass, self.batch_size
        return CompiledLearner, (self.tables, self.network, self.rules, self.learned, self.blocks, *rest)

    def compile(self, samples: Samples) -> None:
        """Compile what ``learn`` calls, if this process has not yet, so that it does not count as learning.

        Args:
            samples: of the kind that is learned from.
        """
        if self.dtype not in _compiled_for:
            self._learn(samples, slice(0, 0), Observations(0, 0), 1)
            _compiled_for.add(self.dtype)

    def learn(
        self,
        samples: Samples,
        first: int,
        observations: Observations,
        record_every: int,
        at_most: int = MAX_SAMPLES,
    ) -> bool:
        """Learn from samples, one mini-batch at a time, until they end or the call has lasted long enough.

        Args:
            first: number of the sample to begin with.
            observations: filled in place; says at which step of the stream that is.
            at_most: samples, of which the last mini-batch may bring more.

        Returns:
            Whether there are more samples.

        Raises:
            Diverged: the loss, a meta gradient or a weight is not finite. ``observations`` holds what came before.
            ValueError: a label does not fit the network's outputs.
        """
        if self._seconds_per_sample is None:
            self.compile(samples)
            n = min(FIRST_SAMPLES, MAX_SAMPLES)
        else:
            n = int(min(max(MAX_SECONDS / self._seconds_per_sample, 1), MAX_SAMPLES))
        until_checked = WEIGHTS_CHECKED_EVERY - observations.next_step % WEIGHTS_CHECKED_EVERY
        n_batches = max(1, min(n // self.batch_size, -(-min(at_most, until_checked) // self.batch_size)))
        n = min(n_batches * self.batch_size, len(samples) - first)
        start = time.monotonic()
        self._learn(samples, slice(first, first + n), observations, record_every)
        if n >= FIRST_SAMPLES:  # fewer say little, since each call takes time as well
            self._seconds_per_sample = max(time.monotonic() - start, SHORTEST_SECONDS) / n
        if weights_are_due(observations.next_step - n, n):
            self.check_weights(observations.next_step)
        return first + n < len(samples)

    def check_weights(self, step: int) -> None:
        """Stop at weights that are not numbers, which a loss need not show.

        Raises:
            Diverged: a weight is NaN or infinite.
        """
        if not np.isfinite(self.learned.weights).all():
            raise weights_not_finite(step)

    def state_at_end(self, step: int) -> list[Measurement]:
        """What to record of a learner that has diverged at sample ``step``."""
        arrays = [("weights", self.learned.weights), *self.arrays_of_state()]
        tensors = [
            (parameter, kind, array[place])
            for parameter, place in zip(self.parameters, self.tables.places, strict=True)
            for kind, array in arrays
        ]
        step_sizes, meta_gradients = (
            dict(zip(self.blocks, self.learned.blocks[:, column].tolist(), strict=True))
            for column in (k.STEP_SIZE, k.META_GRADIENT)
        )
        return numbers_at_end(step, tensors, step_sizes, meta_gradients if self.by_pass is None else {})

    def arrays_of_state(self) -> Iterator[tuple[str, Array]]:
        """Give the arrays that hold a part of each parameter's state, with its key there."""
        for name, key in self.states.items():
            if len(array := getattr(self.learned, name)):
                yield key, array
        if self.by_pass is not None:
            yield from zip(self.by_pass.keeps, self.learned.kept.reshape(-1, self.tables.n_weights), strict=True)

    @property
    def predicting(self) -> Array:
        """The weights to predict with."""
        if self.by_pass is None or not self.by_pass.predicts_with:
            return self.learned.weights
        return dict(self.arrays_of_state())[self.by_pass.predicts_with]

    def accuracy(self, samples: Samples) -> float:
        """Share of samples that are predicted right, by weights that stay as they are.

        Args:
            samples: inputs and classes, one at least.
        """
        n_correct = 0
        for start in range(0, len(samples), PREDICTED_AT_ONCE):
            x, y = samples.batch(slice(start, min(start + PREDICTED_AT_ONCE, len(samples))))
            with one_thread, flushed_denormals():
                n_correct += k.count_correct(self.network, self.predicting, self._memory, self._inputs(x), y)
        return n_correct / len(samples)

    def _inputs(self, x: Array) -> Array:
        return np.ascontiguousarray(x.reshape(len(x), self.tables.n_inputs), self.dtype)

    def _recorded(self, first: int, n: int, every: int) -> list[int]:
        """Of each mini-batch with a recorded step, the first such step."""
        steps = np.array(recorded_steps(first, n, every), np.int64)
        firsts = np.unique((steps - first) // self.batch_size, return_index=True)[1]
        return cast(list[int], steps[firsts].tolist())

    def _rules(self) -> tuple[k.Rules, passes.Tables | None]:
        """The rules, with the tables of the pass as memory is now."""
        if self.by_pass is None:
            return self.rules, None
        learned, parameters = self.learned, self.network.parameters
        of_weights = [learned.weights, self._memory.gradient, *(array for _, array in self.arrays_of_state())]
        places = np.zeros((len(parameters), passes.WEIGHTS + len(of_weights)), np.int64)
        places[:, passes.SIZE] = parameters[:, k.STOP] - parameters[:, k.START]
        places[:, passes.GROUP] = parameters[:, k.BLOCK]
        places[:, passes.NUMBER] = self.network.settings[:, 0]  # see ``PassState.settings``
        for column, array in enumerate(of_weights):
            places[:, passes.WEIGHTS + column] = array.ctypes.data + parameters[:, k.START] * array.itemsize
        for place, (n_rows, restarts) in zip(places, self.restarts, strict=False):
            place[passes.N_ROWS], place[passes.N_COLUMNS] = n_rows, len(restarts) - n_rows
            place[passes.RESTARTS] = restarts.ctypes.data
        places[parameters[:, k.BLOCK] == k.FROZEN] = 0
        tables = passes.Tables(self.by_pass, self.dtype, places, learned.steps, learned.numbers, learned.blocks)
        address = passes.address_of(self.by_pass, self.dtype)
        shown = self.by_pass.keeps.index(self.by_pass.predicts_with) if self.by_pass.predicts_with else -1
        rules = self.rules._replace(pass_address=address, pass_table=tables.address, predicts_with=shown)
        return rules, tables

    def _learn(self, samples: Samples, steps: slice, observations: Observations, record_every: int) -> None:
        x, y = samples.batch(steps)
        n, bad_label = len(x), None
        if self.classifies:
            bad = np.flatnonzero((y < 0) | (y >= self.tables.n_outputs))
            if len(bad):
                bad_label, n = int(y[bad[0]]), int(bad[0]) // self.batch_size * self.batch_size
        labels, targets = np.zeros(n, np.int64), np.zeros((n, self.tables.n_outputs), self.dtype)
        if self.classifies:
            labels[:] = y[:n]
        else:
            targets[:] = y[:n].reshape(targets.shape)
        step = observations.next_step
        recorded = self._recorded(step, n, record_every)
        correct, losses = np.zeros(n, np.bool_), np.zeros(n)
        step_sizes = np.zeros((len(recorded), len(self.blocks)))
        meta_gradients = np.zeros_like(step_sizes)
        planned = np.zeros((0, len(self.blocks)))
        if self.trajectory is not None:
            first_update = int(self.learned.blocks[0, k.N_REPLAYED])
            planned = self.trajectory.at(first_update + np.arange(-(-n // self.batch_size)))
        rules, _tables = self._rules()  # which have to live as long as the calls
        inputs, reports, n_learned, reason, value = self._inputs(x[:n]), [], 0, k.HANDED_BACK, 0.0
        while reason == k.HANDED_BACK:
            first, row = n_learned, len(self._recorded(step, n_learned, record_every))
            others = self.outside.report() if self.outside is not None and row < len(recorded) else {}
            with one_thread, flushed_denormals():
                n_more, reason, value = k.learn(
                    self.network,
                    self.learned,
                    rules,
                    self._memory,
                    self.units,
                    inputs[first:],
                    labels[first:],
                    targets[first:],
                    planned[-(-first // self.batch_size) :],
                    step + first,
                    record_every,
                    self.batch_size,
                    correct[first:],
                    losses[first:],
                    step_sizes[row:],
                    meta_gradients[row:],
                )
            n_learned += n_more
            reports += [others] * len(self._recorded(step + first, n_more, record_every))
            if reason == k.HANDED_BACK and self.outside is not None:
                self.outside.go_on()
        self.learned.blocks[:, k.N_REPLAYED] += -(-n_learned // self.batch_size)
        observations.correct += correct[:n_learned].tolist() if self.classifies else [None] * n_learned
        observations.loss += losses[:n_learned].tolist()
        for row, (recorded_step, report) in enumerate(zip(recorded, reports, strict=False)):
            values = zip(self.blocks, step_sizes[row].tolist(), strict=True)
            observations.step_sizes += [(recorded_step, name, size) for name, size in values]
            observations.measurements += [
                (recorded_step, quantity, name, "value", value)
                for name, quantities in report.items()
                for quantity, value in quantities.items()
            ]
            values = zip(self.blocks if self.by_pass is None else (), meta_gradients[row].tolist(), strict=False)
            observations.measurements += [
                (recorded_step, "meta_gradient", name, "value", gradient) for name, gradient in values
            ]
        if reason == k.LOSS_NOT_FINITE:
            check_finite(value, step + n_learned)
        if reason != k.LEARNED_ALL:
            name = self.blocks[reason]
            raise Diverged(step + n_learned, f"the meta gradient of block '{name}' is {value}", "meta_gradient", name)
        if bad_label is not None:
            raise ValueError(label_does_not_fit(bad_label, self.tables.n_outputs))


def make_memory(tables: NetworkTables, dtype: DTypeLike, n_blocks: int) -> k.Memory:
    """Room for the steps of a network."""
    return k.Memory(
        aligned_zeros(tables.n_activations, dtype),
        aligned_zeros(tables.n_activations, dtype),
        aligned_zeros(tables.n_images, dtype),
        np.zeros(tables.n_winners, np.int32),
        aligned_zeros(tables.n_scratch, dtype),
        aligned_zeros(tables.n_weights, dtype),
        aligned_zeros(k.N_ROWS * tables.n_row, dtype),
        room_for_update(dtype),
        np.zeros((n_blocks, 2)),
    )


def no_units(dtype: DTypeLike) -> k.Units:
    """Hidden units, of which there are none."""
    nothing = np.zeros(0, dtype)
    return k.Units(np.zeros((0, 8), np.int64), np.zeros((0, 3)), np.zeros(0), nothing, nothing, nothing)


def room_for_update(dtype: DTypeLike) -> k.Room:
    """Room for the update of one parameter."""
    pieces = {name: aligned_zeros(k.PIECE, dtype) for name in k.Room._fields}
    return k.Room(**pieces | {"one": np.ones(1, dtype), "constants": np.zeros(k.N_CONSTANTS, dtype)})


def aligned_empty(n: int, dtype: DTypeLike) -> NDArray[Any]:
    """As ``aligned_zeros``, with any numbers."""
    itemsize = np.dtype(dtype).itemsize
    room = np.empty(n + k.ALIGNMENT, dtype)
    first = -room.ctypes.data // itemsize % k.ALIGNMENT
    return room[first : first + n]


def aligned_zeros(n: int, dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros that begins where a line of the processor's cache begins."""
    numbers = aligned_empty(n, dtype)
    numbers[:] = 0
    return numbers


def aligned(numbers: NDArray[Any]) -> NDArray[Any]:
    """A copy of an array of one dimension that begins where a line of the processor's cache begins."""
    copy = aligned_zeros(len(numbers), numbers.dtype)
    copy[:] = numbers
    return copy


def libraries_that_multiply() -> ThreadpoolController:
    """The libraries of linear algebra that the kernels call, which are SciPy's.

    Other packages may load some of their own, which take no part. SciPy's wheels have theirs beside the package; where
    there is none, as with Conda, it shares one, which cannot be told from the others.
    """
    loaded = ThreadpoolController().select(user_api="blas")
    package = str(Path(scipy.__file__).parent)
    folders = f"{package}.libs{os.sep}", f"{package}{os.sep}"
    own = [library["filepath"] for library in loaded.info() if library["filepath"].startswith(folders)]
    return loaded.select(filepath=own) if own else loaded


class _OneThread:
    """Within it, this process multiplies matrices on one thread, as long as any of its threads is within it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_within = 0
        self._libraries: list[Any] | None = None  # since ThreadpoolController.limit takes 50 times as long
        self._before: list[tuple[Any, int]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._libraries is None:
                self._libraries = libraries_that_multiply().lib_controllers
            if self._n_within == 0:
                self._before = [(library, library.get_num_threads()) for library in self._libraries]
                self._set(1 for _ in self._before)
            self._n_within += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._n_within -= 1
            if self._n_within == 0:
                self._set(n for _, n in self._before)

    def _set(self, numbers: Iterable[int]) -> None:
        for (library, before), n in zip(self._before, numbers, strict=True):
            if before != 1:
                library.set_num_threads(n)


one_thread = _OneThread()
