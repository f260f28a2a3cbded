"""The page about related work: what a step costs is as measured, and all references are cited."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from continual_metaopt import MLP, make_optimizer
from continual_metaopt.optim.protocol import closure_for, switches_weights, wants_graph
from continual_metaopt.optim.registry import SPECS, MissingPackageError

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "related-work.md").read_text(encoding="utf-8")
COSTS = re.findall(r"^\| `(\w+)`.* \| ([\d,]+) \| ([\d,]+) \| (\d) \|$", PAGE, flags=re.MULTILINE)
OPTIONS: dict[str, dict[str, Any]] = {"metaoptimize_one_trace": {"gamma": 0.999, "trace": "hessian_free"}}


def tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Find all tensors that something holds, but for those of networks and functions."""
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, list | tuple | set):
        parts = list(value)
    elif not isinstance(value, type) and hasattr(value, "__dict__"):
        parts = list(vars(value).values())
    for part in parts:
        yield from tensors(part, seen)


@pytest.mark.parametrize(("learner", "fastest", "plain", "kept"), COSTS, ids=[row[0] for row in COSTS])
def test_what_a_step_costs(learner: str, fastest: str, plain: str, kept: str) -> None:
    measured = pd.read_csv(DOCS / "records" / "throughput.csv").set_index("learner").loc[learner]
    seconds = [1 / float(measured[f"{engine}_samples_per_second"]) for engine in ("auto", "torch")]
    assert [f"{1e6 * each:,.0f}" for each in seconds] == [fastest, plain]
    name = learner.removesuffix("_one_trace")
    model = MLP()
    try:
        optimizer = make_optimizer(name, model, **OPTIONS.get(learner, {}))
    except MissingPackageError as error:
        pytest.skip(str(error))
    for target in range(3):
        output = model(torch.randn(1, 1, 8, 8))
        loss = nn.functional.cross_entropy(output, torch.tensor([target]))
        optimizer.zero_grad()
        if not wants_graph(optimizer):
            loss.backward()
        if switches_weights(optimizer):
            optimizer.train()  # type: ignore[attr-defined]
        optimizer.step(closure_for(optimizer, loss, output))
    weights = list(model.parameters())
    theirs = {tensor.data_ptr() for p in weights for tensor in (p, p.grad) if tensor is not None}
    found = {t.data_ptr(): t.numel() for t in tensors(optimizer, set()) if t.data_ptr() not in theirs}
    assert round(sum(found.values()) / sum(p.numel() for p in weights)) == int(kept)


def test_ratios_are_those_of_the_record() -> None:
    ratios = pd.read_csv(DOCS / "records" / "overhead.csv").set_index(["engine", "learner"])["time_ratio"]["torch"]
    pattern = r"([\d.]+) times the time of AdamW's .* (\d+) times with `trace=\"l\"`.* (\d+) times with"
    found = re.search(pattern, PAGE, flags=re.DOTALL)
    assert found is not None
    assert [float(number) for number in found.groups()] == [
        round(float(ratios["adamw, per weight"]), 1),
        *(round(float(ratios[f"adamw, blockwise, trace {trace}"])) for trace in ("l", "full")),
    ]


def test_learners_exist_and_references_are_cited() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert {row[0].removesuffix("_one_trace") for row in COSTS} <= named & SPECS.keys()
    text, references = PAGE.split("## References")
    numbers = [int(number) for number in re.findall(r"^(\d+)\. ", references, flags=re.MULTILINE)]
    assert sorted(set(map(int, re.findall(r"\[(\d+)\]", text)))) == numbers == list(range(1, len(numbers) + 1))
    assert len(PAGE.splitlines()) <= 120
