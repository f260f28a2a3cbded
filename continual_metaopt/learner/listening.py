"""Which plugins need each iteration's callbacks."""

from collections.abc import Callable
from typing import Any

from avalanche.evaluation.metric_definitions import GenericPluginMetric, PluginMetric
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base_sgd import PeriodicEval

ITERATION_CALLBACKS = (
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
)
PARTS_OF_ITERATION = ("_unpack_minibatch", "forward", "criterion", "backward", "optimizer_step")


def listens_to_iterations(plugin: Any, except_for: Callable[[Any], bool] = lambda plugin: False) -> bool:
    """Whether a plugin, metric or logger does anything at single training iterations.

    Avalanche's clock does not count, since the learner advances it by itself.

    Args:
        plugin: the plugin, metric or logger.
        except_for: says of it, or of a part of it, whether it does not count either.
    """
    if isinstance(plugin, Clock) or except_for(plugin):
        return False
    if isinstance(plugin, PeriodicEval):
        return plugin.eval_every > 0 and plugin.peval_mode == "iteration"
    if isinstance(plugin, EvaluationPlugin):
        return any(listens_to_iterations(part, except_for) for part in (*plugin.metrics, *plugin.loggers))
    silent: list[type] = [SupervisedPlugin, PluginMetric]
    if isinstance(plugin, GenericPluginMetric) and plugin._mode == "eval":
        silent.append(GenericPluginMetric)  # whose callbacks of training do nothing in this mode
    return any(
        hasattr(plugin, name)
        and getattr(getattr(plugin, name), "__func__", None) not in [getattr(base, name, None) for base in silent]
        for name in ITERATION_CALLBACKS
    )
