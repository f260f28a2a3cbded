"""MetaOptimize as an Avalanche strategy."""

import inspect
from typing import Any

from torch import nn

from continual_metaopt.learner.online_learner import OnlineLearner
from continual_metaopt.optim.metaoptimize import metaoptimize
from continual_metaopt.streams.signatures import described_options, with_options

_LEARNER_OPTIONS = {
    name: parameter
    for name, parameter in inspect.signature(OnlineLearner).parameters.items()
    if name not in ("model", "optimizer")
}
# what users of Avalanche's other strategies may give
_OF_OTHER_STRATEGIES = {
    "optimizer": "it makes its own; for another one use OnlineLearner(model=…, optimizer=…)",
    "train_mb_size": "samples come one by one, or write batch_size=…",
    "train_epochs": "each sample is predicted and then learned once; the stream multi_epoch shows it again",
}


class MetaOptimizeStrategy(OnlineLearner):
    """Learns with MetaOptimize on any Avalanche stream: an ``OnlineLearner`` that makes its own optimizer.

    Args:
        model: the network.
        **options: those of MetaOptimize, and those of ``OnlineLearner`` but the optimizer.

    Raises:
        TypeError: an option that neither has.
        ValueError: settings are out of range, or do not go together.

    Example:
        >>> from continual_metaopt import MetaOptimizeStrategy
        >>> from continual_metaopt.networks.linear import LinearModel
        >>> from continual_metaopt.streams import make_stream
        >>> benchmark = make_stream("permuted_inputs", n_experiences=2, samples_per_experience=300)
        >>> model = LinearModel(n_outputs=10, input_shape=(1, 8, 8))
        >>> strategy = MetaOptimizeStrategy(model=model, lr=1e-3, engine="torch")
        >>> _ = strategy.train(benchmark.train_stream)
        >>> round(strategy.online_accuracy, 2)
        0.63
    """

    def __init__(self, *, model: nn.Module, **options: Any) -> None:
        for name, advice in _OF_OTHER_STRATEGIES.items():
            if name in options:
                raise TypeError(f"MetaOptimizeStrategy has no option {name}: {advice}")
        own = {name: options.pop(name) for name in [*options] if name in _LEARNER_OPTIONS}
        super().__init__(model=model, optimizer=metaoptimize(model, **options), **own)


_model, *_optimizer_options = inspect.signature(metaoptimize).parameters.values()
_parameters = [_model.replace(kind=_model.KEYWORD_ONLY), *_optimizer_options, *_LEARNER_OPTIONS.values()]
_descriptions = described_options(metaoptimize) | described_options(OnlineLearner)
_self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
MetaOptimizeStrategy.__init__.__signature__ = inspect.Signature([_self, *_parameters])  # type: ignore[attr-defined]
MetaOptimizeStrategy.__doc__ = with_options(
    inspect.getdoc(MetaOptimizeStrategy) or "", {one.name: _descriptions[one.name] for one in _parameters}
)
