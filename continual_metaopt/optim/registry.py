"""Learners by name: one row of facts for each, and the functions that make them from a network and options.

The row of a learner stands in its own file, as ``… = LearnerSpec(…)`` over several lines. Rows are read from the text
of the files, so that learners can be listed without importing torch; a row uses names of this module alone.
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, Union, cast, get_args

from continual_metaopt.analysis.extras import how_to_install
from continual_metaopt.streams.registry import Registry, UnknownNameError, unknown_name
from continual_metaopt.streams.signatures import described_options, with_options

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Family = Literal[
    "fixed step size",
    "MetaOptimize",
    "learned step sizes",
    "no step size to choose",
    "made for changing streams",
    "schedule, or told of changes",
]
Range: TypeAlias = tuple[float, float, Literal["log"]]
SearchSpace: TypeAlias = dict[str, Range | list[Any]]

LR: Range = (1e-5, 1e-1, "log")
DECOUPLED_DECAY = [0.0, 1e-3, 1e-2, 1e-1]  # multiplied by the step size
DECAY_OF_LARGE_STEPS = [0.0, 1e-4, 1e-3, 1e-2]  # likewise
DECAY_IN_GRADIENT = [0.0, 1e-4, 1e-3, 1e-2]
NOISE = [0.0, 1e-3, 1e-2, 1e-1]
INITIAL_DISTANCE: Range = (1e-8, 1e-4, "log")  # that D-Adaptation and Prodigy begin with
ON_A_BASE: SearchSpace = {"lr": LR, "weight_decay": DECOUPLED_DECAY}  # of a step size that is the base update's own


PIP_NAMES = {
    "gradient_descent_the_ultimate_optimizer": "gradient-descent-the-ultimate-optimizer",
    "lion_pytorch": "lion-pytorch",
    "mechanic_pytorch": "mechanic-pytorch",
    "pytorch_optimizer": "pytorch-optimizer",
    "schedulefree": "schedulefree",
}


class MissingPackageError(ImportError):
    """A learner's package is not installed; the message says how to install it."""

    def __init__(self, learner: str, module: str) -> None:
        super().__init__(
            f"the learner '{learner}' needs a package that is not installed: pip install {PIP_NAMES[module]} "
            f"(or, {how_to_install('peers')} for all optimizers of other packages)",
            name=module,
        )


@dataclass(frozen=True)
class LearnerSpec:
    """What is known of a learner: its row.

    Attributes:
        name: the learner's name, and that of the function in its file that makes it. A name that ends in ``_told``
            says that it hears of each new experience, by ``begin_experience()``.
        description: what it is, in a few words.
        family: kind of learner, by which figures and tables group them.
        space: where to look for good settings: option → ``(low, high, "log")`` for numbers between two bounds, uniform
            in their logarithm, or a list of values. It covers what is usually tried, for single samples, and holds the
            default. A text says why there is nothing to tune.
        paper: where the rule is from; empty for textbook rules and this package's own controls.
        fixed: step sizes are given from outside, not learned or estimated.
        on_a_base: likewise, by the option ``lr`` of a base update, so that the space depends on the option ``base``.
        entry_point: import path of the function, "package.module:name"; filled in.
    """

    name: str
    description: str
    family: Family
    space: SearchSpace | str
    paper: str = ""
    fixed: bool = False
    on_a_base: bool = False
    entry_point: str = ""


ROW = re.compile(r"^\w+ = (LearnerSpec\(\n.*?^\))", flags=re.MULTILINE | re.DOTALL)


def _rows() -> Iterator[LearnerSpec]:
    """The rows of this package's learners, in the order in which they are listed."""
    here = Path(__file__).parent
    for path in [here / "metaoptimize.py", *(p for folder in FOLDERS for p in sorted((here / folder).glob("*.py")))]:
        module = ".".join(path.relative_to(here).with_suffix("").parts)
        for row in ROW.findall(path.read_text(encoding="utf-8")):
            spec: LearnerSpec = eval(row)
            yield replace(spec, entry_point=f"continual_metaopt.optim.{module}:{spec.name}")


FOLDERS = ("controls", "peers", "packaged")
SPECS: Mapping[str, LearnerSpec] = {spec.name: spec for spec in _rows()}
LEARNERS: Registry[Any] = Registry("learner", entry_points="continual_metaopt.learners")
for _spec in SPECS.values():
    LEARNERS.add_lazily(_spec.name, _spec.entry_point, _spec.description)

register_learner = LEARNERS.register

