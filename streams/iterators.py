"""Samples from an iterator of any length, such as a generator or an environment, for a learner."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from continual_metaopt.streams.array_stream import ArraySamples
from continual_metaopt.streams.stream import ExperienceInfo, LearnerInfo, Stream, StreamInfo, fingerprint_of

DEFINITION = "iterator v1"


def stream_of(samples: Iterable[tuple[Any, Any]], portion: int = 1) -> Iterator[Any]:
    """Give ``OnlineLearner.train`` the samples of an iterator, which may never end.

    Samples are asked for when they are needed, and forgotten when they have been learned from. Learners that want the
    length of the stream, as the cosine does, cannot know it. What is recorded as an experience is a portion.

    Args:
        samples: pairs of an input, numbers of any shape, and a target: the number of a class, from 0 on, or floats for
            a regression.
        portion: number of samples that are asked for at once. With 1, the next sample may depend on what the learner
            has made of the last one; with 1,000 learning is much faster.

    Returns:
        An Avalanche experience for each portion.

    Raises:
        ValueError: ``portion`` is less than 1, or, when the samples are asked for, samples of a portion do not have
            equal shapes.

    Example:
        >>> import torch
        >>> from continual_metaopt import MLP, OnlineLearner
        >>> model = MLP(2, (3,))
        >>> learner = OnlineLearner(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        >>> _ = learner.train(stream_of(((k % 3, 1, 0), k % 2) for k in range(50)))
        >>> learner.n_samples
        50
    """
    if portion < 1:
        raise ValueError(f"portion must be at least 1, not {portion}")
    return _portions(iter(samples), portion)


def _portions(samples: Iterator[tuple[Any, Any]], portion: int) -> Iterator[Any]:
    from continual_metaopt.streams.benchmark import StreamBenchmark

    n_done = 0
    while pairs := list(islice(samples, portion)):
        x = np.stack([np.asarray(x, np.float32) for x, _ in pairs])
        y = np.stack([np.asarray(y) for _, y in pairs])
        classifies = y.dtype.kind in "biu"
        y = y.astype(np.int64) if classifies else y.reshape(len(y), -1).astype(np.float32)
        sizes = LearnerInfo(
            n_outputs=int(y.max()) + 1 if classifies else y.shape[1],
            input_shape=x.shape[1:],
            task="classification" if classifies else "regression",
            n_samples=len(x),
        )
        classes = np.unique(y).tolist() if classifies else []
        fingerprint = fingerprint_of(f"{DEFINITION}\n", [x.tobytes(), y.tobytes()])
        info = StreamInfo(
            DEFINITION, fingerprint, "an iterator", None, [ExperienceInfo(classes, n_done, len(x), 0)], sizes
        )
        everything, nothing = np.arange(len(x)), np.arange(0)
        stream = Stream(info, [ArraySamples(x, y, everything)], [ArraySamples(x, y, nothing)])
        experience = StreamBenchmark(stream).train_stream[0]
        experience.is_first_subexp = n_done == 0  # the iterator is one experience for learners that are told
        n_done += len(x)
        yield experience
