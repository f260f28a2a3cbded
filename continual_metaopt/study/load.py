"""Reading studies from files and from this package."""

import copy
import functools
import itertools
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from continual_metaopt.engines import Engine
from continual_metaopt.runs.components import ConfigError, describe, import_modules
from continual_metaopt.streams.registry import UnknownNameError, unknown_name
from continual_metaopt.study.config import StudyConfig
from continual_metaopt.study.study_file import StudyFileError, parse_study, read_study_text


def load_studies(
    study: str | Path,
    *,
    source: str | None = None,
    data_root: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    engine: Engine | None = None,
    device: str | None = None,
) -> dict[str, StudyConfig]:
    """Read a study with any number of streams and networks, each combination of which is a study of its own.

    Args:
        study: path or name.
        source: the streams' source, instead of those in the file.
        data_root: the streams' data_root, instead of those in the file.
        seeds: the reported seeds, instead of those in the file.
        engine: how steps are executed, instead of what the file says.
        device: where the learners are, instead of what the file says.

    Returns:
        Each combination by its label, such as "drifting-mlp" of the stream "drifting" and the network "mlp"; the label
        holds only what the study has a list of, and is empty if it has none.

    Raises:
        FileNotFoundError: no such file.
        UnknownNameError: no packaged study of this name.
        ConfigError: the study is not valid; the message names file and field.
    """
    path = Path(study)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise FileNotFoundError(f"no study file at '{path}'")
        read = functools.partial(read_study_text, path)
    else:
        known = packaged_studies()
        if str(study) not in known:
            raise UnknownNameError(unknown_name("study", str(study), list(known)) + " (or the path of a .yaml file)")
        read = functools.partial(known.__getitem__, str(study))
    try:
        content = parse_study(read())
    except StudyFileError as error:
        raise ConfigError(f"{study}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{study}: expected fields such as 'stream:' and 'learners:'")
    fields = {"seeds": None if seeds is None else list(seeds), "engine": engine, "device": device}
    content |= {name: value for name, value in fields.items() if value is not None}
    given = {"source": source, "data_root": None if data_root is None else str(data_root)}
    parts = {}
    try:
        for label, part in _combinations(content).items():
            if isinstance(part.get("stream"), dict):
                part["stream"] |= {name: value for name, value in given.items() if value is not None}
            parts[label] = _valid_study(part, f"{label}: " if label else "")
    except ConfigError as error:
        raise ConfigError("\n".join(f"{study}: {line}" for line in str(error).splitlines())) from error
    return parts


def _combinations(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The content of a study file for each combination of its streams and networks, by label."""
    choices: list[list[tuple[str | None, str, Any]]] = []
    for kind, kinds in (("stream", "streams"), ("network", "networks")):
        if kinds in content:
            if kind in content:
                raise ConfigError(f"{kinds}: give either {kind} or {kinds}")
            choices.append([(label, kind, component) for label, component in _labelled(content[kinds], kinds).items()])
        elif kind in content:
            choices.append([(None, kind, content[kind])])
    common = {field: value for field, value in content.items() if field not in ("streams", "networks")}
    parts = {}
    for combination in itertools.product(*choices):
        label = "-".join(label for label, _, _ in combination if label is not None)
        name = {"name": f"{content.get('name')}.{label}"} if label else {}
        parts[label] = common | {kind: copy.deepcopy(component) for _, kind, component in combination} | name
    return parts


def _labelled(components: Any, field: str) -> dict[str, Any]:
    """Streams or networks by their labels, which are their names if they have none."""
    if not isinstance(components, list) or not components or not all(isinstance(c, dict) for c in components):
        raise ConfigError(f"{field}: expected a list of entries such as {{name: …}}")
    labelled: dict[str, Any] = {}
    for number, component in enumerate(components):
        label = str(component.get("label", component.get("name", "")))
        if not re.fullmatch(r"\w[\w.-]*", label):
            raise ConfigError(
                f"{field}.{number}: needs a label of letters, digits, '.', '_' and '-' that begins with a letter, a "
                f"digit or '_' (given: {label!r})"
            )
        if label in labelled:
            raise ConfigError(f"{field}: several have the label '{label}'; give each its own")
        labelled[label] = {option: value for option, value in component.items() if option != "label"}
    return labelled


def _valid_study(content: dict[str, Any], where: str) -> StudyConfig:
    """A study whose runs can be described.

    Raises:
        ConfigError: it is not valid; each line of the message begins with ``where`` and the field.
    """
    try:
        config = StudyConfig.model_validate(content)
        import_modules(config.imports)
        for entry in config.learners:
            if config.is_tuned(entry):
                for setting in config.next_settings(entry, []):
                    config.run(entry, entry.with_options(setting), config.selection_seeds[0], "selection")
            if config.reports_untuned(entry):
                config.run(entry, entry.untuned, config.seeds[0], "report", tuned=False)
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from error
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error
    return config


def study_description(text: str) -> str:
    """What a study's YAML text says it is for."""
    return str(parse_study(text).get("description", ""))


def packaged_studies() -> dict[str, str]:
    """Name and YAML text of the studies that come with the package."""
    folder = resources.files("continual_metaopt.study") / "packaged"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}
