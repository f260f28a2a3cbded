"""Traces: how past log step sizes moved the weights, exactly (MetaOptimize, arXiv 2402.02342).

With weights and base state x, log step sizes and meta state y, and Jacobians of the step that is being taken, the
traces X of x and Y of y, with one column per log step size, follow

    X ← γ ∂x'/∂x X + ∂x'/∂β B                               B: the rows of Y that belong to β
    Y ← γ (∂y'/∂y Y + σ ∂y'/∂x X + σ ∂y'/∂H Q) + (1−γ) E    H: the rows of X that belong to w
    Q ← ∂H'/∂β B + γ (∂H'/∂x X + ∂H'/∂H Q)                  Q: trace of H; B and X's other rows count as constant

and z = Hᵀ g is the surrogate meta gradient. X starts at 0, B and E are the identity. With the step sizes updated after
the weights (``"base_first"``), X is kept divided by γ, so that γ = 0 still means something, B is the old one and
σ = γ; with the step sizes updated first (``"meta_first"``), B is the new one and σ = 1. In both, with D_τ = dw_t/dβ_τ
and s the number of the last log step sizes that have moved w_t (t − 1 and t),

    H_t = γˢ D_0 + (1−γ) Σ_{τ=1..s} γ^{s−τ} D_τ.

A variant is a choice of what else is taken to be constant:

    "full"           nothing
    "2x2"            H in z (no Q)
    "l"              z: B is the identity for ever

Base and meta updates act element by element, so their Jacobians are a few numbers per weight or step size, found by
differentiating the rules themselves, and shared by all columns. Curvature comes as Hessian-vector products, one per
column (``curvature.py``). A root of 0 in a rule (a weight that has never had a gradient, a block whose meta gradient
was always 0) counts as constant, and so does a sign everywhere. Guards on step sizes (bounds, largest change) and
clipping of gradients are not differentiated.

Layouts. By default a trace has a leading dimension for the m columns: m · n · (1 + tensors of base state) numbers for
n weights. Where no weight influences another (``curvature="diagonal"``), only one entry of a weight's row is not zero,
that of its own step size, and a trace is of the weight's own size for any m.

One step, as an optimizer makes it:

    loss = closure()                                               # no backward(); or (loss, output)
    gradients = torch.autograd.grad(loss, params, create_graph=True)
    curvature = make_curvature("exact", params, gradients, loss)
    z = rule.meta_gradients(parameters, m)
    (meta_first: meta update, on a copy of its state; the new step sizes go into ``parameters``)
    rule.advance(parameters, meta_step, gamma, curvature)          # weights and states as before the step
    base update
    (base_first: meta update)

``parameters`` are those that have a gradient; what has none keeps its trace, as it keeps its value. Meta gradients that
are summed between meta updates are part of the meta state, with a trace of their own ("pending").
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from continual_metaopt.optim.base import require_known
from continual_metaopt.optim.base_updates import BaseUpdate, ParamState
from continual_metaopt.optim.curvature import Curvature, CurvatureKind
from continual_metaopt.optim.meta_updates import MetaUpdate

Variant = Literal["l", "2x2", "full"]
UpdateOrder = Literal["base_first", "meta_first"]
UPDATE_ORDERS: tuple[UpdateOrder, ...] = get_args(UpdateOrder)

Traces = dict[str, Any]  # tensors, and the number of steps where curvature is averaged
Elementwise = Callable[[dict[str, Tensor]], dict[str, Tensor]]

DEFAULT_LIMIT = 2 * 10**9

PENDING = "pending"  # the meta traces' part that belongs to the sum of meta gradients between two meta updates


class _Direction(NamedTuple):
    """Direction of a parameter's base update and its derivatives with respect to "gradient" and the state's tensors.

    All are of the parameter's shape, but a derivative may be a single 0.
    """

    value: Tensor
    slopes: dict[str, Tensor]
    """∂direction/∂input."""
    state_slopes: dict[tuple[str, str], Tensor]
    """(tensor of the state, input) → ∂new tensor/∂input."""
    second_slopes: dict[tuple[str, str], Tensor]
    """(input, input) → ∂²direction/∂input∂input."""


@dataclass
class TracedParameter:
    """A parameter as it is before the base update, and its traces.

    Args:
        weight: w; not written.
        gradient: g, of the weight's shape; not written.
        state: what ``base.init`` made, as it is before this gradient, and nothing else; not written.
        traces: from ``TraceRule.init_parameter``; advanced in place.
        step_size: α in this step, broadcastable to the weight.
        index: for each weight, which of the m log step sizes is its own; integers, broadcastable to the weight. None
            where the step size is fixed: other step sizes move such weights too, but element by element nothing does,
            so that they are left out there.
        weight_decay: decoupled weight decay κ.
    """

    weight: Tensor
    gradient: Tensor
    state: ParamState
    traces: Traces
    step_size: Tensor | float
    index: Tensor | None
    weight_decay: float = 0.0


@dataclass
class MetaStep:
    """The meta update of all log step sizes in this step, and its traces.

    Args:
        state: of the meta update before this step, each entry a number or a tensor [m]; not written.
        gradient: what the meta update is given, [m]: z, or the sum of several.
        step_size: η, a number or [m].
        traces: from ``TraceRule.init_meta``; advanced in place.
        active: [m], which log step sizes are updated in this step; None for all. The meta gradients of the others are
            kept for their next update, as a sum.
    """

    state: dict[str, Any]
    gradient: Tensor
    step_size: Tensor | float
    traces: Traces
    active: Tensor | None = None


@dataclass(frozen=True)
class TraceRule:
    """How traces are kept: for which base and meta update, in which variant and order, with which curvature.

    Args:
        base: base update. Its ``direction`` acts element by element and in differentiable operations.
        meta: meta update. Its ``change`` works on tensors, element by element.
        variant: what is differentiated: "l", "2x2" or "full".
        update_order: "base_first" or "meta_first".
        curvature: "exact", "gauss_newton" or "diagonal"; "full" needs "exact".
        smoothing: in [0, 1), weight of the past in a running mean of the curvature (of the diagonal, or else of the
            products with the columns, which then lag behind), against a noisy Hessian; 0 for none.
        clip: limits of the elementwise decay factor of H that comes from the step itself,
            (∂w'/∂w H) / H; (0, 1) is IDBD's positive part, and keeps traces from growing.

    Raises:
        ValueError: a setting is unknown, out of range, or does not go with another.
    """

    base: BaseUpdate
    meta: MetaUpdate
    variant: Variant = "l"
    update_order: UpdateOrder = "base_first"
    curvature: CurvatureKind = "exact"
    smoothing: float = 0.0
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        require_known("trace", self.variant, Variant)
        require_known("order of updates", self.update_order, UpdateOrder)
        require_known("curvature", self.curvature, CurvatureKind)
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, but is {self.smoothing}")
        if self.clip is not None and not -math.inf < self.clip[0] <= self.clip[1] < math.inf:
            raise ValueError(f"clip must be two finite numbers, the lower first, not {self.clip}")
        if self.variant == "full" and (self.curvature != "exact" or self.smoothing or self.clip):
            raise ValueError(
                'trace="full" differentiates the Hessian, so it takes curvature="exact" without smoothing or clip; '
                'use trace="2x2" with these'
            )

    @property
    def elementwise(self) -> bool:
        """Traces are of the weights' own size, without a dimension for columns."""
        return self.curvature == "diagonal"

    @property
    def needs_output(self) -> bool:
        """The curvature is computed from the network's output; otherwise from gradients with a graph."""
        return self.curvature != "exact"

    def init_parameter(self, weight: Tensor, n_step_sizes: int) -> Traces:
        """Make the traces of a parameter that has not moved: "weights" (H), and the base state's.

        Args:
            weight: the parameter.
            n_step_sizes: m, the number of log step sizes of all parameters together.

        Returns:
            Tensors [m, *shape], or [1, *shape] if ``elementwise``; "second" (Q) is [m, m, *shape].
        """
        columns = 1 if self.elementwise else n_step_sizes
        traces: Traces = {"weights": weight.new_zeros(columns, *weight.shape)}
        for name in _tensors(self.base.init(weight.detach())):
            traces[name] = torch.zeros_like(traces["weights"])
        if self.smoothing:
            traces["curvature"] = torch.zeros_like(traces["weights"])
            traces["curvature_steps"] = 0
        if self.variant == "full":
            traces["second"] = weight.new_zeros(columns, columns, *weight.shape)
        return traces

    def init_meta(self, n_step_sizes: int, dtype: torch.dtype = torch.float64, device: Any = None) -> Traces:
        """Make the traces of the log step sizes, "log_step_size" (B), and, for "2x2" and "full", of the meta state.

        Returns:
            Tensors [m, m], column first, or [m] if ``elementwise``, as only the diagonal is not zero then.
        """
        unit = self._unit(n_step_sizes, dtype, device)
        traces: Traces = {"log_step_size": unit}
        if self.variant != "l":
            traces |= {name: torch.zeros_like(unit) for name in (*self.meta.init(), PENDING) if name != "step"}
        return traces

    @torch.no_grad()
    def meta_gradients(self, parameters: Sequence[TracedParameter], n_step_sizes: int) -> Tensor:
        """Compute the surrogate meta gradient z = Hᵀ g with the traces as they are: float64 [m]."""
        gradients = [p.gradient.detach() for p in parameters]
        if self.elementwise:
            return self._reduce(parameters, gradients, n_step_sizes)
        return self._reduce(parameters, [g.unsqueeze(0) for g in gradients], n_step_sizes)[0]

    @torch.no_grad()
    def advance(
        self,
        parameters: Sequence[TracedParameter],
        meta_step: MetaStep,
        gamma: Tensor | float,
        curvature: Curvature,
    ) -> None:
        """Advance all traces by the step that is about to be made.

        Args:
            parameters: those that have a gradient, as they are before the base update, in the order of ``curvature``.
            meta_step: the meta update, as it is before it was made.
            gamma: discount γ, a number or one per log step size [m].
            curvature: of the loss at the weights.

        Raises:
            ValueError: the variant needs more of the curvature than there is.
        """
        n_step_sizes = len(meta_step.gradient)
        old = meta_step.traces["log_step_size"]
        discounts = torch.as_tensor(gamma, dtype=old.dtype, device=old.device).expand(n_step_sizes)
        products, second_products = self._products(parameters, curvature), None
        if self.variant == "full":
            if curvature.product_tangents is None:
                raise ValueError('trace="full" needs third derivatives: use curvature="exact"')
            second_products = curvature.product_tangents(
                [p.traces["weights"] for p in parameters], [p.traces["second"] for p in parameters]
            )
        new_meta = self._meta_traces(parameters, meta_step, discounts, products)
        used = old if self.update_order == "base_first" else new_meta["log_step_size"]
        directions = _differentiate_base(self.base, parameters, 2 if self.variant == "full" else 1)
        for i, parameter in enumerate(parameters):
            parameter.traces |= self._parameter_traces(
                parameter,
                directions[i],
                used,
                discounts,
                products[i],
                None if second_products is None else second_products[i],
            )
        meta_step.traces |= new_meta

    def _products(self, parameters: Sequence[TracedParameter], curvature: Curvature) -> list[Tensor]:
        """The tangents ∇²f H of the gradients, averaged over steps if so asked."""
        columns = [p.traces["weights"] for p in parameters]
        estimates = curvature.products(columns)
        if self.smoothing:
            estimates = [self._smoothed(p.traces, e) for p, e in zip(parameters, estimates, strict=True)]
        if curvature.is_diagonal:
            return [entries * x for entries, x in zip(estimates, columns, strict=True)]
        return estimates

    def _smoothed(self, traces: Traces, estimate: Tensor) -> Tensor:
        traces["curvature_steps"] += 1
        traces["curvature"].lerp_(estimate, 1 - self.smoothing)
        return traces["curvature"] / (1 - self.smoothing ** traces["curvature_steps"])

    def _meta_traces(
        self, parameters: Sequence[TracedParameter], step: MetaStep, gamma: Tensor, products: list[Tensor]
    ) -> Traces:
        """Y of the next step."""
        old, n_step_sizes = step.traces["log_step_size"], len(gamma)
        if not self.elementwise:
            gamma = gamma.unsqueeze(1)
        active = torch.ones((), dtype=torch.bool) if step.active is None else step.active
        active = active.to(old.device)
        step_size = torch.as_tensor(step.step_size, dtype=old.dtype, device=old.device)
        moved = old
        new = {}
        if self.variant != "l":
            z = self._reduce(parameters, products, n_step_sizes)
            if self.variant == "full":
                z = z + self._second_reduce(parameters)
            z = z.to(old) * (gamma if self.update_order == "base_first" else 1.0)
            tangents = {name: value for name, value in step.traces.items() if name not in ("log_step_size", PENDING)}
            z = z + step.traces[PENDING]
            new[PENDING] = gamma * torch.where(active, 0.0, z)
            slopes = self._meta_slopes(step, step_size, list(tangents))
            inputs = tangents | {"gradient": z}
            moved = moved + torch.where(active, _along(slopes, "change", inputs), 0.0)
            for name, value in tangents.items():
                new[name] = gamma * torch.where(active, _along(slopes, name, inputs), value)
        unit = self._unit(n_step_sizes, old.dtype, old.device)
        # written so that the identity stays exactly the identity where nothing moves it
        return new | {"log_step_size": moved + (1 - gamma) * (unit - moved)}

    def _meta_slopes(self, step: MetaStep, step_size: Tensor, names: list[str]) -> dict[tuple[str, str], Tensor]:
        """Derivatives of Δβ ("change") and the new meta state by the old one and z ("gradient")."""
        gradient = step.gradient.to(step_size)
        fixed = {name: value for name, value in step.state.items() if name not in names}

        def change(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            state: dict[str, Any] = fixed | {name: inputs[name] for name in names}
            moved: Any = self.meta.change(state, inputs["gradient"], step_size)
            return {name: state[name] for name in names} | {"change": moved}

        state = {name: torch.as_tensor(step.state[name]).to(gradient).expand_as(gradient) for name in names}
        return _differentiate(change, state | {"gradient": gradient}, order=1)[1]

    def _parameter_traces(
        self,
        parameter: TracedParameter,
        direction: _Direction,
        log_step_sizes: Tensor,
        discounts: Tensor,
        product: Tensor,
        second_product: Tensor | None,
    ) -> Traces:
        """X and Q of the next step; ``log_step_sizes`` is B."""
        w, alpha, kappa = parameter.weight.detach(), parameter.step_size, parameter.weight_decay
        old = parameter.traces["weights"]
        gamma = discounts.to(w).reshape(-1, *(1,) * w.dim())
        spread = torch.zeros_like(gamma)
        if parameter.index is not None:
            index = parameter.index.reshape((1,) * (w.dim() - parameter.index.dim()) + tuple(parameter.index.shape))
            if self.elementwise:
                gamma, spread = (v.to(w)[index].unsqueeze(0) for v in (discounts, log_step_sizes))
            else:
                spread = log_step_sizes.to(w)[:, index]
        step = alpha * (direction.value + kappa * w)
        slopes = direction.slopes
        tangents = {k: product if k == "gradient" else parameter.traces[k] for k in slopes}
        names = [k for k in slopes if k != "gradient"]
        decayed = (1 - alpha * kappa) * old - alpha * slopes["gradient"] * product
        if self.clip is not None:
            low, high = self.clip[0] * old, self.clip[1] * old
            decayed = decayed.clamp(torch.minimum(low, high), torch.maximum(low, high))
        for k in names:
            decayed = decayed - alpha * slopes[k] * tangents[k]
        new: Traces = {"weights": gamma * decayed - step * spread}
        for k in names:
            new[k] = gamma * _along(direction.state_slopes, k, tangents)
        if second_product is None:
            return new

        # Dimensions [c, b, *shape]: tangents along column c of the new H_b; X's other rows and B are constants in it.
        gamma_c, log_alpha = gamma.unsqueeze(1), spread.unsqueeze(1)
        moved = {k: gamma_c * tangents[k].unsqueeze(1) for k in slopes}
        held = gamma_c * parameter.traces["second"]
        direction_b = _total(slopes[k] * tangents[k] for k in slopes)
        direction_cb = _total(curved * moved[j] * tangents[k] for (j, k), curved in direction.second_slopes.items())
        direction_cb = direction_cb + slopes["gradient"] * gamma_c * second_product
        decayed = held - alpha * (kappa * held + direction_cb + log_alpha * (kappa * old + direction_b))
        step_c = alpha * (_total(slopes[k] * moved[k] for k in slopes) + kappa * gamma_c * old.unsqueeze(1))
        new["second"] = gamma * decayed - (step_c + step * log_alpha) * spread
        return new

    def _reduce(self, parameters: Sequence[TracedParameter], vectors: list[Tensor], n_step_sizes: int) -> Tensor:
        """⟨H_b, v_c⟩ for each log step size b and vector c: float64 [c, m], or [m] of a single one if elementwise."""
        parts = []
        for parameter, vector in zip(parameters, vectors, strict=True):
            trace, index = parameter.traces["weights"], parameter.index
            if self.elementwise:
                assert index is not None, "a weight with a fixed step size has no trace of its own"
                products = (trace * vector).reshape(parameter.weight.shape).to(torch.float64)
                sums = products.sum_to_size(index.shape) if index.dim() else products.sum()
                parts.append(sums.new_zeros(n_step_sizes).index_add_(0, index.flatten(), sums.flatten()))
            else:
                parts.append((_rows(vector) @ _rows(trace).T).to(torch.float64))
        return _total(part.to(parts[0].device) for part in parts)

    def _second_reduce(self, parameters: Sequence[TracedParameter]) -> Tensor:
        """⟨Q_cb, g⟩ [c, b]."""
        return _total(
            p.traces["second"].reshape(*p.traces["second"].shape[:2], -1) @ p.gradient.detach().flatten()
            for p in parameters
        )

    def _unit(self, n_step_sizes: int, dtype: torch.dtype, device: Any) -> Tensor:
        if self.elementwise:
            return torch.ones(n_step_sizes, dtype=dtype, device=device)
        return torch.eye(n_step_sizes, dtype=dtype, device=device)


def memory_needed(rule: TraceRule, params: Sequence[Tensor], n_step_sizes: int) -> int:
    """Count the bytes that traces take between steps, those of the log step sizes included; a step takes twice that.

    Args:
        rule: how traces are kept.
        params: all parameters, of any device; nothing is allocated.
        n_step_sizes: m, the number of log step sizes.
    """
    kept = [rule.init_parameter(p.detach().to("meta"), n_step_sizes) for p in params]
    tensors = [x for traces in (*kept, rule.init_meta(n_step_sizes, device="meta")) for x in _tensors(traces).values()]
    return sum(x.numel() * x.element_size() for x in tensors)


def check_memory(
    rule: TraceRule, params: Sequence[Tensor], n_step_sizes: int, limit: float | None = DEFAULT_LIMIT
) -> None:
    """Refuse traces that would not fit, before anything is allocated.

    Args:
        rule: how traces are kept.
        params: all parameters.
        n_step_sizes: m, the number of log step sizes.
        limit: bytes; None for no limit.

    Raises:
        ValueError: the traces need more; with the arithmetic, and what needs less.
    """
    if limit is None or (needed := memory_needed(rule, params, n_step_sizes)) <= limit:
        return
    of_a_weight = rule.init_parameter(torch.zeros(1, device="meta"), n_step_sizes)
    per_weight, in_all = (
        sum(x.numel() for x in _tensors(traces).values())
        for traces in (of_a_weight, rule.init_meta(n_step_sizes, device="meta"))
    )
    advice = (
        "raise the limit" if rule.elementwise else 'use coarser step sizes, curvature="diagonal", or raise the limit'
    )
    raise ValueError(
        f'trace="{rule.variant}" with {n_step_sizes:,} step sizes for {sum(p.numel() for p in params):,} weights keeps '
        f"{per_weight:,} numbers per weight and {in_all // n_step_sizes:,} per step size, together "
        f"{needed / 1e9:,.1f} GB, over the limit of {limit / 1e9:,.1f} GB: {advice}"
    )


def _rows(columns: Tensor) -> Tensor:
    return columns.reshape(len(columns), -1)


def _tensors(state: ParamState) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _differentiate_base(base: BaseUpdate, parameters: Sequence[TracedParameter], order: int) -> list[_Direction]:
    """The direction of each parameter's coming step and its derivatives up to an order; states stay as they are.

    Parameters that differ in nothing but their tensors are laid end to end, to be differentiated together.
    """
    alike: dict[Any, list[int]] = {}
    for i, parameter in enumerate(parameters):
        numbers = [(k, v) for k, v in parameter.state.items() if not isinstance(v, Tensor)]
        alike.setdefault((parameter.weight.dtype, parameter.weight.device, *numbers), []).append(i)
    result: dict[int, _Direction] = {}
    for members in alike.values():
        chosen = [parameters[i] for i in members]
        parts = _split(_differentiate_direction(base, chosen, order), [p.weight.shape for p in chosen])
        result |= dict(zip(members, parts, strict=True))
    return [result[i] for i in range(len(parameters))]


def _differentiate_direction(base: BaseUpdate, parameters: Sequence[TracedParameter], order: int) -> _Direction:
    """The direction of the step of several parameters laid end to end."""
    state = parameters[0].state
    names = list(_tensors(state))
    inputs = {name: torch.cat([p.state[name].flatten() for p in parameters]) for name in names}
    inputs["gradient"] = torch.cat([p.gradient.detach().flatten() for p in parameters])

    def function(values: dict[str, Tensor]) -> dict[str, Tensor]:
        new_state = state | {name: values[name].clone() for name in names}
        direction = base.direction(new_state, values["gradient"])
        numerator = direction.numerator / direction.divisor
        denominator = torch.ones_like(numerator) if direction.denominator is None else direction.denominator
        return {name: new_state[name] for name in names} | {"numerator": numerator, "denominator": denominator}

    values, first, second = _differentiate(function, inputs, order)
    denominator = values["denominator"]
    direction = values["numerator"] / denominator
    slopes = {k: (first["numerator", k] - direction * first["denominator", k]) / denominator for k in inputs}
    second_slopes = {
        (j, k): (
            second["numerator", j, k]
            - slopes[j] * first["denominator", k]
            - slopes[k] * first["denominator", j]
            - direction * second["denominator", j, k]
        )
        / denominator
        for j in inputs
        for k in inputs
        if order == 2
    }
    state_slopes = {(name, k): first[name, k] for name in names for k in inputs}
    return _Direction(direction, slopes, state_slopes, second_slopes)


def _split(together: _Direction, shapes: Sequence[torch.Size]) -> list[_Direction]:
    """What belongs to each of several parameters that were laid end to end."""
    sizes = [shape.numel() for shape in shapes]

    def pieces(tensor: Tensor) -> list[Tensor]:
        if tensor.dim() == 0:
            return [tensor] * len(shapes)
        return [piece.reshape(shape) for piece, shape in zip(tensor.split(sizes), shapes, strict=True)]

    def each(slopes: dict[Any, Tensor]) -> list[dict[Any, Tensor]]:
        split = {key: pieces(slope) for key, slope in slopes.items()}
        return [{key: split[key][i] for key in split} for i in range(len(shapes))]

    parts = (each(together.slopes), each(together.state_slopes), each(together.second_slopes))
    return [_Direction(*part) for part in zip(pieces(together.value), *parts, strict=True)]


def _differentiate(
    function: Elementwise, inputs: dict[str, Tensor], order: int
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor], dict[tuple[str, str, str], Tensor]]:
    """Values, first and second derivatives of a function that acts element by element, as far as ``order`` asks.

    One backward pass per output gives all its slopes. Where the derivative of a root of 0 makes a derivative infinite
    or NaN, it is 0; where an output does not depend on an input, it is a single 0.

    Returns:
        By output; by (output, input); by (output, input, input).
    """
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
        outputs = function(leaves)
        first = _slopes({(name,): value for name, value in outputs.items()}, leaves, order == 2)
        second = _slopes(first, leaves, create_graph=False) if order == 2 else {}
    return (
        {name: value.detach() for name, value in outputs.items()},
        {key: _finite(slope) for key, slope in first.items()},
        {key: _finite(slope) for key, slope in second.items()},
    )


def _slopes(outputs: dict[Any, Tensor], inputs: dict[str, Tensor], create_graph: bool) -> dict[Any, Tensor]:
    """∂output/∂input under the output's key with the input's name appended."""
    result = {}
    for key, output in outputs.items():
        slopes: Sequence[Tensor | None] = [None] * len(inputs)
        if output.requires_grad:
            slopes = torch.autograd.grad(
                output,
                list(inputs.values()),
                torch.ones_like(output),
                create_graph=create_graph,
                retain_graph=True,
                allow_unused=True,
            )
        for name, slope in zip(inputs, slopes, strict=True):
            result[*key, name] = output.new_zeros(()) if slope is None else slope
    return result


def _finite(slope: Tensor) -> Tensor:
    return torch.nan_to_num(slope.detach(), nan=0.0, posinf=0.0, neginf=0.0)


def _along(slopes: dict[tuple[str, str], Tensor], output: str, tangents: dict[str, Tensor]) -> Tensor:
    """The tangent of an output, from those of all inputs; slopes that are a single 0 cost nothing."""
    terms = [
        slopes[output, name] * tangent
        for name, tangent in tangents.items()
        if slopes[output, name].dim() > 0 or tangent.dim() < 2
    ]
    return _total(terms) if terms else torch.zeros_like(next(iter(tangents.values())))


def _total(terms: Iterable[Tensor]) -> Tensor:
    first, *others = terms
    for term in others:
        first = first + term
    return first
