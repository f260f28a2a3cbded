"""What a run directory holds, said once: runs write by it, and the analysis reads by it.

Names of files, states, columns of tables with their types, and the fields of descriptions with what they may hold;
`docs/run-directory.md` says what they mean. A new column stands here, in `TABLES`, and in `ADDED_COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

SCHEMA_VERSION = 1
CONFIG, STATUS = "config.json", "status.json"
ENDED = ("finished", "diverged")  # states of runs that are not repeated; a failed run can go on
STATES = ("running", *ENDED, "failed")
GIVEN_UP = ("horizon", "effective_step_bound")  # options that MetaOptimize no longer has; older runs leave them at None
ADDED: Mapping[str, Any] = {"meta_weight_decay": 0.0}  # options that it had not at first, with what stands for that

CHECKPOINT, COMPILED_CHECKPOINT = "checkpoint.pt", "checkpoint.npz"  # of PyTorch's state, of plain arrays
WRITTEN = "written.json"  # lists what a run that has not ended has written, and removes at its end
DAMAGED, REASON = "damaged", "reason.txt"  # folder of what cannot be read any more, and why

TABLES: Mapping[str, Mapping[str, str]] = {  # column → type, as Arrow calls it
    "samples": {"step": "int32", "experience": "int32", "correct": "bool", "loss": "float"},
    "step_sizes": {
        "step": "int32",
        "block": "string",
        "step_size": "double",
        **dict.fromkeys(("q05", "q25", "q75", "q95"), "double"),
    },
    "measurements": {
        "step": "int32",
        "quantity": "string",
        "block": "string",
        "statistic": "string",
        "value": "double",
    },
    "experiences": {
        "experience": "int32",
        "classes": "list<string>",
        "first_step": "int32",
        "n_samples": "int32",
        "n_seen_before": "int32",
        "n_correct": "int32",
        "online_accuracy": "double",
        "mean_loss": "double",
        "test_accuracy": "double",
    },
}
ADDED_COLUMNS: Mapping[str, tuple[str, ...]] = {  # that runs of earlier versions lack; NaN there
    "step_sizes": ("q05", "q25", "q75", "q95"),
    "experiences": ("mean_loss",),
}
TEXTS = ("block", "quantity", "statistic")

MAX_TEXT = 10_000  # characters of a label or a name
LARGEST = 2**63 - 1  # whole number
MAX_STEPS = 2**31 - 1  # of a stream: steps are recorded as int32


class Kind(NamedTuple):
    """Say what a field may hold, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any, least: int = 0, most: int = LARGEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_time(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


def _list_of(kind: Kind) -> Kind:
    return Kind(f"a list, each {kind.words}", lambda value: isinstance(value, list) and all(map(kind.holds, value)))


def _one_of(*values: str) -> Kind:
    return Kind(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


_TEXT = Kind("text", _is_text)
_REASON = Kind("text", lambda value: isinstance(value, str))
_WHOLE = Kind("a whole number from 0", _is_whole)
_COUNT = Kind("a whole number from 1", lambda value: _is_whole(value, 1, MAX_STEPS))
_PLACE = Kind("a whole number", lambda value: _is_whole(value, -LARGEST))
_FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a number from 0", _is_number)
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_COMPONENT = Kind("an object with a name", lambda value: isinstance(value, dict) and _is_text(value.get("name")))
_ATTEMPT = Kind(
    "an object with versions and platform",
    lambda value: isinstance(value, dict) and all(isinstance(value.get(key), dict) for key in ("versions", "platform")),
)
_OWNER = Kind(
    "an object with host and pid",
    lambda value: isinstance(value, dict) and _is_text(value.get("host", "")) and _is_whole(value.get("pid", 0)),
)
_ENGINE = Kind(
    "an object of texts",
    lambda value: isinstance(value, dict) and all(part is None or _is_text(part) for part in value.values()),
)

CONFIG_FIELDS: dict[str, Kind] = {
    "run_id": _TEXT,
    "study": _TEXT,
    "label": _TEXT,
    "purpose": _TEXT,
    "stream": _COMPONENT,
    "network": _COMPONENT,
    "learner": _COMPONENT,
    "seed": _WHOLE,
    "evaluate": _FLAG,
    "learned_step_sizes": _FLAG,
    "stream_info": _OBJECT,
    "blocks": _list_of(_TEXT),
    "n_parameters": _WHOLE,
}
CONFIG_MAY_HOLD: dict[str, Kind] = {
    "order": _or_null(_PLACE),
    "entry": _TEXT,
    "family": _TEXT,
    "tuned": _list_of(_TEXT),
    "imports": _list_of(_TEXT),
    "engine": _TEXT,
    "device": _TEXT,
    "diagnostics": _list_of(_TEXT),
    "diagnostics_every": _COUNT,
    "record_every": _COUNT,
    "record_samples_every": _COUNT,
    "versions": _OBJECT,
    "platform": _OBJECT,
    "resumed": _list_of(_ATTEMPT),
}
STREAM_FIELDS: dict[str, Kind] = {
    "definition": _TEXT,
    "fingerprint": _TEXT,
    "source": _or_null(_TEXT),
    "n_experiences": _COUNT,
    "n_samples": _COUNT,
    "n_outputs": _COUNT,
    "boundaries": _list_of(_WHOLE),
}
STREAM_MAY_HOLD: dict[str, Kind] = {
    "stationary": _or_null(_TEXT),
    "source_hash": _or_null(_TEXT),
    "input_shape": _list_of(_COUNT),
    "task": _one_of("classification", "regression"),
    "test_at": _list_of(_WHOLE),
    "batch_size": _COUNT,
    "bytes_per_sample": _or_null(NUMBER),
    "input_type": _TEXT,
}
STATUS_MAY_HOLD: dict[str, Kind] = {
    "reason": _or_null(_REASON),
    "step": _WHOLE,
    "n_correct": _or_null(_WHOLE),
    "heartbeat": _or_null(Kind("a time with its zone", _is_time)),
    "owner": _or_null(_OWNER),
    "wall_time": _or_null(NUMBER),
    "samples_per_second": _or_null(NUMBER),
    "engine": _or_null(_ENGINE),
    "notes": _list_of(_REASON),
    "superseded": _FLAG,
    "run_id": _TEXT,
}