TORCH_PREFIX = "torch:"
PYTORCH_OPTIMIZER_PREFIX = "pytorch_optimizer:"
TRAC = f"{PYTORCH_OPTIMIZER_PREFIX}TRAC"  # which is given another optimizer, and adapts a step size
ALIG = f"{PYTORCH_OPTIMIZER_PREFIX}AliG"  # which computes its step size from the loss
PREFIXES = (TORCH_PREFIX, PYTORCH_OPTIMIZER_PREFIX)
PLAIN_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "Literal": str}  # by names in annotations

# of base updates whose usual step sizes are others than those of Adam's kin; where they are larger, decays are smaller
SPACES_OF_BASES: Mapping[str, SearchSpace] = {
    "sgd": {"lr": (1e-4, 1e-1, "log"), "weight_decay": DECAY_OF_LARGE_STEPS},
    "sgdm": {"lr": (1e-5, 1e-2, "log"), "weight_decay": DECAY_OF_LARGE_STEPS},
    "lion": {"lr": (1e-6, 1e-2, "log")},
}

# what users ask for as if it were a learner: its name in torch.optim, and the options of "fixed" that do the same
BASES_BY_NAME = {
    "sgd": ("SGD", "base sgd"),
    "sgdm": ("SGD", "base sgdm"),
    "adam": ("Adam", "base adamw and weight_decay 0"),
    "adamw": ("AdamW", "base adamw"),
    "rmsprop": ("RMSprop", "base rmsprop"),
}

Made = TypeVar("Made")
STEP_SIZES = (
    'which parameters share a step size: "scalar", "blockwise", "layerwise", "tensor", or lists of name prefixes.'
)


def learner_of(
    optimizer_class: Callable[..., Made],
    step_sizes: str = "",
    *,
    blocks: str = "scalar",
    hidden: Sequence[str] = (),
    docs: Mapping[str, str] | None = None,
    **defaults: Any,
) -> Callable[..., Made]:
    """Make a learner's function ``(model, **options) -> Optimizer`` from an optimizer class.

    Options, their types, defaults and descriptions are those of the class, all by keyword. In place of ``params`` it
    takes the network, which ``blocks`` divides into param groups.

    Args:
        optimizer_class: its first argument is ``params``, or ``model`` with an option ``params``.
        step_sizes: default of an option ``step_sizes`` that says how the network is divided; empty for no such option.
        blocks: how the network is divided without that option.
        hidden: names of options of the class that the learner does not have.
        docs: descriptions that replace those of the class.
        **defaults: defaults that replace those of the class.

    Example:
        >>> import torch
        >>> from continual_metaopt.optim.peers.sps import SPS
        >>> learner_of(SPS, lr=0.5)(torch.nn.Linear(2, 1)).step_size_report()
        {'all': 0.5}
    """
    first, *others = inspect.signature(optimizer_class).parameters.values()
    kept = [p for p in others if p.name not in (*hidden, "params", "step_sizes")]
    options = {
        p.name: p.replace(
            kind=p.KEYWORD_ONLY, default=defaults.get(p.name, p.default), annotation=_without_objects(p.annotation)
        )
        for p in kept
    }

    def factory(model: "nn.Module", **given: Any) -> Made:
        from continual_metaopt.optim.blocks import blocks as groups_of

        unknown = given.keys() - signature.parameters.keys()
        if unknown:
            raise TypeError(f"{name}() got an unexpected keyword argument '{min(unknown)}'")
        groups = groups_of(model, given.pop("step_sizes", step_sizes or blocks))
        settings = {**defaults, **given}
        if first.name == "model":
            return optimizer_class(model, params=groups, **settings)
        return optimizer_class(groups, **settings)

    name = getattr(optimizer_class, "__name__", "")
    model = inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="nn.Module")
    if step_sizes:
        from continual_metaopt.optim.blocks import Granularity

        kind = Granularity | list[list[str]]
        options["step_sizes"] = inspect.Parameter("step_sizes", model.KEYWORD_ONLY, default=step_sizes, annotation=kind)
    signature = inspect.Signature([model, *options.values()], return_annotation=optimizer_class)
    factory.__signature__ = signature  # type: ignore[attr-defined]
    known = {**described_options(optimizer_class), "model": "the network.", "step_sizes": STEP_SIZES, **(docs or {})}
    summary = (inspect.getdoc(optimizer_class) or "").partition("\n")[0]
    factory.__doc__ = with_options(summary, {name: known[name] for name in ("model", *options)})
    factory.__name__ = factory.__qualname__ = name
    factory.__module__ = optimizer_class.__module__
    return factory


def _without_objects(annotation: Any) -> Any:
    """The part of a type that can be written in a file: "adamw", say, and not a configured ``AdamW(…)``."""
    parts = [part for part in get_args(annotation) if not getattr(part, "_is_protocol", False)]
    return annotation if len(parts) == len(get_args(annotation)) else Union[(*parts,)]


