"""Permuted inputs: the same images in every experience, their pixels permuted anew."""

from pathlib import Path

import numpy as np

from streams.benchmark import StreamBenchmark, build_benchmark
from streams.plan import PERMUTATIONS, SAMPLE_ORDER, Stationary, plan_of, random_state
from streams.sources import SourceSpec, load_source

DEFINITION = "permuted_inputs v1"


def permuted_inputs(
    source: SourceSpec = "digits",
    *,
    n_experiences: int = 10,
    samples_per_experience: int | None = None,
    stationary: Stationary | None = None,
    seed: int = 0,
    data_root: str | Path = "data",
    skip_unreadable: bool = False,
) -> StreamBenchmark:
    """Every experience permutes the pixels in a new way; labels stay.

    Each experience is one pass over the source's images in a new order, all channels of an image permuted alike. An
    image under a new permutation is a new input.

    Args:
        source: see ``streams.sources.load_source``.
        n_experiences: number of permutations.
        samples_per_experience: use only this many images in each experience; None for all.
        stationary: None, "shuffled" or "repeat"; see ``streams.stationary``.
        seed: decides the permutations and the order of samples.
        data_root: folder of torchvision's files.
        skip_unreadable: go on without images that cannot be decoded.

    Raises:
        ValueError: an option's value is out of range.
    """
    if n_experiences < 1:
        raise ValueError(f"n_experiences must be at least 1, not {n_experiences}")
    if samples_per_experience is not None and samples_per_experience < 1:
        raise ValueError(f"samples_per_experience must be at least 1, not {samples_per_experience}")
    images = load_source(source, data_root, skip_unreadable)
    _, height, width = images.input_shape
    permutations = [random_state(seed, PERMUTATIONS, i).permutation(height * width) for i in range(n_experiences)]
    train, test = [], []
    for i in range(n_experiences):
        index = random_state(seed, SAMPLE_ORDER, i).permutation(len(images.train.y))[:samples_per_experience]
        train.append((index, images.train.y[index], i))
        test.append((np.arange(len(images.test.y)), images.test.y, i))
    return build_benchmark(
        DEFINITION,
        images,
        plan_of(train),
        plan_of(test),
        n_outputs=len(images.classes),
        seed=seed,
        stationary=stationary,
        permutations=permutations,
    )
