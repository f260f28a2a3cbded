"""Small streams, networks and studies, and helpers to compare what runs leave behind."""

import importlib.metadata
import os
import re
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import nn

from continual_metaopt import networks
from continual_metaopt.analysis.run_directory import TABLES
from continual_metaopt.engines.observations import Observations
from continual_metaopt.optim import registry
from continual_metaopt.streams import make_stream
from continual_metaopt.streams.benchmark import StreamBenchmark
from continual_metaopt.study.backends import local

torch.set_num_threads(1)  # small networks do not profit from more, and tests share the cores with others


def described(stream_info: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The description of a run that nobody has done, with all that must be there."""
    info = {"definition": "tracking v1", "fingerprint": "f", "source": None, "n_samples": 120, "n_outputs": 2}
    info |= {"boundaries": [0], "task": "classification"} | stream_info
    parts = {part: {"name": "any"} for part in ("stream", "network", "learner")}
    facts = {"run_id": "a", "study": "", "label": "a", "purpose": "report", "seed": 0, "blocks": ["a"]}
    facts |= {"schema_version": 1, "evaluate": True, "learned_step_sizes": True, "n_parameters": 1}
    return parts | facts | {"stream_info": info | {"n_experiences": len(info["boundaries"])}} | changes


STREAM = {"name": "permuted_inputs", "n_experiences": 3, "samples_per_experience": 40}
STUDY: dict[str, Any] = {
    "name": "tiny",
    "stream": STREAM,
    "network": {"name": "mlp", "hidden": [8]},
    "seeds": [0, 1],
    "selection_seeds": [100],
    "record_every": 10,
    "learners": [
        {"label": "tuned", "name": "fixed", "tune": {"lr": [1e-7, 0.01]}},
        {"label": "learned", "name": "metaoptimize", "lr": 0.001, "step_sizes": "scalar"},
    ],
}


def exactly(message: object) -> str:
    """A pattern for pytest.raises that the whole message must match."""
    return f"^{re.escape(str(message))}$"


def learner_names() -> list[str]:
    """All names of learners that this package offers."""
    return [*registry.LEARNERS.own, "torch:NAME", "pytorch_optimizer:NAME"]


def packaged_study_names() -> list[str]:
    """All studies that come with this package, as its folder has them."""
    return sorted(path.stem for path in (Path(registry.__file__).parents[1] / "study" / "packaged").glob("*.yaml"))


def known_learners() -> str:
    """How messages list them."""
    return ", ".join(sorted(learner_names()))


def study_content(changes: dict[Any, Any]) -> dict[Any, Any]:
    """The tiny study with some fields replaced; None removes a field."""
    content: dict[Any, Any] = {**deepcopy(STUDY), **changes}
    return {name: value for name, value in content.items() if value is not None}


def write_study(path: Path, changes: dict[Any, Any] | None = None) -> Path:
    path.write_text(yaml.safe_dump(study_content(changes or {}), allow_unicode=True), encoding="utf-8")
    return path


def small_network(seed: int = 0, n_outputs: int = 10) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, n_outputs))


def read_tables(run: Path) -> dict[str, pa.Table]:
    return {name: pq.read_table(run / f"{name}.parquet") for name in TABLES}


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def environment() -> dict[str, str]:
    """For other processes, so that they find the package from any folder."""
    root = str(Path(local.__file__).parents[3])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


class Collector:
    """A recorder that keeps everything."""

    def __init__(self) -> None:
        self.portions: list[Observations] = []

    def observe(self, observations: Observations) -> None:
        self.portions.append(observations)

    def all(self, field: str) -> list[Any]:
        return [value for portion in self.portions for value in getattr(portion, field)]


class InProcess:
    """Stands in for a worker: does each thing at once, here, and none beside another."""

    one_at_a_time = threading.Lock()

    def __init__(self, context: Any, stop: Any, messages: Any) -> None:
        local._worker.update(messages=messages, stop=stop)

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        with self.one_at_a_time:
            return function(*args)

    def ask_to_end(self) -> None:
        pass

    def end(self) -> None:
        pass


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of studies happen in this process, so that a test need not wait for others to import torch."""
    monkeypatch.setattr(local, "_Process", InProcess)


@pytest.fixture(autouse=True)
def _denormal_numbers_restored() -> Iterator[None]:
    """Runs set this for their whole process."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    for names in (registry.LEARNERS, networks.NETWORKS):
        monkeypatch.setattr(names, "_entries", dict(names._entries))


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Make it look as if an installed package offered something: ``offer(group, name, import path)``."""

    def offer(group: str, name: str, path: str) -> None:
        point = importlib.metadata.EntryPoint(name=name, value=path, group=group)
        points = importlib.metadata.EntryPoints([point])
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda **chosen: points.select(**chosen))

    return offer


@pytest.fixture(scope="session")
def benchmark() -> StreamBenchmark:
    """Three permutations of 60 digits each."""
    return make_stream("permuted_inputs", n_experiences=3, samples_per_experience=60, seed=3)
