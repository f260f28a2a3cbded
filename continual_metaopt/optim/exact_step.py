"""The part of MetaOptimize's step that exact traces have and Hessian-free ones have not.

It takes the gradients together with the graph that curvature needs, numbers the learned step sizes, gathers what
``traces.py`` works on from the optimizer's groups and state, and keeps the traces there:

    state[param]["traces"]             traces of a parameter, as ``TraceRule.init_parameter`` made them
    param_groups[0]["meta_traces"]     traces of the log step sizes and of the meta states
    param_groups[0]["trace_layout"]    which step sizes there are: [group, position in it or −1 for all of it, shape]

Where step sizes are added (by a new group, or a head that grew), the columns of the old ones stay, and those of the new
ones start at 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from continual_metaopt.optim.base import Group
from continual_metaopt.optim.base import gradients as gradients_of
from continual_metaopt.optim.blocks import FINE, shape_of
from continual_metaopt.optim.curvature import make_curvature
from continual_metaopt.optim.meta_updates import MetaUpdate
from continual_metaopt.optim.traces import MetaStep, TracedParameter, TraceRule, Traces, check_memory

Layout = list[list[Any]]

TRACES = "traces"
META_TRACES = "meta_traces"
LAYOUT = "trace_layout"


class LearnsExactly(Protocol):
    """What exact traces need of the optimizer that keeps them, which is ``MetaOptimize``."""

    param_groups: list[Group]
    state: Any
    meta: MetaUpdate

    def blocks(self) -> list[list[Group]]:
        """Give the param groups of each block."""

    def has_left(self, gradient: Tensor) -> bool:
        """Tell whether a gradient is the optimizer's own, from its last step."""

    def prepared_state(self, group: Group, param: Tensor) -> dict[str, Any]:
        """Give a parameter's state, made at its first update."""

    def value_of(self, block: list[Group], group: Group, param: Tensor, kind: str) -> Any:
        """Give what holds for a parameter: a number, or a tensor that broadcasts against it."""


class Owner(NamedTuple):
    """A block, or a parameter of a fine-grained one, whose step sizes have consecutive numbers."""

    block: list[Group]
    param: Tensor | None
    first: int
    shape: tuple[int, ...]
    place: tuple[int, int]
    """Number of the group, and of the parameter in it or −1."""

    @property
    def numbers(self) -> slice:
        """The numbers of its step sizes."""
        return slice(self.first, self.first + math.prod(self.shape))


class Evaluation(NamedTuple):
    """A loss, and the parameters that have a gradient with the gradients' graphs."""

    loss: Tensor
    output: Tensor | None
    params: list[Tensor]
    gradients: list[Tensor]


