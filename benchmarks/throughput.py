"""Samples per second and peak memory of online learning at batch size 1: this package beside what else could be used.

    python -m benchmarks.throughput [--networks PaperCNN LeNet "MLP 784-300-150-10"] [--samples 2000] [--repeats 5]

Each contender is a process of its own, on one thread, with denormal numbers flushed. They learn in turns, one at a time
on the same core, each from the same random images, since speed does not depend on what they show; the median of the
turns counts, and ratios are medians over turns. "2 workers" are two processes that learn at the same time. The compiled
engine learns in processes as studies have them, which import neither PyTorch nor Avalanche.
"""

import argparse
import multiprocessing
import os
import re
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from tabulate import tabulate

# registered name, and height, width and channels of the images
NETWORKS = {
    "PaperCNN": ("paper_cnn", (32, 32, 3)),
    "LeNet": ("lenet", (28, 28, 1)),
    "MLP 784-300-150-10": ("mlp_300_150", (28, 28, 1)),
}
BASELINES = ("released algorithm, plain loop", "AdamW, Avalanche Naive", "AdamW fused, plain loop")
COMPILED = "MetaOptimize, compiled engine"
Learn = Callable[[Any], None]


def make_network(name: str) -> Any:
    """One of the benchmark's networks, with ten outputs."""
    from continual_metaopt.networks import NETWORKS as makers

    registered, (height, width, channels) = NETWORKS[name]
    return makers[registered](n_outputs=10, input_shape=(channels, height, width))


def plain_loop(model: Any, optimizer: Any) -> Learn:
    """The loop that a user would write without any framework."""
    import torch

    criterion = torch.nn.CrossEntropyLoss()

    def learn(experience: Any) -> None:
        for x, y, _ in experience.dataset:
            optimizer.zero_grad()
            criterion(model(x[None]), torch.tensor([y])).backward()
            optimizer.step()

    return learn


def released_loop(model: Any) -> Learn:
    """The update of the MetaOptimize authors' released experiment code, tensor by tensor, as a plain loop.

    AdamW with momentum 0.9, normaliser 0.999, weight decay 0.1; Adam as meta update with 1e-3; a step size per block.
    """
    import torch

    criterion = torch.nn.CrossEntropyLoss()
    blocks = [list(child.parameters()) for child in model.children() if list(child.parameters())]
    m, v, h = ([[torch.zeros_like(p) for p in block] for block in blocks] for _ in range(3))
    beta, meta_m, meta_v = torch.full((len(blocks),), -11.5), torch.zeros(len(blocks)), torch.zeros(len(blocks))
    momentum, normalizer, eps, decay, meta_step_size, gamma = 0.9, 0.999, 1e-10, 0.1, 1e-3, 0.999
    n_steps = 0

    @torch.no_grad()
    def step() -> None:
        nonlocal n_steps
        n_steps += 1
        correction = (1 - normalizer) / (1 - normalizer**n_steps)
        step_sizes, z = beta.exp(), torch.zeros(len(blocks))
        for b, block in enumerate(blocks):
            for i, p in enumerate(block):
                g = p.grad
                z[b] += (h[b][i] * g).sum()
                m[b][i].mul_(momentum).add_(g)
                v[b][i].mul_(normalizer).add_(g * g)
                change = step_sizes[b] * (m[b][i] / (correction * v[b][i] + eps).sqrt() + decay * p)
                h[b][i] = gamma * (1 - decay * step_sizes[b]) * h[b][i] - change
                p.sub_(change)
        meta_m.mul_(momentum).add_(z)
        meta_v.mul_(normalizer).add_(z * z)
        beta.sub_(meta_step_size * meta_m / (correction * meta_v + eps).sqrt())

    def learn(experience: Any) -> None:
        for x, y, _ in experience.dataset:
            model.zero_grad()
            criterion(model(x[None]), torch.tensor([y])).backward()
            step()

    return learn


def avalanche_naive(model: Any, optimizer: Any) -> Learn:
    """Avalanche's own strategy, without metrics and loggers."""
    from avalanche.training import Naive

    from continual_metaopt.learner.online_learner import quiet_evaluator

    strategy = Naive(model=model, optimizer=optimizer, train_mb_size=1, evaluator=quiet_evaluator)
    return lambda experience: strategy.train(experience, eval_streams=[], shuffle=False)


def online_learner(model: Any, optimizer: Any, engine: str) -> Learn:
    """This package's strategy."""
    from continual_metaopt import OnlineLearner

    return OnlineLearner(model=model, optimizer=optimizer, engine=engine).train


def adamw(model: Any, **options: Any) -> Any:
    """AdamW of PyTorch."""
    import torch

    return torch.optim.AdamW(model.parameters(), 1e-4, **options)


def metaoptimize(model: Any, **options: Any) -> Any:
    """MetaOptimize with a step size per block."""
    from continual_metaopt import MetaOptimize, blocks

    return MetaOptimize(blocks(model), 1e-4, **options)


