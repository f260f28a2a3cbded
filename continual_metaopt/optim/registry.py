"""Learners by name: an optimizer and its settings, for configurations and the command line."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from continual_metaopt.optim.summaries import geometric_mean
from streams.registry import Registry, UnknownNameError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

LEARNERS: Registry[Any] = Registry("learner", entry_points="continual_metaopt.learners")
LEARNERS.add_lazily(
    "metaoptimize", "continual_metaopt.optim.learners:metaoptimize", "MetaOptimize: step sizes learned online"
)
LEARNERS.add_lazily("fixed", "continual_metaopt.optim.learners:fixed", "a base update with a fixed step size")
LEARNERS.add_lazily("idbd", "continual_metaopt.optim.learners:idbd", "IDBD, for linear models and squared error")
LEARNERS.add_lazily(
    "autostep", "continual_metaopt.optim.learners:autostep", "Autostep, for linear models and squared error"
)
LEARNERS.add_lazily(
    "idbd_network", "continual_metaopt.optim.learners:idbd_network", "IDBD for networks, a step size for each weight"
)
LEARNERS.add_lazily("sgd_hd", "continual_metaopt.optim.learners:sgd_hd", "SGD with hypergradient descent")
LEARNERS.add_lazily("adam_hd", "continual_metaopt.optim.learners:adam_hd", "Adam with hypergradient descent")


def _add(name: str, module: str, description: str) -> None:
    LEARNERS.add_lazily(name, f"continual_metaopt.optim.{module}:{name}", description)


_add("idbd_rmsprop", "idbd_rmsprop", "IDBD with RMSProp as base update, a step size for each weight")
_add("meta_mirror_descent", "meta_mirror_descent", "SGD with mirror descent of the step size")
_add(
    "exponentiated_gradient",
    "exponentiated_gradient",
    "SGD with momentum; a scale, and a gain for each weight, by exponentiated gradients",
)
_add("sps", "sps", "SGD with stochastic Polyak step sizes")
_add("vsgd", "vsgd", "vSGD: step sizes from mean, variance and curvature of each weight's gradient")
_add("cocob", "cocob", "COCOB: coin betting, without step sizes")
_add("obgd", "obgd", "ObGD: gradient descent with a bound on overshooting")
_add("adamw_lion_package", "adamw_lion_package", "MetaOptimize with AdamW and Lion as its authors' package has it")
_add("upgd", "upgd", "UPGD: perturbed gradient descent that leaves useful weights alone")
_add("l2_init", "l2_init", "a base update with a pull towards the initial weights")
_add("shrink_and_perturb", "shrink_and_perturb", "a base update whose steps also shrink weights and add noise")
_add("weight_clipping", "weight_clipping", "a base update with weights clipped to the range of their initial values")
_add("continual_backprop", "continual_backprop", "a base update, after which hidden units of little use are replaced")
_add("aruba_told", "aruba", "ARUBA: a step size for each weight from past experiences, of which it is told")
_add("cosine", "schedules", "a base update with warm-up and a cosine over the stream's length")
_add("cosine_restarts_told", "schedules", "a base update with a cosine anew at each experience, of which it is told")

GIVEN_STEP_SIZES = (
    "fixed", "upgd", "l2_init", "shrink_and_perturb", "weight_clipping", "continual_backprop", "cosine",
    "cosine_restarts_told",
)  # fmt: skip

TORCH_PREFIX = "torch:"

register_learner = LEARNERS.register


def make_optimizer(name: str, model: "nn.Module", **options: Any) -> "Optimizer":
    """Make a network's optimizer by name.

    Args:
        name: "metaoptimize", "fixed", "idbd" or another of ``LEARNERS``, "torch:NAME" for any optimizer of
            ``torch.optim``, or what a package or ``register_learner`` added.
        model: the network whose parameters are optimized.
        **options: settings of that optimizer.

    Raises:
        UnknownNameError: no such learner.
        TypeError, ValueError: a setting that it does not have, or a value that does not fit.

    Example:
        >>> make_optimizer("fixed", torch.nn.Linear(2, 1), base="lion", lr=1e-4).step_size_report()
        {'all': 0.0001}
    """
    optimizer: Optimizer = learner_factory(name)(model, **options)
    return optimizer


def learner_factory(name: str) -> Any:
    """The function ``(model, **options) -> Optimizer`` of a learner.

    Raises:
        UnknownNameError: no such learner.
    """
    if name.startswith(TORCH_PREFIX):
        return _torch_factory(name.removeprefix(TORCH_PREFIX))
    if name not in list(LEARNERS):
        raise UnknownNameError(unknown_name("learner", name, [*LEARNERS, f"{TORCH_PREFIX}NAME"]))
    return LEARNERS[name]


def _torch_factory(name: str) -> Any:
    """A learner's factory for an optimizer of ``torch.optim``, with the signature of its plain options."""
    import torch

    known = [key for key, value in vars(torch.optim).items() if _is_optimizer(value)]
    if name not in known:
        raise UnknownNameError(unknown_name("optimizer in torch.optim", name, known))
    optimizer_class = getattr(torch.optim, name)

    def factory(model: "nn.Module", **options: Any) -> "Optimizer":
        from continual_metaopt.optim.blocks import blocks

        optimizer: Optimizer = optimizer_class(blocks(model, "scalar"), **options)
        return optimizer

    plain = {bool: bool, int: float, float: float, tuple: tuple[float | None, ...], type(None): bool | None}
    parameters = [
        parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=plain[type(parameter.default)])
        for parameter in inspect.signature(optimizer_class).parameters.values()
        if type(parameter.default) in plain
    ]
    factory.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return factory


