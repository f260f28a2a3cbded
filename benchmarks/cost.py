"""What a step of each learner costs: time and memory at batch size 1, relative to AdamW, all in one run.

    python -m benchmarks.cost [--study field] [--network paper_cnn] [--samples 100] [--repeats 11] [--out cost.csv]

All learners of a study, with their untuned settings, learn in turns in one process, which is set up as for a run
(``process_settings``), from the same random images, each with a network of its own. Step sizes are a thousandth of the
untuned ones: a step takes as long, and nobody diverges on such images. With PyTorch's operations (engine "torch") each
learner is as its package or its paper has it; where this package has a faster engine for it ("compiled", "fused"),
there is a second row. Ratios are medians over turns, each to the baseline's time in the same turn, with the quartiles
beside them: to ``torch.optim.AdamW`` with PyTorch's operations, and to the compiled AdamW with compiled code.

Memory is counted in bytes of tensors with PyTorch's operations: what the optimizer keeps between steps, and the most
that a step takes on top of that, gradients and activations included. The ratio is of weights, state and that peak
together.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.progress import track
from tabulate import tabulate

from continual_metaopt.commands.overhead import Contender, contender, memory, random_images, take_turns, time_ratios
from continual_metaopt.engines import Engine
from continual_metaopt.networks import NETWORKS
from continual_metaopt.runs.components import Component, ConfigError
from continual_metaopt.runs.process_settings import set_up_process
from continual_metaopt.study.config import StudyConfig
from continual_metaopt.study.load import packaged_studies

BASELINE = "AdamW (torch.optim)"
COLUMNS = {
    "learner": "learner",
    "engine": "engine",
    "step_us": "µs per step",
    "time_ratio": "time × AdamW",
    "time_ratio_range": "quartiles",
    "state_bytes_per_parameter": "state bytes per parameter",
    "peak_kb": "peak kB of a step",
    "memory_ratio": "memory × AdamW",
    "problem": "problem",
}


def measure(
    study: StudyConfig, network: str, shape: tuple[int, int, int], samples: int, repeats: int, console: Console
) -> pd.DataFrame:
    """Measure all learners of a study.

    Args:
        study: whose learners are measured.
        network: registered name of the network.
        shape: channels, height and width of the images.
        samples: of a turn.
        repeats: turns of each learner.
        console: where progress is shown.

    Returns:
        A row per learner and engine: learner, name, engine, step_us (microseconds, median), time_ratio (median),
        time_ratio_low and time_ratio_high (quartiles), state_bytes_per_parameter, peak_kb, memory_ratio, and problem,
        which says why a learner could not be measured and what to install.
    """
    images, few = random_images(shape, samples), random_images(shape, 10)
    adamw = Component(name="torch:AdamW")
    specified = [(BASELINE, adamw)]
    same: dict[str, list[str]] = {}  # learners that differ only in how they are tuned are measured once
    for entry in study.learners:
        label = entry.label or entry.name
        first = next((known for known, learner in specified[1:] if learner == entry.untuned), label)
        same.setdefault(first, []).append(label)
        if first == label:
            specified.append((label, entry.untuned))
    contenders: list[Contender] = []
    problems: list[dict[str, Any]] = []
    for label, learner in track(specified, description="starting", console=console):
        engines: list[Engine] = ["torch"] if label == BASELINE else ["torch", "auto"]
        try:
            for engine in engines:
                made = contender(label, learner, network, shape, engine, 20 + samples * (repeats + 1))
                if engine == "torch" or made.engine != "torch":
                    made.strategy.train(images)  # compiles and traces what is to be compiled and traced
                if engine == "torch":
                    made.memory = memory(made.strategy, few)
                if engine == "torch" or made.engine != "torch":  # which is known only now where a graph is traced
                    contenders.append(made)
        except Exception as error:  # whatever a package raises; the others are measured all the same
            if label == BASELINE:
                raise
            problems.append(_problem(label, learner, error))

    def failed(one: Contender, error: Exception) -> None:
        problems.append(_problem(one.label, one.learner, error))

    contenders = take_turns(contenders, images, repeats, console, failed)
    compiled_adamw = next((one for one in contenders if _is_adamw(one) and one.engine == "compiled"), None)
    baselines = {"torch": contenders[0], "compiled": compiled_adamw}
    rows = [
        _row(one, baselines.get(one.engine), contenders[0], samples) | {"learner": label}
        for one in contenders
        for label in same.get(one.label, [one.label])
    ]
    return pd.DataFrame([*rows, *problems])


def _is_adamw(one: Contender) -> bool:
    return one.learner.name == "fixed" and one.learner.options["base"] == "adamw"


def _problem(label: str, learner: Component, error: Exception) -> dict[str, Any]:
    reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    return {"learner": label, "name": learner.name, "problem": reason}


def _row(one: Contender, baseline: Contender | None, adamw: Contender, samples: int) -> dict[str, Any]:
    n_parameters = sum(param.numel() for param in one.strategy.model.parameters())
    row: dict[str, Any] = {
        "learner": one.label,
        "name": one.learner.name,
        "engine": one.engine,
        "step_us": 1e6 * statistics.median(one.seconds) / samples,
    }
    if baseline is not None:
        row |= time_ratios(one, baseline)
    if one.memory:
        row |= {
            "state_bytes_per_parameter": one.memory["state"] / n_parameters,
            "peak_kb": one.memory["peak"] / 1000,
            "memory_ratio": sum(one.memory.values()) / sum(adamw.memory.values()),
        }
    return row


def rounded(table: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of a table of costs as text, without those that are empty.

    Args:
        table: from `measure`.
    """
    forms = {"step_us": ",.0f", "time_ratio": ".2f", "state_bytes_per_parameter": ".1f", "peak_kb": ",.0f"}
    forms |= {"memory_ratio": ".2f"}
    low, high = (table.get(f"time_ratio_{end}", pd.Series(np.nan, table.index)) for end in ("low", "high"))
    ranges = [f"{a:.2f}–{b:.2f}" if a == a else "" for a, b in zip(low, high, strict=True)]
    cells = {name: ranges if name == "time_ratio_range" else _cells(table, name, forms.get(name)) for name in COLUMNS}
    return {heading: cells[name] for name, heading in COLUMNS.items() if any(cells[name])}


