"""Learning from an iterator: as from a stream of the same samples, one portion after the other, and no further."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from continual_metaopt import MLP, OnlineLearner
from continual_metaopt.streams import make_stream, stream_of
from tests.continual_metaopt.conftest import exactly

X = np.random.RandomState(0).normal(size=(60, 4)).astype(np.float32)
CLASSES, NUMBERS = (X[:, 0] > 0).astype(int), X[:, :1] / 2


def learned(samples: Any, y: Any, engine: Any = "torch") -> OnlineLearner:
    torch.manual_seed(0)
    n_outputs, loss = (2, None) if y is CLASSES else (1, torch.nn.MSELoss())
    model = MLP(n_outputs, (4,), (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    learner = OnlineLearner(model=model, optimizer=optimizer, criterion=loss, engine=engine)
    learner.train(samples)
    return learner


@pytest.mark.parametrize("engine", ["torch", "compiled"])
@pytest.mark.parametrize("portion", [1, 7, 1000])
@pytest.mark.parametrize("y", [CLASSES, NUMBERS], ids=["classes", "numbers"])
def test_samples_of_an_iterator_are_learned_as_those_of_arrays(y: Any, portion: int, engine: Any) -> None:
    ours = learned(stream_of(zip(X, y, strict=True), portion), y, engine)
    theirs = learned(make_stream("array_stream", source=(X, y)).train_stream, y, engine)
    assert ours.n_samples == 60
    assert ours.n_correct == theirs.n_correct
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_an_environment_is_asked_only_when_its_sample_is_needed() -> None:
    """Each sample is of what the learner has made of the one before; the environment ends after 20."""
    model = MLP(2, (1,), (4,))
    learner = OnlineLearner(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

    def environment() -> Iterator[tuple[Any, int]]:
        for number in count():
            assert learner.n_samples == number
            if number == 20:
                return
            yield [number / 20], number % 2

    learner.train(stream_of(environment()))
    assert learner.n_samples == 20


def test_an_endless_generator_is_read_a_portion_at_a_time() -> None:
    asked = []

    def endless() -> Iterator[tuple[Any, int]]:
        for number in count():
            asked.append(number)
            yield [1.0], 0

    portions = stream_of(endless(), portion=5)
    assert len(next(portions).dataset) == 5
    assert asked == [0, 1, 2, 3, 4]


def test_a_portion_has_at_least_one_sample() -> None:
    with pytest.raises(ValueError, match=exactly("portion must be at least 1, not 0")):
        stream_of([], portion=0)


@pytest.mark.parametrize("portion", [1, 3])
def test_learners_that_are_told_are_told_once(portion: int) -> None:
    class Told(torch.optim.SGD):
        n_told = 0

        def begin_experience(self) -> None:
            self.n_told += 1

    model = MLP(2, (3,))
    optimizer = Told(model.parameters(), lr=0.1)
    learner = OnlineLearner(model=model, optimizer=optimizer, told=True)
    learner.train(stream_of([((k % 3, 1, 0), k % 2) for k in range(10)], portion))
    assert (optimizer.n_told, learner.n_samples) == (1, 10)
