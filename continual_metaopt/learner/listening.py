"""Which plugins need each iteration's callbacks."""

from collections.abc import Callable
from typing import Any

from avalanche.evaluation.metric_definitions import GenericPluginMetric, PluginMetric
from avalanche.models.utils import is_multi_task_module
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base_sgd import PeriodicEval

from continual_metaopt.learner.loading import SampleLoader

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


def why_callbacks(strategy: Any, plain: type, except_for: Callable[[Any], bool]) -> str | None:
    """Why Avalanche's callbacks have to run at each sample, or None if they need not.

    Args:
        plain: the class that can do without callbacks, unless a subclass has its own part of an iteration.
        except_for: tells metrics that do not count.
    """
    for name in (*PARTS_OF_ITERATION, *(f"_{callback}" for callback in ITERATION_CALLBACKS)):
        if getattr(getattr(strategy, name), "__func__", None) is not getattr(plain, name):
            return f"{type(strategy).__name__} has its own {name}()"
    if not isinstance(strategy.dataloader, SampleLoader):
        return "samples come through Avalanche's data loader"
    if is_multi_task_module(strategy.model):
        return "the network wants task labels"
    for plugin in strategy.plugins:
        if listens_to_iterations(plugin, except_for):
            return f"{type(plugin).__name__} listens to single iterations"
    return None


def listens_to_iterations(plugin: Any, except_for: Callable[[Any], bool] = lambda plugin: False) -> bool:
    """Whether a plugin, metric or logger does anything at single training iterations.

    Avalanche's clock does not count, since the learner advances it by itself, nor does what ``except_for`` tells.
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
