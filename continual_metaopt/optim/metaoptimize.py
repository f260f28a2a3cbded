"""MetaOptimize: any base update, with step sizes that a meta update tunes while learning.

Here in its Hessian-free form, of which ``reference.py`` is a plain version to read first; what exact traces add to a
step is in ``exact_step.py``, what is kept of each learned value in ``learned_values.py``.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, gradients, require_known
from continual_metaopt.optim.base_updates import BASE_UPDATES, Base, BaseUpdate, Direction, zeros
from continual_metaopt.optim.blocks import FINE, StepSizes, shape_of, summed
from continual_metaopt.optim.curvature import CurvatureKind
from continual_metaopt.optim.exact_step import ExactTraces
from continual_metaopt.optim.learned_momentum import direction_and_tangent
from continual_metaopt.optim.learned_values import (
    RECORD,
    LearnedValue,
    MetaGradient,
    new_part,
    new_record,
    parametrisation_of,
)
from continual_metaopt.optim.meta_updates import META_UPDATES, Meta, MetaUpdate
from continual_metaopt.optim.parametrisations import LOGIT
from continual_metaopt.optim.protocol import named_groups
from continual_metaopt.optim.registry import DECOUPLED_DECAY, STEP_SIZES, LearnerSpec, learner_of
from continual_metaopt.optim.settings import (
    DEFAULT_GAMMA,
    Discount,
    MetaParameter,
    StepSizeParametrisation,
    Trace,
    check_exact,
    check_group,
    discounts,
    is_fine,
    kinds,
    momentum_of,
)
from continual_metaopt.optim.shown import described
from continual_metaopt.optim.traces import DEFAULT_LIMIT, TraceRule, UpdateOrder, Variant
from continual_metaopt.optim.two_horizons import AUTO

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

TRACE = {"lr": "trace", "weight_decay": "trace_weight_decay", "momentum": "trace_momentum"}
LONG_TRACE = "trace_long"  # beside the step size's, where there are two horizons
STATE_TRACES = "trace_momentum_state"  # traces of what depends on the momentum beside the weights

SHARED_SETTINGS = ("lr", "learn", "parametrisation")  # by groups that share one step size
SHARED_BY_COLUMN = ("meta_lr", "gamma")  # likewise, as far as exact traces are concerned

PLAIN = {"learn": ("lr",), "update_order": "base_first", "parametrisation": "log"}


class NonFiniteMetaGradient(FloatingPointError):
    """The meta gradient of a block is NaN or infinite; weights and step sizes are as they were before the step.

    Attributes:
        block: its name.
    """

    def __init__(self, message: str, block: str) -> None:
        super().__init__(message)
        self.block = block


class MetaOptimize(torch.optim.Optimizer):
    """Learn the step sizes of a base optimizer online, by a meta optimizer (MetaOptimize, arXiv 2402.02342).

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
        base: base update; in Python also a configured object, such as ``AdamW(betas=(0.9, 0.99))``.
        meta: meta update; in Python also a configured object.
        meta_lr: meta step size η.
        gamma: discount γ of the trace, in [0, 1], whose horizon is 1 / (1 − γ) steps; "auto" keeps two traces, with a
            short and a long horizon, and none to choose (``optim/two_horizons.py``). It learns step sizes alone, not
            with Lion as meta update, which sees signs only, nor with exact traces. ``MetaOptimizeStrategy`` has "auto",
            with ``trace="dutch"``, as its default, which is better on all development streams (``docs/optimizer.md``).
        weight_decay: decoupled weight decay κ; to start from if it is learned.
        step_sizes: "group" for one step size per group, "scalar" for one that all groups with this setting share,
            "tensor", "node" (output unit: index of the first dimension) or "weight" for many in a group.
        lr_bounds: the step sizes stay within these.
        learn: what is learned: "lr" (step size), "weight_decay", "momentum".
        update_order: "base_first" takes the step with the step size from before the meta update, "meta_first" with the
            new one, as IDBD and hypergradient descent do.
        parametrisation: "log" learns β = log α; "linear" learns β = α itself, as additive hypergradient descent does,
            with h ← γ (1 − κ α) h − (u + κ w) for a step of direction u; η and Δβ are in units of the step size then.
        meta_every: meta updates are made at every so many steps of a block, with the sum of their meta gradients.
        meta_weight_decay: decay κ̄ of the log step sizes, β ← (1 − η κ̄) β + Δβ, as in the paper. It pulls β to 0, so
            each step size to 1 (to 0 with "linear"). The trace h is computed as without it, so that exact traces, which
            would have to follow the decay, do not go with it.
        max_meta_change: bound on the size of Δβ in a single meta update (2 in Sutton 1992); None for none.
        trace: "hessian_free"; "dutch", which also moves the weights by h Δβ whenever β changes by Δβ, to about where
            they would be with the changed step sizes (``docs/dutch-traces.md``); or an exact trace, "l", "2x2" or
            "full", which differentiates the loss twice, with one column per step size (``optim/traces.py``). Exact
            traces need ``step(closure)``, and learn log step sizes alone. This option and those below hold for all
            groups, and so does ``update_order`` with exact traces. A group with ``meta_lr=0`` has no column.
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
        lr: float = 3e-4,
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
        meta_weight_decay: float = 0.0,
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
        require_known("trace", trace, Trace)
        self.trace: Trace = trace
        variant: Variant = "l" if trace == "hessian_free" or trace == "dutch" else trace
        rule = TraceRule(self.base, self.meta, variant, update_order, curvature, curvature_smoothing, curvature_clip)
        self.exact = ExactTraces(rule, trace_memory_limit) if variant == trace else None
        if self.exact is None:
            _check_no_curvature(rule, trace)
        if trace_memory_limit is not None and not 0 <= trace_memory_limit < math.inf:
            raise ValueError(
                f"trace_memory_limit must be finite and not negative, or None for no limit, but is {trace_memory_limit}"
            )
        if gamma == AUTO and meta == "lion":
            raise ValueError(
                'gamma="auto" takes a share off the meta gradient, but the meta update "lion" sees its sign alone: '
                "give gamma a number, such as 0.999"
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
            "meta_weight_decay": meta_weight_decay,
            "max_meta_change": max_meta_change,
        }
        super().__init__(params, defaults)

    def __repr__(self) -> str:
        return described(self)

    def _repr_html_(self) -> str:
        return described(self, html=True)

    def __getstate__(self) -> dict[str, Any]:
        # torch's own keeps only defaults, state and groups: copies and pickles would lose the rules
        rules = {"base": self.base, "meta": self.meta, "step_sizes": self.step_sizes}
        return super().__getstate__() | rules | {"trace": self.trace, "exact": self.exact}

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
                group.setdefault("momentum", momentum_of(self.base))
            check_group(group)
            *others, name = (name for name, _ in named_groups(self))
            if name in others:
                raise ValueError(f"two groups are named '{name}'; give each its own name")
            if self.exact is not None:
                check_exact(self.exact.rule, group)
                self.exact.check_memory(self)
        except ValueError:
            self.param_groups.pop()
            raise
        group["rule"] = self._rule()
        for kind in kinds(group):
            group[RECORD[kind]] = new_record(self.meta, group[kind])

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
        self.begin_step()
        blocks = self.blocks()
        for block in blocks:
            for kind in kinds(block[0]):
                self._learned(block, kind).take_over()
        meta_gradients = self._meta_gradients(blocks)
        self._learn(blocks, meta_gradients, "meta_first")
        self._move(blocks)
        self._learn(blocks, meta_gradients, "base_first")
        return loss

    def begin_step(self) -> None:
        """Prepare for a step, before meta gradients are computed."""

    def _exact_step(self, exact: ExactTraces, closure: Callable[[], Any] | None) -> Tensor:
        self.begin_step()
        evaluation = exact.evaluate(closure, self)
        self._left = tuple((p.grad, p.grad._version) for p in evaluation.params if p.grad is not None)
        blocks = self.blocks()
        for block in blocks:
            self.current_step_size(block)
        step = exact.start(self, evaluation)
        found: list[dict[str, MetaGradient]] = [{} for _ in blocks]
        if step.traced:
            gradient = step.meta_gradients()
            places = {id(block[0]): by_kind for block, by_kind in zip(blocks, found, strict=True)}
            values = gradient.tolist()
            for owner in step.learning:
                meta_gradient = places[id(owner.block[0])].setdefault("lr", MetaGradient())
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
        self._move(blocks)
        self._learn(blocks, found, "base_first")
        return evaluation.loss

    def has_left(self, gradient: Tensor) -> bool:
        """Tell whether a gradient is one that an exact step has computed and nobody has written to since."""
        return any(own is gradient and gradient._version == version for own, version in self._left)

    @property
    def wants_graph(self) -> bool:
        """Whether ``step`` has to be given a closure that returns (loss, output) with their graph."""
        return self.exact is not None

    def step_size_report(self) -> dict[str, float | Tensor]:
        """Give the current step size of each block, or all of them in one dimension where a block holds many.

        Blocks have their groups' names. A step size that all groups share is called "all", one that some share has
        their names, joined by "+".
        """
        return {name: self._learned(block, "lr").report() for name, block in self._named_blocks()}

    def meta_parameter_report(self) -> dict[str, dict[str, float | Tensor]]:
        """Give learned values other than step sizes: block → {"weight_decay": …, "momentum": …}."""
        report = {
            name: {kind: self._learned(block, kind).report() for kind in block[0]["learn"] if kind != "lr"}
            for name, block in self._named_blocks()
        }
        return {name: values for name, values in report.items() if values}

    def meta_gradient_report(self) -> dict[str, float]:
        """Give the surrogate meta gradient z of each block in the last step; 0 before the second step.

        Where a block holds many step sizes, it is their sum: the meta gradient of a factor common to all of them.
        """
        return {name: block[0][RECORD["lr"]]["meta_gradient"] for name, block in self._named_blocks()}

    def blocks(self) -> list[list[Group]]:
        """Give the param groups of each block; a block's step size and meta state are kept in its first group."""
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
        """Name the blocks, in the order of ``blocks()``."""
        names = {id(group): name for name, group in named_groups(self)}
        return [
            "all"
            if block[0]["step_sizes"] == "scalar" and len(block) == len(self.param_groups)
            else "+".join(names[id(group)] for group in block)
            for block in self.blocks()
        ]

    def _named_blocks(self) -> Iterable[tuple[str, list[Group]]]:
        return zip(self.block_names(), self.blocks(), strict=True)

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
        """Give a block's step size, after taking over what others wrote to "lr" since the last step."""
        return self._learned(block, "lr").take_over()

    def value_of(self, block: list[Group], group: Group, param: Tensor, kind: str) -> Any:
        """Give what holds for a parameter: a number, or a tensor that broadcasts against it."""
        if kind != "lr" and kind not in group["learn"]:
            return group[kind]
        return self._learned(block, kind).of(param)

    def _learned(self, block: list[Group], kind: str) -> LearnedValue:
        return LearnedValue(self, self.meta, block, kind)

    def _meta_gradients(self, blocks: list[list[Group]]) -> list[dict[str, MetaGradient]]:
        """Σ h·g of each block for all that it learns, with one transfer from the device; none without a gradient."""
        found: list[dict[str, MetaGradient]] = [{} for _ in blocks]
        owners: list[MetaGradient] = []
        products: list[Tensor] = []
        for index, block in enumerate(blocks):
            for learns, group, (param, grad) in ((g["meta_lr"] > 0, g, p) for g in block for p in gradients(self, g)):
                state = self.state.get(param, {})
                for kind in group["learn"]:
                    meta_gradient = found[index].setdefault(kind, MetaGradient())
                    if kind == "lr" and group["gamma"] == AUTO and meta_gradient.long is None:
                        meta_gradient.long = MetaGradient()
                    by_trace = {TRACE[kind]: meta_gradient, LONG_TRACE: meta_gradient.long}
                    for key, owner in by_trace.items() if learns else ():
                        if owner is None:
                            continue
                        trace = state[key] if key in state else torch.zeros_like(grad)  # of which NaN comes, too
                        if is_fine(group):
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
            of = "" if kind == "lr" else f" for its {kind}"
            name = next(name for name, other in self._named_blocks() if other[0] is block[0])
            raise NonFiniteMetaGradient(f"the meta gradient of block '{name}'{of} is {meta_gradient}", name)

    def prepared_state(self, group: Group, param: Tensor) -> dict[str, Any]:
        """Give a parameter's state, made at its first update; with a trace of each thing that its group learns."""
        state = self.state[param]
        if not state:
            state.update(self.base.init(param))
        if group["meta_lr"] > 0:
            for kind in group["learn"]:
                if self.exact is None and TRACE[kind] not in state:
                    state[TRACE[kind]] = zeros(param)
                    if kind == "momentum":
                        state[STATE_TRACES] = {}
                if group["gamma"] == AUTO and LONG_TRACE not in state:
                    state[LONG_TRACE] = zeros(param)
                if is_fine(group) and RECORD[kind] not in state:
                    state[RECORD[kind]] = new_part(self.meta, param.new_zeros(shape_of(group["step_sizes"], param)))
        return state

    def _move(self, blocks: list[list[Group]]) -> None:
        """Make the base update of all parameters that have a gradient, and advance their traces."""
        for block in blocks:
            for group in block:
                for param, grad in gradients(self, group):
                    self._move_parameter(block, group, param, grad)

    def _move_parameter(self, block: list[Group], group: Group, param: Tensor, grad: Tensor) -> None:
        state, tangent = self.prepared_state(group, param), None
        if "momentum" in group["learn"]:
            direction, tangent = self._direction_with_momentum(block, group, param, grad, state)
        else:
            direction = self.base.direction(state, grad)
        learn = group["learn"] if group["meta_lr"] > 0 and self.exact is None else ()
        step_size = self.value_of(block, group, param, "lr")
        weight_decay = self.value_of(block, group, param, "weight_decay")
        decays = isinstance(weight_decay, Tensor) or bool(weight_decay)
        shrinkage = 1 - step_size * weight_decay
        if "lr" in learn:
            slope = parametrisation_of(group, "lr").slope(step_size)
            for key, gamma in zip((TRACE["lr"], LONG_TRACE), discounts(group), strict=False):
                trace = state[key].mul_(gamma * shrinkage)
                if decays:
                    _add(trace, param, -slope * weight_decay)
                _subtract(trace, direction, slope)
        if "weight_decay" in learn:
            trace = state[TRACE["weight_decay"]].mul_(group["gamma"] * shrinkage)
            _add(trace, param, -step_size * weight_decay)
        if tangent is not None:
            _add(state[TRACE["momentum"]].mul_(group["gamma"] * shrinkage), tangent, -step_size)
        if decays:
            param.mul_(shrinkage)
        _subtract(param, direction, step_size)

    def _direction_with_momentum(
        self, block: list[Group], group: Group, param: Tensor, grad: Tensor, state: dict[str, Any]
    ) -> tuple[Direction, Tensor | None]:
        momentum = self.value_of(block, group, param, "momentum")
        if not isinstance(momentum, Tensor):
            momentum = param.new_full((), momentum)
        if group["meta_lr"] == 0:
            return cast(Any, self.base).with_momentum(momentum).direction(state, grad), None
        slope = LOGIT.slope(momentum)
        return direction_and_tangent(self.base, state, grad, momentum, slope, state[STATE_TRACES], group["gamma"])

    def take_step_size(self, block: list[Group], step_size: float, learned: dict[str, Any]) -> None:
        """Take over what an engine has learned about a block's step size in this optimizer's place."""
        value = self._learned(block, "lr")
        value.record.update(learned)
        value.write(step_size)

    def update_step_sizes(
        self, blocks: list[list[Group]], found: Mapping[int, tuple[float, float]]
    ) -> dict[int, float]:
        """Make the meta updates of step sizes, in an engine's place; gives the changes of β.

        Args:
            blocks: of the optimizer.
            found: meta gradients by the trace, and by the long one with ``gamma="auto"``, of the blocks that had
                gradients, by their number.

        Raises:
            NonFiniteMetaGradient: a meta gradient is NaN or infinite.
        """
        changes = {}
        for index, (short, long) in found.items():
            block = blocks[index]
            if block[0]["meta_lr"] > 0:
                self.check_meta_gradient(block, short)
                self.check_meta_gradient(block, long)
                longer = MetaGradient(long) if block[0]["gamma"] == AUTO else None
                changes[index] = self._learned(block, "lr").learn(MetaGradient(short, long=longer))[None]
        return changes

    def _learn(
        self, blocks: list[list[Group]], meta_gradients: list[dict[str, MetaGradient]], order: UpdateOrder
    ) -> None:
        """Make the meta updates of the blocks with this order of updates."""
        for block, by_kind in zip(blocks, meta_gradients, strict=True):
            if block[0]["meta_lr"] > 0 and block[0]["update_order"] == order:
                for kind, meta_gradient in by_kind.items():
                    for param in meta_gradient.parts:
                        self.prepared_state(block[0], param)
                    changes = self._learned(block, kind).learn(meta_gradient)
                    if kind == "lr" and self.trace == "dutch":
                        self._revise(block, changes)

    def _revise(self, block: list[Group], changes: dict[Tensor | None, Any]) -> None:
        """Move weights to about where they would be, had their past step sizes been what they are now: w += h Δβ.

        It is right to first order in Δβ for γ = 1 and γ = 0, and in between as far as a product of means stands for the
        mean of products. Before the base update, whose effect the trace does not know yet, Δβ is multiplied by γ.
        ``docs/dutch-traces.md`` derives the formula. It brings the idea of van Seijen, Sutton, "True Online TD(λ)",
        ICML 2014, to the forward view of MetaOptimize.
        """
        for group in block:
            factor = discounts(group)[0] if group["update_order"] == "meta_first" else 1.0
            for param, _ in gradients(self, group):
                change = changes.get(param, changes.get(None, 0.0))
                state = self.state.get(param, {})
                if TRACE["lr"] in state and group["meta_lr"] > 0 and (isinstance(change, Tensor) or change):
                    _add(param, state[TRACE["lr"]], change * factor)


metaoptimize = learner_of(
    MetaOptimize,
    "blockwise",
    docs={"step_sizes": STEP_SIZES.replace('"tensor",', '"tensor", "node" (output unit), "weight",')},
    gamma="auto",
    trace="dutch",
)


def _check_no_curvature(rule: TraceRule, trace: Trace) -> None:
    for option, value in (("curvature", rule.curvature), ("smoothing", rule.smoothing), ("clip", rule.clip)):
        if value != getattr(TraceRule, option):
            name = option if option == "curvature" else f"curvature_{option}"
            raise ValueError(f'{name}={value!r} has no effect with trace="{trace}"; use trace="l"')


def _add(tensor: Tensor, other: Tensor, scale: Any) -> None:
    """Add ``scale`` times another tensor in place; the scale is a number, or a tensor that broadcasts."""
    if isinstance(scale, Tensor):
        tensor.addcmul_(other, scale)
    else:
        tensor.add_(other, alpha=scale)


def _subtract(tensor: Tensor, direction: Direction, step_size: Any) -> None:
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
