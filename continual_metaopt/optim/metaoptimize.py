"""MetaOptimize: any base update, with step sizes that a meta update tunes while learning.

Sharifnassab, Salehkaleybar, Sutton, "MetaOptimize: A Framework for Optimizing Step Sizes and Other Meta-parameters",
arXiv 2402.02342. Here in its Hessian-free form; what exact traces add to a step is in ``exact_step.py``.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim import parametrisations
from continual_metaopt.optim.base import gradients
from continual_metaopt.optim.base_updates import BASE_UPDATES, Base, BaseUpdate, Direction
from continual_metaopt.optim.blocks import FINE, StepSizes, shape_of, summed
from continual_metaopt.optim.curvature import CurvatureKind
from continual_metaopt.optim.exact_step import ExactTraces
from continual_metaopt.optim.learned_momentum import direction_and_tangent
from continual_metaopt.optim.meta_updates import META_UPDATES, Meta, MetaUpdate
from continual_metaopt.optim.parametrisations import Parametrisation
from continual_metaopt.optim.registry import DECOUPLED_DECAY, STEP_SIZES, LearnerSpec, learner_of
from continual_metaopt.optim.settings import (
    DEFAULT_GAMMA,
    MOMENTUM_BOUNDS,
    WEIGHT_DECAY_BOUNDS,
    Discount,
    Group,
    MetaParameter,
    StepSizeParametrisation,
    Trace,
    _check_choice,
    _check_exact,
    _check_group,
    _check_written,
    _is_fine,
    _kinds,
    _momentum_of,
    discounts,
)
from continual_metaopt.optim.traces import DEFAULT_LIMIT, TraceRule, UpdateOrder, Variant
from continual_metaopt.optim.two_horizons import AUTO, two_horizons_rule

LEARNER = LearnerSpec(
    "metaoptimize",
    "MetaOptimize: step sizes learned online",
    family="MetaOptimize",
    space={"lr": (1e-6, 1e-2, "log"), "meta_lr": (1e-3, 1e-1, "log"), "weight_decay": DECOUPLED_DECAY},
    paper=(
        'Sharifnassab, Salehkaleybar, Sutton, "MetaOptimize: A Framework for Optimizing Step Sizes and Other '
        'Meta-parameters", arXiv 2402.02342'
    ),
)

# What is learned is kept under the same key in a group (numbers) and, if fine-grained, in a parameter's state (tensors)
RECORD = {"lr": "learned", "weight_decay": "learned_weight_decay", "momentum": "learned_momentum"}
TRACE = {"lr": "trace", "weight_decay": "trace_weight_decay", "momentum": "trace_momentum"}
LONG_TRACE = "trace_long"  # beside the step size's, where there are two horizons
STATE_TRACES = "trace_momentum_state"  # traces of what depends on the momentum beside the weights


SHARED_SETTINGS = ("lr", "learn", "parametrisation")  # by groups that share one step size
SHARED_BY_COLUMN = ("meta_lr", "gamma")  # likewise, as far as exact traces are concerned

PLAIN = {"learn": ("lr",), "update_order": "base_first", "parametrisation": "log", "meta_every": 1}

NO_TYPICAL_SIZES = {"step": 0.0, "short_size": 0.0, "long_size": 0.0}  # of meta gradients with two horizons


class NonFiniteMetaGradient(FloatingPointError):
    """The meta gradient of a block is NaN or infinite; weights and step sizes are as they were before the step.

    Attributes:
        block: its name.
    """

    def __init__(self, message: str, block: str) -> None:
        super().__init__(message)
        self.block = block


@dataclass
class _MetaGradient:
    """Surrogate meta gradient of a block: the sum over its weights, and the part of each fine-grained parameter.

    ``long`` is that by the long trace, where there are two horizons.
    """

    total: float = 0.0
    parts: dict[Tensor, Tensor] = field(default_factory=dict)
    long: "_MetaGradient | None" = None


class _Move(NamedTuple):
    """Where a parameter is going: the base update's direction, and how that depends on a learned momentum."""

    block: list[Group]
    group: Group
    param: Tensor
    state: dict[str, Any]
    direction: Direction
    momentum_tangent: Tensor | None = None


