"""Reading the YAML of study files, which anybody may have written: whole or with a message, in little time."""

import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**20
MAX_DEPTH = 40  # of lists and mappings in each other
MAX_VALUES = 250_000  # once aliases are written out
LARGEST = 2**63  # below which whole numbers are
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # what files in UTF-16 begin with
MERGE = "tag:yaml.org,2002:merge"  # of the key <<

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML has it


class StudyFileError(ValueError):
    """A study file cannot be understood; the message says where and why, without the file's name."""


def read_study_text(path: Path) -> str:
    """Read the text of a study file.

    Raises:
        StudyFileError: it is too large, or not in UTF-8.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise StudyFileError(f"a study file has at most {MAX_BYTES:,} bytes; divide it into several studies")
    if content.startswith(UTF_16) or b"\0" in content:
        raise StudyFileError(
            "is not in UTF-8 but, as it seems, in UTF-16; save it as UTF-8 in your editor, or convert it: "
            f"iconv -f UTF-16 -t UTF-8 '{path.name}' > utf8.yaml"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise StudyFileError(f"line {line} is not in UTF-8; save the file as UTF-8 in your editor") from error


def parse_study(text: str) -> Any:
    """Read what a study's YAML says, as lists, dictionaries and plain values.

    Raises:
        StudyFileError: it is not valid YAML, gives a key twice, holds a number that is not finite, refers to itself, or
            is nested too deeply or too large once its aliases are written out.

    Example:
        >>> parse_study("{seeds: [0, 1], stream: {name: tracking}}")
        {'seeds': [0, 1], 'stream': {'name': 'tracking'}}
    """
    try:
        _require_flat(text)
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _require_moderate(loader, root)
        content = loader.construct_document(root)
    except StudyFileError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as error:  # also of dates and numbers
        raise StudyFileError(f"is not valid YAML: {error}") from error
    _require_finite(content, "")
    return content


def _require_flat(text: str) -> None:
    """Check how deep lists and mappings are in each other, before anything calls itself for each level."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise StudyFileError(f"line {_line(event)}: is nested more than {MAX_DEPTH} levels deep")
        if number > 2 * MAX_VALUES:
            raise StudyFileError(f"has over {MAX_VALUES:,} values")


def _require_moderate(loader: Any, root: yaml.Node) -> None:
    """Check that no key is given twice, and how much there is once aliases are written out.

    A node that several aliases stand for is looked at once.
    """
    sizes: dict[int, tuple[int, int]] = {}  # of each node: values in it, and levels

    def measure(node: yaml.Node) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        if id(node) in sizes:
            if sizes[id(node)][0] == 0:
                raise StudyFileError(f"line {_line(node)}: what begins there contains itself")
            return sizes[id(node)]
        sizes[id(node)] = 0, 0
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            _require_different_keys(loader, node)
            parts = [part for pair in node.value for part in pair]
        measured = [measure(part) for part in parts]
        size = 1 + sum(n for n, _ in measured), 1 + max((levels for _, levels in measured), default=0)
        if size[0] > MAX_VALUES:
            raise StudyFileError(f"line {_line(node)}: with its aliases written out, it has over {MAX_VALUES:,} values")
        if size[1] > MAX_DEPTH:
            raise StudyFileError(f"line {_line(node)}: is nested more than {MAX_DEPTH} levels deep")
        sizes[id(node)] = size
        return size

    measure(root)


def _require_different_keys(loader: Any, node: yaml.MappingNode) -> None:
    lines: dict[Hashable, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            name = key.value if key.tag == MERGE else loader.construct_object(key)
            if name in lines:
                raise StudyFileError(
                    f"line {_line(key)}: '{key.value}' is given twice, first in line {lines[name]}; keep one of them"
                )
            lines[name] = _line(key)


def _require_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise StudyFileError(f"{where}: a setting is a finite number (given: {value})")
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise StudyFileError(f"{where}: the whole number is too large")
    if isinstance(value, dict):
        for key, part in value.items():
            _require_finite(part, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple | set):
        for number, part in enumerate(value):
            _require_finite(part, f"{where}.{number}" if where else str(number))


def _line(part: Any) -> int:
    """Where a node or an event of YAML begins."""
    return int(part.start_mark.line) + 1
