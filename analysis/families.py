"""Kinds of learners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Kind of learner → names of learners, in the order in which kinds are listed. Others are of the last kind. Runs record
# the kind themselves; the names are for records from before they did, and for optimizers of other packages.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "fixed step size": ("fixed", "lion", "torch:", "pytorch_optimizer:"),
    "MetaOptimize": ("metaoptimize", "adamw_lion_package"),
    "learned step sizes": (
        "idbd",
        "autostep",
        "sgd_hd",
        "adam_hd",
        "meta_mirror_descent",
        "exponentiated_gradient",
        "glocal",
        "gdtuo",
    ),
    "no step size to choose": (
        "sps",
        "vsgd",
        "cocob",
        "obgd",
        "dog",
        "ldog",
        "dadapt_",
        "prodigy",
        "mechanic",
        "trac",
        "schedulefree_",
        "pytorch_optimizer:DAdapt",
        "pytorch_optimizer:Prodigy",
        "pytorch_optimizer:ScheduleFree",
        "pytorch_optimizer:TRAC",
    ),
    "made for changing streams": ("upgd", "l2_init", "shrink_and_perturb", "weight_clipping", "continual_backprop"),
    "schedule, or told of changes": ("cosine", "aruba_told", "reinitialised_told", "replayed_step_sizes"),
    "other": ("",),
}


def family_of_run(config: Mapping[str, Any]) -> str:
    """Give the kind of a run's learner, given its `config.json`: as recorded, or by its name in an old record."""
    return str(config.get("family") or family(config["learner"]["name"]))


def family(name: str) -> str:
    """The kind of a learner, a key of `FAMILIES`: the one whose entry is the longest beginning of the name."""
    beginnings = [(len(start), kind) for kind, starts in FAMILIES.items() for start in starts if name.startswith(start)]
    return max(beginnings, key=lambda beginning: beginning[0])[1]
