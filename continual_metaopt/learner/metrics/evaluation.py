"""What ``eval`` of a learner measures and prints unless another evaluator is given."""

from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

from avalanche.evaluation.metrics.accuracy import ExperienceAccuracy, StreamAccuracy
from avalanche.evaluation.metrics.loss import ExperienceLoss, StreamLoss
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin


def printing_evaluator() -> EvaluationPlugin:
    """Make an evaluator that measures accuracy and loss of each experience and of the stream, and prints them.

    Names are Avalanche's. It does nothing while the learner learns, so any engine can run. A regression has losses
    alone.

    Example:
        >>> [str(metric) for metric in printing_evaluator().metrics]
        ['Top1_Acc_Exp', 'Top1_Acc_Stream', 'Loss_Exp', 'Loss_Stream']
    """
    metrics = [_AccuracyOfExperience(), _AccuracyOfStream(), _LossOfExperience(), _LossOfStream()]
    return EvaluationPlugin(*metrics, loggers=[Printer()], collect_all=False)


class Printer(BaseLogger):
    """Prints each value of a metric, with its name, in a line."""

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Print a value."""
        print(f"{name} = {value:.4f}")


class _WhereThereAreSamples:
    """Leaves a value out where no sample has one, as Avalanche's metrics, which say 0 then, do not."""

    any_sample = False

    def update(self, strategy: Any) -> None:
        if self.counts(strategy):
            self.any_sample = True
            super().update(strategy)  # type: ignore[misc]

    def counts(self, strategy: Any) -> bool:
        return True

    def reset(self) -> None:
        self.any_sample = False
        super().reset()  # type: ignore[misc]

    def _package_result(self, strategy: Any) -> Any:
        return super()._package_result(strategy) if self.any_sample else None  # type: ignore[misc]


class _OfLabels(_WhereThereAreSamples):
    """Leaves out the targets of a regression, of which Avalanche's accuracy says that all are right."""

    def counts(self, strategy: Any) -> bool:
        return not strategy.mb_y.is_floating_point()


class _AccuracyOfExperience(_OfLabels, ExperienceAccuracy):
    pass


class _AccuracyOfStream(_OfLabels, StreamAccuracy):
    pass


class _LossOfExperience(_WhereThereAreSamples, ExperienceLoss):
    pass


class _LossOfStream(_WhereThereAreSamples, StreamLoss):
    pass
