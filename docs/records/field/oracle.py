"""Find in hindsight the step sizes of AdamW, one for each part of a stream, with the least mean online loss.

Each pass is a run over a selection stream of the study ``field``, from the same first weights. Writes a CSV file:

    python docs/records/field/oracle.py --source parquet:data/tiny_imagenet_100 --seed 100 --passes 8 --out oracle.csv

Forward-mode differentiation of the whole run, after Micaelli, Storkey, "Gradient-based Hyperparameter Optimization
Over Long Horizons", NeurIPS 2021 (arXiv 2007.07869): the exact trace dw/dβ of each segment's log step size β (the trace
"l" at γ = 1) goes along, at the cost of a Hessian-vector product per segment. What is minimised is the mean online loss
in place of a held-out loss at the end. The loss is rugged, so each pass starts from the best so far and goes by the
signs of its hypergradients, with changes that grow and shrink as in Rprop (Riedmiller, Braun, 1993).
"""

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pandas as pd
import torch
from rich.progress import track
from torch import Tensor, nn

from continual_metaopt.learner.loading import SampleLoader
from continual_metaopt.networks import NETWORKS
from continual_metaopt.optim.base_updates import BASE_UPDATES
from continual_metaopt.optim.curvature import make_curvature
from continual_metaopt.optim.meta_updates import SGD
from continual_metaopt.optim.traces import MetaStep, TracedParameter, TraceRule
from continual_metaopt.runs.process_settings import set_up_process
from continual_metaopt.streams import make_stream
from continual_metaopt.study.load import load_studies

LR_BOUNDS = (1e-8, 10.0)


@dataclass
class Pass:
    """A run with given step sizes: mean online loss (inf if it diverged), accuracy, and d loss / d log step size."""

    step_sizes: list[float]
    loss: float = math.inf
    online_accuracy: float | None = None
    hypergradient: Tensor | None = None


def run(model: nn.Module, samples: list[tuple[Tensor, Tensor]], step_sizes: list[float], weight_decay: float) -> Pass:
    """Learn from all samples, then give the network its first weights again."""
    params, base = list(model.parameters()), BASE_UPDATES["adamw"]()
    first = [p.detach().clone() for p in params]
    rule = TraceRule(base, SGD(), variant="l")
    states = [base.init(p.detach()) for p in params]
    traces = [rule.init_parameter(p.detach(), 0) for p in params]
    losses, n_correct, n_begun = [], 0, 0
    hypergradient = torch.zeros(len(step_sizes), dtype=torch.float64)
    for t, (x, y) in enumerate(samples):
        segment = t * len(step_sizes) // len(samples)
        output = model(x)
        loss = nn.functional.cross_entropy(output, y)
        losses.append(loss.item())
        n_correct += int(output.argmax() == y)
        if not math.isfinite(losses[-1]):
            break
        graphs = torch.autograd.grad(loss, params, create_graph=True)
        gradients = [g.detach() for g in graphs]
        if segment == n_begun:  # it gets traces of its own
            n_begun += 1
            for trace in traces:
                trace.update({name: torch.cat([c, c.new_zeros(1, *c.shape[1:])]) for name, c in trace.items()})
        traced = [
            TracedParameter(*parts, step_sizes[segment], torch.tensor(segment), weight_decay)
            for parts in zip(params, gradients, states, traces, strict=True)
        ]
        found = rule.meta_gradients(traced, n_begun)
        hypergradient[:n_begun] += found
        unchanged = MetaStep({}, torch.zeros_like(found), 0.0, rule.init_meta(n_begun))
        rule.advance(traced, unchanged, 1.0, make_curvature("exact", params, list(graphs), loss))
        with torch.no_grad():
            for p, gradient, state in zip(params, gradients, states, strict=True):
                direction = base.direction(state, gradient).quotient()
                p.mul_(1 - step_sizes[segment] * weight_decay).sub_(direction, alpha=step_sizes[segment])
    with torch.no_grad():
        for p, start in zip(params, first, strict=True):
            p.copy_(start)
    if not math.isfinite(losses[-1]):
        return Pass(step_sizes)
    n = len(samples)
    slopes = hypergradient / n if hypergradient.isfinite().all() else None
    return Pass(step_sizes, sum(losses) / n, n_correct / n, slopes)


def after(best: Pass | None, last: Pass, changes: Tensor) -> Pass | None:
    """Adapt the sizes of changes, in place, to how the last pass went; returns the best so far."""
    if last.hypergradient is None:
        changes *= 0.25 if best is not None else 1.0
        return best
    better = best is None or last.loss < best.loss
    if best is not None:
        overshot = best.hypergradient * last.hypergradient < 0
        changes *= torch.where(overshot, 0.5, 1.2) if better else torch.where(overshot, 0.3, 0.7)
        changes.clamp_(max=1.0)
    return last if better else best


def table(passes: list[Pass]) -> pd.DataFrame:
    """All passes, and then the best of them again."""
    numbered: list[tuple[Any, Pass]] = [*enumerate(passes), ("best", min(passes, key=lambda one: one.loss))]
    return pd.DataFrame(
        {"pass": number, "loss": one.loss, "online accuracy": one.online_accuracy}
        | {f"step size {j}": step_size for j, step_size in enumerate(one.step_sizes)}
        for number, one in numbered
    )


def main() -> None:
    """Search, and write a table after each pass."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", required=True, help="images of CIFAR-100's shape")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--segments", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3, help="in all segments of the first pass")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    set_up_process()
    study = load_studies("field", source=given.source)[""].runs["selection"]
    benchmark = make_stream(study.stream.name, **study.stream.options, seed=given.seed)
    loaded = (sample for experience in benchmark.train_stream for sample in SampleLoader(experience.dataset))
    samples = [(x, y) for x, y, *_ in itertools.islice(loaded, given.samples)]
    torch.manual_seed(given.seed)
    known = benchmark.info.for_learner
    model = NETWORKS[study.network.name](known.n_outputs, known.input_shape, **study.network.options)
    log_step_sizes = torch.full((given.segments,), math.log(given.lr), dtype=torch.float64)
    changes = torch.full_like(log_step_sizes, 0.5)
    best: Pass | None = None
    passes: list[Pass] = []
    for _ in track(range(given.passes), "passes"):
        step_sizes = log_step_sizes.exp().clamp(*LR_BOUNDS).tolist()
        passes.append(run(model, samples, step_sizes, given.weight_decay))
        best = after(best, passes[-1], changes)
        if best is None:
            log_step_sizes -= math.log(10)
        else:
            log_step_sizes = torch.tensor(best.step_sizes, dtype=torch.float64).log()
            log_step_sizes -= changes * best.hypergradient.sign()
        table(passes).assign(seed=given.seed, samples=len(samples)).to_csv(given.out, index=False)
    print(table(passes).to_markdown(index=False))


if __name__ == "__main__":
    main()
