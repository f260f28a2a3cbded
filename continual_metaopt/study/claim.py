"""Whose a folder is: one study's, described there, some of whose runs a later version of it may have replaced."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from continual_metaopt.analysis.files import real_folder
from continual_metaopt.analysis.run_directory import DAMAGED
from continual_metaopt.runs.files import read_json, write_json
from continual_metaopt.study.expand import Study
from continual_metaopt.study.jobs import Job


def claim(study: Study, out: Path, whole: Path | None = None, say: Callable[[str], None] = lambda text: None) -> None:
    """Make the folder ``out`` a study's own.

    A description that is damaged is set aside and written anew, which ``say`` tells the user. The folder that the user
    named, ``out`` or the one above it, is the ``whole``, and may be a link.

    Raises:
        FileExistsError: it holds another study, or this one with another stream or network, or something else; or it
            leads elsewhere by a link.
    """
    run = study.runs["report"]
    record = study.config.model_copy(update={"stream": run.stream, "network": run.network}).model_dump(mode="json")
    for name in ("data_root", "memory_limit"):  # files and pixels may lie elsewhere next time
        record["stream"].pop(name, None)
    for folder in (out, out / "runs", out / "selection"):
        if folder != (whole or out):
            real_folder(folder)
    path = out / "study.json"
    earlier = _earlier_record(path, say)
    if earlier is not None:
        known, wanted = _fields_of_all_runs(earlier), _fields_of_all_runs(record)
        for field in sorted(known.keys() | wanted.keys()):
            if known.get(field) != wanted.get(field):
                raise FileExistsError(
                    f"'{out}' already holds a study with {field} = {known.get(field)}, not {wanted.get(field)}; "
                    "choose another folder with --out"
                )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, record | {"n_runs": study.n_runs})


def mark_superseded(jobs: Sequence[Job]) -> None:
    """Say in their status which runs of an earlier version of a study others replace: its learner had other options."""
    wanted = {path for _, path in jobs}
    places = {_place(config.model_dump(mode="json")) for config, _ in jobs}
    for folder in {path.parent for path in wanted}:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path in wanted or path.is_symlink():
                continue
            try:
                status = read_json(path / "status.json")
                if _place(read_json(path / "config.json")) in places and "superseded" not in status:
                    write_json(path / "status.json", status | {"superseded": True})
            except (OSError, ValueError, TypeError):
                continue  # not a run, or none that can be read


def _place(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """What only one run of a version of a study has, given its description: the learner's label and the seed."""
    learner = run.get("entry") if run.get("purpose") == "report" else None
    return run.get("study"), run.get("purpose"), learner or run.get("label"), bool(run.get("tuned")), run.get("seed")


def _earlier_record(path: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """What a folder's study.json says; None if there is none that can be read.

    Raises:
        FileExistsError: it is another program's.
    """
    if os.path.lexists(path.with_name("config.json")):
        raise FileExistsError(
            f"'{path.parent}' holds a config.json, as a run's directory does; choose another folder with --out"
        )
    try:
        record = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        number = 1
        while os.path.lexists(aside := path.with_name(f"study-{DAMAGED}{'' if number == 1 else f'-{number}'}.json")):
            number += 1
        path.rename(aside)
        say(f"noted: {error}; it is kept as '{aside}', and written anew. All runs stay")
        return None
    parts = {"name": str, "stream": dict, "network": dict}
    if not all(isinstance(record.get(name), kind) for name, kind in parts.items()):
        raise FileExistsError(f"'{path}' is of no study of this program; choose another folder with --out")
    return record


def _fields_of_all_runs(record: dict[str, Any]) -> dict[str, Any]:
    """What a study's runs have in common, by field such as "stream.source"."""
    common = {field: record.get(field) for field in ("name", "record_every", "evaluate")}
    common["record_samples_every"] = record.get("record_samples_every", 1)
    common |= {"engine": record.get("engine", "auto"), "device": record.get("device", "cpu")}
    common["tuning"] = {field: (record.get("tuning") or {}).get(field) for field in ("samples", "stream")}
    common["diagnostics"] = sorted(set(record.get("diagnostics", [])))
    common["diagnostics_every"] = record.get("diagnostics_every") if common["diagnostics"] else None
    components = [(kind, option, value) for kind in ("stream", "network") for option, value in record[kind].items()]
    return common | {f"{kind}.{option}": value for kind, option, value in components}
