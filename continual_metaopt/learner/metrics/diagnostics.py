"""Avalanche metrics of what happens inside a network while it learns; ``inside`` holds the mathematics.

Each diagnostic has its row, its name and what it measures, above its class; options, names in files and on the command
line come from there.
"""

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import torch
from avalanche.evaluation.metric_results import MetricValue
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from continual_metaopt.engines.observations import MAX_SAMPLES
from continual_metaopt.engines.torch_engine import accuracy
from continual_metaopt.engines.undisturbed import undisturbed
from continual_metaopt.learner.metrics import inside as d
from continual_metaopt.learner.metrics.names import NAMES
from continual_metaopt.learner.metrics.online import BlockMetric, OnlineMetric, TraceCosine, UpdateMetric, is_piece
from continual_metaopt.streams.signatures import described_options, with_options

_METRICS: dict[str, type[OnlineMetric]] = {}
_DESCRIPTIONS: dict[str, str] = {}


def diagnostic(name: str, description: str) -> Callable[[type], type]:
    """Add a row to the diagnostics that can be chosen by name; a class that measures several has several rows."""

    def add(metric: type) -> type:
        _METRICS[name], _DESCRIPTIONS[name] = metric, description
        return metric

    return add


def diagnostics(
    *,
    every: int = 1000,
    retention: Sequence[Any] | None = None,
    threshold: float = 0.01,
    probe: int = 256,
    **wanted: bool,
) -> list[OnlineMetric]:
    """Make metrics of what happens inside a network, for the evaluation plugin of any Avalanche strategy.

    They change nothing of what is learned, nor any random number, and never see a sample before the learner does.
    docs/diagnostics.md defines each and says what it costs. Values at x, the number of iterations before, come at the
    iterations 0, ``every``, 2 ``every``, …: those of weights, units and ranks from before the iteration's update,
    those of gradients and updates from the update itself. Blocks are the network's top-level children that have
    parameters, whatever the optimizer; those of cos(h, g) are the optimizer's.

    An ``OnlineLearner`` loses no speed between due iterations, whatever its engine. Its recorder gets the values as
    well if it has a method ``measure``.

    Args:
        every: distance between values, in iterations.
        retention: a stream whose i-th experience holds the held-out samples of the i-th one learned from, such as
            ``benchmark.test_stream``: for accuracy on past experiences, and forgetting, at the end of each; None for
            none.
        threshold: τ of dormant units; 0 for units that are never active.
        probe: number of samples, the last ones before the iteration, on which units and ranks are measured.
        **wanted: which of the others are measured; all unless told otherwise.

    Returns:
        The metrics, to be given to ``EvaluationPlugin`` as they are.

    Raises:
        ValueError: ``every`` or ``probe`` is less than 1, or ``threshold`` is negative.
        TypeError: unknown option.

    Example:
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> metrics = diagnostics(every=500, plasticity=False, trace_cosine=False)
        >>> [str(metric) for metric in metrics]
        ['Representation', 'WeightNorm', 'GradientNorm', 'DistanceFromInitialisation', 'UpdateRatio']
        >>> metrics[0].every
        500
    """
    unknown = wanted.keys() - {*NAMES}
    if unknown:
        raise TypeError(f"diagnostics() got an unexpected keyword argument '{min(unknown)}'")
    chosen: dict[type, list[str]] = {}
    for name in NAMES:
        if wanted.get(name, name != "retention" or retention is not None):
            chosen.setdefault(_METRICS[name], []).append(name)
    made: list[OnlineMetric] = []
    for metric, names in chosen.items():
        if metric is Representation:
            made.append(Representation(every, names, threshold=threshold, probe=probe))
        else:
            made.append(metric(retention if metric is Retention else every))
        made[-1].is_recorded = True
    return made


def named_diagnostics(names: Sequence[str], every: int, test_stream: Sequence[Any]) -> list[OnlineMetric]:
    """Make the metrics of the named diagnostics, and no others."""
    wanted = {name: name in names for name in NAMES if name != "retention"}
    return diagnostics(every=every, retention=test_stream if "retention" in names else None, **wanted)


@diagnostic("plasticity", "share of the loss that the update takes away on the samples that it learns from.")
class Plasticity(UpdateMetric, without_callbacks=True):
    """Share of the loss that the update takes away on the samples that it learns from, named ``Plasticity``.

    Both losses are of the network as in evaluation, so that dropout does not tell them apart.
    """

    def __init__(self, every: int = 1000) -> None:
        super().__init__(every)
        self._before: float | None = None

    def result(self) -> float | None:
        """The last published value."""
        return self._published[1].get(str(self)) if self._published else None

    def before_update(self, strategy: Any) -> None:
        """Measure the loss, if a value is due."""
        if self._is_due(strategy):
            self._before = self._loss(strategy)

    def after_update(self, strategy: Any) -> list[MetricValue] | None:
        """Measure the loss again, and publish the share that is gone."""
        before, self._before = self._before, None
        if before is None:
            return None
        return self._publish(strategy, {str(self): d.plasticity(before, self._loss(strategy))})

    def _loss(self, strategy: Any) -> float:
        with undisturbed(strategy.model):
            return float(strategy._criterion(strategy.forward(), strategy.mb_y))


