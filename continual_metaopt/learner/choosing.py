"""Which engine executes a learner's steps, and why not a faster one."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from continual_metaopt.engines import COMPILED, Engine
from continual_metaopt.engines.torch_engine import Differentiate, by_autograd
from continual_metaopt.learner.loading import SampleLoader, first_batch
from continual_metaopt.streams.registry import unknown_name

if TYPE_CHECKING:
    from continual_metaopt.engines.compiled.engine import CompiledEngine
    from continual_metaopt.engines.compiled.fused_update import FusedPass, FusedUpdate

Learning = tuple[nn.Module, Optimizer, Any]  # network, its optimizer, and the loss of (output, target)


@dataclass
class Execution:
    """How a learner's steps are executed.

    Attributes:
        wanted: the engine that was asked for.
        optimizer: makes its own updates unless they are fused.
        record: name of the engine that was taken, and the reason why not a faster one.
        compiled: the compiled engine, as soon as a sample is known.
        fused: makes the optimizer's updates by compiled passes over memory.
    """

    wanted: Engine
    optimizer: Optimizer
    record: dict[str, str]
    compiled: "CompiledEngine | None" = None
    fused: "FusedUpdate | FusedPass | None" = None

    def __post_init__(self) -> None:
        self.update: Callable[..., Any] = self.fused or self.optimizer.step

    def compile(self, dataset: Any) -> None:
        """Compile what the engine needs before the time of learning is taken."""
        if self.compiled is not None:
            self.compiled.compile(dataset)
        if self.fused is not None:
            self.fused.compile()

    def leave_to_autograd(self, why: str) -> None:
        """Let the record say why no graph is traced; without graph and fused update the engine is "torch"."""
        if self.record["name"] != "fused":
            return
        if self.fused is None:
            which = "not fused" if self.wanted == "fused" else "neither compiled nor fused"
            self.record |= {"name": "torch", "reason": f"{which}: {why}"}
        elif why not in self.record["reason"]:
            self.record["reason"] += f"; gradients by autograd: {why}"


def choose(
    wanted: Engine,
    learning: Learning,
    batch_size: int,
    obstacle: str | None = None,
    sample: Sequence[Tensor] | None = None,
) -> Execution:
    """Choose the fastest engine that fits, or check that the one that is asked for does.

    Args:
        obstacle: why Avalanche's callbacks have to run, if they do.
        sample: a mini-batch, if one is known already.

    Raises:
        ValueError: unknown engine, or one that does not fit.
    """
    if wanted not in get_args(Engine):
        raise ValueError(unknown_name("engine", wanted, list(get_args(Engine))))
    optimizer = learning[1]
    if wanted in ("auto", "compiled"):
        compiled = None
        if obstacle is None:
            from continual_metaopt.engines.compiled.engine import compiled_or_why_not

            compiled, obstacle = compiled_or_why_not(*learning, sample, batch_size, only_if_faster=wanted == "auto")
        if obstacle is None:
            return Execution(wanted, optimizer, dict(COMPILED), compiled)
        _refuse_if(wanted == "compiled", wanted, obstacle)
    if wanted == "torch":
        return Execution(wanted, optimizer, {"name": "torch", "reason": "asked for"})
    from continual_metaopt.engines.compiled.fused_update import fused_update_of
    from continual_metaopt.engines.traced.traced_gradients import why_not_traced

    record = {"name": "fused", "reason": "asked for" if wanted == "fused" else f"not compiled: {obstacle}"}
    fused = fused_update_of(optimizer)
    if fused is not None:
        return Execution(wanted, optimizer, record, fused=fused)
    execution, no_graph = Execution(wanted, optimizer, record), why_not_traced(optimizer)
    if no_graph is not None:
        _refuse_if(wanted == "fused", wanted, no_graph)
        execution.leave_to_autograd(no_graph)
    return execution


def _refuse_if(refused: bool, engine: str, obstacle: str) -> None:
    if refused:
        raise ValueError(f'engine="{engine}" is not possible: {obstacle}; use engine="auto"')


def choose_gradients(
    execution: Execution,
    learning: Learning,
    dataset: Any,
    batch_size: int,
    device: torch.device,
    before: Differentiate | None,
) -> Differentiate:
    """Choose what predicts and computes gradients without callbacks: compiled code, a traced graph, or autograd.

    The execution's record says which. A graph traced for the experience before is kept for as long as it holds.
    """
    if execution.record["name"] == "fused":
        from continual_metaopt.engines.compiled.gradients import CompiledGradients, NotCompiled
        from continual_metaopt.engines.traced.traced_gradients import FEWEST_SAMPLES, NotTraceable, TracedGradients

        x, y, *_ = first_batch(SampleLoader(dataset, batch_size=batch_size))
        given = (*learning, x.to(device), y.to(device))
        own = "" if execution.fused else "; the optimizer makes its own update"
        with suppress(NotCompiled):
            compiled = CompiledGradients(*given)
            execution.record["reason"] += f"; gradients by compiled code{own}"
            return compiled
        try:
            if len(dataset) < FEWEST_SAMPLES:
                raise NotTraceable("the experience is too short for tracing")
            if not (isinstance(before, TracedGradients) and before.still_holds(*given)):
                before = TracedGradients(*given)
        except NotTraceable as error:
            execution.leave_to_autograd(str(error))
        else:
            execution.record["reason"] += f"; gradients by a traced graph{own}"
            return before
    return partial(by_autograd, *learning)