def _cells(table: pd.DataFrame, column: str, form: str | None) -> list[str]:
    if column not in table:
        return [""] * len(table)
    return ["" if pd.isna(value) else f"{value:{form or ''}}" for value in table[column]]


def _read_study(name: str) -> StudyConfig:
    """A study, packaged or of a file, whose learners' packages need not be installed."""
    text = packaged_studies().get(name) or Path(name).read_text(encoding="utf-8")
    return StudyConfig.model_validate(yaml.safe_load(text))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it as CSV and Markdown; 1 if a learner could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", default="field", help=f"a file, or one of {', '.join(packaged_studies())}")
    parser.add_argument("--learners", nargs="+", metavar="LABEL", help="learners of the study (default: all)")
    parser.add_argument("--network", default="paper_cnn", choices=list(NETWORKS), help="(default: %(default)s)")
    parser.add_argument("--shape", nargs=3, type=int, default=(3, 32, 32), help="of images (default: 3 32 32)")
    parser.add_argument("--samples", type=int, default=100, help="samples of a turn (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=11, help="turns of each learner (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("cost.csv"), help="a .csv; the .md is put beside it")
    arguments = parser.parse_args(argv)
    set_up_process()
    study = _read_study(arguments.study)
    if arguments.learners:
        kept = [entry for entry in study.learners if (entry.label or entry.name) in arguments.learners]
        study = study.model_copy(update={"learners": kept})
    shape = tuple(arguments.shape)
    table = measure(study, arguments.network, shape, arguments.samples, arguments.repeats, Console(stderr=True))
    columns = rounded(table)
    print(tabulate(columns, headers="keys", disable_numparse=True))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False, float_format="%.6g")
    text = tabulate(columns, headers="keys", tablefmt="github", disable_numparse=True)
    arguments.out.with_suffix(".md").write_text(f"{text}\n", encoding="utf-8")
    print(f"wrote {arguments.out}\nwrote {arguments.out.with_suffix('.md')}")
    return int("problem" in table)


if __name__ == "__main__":
    raise SystemExit(main())
