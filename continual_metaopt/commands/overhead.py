"""What learning step sizes costs: time and memory of a step at batch size 1, relative to the base optimizer.

The learners of an engine take turns in one process, which is set up as for a run (``process_settings``), and learn from
the same random images, each with a network of its own; ratios are medians over turns, each to the time of the baseline
in the same turn, so that what else the machine does falls on both. Step sizes are a thousandth of the usual ones: a
step takes as long, and nobody diverges on such images.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from tabulate import tabulate
from torch import Tensor, nn

from continual_metaopt.analysis.files import write_whole
from continual_metaopt.engines import Engine
from continual_metaopt.engines.traced.traced_gradients import FEWEST_SAMPLES
from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.networks import NETWORKS
from continual_metaopt.optim.registry import is_told, known_of_the_stream, make_optimizer
from continual_metaopt.runs.components import Component, resolve
from continual_metaopt.runs.process_settings import set_up_process
from continual_metaopt.streams import make_stream

FEW, MAX_SAMPLES = 10, 1000  # to start with, and in a turn; ten images are needed to show all classes
ENGINES: tuple[Engine, ...] = ("torch", "fused", "compiled")
BASES = ("adamw", "rmsprop", "lion")
VARIANTS: dict[str, dict[str, Any]] = {  # of MetaOptimize, beyond one trace with one step size or one per block
    "blockwise, no discount": {"gamma": "auto", "trace": "dutch"},
    "per weight": {"step_sizes": "weight"},
    "blockwise, trace l": {"trace": "l"},
    "blockwise, trace 2x2": {"trace": "2x2"},
    "blockwise, trace full": {"trace": "full"},
}
NOTE = (
    "Ratios are to the fixed step size of the same base update in the same engine; “quartiles” are those of the time "
    "ratio over turns. State is what is kept between steps, beside the weights. “Memory” is weights, state and the "
    "most that a step takes on top of them, gradients and activations included; compiled code allocates nothing in a "
    "step that could be counted so. An engine without a row cannot execute the learner."
)


@dataclass
class Contender:
    """A learner with a network of its own.

    Attributes:
        label: of the learner.
        learner: the learner with its options.
        strategy: what learns.
        seconds: of its turns.
        memory: as `memory` counts it; nothing where it is not counted.
    """

    label: str
    learner: Component
    strategy: OnlineLearner
    seconds: list[float] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def engine(self) -> str:
        """The engine that was found for it."""
        return str(self.strategy.engine["name"])


def random_images(shape: tuple[int, int, int], n: int) -> Any:
    """An experience of random images with ten classes.

    Args:
        shape: channels, height and width.
        n: number of images.
    """
    channels, height, width = shape
    x = np.random.RandomState(0).randint(0, 256, (n, height, width, channels)).astype(np.uint8)
    y = np.arange(n) % 10
    return make_stream("class_split", source=(x, y, x[:10], y[:10])).train_stream[0]


def contender(
    label: str, learner: Component, network: str, shape: tuple[int, int, int], engine: Engine, n: int
) -> Contender:
    """Make a learner that will see ``n`` samples, with a thousandth of its step size.

    Raises:
        ConfigError: there is no such learner, its package is missing, or an option does not fit.
        ValueError: it cannot be made with this network.
    """
    resolved = resolve("learner", learner, label)
    name, options = resolved.name, resolved.options
    if isinstance(options.get("lr"), float):
        options["lr"] /= 1000
    torch.manual_seed(0)
    model = NETWORKS[network](n_outputs=10, input_shape=shape)
    optimizer = make_optimizer(name, model, **known_of_the_stream(name, n_samples=n), **options)
    strategy = OnlineLearner(model=model, optimizer=optimizer, engine=engine, told=is_told(name))
    return Contender(label, resolved, strategy)


def take_turns(
    contenders: Sequence[Contender],
    images: Any,
    repeats: int,
    console: Console,
    failed: Callable[[Contender, Exception], None],
) -> list[Contender]:
    """Let learners learn in turns, and record the seconds of each turn.

    Args:
        contenders: the learners, which have learned before.
        images: what each learns from in a turn.
        repeats: turns of each.
        console: where progress is shown.
        failed: called with a learner that raised, which takes no more turns.

    Returns:
        The others.
    """
    left = list(contenders)
    for _ in track(range(repeats), description="measuring", console=console, disable=console.quiet):
        for one in list(left):
            start = time.perf_counter()
            try:
                one.strategy.train(images)
            except Exception as error:  # whatever an optimizer raises; the others are measured all the same
                left.remove(one)
                failed(one, error)
            one.seconds.append(time.perf_counter() - start)
    return left


def time_ratios(one: Contender, baseline: Contender) -> dict[str, float]:
    """Median and quartiles of the time of a turn relative to a baseline's: time_ratio, time_ratio_low and …_high."""
    ratios = [ours / theirs for ours, theirs in zip(one.seconds, baseline.seconds, strict=True)]
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return {"time_ratio_low": low, "time_ratio": median, "time_ratio_high": high}


