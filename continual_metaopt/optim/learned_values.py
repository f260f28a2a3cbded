"""What MetaOptimize learns of a block: its step size, weight decay or momentum, or many of them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from continual_metaopt.optim.blocks import FINE, shape_of
from continual_metaopt.optim.meta_updates import MetaUpdate
from continual_metaopt.optim.parametrisations import LOG, LOGIT, STEP_SIZE_PARAMETRISATIONS, Parametrisation, clipped
from continual_metaopt.optim.protocol import named_groups
from continual_metaopt.optim.settings import MOMENTUM_BOUNDS, WEIGHT_DECAY_BOUNDS, Group, check_written, is_fine
from continual_metaopt.optim.two_horizons import two_horizons_rule

# What is learned is kept under the same key in a group (numbers) and, if fine-grained, in a parameter's state (tensors)
RECORD = {"lr": "learned", "weight_decay": "learned_weight_decay", "momentum": "learned_momentum"}


@dataclass
class MetaGradient:
    """Surrogate meta gradient of a block: the sum over its weights, and the part of each fine-grained parameter.

    ``long`` is that by the long trace, where there are two horizons.
    """

    total: float = 0.0
    parts: dict[Tensor, Tensor] = field(default_factory=dict)
    long: "MetaGradient | None" = None


class LearnedValue:
    """Hold the step size, weight decay or momentum of a block, and move it by meta updates.

    It reads and writes dictionaries that ``state_dict`` saves: a record in the block's first group, which
    ``new_record`` makes, and where the block learns many values, a part in each parameter's state, from ``new_part``:

        reference               the value that learning started from, or that somebody has written
        log_ratio               β − β₀, apart from the reference, because exp(log α₀) is not α₀ in floating point
        written                 what was last written to the groups
        meta_gradient           of the last step
        meta_state              of the meta update
        typical_sizes           of meta gradients with two horizons
        pending, n_pending      sum and number of meta gradients that wait for the next meta update

    Args:
        optimizer: whose block it is.
        meta: its meta update.
        block: the groups of the block.
        kind: "lr", "weight_decay" or "momentum".
    """

    def __init__(self, optimizer: Optimizer, meta: MetaUpdate, block: list[Group], kind: str) -> None:
        self.optimizer, self.meta, self.block, self.kind = optimizer, meta, block, kind
        self.group = block[0]
        self.record: dict[str, Any] = self.group[RECORD[kind]]

    @property
    def parametrisation(self) -> Parametrisation:
        """The coordinate β in which the block learns."""
        return parametrisation_of(self.group, self.kind)

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of the value."""
        return _bounds(self.group, self.kind)

    def take_over(self) -> float:
        """Take over what others wrote to the groups since the last step, and give the value."""
        for group in self.block:
            written = float(group[self.kind])
            if written == self.record["written"]:
                continue
            name = next(name for name, other in named_groups(self.optimizer) if other is group)
            check_written(name, self.kind, group[self.kind])
            if self.has_parts:
                self._rescale(written)
                break
            self.record["reference"], self.record["log_ratio"] = written, 0.0
            if group["meta_lr"] > 0 and self.kind in group["learn"]:
                self.record["reference"] = clipped(written, *_bounds(group, self.kind))
            self.write(self.record["reference"])
            break
        return cast(float, self.record["written"])

    def write(self, value: float) -> None:
        """Let the groups of the block read as a value."""
        self.record["written"] = value
        for group in self.block:
            group[self.kind] = value

    def of(self, param: Tensor) -> Any:
        """Give what holds for a parameter: a number, or a tensor that broadcasts against it."""
        if self.group["step_sizes"] not in FINE:
            return self.record["written"]
        part = self._part(param)
        if part is None:  # it has not had a gradient yet
            return clipped(self.record["reference"], *self.bounds) if self.has_parts else self.record["written"]
        return self.parametrisation.value(self.record["reference"], part["log_ratio"]).clamp(*self.bounds)

    def report(self) -> float | Tensor:
        """Give the value, or all values in one dimension where the block holds many."""
        if self.kind not in self.group["learn"] or not (self.has_parts or is_fine(self.group)):
            return float(self.group[self.kind])
        self.take_over()
        parts = []
        for param in self.group["params"]:
            value = self.of(param)
            shape = shape_of(self.group["step_sizes"], param)
            parts.append((value if isinstance(value, Tensor) else param.new_full(shape, value)).flatten())
        return torch.cat([part.detach().to(parts[0].device) for part in parts])

    def learn(self, meta_gradient: MetaGradient) -> dict[Tensor | None, Any]:
        """Make the meta update.

        Returns:
            By how much β has changed: for each parameter if each has values of its own, else under None.
        """
        if self.group["step_sizes"] in FINE:
            return self._learn_parts(meta_gradient)
        z = meta_gradient.total
        if meta_gradient.long is not None:
            z = self._combined(self.record, z, meta_gradient.long.total)
        self.record["meta_gradient"] = z
        return {None: self.move(z)}

    def move(self, meta_gradient: float) -> float:
        """Make the meta update with a meta gradient of the whole block; gives the change of β."""
        value, change = self._moved(self.record, meta_gradient)
        self.write(value)
        return cast(float, change)

    def _learn_parts(self, meta_gradient: MetaGradient) -> dict[Tensor | None, Any]:
        self.record["meta_gradient"] = meta_gradient.total
        changes: dict[Tensor | None, Any] = {}
        combined = []
        for param, z in meta_gradient.parts.items():
            part = cast(dict[str, Any], self._part(param))
            if meta_gradient.long is not None:
                z = self._combined(part, z, meta_gradient.long.parts[param])
                combined.append(z.sum())
            _, changes[param] = self._moved(part, z)
        if combined:
            self.record["meta_gradient"] = torch.stack([z.to(combined[0].device) for z in combined]).sum().item()
        self._write_mean()
        return changes

    def _combined(self, record: dict[str, Any], short: Any, long: Any) -> Any:
        """The meta gradient of two horizons."""
        sizes = record["typical_sizes"]
        combined, sizes["step"], sizes["short_size"], sizes["long_size"] = two_horizons_rule(
            sizes["step"], sizes["short_size"], sizes["long_size"], short, long
        )
        return combined

    def _moved(self, record: dict[str, Any], meta_gradient: Any) -> tuple[Any, Any]:
        """Make a meta update, of a number or a tensor of them; returns the value, and by how much β has changed."""
        group, reference, offset = self.group, self.record["reference"], record["log_ratio"]
        if group["meta_every"] > 1:
            record["pending"] = record.get("pending", 0.0) + meta_gradient
            record["n_pending"] = record.get("n_pending", 0) + 1
            if record["n_pending"] < group["meta_every"]:
                return self.record["written"], 0.0
            meta_gradient = record.pop("pending")
            record["n_pending"] = 0
        meta_lr = group["meta_lr"]
        if isinstance(meta_gradient, Tensor):  # so that rules with signs keep its precision
            meta_lr = meta_gradient.new_full((), meta_lr).expand_as(meta_gradient)
        change = self.meta.change(record["meta_state"], meta_gradient, meta_lr)
        decay = group.get("meta_weight_decay", 0.0) if self.kind == "lr" else 0.0  # older states have none
        if decay:
            change = change - meta_lr * decay * self.parametrisation.coordinate(reference, offset)
        limit = group["max_meta_change"]
        if limit is not None:
            change = clipped(change, -limit, limit)
        record["log_ratio"], value = self.parametrisation.moved(reference, offset, change, *self.bounds)
        if self.parametrisation.additive:
            return value, value - self.parametrisation.value(reference, offset)
        return value, record["log_ratio"] - offset

    def _rescale(self, written: float) -> None:
        """Move all values by what was written, within their bounds; 0 is below them."""
        if written > 0:
            by = self.parametrisation.offset(self.record["written"], written)
            self.record["reference"] = self.parametrisation.value(self.record["reference"], by)
        lowest, highest = (self.parametrisation.offset(self.record["reference"], bound) for bound in self.bounds)
        for part in self._parts():
            part["log_ratio"].clamp_(lowest, highest if written > 0 else lowest)
        self._write_mean()

    def _write_mean(self) -> None:
        """Let the group read as the mean of its values, taken in β: the geometric mean of step sizes."""
        ratios = [part["log_ratio"] for part in self._parts()]
        n = sum(shape_of(self.group["step_sizes"], param).numel() for param in self.group["params"])
        sums = [ratio.sum(dtype=torch.float64).to(ratios[0].device) for ratio in ratios]
        total = torch.stack(sums).sum().item()
        self.write(float(self.parametrisation.value(self.record["reference"], total / n)))

    @property
    def has_parts(self) -> bool:
        """Whether a parameter has learned a value of its own."""
        return next(self._parts(), None) is not None

    def _parts(self) -> Iterator[dict[str, Any]]:
        for param in self.group["params"]:
            part = self._part(param)
            if part is not None:
                yield part

    def _part(self, param: Tensor) -> dict[str, Any] | None:
        """What a parameter has learned for itself."""
        return self.optimizer.state[param].get(RECORD[self.kind]) if param in self.optimizer.state else None


def new_record(meta: MetaUpdate, start: float) -> dict[str, Any]:
    """Make the record of a block that has not learned anything yet."""
    start = float(start)
    return {"reference": start, "written": start, "meta_gradient": 0.0, **new_part(meta, 0.0)}


def new_part(meta: MetaUpdate, log_ratio: Any) -> dict[str, Any]:
    """Make what is kept for each parameter where each learns values of its own."""
    sizes = {"step": 0.0, "short_size": 0.0, "long_size": 0.0}
    return {"log_ratio": log_ratio, "meta_state": meta.init(), "typical_sizes": sizes}


def parametrisation_of(group: Group, kind: str) -> Parametrisation:
    """Give the coordinate β in which a group learns."""
    if kind == "lr":
        return STEP_SIZE_PARAMETRISATIONS[group["parametrisation"]]
    return LOG if kind == "weight_decay" else LOGIT


def _bounds(group: Group, kind: str) -> tuple[float, float]:
    if kind == "lr":
        low, high = group["lr_bounds"]
        return low, high
    return WEIGHT_DECAY_BOUNDS if kind == "weight_decay" else MOMENTUM_BOUNDS
