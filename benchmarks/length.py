"""Samples per second and memory against the length of the stream, for a learner that runs on and on.

    python -m benchmarks.length [--samples 10000 100000 1000000] [--recorded [--record-samples-every 100]]

MetaOptimize in the compiled engine, one thread, a fully connected network on digits whose pixels are permuted anew
every 1,000 samples; each length in a process of its own. "learning MB" is what the process's memory grows by while it
learns, after the stream has been made and the first 1,000 samples have been learned from.

With ``--recorded`` it is a whole run that leaves a run directory: a linear network that tracks a changing target, in a
worker of its own. "peak MB" is the most memory that the worker ever had, "merged" how much of it came with the last
step, the merging of the records.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.progress import track
from tabulate import tabulate

if TYPE_CHECKING:
    from continual_metaopt.runs.compiled_run import PreparedRun

SAMPLES_PER_EXPERIENCE = 1000


def measure(samples: int) -> dict[str, Any]:
    """One row of the table, measured in this process."""
    import continual_metaopt.streams.quiet_avalanche  # noqa: F401

    import torch

    from continual_metaopt import MLP, MetaOptimize, OnlineLearner, blocks
    from continual_metaopt.streams import make_stream

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


def prepare_run(samples: int, record_samples_every: int, folder: Path) -> "PreparedRun | None":
    """A run that learns to track, as arrays for a worker."""
    from continual_metaopt.runs.components import Component
    from continual_metaopt.runs.config import RunConfig
    from continual_metaopt.runs.preparing import prepare

    config = RunConfig(
        stream=Component(name="tracking", n_samples=samples, samples_per_experience=SAMPLES_PER_EXPERIENCE),
        network=Component(name="linear"),
        learner=Component(name="metaoptimize", lr=1e-3),
        record_every=1000,
        record_samples_every=record_samples_every,
    )
    return prepare(config.resolved(), folder)


def measure_run(prepared: "PreparedRun", folder: Path) -> dict[str, Any]:
    """One row of the table of recorded runs, measured in this process."""
    from continual_metaopt.runs import directory as recording
    from continual_metaopt.runs.compiled_run import run_compiled
    from continual_metaopt.runs.directory import RunDirectory
    from continual_metaopt.runs.files import read_json

    before = []
    finish = RunDirectory.finish
    recording.RunDirectory.finish = lambda *args, **options: (before.append(_peak()), finish(*args, **options))  # type: ignore[method-assign, assignment]
    run_compiled(prepared, folder, lambda done, total: None, lambda: False)
    status = read_json(folder / "status.json")
    return {
        "samples": f"{status['step']:,}",
        "of which recorded": f"1 / {prepared.config.record_samples_every}",
        "samples/s": f"{status['samples_per_second']:,.0f}",
        "peak MB": f"{_peak():.0f}",
        "merged": f"{_peak() - before[0]:.0f}",
        "records MB": f"{sum(file.stat().st_size for file in folder.iterdir()) / 2**20:.1f}",
    }


def _peak() -> float:
    """The most memory that this process ever had, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # where resource usage also counts the process that has started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.length", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[10**4, 10**5, 10**6], help="(default: %(default)s)")
    parser.add_argument("--recorded", action="store_true", help="a whole run with its records")
    parser.add_argument("--record-samples-every", type=int, default=1, help="(default: %(default)s)")
    arguments = parser.parse_args()
    rows = []
    for samples in track(arguments.samples, description="lengths", console=Console(stderr=True)):
        with multiprocessing.get_context("spawn").Pool(1) as pool, tempfile.TemporaryDirectory() as folder:
            if arguments.recorded:
                run = Path(folder) / "run"
                prepared = prepare_run(samples, arguments.record_samples_every, run)
                rows.append(pool.apply(partial(measure_run, prepared, run)))
            else:
                rows.append(pool.apply(measure, (samples,)))
    print(tabulate(rows, headers="keys", disable_numparse=True, stralign="right"))


if __name__ == "__main__":
    main()