def memory(strategy: OnlineLearner, images: Any) -> dict[str, float]:
    """Bytes of a learner: ``weights``, ``state`` (kept between steps) and ``peak`` (a step's, on top of these).

    Args:
        strategy: the learner, which has learned before.
        images: some samples, from which it learns.
    """
    from torch.profiler import ProfilerActivity, profile

    for param in strategy.model.parameters():
        param.grad = None  # it is part of the peak
    with _nothing_on_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        strategy.train(images)
    changes = [event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    weights = {id(param): param for param in strategy.model.parameters()}
    return {
        "weights": sum(param.numel() * param.element_size() for param in weights.values()),
        "state": state_bytes(strategy.optimizer),
        "peak": max(0, *np.cumsum(changes).tolist()) if changes else 0,
    }


@contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """PyTorch's profiler writes there from C++ what is of no use here."""
    held = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(held, 2)
        os.close(held)


def state_bytes(optimizer: Any) -> int:
    """Bytes of all tensors and arrays that an optimizer holds, but for weights, their gradients and numbers.

    Each storage counts once, however it is reached.
    """
    taken: dict[int, int] = {}
    weights = {_storage(param)[0] for group in optimizer.param_groups for param in group["params"]}
    seen: set[int] = set()
    todo: list[Any] = [vars(optimizer)]
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, type | nn.Module):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor | np.ndarray):
            if isinstance(value, np.ndarray) or value.dim():
                address, size = _storage(value)
                taken[address] = size
        elif isinstance(value, Mapping):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
            todo += value
        elif hasattr(value, "__dict__") and not callable(value):
            todo.append(vars(value))
    return sum(size for address, size in taken.items() if address not in weights)


def _storage(value: Tensor | np.ndarray) -> tuple[int, int]:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    owner = value
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return owner.ctypes.data, owner.nbytes


def learners(bases: Sequence[str] = BASES) -> dict[str, tuple[Component, str]]:
    """What is measured: fixed, scalar and blockwise step sizes for each base update, and for the first all else.

    Args:
        bases: base updates of MetaOptimize.

    Returns:
        Label → the learner, and the label of the fixed step size that it is compared with.
    """
    measured: dict[str, tuple[Component, str]] = {}
    for base in bases:
        fixed = f"{base}, fixed"
        measured[fixed] = Component(name="fixed", **{"base": base}), fixed
        variants = {kind: {"step_sizes": kind} for kind in ("scalar", "blockwise")}
        variants |= VARIANTS if base == bases[0] else {}
        for name, options in variants.items():
            plain = {"base": base, "gamma": 0.999, "trace": "hessian_free", "step_sizes": "blockwise"}
            measured[f"{base}, {name}"] = Component(name="metaoptimize", **plain | options), fixed
    return measured