class MetaOptimize(torch.optim.Optimizer):
    """A base optimizer whose step sizes are learned online by a meta optimizer (MetaOptimize, arXiv 2402.02342).

    In each step, with gradient g, step size α = exp(β) per block, decoupled weight decay κ and trace h (how the past
    log step sizes moved the weights, discounted by γ):

        z = Σ_{i ∈ block} h_i g_i          the surrogate meta gradient, with the old h
        w ← w − Δw                         the base update, weight decay included
        h ← γ (1 − κ α) h − Δw
        β ← meta update of β with z

    A param group is a block. ``group["lr"]`` always reads as the block's current step size, the geometric mean where it
    holds many; writing it, as a scheduler does, replaces the step size from which the block learns on, or rescales all
    of them. With ``meta_lr=0`` no trace is kept and the optimizer is its base update with a fixed step size, which is
    ``torch.optim``'s, bit for bit, where torch has the rule (with decoupled weight decay).

    Weight decay and momentum are learned by the same machinery if ``learn`` names them, with the same meta update, η
    and γ, and as many numbers as there are step sizes. The weight decay's logarithm has a trace of its own,
    h ← γ (1 − κ α) h − α κ w; the momentum's logit has a pair of traces (``optim/learned_momentum.py``).
    ``group["weight_decay"]`` and ``group["momentum"]`` read, and may be written, as ``group["lr"]``. They stay within
    [1e-10, 10] and [1e-6, 1 − 1e-6].

    Everything learned lives in ``state`` and ``param_groups``, so ``state_dict`` resumes bit for bit.

    Args:
        params: tensors or param groups, as for any torch optimizer; ``blocks`` makes groups of a network. A group may
            set any of the options below but "base" and "meta" for itself, and a "name" for reports; with "momentum"
            in ``learn``, also the "momentum" to start from.
        lr: initial step size α₀.
        base: base update: "sgd", "sgdm", "rmsprop", "adamw", "lion", "…_released", or a configured object.
        meta: meta update: "sgd", "rmsprop", "adam", "lion", "…_released", or a configured object.
        meta_lr: meta step size η.
        gamma: discount γ in [0, 1] of the trace; 1 / (1 − γ) is its horizon in steps. "auto" keeps two traces, with a
            short and a long horizon, and combines their meta gradients (``optim/two_horizons.py``), so that no discount
            has to fit the length of the tasks; it learns step sizes alone, and Lion as meta update, which sees signs
            only, runs away with it.
        weight_decay: decoupled weight decay κ; to start from if it is learned.
        step_sizes: "group" for one step size per group, "scalar" for one that all groups with this setting share,
            "tensor", "node" (output unit: index of the first dimension) or "weight" for many in a group.
        lr_bounds: the step sizes stay within these.
        learn: what is learned: "lr", "weight_decay", "momentum".
        update_order: "base_first" takes the step with the step size from before the meta update, "meta_first" with the
            new one, as IDBD and hypergradient descent do.
        parametrisation: "log" learns β = log α; "linear" learns β = α itself, with h ← γ (1 − κ α) h − (u + κ w) for a
            step of direction u, as additive hypergradient descent does. Then η and Δβ are in units of the step size.
        meta_every: meta updates are made at every so many steps of a block, with the sum of their meta gradients.
        max_meta_change: bound on the size of Δβ in a single meta update (2 in Sutton 1992); None for none.
        trace: "hessian_free" as above; "dutch", which besides moves the weights by h Δβ whenever β changes by Δβ, to
            about where they would be with the changed step sizes (``docs/dutch-traces.md``; before the base update,
            by γ h Δβ; with two horizons h is the short one's trace); "l", "2x2" or "full" for exact traces, with one
            column per step size, which take the curvature of the loss into account (``optim/traces.py``). These need
            ``step(closure)``, and go with the logarithm of the step size only. It and the options below hold for all
            groups, and so does ``update_order`` with them. A group with ``meta_lr=0`` has no column.
        curvature: what stands for the Hessian in exact traces: "exact", "gauss_newton", or "diagonal", with which a
            trace is of the weights' size for any number of step sizes (``optim/curvature.py``).
        curvature_smoothing: weight of the past in a running mean of the curvature, in [0, 1).
        curvature_clip: limits of the factor by which a step shrinks a trace, against a noisy Hessian; (0, 1) is IDBD's
            positive part. None for none.
        trace_memory_limit: bytes that exact traces may take; None for no limit.

    Raises:
        ValueError: a setting is out of range or does not go with another, a name is unknown, or exact traces need more
            memory than the limit.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = MetaOptimize(model.parameters(), lr=1e-3)
        >>> model(torch.ones(1, 3)).square().sum().backward()
        >>> optimizer.step()
        >>> optimizer.step_size_report()
        {'group0': 0.001}
    """

    _left: tuple[tuple[Tensor, int], ...] = ()
    """Gradients that the last exact step computed, as they were then."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        base: Base | BaseUpdate = "adamw",
        meta: Meta | MetaUpdate = "adam",
        meta_lr: float = 1e-2,
        gamma: Discount = DEFAULT_GAMMA,
        weight_decay: float = 0.01,
        step_sizes: StepSizes = "group",
        lr_bounds: tuple[float, float] = (1e-10, 1.0),
        learn: tuple[MetaParameter, ...] = ("lr",),
        update_order: UpdateOrder = "base_first",
        parametrisation: StepSizeParametrisation = "log",
        meta_every: int = 1,
        max_meta_change: float | None = None,
        trace: Trace = "hessian_free",
        curvature: CurvatureKind = "exact",
        curvature_smoothing: float = 0.0,
        curvature_clip: tuple[float, float] | None = None,
        trace_memory_limit: float | None = DEFAULT_LIMIT,
    ) -> None:
        self.base: BaseUpdate = BASE_UPDATES[base]() if isinstance(base, str) else base
        self.meta: MetaUpdate = META_UPDATES[meta]() if isinstance(meta, str) else meta
        self.step_sizes: StepSizes = step_sizes
        _check_choice("trace", trace, Trace)
        self.trace: Trace = trace
        variant: Variant = "hessian_free" if trace == "dutch" else trace
        self.exact = _exact_traces(
            TraceRule(self.base, self.meta, variant, update_order, curvature, curvature_smoothing, curvature_clip),
            trace,
            trace_memory_limit,
        )
        if gamma == AUTO and meta == "lion":
            raise ValueError(
                'gamma="auto" takes a share off the meta gradient, but the meta update "lion" sees its sign alone: '
                "give gamma a number, such as 0.999"
            )
        if trace_memory_limit is not None and not 0 <= trace_memory_limit < math.inf:
            raise ValueError(
                f"trace_memory_limit must be finite and not negative, or None for no limit, but is {trace_memory_limit}"
            )
        defaults = {
            "lr": lr,
            "meta_lr": meta_lr,
            "gamma": gamma,
            "weight_decay": weight_decay,
            "lr_bounds": tuple(lr_bounds),
            "step_sizes": step_sizes,
            "learn": tuple(learn),
            "update_order": update_order,
            "parametrisation": parametrisation,
            "meta_every": meta_every,
            "max_meta_change": max_meta_change,
        }
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        # torch's own keeps only defaults, state and groups: copies and pickles would lose the rules
        rules = {"base": self.base, "meta": self.meta, "step_sizes": self.step_sizes}
        rules |= {"trace": self.trace, "exact": self.exact}
        return super().__getstate__() | rules

    def add_param_group(self, param_group: Group) -> None:
        """Add a block. With ``step_sizes="scalar"`` it joins the shared step size unless it names another, an error.

        Raises:
            ValueError: a setting is out of range, or the name is taken.
        """
        if "learn" in param_group:
            param_group["learn"] = tuple(param_group["learn"])
        if param_group.get("step_sizes", self.defaults["step_sizes"]) == "scalar":
            self._share_settings(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if "momentum" in group["learn"]:
                group.setdefault("momentum", _momentum_of(self.base))
            _check_group(group)
            *others, name = self._group_names()
            if name in others:
                raise ValueError(f"two groups are named '{name}'; give each its own name")
            if self.exact is not None:
                _check_exact(self.exact.rule, group)
                self.exact.check_memory(self)
        except ValueError:
            self.param_groups.pop()
            raise
        group["rule"] = self._rule()
        for kind in _kinds(group):
            group[RECORD[kind]] = self._new_record(group[kind])

    def _share_settings(self, param_group: Group) -> None:
        """Give a new group the settings that it must share with the groups of the same step size.

        Raises:
            ValueError: it has others.
        """
        first = next((group for group in self.param_groups if group["step_sizes"] == "scalar"), None)
        if first is None:
            return
        also = () if self.exact is None else SHARED_BY_COLUMN
        if AUTO in (first["gamma"], param_group.get("gamma", self.defaults["gamma"])):
            also = (*also, "gamma")
        for setting in dict.fromkeys((*SHARED_SETTINGS, *also, *first["learn"])):
            if param_group.setdefault(setting, first[setting]) != first[setting]:
                raise ValueError(
                    f'step_sizes="scalar" means one step size for all groups, but their {setting} differ: '
                    f"{first[setting]} and {param_group[setting]}; give them the same {setting}, or use "
                    'step_sizes="group"'
                )

    def _new_record(self, start: float) -> dict[str, Any]:
        return {
            "reference": float(start),  # the value that learning started from, and …
            "log_ratio": 0.0,  # … β − β₀ apart from it, because exp(log α₀) is not α₀ in floating point
            "written": float(start),  # what this class last wrote to the group
            "meta_gradient": 0.0,
            "meta_state": self.meta.init(),
            "typical_sizes": dict(NO_TYPICAL_SIZES),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned, of an optimizer with the same base and meta update.

        Raises:
            ValueError: the state is of another base or meta update, or its groups do not fit.
        """
        for group in state_dict["param_groups"]:
            if group.get("rule") != self._rule():
                raise ValueError(
                    f"this state was saved by {group.get('rule') or 'another kind of optimizer'}, "
                    f"but the optimizer is {self._rule()}; create it with the same base and meta"
                )
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Learn from the gradients in ``p.grad``: one base update, and one meta update of each step size.

        Exact traces need the loss's graph. The optimizer computes the gradients itself and leaves them in ``p.grad``:

            loss = criterion(model(x), y)
            optimizer.step(lambda: loss)            # no loss.backward()
            optimizer.step(lambda: (loss, output))  # with curvature="gauss_newton" or "diagonal"

        Where somebody else has put gradients there, as by ``loss.backward(retain_graph=True)`` and clipping, these are
        taken for weights and meta gradients, and the loss for its curvature alone.

        Args:
            closure: evaluates the network again, calls ``backward`` and returns the loss. For exact traces, returns the
                loss with its graph, or (loss, output).

        Returns:
            The loss that the closure returned, or None.

        Raises:
            NonFiniteMetaGradient: a meta gradient is NaN or infinite; no weight or step size has been changed.
            ValueError: a gradient is sparse or complex, or exact traces have no graph.
        """
        if self.exact is not None:
            return self._exact_step(self.exact, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        blocks = self.blocks()
        for block in blocks:
            for kind in _kinds(block[0]):
                self._take_over(block, kind)
        meta_gradients = self._meta_gradients(blocks)
        self._learn(blocks, meta_gradients, "meta_first")
        for move in self._moves(blocks):
            self._update_weights_and_traces(move)
        self._learn(blocks, meta_gradients, "base_first")
        return loss

    def _exact_step(self, exact: ExactTraces, closure: Callable[[], Any] | None) -> Tensor:
        evaluation = exact.evaluate(closure, self)
        self._left = tuple((p.grad, p.grad._version) for p in evaluation.params if p.grad is not None)
        blocks = self.blocks()
        for block in blocks:
            self._take_over(block, "lr")
        step = exact.start(self, evaluation)
        found: list[dict[str, _MetaGradient]] = [{} for _ in blocks]
        if step.traced:
            gradient = step.meta_gradients()
            places = {id(block[0]): by_kind for block, by_kind in zip(blocks, found, strict=True)}
            values = gradient.tolist()
            for owner in step.learning:
                meta_gradient = places[id(owner.block[0])].setdefault("lr", _MetaGradient())
                meta_gradient.total += sum(values[owner.numbers])
                if owner.param is not None:
                    part = gradient[owner.numbers].reshape(owner.shape)
                    meta_gradient.parts[owner.param] = part.to(owner.param)
            for block, by_kind in zip(blocks, found, strict=True):
                if by_kind:
                    self.check_meta_gradient(block, by_kind["lr"].total)
            meta_step = step.note_meta_step(gradient)
        self._learn(blocks, found, "meta_first")
        if step.traced:
            step.advance(meta_step)
        for move in self._moves(blocks):
            self._update_weights_and_traces(move)
        self._learn(blocks, found, "base_first")
        return evaluation.loss

    def has_left(self, gradient: Tensor) -> bool:
        """Whether a gradient is one that an exact step has computed and nobody has written to since."""
        return any(own is gradient and gradient._version == version for own, version in self._left)

    @property
    def wants_graph(self) -> bool:
        """Whether ``step`` has to be given a closure that returns (loss, output) with their graph."""
        return self.exact is not None

    def step_size_report(self) -> dict[str, float | Tensor]:
        """Current step size of each block, or all of them in one dimension where a block holds many.

        Blocks have their groups' names. A step size that all groups share is called "all", one that some share has
        their names, joined by "+".
        """
        return {name: self._report(block, "lr") for name, block in zip(self.block_names(), self.blocks(), strict=True)}

    def meta_parameter_report(self) -> dict[str, dict[str, float | Tensor]]:
        """Current learned values other than step sizes: block → {"weight_decay": …, "momentum": …}."""
        report = {
            name: {kind: self._report(block, kind) for kind in block[0]["learn"] if kind != "lr"}
            for name, block in zip(self.block_names(), self.blocks(), strict=True)
        }
        return {name: values for name, values in report.items() if values}

    def meta_gradient_report(self) -> dict[str, float]:
        """Surrogate meta gradient z of each block in the last step; 0 before the second step.

        Where a block holds many step sizes, it is their sum: the meta gradient of a factor common to all of them.
        """
        return {
            name: block[0]["learned"]["meta_gradient"]
            for name, block in zip(self.block_names(), self.blocks(), strict=True)
        }

    def blocks(self) -> list[list[Group]]:
        """The param groups of each block; a block's step size and meta state are kept in its first group."""
        blocks: list[list[Group]] = []
        shared: list[Group] = []
        for group in self.param_groups:
            if group["step_sizes"] != "scalar":
                blocks.append([group])
                continue
            if not shared:
                blocks.append(shared)
            shared.append(group)
        return blocks

    def block_names(self) -> list[str]:
        """Names of the blocks, in the order of ``blocks()``."""
        names = {id(group): name for group, name in zip(self.param_groups, self._group_names(), strict=True)}
        return [self._block_name(block, names) for block in self.blocks()]

    def _block_name(self, block: list[Group], names: dict[int, str]) -> str:
        if block[0]["step_sizes"] == "scalar" and len(block) == len(self.param_groups):
            return "all"
        return "+".join(names[id(group)] for group in block)

    def _group_names(self) -> list[str]:
        return [str(group.get("name", f"group{index}")) for index, group in enumerate(self.param_groups)]

    def _name_of(self, block: list[Group]) -> str:
        index = next(index for index, other in enumerate(self.blocks()) if other[0] is block[0])
        return self.block_names()[index]

    def _rule(self) -> str:
        trace = "" if self.trace == "hessian_free" else f", trace={self.trace!r}"
        if self.exact is not None:
            trace = f", {self.exact}"
        return f"{self.base} with {self.meta} as meta update, step_sizes={self.step_sizes!r}{trace}"

    def why_not_plain(self) -> str | None:
        """Name the first option that compiled updates lack; None if they have all that is set."""
        if self.exact is not None:
            return f'trace="{self.exact.rule.variant}" needs the curvature of the loss'
        for group in self.param_groups:
            if group["step_sizes"] in FINE:
                return f'step_sizes="{group["step_sizes"]}" gives a group many step sizes'
            for option, plain in PLAIN.items():
                if group[option] != plain:
                    return f"{option}={group[option]!r} is set"
        return None

    def current_step_size(self, block: list[Group]) -> float:
        """A block's step size, after taking over what others wrote to "lr" since the last step."""
        return self._take_over(block, "lr")

    def _take_over(self, block: list[Group], kind: str) -> float:
        """A block's learned value, after taking over what others wrote to its groups since the last step."""
        leader = block[0]
        record = leader[RECORD[kind]]
        for group in block:
            written_by_others = float(group[kind])
            if written_by_others == record["written"]:
                continue
            _check_written(self._group_names()[self._index(group)], kind, group[kind])
            if self._has_parts(group, kind):
                self._rescale(group, kind, written_by_others)
                break
            record["reference"], record["log_ratio"] = written_by_others, 0.0
            if group["meta_lr"] > 0 and kind in group["learn"]:
                record["reference"] = parametrisations.clipped(written_by_others, *_bounds(group, kind))
            self._write(block, kind, record["reference"])
            break
        return cast(float, record["written"])

    def _index(self, group: Group) -> int:
        return next(index for index, other in enumerate(self.param_groups) if other is group)

    def _rescale(self, group: Group, kind: str, written: float) -> None:
        """Move all step sizes of a fine-grained group by what was written, within their bounds; 0 is below them."""
        record, parametrisation = group[RECORD[kind]], _parametrisation(group, kind)
        low, high = _bounds(group, kind)
        if written > 0:
            by = parametrisation.offset(record["written"], written)
            record["reference"] = parametrisation.value(record["reference"], by)
        lowest, highest = (parametrisation.offset(record["reference"], bound) for bound in (low, high))
        for part in self._parts(group, kind):
            part["log_ratio"].clamp_(lowest, highest if written > 0 else lowest)
        self._write_mean(group, kind)

    def _write(self, block: list[Group], kind: str, value: float) -> None:
        block[0][RECORD[kind]]["written"] = value
        for group in block:
            group[kind] = value

    def _write_mean(self, group: Group, kind: str) -> None:
        """Let a fine-grained group read as the mean of its values, taken in β: the geometric mean of step sizes."""
        parts = list(self._parts(group, kind))
        n = sum(shape_of(group["step_sizes"], param).numel() for param in group["params"])
        device = parts[0]["log_ratio"].device
        total = torch.stack([part["log_ratio"].sum(dtype=torch.float64).to(device) for part in parts]).sum().item()
        reference = group[RECORD[kind]]["reference"]
        self._write([group], kind, float(_parametrisation(group, kind).value(reference, total / n)))

    def _parts(self, group: Group, kind: str) -> Iterator[dict[str, Any]]:
        """What each parameter of a fine-grained group has learned."""
        for param in group["params"]:
            if param in self.state and RECORD[kind] in self.state[param]:
                yield self.state[param][RECORD[kind]]

    def _has_parts(self, group: Group, kind: str) -> bool:
        return next(self._parts(group, kind), None) is not None

    def value_of(self, block: list[Group], group: Group, param: Tensor, kind: str) -> Any:
        """What holds for a parameter: a number, or a tensor that broadcasts against it."""
        if kind != "lr" and kind not in group["learn"]:
            return group[kind]
        record = block[0][RECORD[kind]]
        if group["step_sizes"] not in FINE:
            return record["written"]
        part = self.state[param].get(RECORD[kind]) if param in self.state else None
        if part is None:  # it has not had a gradient yet
            if self._has_parts(group, kind):
                return parametrisations.clipped(record["reference"], *_bounds(group, kind))
            return record["written"]
        value = _parametrisation(group, kind).value(record["reference"], part["log_ratio"])
        return value.clamp(*_bounds(group, kind))

    def _report(self, block: list[Group], kind: str) -> float | Tensor:
        group = block[0]
        if kind not in group["learn"] or not (self._has_parts(group, kind) or _is_fine(group)):
            return float(group[kind])
        self._take_over(block, kind)
        parts = []
        for param in group["params"]:
            value = self.value_of(block, group, param, kind)
            shape = shape_of(group["step_sizes"], param)
            parts.append((value if isinstance(value, Tensor) else param.new_full(shape, value)).flatten())
        return torch.cat([part.detach().to(parts[0].device) for part in parts])

    def _meta_gradients(self, blocks: list[list[Group]]) -> list[dict[str, _MetaGradient]]:
        """Σ h·g of each block for all that it learns, with one transfer from the device; none without a gradient."""
        found: list[dict[str, _MetaGradient]] = [{} for _ in blocks]
        owners: list[_MetaGradient] = []
        products: list[Tensor] = []
        for index, block in enumerate(blocks):
            for learns, group, (param, grad) in ((g["meta_lr"] > 0, g, p) for g in block for p in gradients(self, g)):
                state = self.state.get(param, {})
                for kind in group["learn"]:
                    meta_gradient = found[index].setdefault(kind, _MetaGradient())
                    if kind == "lr" and group["gamma"] == AUTO and meta_gradient.long is None:
                        meta_gradient.long = _MetaGradient()
                    by_trace = {TRACE[kind]: meta_gradient, LONG_TRACE: meta_gradient.long}
                    for key, owner in by_trace.items() if learns else ():
                        if owner is None:
                            continue
                        trace = state[key] if key in state else torch.zeros_like(grad)  # of which NaN comes, too
                        if _is_fine(group):
                            part = owner.parts[param] = summed(group["step_sizes"], trace * grad)
                            products.append(part.sum())
                        else:
                            products.append(torch.dot(trace.flatten(), grad.flatten()))
                        owners.append(owner)
        if products:
            device = products[0].device
            for owner, value in zip(owners, torch.stack([p.to(device) for p in products]).tolist(), strict=True):
                owner.total += value
        for block, by_kind in zip(blocks, found, strict=True):
            for kind, meta_gradient in by_kind.items():
                self.check_meta_gradient(block, meta_gradient.total, kind)
                if meta_gradient.long is not None:
                    self.check_meta_gradient(block, meta_gradient.long.total, kind)
        return found

    def check_meta_gradient(self, block: list[Group], meta_gradient: float, kind: str = "lr") -> None:
        """Stop at a meta gradient that is not a number.

        Raises:
            NonFiniteMetaGradient: it is NaN or infinite.
        """
        if not math.isfinite(meta_gradient):
            of, name = "" if kind == "lr" else f" for its {kind}", self._name_of(block)
            raise NonFiniteMetaGradient(f"the meta gradient of block '{name}'{of} is {meta_gradient}", name)

    def prepared_state(self, group: Group, param: Tensor) -> dict[str, Any]:
        """A parameter's state, made at its first update; with a trace of each thing that its group learns."""
        state = self.state[param]
        if not state:
            state.update(self.base.init(param))
        if group["meta_lr"] > 0:
            for kind in group["learn"]:
                if self.exact is None and TRACE[kind] not in state:
                    state[TRACE[kind]] = torch.zeros_like(param, memory_format=torch.preserve_format)
                    if kind == "momentum":
                        state[STATE_TRACES] = {}
                if group["gamma"] == AUTO and LONG_TRACE not in state:
                    state[LONG_TRACE] = torch.zeros_like(param, memory_format=torch.preserve_format)
                if _is_fine(group) and RECORD[kind] not in state:
                    ratios = param.new_zeros(shape_of(group["step_sizes"], param))
                    state[RECORD[kind]] = {
                        "log_ratio": ratios,
                        "meta_state": self.meta.init(),
                        "typical_sizes": dict(NO_TYPICAL_SIZES),
                    }
        return state

    def _moves(self, blocks: list[list[Group]]) -> Iterator[_Move]:
        """Advance the base update's state of each parameter; returns where it is going."""
        for block in blocks:
            for group in block:
                for param, grad in gradients(self, group):
                    state = self.prepared_state(group, param)
                    if "momentum" in group["learn"]:
                        direction, tangent = self._direction_with_momentum(block, group, param, state)
                        yield _Move(block, group, param, state, direction, tangent)
                    else:
                        yield _Move(block, group, param, state, self.base.direction(state, grad))

    def _direction_with_momentum(
        self, block: list[Group], group: Group, param: Tensor, state: dict[str, Any]
    ) -> tuple[Direction, Tensor | None]:
        momentum = self.value_of(block, group, param, "momentum")
        if not isinstance(momentum, Tensor):
            momentum = param.new_full((), momentum)
        grad = cast(Tensor, param.grad)
        if group["meta_lr"] == 0:
            return cast(Any, self.base).with_momentum(momentum).direction(state, grad), None
        slope = parametrisations.LOGIT.slope(momentum)
        return direction_and_tangent(self.base, state, grad, momentum, slope, state[STATE_TRACES], group["gamma"])

    def _update_weights_and_traces(self, move: _Move) -> None:
        block, group, param, state, direction, momentum_tangent = move
        learn = group["learn"] if group["meta_lr"] > 0 and self.exact is None else ()
        step_size = self.value_of(block, group, param, "lr")
        weight_decay = self.value_of(block, group, param, "weight_decay")
        decays = isinstance(weight_decay, Tensor) or bool(weight_decay)
        shrinkage = 1 - step_size * weight_decay
        if "lr" in learn:
            slope = _parametrisation(group, "lr").slope(step_size)
            for key, gamma in zip((TRACE["lr"], LONG_TRACE), discounts(group), strict=False):
                trace = state[key].mul_(gamma * shrinkage)
                if decays:
                    _add(trace, param, -slope * weight_decay)
                _move(trace, direction, slope)
        if "weight_decay" in learn:
            trace = state[TRACE["weight_decay"]].mul_(group["gamma"] * shrinkage)
            _add(trace, param, -step_size * weight_decay)
        if momentum_tangent is not None:
            _add(state[TRACE["momentum"]].mul_(group["gamma"] * shrinkage), momentum_tangent, -step_size)
        if decays:
            param.mul_(shrinkage)
        _move(param, direction, step_size)

    def take_step_size(self, block: list[Group], step_size: float, learned: dict[str, Any]) -> None:
        """Take over what an engine has learned about a block's step size in this optimizer's place."""
        block[0]["learned"].update(learned)
        self._write(block, "lr", step_size)

    def _learn(
        self, blocks: list[list[Group]], meta_gradients: list[dict[str, _MetaGradient]], order: UpdateOrder
    ) -> None:
        """Make the meta updates of the blocks with this order of updates."""
        for block, by_kind in zip(blocks, meta_gradients, strict=True):
            if block[0]["meta_lr"] > 0 and block[0]["update_order"] == order:
                for kind, meta_gradient in by_kind.items():
                    if block[0]["step_sizes"] in FINE:
                        self._update_parts(block[0], kind, meta_gradient)
                    else:
                        self._update(block, kind, meta_gradient)

    def update_step_size(self, block: list[Group], meta_gradient: float, long: float = 0.0) -> float:
        """Make the meta update of a block's step size, in an engine's place.

        Args:
            block: its groups.
            meta_gradient: by the trace.
            long: by the long trace, with ``gamma="auto"``.

        Returns:
            By how much β has changed.
        """
        return self._update(block, "lr", _MetaGradient(meta_gradient, long=_MetaGradient(long)), revises=False)

    def _update(self, block: list[Group], kind: str, meta_gradient: _MetaGradient, revises: bool = True) -> float:
        record = block[0][RECORD[kind]]
        z = meta_gradient.total
        if meta_gradient.long is not None:
            z = _combined(block[0], record, z, meta_gradient.long.total)
        record["meta_gradient"] = z
        value, change = self._meta_update(block[0], kind, record, z)
        self._write(block, kind, value)
        if kind == "lr" and revises:
            for group in block:
                for param, _ in gradients(self, group):
                    self._revise(group, param, change)
        return change

    def _update_parts(self, group: Group, kind: str, meta_gradient: _MetaGradient) -> None:
        group[RECORD[kind]]["meta_gradient"] = meta_gradient.total
        combined = []
        for param, part in meta_gradient.parts.items():
            record = self.prepared_state(group, param)[RECORD[kind]]
            if meta_gradient.long is not None:
                part = _combined(group, record, part, meta_gradient.long.parts[param])
                combined.append(part.sum())
            _, change = self._meta_update(group, kind, record, part)
            if kind == "lr":
                self._revise(group, param, change)
        if combined:
            group[RECORD[kind]]["meta_gradient"] = (
                torch.stack([z.to(combined[0].device) for z in combined]).sum().item()
            )
        self._write_mean(group, kind)

    def _meta_update(self, group: Group, kind: str, record: dict[str, Any], meta_gradient: Any) -> tuple[Any, Any]:
        """Make a meta update, of a number or a tensor of them; returns the value, and by how much β has changed."""
        parametrisation, bounds = _parametrisation(group, kind), _bounds(group, kind)
        reference, offset = group[RECORD[kind]]["reference"], record["log_ratio"]
        if group["meta_every"] > 1:
            record["pending"] = record.get("pending", 0.0) + meta_gradient
            record["n_pending"] = record.get("n_pending", 0) + 1
            if record["n_pending"] < group["meta_every"]:
                return group[RECORD[kind]]["written"], 0.0
            meta_gradient = record.pop("pending")
            record["n_pending"] = 0
        meta_lr = group["meta_lr"]
        if isinstance(meta_gradient, Tensor):  # so that rules with signs keep its precision
            meta_lr = meta_gradient.new_full((), meta_lr).expand_as(meta_gradient)
        change = self.meta.change(record["meta_state"], meta_gradient, meta_lr)
        limit = group["max_meta_change"]
        if limit is not None:
            change = parametrisations.clipped(change, -limit, limit)
        record["log_ratio"], value = parametrisation.moved(reference, offset, change, *bounds)
        if parametrisation.additive:
            return value, value - parametrisation.value(reference, offset)
        return value, record["log_ratio"] - offset

    def _revise(self, group: Group, param: Tensor, change: Any) -> None:
        """Move weights to about where they would be, had their past step sizes been what they are now: w += h Δβ.

        It is right to first order in Δβ for γ = 1 and γ = 0, and in between as far as a product of means stands for the
        mean of products. Before the base update, whose effect the trace does not know yet, Δβ is multiplied by γ.
        ``docs/dutch-traces.md`` derives the formula. It brings the idea of van Seijen, Sutton, "True Online TD(λ)",
        ICML 2014, to the forward view of MetaOptimize.
        """
        if self.trace != "dutch" or group["meta_lr"] == 0 or (not isinstance(change, Tensor) and change == 0):
            return
        trace = self.state[param].get(TRACE["lr"]) if param in self.state else None
        if trace is not None:
            before_base_update = group["update_order"] == "meta_first"
            _add(param, trace, change * discounts(group)[0] if before_base_update else change)


