"""Avalanche plugins that are useful with any strategy."""

from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.utils import _at_task_boundary

from continual_metaopt.optim.dynamic_parameters import follow_parameters


class KeepOptimizerState(SupervisedPlugin):
    """Keeps what any optimizer has learned when Avalanche replaces or adds parameters, or trains for the first time.

    Avalanche drops the state of a parameter that it replaces (a growing head), drops all state at the first call of
    ``train``, leaves a head that grew during ``eval`` out of the optimizer, adds parameters that the optimizer was
    never given, such as frozen ones, and cannot place a new parameter where several groups are equally near. With this
    plugin moments, traces and step sizes carry over: the part of the state that overlaps with the new shape is kept.
    Parameters that were left out stay out. ``OnlineLearner`` does so by itself.

    Example:
        >>> import torch
        >>> from avalanche.models import IncrementalClassifier
        >>> from avalanche.training import Naive
        >>> model = IncrementalClassifier(64)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> strategy = Naive(model=model, optimizer=optimizer, plugins=[KeepOptimizerState()])
        >>> strategy.train_mb_size
        1
    """

    def __init__(self) -> None:
        super().__init__()
        self._n_lent = 0

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Say which parameters the optimizer knows, so that Avalanche does not start it anew."""
        if strategy.optimized_param_id is None:
            strategy.optimized_param_id = dict(strategy.model.named_parameters())

    before_eval = before_training  # since the network can grow in an evaluation that precedes all training

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Adapt the network to the experience just before Avalanche does, and let the optimizer follow it."""
        if _at_task_boundary(strategy.experience):
            strategy.model = strategy.model_adaptation()
            self._follow(strategy)
            # Avalanche places what the optimizer lacks, so for as long as it looks the optimizer lacks nothing
            groups = strategy.optimizer.param_groups
            known = {id(param) for group in groups for param in group["params"]}
            lent = [param for param in strategy.model.parameters() if id(param) not in known]
            groups[-1]["params"] += lent
            self._n_lent = len(lent)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take out again what the optimizer was not given."""
        params = strategy.optimizer.param_groups[-1]["params"]
        del params[len(params) - self._n_lent :]
        self._n_lent = 0

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Follow a network that grew while it was evaluated."""
        self._follow(strategy)

    def _follow(self, strategy: Any) -> None:
        new = dict(strategy.model.named_parameters())
        follow_parameters(strategy.optimizer, strategy.optimized_param_id, new)
        strategy.optimized_param_id = new