@diagnostic("dormant_units", "share of dormant units of each block, and of all.")
@diagnostic("effective_rank", "of the last hidden layer's features.")
@diagnostic("stable_rank", "of the last hidden layer's features.")
class Representation(OnlineMetric, without_callbacks=True):
    """Dormant units and ranks of the last hidden layer, on the last samples that were seen.

    Named ``DormantUnits/BLOCK``, and ``DormantUnits`` for all units; ``EffectiveRank``; ``StableRank``.

    Raises:
        ValueError: ``every`` or ``probe`` is less than 1, or ``threshold`` is negative.
    """

    def __init__(
        self,
        every: int = 1000,
        readings: Sequence[str] = ("dormant_units", "effective_rank", "stable_rank"),
        *,
        threshold: float = 0.01,
        probe: int = 256,
    ) -> None:
        super().__init__(every)
        if probe < 1:
            raise ValueError(f"probe must be at least 1, but is {probe}")
        if threshold < 0:
            raise ValueError(f"threshold must not be negative, but is {threshold}")
        self.readings, self.threshold, self.probe = tuple(readings), threshold, probe
        self._seen: deque[Tensor] = deque()
        self._n_seen = 0

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self._seen, self._n_seen = deque(), 0

    def before_training_iteration(self, strategy: Any) -> list[MetricValue] | None:
        """Publish the values, if they are due, and note the samples of the iteration."""
        measurable = self._is_due(strategy) and self._seen and not is_multi_task_module(strategy.model)
        values = self._measure(strategy.model) if measurable else {}
        if strategy.mbatch is not None:
            self.take_inputs(strategy.mb_x)
        return self._publish(strategy, values)

    def take_inputs(self, inputs: Tensor) -> None:
        """Note samples [n, …] that the learner sees, without copying them."""
        self._seen.append(inputs.detach())
        self._n_seen += len(inputs)
        while self._n_seen - len(self._seen[0]) >= self.probe:
            self._n_seen -= len(self._seen.popleft())

    def state(self) -> dict[str, Any]:
        """What is needed to go on later."""
        return {"seen": self._last_inputs()} if self._seen else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with a ``state``."""
        self.reset()
        if "seen" in state:
            self.take_inputs(state["seen"])

    def _last_inputs(self) -> Tensor:
        device = self._seen[-1].device
        return torch.cat([inputs.to(device) for inputs in self._seen])[-self.probe :]

    def _measure(self, model: nn.Module) -> dict[str, float]:
        inputs = self._last_inputs().to(next(model.parameters()).device)
        seen = d.representation(model, inputs)
        values = {}
        if "dormant_units" in self.readings:
            for block, share in d.dormant_shares(seen.activity, self.threshold).items():
                values[f"DormantUnits/{block}" if block else "DormantUnits"] = share
        if seen.features is not None and len(self.readings) > ("dormant_units" in self.readings):
            singular_values = d.singular_values(seen.features)
            if "effective_rank" in self.readings:
                values["EffectiveRank"] = d.effective_rank(singular_values)
            if "stable_rank" in self.readings:
                values["StableRank"] = d.stable_rank(singular_values)
        return values


class NetworkMetric(BlockMetric):
    """A quantity of each block of the network."""

    def _measure(self, strategy: Any) -> dict[str, float]:
        measured = {block: self._measure_block(params) for block, params in d.parameter_blocks(strategy.model).items()}
        return {block: value for block, value in measured.items() if value is not None}

    def _measure_block(self, params: Mapping[str, nn.Parameter]) -> float | None:
        """The quantity of a block, given its parameters by name; None if it has none."""
        raise NotImplementedError


@diagnostic("weight_norm", "Euclidean norm of each block's weights.")
class WeightNorm(NetworkMetric, asked="before_training_iteration", without_callbacks=True):
    """Euclidean norm of each block's weights before the iteration's update, named ``WeightNorm/BLOCK``."""

    def _measure_block(self, params: Mapping[str, nn.Parameter]) -> float:
        return d.norm(params.values())


@diagnostic("gradient_norm", "and of its gradient.")
class GradientNorm(UpdateMetric, NetworkMetric, without_callbacks=True):
    """Euclidean norm of each block's gradient, as the optimizer gets it, named ``GradientNorm/BLOCK``."""

    def _measure_block(self, params: Mapping[str, nn.Parameter]) -> float | None:
        return d.norm(param.grad for param in params.values() if param.grad is not None)


