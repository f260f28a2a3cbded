"""The population engine: many replicas of a network learn side by side, each with its own samples and step sizes.

Replicas of one network with one base and one meta update differ in weights, samples and every number that MetaOptimize
is set by. Their weights, optimizer states and step sizes are stacked along a first dimension, and one step of all of
them is one batched computation. On a GPU it is captured once as a CUDA graph and replayed, so that the host has as
little to do for many replicas as for one. What a replica learns is what ``MetaOptimize.step`` would have taught it
alone (Sharifnassab, Salehkaleybar, Sutton, arXiv 2402.02342, Hessian-free), up to rounding.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from continual_metaopt.engines.observations import (
    WEIGHTS_CHECKED_EVERY,
    Diverged,
    Observations,
    check_finite,
    label_does_not_fit,
    weights_not_finite,
)
from continual_metaopt.engines.wrapped import why_modules_are_needed, why_step_is_needed
from continual_metaopt.networks.losses import HalfSquaredError
from continual_metaopt.optim.base_updates import BaseUpdate
from continual_metaopt.optim.meta_updates import Rule
from continual_metaopt.optim.metaoptimize import MetaOptimize, NonFiniteMetaGradient
from continual_metaopt.optim.settings import Group

Replica = tuple[nn.Module, MetaOptimize]

META_STATE = ("step", "exp_avg", "exp_avg_sq")  # in the order in which meta rules take them
WARM_UP_STEPS = 3  # before a CUDA graph is captured: libraries set themselves up at their first calls


@dataclass(frozen=True)
class Portion:
    """What R replicas with B blocks each observed while they learned from n samples each, on the CPU.

    Predictions, losses and step sizes are those from before learning from the sample. Where a replica ended within the
    portion, what follows its last sample means nothing.

    Attributes:
        first_step: number of the first sample.
        n_learned: how many of the samples each replica learned from.
        correct: bool [R, n], whether the largest output was at the label; None for regression.
        loss: float64 [R, n].
        step_sizes: float64 [R, n, B].
        meta_gradients: float64 [R, n, B].
        blocks: names of the blocks.
    """

    first_step: int
    n_learned: list[int]
    correct: Tensor | None
    loss: Tensor
    step_sizes: Tensor
    meta_gradients: Tensor
    blocks: list[str]

    def observations(self, replica: int, experience: int, record_every: int) -> Observations:
        """What one replica observed, for its record.

        Args:
            replica: its number.
            experience: that the samples belong to.
            record_every: distance in steps between recorded step sizes.
        """
        n = self.n_learned[replica]
        recorded = range(-self.first_step % record_every, n, record_every)

        def rows(values: Tensor) -> list[tuple[int, str, float]]:
            return [
                (self.first_step + i, block, value)
                for i in recorded
                for block, value in zip(self.blocks, values[replica, i].tolist(), strict=True)
            ]

        return Observations(
            experience,
            self.first_step,
            correct=[None] * n if self.correct is None else self.correct[replica, :n].tolist(),
            loss=self.loss[replica, :n].tolist(),
            step_sizes=rows(self.step_sizes),
            measurements=[
                (step, "meta_gradient", block, "value", value) for step, block, value in rows(self.meta_gradients)
            ],
        )


class Population:
    """Replicas that learn side by side, batch size 1 each.

    Weights and states are copied when the population is made, and live in it until ``write_back`` copies them to the
    replicas' networks and optimizers, which then may go on alone. What others write to the replicas in between does
    not count.

    A replica whose loss or meta gradient is not finite ends: nothing is learned from that sample, its weights and state
    stay as they were before it, and the others go on. One ends, too, if its weights are not finite at the end of a
    portion that ends at a multiple of 1,000 samples.

    Args:
        replicas: networks with their optimizers. They may differ in weights and state, and in each group's lr, meta_lr,
            gamma, weight_decay and lr_bounds, but not in architecture, blocks, base and meta update, or steps taken.
        criterion: ``CrossEntropyLoss``, ``MSELoss`` or ``HalfSquaredError``; None for the first.
        device: where they learn, "cpu" or a CUDA device.
        n_samples: samples that they have learned from before.

    Attributes:
        n_samples: samples presented to each so far, those from before included.
        ended: the replicas that have ended, by number: at which sample, and why.

    Raises:
        ValueError: the replicas cannot learn side by side; the message says what differs.

    Example:
        >>> models = [nn.Linear(4, 3) for _ in range(2)]
        >>> optimizers = [MetaOptimize(m.parameters(), lr) for m, lr in zip(models, [1e-3, 1e-2])]
        >>> population = Population(list(zip(models, optimizers)))
        >>> seen = population.learn(torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.long))
        >>> seen.loss.shape
        torch.Size([2, 5])
        >>> population.write_back()
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        criterion: nn.Module | None = None,
        device: str | torch.device = "cpu",
        n_samples: int = 0,
    ) -> None:
        check_alike(replicas)
        self.replicas = list(replicas)
        self.device = torch.device(device)
        self.criterion = _checked_copy(criterion or nn.CrossEntropyLoss()).to(self.device)
        self.n_samples = n_samples
        self.ended: dict[int, Diverged] = {}
        model, optimizer = self.replicas[0]
        self.base, self.meta = optimizer.base, optimizer.meta
        self.blocks = list(optimizer.step_size_report())
        self._rule, self._constants = type(self.meta).rule, self.meta.constants  # type: ignore[attr-defined]
        self._network = copy.deepcopy(model).to(self.device)  # computes with the weights of any replica
        self._step_sizes = _StepSizes([optimizer for _, optimizer in self.replicas], self.device)
        places = {id(group): place for place, block in enumerate(optimizer.blocks()) for group in block}
        self._groups = [
            _Group(self.replicas, index, places[id(group)], self.device)
            for index, group in enumerate(optimizer.param_groups)
        ]
        self._weights = {name: tensor for group in self._groups for name, tensor in group.parameters.items()}
        self._untrained = {
            name: torch.stack([_tensors_of(replica)[name].detach() for replica, _ in self.replicas]).to(self.device)
            for name in _tensors_of(model)
            if name not in self._weights
        }
        self._numbers_at_end: dict[int, list[float]] = {}
        self._graph: torch.cuda.CUDAGraph | None = None
        self._kind: tuple[Any, ...] | None = None  # of the samples that the step is prepared for

    def __len__(self) -> int:
        return len(self.replicas)

    def learn(self, x: Tensor, y: Tensor) -> Portion:
        """Learn from n samples per replica, one after the other. The host does not wait for the device before the end.

        Args:
            x: inputs [R, n, …].
            y: integer labels [R, n], or targets [R, n, …] for squared errors.

        Returns:
            What the replicas observed.

        Raises:
            ValueError: shapes or labels do not fit, the network draws random numbers, or it does not use a parameter.
        """
        n = x.shape[1]
        if x.shape[0] != len(self) or y.shape[:2] != x.shape[:2] or n == 0:
            raise ValueError(f"{len(self)} replicas cannot learn from x {list(x.shape)} and y {list(y.shape)}")
        kind = (x.shape[2:], x.dtype, y.shape[2:], y.dtype)
        if kind != self._kind:
            self._prepare(x[:, :1], y[:, :1])
            self._kind = kind
        self._check_labels(y)  # on a GPU, a label beyond the outputs would end all use of it by this process
        x, y = x.to(self.device), y.to(self.device)
        before = self._copies()
        seen = self._run(x, y).cpu().transpose(0, 1)
        n_blocks = len(self.blocks)
        loss, correct, step_sizes, meta_gradients = seen.split([1, 1, n_blocks, n_blocks], dim=2)
        n_learned = [
            0 if replica in self.ended else self._n_before_end(replica, loss[replica, :, 0], meta_gradients[replica])
            for replica in range(len(self))
        ]
        if self.ended:
            self._keep_ended(before, n_learned, x, y)
        if (self.n_samples + n) % WEIGHTS_CHECKED_EVERY == 0:
            self._end_where_weights_are_not_finite(self.n_samples + n)
        learns, noted = self._step_sizes.learns.cpu(), self._step_sizes.meta_gradient.cpu()
        portion = Portion(
            self.n_samples,
            n_learned,
            None if y.is_floating_point() else correct[:, :, 0] > 0,
            loss[:, :, 0],
            step_sizes,
            # MetaOptimize reports nothing new of blocks whose step size is fixed
            torch.where(learns[:, None], meta_gradients, noted[:, None]),
            self.blocks,
        )
        self.n_samples += n
        return portion

    def network(self, replica: int) -> nn.Module:
        """A network on the device with a replica's current weights, good until the next use of this method."""
        stacked = self._weights | self._untrained
        with torch.no_grad():
            for name, tensor in _tensors_of(self._network).items():
                tensor.copy_(stacked[name][replica])
        return self._network

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy weights, states and step sizes to the replicas' networks and optimizers."""
        for group in self._groups:
            group.write_back(self.replicas)
        self._step_sizes.write_back([optimizer for _, optimizer in self.replicas])
        for name, stacked in self._untrained.items():
            for (model, _), tensor in zip(self.replicas, stacked.cpu(), strict=True):
                _tensors_of(model)[name].detach().copy_(tensor)
        for replica, numbers in self._numbers_at_end.items():
            remaining = iter(numbers)
            for group in self._groups:
                group.write_numbers(self.replicas[replica], remaining)

    def _prepare(self, x: Tensor, y: Tensor) -> None:
        """Make room for one sample [R, 1, …] per replica, and see how many outputs the network makes of it."""
        self._x, self._y = (part.to(self.device, copy=True) for part in (x, y))
        self._graph = None
        self._seen = torch.zeros(len(self), 2 + 2 * len(self.blocks), dtype=torch.float64, device=self.device)
        untrained = {name: tensor.clone() for name, tensor in self._untrained.items()}
        try:
            with torch.no_grad():
                self._n_outputs = self._predictions(untrained).shape[2]
        except RuntimeError as error:
            if "randomness" not in str(error):
                raise
            raise ValueError(
                "the network draws random numbers while it learns, as dropout does; replicas that learn side by side "
                "cannot draw those that each would draw alone"
            ) from error

    def _check_labels(self, y: Tensor) -> None:
        if y.is_floating_point() or not isinstance(self.criterion, nn.CrossEntropyLoss):
            return
        wrong = y[(y < 0) | (y >= self._n_outputs)]
        if len(wrong):
            raise ValueError(label_does_not_fit(int(wrong[0]), self._n_outputs))

    def _run(self, x: Tensor, y: Tensor) -> Tensor:
        """Learn from samples; returns what was seen of each, float64 [n, R, 2 + 2 B], still on the device."""
        if self.device.type == "cuda" and self._graph is None:
            self._graph = self._captured()
        advance = self._step if self._graph is None else self._graph.replay
        seen = self._seen.new_empty(x.shape[1], *self._seen.shape)
        for i in range(x.shape[1]):
            self._x.copy_(x[:, i : i + 1])
            self._y.copy_(y[:, i : i + 1])
            advance()
            seen[i].copy_(self._seen)
        return seen

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step as a CUDA graph; as steps are taken to warm up, everything is put back afterwards."""
        before, identities = self._copies(), list(map(id, self._tensors()))
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.cuda.device(self.device), exact:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            if list(map(id, self._tensors())) != identities:
                raise ValueError(f"{self.base} must change its state in place, so that the step can be captured")
            self._restore(before)
            with torch.cuda.graph(graph):
                self._step()
        return graph

    @torch.no_grad()
    def _step(self) -> None:
        """Learn from the sample in ``_x`` and ``_y``, and note in ``_seen`` what was seen.

        Nothing here waits for the device or depends on values on the host, and whatever lasts is changed in place.
        """
        with torch.enable_grad():
            outputs = self._predictions(self._untrained)
            losses = vmap(self.criterion)(outputs, self._y)
            # replicas are independent of each other, so these are the gradients of each one's own loss
            found = torch.autograd.grad(losses.sum(), list(self._weights.values()), allow_unused=True)
        gradients = dict(zip(self._weights, found, strict=True))
        unused = [name for name, gradient in gradients.items() if gradient is None]
        if unused:
            raise ValueError(f"the network does not use its parameter '{unused[0]}'; leave it out of the optimizer")
        step_sizes = self._step_sizes.current
        meta_gradients = torch.zeros_like(step_sizes)
        flat = [group.flat(gradients) for group in self._groups]
        for group, gradient in zip(self._groups, flat, strict=True):
            group.add_meta_gradient(meta_gradients[:, group.block], gradient)
        if self._y.is_floating_point():
            correct = torch.zeros_like(step_sizes[:, 0])
        else:
            correct = (outputs.flatten(1).argmax(dim=1) == self._y[:, 0]).double()
        scores = torch.stack([losses.detach().double(), correct], dim=1)
        torch.cat([scores, step_sizes, meta_gradients], dim=1, out=self._seen)
        for group, gradient in zip(self._groups, flat, strict=True):
            group.move(self.base, gradient, step_sizes[:, group.block])
        self._step_sizes.update(self._rule, self._constants, meta_gradients)

    def _predictions(self, untrained: dict[str, Tensor]) -> Tensor:
        """Outputs [R, 1, outputs] for the sample in ``_x``."""

        def predict(weights: dict[str, Tensor], untrained: dict[str, Tensor], x: Tensor) -> Tensor:
            output: Tensor = functional_call(self._network, (weights, untrained), (x,))
            return output

        outputs: Tensor = vmap(predict)(self._weights, untrained, self._x)
        return outputs

    def _n_before_end(self, replica: int, losses: Tensor, meta_gradients: Tensor) -> int:
        """How many of n samples a replica learned from, given what was seen: [n] and [n, B]. Notes why it ended."""
        finite = losses.isfinite() & meta_gradients.isfinite().all(dim=1)
        if finite.all():
            return len(finite)
        n = int(finite.int().argmin())
        optimizer = self.replicas[replica][1]
        try:
            check_finite(losses[n].item(), self.n_samples + n)
            for block, meta_gradient in zip(optimizer.blocks(), meta_gradients[n].tolist(), strict=True):
                optimizer.check_meta_gradient(block, meta_gradient)
        except NonFiniteMetaGradient as error:
            self.ended[replica] = Diverged(self.n_samples + n, str(error), "meta_gradient", error.block)
        except Diverged as error:
            self.ended[replica] = error
        return n

    def _end_where_weights_are_not_finite(self, step: int) -> None:
        finite = torch.stack([group.weights.isfinite().all(dim=1) for group in self._groups]).all(dim=0)
        for replica in (~finite).nonzero().flatten().tolist():
            if replica not in self.ended:
                self.ended[replica] = weights_not_finite(step)
                shared = [tensor.item() for tensor in self._tensors() if not tensor.dim()]
                self._numbers_at_end.setdefault(replica, shared)

    def _keep_ended(self, before: list[Tensor], n_learned: list[int], x: Tensor, y: Tensor) -> None:
        """Put the replicas that have ended back to where they were before the sample at which they did.

        All replicas go through every sample, because looking for bad ones at each step would cost more than repeating
        the few portions in which a replica ends.

        Args:
            before: everything as it was before the portion.
            n_learned: samples of the portion from which each replica learned.
            x: inputs of the portion.
            y: its targets.
        """
        after = self._copies()
        self._restore(before)
        position = 0
        for end in sorted({n_learned[replica] for replica in self.ended}):
            self._run(x[:, position:end], y[:, position:end])
            position = end
            ending = [replica for replica in self.ended if n_learned[replica] == end]
            for kept, tensor in zip(after, self._tensors(), strict=True):
                if tensor.dim():
                    kept[ending] = tensor[ending]
            numbers = [tensor.item() for tensor in self._tensors() if not tensor.dim()]
            for replica in ending:
                self._numbers_at_end.setdefault(replica, numbers)
        self._restore(after)

    def _tensors(self) -> Iterator[Tensor]:
        """Everything that a step changes: of each replica [R, …], or a number that all share []."""
        for group in self._groups:
            yield from group.tensors()
        yield from self._untrained.values()
        yield from self._step_sizes.tensors()

    def _copies(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self._tensors()]

    def _restore(self, copies: list[Tensor]) -> None:
        for tensor, saved in zip(self._tensors(), copies, strict=True):
            tensor.copy_(saved)


class _Group:
    """The parameters of one param group of all replicas, [R, P], with their base updates' states and traces.

    A replica's parameters lie one after the other in its row, so that one operation updates the whole group.
    """

    def __init__(self, replicas: Sequence[Replica], index: int, block: int, device: torch.device) -> None:
        self.index, self.block = index, block
        groups = [optimizer.param_groups[index] for _, optimizer in replicas]
        states = [
            [optimizer.prepared_state(group, param) for param in group["params"]]
            for (_, optimizer), group in zip(replicas, groups, strict=True)
        ]
        names = {param: name for name, param in replicas[0][0].named_parameters()}
        self.shapes = {names[param]: param.shape for param in groups[0]["params"]}

        def stacked(rows: list[list[Tensor]]) -> Tensor:
            flat = [torch.cat([tensor.detach().flatten() for tensor in row]) for row in rows]
            return torch.stack(flat).to(device)

        def column(setting: str) -> Tensor:
            return torch.tensor([group[setting] for group in groups], dtype=torch.float64, device=device)

        self.weights = stacked([group["params"] for group in groups])
        self.state: dict[str, Tensor] = {}
        for key, value in states[0][0].items():
            values = [[state[key] for state in row] for row in states] if key != "trace" else []
            if isinstance(value, Tensor) and values:
                self.state[key] = stacked(values)
            elif values:
                self.state[key] = torch.tensor(_same_number(key, values), dtype=torch.float64, device=device)
        self.gamma, self.weight_decay = column("gamma"), column("weight_decay")
        self.fixed = column("meta_lr") == 0
        self.decays = any(group["weight_decay"] > 0 for group in groups)
        self.trace: Tensor | None = None
        if any(group["meta_lr"] > 0 for group in groups):
            self.trace = stacked(
                [
                    [
                        state.get("trace", torch.zeros_like(param))
                        for state, param in zip(row, group["params"], strict=True)
                    ]
                    for row, group in zip(states, groups, strict=True)
                ]
            )
        self.parameters = {
            name: part.detach().requires_grad_()
            for name, part in zip(self.shapes, self._parts(self.weights), strict=True)
        }

    def flat(self, gradients: dict[str, Tensor]) -> Tensor:
        """Gradients of the group's parameters, [R, P]."""
        parts = [gradients[name].reshape(len(self.weights), -1) for name in self.shapes]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def add_meta_gradient(self, total: Tensor, gradient: Tensor) -> None:
        """Add Σ h·g of each replica to ``total`` [R], where the replica has a trace."""
        if self.trace is not None:
            products = (self.trace * gradient).sum(dim=1)
            total.add_(products.masked_fill_(self.fixed, 0.0))

    def move(self, base: BaseUpdate, gradient: Tensor, step_size: Tensor) -> None:
        """Update weights and traces with step sizes [R], as ``MetaOptimize.step`` does."""
        direction = base.direction(self.state, gradient)
        shrinkage = 1 - step_size * self.weight_decay
        scale = self._column(step_size / direction.divisor)
        if direction.denominator is None:
            step = direction.numerator * scale
        else:
            step = (direction.numerator / direction.denominator).mul_(scale)
        if self.trace is not None:
            self.trace.mul_(self._column(self.gamma * shrinkage))
            if self.decays:
                self.trace.addcmul_(self.weights, self._column(-step_size * self.weight_decay))
            self.trace.sub_(step)
        if self.decays:
            self.weights.mul_(self._column(shrinkage))
        self.weights.sub_(step)

    def tensors(self) -> Iterator[Tensor]:
        """All that a step changes."""
        yield self.weights
        yield from self.state.values()
        if self.trace is not None:
            yield self.trace

    def write_back(self, replicas: Sequence[Replica]) -> None:
        """Copy weights, states and traces to the replicas."""
        sources = {key: tensor for key, tensor in self.state.items() if tensor.dim()}
        if self.trace is not None:
            sources["trace"] = self.trace
        parts = {key: self._parts(tensor.cpu()) for key, tensor in sources.items()}
        weights = self._parts(self.weights.cpu())
        for replica, (_, optimizer) in enumerate(replicas):
            group = optimizer.param_groups[self.index]
            for position, param in enumerate(group["params"]):
                param.copy_(weights[position][replica])
                for key in sources:
                    if key != "trace" or group["meta_lr"] > 0:
                        optimizer.state[param][key].copy_(parts[key][position][replica])
        numbers = [tensor.item() for tensor in self.state.values() if not tensor.dim()]
        for pair in replicas:
            self.write_numbers(pair, iter(numbers))

    def write_numbers(self, replica: Replica, numbers: Iterator[float]) -> None:
        """Take the numbers that all replicas share, in the order of the state, and write them to one replica's."""
        optimizer = replica[1]
        for key, tensor in self.state.items():
            if not tensor.dim():
                number = next(numbers)
                for param in optimizer.param_groups[self.index]["params"]:
                    state = optimizer.state[param]
                    state[key] = type(state[key])(number)

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """Views [R, …] of each parameter's part of [R, P]."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = flat.split(sizes, dim=1)
        return [part.view(-1, *shape) for part, shape in zip(parts, self.shapes.values(), strict=True)]

    def _column(self, values: Tensor) -> Tensor:
        """Factors [R] of the replicas' rows, computed in double precision like MetaOptimize's."""
        return values.to(self.weights.dtype)[:, None]


class _StepSizes:
    """What MetaOptimize keeps of each block in ``learned``, of all replicas: float64 [R, B]."""

    def __init__(self, optimizers: Sequence[MetaOptimize], device: torch.device) -> None:
        replicas = [optimizer.blocks() for optimizer in optimizers]
        for optimizer, blocks in zip(optimizers, replicas, strict=True):
            for block in blocks:
                optimizer.current_step_size(block)  # takes over what others wrote to "lr"

        def stacked(value: Callable[[Group], float]) -> Tensor:
            rows = [[float(value(block[0])) for block in blocks] for blocks in replicas]
            return torch.tensor(rows, dtype=torch.float64, device=device)

        def learned(key: str) -> Tensor:
            return stacked(lambda group: group["learned"][key])

        def meta_state(key: str) -> Tensor:
            return stacked(lambda group: group["learned"]["meta_state"][key])

        def log_bound(side: int) -> Tensor:
            def of(group: Group) -> float:  # a step size that is fixed may be 0
                learns = group["meta_lr"] > 0
                return math.log(group["lr_bounds"][side] / group["learned"]["reference"]) if learns else 0.0

            return stacked(of)

        self.meta_lr = stacked(lambda group: group["meta_lr"])
        self.learns = self.meta_lr > 0
        self.low, self.log_low = stacked(lambda group: group["lr_bounds"][0]), log_bound(0)
        self.high, self.log_high = stacked(lambda group: group["lr_bounds"][1]), log_bound(1)
        self.reference, self.current = learned("reference"), learned("written")
        self.log_ratio, self.meta_gradient = learned("log_ratio"), learned("meta_gradient")
        self.meta_state = {key: meta_state(key) for key in META_STATE}

    def update(self, rule: Rule, constants: tuple[float, float, float], meta_gradients: Tensor) -> None:
        """Make the meta update, as ``MetaOptimize.update_step_size`` does."""
        step, mean, square = self.meta_state.values()
        change, *meta_state = rule(step, mean, square, meta_gradients, self.meta_lr, *constants)
        log_ratio = (self.log_ratio + change).clamp(self.log_low, self.log_high)
        current = (self.reference * log_ratio.exp()).clamp(self.low, self.high)
        new = [current, log_ratio, meta_gradients, *meta_state]
        for tensor, value in zip(self.tensors(), new, strict=True):
            tensor.copy_(torch.where(self.learns, value, tensor))

    def tensors(self) -> Iterator[Tensor]:
        """All that a step changes."""
        yield from (self.current, self.log_ratio, self.meta_gradient, *self.meta_state.values())

    def write_back(self, optimizers: Sequence[MetaOptimize]) -> None:
        """Copy step sizes and meta states to the replicas' optimizers."""
        values = torch.stack(list(self.tensors()), dim=2).tolist()
        for optimizer, rows in zip(optimizers, values, strict=True):
            for block, (step_size, log_ratio, meta_gradient, *meta_state) in zip(optimizer.blocks(), rows, strict=True):
                state = dict(zip(META_STATE, meta_state, strict=True))
                learned = {"log_ratio": log_ratio, "meta_gradient": meta_gradient, "meta_state": state}
                optimizer.take_step_size(block, step_size, learned)