def _is_optimizer(value: Any) -> bool:
    import torch

    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer


def learns_step_sizes(name: str, options: dict[str, Any]) -> bool:
    """Whether a learner adapts its step sizes, as opposed to having them fixed from outside."""
    fixed = options.get("meta_lr") == 0 or "lr" not in options.get("learn", ["lr"])
    return not (name in GIVEN_STEP_SIZES or name.startswith(TORCH_PREFIX) or fixed)


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


def wants_graph(optimizer: "Optimizer") -> bool:
    """Whether an optimizer differentiates the loss again, so that ``backward`` must not free its graph."""
    return bool(getattr(optimizer, "wants_graph", False))


def closure_for(optimizer: "Optimizer", loss: "Tensor", output: Any) -> Callable[[], Any] | None:
    """The closure for ``optimizer.step`` after a forward pass, and a backward pass unless it ``wants_graph``.

    Returns:
        One that returns (loss, output) with their graph, or the loss as a number, where the optimizer asks for it by
        an attribute ``wants_graph`` or ``wants_loss``; None for the others.
    """
    if wants_graph(optimizer):
        return lambda: (loss, output)
    if getattr(optimizer, "wants_loss", False):
        return lambda: loss.item()
    return None


def step_sizes_of(optimizer: "Optimizer") -> dict[str, float]:
    """Current step size of each block of any optimizer: what it reports itself, or "lr" of its param groups.

    Where a block holds many step sizes, it is their geometric mean.
    """
    return {name: geometric_mean(value) for name, value in reported_step_sizes(optimizer).items()}


def reported_step_sizes(optimizer: "Optimizer") -> dict[str, Any]:
    """As ``step_sizes_of``, but with all step sizes, in a tensor, where a block holds many."""
    report = getattr(optimizer, "step_size_report", None)
    if report is not None:
        reported: dict[str, Any] = report()
        return reported
    return step_sizes_of_groups(optimizer)


def step_sizes_of_groups(optimizer: "Optimizer") -> dict[str, float]:
    """What "lr" is in each param group of any optimizer, by the group's name."""
    return {
        str(group.get("name", f"group{index}")): float(group["lr"])
        for index, group in enumerate(optimizer.param_groups)
    }
