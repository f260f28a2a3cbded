"""Learning in portions, without Avalanche's callbacks: one class per engine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from continual_metaopt.engines import torch_engine
from continual_metaopt.engines.observations import Observations
from continual_metaopt.engines.torch_engine import Differentiate
from continual_metaopt.learner.choosing import Learning
from continual_metaopt.learner.loading import SampleLoader, first_batch

if TYPE_CHECKING:
    from continual_metaopt.engines.compiled.engine import CompiledEngine

# predicts a mini-batch, computes its gradients, and lets metrics look at both; returns output and loss
Watch = Callable[[Differentiate, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class TorchPortions:
    """Learns from portions of the mini-batches (inputs, targets) that are left, by autograd or a traced graph."""

    learning: Learning
    update: Callable[..., Any]
    differentiate: Differentiate
    samples: Iterator[tuple[Tensor, Tensor]]
    record_every: int

    def learn(self, observations: Observations, at_most: int) -> bool:
        """Learn from at most so many samples; returns whether there may be more."""
        return torch_engine.learn(
            *self.learning, self.samples, observations, self.record_every, self.update, at_most, self.differentiate
        )

    def learn_watched(self, observations: Observations, watch: Watch) -> None:
        """Learn from one mini-batch, after letting metrics look at it and at its gradients."""
        x, y = next(self.samples)
        output, loss = watch(self.differentiate, x, y)
        _, optimizer, criterion = self.learning
        torch_engine.observe(
            observations, optimizer, criterion, output, y, loss, self.record_every, self.update, len(y)
        )


@dataclass
class CompiledPortions:
    """Learns from portions of samples by compiled code.

    Attributes:
        first: number of the sample that comes next in the data set.
        end: number of samples that are to be learned from.
        take_inputs: given the inputs that were learned from, if anybody wants them.
    """

    learning: Learning
    engine: "CompiledEngine"
    dataset: Any
    first: int
    end: int
    record_every: int
    take_inputs: Callable[[Tensor], None] | None

    def learn(self, observations: Observations, at_most: int) -> bool:
        """Learn from at most so many samples; returns whether there may be more."""
        n_before, at_most = len(observations), min(at_most, self.end - self.first)
        self.engine.learn(self.dataset, self.first, observations, self.record_every, at_most, self.take_inputs)
        self.first += len(observations) - n_before
        return self.first < self.end

    def learn_watched(self, observations: Observations, watch: Watch) -> None:
        """Learn from one mini-batch, after letting metrics look at it and at the gradients that autograd computes."""
        batch_size = self.engine.learner.batch_size
        x, y, *_ = first_batch(SampleLoader(self.dataset, self.first, batch_size))
        watch(partial(torch_engine.by_autograd, *self.learning), x, y)
        self.learning[0].zero_grad()
        self.learn(observations, 1)