CONTENDERS: dict[str, Callable[[Any], Learn]] = {
    "released algorithm, plain loop": released_loop,
    "AdamW, plain loop": lambda m: plain_loop(m, adamw(m)),
    "AdamW fused, plain loop": lambda m: plain_loop(m, adamw(m, fused=True)),
    "AdamW, Avalanche Naive": lambda m: avalanche_naive(m, adamw(m)),
    "MetaOptimize, Avalanche Naive": lambda m: avalanche_naive(m, metaoptimize(m)),
    "AdamW, OnlineLearner": lambda m: online_learner(m, adamw(m), "torch"),
    "MetaOptimize, torch engine": lambda m: online_learner(m, metaoptimize(m), "torch"),
    "MetaOptimize, fused engine": lambda m: online_learner(m, metaoptimize(m), "fused"),
}
COMPILED_CONTENDERS: dict[str, Callable[[Any], Any]] = {
    "fixed step size, compiled engine": lambda m: metaoptimize(m, meta_lr=0.0),
    COMPILED: metaoptimize,
    "gamma auto, trace dutch, compiled engine": lambda m: metaoptimize(m, gamma="auto", trace="dutch"),
}
LEARNERS = (*CONTENDERS, *COMPILED_CONTENDERS)


def compiled_learner(network: str, learner: str) -> Any:
    """Network and optimizer of a compiled contender as arrays."""
    import torch

    from continual_metaopt.engines.compiled.engine import CompiledEngine

    torch.manual_seed(0)
    model = make_network(network)
    height, width, channels = NETWORKS[network][1]
    shape = (channels, height, width)
    engine = CompiledEngine(model, COMPILED_CONTENDERS[learner](model), torch.nn.CrossEntropyLoss(), shape)
    engine.load()
    return engine.learner


def compiled_loop(learner: Any) -> Learn:
    """Compiled code on plain arrays, as in studies."""
    from continual_metaopt.engines.observations import Observations

    def learn(samples: Any) -> None:
        seen = Observations(0, 0)
        while learner.learn(samples, len(seen), seen, 50):
            pass

    return learn


class Contender:
    """A process that learns when asked to.

    Args:
        network: name of the network.
        learner: name of the contender.
        samples: in each turn.
        core: of the processor, to stay on.
    """

    def __init__(self, network: str, learner: str, samples: int, core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arrays = compiled_learner(network, learner) if learner in COMPILED_CONTENDERS else None
        arguments = (theirs, network, learner, arrays, samples, core)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()

    def wait(self) -> float:
        """What the process says next: seconds, or megabytes at the end."""
        answer: float = self._connection.recv()
        return answer

    def start(self) -> None:
        """Begin a turn."""
        self._connection.send(True)

    def turn(self) -> float:
        """Seconds that a turn takes."""
        self.start()
        return self.wait()

    def end(self) -> float:
        """End the process; returns the most memory that it has used, in megabytes."""
        self._connection.send(False)
        peak = self.wait()
        self._process.join()
        return peak


def _serve(connection: Connection, network: str, learner: str, arrays: Any, samples: int, core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    import numpy as np

    from continual_metaopt.streams import plan_stream

    random = np.random.RandomState(0)
    x = random.randint(0, 256, (samples, *NETWORKS[network][1])).astype(np.uint8)
    y = np.arange(samples) % 10
    stream = plan_stream("class_split", source=(x, y, x[:10], y[:10]))
    experience: Any = stream.train[0]
    if arrays is not None:
        learn = compiled_loop(arrays)
    else:
        import torch

        from continual_metaopt.streams.benchmark import StreamBenchmark

        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        experience = StreamBenchmark(stream).train_stream[0]
        torch.manual_seed(0)
        learn = CONTENDERS[learner](make_network(network))
    learn(experience)  # what happens in the first call only, such as compilation, is not measured
    connection.send(0.0)
    while connection.recv():
        start = time.perf_counter()
        learn(experience)
        connection.send(time.perf_counter() - start)
    connection.send(peak_memory())


def peak_memory() -> float:
    """The most memory that this process has used, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux; the system call would count the process that started this one too
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1024
    kilobyte = 1024 if os.uname().sysname == "Darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilobyte / 1024


def measure(network: str, samples: int, repeats: int) -> list[dict[str, Any]]:
    """Median samples per second of each contender, with range, peak memory, and ratios to the baselines."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0, 0]
    contenders = {}
    for name in track(LEARNERS, description=f"{network}: starting", console=Console(stderr=True)):
        contenders[name] = Contender(network, name, samples, cores[0])
        contenders[name].wait()
    pair = [contenders[COMPILED], Contender(network, COMPILED, samples, cores[-1])]
    pair[1].wait()
    speeds: dict[str, list[float]] = {name: [] for name in [*LEARNERS, f"{COMPILED}, 2 workers"]}
    for _ in track(range(repeats), description=f"{network}: measuring", console=Console(stderr=True)):
        for name, contender in contenders.items():
            speeds[name].append(samples / contender.turn())
        for contender in pair:
            contender.start()
        speeds[f"{COMPILED}, 2 workers"].append(sum(samples / contender.wait() for contender in pair))
    pair[1].end()
    memory = {name: contender.end() for name, contender in contenders.items()}
    return [
        {
            "network": network,
            "learner": name,
            "samples/s": f"{statistics.median(values):.0f}",
            "range": f"{min(values):.0f}–{max(values):.0f}",
            "peak MB": f"{memory[name]:.0f}" if name in memory else "",
        }
        | {
            f"× {baseline}": f"{statistics.median(map(float.__truediv__, values, speeds[baseline])):.2f}"
            for baseline in BASELINES
        }
        for name, values in speeds.items()
    ]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=2000, help="samples in each turn (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each learner (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    arguments = parser.parse_args()
    rows = [row for network in arguments.networks for row in measure(network, arguments.samples, arguments.repeats)]
    print(tabulate(rows, headers="keys"))


if __name__ == "__main__":
    main()
