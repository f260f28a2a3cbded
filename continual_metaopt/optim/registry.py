"""Learners by name: an optimizer and its settings, for configurations and the command line."""

import importlib
import inspect
import math
import re
from typing import TYPE_CHECKING, Any, Union, cast

from continual_metaopt.optim.packaged import PIP_NAMES, MissingPackageError
from continual_metaopt.streams.registry import Registry, UnknownNameError, unknown_name

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

LEARNERS: Registry[Any] = Registry("learner", entry_points="continual_metaopt.learners")
for _name, _module, _description in (
    ("metaoptimize", "learners", "MetaOptimize: step sizes learned online"),
    ("fixed", "controls.fixed", "a base update with a fixed step size"),
    ("fixed_per_block", "controls.fixed", "a base update with a fixed step size for each block"),
    ("idbd", "peers.idbd", "IDBD, for linear models and squared error"),
    ("autostep", "peers.autostep", "Autostep, for linear models and squared error"),
    ("idbd_network", "peers.idbd_network", "IDBD for networks, a step size for each weight"),
    ("sgd_hd", "peers.hypergradient", "SGD with hypergradient descent"),
    ("adam_hd", "peers.hypergradient", "Adam with hypergradient descent"),
    ("idbd_rmsprop", "peers.idbd_rmsprop", "IDBD with RMSProp as base update, a step size for each weight"),
    ("meta_mirror_descent", "peers.meta_mirror_descent", "SGD with mirror descent of the step size"),
    (
        "exponentiated_gradient",
        "peers.exponentiated_gradient",
        "SGD with momentum; step sizes by exponentiated gradients",
    ),
    ("sps", "peers.sps", "SGD with stochastic Polyak step sizes"),
    ("vsgd", "peers.vsgd", "vSGD: step sizes from mean, variance and curvature of each weight's gradient"),
    ("cocob", "peers.cocob", "COCOB: coin betting, without step sizes"),
    ("obgd", "peers.obgd", "ObGD: gradient descent with a bound on overshooting"),
    (
        "adamw_lion_package",
        "peers.adamw_lion_package",
        "MetaOptimize with AdamW and Lion as its authors' package has it",
    ),
    ("upgd", "peers.upgd", "UPGD: perturbed gradient descent that leaves useful weights alone"),
    ("l2_init", "peers.l2_init", "a base update with a pull towards the initial weights"),
    ("shrink_and_perturb", "peers.shrink_and_perturb", "a base update whose steps also shrink weights and add noise"),
    (
        "weight_clipping",
        "peers.weight_clipping",
        "a base update with weights clipped to the range of their initial values",
    ),
    (
        "continual_backprop",
        "peers.continual_backprop",
        "a base update, after which hidden units of little use are replaced",
    ),
    ("aruba_told", "peers.aruba", "ARUBA: a step size for each weight from past experiences, of which it is told"),
    (
        "reinitialised_told",
        "controls.reinitialised",
        "a base update; network or head begin anew at experiences it is told of",
    ),
    (
        "replayed_step_sizes",
        "controls.replayed_step_sizes",
        "a base update with the step sizes that another run has recorded",
    ),
    ("cosine", "controls.schedules", "a base update with warm-up and a cosine over the stream's length"),
    (
        "cosine_restarts_told",
        "controls.schedules",
        "a base update with a cosine anew at each experience, of which it is told",
    ),
    ("glocal", "peers.glocal", "step sizes learned from estimated global hypergradients"),
    ("dog", "packaged.distance_over_gradients", "DoG with iterate averaging (dog-optimizer)"),
    ("ldog", "packaged.distance_over_gradients", "LDoG, DoG for each tensor (dog-optimizer)"),
    ("prodigy", "packaged.prodigy", "Prodigy, Adam with an estimated step size (prodigyopt)"),
    ("dadapt_sgd", "packaged.d_adaptation", "SGD with D-Adaptation (dadaptation)"),
    ("dadapt_adam", "packaged.d_adaptation", "Adam with D-Adaptation (dadaptation)"),
    ("dadapt_adagrad", "packaged.d_adaptation", "AdaGrad with D-Adaptation (dadaptation)"),
    ("mechanic", "packaged.mechanic", "Mechanic around AdamW or SGD (mechanic-pytorch)"),
    ("trac", "packaged.trac", "TRAC around Adam, AdamW or SGD (pytorch-optimizer)"),
    ("schedulefree_sgd", "packaged.schedule_free", "schedule-free SGD (schedulefree)"),
    ("schedulefree_adamw", "packaged.schedule_free", "schedule-free AdamW (schedulefree)"),
    ("lion", "packaged.lion", "Lion with a fixed step size (lion-pytorch)"),
    ("gdtuo", "packaged.ultimate", "hyperparameters by automatic gradients (gradient-descent-the-ultimate-optimizer)"),
):
    LEARNERS.add_lazily(_name, f"continual_metaopt.optim.{_module}:{_name}", _description)

register_learner = LEARNERS.register

GIVEN_STEP_SIZES = (
    "fixed", "upgd", "l2_init", "shrink_and_perturb", "weight_clipping", "continual_backprop", "cosine",
    "cosine_restarts_told", "lion", "schedulefree_sgd", "schedulefree_adamw", "fixed_per_block", "reinitialised_told",
    "replayed_step_sizes",
)  # fmt: skip

TORCH_PREFIX = "torch:"
PYTORCH_OPTIMIZER_PREFIX = "pytorch_optimizer:"
TRAC = f"{PYTORCH_OPTIMIZER_PREFIX}TRAC"  # which is given another optimizer, and adapts a step size
ALIG = f"{PYTORCH_OPTIMIZER_PREFIX}AliG"  # which computes its step size from the loss
PREFIXES = (TORCH_PREFIX, PYTORCH_OPTIMIZER_PREFIX)
PLAIN_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "Literal": str}  # by names in annotations


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
        >>> make_optimizer("fixed", torch.nn.Linear(2, 1), base="lion", lr=1e-4).step_size_report()
        {'all': 0.0001}
    """
    from continual_metaopt.optim.weightwise import require_finite

    require_finite(options)
    optimizer: Optimizer = learner_factory(name)(model, **options)
    return optimizer


def learner_factory(name: str) -> Any:
    """The function ``(model, **options) -> Optimizer`` of a learner.

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
    """Whether a learner adapts its step sizes, as opposed to having them fixed from outside.

    What is named with a prefix counts as fixed, but for TRAC, since only "lr" is known of it.
    """
    fixed = options.get("meta_lr") == 0 or "lr" not in options.get("learn", ["lr"])
    by_prefix = name.startswith(PREFIXES) and name != TRAC
    return not (name in GIVEN_STEP_SIZES or by_prefix or fixed)


def is_told(name: str) -> bool:
    """Whether a learner is told where experiences begin, by ``begin_experience()``; its name says so."""
    return name.endswith("_told")


def known_of_the_stream(name: str, n_samples: int, batch_size: int = 1) -> dict[str, int]:
    """What a learner wants to know of the stream: those of ``n_samples`` and ``batch_size`` that its factory takes.

    Args:
        name: of the learner.
        n_samples: length of the stream.
        batch_size: samples that are learned from at once.

    Raises:
        UnknownNameError: no such learner.
    """
    taken = inspect.signature(learner_factory(name)).parameters
    known = {"n_samples": n_samples, "batch_size": batch_size}
    return {key: value for key, value in known.items() if key in taken}
