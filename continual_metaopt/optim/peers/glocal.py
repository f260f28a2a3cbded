"""Glocal hypergradients: step sizes learned from where a few local hypergradients are heading.

A local hypergradient says what a change of a hyperparameter does to the loss soon, a global one what it does in the
end. The first is cheap and short-sighted, the second needs a whole run. The paper takes the hypergradients of τ steps
to be the beginning of a linear dynamical system, decomposes it (``koopman.py``), and takes what is left of it in the
end as the global hypergradient.

What is this implementation's reading, because the paper leaves it open or is about epochs over a data set:

- The outer loss is the loss of the samples to come, each of which tells one hypergradient: z_t = h_tᵀ g_t, as
  MetaOptimize's meta gradient, with g_t the gradient at sample t and h_t how the weights have been moved by a change of
  the logarithm of a hyperparameter: in the last step with γ = 0, since the collection began with γ = 1.
- A single sample's hypergradient is noise to a decomposition, so that snapshots are means over windows.
- All hyperparameters are decomposed together, each divided by its root mean square.
- A term that lasts counts as it is at the end of the collection. Growing terms (|λ| above 1 by more than the tolerance)
  are left out with the decaying ones.
- Where no term lasts there is no estimate, and the hyperparameters stay as they are. ``n_skipped`` counts it.
- Ten delays, the distance ||λ| − 1| and Adam are the paper's; lengths, tolerance, γ and meta step size are from here.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base import Group, require_known
from continual_metaopt.optim.base_updates import Base, BaseUpdate
from continual_metaopt.optim.exact_step import TRACES
from continual_metaopt.optim.learned_values import RECORD, MetaGradient
from continual_metaopt.optim.meta_updates import Meta, MetaUpdate
from continual_metaopt.optim.metaoptimize import STATE_TRACES, TRACE, MetaOptimize
from continual_metaopt.optim.peers.koopman import Keep, limit
from continual_metaopt.optim.registry import LearnerSpec, learner_of
from continual_metaopt.optim.settings import MetaParameter
from continual_metaopt.optim.traces import DEFAULT_LIMIT, UpdateOrder

LEARNER = LearnerSpec(
    "glocal",
    "step sizes learned from estimated global hypergradients",
    family="learned step sizes",
    space={"lr": (1e-6, 1e-2, "log"), "meta_lr": (1e-2, 1.0, "log"), "window": [20, 50, 100]},
    paper='Hataya & Kawahara, "Glocal Hypergradient Estimation with Koopman Operator", arXiv 2402.02741 (2024)',
)

COLLECTION = "collection"  # in the first group: the hypergradients of the current collection

LocalTrace = Literal["hessian_free", "l"]


@dataclass(frozen=True)
class Collecting:
    """How many local hypergradients make a global one, and how: options of ``Glocal``, checked."""

    tau: int
    window: int
    delays: int
    tolerance: float
    keep: Keep

    def __post_init__(self) -> None:
        for name in ("tau", "window", "delays"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} must be a whole number, at least 1, but is {value}")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must be finite and not negative, but is {self.tolerance}")
        require_known("distance of eigenvalues to keep", self.keep, Keep)
        if self.tau % self.window:
            raise ValueError(f"tau = {self.tau} must be a multiple of window = {self.window}")
        if self.n_snapshots < self.delays + 2:
            raise ValueError(
                f"tau = {self.tau} with window = {self.window} makes {self.n_snapshots} snapshots, but {self.delays} "
                f"delays need at least {self.delays + 2}; increase tau or decrease window or delays"
            )

    @property
    def n_snapshots(self) -> int:
        """Snapshots of a collection."""
        return self.tau // self.window


class Glocal(MetaOptimize):
    """Step the step sizes of a base optimizer with estimated global hypergradients (arXiv 2402.02741).

    In each step, with gradient g and trace h as in ``MetaOptimize``, the local hypergradient of each block's log step
    size is z = Σ h_i g_i. Means over ``window`` steps are the snapshots x_t of a collection of ``tau`` steps. Then

        ẑ = the limit of x_t for large t, from the modes with |λ| near 1       (``koopman.limit``)
        β ← meta update of β with ẑ

    or β stays where there is no such mode. A new collection begins, with traces of 0.

    Blocks, base updates, reports and ``state_dict`` are MetaOptimize's. ``meta_gradient_report`` has the local
    hypergradients of the last step, ``meta_parameter_report`` the last global ones ("global_hypergradient") and, under
    "all", how many collections have ended ("n_collections") and how many of them had no estimate ("n_skipped").

    Args:
        params: tensors or param groups, as for MetaOptimize.
        lr: initial step size α₀.
        base: base update; in Python also a configured object.
        meta: meta update; Adam in the paper.
        meta_lr: meta step size η of Adam, per collection.
        tau: samples τ of a collection, a multiple of ``window``.
        window: samples whose hypergradients are averaged to one snapshot.
        delays: snapshots that are stacked for the decomposition; 10 in the paper.
        tolerance: how far from 1 the eigenvalue of a mode that lasts may be.
        keep: by which distance, "modulus" for ||λ| − 1|, as in the paper, or "one" for |λ − 1|, without oscillations.
        gamma: 0 for greedy hypergradients, which see one step ahead; 1 for those of all steps of the collection so far.
        weight_decay: decoupled weight decay κ; to start from if it is learned.
        step_sizes: "group" for one step size per group, "scalar" for one that all groups share.
        lr_bounds: the step sizes stay within these.
        learn: what is learned: "lr", "weight_decay", "momentum".
        trace: "hessian_free", or "l" for forward-mode differentiation with exact curvature, whose cost is a
            Hessian-vector product per step size, and which needs ``step(closure)`` and learns step sizes alone.
        trace_memory_limit: bytes that exact traces may take; None for no limit.

    Raises:
        ValueError: a setting is out of range or does not go with another.

    Example:
        >>> import torch
        >>> w = torch.ones(1, requires_grad=True)
        >>> w.grad = torch.tensor([2.0])
        >>> optimizer = Glocal([w], lr=0.1, base="sgd", tau=12, window=1)
        >>> optimizer.step()
        >>> optimizer.step()
        >>> round(optimizer.meta_gradient_report()["group0"], 4)
        -0.402
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        base: Base | BaseUpdate = "adamw",
        meta: Meta | MetaUpdate = "adam",
        meta_lr: float = 0.3,
        tau: int = 2000,
        window: int = 50,
        delays: int = 10,
        tolerance: float = 0.1,
        keep: Keep = "modulus",
        gamma: float = 1.0,
        weight_decay: float = 0.01,
        step_sizes: Literal["group", "scalar"] = "group",
        lr_bounds: tuple[float, float] = (1e-10, 1.0),
        learn: tuple[MetaParameter, ...] = ("lr",),
        trace: LocalTrace = "hessian_free",
        trace_memory_limit: float | None = DEFAULT_LIMIT,
    ) -> None:
        self.collecting = Collecting(tau, window, delays, tolerance, keep)
        require_known("trace of local hypergradients", trace, LocalTrace)
        super().__init__(
            params,
            lr,
            base=base,
            meta=meta,
            meta_lr=meta_lr,
            gamma=gamma,
            weight_decay=weight_decay,
            step_sizes=step_sizes,
            lr_bounds=lr_bounds,
            learn=learn,
            trace=trace,
            trace_memory_limit=trace_memory_limit,
        )

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"collecting": self.collecting}

    def add_param_group(self, param_group: Group) -> None:
        """Add a block; the current collection begins anew with its hyperparameters.

        Raises:
            ValueError: a setting is out of range, or the name is taken.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for option, allowed in (
            ("step_sizes", ("group", "scalar")),
            ("update_order", ("base_first",)),
            ("meta_every", (1,)),
        ):
            if group[option] not in allowed:
                self.param_groups.pop()
                raise ValueError(
                    f"{option}={group[option]!r} does not go with glocal hypergradients; "
                    f"use {' or '.join(map(repr, allowed))}"
                )
        if isinstance(group["gamma"], str):
            self.param_groups.pop()
            raise ValueError(f"gamma must be a number for glocal hypergradients, but is {group['gamma']!r}")

    def meta_parameter_report(self) -> dict[str, dict[str, float | Tensor]]:
        """Give what is learned besides step sizes, the last global hypergradients, and counts of collections."""
        report = super().meta_parameter_report()
        for name, block, kind in self._hyperparameters():
            estimate = block[0][RECORD[kind]].get("global_hypergradient")
            if estimate is not None:
                quantity = "global_hypergradient" if kind == "lr" else f"global_hypergradient_of_{kind}"
                report.setdefault(name, {})[quantity] = estimate
        collection = self.collection()
        report.setdefault("all", {}).update(
            {count: float(collection[count]) for count in ("n_collections", "n_skipped")}
        )
        return report

    def begin_step(self) -> None:
        """Begin the collection anew, if it must be, with traces of 0."""
        self.collection()

    def _rule(self) -> str:
        return f"{super()._rule()}, {self.collecting}"

    def _hyperparameters(self) -> Iterator[tuple[str, list[Group], str]]:
        """What is learned: name of the block, the block, and which of its numbers."""
        for name, block in zip(self.block_names(), self.blocks(), strict=True):
            if block[0]["meta_lr"] > 0:
                for kind in block[0]["learn"]:
                    yield name, block, kind

    def collection(self) -> dict[str, Any]:
        """Give the current collection, which begins anew where other hyperparameters are learned than when it began.

        Its entries are "of", what is learned; "snapshots"; "in_window", the steps of the current window so far, and
        "sums", of their hypergradients; and counts of collections.
        """
        of = [[name, kind] for name, _, kind in self._hyperparameters()]
        collection: dict[str, Any] = self.param_groups[0].setdefault(COLLECTION, {"n_collections": 0, "n_skipped": 0})
        if collection.get("of") != of:
            collection.update(of=of)
            self._begin(collection)
        return collection

    def _begin(self, collection: dict[str, Any]) -> None:
        collection.update(snapshots=[], in_window=0, sums=[0.0] * len(collection["of"]))
        for group in self.param_groups:
            if group["gamma"] > 0:
                for param in group["params"]:
                    state = self.state.get(param, {})
                    for key in (*TRACE.values(), STATE_TRACES, TRACES):
                        _set_to_zero(state.get(key))

    def _learn(
        self, blocks: list[list[Group]], meta_gradients: list[dict[str, MetaGradient]], order: UpdateOrder
    ) -> None:
        """Take in the local hypergradients of a step."""
        if order == "base_first":
            self._take_in(
                {
                    (id(block[0]), kind): found.total
                    for block, by_kind in zip(blocks, meta_gradients, strict=True)
                    for kind, found in by_kind.items()
                }
            )

    def update_step_sizes(
        self, blocks: list[list[Group]], found: Mapping[int, tuple[float, float]]
    ) -> dict[int, float]:
        """Take in the local hypergradients of a step, in an engine's place; arguments are MetaOptimize's."""
        for index, (meta_gradient, _) in found.items():
            if blocks[index][0]["meta_lr"] > 0:
                self.check_meta_gradient(blocks[index], meta_gradient)
        self._take_in({(id(blocks[index][0]), "lr"): meta_gradient for index, (meta_gradient, _) in found.items()})
        return {}

    def _take_in(self, local: dict[tuple[int, str], float]) -> None:
        """Take in local hypergradients, by the id of the block's first group and by what is learned."""
        hyperparameters = list(self._hyperparameters())
        if not hyperparameters:
            return
        collection = self.collection()
        for i, (_, block, kind) in enumerate(hyperparameters):
            value = local.get((id(block[0]), kind), 0.0)  # 0 where a block had no gradient
            block[0][RECORD[kind]]["meta_gradient"] = value
            collection["sums"][i] += value
        collection["in_window"] += 1
        if collection["in_window"] == self.collecting.window:
            self.end_window()

    def end_window(self) -> None:
        """Make a snapshot of the window, and the meta updates where the collection is complete."""
        hyperparameters, collection = list(self._hyperparameters()), self.collection()
        collection["snapshots"].append([value / self.collecting.window for value in collection["sums"]])
        collection.update(in_window=0, sums=[0.0] * len(hyperparameters))
        if len(collection["snapshots"]) < self.collecting.n_snapshots:
            return
        estimate = limit(
            np.array(collection["snapshots"]),
            self.collecting.delays,
            self.collecting.tolerance,
            self.collecting.keep,
        )
        collection["n_collections"] += 1
        if estimate is None:
            collection["n_skipped"] += 1
        else:
            for (_, block, kind), value in zip(hyperparameters, estimate.tolist(), strict=True):
                learned = self._learned(block, kind)
                learned.record["global_hypergradient"] = value
                learned.move(value)
        self._begin(collection)


def _set_to_zero(traces: Any) -> None:
    if isinstance(traces, dict):
        for part in traces.values():
            _set_to_zero(part)
    elif isinstance(traces, Tensor):
        traces.zero_()


glocal = learner_of(Glocal, "blockwise", hidden=("meta", "lr_bounds", "trace_memory_limit"))
