"""The optimizer's update alone, without a network: nanoseconds per parameter, beside PyTorch's optimizers.

    python -m benchmarks.update [--parameters 10000 … 100000000] [--blocks 1 10 100 1000] [--repeats 7]

All contenders run in one process on one thread, in turns, on tensors of the same sizes with the same gradients; the
median of the repetitions counts. Two tables: cost against the number of parameters, in eight tensors, four blocks of
two; and cost against the number of blocks, of a million parameters.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from tabulate import tabulate
from torch import nn

from continual_metaopt import MetaOptimize
from continual_metaopt.engines.compiled.fused_update import FusedUpdate

MIN_SECONDS = 0.05  # of each repetition
BASELINE = "AdamW fused"
Blocks = list[list[nn.Parameter]]


def _metaoptimize(blocks: Blocks) -> MetaOptimize:
    return MetaOptimize([{"params": block, "name": str(i)} for i, block in enumerate(blocks)], 1e-6)


def _adamw(blocks: Blocks, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": block} for block in blocks], 1e-6, **options)


CONTENDERS: dict[str, Callable[[Blocks], Callable[[], Any]]] = {
    BASELINE: lambda blocks: _adamw(blocks, fused=True).step,
    "AdamW": lambda blocks: _adamw(blocks).step,
    "MetaOptimize, plain": lambda blocks: _metaoptimize(blocks).step,
    "MetaOptimize, fused": lambda blocks: FusedUpdate(_metaoptimize(blocks)),
}


def measure(n_parameters: int, n_blocks: int, tensors_per_block: int, repeats: int) -> dict[str, str]:
    """Nanoseconds per parameter of each contender's update, and MetaOptimize's ratio to fused AdamW."""
    size = max(1, n_parameters // (n_blocks * tensors_per_block))
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    updates = {}
    for name, make in CONTENDERS.items():
        blocks = [
            [nn.Parameter(torch.randn(size, generator=generator)) for _ in range(tensors_per_block)]
            for _ in range(n_blocks)
        ]
        for block in blocks:
            for parameter in block:
                parameter.grad = torch.randn(size, generator=generator)
        updates[name] = make(blocks)
        updates[name]()
    for _ in range(repeats):
        for name, update in updates.items():
            n_steps, start = 0, time.perf_counter()
            while n_steps == 0 or time.perf_counter() - start < MIN_SECONDS:
                update()
                n_steps += 1
            times[name].append((time.perf_counter() - start) / n_steps / (size * n_blocks * tensors_per_block) * 1e9)
    ratio = statistics.median(map(float.__truediv__, times["MetaOptimize, fused"], times[BASELINE]))
    row = {f"{name} (ns)": f"{statistics.median(values):.3f}" for name, values in times.items()}
    return row | {f"MetaOptimize / {BASELINE}": f"{ratio:.2f}"}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.update", description=(__doc__ or "").split("\n")[0])
    sizes = [10**4, 10**5, 10**6, 10**7, 10**8]
    parser.add_argument("--parameters", type=int, nargs="+", default=sizes, help="(default: %(default)s)")
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=[1, 10, 100, 1000, 10**4], help="(default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="repetitions (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    console = Console(stderr=True)
    rows = []
    for n in track(arguments.parameters, description="parameters", console=console):
        rows.append({"parameters": f"{n:,}"} | measure(n, 4, 2, arguments.repeats))
        gc.collect()
    print(tabulate(rows, headers="keys", disable_numparse=True, stralign="right"), end="\n\n")
    rows = [
        {"blocks": f"{n:,}"} | measure(10**6, n, 1, arguments.repeats)
        for n in track(arguments.blocks, description="blocks", console=console)
    ]
    print(tabulate(rows, headers="keys", disable_numparse=True, stralign="right"))


if __name__ == "__main__":
    main()
