"""Samples per second and memory against the length of the stream, for a learner that runs on and on.

    python -m benchmarks.length [--samples 10000 100000 1000000]

MetaOptimize in the compiled engine, one thread, a fully connected network on digits whose pixels are permuted anew
every 1,000 samples; each length in a process of its own. "learning MB" is what the process's memory grows by while it
learns, after the stream has been made and the first 1,000 samples have been learned from.
"""

import argparse
import multiprocessing
import time
from typing import Any

import psutil
from rich.console import Console
from rich.progress import track
from tabulate import tabulate

SAMPLES_PER_EXPERIENCE = 1000


def measure(samples: int) -> dict[str, Any]:
    """One row of the table, measured in this process."""
    import streams.quiet_avalanche  # noqa: F401

    import torch

    from continual_metaopt import MLP, MetaOptimize, OnlineLearner, blocks
    from streams import make_stream

    torch.set_num_threads(1)
    process = psutil.Process()
    imported = process.memory_info().rss
    benchmark = make_stream(
        "permuted_inputs",
        n_experiences=samples // SAMPLES_PER_EXPERIENCE + 1,
        samples_per_experience=SAMPLES_PER_EXPERIENCE,
    )
    model = MLP(10, (1, 8, 8))
    learner = OnlineLearner(model=model, optimizer=MetaOptimize(blocks(model), 1e-3), engine="compiled")
    learner.train(benchmark.train_stream[0])
    made = process.memory_info().rss
    start = time.perf_counter()
    learner.train(benchmark.train_stream[1:])
    seconds = time.perf_counter() - start
    return {
        "samples": f"{samples:,}",
        "samples/s": f"{samples / seconds:,.0f}",
        "stream MB": f"{(made - imported) / 2**20:.0f}",
        "learning MB": f"{(process.memory_info().rss - made) / 2**20:.0f}",
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.length", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[10**4, 10**5, 10**6], help="(default: %(default)s)")
    arguments = parser.parse_args()
    rows = []
    for samples in track(arguments.samples, description="lengths", console=Console(stderr=True)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (samples,)))
    print(tabulate(rows, headers="keys", disable_numparse=True, stralign="right"))


if __name__ == "__main__":
    main()
