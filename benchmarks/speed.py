"""Speed of online learning at batch size 1: this package beside what else could be used, all in one process.

    python -m benchmarks.speed engines      samples per second of all engines, beside loops that users would write
    python -m benchmarks.speed networks     samples per second of the ready-made learner on each network
    python -m benchmarks.speed update       the optimizer's update alone, beside PyTorch's fused AdamW
    python -m benchmarks.speed traces       time and memory of exact traces, relative to Hessian-free
    python -m benchmarks.speed cost         time and memory of each learner of a study, relative to AdamW

Other networks go behind these, such as resnet18:width=16, and other sizes behind "update": PARAMETERS:BLOCKS.

How it is measured: see ``continual_metaopt.commands.overhead``, which is also ``continual-metaopt reproduce overhead``.
"""

import argparse
import itertools
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
import yaml
from avalanche.training import Naive
from torch import Tensor, nn

from continual_metaopt import MetaOptimize, MetaOptimizeStrategy, OnlineLearner, blocks
from continual_metaopt.commands.overhead import (
    Learn,
    Row,
    Turn,
    described,
    make_network,
    measured,
    ratios,
    state_bytes,
    step_costs,
    take_turns,
    timed,
    turn_of,
)
from continual_metaopt.engines.compiled.fused_update import FusedUpdate
from continual_metaopt.engines.torch_engine import forget_gradients
from continual_metaopt.learner.online_learner import quiet_evaluator
from continual_metaopt.optim.curvature import KINDS
from continual_metaopt.optim.protocol import closure_for
from continual_metaopt.optim.traces import TraceRule, Variant, memory_needed
from continual_metaopt.runs.components import Component
from continual_metaopt.runs.process_settings import set_up_process
from continual_metaopt.study.config import StudyConfig
from continual_metaopt.study.load import packaged_studies


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


def naive(model: nn.Module, optimizer: torch.optim.Optimizer) -> Learn:
    """Make Avalanche's strategy learn from an experience."""
    strategy = Naive(model=model, optimizer=optimizer, train_mb_size=1, evaluator=quiet_evaluator)
    return partial(strategy.train, eval_streams=[], shuffle=False)


def _online(model: nn.Module, engine: Any, **options: Any) -> Learn:
    return OnlineLearner(model=model, optimizer=MetaOptimize(blocks(model), 1e-4, **options), engine=engine).train


RELEASED, COMPILED = "released algorithm, plain loop", "MetaOptimize, compiled engine"
CONTENDERS: dict[str, Callable[[nn.Module], Learn]] = {
    RELEASED: lambda m: plain_loop(m, released_step(m)),
    "AdamW, Avalanche Naive": lambda m: naive(m, _adamw(m)),
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
    settings = [plain, *((v, c) for v, c in itertools.product(get_args(Variant), KINDS) if v != "full" or c == "exact")]
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


def cost(networks: Sequence[str], repeats: int, seconds: float, study: str = "field") -> Iterator[Row]:
    """Learners of a study, untuned, relative to AdamW."""
    text = packaged_studies().get(study) or Path(study).read_text(encoding="utf-8")
    entries = StudyConfig.model_validate(yaml.safe_load(text)).learners  # whose packages need not be installed
    adamw = {"AdamW (torch.optim)": Component(name="torch:AdamW"), "AdamW (fixed)": Component(name="fixed")}
    named = adamw | {entry.label or entry.name: entry.untuned for entry in entries}
    learners = {label: (learner, list(adamw)) for label, learner in named.items()}
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
    rows = measure(arguments.on or on.split(), arguments.repeats or repeats, arguments.seconds or seconds, **options)
    text, table = measured(rows, arguments.out)
    print(text)
    if arguments.out is not None:
        print(f"wrote {arguments.out}")
    return int("problem" in table)


if __name__ == "__main__":
    raise SystemExit(main())
