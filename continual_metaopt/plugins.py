"""Avalanche plugins that are useful with any strategy."""

from typing import Any

import streams.quiet_avalanche  # noqa: F401

from avalanche.training.plugins import SupervisedPlugin

from continual_metaopt.optim.dynamic_parameters import follow_parameters


class KeepOptimizerState(SupervisedPlugin):
    """Keeps what any optimizer has learned when Avalanche replaces or adds parameters, or trains for the first time.

    Avalanche drops the state of a parameter that it replaces (a growing head), drops all state at the first call of
    ``train``, leaves a head that grew during ``eval`` out of the optimizer, and cannot place a new parameter where
    several groups are equally near. With this plugin moments, traces and step sizes carry over: the part of the state
    that overlaps with the new shape is kept. ``OnlineLearner`` does so by itself.

    Example:
        >>> from avalanche.models import IncrementalClassifier
        >>> from avalanche.training import Naive
        >>> model = IncrementalClassifier(64)
        >>> strategy = Naive(
        ...     model=model, optimizer=torch.optim.Adam(model.parameters()), plugins=[KeepOptimizerState()]
        ... )
    """

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Say which parameters the optimizer knows, so that Avalanche does not start it anew."""
        if strategy.optimized_param_id is None:
            strategy.optimized_param_id = dict(strategy.model.named_parameters())

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Adapt the network to the experience just before Avalanche does, and let the optimizer follow it."""
        strategy.model = strategy.model_adaptation()
        self._follow(strategy)

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Follow a network that grew while it was evaluated."""
        if strategy.optimized_param_id is not None:
            self._follow(strategy)

    def _follow(self, strategy: Any) -> None:
        new = dict(strategy.model.named_parameters())
        follow_parameters(strategy.optimizer, strategy.optimized_param_id, new)
        strategy.optimized_param_id = new
