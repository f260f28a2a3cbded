"""The commands that repeat runs and studies, from what is recorded about them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from continual_metaopt.analysis.files import is_regular, read_regular
from continual_metaopt.analysis.run_directory import GIVEN_UP
from continual_metaopt.analysis.runs import Runs

_PROGRAM = "continual-metaopt"
_COMPONENTS = ("stream", "network", "learner")
_PLAIN_FLAGS = (
    "seed",
    "record_every",
    "record_samples_every",
    "engine",
    "device",
    "evaluate",
    "label",
    "diagnostics",
    "imports",
)
_ADDED_TO_STUDIES = ("n_runs",)  # that no study file may have


class Study(NamedTuple):
    """A study that runs belong to: its name, its description in `study.json` beside the runs or None, and commands.

    `command` repeats it where it is known by its name, `from_record` from a file with the description, if there is one.
    """

    name: str
    record: dict[str, Any] | None
    command: str
    from_record: str | None


def run_command(config: Mapping[str, Any]) -> str | None:
    """The command that repeats one run. Every option is spelled out, so that defaults of other versions do not matter.

    Returns:
        A command for a POSIX shell; None if an option has a value that flags cannot express, such as a list of lists.
    """
    flags: list[tuple[str, Any]] = []
    for part in _COMPONENTS:
        options = config.get(part, {})
        given = [name for name in options if name != "name" and (name not in GIVEN_UP or options[name] is not None)]
        flags += [(f"{part}.{name}", options[name]) for name in ("name", *given)]
    diagnostics = config.get("diagnostics") or []
    plain = [name for name in _PLAIN_FLAGS if name in config and config[name] != []]
    flags += [(name, config[name]) for name in plain]
    if diagnostics and "diagnostics_every" in config:
        flags.append(("diagnostics_every", config["diagnostics_every"]))
    words = [_flag(name, value) for name, value in flags]
    if any(word is None for word in words):
        return None
    return shlex.join([_PROGRAM, "run", *(word for part in words if part for word in part)])


def studies_of(runs: Runs) -> list[Study]:
    """The studies that runs belong to, in the order of the runs, and the commands that repeat them."""
    studies = []
    for name in dict.fromkeys(runs.table["study"]):
        if name:
            paths = list(runs.table.loc[runs.table["study"] == name, "path"])
            configs = [runs.configs[path] for path in paths]
            record = _study_record(Path(paths[0]), name)
            described = record or {"seeds": sorted({config["seed"] for config in configs})}
            flags = _study_flags(configs[0], described)
            from_record = shlex.join([_PROGRAM, "compare", "study.json"]) if record else None
            studies.append(Study(name, record, shlex.join([_PROGRAM, "compare", name, *flags]), from_record))
    return studies


def _flag(name: str, value: Any) -> list[str] | None:
    """The words of one flag, or None if its value cannot be given as words."""
    group, _, option = name.replace("_", "-").rpartition(".")
    prefix = f"{group}." if group else ""
    if isinstance(value, bool):
        return [f"--{prefix}{option}" if value else f"--{prefix}no-{option}"]
    if isinstance(value, Mapping):
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return None
        return [f"--{prefix}{option}", *map(str, value)]
    return [f"--{prefix}{option}", str(value)]


def _study_flags(config: Mapping[str, Any], described: Mapping[str, Any]) -> list[str]:
    """What may differ from the study of this name: images, seeds, engine, device."""
    flags = []
    source = config["stream"].get("source")
    if source is not None:
        flags += ["--source", str(source)]
    flags += ["--seeds", *map(str, described["seeds"])]
    for name, default in {"engine": "auto", "device": "cpu"}.items():
        value = described.get(name, config.get(name, default))
        if value != default:
            flags += [f"--{name}", str(value)]
    return flags


def _study_record(run: Path, name: str) -> dict[str, Any] | None:
    """The `study.json` of a study of this name beside the run's folder or one above it."""
    for folder in list(run.resolve().parents)[:2]:
        path = folder / "study.json"
        if is_regular(path):
            try:
                record = json.loads(read_regular(path).decode("utf-8"))
            except (OSError, ValueError, RecursionError):
                return None
            if isinstance(record, dict) and record.get("name") == name and record.get("seeds"):
                return {key: value for key, value in record.items() if key not in _ADDED_TO_STUDIES}
    return None
