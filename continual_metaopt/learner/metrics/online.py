"""Avalanche metrics of online learning: accuracy and loss before each update, and what the optimizer goes through."""

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.benchmarks.scenarios import OnlineCLExperience
from avalanche.evaluation.metric_definitions import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor
from torch.optim import Optimizer

from continual_metaopt.engines.observations import Observations
from continual_metaopt.learner.metrics.inside import norm, numbers
from continual_metaopt.optim.protocol import step_sizes_of

MAX_PENDING = 1000


def online_metrics(
    *,
    every: int = 100,
    window: int = 1000,
    accuracy: bool = True,
    loss: bool = True,
    sliding_accuracy: bool = True,
    step_sizes: bool = True,
    meta_gradients: bool = True,
    trace_cosines: bool = False,
    trace_norms: bool = False,
) -> list[PluginMetric]:
    """Make metrics of learning online, for the evaluation plugin of any Avalanche strategy.

    Values come at the iterations 0, ``every``, 2 ``every``, …, counted over the whole stream: x is the strategy's
    ``clock.train_iterations``, the number of iterations before. Accuracies and losses at x are those of the
    predictions in the x iterations before, all of them made before the update that learned from them. Step size, meta
    gradient, cos(h, g) and ``|h|`` at x are those of the update in iteration x: its step size, its gradient g, and the
    trace h before it changes. Accuracies, losses and step sizes come at the end of every epoch as well. No name
    contains task or experience, so that each quantity of each block is one curve.

    What an optimizer does not have is left out: step sizes exist for all, meta gradients and traces for MetaOptimize,
    from its second update on. Targets that are not labels have no accuracy.

    What Avalanche's loggers show: ``TensorboardLogger`` and ``WandBLogger`` everything, with one group per quantity and
    one curve per block; ``TextLogger`` and ``InteractiveLogger``, at the end of an epoch, the last values in it;
    ``CSVLogger``, which has a column for the accuracy and for the loss of an epoch and none for anything else, those of
    the predictions within that epoch, which are values of Avalanche's own kind and name.

    Args:
        every: distance between values, in iterations.
        window: number of predictions, the last ones, that the sliding accuracy is about.
        accuracy: share of right predictions so far, and within each epoch.
        loss: mean loss of the predictions so far, and within each epoch.
        sliding_accuracy: share of right predictions among the last ``window``, or among all while they are fewer.
        step_sizes: step size of each block.
        meta_gradients: surrogate meta gradient of each block, as ``MetaOptimize.meta_gradient_report``.
        trace_cosines: cos(h, g) of each block.
        trace_norms: Euclidean norm ``|h|`` of each block.

    Returns:
        The metrics, to be given to ``EvaluationPlugin`` as they are.

    Raises:
        ValueError: ``every`` or ``window`` is less than 1.

    Example:
        >>> from avalanche.logging import TextLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> evaluator = EvaluationPlugin(online_metrics(every=50), loggers=[TextLogger()])
        >>> len(evaluator.metrics)
        5
    """
    metrics: list[tuple[bool, Callable[[int], PluginMetric]]] = [
        (accuracy, OnlineAccuracy),
        (loss, OnlineLoss),
        (sliding_accuracy, partial(SlidingAccuracy, window=window)),
        (step_sizes, StepSize),
        (meta_gradients, MetaGradient),
        (trace_cosines, TraceCosine),
        (trace_norms, TraceNorm),
    ]
    return [make(every) for wanted, make in metrics if wanted]


