"""Where to look for good settings of each learner, so that all are tuned alike.

A space covers what is usually tried, not everything that is possible, and holds the learner's default. Its step sizes
are for single samples. A package's learner declares its own by an attribute ``search_space`` of the function that makes
it.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from continual_metaopt.optim.registry import learner_factory

Range: TypeAlias = tuple[float, float, Literal["log"]]
SearchSpace: TypeAlias = dict[str, Range | list[Any]]

_LR: Range = (1e-5, 1e-1, "log")
_DECOUPLED_DECAY = [0.0, 1e-3, 1e-2, 1e-1]  # multiplied by the step size
_DECAY_OF_LARGE_STEPS = [0.0, 1e-4, 1e-3, 1e-2]  # likewise
_DECAY_IN_GRADIENT = [0.0, 1e-4, 1e-3, 1e-2]
_NOISE = [0.0, 1e-3, 1e-2, 1e-1]
_INITIAL_DISTANCE: Range = (1e-8, 1e-4, "log")  # that D-Adaptation and Prodigy begin with

SEARCH_SPACES: Mapping[str, SearchSpace] = {
    "metaoptimize": {"lr": (1e-6, 1e-2, "log"), "meta_lr": (1e-3, 1e-1, "log"), "weight_decay": _DECOUPLED_DECAY},
    "fixed": {"lr": _LR, "weight_decay": _DECOUPLED_DECAY},
    "fixed_per_block": {"lr": _LR, "weight_decay": _DECOUPLED_DECAY},
    "idbd": {"lr": (1e-3, 1e-1, "log"), "meta_lr": (1e-4, 1e-1, "log")},
    "autostep": {"lr": (1e-4, 1e-1, "log"), "meta_lr": (1e-4, 1e-1, "log")},
    "idbd_network": {"lr": (1e-5, 1e-1, "log"), "meta_lr": (1e-4, 1e-1, "log")},
    "sgd_hd": {"lr": _LR, "meta_lr": (1e-8, 1e-3, "log"), "weight_decay": _DECAY_IN_GRADIENT},
    "adam_hd": {"lr": (1e-5, 1e-2, "log"), "meta_lr": (1e-10, 1e-5, "log"), "weight_decay": _DECAY_IN_GRADIENT},
    "idbd_rmsprop": {"lr": (1e-5, 1e-2, "log"), "meta_lr": (1e-4, 1e-1, "log")},
    "meta_mirror_descent": {"lr": _LR, "meta_lr": (1e-5, 1e-1, "log"), "weight_decay": _DECAY_IN_GRADIENT},
    "exponentiated_gradient": {"lr": _LR, "gain_lr": (1e-4, 1e-1, "log"), "scale_lr": (1e-5, 1e-2, "log")},
    "sps": {"lr": (1e-3, 1e1, "log"), "c": [0.2, 0.5, 1.0, 2.0, 5.0]},
    "obgd": {"kappa": (0.1, 3.0, "log")},  # its bound always holds here, so that lr does nothing
    "upgd": {
        "lr": (1e-5, 3e-2, "log"),
        "weight_decay": [0.0, 1e-4, 1e-3, 1e-2],
        "beta_utility": [0.9, 0.99, 0.999, 0.9999],
        "sigma": _NOISE,
    },
    "l2_init": {"lr": _LR, "pull": (1e-5, 1e-1, "log")},
    "shrink_and_perturb": {"lr": _LR, "weight_decay": _DECOUPLED_DECAY, "sigma": _NOISE},
    "weight_clipping": {"lr": _LR, "bound": [1.0, 2.0, 3.0, 5.0], "weight_decay": _DECOUPLED_DECAY},
    "cosine": {"lr": _LR, "weight_decay": _DECOUPLED_DECAY},
    "cosine_restarts_told": {"lr": _LR, "weight_decay": _DECOUPLED_DECAY},
    "reinitialised_told": {"lr": _LR, "weight_decay": _DECOUPLED_DECAY},
    "continual_backprop": {"lr": _LR, "replacement_rate": [1e-6, 1e-5, 1e-4], "weight_decay": _DECOUPLED_DECAY},
    "aruba_told": {"lr": (1e-3, 1.0, "log"), "zeta": [0.1, 1.0, 10.0]},
    "adamw_lion_package": {
        "lr": (1e-6, 1e-2, "log"),
        "meta_lr": (1e-4, 1e-2, "log"),
        "gamma": [0.99, 0.999, 0.9999, 1.0],
        "weight_decay": _DECOUPLED_DECAY,
    },
    "glocal": {"lr": (1e-6, 1e-2, "log"), "meta_lr": (1e-2, 1.0, "log"), "window": [20, 50, 100]},
    "dog": {"reps_rel": (1e-6, 1e-2, "log"), "weight_decay": _DECAY_IN_GRADIENT},
    "ldog": {"reps_rel": (1e-6, 1e-2, "log"), "weight_decay": _DECAY_IN_GRADIENT},
    "prodigy": {"d_coef": [0.25, 0.5, 1.0, 2.0, 4.0], "d0": _INITIAL_DISTANCE, "weight_decay": _DECOUPLED_DECAY},
    "dadapt_sgd": {"d0": _INITIAL_DISTANCE, "weight_decay": _DECAY_IN_GRADIENT},
    "dadapt_adam": {"d0": _INITIAL_DISTANCE, "weight_decay": _DECAY_IN_GRADIENT},
    "dadapt_adagrad": {"d0": _INITIAL_DISTANCE, "weight_decay": _DECAY_IN_GRADIENT},
    "mechanic": {"lr": (1e-3, 1e1, "log"), "s_init": (1e-10, 1e-4, "log")},
    "trac": {"lr": (1e-5, 1e-1, "log"), "s_prev": (1e-10, 1e-4, "log")},
    "schedulefree_sgd": {"lr": (1e-3, 1e1, "log"), "momentum": [0.9, 0.95, 0.98]},
    "schedulefree_adamw": {"lr": _LR, "weight_decay": _DECOUPLED_DECAY},
    "lion": {"lr": (1e-6, 1e-2, "log"), "weight_decay": _DECOUPLED_DECAY},
    "gdtuo": {"lr": (1e-5, 1e-2, "log"), "meta_lr": (1e-10, 1e-5, "log")},
}

# of base updates whose usual step sizes are others than those of Adam's kin; where they are larger, decays are smaller
SPACES_OF_BASES: Mapping[str, SearchSpace] = {
    "sgd": {"lr": (1e-4, 1e-1, "log"), "weight_decay": _DECAY_OF_LARGE_STEPS},
    "sgdm": {"lr": (1e-5, 1e-2, "log"), "weight_decay": _DECAY_OF_LARGE_STEPS},
    "lion": {"lr": (1e-6, 1e-2, "log")},
}
# learners whose step size is their base update's own
ON_A_BASE = (
    "fixed",
    "fixed_per_block",
    "l2_init",
    "shrink_and_perturb",
    "weight_clipping",
    "cosine",
    "cosine_restarts_told",
    "reinitialised_told",
    "continual_backprop",
)

NOTHING_TO_TUNE: Mapping[str, str] = {
    "vsgd": "it estimates its step sizes; what it has beside are lengths of its start",
    "cocob": "it has no step size",
    "replayed_step_sizes": "its step sizes are those of another run",
}


class NoSearchSpaceError(ValueError):
    """Nobody has said where to look for settings of a learner."""


def search_space(name: str, base: str | None = None) -> SearchSpace:
    """Where to look for good settings of a learner.

    Args:
        name: of the learner, as for ``make_optimizer``.
        base: its base update, if it is given one.

    Returns:
        Option → ``(low, high, "log")`` for numbers between two bounds, uniform in their logarithm, or a list of values;
        empty for a learner with nothing to tune. Optimizers named ``…:NAME`` get two decades on either side of their
        default ``lr``, and weight decays where they take one.

    Raises:
        UnknownNameError: no such learner.
        NoSearchSpaceError: it has none; the message says what to do.

    Example:
        >>> search_space("fixed")["lr"]
        (1e-05, 0.1, 'log')
        >>> search_space("fixed", base="lion")["lr"]
        (1e-06, 0.01, 'log')
    """
    if name in NOTHING_TO_TUNE:
        return {}
    if name in SEARCH_SPACES:
        space = dict(SEARCH_SPACES[name])
        of_base = SPACES_OF_BASES.get(base or "", {}) if name in ON_A_BASE else {}
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
    """Whether an option of a search space is a number between two bounds, as opposed to one of several values."""
    return (
        len(space) == 3 and space[2] == "log" and all(isinstance(bound, int | float) for bound in (space[0], space[1]))
    )


def is_inside(space: Range | Sequence[Any], value: Any) -> bool:
    """Whether a value is one that an option of a search space can take."""
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
            space["weight_decay"] = sorted({*_DECAY_IN_GRADIENT, *_DECOUPLED_DECAY, defaults["weight_decay"]})
    return space
