"""A continual-learning benchmark for optimizers, and MetaOptimize to be measured on it.

The public names are imported when first used, so that ``import continual_metaopt`` is quick.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continual_metaopt.learner.metrics.diagnostics import diagnostics as diagnostics
    from continual_metaopt.learner.metrics.online import online_metrics as online_metrics
    from continual_metaopt.learner.online_learner import OnlineLearner as OnlineLearner
    from continual_metaopt.learner.plugins import KeepOptimizerState as KeepOptimizerState
    from continual_metaopt.learner.strategy import MetaOptimizeStrategy as MetaOptimizeStrategy
    from continual_metaopt.networks import register_network as register_network
    from continual_metaopt.networks.lenet import LeNet as LeNet
    from continual_metaopt.networks.mlp import MLP as MLP
    from continual_metaopt.networks.paper_cnn import PaperCNN as PaperCNN
    from continual_metaopt.networks.resnet18 import ResNet18 as ResNet18
    from continual_metaopt.networks.vit_tiny import ViTTiny as ViTTiny
    from continual_metaopt.optim.base_names import register_base_update as register_base_update
    from continual_metaopt.optim.blocks import blocks as blocks
    from continual_metaopt.optim.metaoptimize import MetaOptimize as MetaOptimize
    from continual_metaopt.optim.registry import make_optimizer as make_optimizer
    from continual_metaopt.optim.registry import register_learner as register_learner
    from continual_metaopt.study.comparing import compare as compare

    __version__: str

_HOMES = {
    "KeepOptimizerState": "continual_metaopt.learner.plugins",
    "LeNet": "continual_metaopt.networks.lenet",
    "MLP": "continual_metaopt.networks.mlp",
    "MetaOptimize": "continual_metaopt.optim.metaoptimize",
    "MetaOptimizeStrategy": "continual_metaopt.learner.strategy",
    "OnlineLearner": "continual_metaopt.learner.online_learner",
    "PaperCNN": "continual_metaopt.networks.paper_cnn",
    "ResNet18": "continual_metaopt.networks.resnet18",
    "ViTTiny": "continual_metaopt.networks.vit_tiny",
    "blocks": "continual_metaopt.optim.blocks",
    "compare": "continual_metaopt.study.comparing",
    "diagnostics": "continual_metaopt.learner.metrics.diagnostics",
    "make_optimizer": "continual_metaopt.optim.registry",
    "online_metrics": "continual_metaopt.learner.metrics.online",
    "register_base_update": "continual_metaopt.optim.base_names",
    "register_learner": "continual_metaopt.optim.registry",
    "register_network": "continual_metaopt.networks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("continual-metaopt")
    if name not in _HOMES:
        raise AttributeError(f"module 'continual_metaopt' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