def make_optimizer(name: str, model: "nn.Module", **options: Any) -> "Optimizer":
    """Make a network's optimizer by name.

    Args:
        name: "metaoptimize", "fixed", "idbd" or another of ``LEARNERS``, "torch:NAME" for any optimizer of
            ``torch.optim``, "pytorch_optimizer:NAME" for any of the package pytorch-optimizer that is given parameters,
            or what a package or ``register_learner`` added.
        model: the network whose parameters are optimized.
        **options: settings of that optimizer.

    Raises:
        UnknownNameError: no such learner.
        MissingPackageError: the package that it is from is not installed.
        TypeError, ValueError: a setting that it does not have, or a value that does not fit.

    Example:
        >>> import torch
        >>> make_optimizer("fixed", torch.nn.Linear(2, 1), base="lion", lr=1e-4).step_size_report()
        {'all': 0.0001}
    """
    from continual_metaopt.optim.base import require_finite

    require_finite(options)
    optimizer: Optimizer = learner_factory(name)(model, **options)
    return optimizer


def learner_factory(name: str) -> Any:
    """Find the function ``(model, **options) -> Optimizer`` of a learner.

    Raises:
        UnknownNameError: no such learner.
        MissingPackageError: the package that it is from is not installed.
    """
    try:
        return _factory_by_prefix(*name.split(":", 1)) if name.startswith(PREFIXES) else _factory_by_name(name)
    except ModuleNotFoundError as error:
        if error.name not in PIP_NAMES:
            raise
        raise MissingPackageError(name, error.name) from error


def _factory_by_name(name: str) -> Any:
    try:
        return LEARNERS[name]
    except UnknownNameError:
        base = name.lower().replace("-", "").replace("_", "")
        if base in BASES_BY_NAME:
            torch_name, setting = BASES_BY_NAME[base]
            raise UnknownNameError(
                f"there is no learner '{name}': write fixed with {setting} for this update with fixed step sizes, or "
                f"{TORCH_PREFIX}{torch_name} for PyTorch's own optimizer"
            ) from None
        names = [*LEARNERS, *(f"{prefix}NAME" for prefix in PREFIXES)]
        raise UnknownNameError(unknown_name("learner", name, names)) from None


def _factory_by_prefix(prefix: str, name: str) -> Any:
    """A learner's factory for an optimizer of torch.optim or pytorch_optimizer, with its plain options as signature."""
    module = importlib.import_module("torch.optim" if f"{prefix}:" == TORCH_PREFIX else prefix)
    if f"{prefix}:{name}" == TRAC:
        return LEARNERS["trac"]
    known = [key for key, value in vars(module).items() if _takes_parameters(value)]
    if name not in known:
        raise UnknownNameError(unknown_name(f"optimizer in {module.__name__}", name, known))
    optimizer_class = getattr(module, name)

    def factory(model: "nn.Module", **options: Any) -> "Optimizer":
        from continual_metaopt.optim.blocks import blocks

        given = {option: _with_tuples(value) for option, value in options.items() if option not in no_limits or value}
        optimizer: Any = optimizer_class(blocks(model, "scalar"), **given)
        if f"{prefix}:{name}" == ALIG:
            optimizer.wants_loss = True
        return cast("Optimizer", optimizer)

    parameters = [
        parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=_plain_type(parameter))
        for parameter in inspect.signature(optimizer_class).parameters.values()
        if type(parameter.default) in (bool, int, float, str, tuple, type(None))
    ]
    no_limits = {parameter.name for parameter in parameters if parameter.default in (math.inf, -math.inf)}
    factory.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(default=None) if parameter.name in no_limits else parameter for parameter in parameters]
    )
    return factory


def _plain_type(parameter: inspect.Parameter) -> Any:
    """The type of an option whose values can be written in a file: as declared, or else as that of its default."""
    default, words = parameter.default, re.findall(r"\w+", str(parameter.annotation))
    declared = [kind for name, kind in PLAIN_TYPES.items() if name in words]
    if default is None:
        return Union[(*(declared or [bool]), None)]
    if isinstance(default, tuple):
        number: Any = int | float | None if any(isinstance(part, int) for part in default) else float | None
        return tuple[number, ...]
    if type(default) is int:
        return float if float in declared else int if declared else int | float
    return float | None if default in (math.inf, -math.inf) else type(default)