def overhead(
    network: str = "paper_cnn",
    shape: tuple[int, int, int] = (3, 32, 32),
    *,
    seconds: float = 0.1,
    repeats: int = 11,
    bases: Sequence[str] = BASES,
    engines: Sequence[Engine] = ENGINES,
    console: Console | None = None,
) -> pd.DataFrame:
    """Measure what learning step sizes costs beyond the base optimizer.

    Args:
        network: registered name of the network.
        shape: channels, height and width of the images.
        seconds: that a turn of the first base update takes in an engine, about; the others learn from as many samples.
        repeats: turns of each learner.
        bases: base updates; the variants of MetaOptimize are measured with the first.
        engines: how steps are executed.
        console: where progress is shown; nowhere if None.

    Returns:
        A row per learner and engine that can execute it: learner, engine, step_us (microseconds, median), time_ratio
        (median), time_ratio_low and time_ratio_high (quartiles), state_bytes_per_parameter, memory_ratio (NaN where it
        is not counted).

    Raises:
        ValueError: turns take no time, or there are none.

    The process stays set up as for a run.
    """
    if not seconds > 0 or repeats < 1:
        raise ValueError(f"turns must take time, and there must be one at least, not {repeats} of {seconds} seconds")
    console = console or Console(quiet=True)
    set_up_process()
    few = random_images(shape, FEW)
    measured = learners(bases)
    contenders: dict[Engine, dict[str, Contender]] = {engine: {} for engine in engines}
    pairs = [(engine, label) for engine in engines for label in measured]
    for engine, label in track(pairs, description="starting", console=console, disable=console.quiet):
        try:
            one = contender(label, measured[label][0], network, shape, engine, MAX_SAMPLES * (repeats + 1))
            one.strategy.train(few)  # compiles what is to be compiled
        except ValueError:  # this engine cannot execute the learner
            continue
        if one.engine != engine:  # only forward and backward pass would be faster
            continue
        one.memory = {"state": state_bytes(one.strategy.optimizer)}
        if engine != "compiled":
            one.memory = memory(one.strategy, few)
        contenders[engine][label] = one
    rows = []
    for of_engine in filter(None, contenders.values()):
        images = random_images(shape, _n_samples(next(iter(of_engine.values())), few, seconds))
        for one in of_engine.values():
            one.strategy.train(images)  # traces what is to be traced
        take_turns(list(of_engine.values()), images, repeats, console, _raise)
        n = len(images.dataset)
        rows += [_row(one, of_engine[measured[label][1]], n) for label, one in of_engine.items()]
    return pd.DataFrame(rows)


def _n_samples(one: Contender, few: Any, seconds: float) -> int:
    """How many samples a learner learns from in so many seconds, within limits; enough for a graph to be traced."""
    start = time.perf_counter()
    one.strategy.train(few)
    fewest = FEWEST_SAMPLES if one.engine == "fused" else FEW
    return int(np.clip(seconds * FEW / (time.perf_counter() - start), fewest, MAX_SAMPLES))


def _raise(_: Contender, error: Exception) -> None:
    raise error


def _row(one: Contender, baseline: Contender, samples: int) -> dict[str, Any]:
    n_parameters = sum(param.numel() for param in one.strategy.model.parameters())
    counted = "peak" in one.memory
    return {
        "learner": one.label,
        "engine": one.engine,
        "step_us": 1e6 * statistics.median(one.seconds) / samples,
        **time_ratios(one, baseline),
        "state_bytes_per_parameter": one.memory["state"] / n_parameters,
        "memory_ratio": sum(one.memory.values()) / sum(baseline.memory.values()) if counted else np.nan,
    }


def overhead_markdown(table: pd.DataFrame) -> str:
    """The costs as a Markdown table.

    Args:
        table: from `overhead`.

    Returns:
        The table and what it means; ends with a line break.
    """
    cells = [
        [
            row["learner"],
            row["engine"],
            f"{row['step_us']:,.0f}",
            f"{row['time_ratio']:.2f}",
            f"{row['time_ratio_low']:.2f} – {row['time_ratio_high']:.2f}",
            f"{row['state_bytes_per_parameter']:.1f}",
            "" if np.isnan(row["memory_ratio"]) else f"{row['memory_ratio']:.2f}",
        ]
        for row in table.to_dict("records")
    ]
    headings = ["learner", "engine", "µs per step", "time ×", "quartiles", "state bytes per parameter", "memory ×"]
    alignment = ["left", "left", *["right"] * 5]
    return f"{tabulate(cells, headings, 'github', colalign=alignment, disable_numparse=True)}\n\n{NOTE}\n"


def write_overhead(folder: Path, *, show_progress: bool = True, **options: Any) -> tuple[str, list[Path]]:
    """Measure, and write the costs as CSV and Markdown.

    Args:
        folder: where to write; made if it does not exist.
        show_progress: draw progress bars.
        **options: of `overhead`.

    Returns:
        The Markdown text, and the paths of the files.
    """
    table = overhead(console=Console(stderr=True, quiet=not show_progress), **options)
    text = overhead_markdown(table)
    to_csv = partial(table.to_csv, index=False, lineterminator="\n", float_format="%.6g")
    return text, [
        write_whole(folder / "overhead.md", partial(Path.write_text, data=text, encoding="utf-8")),
        write_whole(folder / "overhead.csv", to_csv),
    ]
