"""Streams, networks and learners by name, with checked options."""

import functools
import importlib
import inspect
import reprlib
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from continual_metaopt.networks import NETWORKS
from continual_metaopt.optim.base_names import BASE_UPDATES
from continual_metaopt.optim.registry import LEARNERS, MissingPackageError, known_of_the_stream, learner_factory
from continual_metaopt.streams import STREAMS
from continual_metaopt.streams.registry import BrokenNameError, Registry, UnknownNameError
from continual_metaopt.streams.signatures import described_options
from continual_metaopt.streams.sources import SourceSpec

Kind = Literal["stream", "network", "learner"]
# Arguments that a run supplies itself, by kind of component.
SUPPLIED: dict[Kind, set[str]] = {
    "stream": {"seed"},
    "network": {"n_outputs", "input_shape"},
    "learner": {"model", "n_samples", "batch_size"},
}
_SHORTENED = reprlib.Repr()  # of what was given, in messages
_SHORTENED.maxstring = _SHORTENED.maxother = 200
_SHORTENED.maxlist = _SHORTENED.maxdict = 20


class ConfigError(ValueError):
    """A description of a run or study is wrong; the message names the field."""


class Component(BaseModel):
    """A stream, network or learner: its name, and its options as further fields."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return dict(self.model_extra or {})


def import_modules(names: Sequence[str]) -> None:
    """Import modules, installed ones or from the working directory, for what they register.

    Raises:
        ConfigError: a module is not there, or fails.
    """
    for name in names:
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a user's module raises
            raise ConfigError(f"imports: cannot import '{name}' ({type(error).__name__}: {error})") from error


def resolve(kind: Kind, component: Component, where: str) -> Component:
    """Check a component's options against the function that makes it, and fill in the defaults.

    Raises:
        ConfigError: unknown name, unknown option, or a value that does not fit; the message begins with ``where``.

    Example:
        >>> resolve("network", Component(name="mlp", hidden=[8]), "network").options
        {'hidden': [8], 'norm': 'none', 'growing_head': False}
    """
    try:
        factory = factory_of(kind, component.name)
    except (UnknownNameError, BrokenNameError, MissingPackageError) as error:
        raise ConfigError(f"{where}.name: {error}") from error
    try:
        options = options_model(kind, component.name, factory)(**component.options).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigError(describe(error, f"{where}.")) from error
    if kind == "learner":
        _try_learner(component.name, factory, options, where)
    return Component(name=component.name, **options)


def factory_of(kind: Kind, name: str) -> Any:
    """Find the function or class that makes a component.

    Raises:
        UnknownNameError: no component of this name.
        MissingPackageError: a learner's package is not installed.
    """
    return learner_factory(name) if kind == "learner" else REGISTRIES[kind][name]


REGISTRIES: Mapping[Kind, Registry[Any]] = {"stream": STREAMS, "network": NETWORKS, "learner": LEARNERS}


def options_model(kind: Kind, name: str, factory: Any) -> type[BaseModel]:
    """Make a model of a component's options, read off the signature and docstring of the function that makes it.

    A learner's option ``base`` also takes the base updates that others have registered by now.

    Example:
        >>> options_model("network", "mlp", factory_of("network", "mlp")).model_fields["hidden"].default
        (128,)
    """
    return _options_model(kind, name, factory, tuple(BASE_UPDATES) if kind == "learner" else ())


@functools.lru_cache(maxsize=256)  # a study describes the same components for each of its runs
def _options_model(kind: Kind, name: str, factory: Any, bases: tuple[str, ...]) -> type[BaseModel]:
    function = factory.__init__ if inspect.isclass(factory) else factory
    descriptions = described_options(factory)
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self" or parameter.name in SUPPLIED[kind]:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            extra = "allow" if parameter.kind is parameter.VAR_KEYWORD else extra
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        hint = _type_of(parameter, function)
        if bases and parameter.name == "base" and "adamw" in get_args(hint):
            hint = Literal[(*dict.fromkeys((*get_args(hint), *bases)),)]
        fields[parameter.name] = (
            str if hint == SourceSpec else hint,  # a description names its source; arrays are for Python
            Field(default, description=descriptions.get(parameter.name, "")),
        )
    settings = ConfigDict(extra=extra, arbitrary_types_allowed=True, allow_inf_nan=False)
    return create_model(f"{kind}_{name}", __config__=settings, **fields)


def _type_of(parameter: inspect.Parameter, function: Any) -> Any:
    """An argument's type; Any if it is not declared, or with a name that exists only for type checkers."""
    if parameter.annotation is parameter.empty:
        return Any
    declared = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return get_type_hints(declared, getattr(function, "__globals__", {}), include_extras=True)[parameter.name]
    except NameError:
        return Any


def describe(error: ValidationError, prefix: str) -> str:
    """Write one line per mistake: which field, and what is wrong with it."""
    lines = []
    for mistake in error.errors():
        field, message = ".".join(map(str, mistake["loc"])), mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = "there is no such option"
        elif field and mistake["type"] != "missing":
            message += f" (given: {_SHORTENED.repr(mistake['input'])})"
        lines.append(f"{prefix}{field}: {message}" if field else f"{prefix}{message}")
    return "\n".join(lines)


def _try_learner(name: str, factory: Any, options: Mapping[str, Any], where: str) -> None:
    """Make the optimizer for a tiny network, so that values out of range show before anything has run."""
    import torch

    if not isinstance(options.get("step_sizes", ""), str) or getattr(factory, "names_blocks", False):
        return  # names in the real network
    try:
        with torch.random.fork_rng(devices=[]):
            factory(torch.nn.Linear(1, 1), **known_of_the_stream(name, n_samples=1), **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} '{name}': {error}") from error