@dataclass(frozen=True)
class ExactTraces:
    """How an optimizer keeps exact traces.

    Args:
        rule: of the traces.
        memory_limit: bytes that they may take; None for no limit.
    """

    rule: TraceRule
    memory_limit: float | None

    def __str__(self) -> str:
        rule = self.rule
        return (
            f"trace={rule.variant!r}, update_order={rule.update_order!r}, curvature={rule.curvature!r}, "
            f"curvature_smoothing={rule.smoothing}, curvature_clip={rule.clip}"
        )

    def check_memory(self, optimizer: LearnsExactly) -> None:
        """Refuse traces that would not fit.

        Raises:
            ValueError: they need more than the limit.
        """
        groups = optimizer.param_groups
        params = [p for group in groups if self._is_traced(group) for p in group["params"]]
        check_memory(self.rule, params, _count(owners_of(optimizer)), self.memory_limit)

    def evaluate(self, closure: Callable[[], Any] | None, optimizer: LearnsExactly) -> Evaluation:
        """Evaluate the closure's loss and gradients with their graphs; fill ``p.grad`` where nobody else has.

        Args:
            closure: returns the loss with its graph, or (loss, output).
            optimizer: of the parameters.

        Raises:
            ValueError: there is no closure, what it returns can't be differentiated twice, or a gradient is sparse or
                complex.
        """
        rule = self.rule
        if closure is None:
            raise ValueError(
                f'trace="{rule.variant}" needs the curvature of the loss: in place of loss.backward() and '
                f"optimizer.step(), call optimizer.step(lambda: {'(loss, output)' if rule.needs_output else 'loss'})"
            )
        with torch.enable_grad():
            result = closure()
        loss, output = result if isinstance(result, tuple) else (result, None)
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            what = "a tensor without one" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise ValueError(
                f'trace="{rule.variant}" needs the loss with its graph, but the closure returned {what}; '
                "return what the criterion made of the network's output, neither detached nor as a number"
            )
        if rule.needs_output and not isinstance(output, Tensor):
            raise ValueError(
                f'curvature="{rule.curvature}" needs the network\'s output: let the closure return (loss, output)'
            )
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        try:
            gradients = torch.autograd.grad(
                loss, params, create_graph=not rule.needs_output, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            if "graph a second time" not in str(error):
                raise
            raise ValueError(
                f'the graph that trace="{rule.variant}" differentiates is gone, as after loss.backward(): leave it to '
                "the optimizer to compute gradients, or call loss.backward(retain_graph=True)"
            ) from error
        if not any(p.grad is not None and not optimizer.has_left(p.grad) for p in params):
            for p, gradient in zip(params, gradients, strict=True):
                p.grad = None if gradient is None else gradient.detach().clone()
        graphs = dict(zip(map(id, params), gradients, strict=True))
        chosen = [
            p
            for group in optimizer.param_groups
            for p, _ in gradients_of(cast(Optimizer, optimizer), group)
            if p.requires_grad
        ]
        found = [torch.zeros_like(p) if graphs[id(p)] is None else graphs[id(p)] for p in chosen]
        return Evaluation(loss, output, chosen, found)

    def start(self, optimizer: LearnsExactly, evaluation: Evaluation) -> "ExactStep":
        """Get ready for a step whose gradients are known; makes traces that are missing.

        Raises:
            ValueError: the traces need more memory than the limit.
        """
        owners = owners_of(optimizer)
        layout = [[*owner.place, list(owner.shape)] for owner in owners]
        leader = optimizer.param_groups[0]
        if leader.get(LAYOUT) != layout:
            self.check_memory(optimizer)
            self._follow(optimizer, leader.get(LAYOUT, []), layout)
        places = {(id(o.block[0]), None if o.param is None else id(o.param)): o for o in owners}
        with_gradient = {id(p) for p in evaluation.params}
        traced: list[tuple[Tensor, list[Group], Group, Owner | None]] = []
        for block in optimizer.blocks():
            for group in block:
                if not owners or not self._is_traced(group):
                    continue
                for p in group["params"]:
                    if id(p) in with_gradient:
                        key = id(p) if group["step_sizes"] in FINE else None
                        traced.append((p, block, group, places.get((id(block[0]), key))))
                        state = optimizer.prepared_state(group, p)
                        if TRACES not in state:
                            state[TRACES] = self.rule.init_parameter(p, _count(owners))
        return ExactStep(self.rule, optimizer, evaluation, owners, traced)

    def _is_traced(self, group: Group) -> bool:
        """Whether learned step sizes move a group's weights: element by element, only their own do."""
        return group["meta_lr"] > 0 or not self.rule.elementwise

    def _follow(self, optimizer: LearnsExactly, old: Layout, new: Layout) -> None:
        """Bring all traces to a new set of step sizes."""
        leader = optimizer.param_groups[0]
        kept = _kept_numbers(old, new)
        elementwise = self.rule.elementwise
        if META_TRACES in leader:
            meta_traces: Traces = {
                name: _taken(value, kept, (0,) if elementwise else (0, 1))
                for name, value in leader[META_TRACES].items()
            }
            unit = meta_traces["log_step_size"]
            (unit if elementwise else unit.diagonal())[(kept < 0).to(unit.device)] = 1.0
        else:
            meta_traces = self.rule.init_meta(len(kept), device=leader["params"][0].device)
        leader[META_TRACES] = meta_traces
        leader[LAYOUT] = new
        if elementwise:
            return
        for state in optimizer.state.values():
            for name, value in state.get(TRACES, {}).items():
                if isinstance(value, Tensor):
                    state[TRACES][name] = _taken(value, kept, (0, 1) if name == "second" else (0,))


class ExactStep:
    """Do a step of exact traces: ``meta_gradients``, ``note_meta_step`` before any update, then ``advance``."""

    def __init__(
        self,
        rule: TraceRule,
        optimizer: LearnsExactly,
        evaluation: Evaluation,
        owners: list[Owner],
        traced: list[tuple[Tensor, list[Group], Group, Owner | None]],
    ) -> None:
        self.rule, self.optimizer, self.evaluation = rule, optimizer, evaluation
        self.owners, self.traced = owners, traced
        learning = {id(p if group["step_sizes"] in FINE else block[0]) for p, block, group, _ in traced}
        self.learning = [o for o in owners if id(o.block[0] if o.param is None else o.param) in learning]
        """Owners with a gradient in this step."""

    def meta_gradients(self) -> Tensor:
        """Compute z with the traces as they are: float64 [m]."""
        return self.rule.meta_gradients(self._parameters(), _count(self.owners))

    def note_meta_step(self, gradient: Tensor) -> MetaStep:
        """Note the meta update that is about to be made, with copies of the state that it will change."""
        traces = self.optimizer.param_groups[0][META_TRACES]
        gradient = gradient.clone()
        step_size, active = torch.zeros_like(gradient), torch.zeros_like(gradient, dtype=torch.bool)
        state: dict[str, Any] = {
            name: torch.full_like(gradient, value) for name, value in self.optimizer.meta.init().items()
        }
        for owner in self.learning:
            numbers, group = owner.numbers, owner.block[0]
            record = group["learned"] if owner.param is None else self.optimizer.state[owner.param]["learned"]
            step_size[numbers] = group["meta_lr"]
            active[numbers] = record.get("n_pending", 0) + 1 >= group["meta_every"]
            gradient[numbers] += _flat(record.get("pending", 0.0), gradient)
            for name, value in record["meta_state"].items():
                state[name][numbers] = _flat(value, gradient)
        return MetaStep(state, gradient, step_size, traces, active=active)

    def advance(self, meta_step: MetaStep) -> None:
        """Advance the traces by the step, whose weights are still those from before."""
        gamma = [
            torch.full((math.prod(owner.shape),), owner.block[0]["gamma"], dtype=torch.float64) for owner in self.owners
        ]
        numbers = {id(p): i for i, p in enumerate(self.evaluation.params)}
        chosen = [numbers[id(p)] for p, *_ in self.traced]
        params = [self.evaluation.params[i] for i in chosen]
        gradients = [self.evaluation.gradients[i] for i in chosen]
        with torch.enable_grad():
            curvature = make_curvature(
                self.rule.curvature, params, gradients, self.evaluation.loss, self.evaluation.output
            )
        self.rule.advance(self._parameters(), meta_step, torch.cat(gamma), curvature)

    def _parameters(self) -> list[TracedParameter]:
        parameters = []
        for p, block, group, owner in self.traced:
            state = self.optimizer.state[p]
            index = None
            if owner is not None:
                index = torch.arange(owner.numbers.start, owner.numbers.stop, device=p.device).reshape(owner.shape)
            parameters.append(
                TracedParameter(
                    p,
                    p.grad,  # type: ignore[arg-type]
                    {name: value for name, value in state.items() if name not in (TRACES, "learned")},
                    state[TRACES],
                    self.optimizer.value_of(block, group, p, "lr"),
                    index,
                    group["weight_decay"],
                )
            )
        return parameters


def owners_of(optimizer: LearnsExactly) -> list[Owner]:
    """List what the learned step sizes of an optimizer belong to, in the order of their numbers."""
    owners: list[Owner] = []
    places = {id(group): number for number, group in enumerate(optimizer.param_groups)}
    first = 0
    for block in optimizer.blocks():
        group = block[0]
        if not group["meta_lr"] > 0:
            continue
        fine = group["step_sizes"] in FINE
        for position, param in enumerate(group["params"]) if fine else [(-1, None)]:
            shape = () if param is None else tuple(shape_of(group["step_sizes"], param))
            owners.append(Owner(block, param, first, shape, (places[id(group)], position)))
            first += math.prod(shape)
    return owners


def _count(owners: Sequence[Owner]) -> int:
    return owners[-1].numbers.stop if owners else 0


def _flat(value: Any, like: Tensor) -> Tensor:
    """A number, or a tensor of one per step size, in one dimension."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).flatten()


def _kept_numbers(old: Layout, new: Layout) -> Tensor:
    """For each step size its number before, or −1 where it is new."""
    before, first = {}, 0
    for *place, shape in old:
        numbers = torch.arange(first, first + math.prod(shape))
        before[tuple(place)] = numbers.reshape(shape)
        first += len(numbers)
    kept = [torch.zeros(0, dtype=torch.long)]
    for *place, shape in new:
        numbers = torch.full(shape, -1)
        known = before.get(tuple(place))
        if known is not None and known.dim() == numbers.dim():
            overlap = tuple(slice(0, min(sizes)) for sizes in zip(known.shape, shape, strict=True))
            numbers[overlap] = known[overlap]
        kept.append(numbers.flatten())
    return torch.cat(kept)


def _taken(value: Tensor, kept: Tensor, dims: Sequence[int]) -> Tensor:
    """The entries of a trace that belong to the step sizes that there are now, 0 for new ones."""
    for dim in dims:
        zeros = value.new_zeros(*value.shape[:dim], 1, *value.shape[dim + 1 :])
        numbers = torch.where(kept < 0, value.shape[dim], kept).to(value.device)
        value = torch.cat([value, zeros], dim).index_select(dim, numbers)
    return value
