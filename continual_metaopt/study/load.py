"""Reading studies from files and from this package."""

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from continual_metaopt.engines import Engine
from continual_metaopt.runs.components import ConfigError, describe
from continual_metaopt.streams.registry import UnknownNameError, unknown_name
from continual_metaopt.study.config import StudyConfig
from continual_metaopt.study.expand import Study, expand
from continual_metaopt.study.study_file import StudyFileError, parse_study, read_study_text


def load_studies(
    study: str | Path | Mapping[str, Any],
    *,
    source: str | None = None,
    data_root: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    engine: Engine | None = None,
    device: str | None = None,
) -> dict[str, Study]:
    """Read a study with any number of streams and networks, each combination of which is a study of its own.

    Args:
        study: path, name, or content.
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

    Example:
        >>> study = load_studies("quick", seeds=[0])[""]
        >>> study.n_runs, [learner.label for learner in study.learners][:2]
        (13, ['AdamW tuned', 'MetaOptimize scalar, α₀ = 1e-3'])
    """
    if isinstance(study, Mapping):
        content, study = dict(study), str(study.get("name", "study"))
    else:
        try:
            content = parse_study(_text_of(study))
        except StudyFileError as error:
            raise ConfigError(f"{study}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{study}: expected fields such as 'stream:' and 'learners:'")
    fields = {"seeds": None if seeds is None else list(seeds), "engine": engine, "device": device}
    content |= _not_none(fields)
    of_stream = _not_none({"source": source, "data_root": None if data_root is None else str(data_root)})
    parts = {}
    try:
        for label, part in _combinations(content).items():
            if isinstance(part.get("stream"), dict):
                part["stream"] |= of_stream
            parts[label] = _expanded(part, f"{label}: " if label else "")
    except ConfigError as error:
        raise ConfigError("\n".join(f"{study}: {line}" for line in str(error).splitlines())) from error
    return parts


def folder_of(parts: Mapping[str, Study]) -> Path:
    """Say where the runs of a study go unless its user names a folder; its parts are as of ``load_studies``."""
    label, first = next(iter(parts.items()))
    return Path("runs") / first.config.name.removesuffix(f".{label}")


def _text_of(study: str | Path) -> str:
    path = Path(study)
    if path.is_file():
        return read_study_text(path)
    if path.suffix in (".yaml", ".yml"):
        raise FileNotFoundError(f"no study file at '{path}'")
    known = packaged_studies()
    if str(study) not in known:
        raise UnknownNameError(unknown_name("study", str(study), list(known)) + " (or the path of a .yaml file)")
    return known[str(study)]


def _not_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


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


def _expanded(content: dict[str, Any], where: str) -> Study:
    """A study whose runs can be described.

    Raises:
        ConfigError: it is not valid; each line of the message begins with ``where`` and the field.
    """
    try:
        return expand(StudyConfig.model_validate(content))
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from error
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def study_description(text: str) -> str:
    """Read what a study's YAML text says it is for."""
    return str(parse_study(text).get("description", ""))


def packaged_studies() -> dict[str, str]:
    """Read the studies that come with the package: name → YAML text."""
    folder = resources.files("continual_metaopt.study") / "packaged"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}
