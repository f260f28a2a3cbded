"""Exact traces: time per step relative to Hessian-free, and memory kept, for every variant and curvature.

    python -m benchmarks.traces [--networks "MLP 64-32-10" PaperCNN] [--step-sizes blocks weight] [--repeats 7]

A step is forward pass, loss, gradients and update (AdamW with Adam) at batch size 1, in the torch engine's way. All
contenders run in one process on one thread, in turns, on the same samples; ratios to Hessian-free with the same step
sizes are medians over the turns. Both networks have four blocks: the MLP its four tensors, PaperCNN its four layers.
With a step size per weight, traces that do not fit into the limit are left out, with what they would take.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from tabulate import tabulate
from torch import Tensor, nn

from continual_metaopt import MLP, MetaOptimize, PaperCNN, blocks
from continual_metaopt.engines.torch_engine import forget_gradients
from continual_metaopt.optim.curvature import KINDS
from continual_metaopt.optim.protocol import closure_for
from continual_metaopt.optim.traces import VARIANTS, TraceRule, memory_needed

MIN_SECONDS = 0.1  # of each repetition
BASELINE = ("hessian_free", "exact")
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "MLP 64-32-10": (lambda: MLP(10, (1, 8, 8), hidden=(32,)), "tensor", (1, 8, 8)),
    "PaperCNN": (lambda: PaperCNN(10), "blockwise", (3, 32, 32)),
}
SETTINGS = [BASELINE, *((v, c) for v, c in itertools.product(VARIANTS[1:], KINDS) if v != "full" or c == "exact")]
COLUMNS = ("network", "step sizes", "trace", "curvature", "time / Hessian-free", "numbers per weight", "memory (MB)")


def learner(network: str, step_sizes: str, trace: str, curvature: str) -> tuple[nn.Module, MetaOptimize]:
    """A network and its optimizer.

    Raises:
        ValueError: the traces do not fit.
    """
    make, granularity, _ = NETWORKS[network]
    torch.manual_seed(0)
    model = make()
    groups = blocks(model, granularity if step_sizes == "blocks" else step_sizes)  # type: ignore[arg-type]
    options: dict[str, Any] = {"trace": trace, "curvature": curvature}
    return model, MetaOptimize(groups, 1e-6, **options)


def steps(network: str, model: nn.Module, optimizer: MetaOptimize) -> Iterator[None]:
    """Endless steps on random samples, the same for every learner."""
    generator = torch.Generator().manual_seed(1)
    shape = NETWORKS[network][2]
    samples = [(torch.randn(1, *shape, generator=generator), torch.tensor([i % 10])) for i in range(32)]
    criterion = nn.CrossEntropyLoss()
    for x, y in itertools.cycle(samples):
        forget_gradients(optimizer)
        output = model(x)
        loss: Tensor = criterion(output, y)
        if not optimizer.wants_graph:
            loss.backward()
        optimizer.step(closure_for(optimizer, loss, output))
        yield


def kept(optimizer: MetaOptimize) -> int:
    """Bytes of all traces of an optimizer between steps."""
    found = [optimizer.param_groups[0].get("meta_traces", {})]
    for state in optimizer.state.values():
        found.append(state.get("traces", {}))
        found.append({"weights": state["trace"]} if "trace" in state else {})
    tensors = [value for traces in found for value in traces.values() if isinstance(value, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def measure(network: str, step_sizes: str, repeats: int, console: Console) -> list[list[str]]:
    """Rows of the table for one network and granularity."""
    runs: dict[tuple[str, str], tuple[Iterator[None], MetaOptimize]] = {}
    refused = set()
    for setting in SETTINGS:
        try:
            model, optimizer = learner(network, step_sizes, *setting)
        except ValueError:
            refused.add(setting)
            continue
        runs[setting] = steps(network, model, optimizer), optimizer
        next(runs[setting][0])
        next(runs[setting][0])
    times: dict[tuple[str, str], list[float]] = {setting: [] for setting in runs}
    for _ in track(range(repeats), description=f"{network}, {step_sizes}", console=console):
        for setting, (run, _optimizer) in runs.items():
            n_steps, start = 0, time.perf_counter()
            while n_steps == 0 or time.perf_counter() - start < MIN_SECONDS:
                next(run)
                n_steps += 1
            times[setting].append((time.perf_counter() - start) / n_steps)
    rows = []
    for setting in SETTINGS:
        start_of_row = [network, step_sizes, *(setting if setting != BASELINE else (setting[0], ""))]
        if setting in refused:
            rows.append([*start_of_row, "does not fit", *would_take(network, *setting)])
            continue
        optimizer = runs[setting][1]
        ratio = statistics.median(map(float.__truediv__, times[setting], times[BASELINE]))
        n_weights = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        bytes_kept = kept(optimizer)
        rows.append([*start_of_row, f"{ratio:.2f}", f"{bytes_kept / 4 / n_weights:.1f}", f"{bytes_kept / 1e6:.2f}"])
    return rows


def would_take(network: str, trace: str, curvature: str) -> tuple[str, str]:
    """Numbers per weight and megabytes of weightwise traces that do not fit."""
    model, optimizer = learner(network, "weight", *BASELINE)
    params = list(model.parameters())
    n_weights = sum(p.numel() for p in params)
    rule = TraceRule(optimizer.base, optimizer.meta, trace, curvature=curvature)  # type: ignore[arg-type]
    needed = memory_needed(rule, params, n_weights)
    return f"{needed / 4 / n_weights:,.0f}", f"{needed / 1e6:,.0f}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="(default: both)")
    parser.add_argument("--step-sizes", nargs="+", default=["blocks", "weight"], choices=["blocks", "weight"])
    parser.add_argument("--repeats", type=int, default=7, help="repetitions (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    console = Console(stderr=True)
    rows = []
    for network, step_sizes in itertools.product(arguments.networks, arguments.step_sizes):
        rows += measure(network, step_sizes, arguments.repeats, console)
    print(tabulate(rows, headers=COLUMNS, disable_numparse=True))


if __name__ == "__main__":
    main()
