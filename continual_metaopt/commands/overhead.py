"""Time and memory of MetaOptimize, relative to a fixed step size of the same base update.

Contenders take turns, each with a network of its own, and learn from random images, since speed does not depend on
their content. A ratio is the median over the turns, each to the baseline in the same turn and engine, so that what else
the machine does falls on both; "low" and "high" are quartiles. Step sizes are a thousandth of the usual ones: a step
takes as long, and nobody diverges. State is what is kept between steps, beside the weights. Memory is weights, state,
and the most that a step takes on top of them, which cannot be counted in compiled code. Engines that cannot execute a
learner have no row of it.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import numpy as np
import pandas as pd
import torch
import yaml
from rich.console import Console
from rich.progress import track
from tabulate import tabulate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.networks import NETWORKS
from continual_metaopt.optim.registry import is_told, known_of_the_stream, make_optimizer
from continual_metaopt.runs.components import Component, resolve
from continual_metaopt.runs.process_settings import set_up_process
from continual_metaopt.streams import make_stream

FEWEST, MOST = 100, 2000  # samples of a turn; the fused engine traces no graph for fewer than 100
Learn = Callable[[Any], object]  # from an experience
Turn = Callable[[], float]  # returns the seconds of a step
Row = dict[str, Any]


def described(network: str) -> tuple[str, Row]:
    """Read a network's name and options, such as ``"mlp:hidden=[32],input_shape=[1,8,8]"``."""
    name, _, options = network.partition(":")
    given = yaml.safe_load("{" + options.replace("=", ": ") + "}")
    return name, {"n_outputs": 10, "input_shape": (3, 32, 32)} | given


def make_network(network: str) -> nn.Module:
    """Make a network as described."""
    name, options = described(network)
    torch.manual_seed(0)
    model: nn.Module = NETWORKS[name](**options)
    return model


def random_images(network: str, n: int) -> Any:
    """Make an experience of random images with ten classes, in the network's input shape."""
    channels, height, width = described(network)[1]["input_shape"]
    x = np.random.RandomState(0).randint(0, 256, (n, height, width, channels)).astype(np.uint8)
    return make_stream("class_split", source=(x, np.arange(n) % 10, x[:10], np.arange(10))).train_stream[0]


def turn_of(learn: Learn, network: str, seconds: float, fewest: int = FEWEST) -> Turn:
    """Learn twice, which compiles what is to be compiled, and return turns of about so many seconds."""
    few = random_images(network, fewest)
    learn(few)
    start = time.perf_counter()
    learn(few)
    n = int(np.clip(seconds * fewest / (time.perf_counter() - start), fewest, MOST))
    images = random_images(network, n)
    return lambda: timed(partial(learn, images), 0) / n


def timed(step: Callable[[], object], seconds: float) -> float:
    """Repeat a step for some seconds, once at least, and return the seconds that it takes."""
    n_steps, start = 0, time.perf_counter()
    while n_steps == 0 or time.perf_counter() - start < seconds:
        step()
        n_steps += 1
    return (time.perf_counter() - start) / n_steps


def take_turns(turns: Mapping[Any, Turn], repeats: int) -> dict[Any, list[float]]:
    """Return the seconds of a step of each contender in each turn."""
    seconds: dict[Any, list[float]] = {name: [] for name in turns}
    for _ in track(range(repeats), description="measuring", console=Console(stderr=True)):
        for name, turn in turns.items():
            seconds[name].append(turn())
    return seconds


