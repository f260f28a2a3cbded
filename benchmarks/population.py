"""Samples per second of many replicas that learn side by side, in total and each.

    python -m benchmarks.population [--device cpu|cuda] [--replicas 1 4 16 64] [--samples 200] [--repeats 3]

Replicas differ in initial weights, samples and initial step sizes, and learn by MetaOptimize's default settings. The
first portion, in which the step is prepared and on a GPU captured, does not count; of the repetitions the median does.
Images are random ones, since speed does not depend on what they show.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from tabulate import tabulate

from benchmarks.throughput import NETWORKS, make_network
from continual_metaopt import MetaOptimize, blocks
from continual_metaopt.engines.population_engine import Population


def measure(network: str, n_replicas: int, device: str, samples: int, repeats: int) -> dict[str, Any]:
    """Median samples per second of a population, with the range, and the memory that it takes on a GPU."""
    height, width, channels = NETWORKS[network][1]
    replicas = []
    for seed in range(n_replicas):
        torch.manual_seed(seed)
        model = make_network(network)
        replicas.append((model, MetaOptimize(blocks(model), 10 ** -(3 + seed % 3))))
    population = Population(replicas, device=device)
    x = torch.rand(n_replicas, samples, channels, height, width)
    y = torch.arange(samples).remainder(10).expand(n_replicas, -1)
    population.learn(x[:, :2], y[:, :2])
    speeds = []
    for _ in track(range(repeats), description=f"{network} × {n_replicas}", console=Console(stderr=True)):
        start = time.perf_counter()
        population.learn(x, y)
        speeds.append(n_replicas * samples / (time.perf_counter() - start))
    total = statistics.median(speeds)
    row = {
        "network": network,
        "replicas": n_replicas,
        "samples/s": f"{total:.0f}",
        "range": f"{min(speeds):.0f}–{max(speeds):.0f}",
        "samples/s of each": f"{total / n_replicas:.0f}",
    }
    if device != "cpu":
        row["GB"] = f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f}"
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return row


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.population", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 4, 16, 64], help="(default: 1 4 16 64)")
    parser.add_argument("--samples", type=int, default=200, help="per replica and measurement (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows = [
        measure(network, n_replicas, arguments.device, arguments.samples, arguments.repeats)
        for network in arguments.networks
        for n_replicas in arguments.replicas
    ]
    print(tabulate(rows, headers="keys"))


if __name__ == "__main__":
    main()
