"""What tests of learners share: small streams of given samples, evaluators, plugins that listen, and comparisons."""

import warnings
from typing import Any

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from continual_metaopt.streams import make_stream


class Listening(SupervisedPlugin):
    """Makes a learner run all callbacks."""

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Do nothing."""


def stream_of(*experiences: tuple[Tensor, Tensor]) -> Any:
    """An Avalanche stream of experiences, each (inputs, targets)."""
    datasets = [
        AvalancheDataset(
            [TensorDataset(x, y)],
            data_attributes=[
                DataAttribute(y.tolist(), "targets"),
                DataAttribute([0] * len(y), "targets_task_labels", use_in_getitem=True),
            ],
        )
        for x, y in experiences
    ]
    return benchmark_from_datasets(train=datasets, test=datasets).train_stream


def noisy_images(n: int = 120) -> Any:
    """A stream of two experiences of n noisy images each, of four classes."""
    generator = np.random.RandomState(0)
    y = np.arange(2 * n) % 4
    x = (40 * y[:, None, None, None] + generator.randint(0, 80, (2 * n, 8, 8, 1))).astype(np.uint8)
    return make_stream(
        "class_split", source=(x, y, x[:4], y[:4]), classes_per_experience=2, labels="global"
    ).train_stream


def evaluator_of(*metrics: Any, loggers: Any = (), **options: Any) -> EvaluationPlugin:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        return EvaluationPlugin(*metrics, loggers=list(loggers), **options)


def weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
