"""An offline oracle: the best piecewise constant step sizes for a stream, found in many passes over it.

python -m continual_metaopt.oracle --stream class_split --source digits --network mlp --segments 5 --base adamw
python -m continual_metaopt.oracle --study field --source cifar100 --seed 100 --samples 10000 --out oracle.csv

Micaelli, Storkey, "Gradient-based Hyperparameter Optimization Over Long Horizons", NeurIPS 2021 (arXiv 2007.07869):
forward-mode differentiation, FDS, of a whole run, with a step size that is shared by the steps of a segment. It knows
the future and sees each sample as many times as it makes passes, so it is no learner, but says what step sizes could
have done for one. With ``--study`` it has the stream and the network of that study's selection runs, and its accuracy
may stand beside their scores in a table, as an offline row.

Each pass is one run from the same first weights. Along with it goes the exact trace dw_t/dβ_j of the log step size β_j
of each segment (``optim/traces.py``, the trace l at γ = 1), at the cost of a Hessian-vector product for each segment
begun so far; so the oracle is for small networks and some thousand samples.

Differences from the authors' experiments: what is minimised is the mean online loss of the whole run, in place of the
loss on held-out data at its end; step sizes are learned by their logarithms; momentum and weight decay are given.
Hypergradients have no noise, because all passes see the same samples, but the loss is rugged; so in place of SGD with
momentum and clipped changes, each pass starts from the best so far and goes by the signs of its hypergradients, with
sizes that grow and shrink as in Rprop (Riedmiller, Braun, 1993), and shrink after a pass that was not better. A local
minimum is all that can be promised: from a step size that is too small to follow anything, it can be better to follow
noise even less.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from tabulate import tabulate
from torch import Tensor, nn

from continual_metaopt.analysis.files import print_with_replacements, write_whole
from continual_metaopt.engines.torch_engine import are_correct
from continual_metaopt.learner.loading import SampleLoader
from continual_metaopt.networks import NETWORKS
from continual_metaopt.networks.losses import criterion_of
from continual_metaopt.optim.base_updates import BASE_UPDATES, BaseUpdate, ParamState
from continual_metaopt.optim.curvature import make_curvature
from continual_metaopt.optim.meta_updates import SGD
from continual_metaopt.optim.traces import DEFAULT_LIMIT, MetaStep, TracedParameter, TraceRule, check_memory
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.process_settings import set_up_process
from continual_metaopt.streams import make_stream
from continual_metaopt.study.load import load_study

Criterion = Callable[[Tensor, Tensor], Tensor]
Sample = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Run:
    """One pass over the samples with given step sizes.

    Attributes:
        step_sizes: of each segment.
        loss: mean online loss; infinite where the run diverged.
        online_accuracy: share of samples that were predicted right before they were learned from; None for regression.
        hypergradient: derivative of the mean online loss by each segment's log step size; None where it diverged, or
            was not asked for.
    """

    step_sizes: list[float]
    loss: float
    online_accuracy: float | None
    hypergradient: list[float] | None


def best_schedule(
    model: nn.Module,
    samples: Sequence[Sample],
    criterion: Criterion,
    *,
    n_segments: int,
    lr: float = 1e-3,
    base: str | BaseUpdate = "adamw",
    weight_decay: float = 0.0,
    n_passes: int = 40,
    first_change: float = 0.5,
    largest_change: float = 1.0,
    lr_bounds: tuple[float, float] = (1e-8, 10.0),
    memory_limit: float | None = DEFAULT_LIMIT,
) -> Iterator[Run]:
    """Search for the step sizes with which a run has the least mean online loss.

    Args:
        model: the network with its first weights, which it has again in the end.
        samples: mini-batches (inputs, targets) in their order, each an update.
        criterion: loss of (output, target); differentiable twice with respect to the weights.
        n_segments: pieces of equal numbers of updates, each with a step size.
        lr: step size of all segments in the first pass.
        base: base update, by name or configured.
        weight_decay: decoupled weight decay κ.
        n_passes: runs to make.
        first_change: of log step sizes, after the first pass.
        largest_change: of a log step size after any pass.
        lr_bounds: step sizes stay within these.
        memory_limit: bytes that traces may take; None for no limit.

    Yields:
        The runs as they are made; ``min(runs, key=lambda run: run.loss)`` is the best.

    Raises:
        ValueError: a setting is out of range, or the traces do not fit into the limit.
    """
    low, high = lr_bounds
    if not 0 < low <= lr <= high < math.inf:
        raise ValueError(f"lr must be within lr_bounds, two positive numbers, but is {lr}, with {lr_bounds}")
    if n_passes < 1:
        raise ValueError(f"n_passes must be at least 1, but is {n_passes}")
    log_step_sizes = torch.full((n_segments,), math.log(lr), dtype=torch.float64)
    changes = torch.full_like(log_step_sizes, first_change)
    best: Run | None = None
    for _ in range(n_passes):
        step_sizes = log_step_sizes.exp().clamp(low, high).tolist()
        run = run_schedule(model, samples, criterion, step_sizes, base, weight_decay, memory_limit=memory_limit)
        yield run
        if run.hypergradient is None and best is None:
            log_step_sizes -= math.log(10)
            continue
        better = run.hypergradient is not None and (best is None or run.loss < best.loss)
        if best is not None:
            changes *= _factors(best, run, better)
            changes.clamp_(max=largest_change)
        if better or best is None:
            best = run
        slopes = torch.tensor(best.hypergradient, dtype=torch.float64)
        log_step_sizes = torch.tensor(best.step_sizes, dtype=torch.float64).log() - changes * slopes.sign()


def run_schedule(
    model: nn.Module,
    samples: Sequence[Sample],
    criterion: Criterion,
    step_sizes: Sequence[float],
    base: str | BaseUpdate = "adamw",
    weight_decay: float = 0.0,
    *,
    differentiate: bool = True,
    memory_limit: float | None = DEFAULT_LIMIT,
) -> Run:
    """Learn from all samples with piecewise constant step sizes, and differentiate the mean online loss by them.

    Args:
        model: the network with its first weights, which it has again in the end.
        samples: mini-batches (inputs, targets) in their order, each an update.
        criterion: loss of (output, target).
        step_sizes: one for each segment; update t of n has number ⌊t · segments / n⌋.
        base: base update, by name or configured.
        weight_decay: decoupled weight decay κ.
        differentiate: whether the hypergradient is computed, which takes most of the time.
        memory_limit: bytes that traces may take; None for no limit.

    Raises:
        ValueError: there are fewer samples than segments or no segments, the base update is unknown, or the traces do
            not fit into the limit.
    """
    n_segments = len(step_sizes)
    if not 1 <= n_segments <= len(samples):
        raise ValueError(f"the number of segments must be from 1 to that of updates, {len(samples)}, not {n_segments}")
    update: BaseUpdate = BASE_UPDATES[base]() if isinstance(base, str) else base
    params = [param for param in model.parameters() if param.requires_grad]
    first_weights = [param.detach().clone() for param in params]
    inner = _InnerRun(params, update, weight_decay)
    if differentiate:
        check_memory(inner.rule, params, n_segments, memory_limit)
    losses: list[float] = []
    correct: list[bool | None] = []
    hypergradient = torch.zeros(n_segments, dtype=torch.float64)
    try:
        for t, (x, y) in enumerate(samples):
            output = model(x)
            loss = criterion(output, y)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                return Run(list(step_sizes), math.inf, None, None)
            correct += are_correct(output, y)
            segment = t * n_segments // len(samples)
            meta_gradient = inner.step(loss, segment, step_sizes[segment], differentiate)
            hypergradient[: len(meta_gradient)] += meta_gradient
    finally:
        with torch.no_grad():
            for param, first in zip(params, first_weights, strict=True):
                param.copy_(first)
    accuracy = None if None in correct else sum(map(bool, correct)) / len(correct)
    finite = differentiate and bool(hypergradient.isfinite().all())
    slopes = (hypergradient / len(samples)).tolist() if finite else None
    return Run(list(step_sizes), sum(losses) / len(losses), accuracy, slopes)


class _InnerRun:
    """A base update with a step size of its own for each segment, and traces of the segments begun so far."""

    def __init__(self, params: list[nn.Parameter], base: BaseUpdate, weight_decay: float) -> None:
        self.params, self.base, self.weight_decay = params, base, weight_decay
        self.rule = TraceRule(base, SGD(), variant="l")
        self.states: list[ParamState] = [base.init(param.detach()) for param in params]
        self.traces = [self.rule.init_parameter(param.detach(), 0) for param in params]
        self.n_begun = 0

    def step(self, loss: Tensor, segment: int, step_size: float, differentiate: bool) -> Tensor:
        """Learn from one loss; returns its derivative by the log step sizes of all segments begun, or nothing."""
        found = torch.autograd.grad(loss, self.params, create_graph=differentiate, allow_unused=True)
        graphs = [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, found, strict=True)]
        gradients = [gradient.detach() for gradient in graphs]
        meta_gradient = torch.zeros(0, dtype=torch.float64)
        if differentiate:
            self._begin(segment)
            number = torch.tensor(segment)
            traced = [
                TracedParameter(*parts, step_size, number, self.weight_decay)
                for parts in zip(self.params, gradients, self.states, self.traces, strict=True)
            ]
            meta_gradient = self.rule.meta_gradients(traced, self.n_begun)
            curvature = make_curvature("exact", self.params, graphs, loss)
            nothing = MetaStep({}, torch.zeros_like(meta_gradient), 0.0, self.rule.init_meta(self.n_begun))
            self.rule.advance(traced, nothing, 1.0, curvature)
        with torch.no_grad():
            for param, gradient, state in zip(self.params, gradients, self.states, strict=True):
                direction = self.base.direction(state, gradient).quotient()
                param.mul_(1 - step_size * self.weight_decay).sub_(direction, alpha=step_size)
        return meta_gradient

    def _begin(self, segment: int) -> None:
        """Add columns of zeros for segments that begin."""
        while self.n_begun <= segment:
            self.n_begun += 1
            for traces in self.traces:
                for name, columns in traces.items():
                    traces[name] = torch.cat([columns, columns.new_zeros(1, *columns.shape[1:])])


def _factors(best: Run, run: Run, better: bool) -> Tensor:
    """How the sizes of changes go on after a run that started from the best one: per segment, as in Rprop."""
    if run.hypergradient is None:
        return torch.tensor(0.25, dtype=torch.float64)
    slopes = torch.tensor([best.hypergradient, run.hypergradient], dtype=torch.float64)
    overshot = slopes.prod(dim=0) < 0
    return torch.where(overshot, 0.5, 1.2) if better else torch.where(overshot, 0.3, 0.7)


def main(argv: Sequence[str] | None = None) -> int:
    """Search on a stream, and print each pass and then the best schedule."""
    parser = argparse.ArgumentParser(
        prog="python -m continual_metaopt.oracle", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("--stream", default="permuted_inputs")
    parser.add_argument("--source", default=None, help="of the stream's images (default: digits, or the study's)")
    parser.add_argument("--study", help="take stream and network as its selection runs have them")
    parser.add_argument("--samples", type=int, default=1000, help="from the beginning of the stream")
    parser.add_argument("--network", default="mlp")
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--base", default="adamw")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the first pass")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a .csv, written after each pass, for all of them and the best again")
    print_with_replacements()
    arguments = parser.parse_args(argv)
    stream, network = _described(arguments)
    benchmark = make_stream(stream.name, **stream.options, seed=arguments.seed)
    known = benchmark.info.for_learner
    samples = list(itertools.islice(_mini_batches(benchmark.train_stream), arguments.samples))
    torch.manual_seed(arguments.seed)
    search = best_schedule(
        NETWORKS[network.name](known.n_outputs, known.input_shape, **network.options),
        samples,
        criterion_of(known.task),
        n_segments=arguments.segments,
        lr=arguments.lr,
        base=arguments.base,
        weight_decay=arguments.weight_decay,
        n_passes=arguments.passes,
    )
    table = pd.DataFrame()
    runs: list[Run] = []
    try:
        for run in track(search, "passes", arguments.passes, console=Console(stderr=True)):
            runs.append(run)
            table = _table(runs)
            if arguments.out is not None:
                known_as = table.assign(learner="best step sizes in hindsight (offline)", seed=arguments.seed)
                write_whole(arguments.out, partial(known_as.assign(samples=len(samples)).to_csv, index=False))
    except KeyboardInterrupt:
        print(f"interrupted: {len(runs)} of {arguments.passes} passes were made", file=sys.stderr)
    print(tabulate(table.to_numpy().tolist(), list(table.columns), floatfmt=".4g"))
    if arguments.out is not None and runs:
        print(f"wrote {arguments.out}")
    return 0 if len(runs) == arguments.passes else 130


def _table(runs: Sequence[Run]) -> pd.DataFrame:
    """All passes, and then the best of them again."""
    passes = (*enumerate(runs), ("best", min(runs, key=lambda run: run.loss)))
    rows = [[number, run.loss, run.online_accuracy, *run.step_sizes] for number, run in passes]
    names = [f"step size {j}" for j in range(len(runs[0].step_sizes))]
    return pd.DataFrame(rows, columns=["pass", "loss", "online accuracy", *names])


def _described(arguments: argparse.Namespace) -> tuple[Component, Component]:
    """The stream and the network that were asked for."""
    if arguments.study is None:
        stream = Component.model_validate({"name": arguments.stream, "source": arguments.source or "digits"})
        return stream, Component(name=arguments.network)
    study = load_study(arguments.study, source=arguments.source)
    shorter = study.tuning.stream if study.tuning else {}
    return Component(name=study.stream.name, **study.stream.options | shorter), study.network


def _mini_batches(experiences: Iterable[Any]) -> Iterator[Sample]:
    """All samples of a stream one by one, as (inputs [1, …], targets [1, …])."""
    for experience in experiences:
        for x, y, *_ in SampleLoader(experience.dataset):
            yield x, y


if __name__ == "__main__":
    set_up_process()
    sys.exit(main())
