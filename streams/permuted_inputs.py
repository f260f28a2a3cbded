"""Permuted inputs: the same images in every experience, their pixels permuted anew."""

import functools

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.class_groups import ALL_CLASSES, draw_passes, plan_split
from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.input_changes import PixelPermutations
from continual_metaopt.streams.options import require_at_least_one
from continual_metaopt.streams.plan import PERMUTATIONS, SAMPLE_ORDER, in_passes, random_state
from continual_metaopt.streams.stream import ImagePlan, image_stream


@image_stream("permuted_inputs v1", changes="the places of the pixels", **ALL_CLASSES)
def permuted_inputs(
    images: ImageSource,
    seed: int,
    *,
    n_experiences: int = 10,
    n_permutations: int | None = None,
    samples_per_experience: int | None = None,
    continued: bool = False,
) -> ImagePlan:
    """Every experience permutes the pixels in a new way; labels stay.

    Each experience is one pass over the source's images in a new order, all channels of an image permuted alike. An
    image under a new permutation is a new input.

    Permuted MNIST has 800 experiences of all 60,000 images in the loss of plasticity experiments (Dohare et al., Nature
    2024), 500 of the same 10,000 images in those of L2 Init (arXiv 2308.11958), and 200 of 5,000 images, drawn anew for
    each, in UPGD's (Elsayed and Mahmood, ICLR 2024; ``samples_per_experience=5000``).

    Args:
        seed: decides the permutations and the order of samples.
        n_experiences: number of experiences.
        n_permutations: number of permutations, which come again in a cycle; None for a new one in each experience.
        samples_per_experience: use only this many images in each experience; None for all.
        continued: whether an experience goes on through the images where the one before stopped. No image then comes
            again, permuted or not, before all have come, in passes of new orders, and an experience may be longer than
            a pass. Otherwise each experience draws from all images, and is at most one pass.

    Example:
        >>> stream = permuted_inputs("digits", n_experiences=3, n_permutations=2)
        >>> [experience.n_seen_before for experience in stream.info.experiences]
        [0, 0, 1438]
    """
    n, n_images = samples_per_experience, len(images.train.y)
    require_at_least_one(n_experiences=n_experiences, n_permutations=n_permutations, samples_per_experience=n)
    n = n_images if n is None else n
    if continued:
        drawn = in_passes(np.arange(n_images), n_experiences * n, random_state(seed, SAMPLE_ORDER))
        indices = np.array_split(drawn, n_experiences)
    else:
        indices = draw_passes(images.train, n_experiences, min(n, n_images), seed)
    n_permutations = n_experiences if n_permutations is None else min(n_permutations, n_experiences)
    changes = [i % n_permutations for i in range(n_experiences)]
    _, height, width = images.input_shape
    permutations = PixelPermutations(functools.partial(_permutation, seed, height * width), n_permutations)
    train, test = plan_split(images.train, indices, changes=changes), plan_split(images.test, changes=changes)
    return ImagePlan(train, test, len(images.classes), permutations)


@functools.lru_cache(maxsize=64)  # neighbouring experiences, and those that come again
def _permutation(seed: int, n_pixels: int, number: int) -> NDArray[np.int64]:
    return random_state(seed, PERMUTATIONS, number).permutation(n_pixels)
