"""Permuted inputs: the same images in every experience, their pixels permuted anew."""

import numpy as np

from streams.images import ImageSource
from streams.input_changes import PixelPermutations
from streams.plan import PERMUTATIONS, SAMPLE_ORDER, plan_of, random_state
from streams.stream import ImagePlan, image_stream


@image_stream(
    "permuted_inputs v1",
    changes="the places of the pixels",
    when="with every experience",
    length="n_experiences × samples_per_experience, or × all images",
    head="one output for each class of the source",
)
def permuted_inputs(
    images: ImageSource,
    seed: int,
    *,
    n_experiences: int = 10,
    samples_per_experience: int | None = None,
) -> ImagePlan:
    """Every experience permutes the pixels in a new way; labels stay.

    Each experience is one pass over the source's images in a new order, all channels of an image permuted alike. An
    image under a new permutation is a new input.

    Args:
        images: of the source.
        seed: decides the permutations and the order of samples.
        n_experiences: number of permutations.
        samples_per_experience: use only this many images in each experience; None for all.

    Raises:
        ValueError: an option's value is out of range.
    """
    if n_experiences < 1:
        raise ValueError(f"n_experiences must be at least 1, not {n_experiences}")
    if samples_per_experience is not None and samples_per_experience < 1:
        raise ValueError(f"samples_per_experience must be at least 1, not {samples_per_experience}")
    _, height, width = images.input_shape
    permutations = [random_state(seed, PERMUTATIONS, i).permutation(height * width) for i in range(n_experiences)]
    train, test = [], []
    for i in range(n_experiences):
        index = random_state(seed, SAMPLE_ORDER, i).permutation(len(images.train.y))[:samples_per_experience]
        train.append((index, images.train.y[index], i))
        test.append((np.arange(len(images.test.y)), images.test.y, i))
    return ImagePlan(plan_of(train), plan_of(test), len(images.classes), PixelPermutations(permutations))
