"""MetaOptimize: any base update, with step sizes that a meta update tunes while learning.

Sharifnassab, Salehkaleybar, Sutton, "MetaOptimize: A Framework for Optimizing Step Sizes and Other Meta-parameters",
arXiv 2402.02342, in its Hessian-free form.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from continual_metaopt.optim.base_updates import BASE_UPDATES, BaseUpdate, Direction
from continual_metaopt.optim.meta_updates import META_UPDATES, MetaUpdate
from streams.registry import unknown_name

StepSizes = Literal["group", "scalar"]

Group = dict[str, Any]


class NonFiniteMetaGradient(FloatingPointError):
    """The meta gradient of a block is NaN or infinite; weights and step sizes are as they were before the step."""


class MetaOptimize(torch.optim.Optimizer):
    """A base optimizer whose step sizes are learned online by a meta optimizer (Hessian-free MetaOptimize).

    In each step, with gradient g, step size α = exp(β) per block, decoupled weight decay κ and trace h (how the past
    log step sizes moved the weights, discounted by γ):

        z = Σ_{i ∈ block} h_i g_i          the surrogate meta gradient, with the old h
        w ← w − Δw                         the base update, weight decay included
        h ← γ (1 − κ α) h − Δw
        β ← meta update of β with z

    A param group is a block. ``group["lr"]`` always reads as the block's current step size; writing it, as a scheduler
    does, replaces the step size from which the block learns on. With ``meta_lr=0`` no trace is kept and the optimizer
    is its base update with a fixed step size, which is ``torch.optim``'s, bit for bit, where torch has the rule (with
    decoupled weight decay).

    Everything learned lives in ``state`` and ``param_groups``, so ``state_dict`` resumes bit for bit.

    Args:
        params: tensors or param groups, as for any torch optimizer; ``blocks`` makes groups of a network. A group may
            set its own "lr", "meta_lr", "gamma", "weight_decay", "lr_bounds", and a "name" for reports.
        lr: initial step size α₀.
        base: base update: "sgd", "sgdm", "rmsprop", "adamw", "lion", "…_released", or a configured object.
        meta: meta update: "sgd", "rmsprop", "adam", "lion", "…_released", or a configured object.
        meta_lr: meta step size η.
        gamma: discount γ in [0, 1] of the trace; 1 / (1 − γ) is its horizon in steps.
        weight_decay: decoupled weight decay κ.
        step_sizes: "group" for one step size per group, "scalar" for one that all groups share.
        lr_bounds: the step size stays within these.

    Raises:
        ValueError: a setting is out of range, or a name is unknown.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = MetaOptimize(model.parameters(), lr=1e-3)
        >>> model(torch.ones(1, 3)).square().sum().backward()
        >>> optimizer.step()
        >>> optimizer.step_size_report()
        {'group0': 0.001}
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        *,
        base: str | BaseUpdate = "adamw",
        meta: str | MetaUpdate = "adam",
        meta_lr: float = 1e-2,
        gamma: float = 0.999,
        weight_decay: float = 0.01,
        step_sizes: StepSizes = "group",
        lr_bounds: tuple[float, float] = (1e-10, 1.0),
    ) -> None:
        if step_sizes not in ("group", "scalar"):
            raise ValueError(unknown_name("kind of step sizes", str(step_sizes), ["group", "scalar"]))
        self.base: BaseUpdate = BASE_UPDATES[base]() if isinstance(base, str) else base
        self.meta: MetaUpdate = META_UPDATES[meta]() if isinstance(meta, str) else meta
        self.step_sizes: StepSizes = step_sizes
        defaults = {
            "lr": lr,
            "meta_lr": meta_lr,
            "gamma": gamma,
            "weight_decay": weight_decay,
            "lr_bounds": tuple(lr_bounds),
        }
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        # torch's own keeps only defaults, state and groups: copies and pickles would lose the rules
        rules = {"base": self.base, "meta": self.meta, "step_sizes": self.step_sizes}
        return super().__getstate__() | rules

    def add_param_group(self, param_group: Group) -> None:
        """Add a block. With ``step_sizes="scalar"`` it joins the shared step size unless it names another, an error.

        Raises:
            ValueError: a setting is out of range, or the name is taken.
        """
        first = self.param_groups[0] if self.param_groups else None
        if self.step_sizes == "scalar" and first is not None:
            param_group.setdefault("lr", first["lr"])
            if param_group["lr"] != first["lr"]:
                raise ValueError(
                    f'step_sizes="scalar" means one step size for all groups, but their lr differ: '
                    f'{first["lr"]} and {param_group["lr"]}; give them the same lr, or use step_sizes="group"'
                )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group)
            *others, name = self._block_names()
            if name in others:
                raise ValueError(f"two groups are named '{name}'; give each its own name")
        except ValueError:
            self.param_groups.pop()
            raise
        group["rule"] = self._rule()
        group["learned"] = {
            "reference": float(group["lr"]),  # the step size that learning started from, and …
            "log_ratio": 0.0,  # … β − β₀ apart from it, because exp(log α₀) is not α₀ in floating point
            "written": float(group["lr"]),  # what this class last wrote to "lr"
            "meta_gradient": 0.0,
            "meta_state": self.meta.init(),
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

        Args:
            closure: evaluates the network again, calls ``backward`` and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            NonFiniteMetaGradient: a meta gradient is NaN or infinite; nothing has been changed.
            ValueError: a gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        blocks = self.blocks()
        step_sizes = [self.current_step_size(block) for block in blocks]
        meta_gradients = self._meta_gradients(blocks)
        for block, step_size in zip(blocks, step_sizes, strict=True):
            for group in block:
                self._update_weights_and_traces(group, step_size)
        for block, meta_gradient in zip(blocks, meta_gradients, strict=True):
            if meta_gradient is not None and block[0]["meta_lr"] > 0:
                self.update_step_size(block, meta_gradient)
        return loss

    def step_size_report(self) -> dict[str, float]:
        """Current step size of each block: its group's name, or "all" where all groups share one."""
        if self.step_sizes == "scalar":
            return {"all": float(self.param_groups[0]["lr"])}
        return {name: float(group["lr"]) for name, group in zip(self._block_names(), self.param_groups, strict=True)}

    def meta_gradient_report(self) -> dict[str, float]:
        """Surrogate meta gradient z of each block in the last step; 0 before the second step."""
        names = self.step_size_report()
        return {name: block[0]["learned"]["meta_gradient"] for name, block in zip(names, self.blocks(), strict=True)}

    def blocks(self) -> list[list[Group]]:
        """The param groups of each block; a block's step size and meta state are kept in its first group."""
        return [self.param_groups] if self.step_sizes == "scalar" else [[group] for group in self.param_groups]

    def _block_names(self) -> list[str]:
        return [str(group.get("name", f"group{index}")) for index, group in enumerate(self.param_groups)]

    def _block_name(self, group: Group) -> str:
        index = next(i for i, other in enumerate(self.param_groups) if other is group)
        return self._block_names()[index]

    def _rule(self) -> str:
        return f"{self.base} with {self.meta} as meta update, step_sizes={self.step_sizes!r}"

    def current_step_size(self, block: list[Group]) -> float:
        """A block's step size, after taking over what others wrote to "lr" since the last step."""
        learned = block[0]["learned"]
        for group in block:
            written_by_others = float(group["lr"])
            if written_by_others == learned["written"]:
                continue
            if not written_by_others >= 0:
                raise ValueError(f"the step size of block '{self._block_name(group)}' was set to {group['lr']}")
            learned["reference"], learned["log_ratio"] = written_by_others, 0.0
            if group["meta_lr"] > 0:
                low, high = group["lr_bounds"]
                learned["reference"] = min(max(written_by_others, low), high)
            self._write_step_size(block, learned["reference"])
            break
        return cast(float, learned["written"])

    def _write_step_size(self, block: list[Group], step_size: float) -> None:
        block[0]["learned"]["written"] = step_size
        for group in block:
            group["lr"] = step_size

    def _meta_gradients(self, blocks: list[list[Group]]) -> list[float | None]:
        """Σ h·g of each block, with one transfer from the device for all; None for a block without a gradient."""
        sums: list[float | None] = [None] * len(blocks)
        owners: list[int] = []
        products: list[Tensor] = []
        for index, block in enumerate(blocks):
            for learns, param, grad in ((g["meta_lr"] > 0, *pair) for g in block for pair in _params_with_gradient(g)):
                sums[index] = 0.0
                trace = self.state[param].get("trace") if param in self.state else None
                if trace is not None and learns:
                    owners.append(index)
                    products.append(torch.dot(trace.flatten(), grad.flatten()))
        if products:
            device = products[0].device
            for index, value in zip(owners, torch.stack([p.to(device) for p in products]).tolist(), strict=True):
                sums[index] += value
        for block, total in zip(blocks, sums, strict=True):
            self.check_meta_gradient(block, total)
        return sums

    def check_meta_gradient(self, block: list[Group], meta_gradient: float | None) -> None:
        """Stop at a meta gradient that is not a number.

        Raises:
            NonFiniteMetaGradient: it is NaN or infinite.
        """
        if meta_gradient is not None and not math.isfinite(meta_gradient):
            name = "all" if self.step_sizes == "scalar" else self._block_name(block[0])
            raise NonFiniteMetaGradient(f"the meta gradient of block '{name}' is {meta_gradient}")

    def prepared_state(self, group: Group, param: Tensor) -> dict[str, Any]:
        """A parameter's state, made at its first update; with a trace if its group learns a step size."""
        state = self.state[param]
        if not state:
            state.update(self.base.init(param))
        if group["meta_lr"] > 0 and "trace" not in state:
            state["trace"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state

    def _update_weights_and_traces(self, group: Group, step_size: float) -> None:
        weight_decay = group["weight_decay"]
        shrinkage = 1 - step_size * weight_decay
        for param, grad in _params_with_gradient(group):
            state = self.prepared_state(group, param)
            direction = self.base.direction(state, grad)
            if group["meta_lr"] > 0:
                trace = state["trace"].mul_(group["gamma"] * shrinkage)
                if weight_decay:
                    trace.add_(param, alpha=-step_size * weight_decay)
                _move(trace, direction, step_size)
            if weight_decay:
                param.mul_(shrinkage)
            _move(param, direction, step_size)

    def take_step_size(
        self, block: list[Group], step_size: float, log_ratio: float, meta_gradient: float, meta_state: dict[str, float]
    ) -> None:
        """Take over what an engine has learned about a block's step size in this optimizer's place."""
        block[0]["learned"].update(log_ratio=log_ratio, meta_gradient=meta_gradient, meta_state=meta_state)
        self._write_step_size(block, step_size)

    def update_step_size(self, block: list[Group], meta_gradient: float) -> None:
        """Make the meta update of a block's step size."""
        group, learned = block[0], block[0]["learned"]
        learned["meta_gradient"] = meta_gradient
        low, high = group["lr_bounds"]
        reference = learned["reference"]
        log_ratio = learned["log_ratio"] + self.meta.change(learned["meta_state"], meta_gradient, group["meta_lr"])
        learned["log_ratio"] = min(max(log_ratio, math.log(low / reference)), math.log(high / reference))
        self._write_step_size(block, min(max(reference * math.exp(learned["log_ratio"]), low), high))


def _params_with_gradient(group: Group) -> Iterator[tuple[Tensor, Tensor]]:
    for param in group["params"]:
        if param.grad is not None:
            if param.grad.is_sparse or param.is_complex():
                kind = "complex parameters" if param.is_complex() else "sparse gradients"
                raise ValueError(f"MetaOptimize does not work with {kind}")
            yield param, param.grad


def _move(tensor: Tensor, direction: Direction, step_size: float) -> None:
    """Subtract a step from ``tensor`` in place, with the floating-point operations of torch's optimizers."""
    if direction.denominator is None:
        tensor.add_(direction.numerator, alpha=-step_size / direction.divisor)
    else:
        tensor.addcdiv_(direction.numerator, direction.denominator, value=-step_size / direction.divisor)


def _check_group(group: Group) -> None:
    low, high = group["lr_bounds"]
    if not 0 < low < high:
        raise ValueError(f"lr_bounds must be two positive numbers, the lower first, not {group['lr_bounds']}")
    if not group["meta_lr"] >= 0:
        raise ValueError(f"meta_lr must not be negative, but is {group['meta_lr']}")
    if not 0 <= group["gamma"] <= 1:
        raise ValueError(f"gamma must be between 0 and 1, but is {group['gamma']}")
    if not group["weight_decay"] >= 0:
        raise ValueError(f"weight_decay must not be negative, but is {group['weight_decay']}")
    if not group["lr"] > 0:
        raise ValueError(f"lr must be positive, but is {group['lr']}")
    if group["meta_lr"] > 0 and not low <= group["lr"] <= high:
        raise ValueError(f"lr = {group['lr']} is outside lr_bounds = {group['lr_bounds']}")