def ratios(values: list[float], others: list[float], name: str = "time_ratio") -> Row:
    """Median and quartiles of the ratio in each turn, as columns."""
    low, median, high = np.quantile(np.divide(values, others), (0.25, 0.5, 0.75))
    return {f"{name}_low": low, name: median, f"{name}_high": high}


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that an optimizer keeps between steps, but for single numbers; each storage counts once."""
    taken: dict[int, int] = {}
    todo: list[Any] = [optimizer.state_dict()]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor) and value.dim():
            taken[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, Mapping | list | tuple):
            todo += value.values() if isinstance(value, Mapping) else value
    return sum(taken.values())


def memory_of(learner: OnlineLearner, network: str) -> dict[str, float]:
    """Bytes of weights, state, and a step's peak on top of these, which is not counted in compiled code."""
    params, peak = list(learner.model.parameters()), np.nan
    if learner.engine["name"] != "compiled":
        for param in params:
            param.grad = None  # it is part of the peak
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            learner.train(random_images(network, 10))
        changes = [event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
        peak = max(0, *np.cumsum(changes).tolist())
    return {"weights": sum(p.nbytes for p in params), "state": state_bytes(learner.optimizer), "peak": peak}


def make_learner(component: Component, network: str, engine: Any, n_samples: int) -> OnlineLearner:
    """Make a learner with a thousandth of its step size."""
    resolved = resolve("learner", component, "learner")
    name, options = resolved.name, resolved.options
    if isinstance(options.get("lr"), float):
        options["lr"] /= 1000
    model = make_network(network)
    optimizer = make_optimizer(name, model, **known_of_the_stream(name, n_samples=n_samples), **options)
    return OnlineLearner(model=model, optimizer=optimizer, engine=engine, told=is_told(name))


Labelled = dict[str, tuple[Component, list[str]]]  # label → a learner, and labels of baselines: the first in an engine


def step_costs(learners: Labelled, networks: Sequence[str], repeats: int, seconds: float) -> Iterator[Row]:
    """Time and memory of a step in all engines that can execute a learner; or the problem, where none can."""
    for network in networks:
        turns: dict[tuple[str, str], Turn] = {}
        memory: dict[tuple[str, str], dict[str, float]] = {}
        pairs = list(itertools.product(("torch", "fused", "compiled"), learners))
        for engine, label in track(pairs, description="starting", console=Console(stderr=True)):
            try:
                learner = make_learner(learners[label][0], network, engine, MOST * (repeats + 1))
                turn = turn_of(learner.train, network, seconds, FEWEST if engine == "fused" else 10)
            except Exception as error:  # whatever a package raises; the others are measured all the same
                if engine == "torch":
                    yield {"learner": label, "problem": f"{type(error).__name__}: {error}"}
                continue
            if learner.engine["name"] == engine:
                turns[label, engine], memory[label, engine] = turn, memory_of(learner, network)
        taken = take_turns(turns, repeats)
        for (label, engine), values in taken.items():
            ours = memory[label, engine]
            row: Row = {"learner": label, "engine": engine, "step_us": 1e6 * statistics.median(values)}
            row["state_bytes_per_parameter"] = 4 * ours["state"] / ours["weights"]
            baseline = next(((other, engine) for other in learners[label][1] if (other, engine) in taken), None)
            if baseline is not None:
                row |= ratios(values, taken[baseline])
                row["memory_ratio"] = sum(ours.values()) / sum(memory[baseline].values())
            yield row


OVERHEAD: dict[str, Row] = {
    "scalar": {"step_sizes": "scalar"},
    "blockwise": {},
    "blockwise, no discount": {"gamma": "auto", "trace": "dutch"},
    "per weight": {"step_sizes": "weight"},
    **{f"blockwise, trace {trace}": {"trace": trace} for trace in ("l", "2x2", "full")},
}


def overhead(networks: Sequence[str] = ("paper_cnn",), repeats: int = 11, seconds: float = 0.1) -> Iterator[Row]:
    """MetaOptimize, relative to a fixed step size of the same base update."""
    learners: Labelled = {}
    for base in ("adamw", "rmsprop", "lion"):
        fixed = f"{base}, fixed"
        learners[fixed] = Component.model_validate({"name": "fixed", "base": base}), [fixed]
        for label in OVERHEAD if base == "adamw" else ("scalar", "blockwise"):
            plain = {"base": base, "gamma": 0.999, "trace": "hessian_free", "step_sizes": "blockwise"}
            learner = Component.model_validate({"name": "metaoptimize"} | plain | OVERHEAD[label])
            learners[f"{base}, {label}"] = learner, [fixed]
    return step_costs(learners, networks, repeats, seconds)


def measured(rows: Iterator[Row], out: Path | None) -> tuple[str, pd.DataFrame]:
    """Measure in this process, set up as for runs, and write the table as CSV, if a file for it is given.

    Returns:
        The table as Markdown, and as data.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler prints what is of no use here
    set_up_process()
    table = pd.DataFrame(rows)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(out, index=False, float_format="%.6g")
    shown: Any = table.astype(object).where(table.notna(), None)
    return tabulate(shown, headers="keys", tablefmt="github", floatfmt=",.4g", showindex=False), table