def check_alike(replicas: Sequence[Replica]) -> None:
    """Check that networks with their optimizers can learn side by side, whatever their weights, states and settings.

    Raises:
        ValueError: they cannot; the message says what differs.
    """
    if not replicas:
        raise ValueError("a population needs at least one replica")
    first = _description(0, *replicas[0])
    for number, replica in enumerate(replicas[1:], start=1):
        for feature, items in _description(number, *replica).items():
            for ours, theirs in zip_longest(items, first[feature], fillvalue="nothing"):
                if ours != theirs:
                    raise ValueError(
                        f"replica {number} differs from replica 0 in its {feature}: {_text(ours)} instead of "
                        f"{_text(theirs)}"
                    )
    owners: dict[nn.Parameter, int] = {}
    for number, (model, _) in enumerate(replicas):
        for name, param in model.named_parameters():
            if owners.setdefault(param, number) != number:
                raise ValueError(f"replicas {owners[param]} and {number} share their parameter '{name}'")


def _description(number: int, model: nn.Module, optimizer: Any) -> dict[str, list[Any]]:
    """What the replicas of a population have in common."""
    if type(optimizer) is not MetaOptimize:
        raise ValueError(f"the optimizer of replica {number} is {type(optimizer).__name__}, not MetaOptimize")
    beyond = why_step_is_needed(optimizer) or why_modules_are_needed(model) or optimizer.why_not_plain()
    if beyond is not None:
        raise ValueError(f"replicas cannot learn side by side where {beyond}, as for replica {number}")
    if not hasattr(type(optimizer.meta), "rule") or tuple(optimizer.meta.init()) != META_STATE:
        raise ValueError(f"the meta update of replica {number} is no function of numbers, as populations need it")
    names = {param: name for name, param in model.named_parameters()}
    members: list[str] = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            if not param.requires_grad or param not in names or param.dtype != group["params"][0].dtype:
                raise ValueError(
                    f"a parameter of replica {number}'s group '{group.get('name')}' is not trained, not the network's, "
                    "or of another type than the group's first"
                )
        if not group["params"]:
            raise ValueError(f"replica {number}'s group '{group.get('name')}' has no parameters")
        members.append(f"{group.get('name')}: {', '.join(names[param] for param in group['params'])}")
    tensors = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in _tensors_of(model).items()
    ]
    return {
        "network": str(model).splitlines(),
        "parameters": tensors,
        "base update": [optimizer.base],
        "meta update": [optimizer.meta],
        "blocks": members,
        "step_sizes": [group["step_sizes"] for group in optimizer.param_groups],
    }


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else str(value)


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _same_number(key: str, rows: list[list[float]]) -> float:
    """A number of the base update's state, such as its step, which all parameters of all replicas must share.

    Raises:
        ValueError: they do not.
    """
    for number, row in enumerate(rows):
        for value in row:
            if value != rows[0][0]:
                raise ValueError(
                    f"replicas can only go on together after equally many steps, but the {key} of replica {number} is "
                    f"{value}, and of replica 0 it is {rows[0][0]}"
                )
    return rows[0][0]


def _checked_copy(criterion: nn.Module) -> nn.Module:
    known = (nn.CrossEntropyLoss, nn.MSELoss, HalfSquaredError)
    if not isinstance(criterion, known) or getattr(criterion, "reduction", "mean") == "none":
        raise ValueError(f"a population learns with CrossEntropyLoss, MSELoss or HalfSquaredError, not {criterion}")
    return copy.deepcopy(criterion)