@diagnostic("distance_from_initialisation", "Euclidean distance of each block's weights from those they began with.")
class DistanceFromInitialisation(NetworkMetric, asked="before_training_iteration", without_callbacks=True):
    """Euclidean distance of each block's weights from those it began with.

    Named ``DistanceFromInitialisation/BLOCK``. The beginning is the first call of ``train``; of weights that a network
    grows later, when they are first trained.
    """

    def __init__(self, every: int = 1000) -> None:
        super().__init__(every)
        self._initial: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forget where the weights began."""
        super().reset()
        self._initial = {}

    def before_training_exp(self, strategy: Any) -> None:
        """Note new weights."""
        for name, param in strategy.model.named_parameters():
            known = self._initial.get(name)
            if known is None or known.shape != param.shape:
                self._initial[name] = _with_known_part(param, known)

    def state(self) -> dict[str, Any]:
        """What is needed to go on later."""
        return dict(self._initial)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with a ``state``."""
        self._initial = dict(state)

    def _measure(self, strategy: Any) -> dict[str, float]:
        self.before_training_exp(strategy)
        return super()._measure(strategy)

    def _measure_block(self, params: Mapping[str, nn.Parameter]) -> float:
        return d.distance(params.values(), [self._initial[name].to(param.device) for name, param in params.items()])


@diagnostic("update_ratio", "norm of each block's update over that of its weights.")
class UpdateRatio(UpdateMetric, NetworkMetric, asked="after_update", without_callbacks=True):
    """Norm of each block's update over the norm of its weights before it, named ``UpdateRatio/BLOCK``.

    Blocks whose weights are all 0 have none.
    """

    def __init__(self, every: int = 1000) -> None:
        super().__init__(every)
        self._before: dict[str, Tensor] = {}

    def before_update(self, strategy: Any) -> None:
        """Copy the weights, if values are due."""
        if self._is_due(strategy):
            self._before = {name: param.detach().clone() for name, param in strategy.model.named_parameters()}

    def after_update(self, strategy: Any) -> list[MetricValue] | None:
        """Publish the ratios, if they are due."""
        values = super().after_update(strategy) if self._before else None
        self._before = {}
        return values

    def _measure_block(self, params: Mapping[str, nn.Parameter]) -> float | None:
        before = [self._before[name] for name in params]
        size = d.norm(before)
        return d.distance(params.values(), before) / size if size > 0 else None


diagnostic("trace_cosine", "cos(h, g) of each block of MetaOptimize.")(TraceCosine)


@diagnostic("retention", "accuracy on past experiences, and forgetting, at the end of each.")
class Retention(OnlineMetric, without_callbacks=True):
    """Accuracy on the held-out samples of past experiences at the end of each experience.

    Named ``Retention`` for the mean over past experiences, ``Retention/N`` for experience N (the one that has just
    ended included), and ``Forgetting`` for the mean over past experiences of their best accuracy at an earlier end
    minus the one now. Experiences that Avalanche cuts into pieces have no end, and no values.

    Args:
        test_stream: its i-th experience holds the held-out samples of the i-th one learned from.
    """

    def __init__(self, test_stream: Sequence[Any]) -> None:
        super().__init__()
        self.test_stream = test_stream
        self._best: dict[int, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"test_stream": []}  # checkpoints hold no data sets

    def reset(self) -> None:
        """Forget all accuracies."""
        super().reset()
        self._best = {}

    def free_iterations(self, strategy: Any) -> int:
        """As many as an engine likes."""
        return MAX_SAMPLES

    def after_training_exp(self, strategy: Any) -> list[MetricValue] | None:
        """Measure and publish the accuracies."""
        if is_piece(strategy.experience):
            return None
        last = strategy.experience.current_experience
        now = {
            number: accuracy(strategy.model, self.test_stream[number].dataset, strategy.device)
            for number in range(min(last + 1, len(self.test_stream)))
            if len(self.test_stream[number].dataset)
        }
        values = {f"Retention/{number}": share for number, share in now.items()}
        past = [number for number in now if number != last and number in self._best]
        if past:
            values["Retention"] = sum(now[number] for number in past) / len(past)
            values["Forgetting"] = d.forgetting([self._best[i] for i in past], [now[i] for i in past])
        self._best |= {number: max(share, self._best.get(number, share)) for number, share in now.items()}
        return self._publish(strategy, values)

    def state(self) -> dict[str, Any]:
        """What is needed to go on later."""
        return {str(number): share for number, share in self._best.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with a ``state``."""
        self._best = {int(number): share for number, share in state.items()}

    def _described(self, name: str) -> tuple[str, str | None, str]:
        quantity, number, statistic = super()._described(name)
        return (quantity, None, statistic) if number is None else (quantity, None, f"experience {number}")


def _with_known_part(param: Tensor, known: Tensor | None) -> Tensor:
    """A copy of a parameter, in which the part that was known before it grew is as it was known."""
    copy = param.detach().clone()
    if known is not None and known.dim() == copy.dim():
        part = tuple(slice(0, min(old, new)) for old, new in zip(known.shape, copy.shape, strict=True))
        copy[part] = known[part]
    return copy


_signature = inspect.signature(diagnostics)
_every, _retention, *_others, _ = _signature.parameters.values()
_options = [
    _every,
    *(_every.replace(name=name, default=True, annotation=bool) for name in NAMES if name != "retention"),
    _retention,
    *_others,
]
diagnostics.__signature__ = _signature.replace(parameters=_options)  # type: ignore[attr-defined]
diagnostics.__doc__ = with_options(
    inspect.getdoc(diagnostics) or "",
    {one.name: (_DESCRIPTIONS | described_options(diagnostics))[one.name] for one in _options},
)