metaoptimize = learner_of(
    MetaOptimize,
    "blockwise",
    docs={"step_sizes": STEP_SIZES.replace('"tensor",', '"tensor", "node" (output unit), "weight",')},
    gamma="auto",
    trace="dutch",
)


def _combined(group: Group, record: dict[str, Any], short: Any, long: Any) -> Any:
    """The meta gradient of one or two horizons."""
    if group["gamma"] != AUTO:
        return short
    sizes = record["typical_sizes"]
    combined, sizes["step"], sizes["short_size"], sizes["long_size"] = two_horizons_rule(
        sizes["step"], sizes["short_size"], sizes["long_size"], short, long
    )
    return combined


def _exact_traces(rule: TraceRule, trace: Trace, memory_limit: float | None) -> ExactTraces | None:
    if rule.variant != "hessian_free":
        return ExactTraces(rule, memory_limit)
    for option, value in (("curvature", rule.curvature), ("smoothing", rule.smoothing), ("clip", rule.clip)):
        if value != getattr(TraceRule, option):
            name = option if option == "curvature" else f"curvature_{option}"
            raise ValueError(f'{name}={value!r} has no effect with trace="{trace}"; use trace="l"')
    return None


def _parametrisation(group: Group, kind: str) -> Parametrisation:
    if kind == "lr":
        return parametrisations.STEP_SIZE_PARAMETRISATIONS[group["parametrisation"]]
    return parametrisations.LOG if kind == "weight_decay" else parametrisations.LOGIT


def _bounds(group: Group, kind: str) -> tuple[float, float]:
    if kind == "lr":
        low, high = group["lr_bounds"]
        return low, high
    return WEIGHT_DECAY_BOUNDS if kind == "weight_decay" else MOMENTUM_BOUNDS


def _add(tensor: Tensor, other: Tensor, scale: Any) -> None:
    """Add ``scale`` times another tensor in place; the scale is a number, or a tensor that broadcasts."""
    if isinstance(scale, Tensor):
        tensor.addcmul_(other, scale)
    else:
        tensor.add_(other, alpha=scale)


def _move(tensor: Tensor, direction: Direction, step_size: Any) -> None:
    """Subtract a step from ``tensor`` in place, with the floating-point operations of torch's optimizers."""
    scale = -step_size / direction.divisor
    if isinstance(scale, Tensor):
        quotient = direction.numerator
        if direction.denominator is not None:
            quotient = quotient / direction.denominator
        tensor.addcmul_(quotient, scale)
    elif direction.denominator is None:
        tensor.add_(direction.numerator, alpha=scale)
    else:
        tensor.addcdiv_(direction.numerator, direction.denominator, value=scale)
