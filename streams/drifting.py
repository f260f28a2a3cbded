"""Input drift: images that are turned, darkened or made noisy, a little more in every experience.

Rotated and noisy digits are old acquaintances of continual learning, mostly as few tasks that differ much (CapyMOA's
rotated MNIST, for one). Here the change grows in equal steps from nothing to a stated maximum. The more experiences,
the slower it is: 181 experiences of 500 samples turn images by one degree at a time.
"""

from collections.abc import Sequence

from continual_metaopt.streams.class_groups import ALL_CLASSES, draw_passes, plan_split
from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.input_changes import Brightness, InputChange, Noise, Rotation
from continual_metaopt.streams.options import require_at_least_one, require_between
from continual_metaopt.streams.stream import ImagePlan, image_stream


@image_stream(
    "drifting_rotation v1",
    changes="the angle of the images, from upright to a stated one",
    **ALL_CLASSES,
)
def drifting_rotation(
    images: ImageSource,
    seed: int,
    *,
    degrees: float = 180.0,
    n_experiences: int = 10,
    samples_per_experience: int | None = None,
) -> ImagePlan:
    """Every experience turns the images a little further about their centre; labels stay.

    Each experience is one pass over the source's images in a new order, all turned by one angle: the first not at all,
    the last by ``degrees``. What comes from outside of an image is black. "repeat" keeps images upright, "frozen" keeps
    the angle of the experience ``frozen_after``.

    Args:
        seed: decides the order of samples.
        degrees: angle of the last experience, counter-clockwise; negative for clockwise.
        n_experiences: number of angles.
        samples_per_experience: use only this many images in each experience; None for all.

    Example:
        >>> stream = drifting_rotation("digits", n_experiences=4)
        >>> [int(samples.change[0]) for samples in stream.train]  # hundredths of a degree
        [0, 6000, 12000, 18000]
    """
    require_between(-360, 360, degrees=degrees)
    angles = _levels(0, round(degrees * Rotation.STEPS_PER_DEGREE), n_experiences)
    return _drift(images, [k % Rotation.FULL_TURN for k in angles], samples_per_experience, seed, Rotation())


@image_stream(
    "drifting_brightness v1",
    changes="the brightness of the images, from their own to a stated factor",
    **ALL_CLASSES,
)
def drifting_brightness(
    images: ImageSource,
    seed: int,
    *,
    factor: float = 0.2,
    n_experiences: int = 10,
    samples_per_experience: int | None = None,
) -> ImagePlan:
    """Every experience shows the images a little darker, or brighter, than the one before; labels stay.

    Each experience is one pass over the source's images in a new order, all bytes multiplied by one factor: 1 in the
    first experience, ``factor`` in the last. What would be brighter than white is white. "repeat" keeps images as they
    are, "frozen" keeps the factor of the experience ``frozen_after``.

    Args:
        seed: decides the order of samples.
        factor: by which bytes are multiplied in the last experience: below 1 for darker, above for brighter.
        n_experiences: number of factors.
        samples_per_experience: use only this many images in each experience; None for all.

    Example:
        >>> stream = drifting_brightness("digits", n_experiences=4)
        >>> [int(samples.change[0]) for samples in stream.train]  # thousandths
        [1000, 733, 467, 200]
    """
    require_between(0, 255, factor=factor)
    one = Brightness.STEPS_PER_FACTOR
    factors = _levels(one, round(factor * one), n_experiences)
    return _drift(images, factors, samples_per_experience, seed, Brightness())


@image_stream(
    "drifting_noise v1",
    changes="the strength of the noise on the images, from none to a stated one",
    **ALL_CLASSES,
)
def drifting_noise(
    images: ImageSource,
    seed: int,
    *,
    deviation: float = 64.0,
    n_experiences: int = 10,
    samples_per_experience: int | None = None,
) -> ImagePlan:
    """Every experience shows the images a little noisier than the one before; labels stay.

    Each experience is one pass over the source's images in a new order, with normal noise of one standard deviation on
    every pixel and channel: none in the first experience, ``deviation`` in the last. The noise of every presented
    sample is new, also in stationary variants: "repeat" has none, "frozen" keeps the deviation of the experience
    ``frozen_after``. In the record, an image counts as seen before if it was shown with noise of the same deviation.

    Args:
        seed: decides the order of samples and the noise.
        deviation: standard deviation of the last experience's noise, in bytes (0 to 255).
        n_experiences: number of deviations.
        samples_per_experience: use only this many images in each experience; None for all.

    Example:
        >>> stream = drifting_noise("digits", n_experiences=4)
        >>> [int(samples.change[0]) for samples in stream.train]  # hundredths of a byte
        [0, 2133, 4267, 6400]
    """
    require_between(0, 255, "{} bytes", deviation=deviation)
    deviations = _levels(0, round(deviation * Noise.STEPS_PER_BYTE), n_experiences)
    return _drift(images, deviations, samples_per_experience, seed, Noise(seed))


def _drift(images: ImageSource, levels: Sequence[int], n: int | None, seed: int, change: InputChange) -> ImagePlan:
    """Present ``n`` training images in a new order, or all of them, and all test images, at each level."""
    require_at_least_one(samples_per_experience=n)
    n = len(images.train.y) if n is None else min(n, len(images.train.y))
    indices = draw_passes(images.train, len(levels), n, seed)
    train, test = plan_split(images.train, indices, changes=levels), plan_split(images.test, changes=levels)
    return ImagePlan(train, test, len(images.classes), change)


def _levels(first: int, last: int, n_experiences: int) -> list[int]:
    """Go from the first to the last level in equal steps, rounded, one for each experience."""
    if n_experiences < 2:
        raise ValueError(f"n_experiences must be at least 2 for a drift, not {n_experiences}")
    gaps = n_experiences - 1
    return [first + (2 * (last - first) * i + gaps) // (2 * gaps) for i in range(n_experiences)]
