"""Samples per second of online learning at batch size 1: this package beside what else could be used.

    python -m benchmarks.throughput [--samples 1000] [--repeats 5]

All contenders run in one process on one thread, in turns, with denormal numbers flushed; the median of the repetitions
counts. Each learns from the same images, random ones, since speed does not depend on what they show.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import streams.quiet_avalanche  # noqa: F401

import numpy as np
import torch
from avalanche.training import Naive
from rich.console import Console
from rich.progress import track
from tabulate import tabulate
from torch import nn

from continual_metaopt import MLP, MetaOptimize, OnlineLearner, PaperCNN, blocks
from continual_metaopt.learner import quiet_evaluator
from streams import make_stream

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "PaperCNN": (PaperCNN, (32, 32, 3)),
    "MLP 784-300-150-10": (lambda: MLP(10, (1, 28, 28), hidden=(300, 150)), (28, 28, 1)),
}
BASELINE = "Avalanche Naive + torch AdamW"


def plain_loop(model: nn.Module, optimizer: torch.optim.Optimizer, experience: Any) -> None:
    """The loop that a user would write without any framework."""
    criterion = nn.CrossEntropyLoss()
    for x, y, _ in experience.dataset:
        optimizer.zero_grad()
        criterion(model(x[None]), torch.tensor([y])).backward()
        optimizer.step()


def avalanche_naive(model: nn.Module, optimizer: torch.optim.Optimizer, experience: Any) -> None:
    """Avalanche's own strategy, without metrics and loggers."""
    strategy = Naive(model=model, optimizer=optimizer, train_mb_size=1, evaluator=quiet_evaluator)
    strategy.train(experience, eval_streams=[], shuffle=False)


def online_learner(model: nn.Module, optimizer: torch.optim.Optimizer, experience: Any) -> None:
    """This package's strategy."""
    OnlineLearner(model=model, optimizer=optimizer).train(experience)


CONTENDERS: dict[str, tuple[Callable[..., None], Callable[[nn.Module], torch.optim.Optimizer]]] = {
    BASELINE: (avalanche_naive, lambda m: torch.optim.AdamW(m.parameters(), 1e-4)),
    "plain loop + torch AdamW": (plain_loop, lambda m: torch.optim.AdamW(m.parameters(), 1e-4)),
    "plain loop + torch AdamW fused": (plain_loop, lambda m: torch.optim.AdamW(m.parameters(), 1e-4, fused=True)),
    "plain loop + MetaOptimize": (plain_loop, lambda m: MetaOptimize(blocks(m), 1e-4)),
    "OnlineLearner + torch AdamW": (online_learner, lambda m: torch.optim.AdamW(m.parameters(), 1e-4)),
    "OnlineLearner + MetaOptimize": (online_learner, lambda m: MetaOptimize(blocks(m), 1e-4)),
}


def measure(network: str, samples: int, repeats: int) -> list[dict[str, Any]]:
    """Median samples per second of each contender, with the range, and the ratio to the baseline in the same turn."""
    make, shape = NETWORKS[network]
    random = np.random.RandomState(0)
    x = random.randint(0, 256, (samples, *shape)).astype(np.uint8)
    y = np.arange(samples) % 10
    experience = make_stream("class_split", source=(x, y, x[:10], y[:10])).train_stream[0]
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    turns = [name for _ in range(repeats) for name in CONTENDERS]
    for name in track(turns, description=network, console=Console(stderr=True)):
        run, make_optimizer = CONTENDERS[name]
        torch.manual_seed(0)
        model = make()
        optimizer = make_optimizer(model)
        start = time.perf_counter()
        run(model, optimizer, experience)
        speeds[name].append(samples / (time.perf_counter() - start))
    return [
        {
            "network": network,
            "learner": name,
            "samples/s": f"{statistics.median(values):.0f}",
            "range": f"{min(values):.0f}–{max(values):.0f}",
            f"× {BASELINE}": f"{statistics.median(map(float.__truediv__, values, speeds[BASELINE])):.2f}",
        }
        for name, values in speeds.items()
    ]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000, help="samples per measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per learner (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows = [row for network in arguments.networks for row in measure(network, arguments.samples, arguments.repeats)]
    print(tabulate(rows, headers="keys"))


if __name__ == "__main__":
    main()