def _with_tuples(value: Any) -> Any:
    """A value with tuples in place of the lists that files have."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _takes_parameters(value: Any) -> bool:
    """Whether something is an optimizer that is given parameters, rather than a network or another optimizer."""
    import torch

    optimizer_class = torch.optim.Optimizer
    if not (isinstance(value, type) and issubclass(value, optimizer_class) and value is not optimizer_class):
        return False
    return next(iter(inspect.signature(value).parameters), None) == "params"


def learns_step_sizes(name: str, options: dict[str, Any]) -> bool:
    """Tell whether a learner adapts its step sizes, as opposed to having them fixed from outside.

    What is named with a prefix counts as fixed, but for TRAC, since only "lr" is known of it.
    """
    fixed = options.get("meta_lr") == 0 or "lr" not in options.get("learn", ["lr"])
    by_prefix = name.startswith(PREFIXES) and name != TRAC
    return not (by_prefix or fixed or (name in SPECS and (SPECS[name].fixed or SPECS[name].on_a_base)))


def family_of(name: str) -> str | None:
    """Give the kind of a learner that has a row; None of others."""
    return SPECS[name].family if name in SPECS else None


def is_told(name: str) -> bool:
    """Tell whether a learner hears where experiences begin, by ``begin_experience()``; its name says so."""
    return name.endswith("_told")


def known_of_the_stream(name: str, n_samples: int, batch_size: int = 1) -> dict[str, int]:
    """Give what a learner wants to know of the stream: those of the two numbers that its function takes.

    Args:
        name: the learner.
        n_samples: length of the stream.
        batch_size: number of samples that are learned from at once.

    Raises:
        UnknownNameError: no such learner.

    Example:
        >>> known_of_the_stream("cosine", 1000), known_of_the_stream("fixed", 1000)
        ({'n_samples': 1000, 'batch_size': 1}, {})
    """
    taken = inspect.signature(learner_factory(name)).parameters
    known = {"n_samples": n_samples, "batch_size": batch_size}
    return {key: value for key, value in known.items() if key in taken}


class NoSearchSpaceError(ValueError):
    """Nobody has said where to look for settings of a learner."""


def nothing_to_tune(name: str) -> str:
    """Say why a learner has no setting to tune; empty if it may have one."""
    return str(SPECS[name].space) if name in SPECS and isinstance(SPECS[name].space, str) else ""


def search_space(name: str, base: str | None = None) -> SearchSpace:
    """Say where to look for good settings of a learner, so that all are tuned alike.

    Args:
        name: the learner, as for ``make_optimizer``.
        base: its base update, if it is given one.

    Returns:
        Option → ``(low, high, "log")`` for numbers between two bounds, uniform in their logarithm, or a list of values;
        empty for a learner with nothing to tune. Optimizers named ``…:NAME`` get two decades on either side of their
        default ``lr``, and weight decays where they take one. A package's learner declares its own by an attribute
        ``search_space`` of the function that makes it.

    Raises:
        UnknownNameError: no such learner.
        NoSearchSpaceError: it has none; the message says what to do.

    Example:
        >>> search_space("fixed")["lr"]
        (1e-05, 0.1, 'log')
        >>> search_space("fixed", base="lion")["lr"]
        (1e-06, 0.01, 'log')
    """
    if name in SPECS:
        spec = SPECS[name]
        space = {} if isinstance(spec.space, str) else dict(spec.space)
        of_base = SPACES_OF_BASES.get(base or "", {}) if spec.on_a_base else {}
        return space | {option: values for option, values in of_base.items() if option in space}
    factory = learner_factory(name)
    if declared := getattr(factory, "search_space", None):
        return dict(declared)
    if ":" in name and (usual := _around_defaults(factory)):
        return usual
    raise NoSearchSpaceError(
        f"there is no search space for the learner '{name}': name ranges in the study, such as "
        "tune: {method: random, space: {lr: [1.0e-5, 1.0e-1, log]}}, "
        "or give the function that makes it an attribute search_space"
    )


def is_range(space: Range | Sequence[Any]) -> bool:
    """Tell whether an option of a search space is a number between two bounds, as opposed to one of several values."""
    return (
        len(space) == 3 and space[2] == "log" and all(isinstance(bound, int | float) for bound in (space[0], space[1]))
    )


def is_inside(space: Range | Sequence[Any], value: Any) -> bool:
    """Tell whether a value is one that an option of a search space can take."""
    if is_range(space):
        return isinstance(value, int | float) and bool(space[0] <= value <= space[1])
    return value in space


def _around_defaults(factory: Any) -> SearchSpace:
    defaults = {name: parameter.default for name, parameter in inspect.signature(factory).parameters.items()}
    space: SearchSpace = {}
    lr = defaults.get("lr")
    if isinstance(lr, int | float) and lr > 0:
        space["lr"] = (lr / 100, lr * 100, "log")
        if isinstance(defaults.get("weight_decay"), int | float):
            space["weight_decay"] = sorted({*DECAY_IN_GRADIENT, *DECOUPLED_DECAY, defaults["weight_decay"]})
    return space
