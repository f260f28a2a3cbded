"""Throughput of every learner at batch size 1: samples per second on one thread, in turns with Avalanche's ``Naive``.

    python -m benchmarks.throughput --learners all
    python -m benchmarks.throughput --learners sgd_hd upgd torch:AdamW --samples 1000 --turns 9 --out throughput.csv

Learners of the registry, of ``torch.optim``, and with nothing but a ``step()`` of their own ("own:…") learn by
``OnlineLearner`` with engine="auto" and engine="torch". "jax_scan" is MetaOptimize in JAX, where that is installed, on
arrays that are ready, while everybody else takes samples from a stream; "metaoptimize_one_trace" has its settings.

What is compiled is compiled before. Speeds are medians over the turns; ratios are medians of the ratios in each turn,
above 1 where a learner is faster: of "auto" to "torch", and of "auto", if there is one, to ``Naive`` with AdamW. How it
is measured otherwise: see ``continual_metaopt.commands.overhead``.
"""

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks.speed import naive, plain_loop
from continual_metaopt import OnlineLearner
from continual_metaopt.analysis.extras import how_to_install
from continual_metaopt.commands import overhead
from continual_metaopt.commands.overhead import Learn, Row, Turn
from continual_metaopt.optim.registry import LEARNERS, MissingPackageError, learner_factory
from continual_metaopt.runs.components import Component

LR = 1e-6
ENGINES = ("auto", "torch")
COLUMNS = (*(f"{engine}_samples_per_second" for engine in ENGINES), "auto_to_torch", "to_naive", "engine")


class SignSGD(torch.optim.Optimizer):
    """Step by the sign of the gradient, as somebody writes it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move each weight by the step size."""
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad.sign())


class Adam(torch.optim.Optimizer):
    """Make Adam's step, as somebody writes it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move each weight along m̂ / (√v̂ + ε)."""
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["t"] += 1
                m = state["m"].mul_(0.9).add_(p.grad, alpha=0.1) / (1 - 0.9 ** state["t"])
                v = state["v"].mul_(0.999).addcmul_(p.grad, p.grad, value=0.001) / (1 - 0.999 ** state["t"])
                p.sub_(group["lr"] * m / (v.sqrt() + 1e-8))


OWN: dict[str, type[torch.optim.Optimizer]] = {"own:SignSGD": SignSGD, "own:Adam": Adam}
ONE_TRACE = {"name": "metaoptimize", "gamma": 0.999, "trace": "hessian_free"}
OTHERS = ("metaoptimize_one_trace", "torch:SGD", "torch:AdamW", "torch:Adam", "torch:RMSprop", *OWN)
JAX = "jax_scan"
NAIVE = "Naive, torch:AdamW"
BESIDE: dict[str, Callable[[nn.Module], Learn]] = {
    NAIVE: lambda m: naive(m, torch.optim.AdamW(m.parameters(), LR)),
    "Naive, torch:SGD": lambda m: naive(m, torch.optim.SGD(m.parameters(), LR)),
    "plain loop, torch:AdamW": lambda m: plain_loop(m, torch.optim.AdamW(m.parameters(), LR).step),
}


def all_learners() -> list[str]:
    """Name all that can be measured: of the registry, what is installed."""
    names = []
    for name in LEARNERS:
        try:
            learner_factory(name)
        except MissingPackageError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            names.append(name)
    return [*names, *OTHERS, JAX]


def _learner(name: str, network: str, engine: Any, n_samples: int) -> OnlineLearner:
    if name in OWN:
        model = overhead.make_network(network)
        return OnlineLearner(model=model, optimizer=OWN[name](model.parameters(), {"lr": LR}), engine=engine)
    settings = ONE_TRACE if name == "metaoptimize_one_trace" else {"name": name}
    return overhead.make_learner(Component.model_validate(settings), network, engine, n_samples)


def _scan(network: str, n: int) -> Turn:
    """Compile the scan in JAX, and return turns of so many samples."""
    import jax

    from benchmarks.jax_scan import learner, start

    model: Any = overhead.make_network(network)
    x = np.random.RandomState(0).uniform(-1, 1, (n, *overhead.described(network)[1]["input_shape"])).astype(np.float32)
    learn = partial(learner(model), start(model, LR), jax.device_put(x), jax.device_put(np.arange(n) % 10))
    jax.block_until_ready(learn())
    return lambda: overhead.timed(lambda: jax.block_until_ready(learn()), 0) / n


def throughput(names: Sequence[str], network: str, n_samples: int, n_turns: int) -> Iterator[Row]:
    """Measure learners, and give a row of each, or the problem where one can't be measured."""
    turns: dict[tuple[str, str], Turn] = {}
    engines: dict[str, str] = {JAX: "JAX"}
    of_length = partial(overhead.turn_of, network=network, seconds=0, fewest=n_samples)
    for name, make in BESIDE.items():
        turns[name, "torch"] = of_length(make(overhead.make_network(network)))
    if JAX in names and importlib.util.find_spec("jax") is None:
        print(f"skipped {JAX}: JAX is not installed ({how_to_install('jax')})", file=sys.stderr)
        names = [name for name in names if name != JAX]
    for name in track(names, description="starting", console=Console(stderr=True)):
        try:
            if name == JAX:
                turns[name, "auto"] = _scan(network, n_samples)
                continue
            for engine in ENGINES:
                one = _learner(name, network, engine, n_samples * (n_turns + 2))
                turns[name, engine] = of_length(one.train)
                engines.setdefault(name, one.engine["name"])
        except Exception as error:  # whatever a package raises; the others are measured all the same
            yield {"learner": name, **dict.fromkeys(COLUMNS), "problem": f"{type(error).__name__}: {error}"}
    taken = overhead.take_turns(turns, n_turns)
    for name in dict.fromkeys(name for name, _ in turns):
        values = {engine: taken[name, engine] for engine in ENGINES if (name, engine) in taken}
        row: Row = {"learner": name} | dict.fromkeys(COLUMNS)
        row |= {f"{engine}_samples_per_second": 1 / statistics.median(values[engine]) for engine in values}
        if len(values) == len(ENGINES):
            row["auto_to_torch"] = overhead.ratios(values["torch"], values["auto"])["time_ratio"]
        row["to_naive"] = overhead.ratios(taken[NAIVE, "torch"], next(iter(values.values())))["time_ratio"]
        yield row | {"engine": engines.get(name)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it; 1 if a learner that was named could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--learners", nargs="+", default=["all"], metavar="NAME", help='"all", or names of learners')
    parser.add_argument("--network", default="paper_cnn", help="with options as in mlp:hidden=[32]")
    parser.add_argument("--samples", type=int, default=400, help="of a turn; graphs are traced from 100 on")
    parser.add_argument("--turns", type=int, default=5, help="of each contender (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="where to write the table")
    given = parser.parse_args(argv)
    names = all_learners() if "all" in given.learners else list(dict.fromkeys(given.learners))
    text, table = overhead.measured(throughput(names, given.network, given.samples, given.turns), given.out)
    print(text)
    return int("problem" in table and "all" not in given.learners)  # some of all are for linear models alone


if __name__ == "__main__":
    raise SystemExit(main())