class OnlineMetric(PluginMetric):
    """Publishes its values at a fixed distance on the global step axis.

    A class that can ``take_in`` iterations that passed without callbacks says so: ``class Mine(OnlineMetric,
    without_callbacks=True)``. Its subclasses say it anew, since they may have other callbacks.

    Args:
        every: distance between values, in iterations.

    Attributes:
        is_recorded: whether an ``OnlineLearner``'s recorder gets the values as well, if it can ``measure``.

    Raises:
        ValueError: ``every`` is less than 1.
    """

    without_callbacks = False

    def __init_subclass__(cls, without_callbacks: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.without_callbacks = without_callbacks

    def __init__(self, every: int = 100) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, but is {every}")
        self.every = every
        self.is_recorded = False
        self._published: tuple[int, dict[str, float]] | None = None

    def __str__(self) -> str:
        return type(self).__name__

    def result(self) -> Any:
        """The last published values, by name."""
        return dict(self._published[1]) if self._published else {}

    def reset(self) -> None:
        """Forget everything; Avalanche itself never asks for it."""
        self._published = None

    def free_iterations(self, strategy: Any) -> int:
        """How many iterations can pass from now on until this metric has to be asked again."""
        return self.every - strategy.clock.train_iterations % self.every

    def needs_gradients(self, strategy: Any) -> bool:
        """Whether the coming iteration's sample and gradients have to be there before its update."""
        return False

    def take_in(self, observations: Observations) -> None:
        """Take in samples that were learned from without callbacks."""

    def state(self) -> dict[str, Any]:
        """What is needed to go on later, as plain containers of tensors and numbers."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with a ``state``."""

    def _is_due(self, strategy: Any) -> bool:
        return bool(strategy.clock.train_iterations % self.every == 0)

    def _publish(self, strategy: Any, values: Mapping[str, float]) -> list[MetricValue] | None:
        """Values, by what comes before the first part that ``get_metric_name`` adds, for the loggers."""
        x = strategy.clock.train_iterations
        # the end of an epoch and the beginning of the next are the same x
        if not values or self._published == (x, values):
            return None
        self._published = (x, dict(values))
        measure = getattr(getattr(strategy, "recorder", None), "measure", None)
        if self.is_recorded and measure is not None:
            step = strategy.step  # x counts mini-batches, records count samples
            measure([(step, *self._described(name), float(value)) for name, value in values.items()])
        return [
            MetricValue(self, get_metric_name(name, strategy, add_task=False), value, x)
            for name, value in values.items()
        ]

    def _described(self, name: str) -> tuple[str, str | None, str]:
        """Quantity, block and statistic of a published value, for the record."""
        quantity, _, block = name.partition("/")
        return re.sub(r"(?<!^)(?=[A-Z])", "_", quantity).lower(), block or None, "value"


class UpdateMetric(OnlineMetric):
    """A metric of single updates, those of the iterations at which its values are due."""

    reads_gradients = True

    def free_iterations(self, strategy: Any) -> int:
        """One where the values are due, since they are those of a single update."""
        return 1 if self._is_due(strategy) else super().free_iterations(strategy)

    def needs_gradients(self, strategy: Any) -> bool:
        """Whether the values are due, and take gradients."""
        return self.reads_gradients and self._is_due(strategy)


class PredictionMetric(OnlineMetric):
    """A mean over the predictions that were made while training, each before the update that learned from it.

    What is known of a prediction stays on its device until a value is due, because each transfer takes long.
    """

    epoch_name: str | None = None
    """Avalanche's name for the mean over an epoch, if that is published too."""

    def __init__(self, every: int = 100) -> None:
        super().__init__(every)
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        self._n = 0
        self._total = 0.0
        self._before_epoch = (0, 0.0)
        self._pending: list[tuple[Tensor, int]] = []
        self._scored: tuple[Tensor | None, int] | None = None  # in this iteration

    def result(self) -> float | None:
        """The mean over all predictions so far; None before the first."""
        self._settle()
        return self._total / self._n if self._n else None

    def before_training_epoch(self, strategy: Any) -> None:
        """Remember where the epoch begins."""
        if not is_piece(strategy.experience):
            self._settle()
            self._before_epoch = (self._n, self._total)

    def before_training_iteration(self, strategy: Any) -> list[MetricValue] | None:
        """Publish the mean over the iterations before, if it is due."""
        return self._publish(strategy, self._values()) if self._is_due(strategy) else None

    def after_backward(self, strategy: Any) -> None:
        """Score the predictions of this iteration, which Avalanche clears where a plugin evaluates after the update."""
        self._scored = self._score(strategy)

    def after_training_iteration(self, strategy: Any) -> None:
        """Note the predictions of this iteration, which are from before its update."""
        scores, n = self._scored or self._score(strategy)  # some strategies have no callback after a backward pass
        self._scored = None
        if scores is not None:
            self._pending.append((scores, n))
            if len(self._pending) >= MAX_PENDING:
                self._settle()

    def after_training_epoch(self, strategy: Any) -> list[MetricValue] | None:
        """Publish the mean over all iterations so far and the one over the epoch."""
        if is_piece(strategy.experience):
            return None
        published = self._publish(strategy, self._values()) or []
        n, total = self._n - self._before_epoch[0], self._total - self._before_epoch[1]
        if self.epoch_name is not None and n:
            name = get_metric_name(self.epoch_name, strategy)
            published.append(MetricValue(self, name, total / n, strategy.clock.train_iterations))
        return published

    def take_in(self, observations: Observations) -> None:
        """Take in samples that were learned from without callbacks."""
        self._settle()
        scores = [score for score in self._observed(observations) if score is not None]
        self._take_in(scores, [1] * len(scores))

    def _observed(self, observations: Observations) -> Sequence[float | None]:
        """Scores of observed predictions, None for what has no score."""
        raise NotImplementedError

    def _values(self) -> dict[str, float]:
        value = self.result()
        return {} if value is None else {str(self): value}

    def _score(self, strategy: Any) -> tuple[Tensor | None, int]:
        """Scores of the iteration's predictions, and the size of the iteration."""
        return self._scores(strategy), len(strategy.mb_y)

    def _scores(self, strategy: Any) -> Tensor | None:
        """Scores of the iteration's predictions, one each or their mean; None if they have none."""
        raise NotImplementedError

    def _settle(self) -> None:
        """Take in the scores that are pending."""
        if self._pending:
            pending, self._pending = self._pending, []
            values = torch.cat([scores for scores, _ in pending]).tolist()
            self._take_in(values, [n for _, n in pending])

    def _take_in(self, scores: list[Any], sizes: list[int]) -> None:
        """Add to the mean: ``scores`` of all predictions, or their means in iterations of these sizes."""
        self._n += len(scores)
        self._total += sum(scores)


class OnlineAccuracy(PredictionMetric, without_callbacks=True):
    """Prequential accuracy: the share of right predictions so far, named ``Top1_Acc_Online``.

    The share within each epoch comes as well, under the name of Avalanche's ``EpochAccuracy``, whose value it is.
    """

    epoch_name: str | None = "Top1_Acc_Epoch"

    def __str__(self) -> str:
        return "Top1_Acc_Online"

    def _scores(self, strategy: Any) -> Tensor | None:
        return _are_correct(strategy)

    def _observed(self, observations: Observations) -> Sequence[float | None]:
        return observations.correct


class OnlineLoss(PredictionMetric, without_callbacks=True):
    """Prequential loss: the mean loss of the predictions so far, named ``Loss_Online``.

    The mean within each epoch comes as well, under the name of Avalanche's ``EpochLoss``, whose value it is.
    """

    epoch_name = "Loss_Epoch"

    def __str__(self) -> str:
        return "Loss_Online"

    def _scores(self, strategy: Any) -> Tensor | None:
        loss: Tensor = strategy.loss.detach().reshape(1)
        return loss

    def _observed(self, observations: Observations) -> Sequence[float | None]:
        return observations.loss

    def _take_in(self, scores: list[Any], sizes: list[int]) -> None:
        self._n += sum(sizes)
        self._total += sum(mean * n for mean, n in zip(scores, sizes, strict=True))


class SlidingAccuracy(OnlineAccuracy, without_callbacks=True):
    """Accuracy of the last predictions, named ``Top1_Acc_Window1000`` for a window of 1,000.

    Args:
        window: number of predictions; all so far while they are fewer.

    Raises:
        ValueError: ``every`` or ``window`` is less than 1.
    """

    epoch_name = None

    def __init__(self, every: int = 100, window: int = 1000) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, but is {window}")
        self.window = window
        super().__init__(every)

    def __str__(self) -> str:
        return f"Top1_Acc_Window{self.window}"

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        self._last: deque[bool] = deque(maxlen=self.window)

    def _take_in(self, scores: list[Any], sizes: list[int]) -> None:
        self._last.extend(scores)
        self._n, self._total = len(self._last), sum(self._last)


class BlockMetric(OnlineMetric):
    """A quantity that each block has, with the block's name as part of the metric's.

    A subclass has ``_measure``, and says at which callback it is asked: "before_training_iteration", "before_update" or
    "after_update".
    """

    asked = "before_update"

    def __init_subclass__(cls, asked: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.asked = asked or cls.asked

    def result(self) -> dict[str, float]:
        """The last published value of each block."""
        return {name.removeprefix(f"{self}/"): float(value) for name, value in super().result().items()}

    def before_training_iteration(self, strategy: Any) -> list[MetricValue] | None:
        """Publish the values, if they are due then."""
        return self._publish_due(strategy, "before_training_iteration")

    def before_update(self, strategy: Any) -> list[MetricValue] | None:
        """Publish the values, if they are due then."""
        return self._publish_due(strategy, "before_update")

    def after_update(self, strategy: Any) -> list[MetricValue] | None:
        """Publish the values, if they are due then."""
        return self._publish_due(strategy, "after_update")

    def _publish_due(self, strategy: Any, callback: str) -> list[MetricValue] | None:
        return self._publish_blocks(strategy) if callback == self.asked and self._is_due(strategy) else None

    def _publish_blocks(self, strategy: Any) -> list[MetricValue] | None:
        values = self._measure(strategy)
        return self._publish(strategy, {f"{self}/{block}": Readable(value) for block, value in values.items()})

    def _measure(self, strategy: Any) -> dict[str, float]:
        """The quantity of each block that has it."""
        raise NotImplementedError


class StepSize(BlockMetric, without_callbacks=True):
    """Step size of each block in the update that is about to be made, named ``StepSize/BLOCK``."""

    def after_training_epoch(self, strategy: Any) -> list[MetricValue] | None:
        """Publish the step sizes that the epoch ended with."""
        return None if is_piece(strategy.experience) else self._publish_blocks(strategy)

    def _measure(self, strategy: Any) -> dict[str, float]:
        return _step_sizes(strategy.optimizer)


class MetaGradient(UpdateMetric, BlockMetric, asked="after_update", without_callbacks=True):
    """Surrogate meta gradient z of each block in the update that was just made, named ``MetaGradient/BLOCK``."""

    reads_gradients = False

    def _measure(self, strategy: Any) -> dict[str, float]:
        values: dict[str, float] = getattr(strategy.optimizer, "meta_gradient_report", dict)()
        return values


class TraceCosine(UpdateMetric, BlockMetric, without_callbacks=True):
    """Cosine of the angle between trace h and gradient g of each block, named ``TraceCosine/BLOCK``.

    A parameter without a gradient counts as one whose gradient is 0. Where h or g is 0 there is no angle and no value.
    """

    def _measure(self, strategy: Any) -> dict[str, float]:
        cosines = {}
        for block, pairs in _traces_and_gradients(strategy.optimizer).items():
            products = sum(numbers(torch.dot(h.flatten(), g.flatten()) for h, g in pairs if g is not None))
            lengths = norm(h for h, _ in pairs) * norm(g for _, g in pairs if g is not None)
            if lengths > 0:
                cosines[block] = min(max(products / lengths, -1.0), 1.0)  # rounding may lead beyond
        return cosines


class TraceNorm(UpdateMetric, BlockMetric, without_callbacks=True):
    """Euclidean norm |h| of the trace of each block, named ``TraceNorm/BLOCK``."""

    def _measure(self, strategy: Any) -> dict[str, float]:
        return {block: norm(h for h, _ in pairs) for block, pairs in _traces_and_gradients(strategy.optimizer).items()}


def works_without_callbacks(metric: Any) -> bool:
    """Whether a metric can ``take_in`` iterations that passed without callbacks."""
    return isinstance(metric, OnlineMetric) and metric.without_callbacks


class Readable(float):
    """A number that keeps its digits in Avalanche's text loggers, which print a step size of 1e-5 as "0.0000"."""

    def __format__(self, spec: str) -> str:
        return super().__format__(".4g" if spec == ".4f" else spec)


def is_piece(experience: Any) -> bool:
    """Whether this is one of the pieces into which Avalanche cuts an experience, often of a single sample.

    Their ends mean nothing, and values at each of them would be many.
    """
    return isinstance(experience, OnlineCLExperience)


def _are_correct(strategy: Any) -> Tensor | None:
    """Whether each prediction of the iteration is right, on its device; None if the targets are not labels."""
    output, target = strategy.mb_output, strategy.mb_y
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return None
    if target.is_floating_point() or output.dim() != target.dim() + 1:
        return None
    return (output.argmax(dim=1) == target).flatten()


def _step_sizes(optimizer: Optimizer) -> dict[str, float]:
    reports = hasattr(optimizer, "step_size_report")
    return step_sizes_of(optimizer) if reports or all("lr" in group for group in optimizer.param_groups) else {}


def _traces_and_gradients(optimizer: Optimizer) -> dict[str, list[tuple[Tensor, Tensor | None]]]:
    """Trace and gradient of each parameter that has a trace, in blocks as the optimizer reports its step sizes."""
    names, groups = list(_step_sizes(optimizer)), optimizer.param_groups
    blocks = getattr(optimizer, "blocks", None)
    if blocks is not None and len(names) == len(blocks()):
        parts = blocks()
    elif len(names) == 1:
        parts = [groups]
    elif len(names) == len(groups):
        parts = [[group] for group in groups]
    else:
        return {}
    traces: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
    for name, part in zip(names, parts, strict=True):
        for param in (param for group in part for param in group["params"]):
            # the state is a defaultdict, in which a look-up would leave an entry
            if param in optimizer.state and "trace" in optimizer.state[param]:
                traces.setdefault(name, []).append((optimizer.state[param]["trace"], param.grad))
    return traces
