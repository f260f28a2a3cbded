"""Speed of online learning at batch size 1: this package beside what else could be used, all in one process.

    python -m benchmarks.speed engines      samples per second of all engines, beside loops that users would write
    python -m benchmarks.speed networks     samples per second of the ready-made learner on each network
    python -m benchmarks.speed update       the optimizer's update alone, beside PyTorch's fused AdamW
    python -m benchmarks.speed traces       time and memory of exact traces, relative to Hessian-free
    python -m benchmarks.speed cost         time and memory of each learner of a study, relative to AdamW
    python -m benchmarks.speed overhead     time and memory of MetaOptimize, relative to its base update

Other networks go behind these, such as resnet18:width=16, and other sizes behind "update": PARAMETERS:BLOCKS.

Contenders take turns, each with a network of its own, and learn from random images, since speed does not depend on
their content. The process is set up as for a run (``process_settings``). A ratio is the median over the turns, each to
the baseline in the same turn, so that what else the machine does falls on both; "low" and "high" are quartiles.

In "cost" and "overhead" step sizes are a thousandth of the usual ones: a step takes as long, and nobody diverges.
Ratios are to the baseline in the same engine. State is what is kept between steps, beside the weights. Memory is
weights, state, and the most that a step takes on top of them, which cannot be counted in compiled code. Engines that
cannot execute a learner have no row of it.
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import numpy as np
import pandas as pd
import torch
import yaml
from avalanche.training import Naive
from rich.console import Console
from rich.progress import track
from tabulate import tabulate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from continual_metaopt import MetaOptimize, MetaOptimizeStrategy, OnlineLearner, blocks
from continual_metaopt.engines.compiled.fused_update import FusedUpdate
from continual_metaopt.engines.torch_engine import forget_gradients
from continual_metaopt.learner.online_learner import quiet_evaluator
from continual_metaopt.networks import NETWORKS
from continual_metaopt.optim.curvature import KINDS
from continual_metaopt.optim.protocol import closure_for
from continual_metaopt.optim.registry import is_told, known_of_the_stream, make_optimizer
from continual_metaopt.optim.traces import VARIANTS, TraceRule, memory_needed
from continual_metaopt.runs.components import Component, resolve
from continual_metaopt.runs.process_settings import set_up_process
from continual_metaopt.streams import make_stream
from continual_metaopt.study.config import StudyConfig
from continual_metaopt.study.load import packaged_studies

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


def plain_loop(model: nn.Module, step: Callable[[], object]) -> Learn:
    """The loop that a user would write without any framework."""
    criterion = nn.CrossEntropyLoss()

    def learn(experience: Any) -> None:
        for x, y, _ in experience.dataset:
            model.zero_grad()
            criterion(model(x[None]), torch.tensor([y])).backward()
            step()

    return learn


def released_step(model: nn.Module) -> Callable[[], None]:
    """The update of the MetaOptimize authors' released experiment code, tensor by tensor.

    AdamW with momentum 0.9, normaliser 0.999, weight decay 0.1; Adam as meta update with 1e-3; a step size per block.
    """
    groups = [list(child.parameters()) for child in model.children() if list(child.parameters())]
    m, v, h = ([[torch.zeros_like(p) for p in group] for group in groups] for _ in range(3))
    beta, meta_m, meta_v = torch.full((len(groups),), -11.5), torch.zeros(len(groups)), torch.zeros(len(groups))
    momentum, normalizer, eps, decay, meta_step_size, gamma = 0.9, 0.999, 1e-10, 0.1, 1e-3, 0.999
    n_steps = itertools.count(1)

    @torch.no_grad()
    def step() -> None:
        correction = (1 - normalizer) / (1 - normalizer ** next(n_steps))
        step_sizes, z = beta.exp(), torch.zeros(len(groups))
        for b, group in enumerate(groups):
            for i, p in enumerate(group):
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

    return step


def _adamw(model: nn.Module, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), 1e-4, **options)


def _naive(model: nn.Module) -> Learn:
    strategy = Naive(model=model, optimizer=_adamw(model), train_mb_size=1, evaluator=quiet_evaluator)
    return partial(strategy.train, eval_streams=[], shuffle=False)


def _online(model: nn.Module, engine: Any, **options: Any) -> Learn:
    return OnlineLearner(model=model, optimizer=MetaOptimize(blocks(model), 1e-4, **options), engine=engine).train


RELEASED, COMPILED = "released algorithm, plain loop", "MetaOptimize, compiled engine"
CONTENDERS: dict[str, Callable[[nn.Module], Learn]] = {
    RELEASED: lambda m: plain_loop(m, released_step(m)),
    "AdamW, Avalanche Naive": _naive,
    "AdamW, plain loop": lambda m: plain_loop(m, _adamw(m).step),
    "AdamW fused, plain loop": lambda m: plain_loop(m, _adamw(m, fused=True).step),
    "MetaOptimize, torch engine": lambda m: _online(m, "torch"),
    "MetaOptimize, fused engine": lambda m: _online(m, "fused"),
    COMPILED: lambda m: _online(m, "compiled"),
    "fixed step size, compiled engine": lambda m: _online(m, "compiled", meta_lr=0.0),
    "gamma auto, trace dutch, compiled engine": lambda m: _online(m, "compiled", gamma="auto", trace="dutch"),
}


def engines(networks: Sequence[str], repeats: int, seconds: float) -> Iterator[Row]:
    """Samples per second, also of compiled code in two processes at a time."""
    for network in networks:
        turns = {name: turn_of(make(make_network(network)), network, seconds) for name, make in CONTENDERS.items()}
        taken = take_turns(turns, repeats)
        for name, values in taken.items():
            row = {"network": network, "learner": name, "samples_per_second": 1 / statistics.median(values)}
            yield row | ratios(taken[RELEASED], values, "speed_ratio")
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            alone = partial(_compiled_alone, network, repeats)
            together = sum(pool.map(alone, [seconds] * 2))
        yield {"network": network, "learner": f"{COMPILED}, 2 processes", "samples_per_second": together}


def _compiled_alone(network: str, repeats: int, seconds: float) -> float:
    set_up_process()
    turn = turn_of(CONTENDERS[COMPILED](make_network(network)), network, seconds)
    return 1 / statistics.median(turn() for _ in range(repeats))


def networks(networks: Sequence[str], repeats: int, seconds: float) -> Iterator[Row]:
    """Samples per second of the ready-made MetaOptimize learner, relative to the first network."""
    learners = {name: MetaOptimizeStrategy(model=make_network(name), lr=1e-4) for name in networks}
    taken = take_turns({name: turn_of(one.train, name, seconds) for name, one in learners.items()}, repeats)
    for name, values in taken.items():
        named = [str(group["name"]) for group in learners[name].optimizer.param_groups]
        yield {
            "network": name,
            "parameters": sum(p.numel() for p in learners[name].model.parameters()),
            "blocks": f"{len(named)}: {', '.join(named)}",
            "engine": learners[name].engine["name"],
            "samples_per_second": 1 / statistics.median(values),
            **ratios(taken[networks[0]], values, "speed_ratio"),
        }


UPDATES: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "AdamW fused": lambda groups: torch.optim.AdamW(groups, 1e-6, fused=True).step,
    "AdamW": lambda groups: torch.optim.AdamW(groups, 1e-6).step,
    "MetaOptimize": lambda groups: MetaOptimize(groups, 1e-6).step,
    "MetaOptimize fused": lambda groups: FusedUpdate(MetaOptimize(groups, 1e-6)),
}


def update(sizes: Sequence[str], repeats: int, seconds: float) -> Iterator[Row]:
    """Nanoseconds per parameter, of eight tensors or of one for each of more blocks."""
    for n_parameters, n_blocks in (map(int, size.split(":")) for size in sizes):
        n_tensors = max(1, 8 // n_blocks)
        turns: dict[str, Turn] = {}
        for name, make in UPDATES.items():
            params = [
                nn.Parameter(torch.randn(n_parameters // (n_blocks * n_tensors))) for _ in range(n_blocks * n_tensors)
            ]
            for param in params:
                param.grad = torch.randn(len(param))
            step = make([{"name": str(i), "params": params[i::n_blocks]} for i in range(n_blocks)])
            step()
            turns[name] = partial(timed, step, seconds)
        taken = take_turns(turns, repeats)
        for name, values in taken.items():
            row: Row = {"parameters": n_parameters, "blocks": n_blocks, "optimizer": name}
            row["ns_per_parameter"] = 1e9 * statistics.median(values) / n_parameters
            yield row | ratios(values, taken["AdamW fused"])


def traces(networks: Sequence[str], repeats: int, seconds: float) -> Iterator[Row]:
    """Steps in the torch engine's way, with four blocks and with a step size per weight.

    Of traces that do not fit into their limit there is the memory that they would take.
    """
    plain = ("hessian_free", "exact")
    settings = [plain, *((v, c) for v, c in itertools.product(VARIANTS[1:], KINDS) if v != "full" or c == "exact")]
    for network, kind in itertools.product(networks, ("blocks", "weight")):
        granularity: Any = "weight" if kind == "weight" else "tensor" if network.startswith("mlp") else "blockwise"
        made: dict[tuple[str, str], MetaOptimize] = {}
        turns: dict[tuple[str, str], Turn] = {}
        for trace, curvature in settings:
            model, options = make_network(network), {"trace": trace, "curvature": curvature}
            try:
                made[trace, curvature] = MetaOptimize(blocks(model, granularity), 1e-6, **options)  # type: ignore[arg-type]
            except ValueError:  # it does not fit
                continue
            steps = _steps(network, model, made[trace, curvature])
            next(steps)
            turns[trace, curvature] = partial(timed, steps.__next__, seconds)
        taken = take_turns(turns, repeats)
        weights, least = [p for group in made[plain].param_groups for p in group["params"]], state_bytes(made[plain])
        n_weights = sum(p.numel() for p in weights)
        for trace, curvature in settings:
            row: Row = {"network": network, "step_sizes": kind, "trace": trace, "curvature": curvature}
            if (trace, curvature) in made:
                row |= ratios(taken[trace, curvature], taken[plain])
                n_bytes = state_bytes(made[trace, curvature]) - least + 4 * n_weights
            else:
                rule: Any = partial(TraceRule, variant=trace, curvature=curvature)
                n_bytes = memory_needed(rule(made[plain].base, made[plain].meta), weights, n_weights)
            yield row | {"numbers_per_weight": n_bytes / 4 / n_weights, "memory_mb": n_bytes / 1e6}


def _steps(network: str, model: nn.Module, optimizer: MetaOptimize) -> Iterator[None]:
    x = torch.randn(32, 1, *described(network)[1]["input_shape"], generator=torch.Generator().manual_seed(1))
    criterion = nn.CrossEntropyLoss()
    for i in itertools.cycle(range(32)):
        forget_gradients(optimizer)
        output = model(x[i])
        loss: Tensor = criterion(output, torch.tensor([i % 10]))
        if not optimizer.wants_graph:
            loss.backward()
        optimizer.step(closure_for(optimizer, loss, output))
        yield


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


def cost(networks: Sequence[str], repeats: int, seconds: float, study: str = "field") -> Iterator[Row]:
    """Learners of a study, untuned, relative to AdamW."""
    text = packaged_studies().get(study) or Path(study).read_text(encoding="utf-8")
    entries = StudyConfig.model_validate(yaml.safe_load(text)).learners  # whose packages need not be installed
    adamw = {"AdamW (torch.optim)": Component(name="torch:AdamW"), "AdamW (fixed)": Component(name="fixed")}
    named = adamw | {entry.label or entry.name: entry.untuned for entry in entries}
    learners = {label: (learner, list(adamw)) for label, learner in named.items()}
    return step_costs(learners, networks, repeats, seconds)


OVERHEAD: dict[str, Row] = {
    "scalar": {"step_sizes": "scalar"},
    "blockwise": {},
    "blockwise, no discount": {"gamma": "auto", "trace": "dutch"},
    "per weight": {"step_sizes": "weight"},
    **{f"blockwise, trace {trace}": {"trace": trace} for trace in ("l", "2x2", "full")},
}


def overhead(networks: Sequence[str], repeats: int, seconds: float) -> Iterator[Row]:
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


IMAGES = "paper_cnn lenet mlp mlp_300_150 resnet18 resnet18:width=16 vit_tiny vit_tiny:width=64,depth=4,heads=4"
SIZES = "10000:4 100000:4 1000000:4 10000000:4 100000000:4 1000000:1 1000000:10 1000000:100 1000000:1000 1000000:10000"
# what is measured, on what, with how many turns of how many seconds
MEASUREMENTS: dict[str, tuple[Callable[..., Iterator[Row]], str, int, float]] = {
    "engines": (engines, "paper_cnn lenet:input_shape=[1,28,28] mlp_300_150:input_shape=[1,28,28]", 5, 1.0),
    "networks": (networks, f"{IMAGES} mlp:growing_head=true", 3, 3.0),
    "traces": (traces, "mlp:hidden=[32],input_shape=[1,8,8] paper_cnn", 7, 0.1),
    "update": (update, SIZES, 7, 0.05),
    "cost": (cost, "paper_cnn", 11, 0.1),
    "overhead": (overhead, "paper_cnn", 11, 0.1),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it; 1 if a learner could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split(":")[0])
    parser.add_argument("what", choices=MEASUREMENTS)
    parser.add_argument("on", nargs="*", help="networks, with options as in resnet18:width=16; sizes for update")
    parser.add_argument("--repeats", type=int, help="turns of each contender")
    parser.add_argument("--seconds", type=float, help="of each turn, about")
    parser.add_argument("--study", default="field", help="a file or a packaged study, for cost (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="where to write the table")
    arguments = parser.parse_args(argv)
    measure, on, repeats, seconds = MEASUREMENTS[arguments.what]
    options = {"study": arguments.study} if measure is cost else {}
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler prints what is of no use here
    set_up_process()
    rows = measure(arguments.on or on.split(), arguments.repeats or repeats, arguments.seconds or seconds, **options)
    table = pd.DataFrame(rows)
    shown = table.astype(object).where(table.notna(), None)
    print(tabulate(shown, headers="keys", tablefmt="github", floatfmt=",.4g", showindex=False))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(arguments.out, index=False, float_format="%.6g")
        print(f"wrote {arguments.out}")
    return int("problem" in table)


if __name__ == "__main__":
    raise SystemExit(main())
