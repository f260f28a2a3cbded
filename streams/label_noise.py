"""Label noise: some of the labels are wrong, more of them in some experiences than in others."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from continual_metaopt.streams.class_groups import ALL_CLASSES, draw_passes, plan_split
from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.options import require_at_least_one
from continual_metaopt.streams.plan import LABEL_NOISE, Plan, random_state
from continual_metaopt.streams.registry import unknown_name
from continual_metaopt.streams.stream import ImagePlan, image_stream


@image_stream("label_noise v1", changes="the share of labels that are wrong", **ALL_CLASSES)
def label_noise(
    images: ImageSource,
    seed: int,
    *,
    wrong: float = 0.4,
    schedule: Literal["fixed", "growing", "alternating"] = "growing",
    n_experiences: int = 10,
    samples_per_experience: int | None = None,
) -> ImagePlan:
    """Training labels are wrong with a probability that changes from experience to experience; test labels are right.

    A wrong label is any of the other classes with equal probability (symmetric noise). It is drawn for each presented
    sample: an image that comes again, also in the variants "repeat" and "frozen", is given another draw. The online
    accuracy that can be reached is thus 1 − share of wrong labels, and the test accuracy is not bounded.

    Args:
        seed: decides the order of samples and the wrong labels.
        wrong: the largest share of wrong labels.
        schedule: "fixed" has this share always; "growing" goes in equal steps from none in the first experience to this
            share in the last; "alternating" has none in the first, third, … experience and this share in the others.
        n_experiences: number of experiences.
        samples_per_experience: number of samples in each experience, drawn in passes over all images, each in a new
            order; None for one pass.

    Example:
        >>> stream = label_noise("digits", n_experiences=3)
        >>> [round(float((part.labels != part.classes).mean()), 2) for part in stream.train]
        [0.0, 0.21, 0.41]
    """
    if not 0 <= wrong <= 1:
        raise ValueError(f"wrong must be a share between 0 and 1, not {wrong}")
    require_at_least_one(n_experiences=n_experiences, samples_per_experience=samples_per_experience)
    n_classes, n_images = len(images.classes), len(images.train.y)
    if n_classes < 2:
        raise ValueError(f"wrong labels need at least two classes; there are only {images.classes}")
    shares = {
        "fixed": [wrong] * n_experiences,
        "growing": [wrong * i / max(n_experiences - 1, 1) for i in range(n_experiences)],
        "alternating": [wrong * (i % 2) for i in range(n_experiences)],
    }
    if schedule not in shares:
        raise ValueError(unknown_name("schedule", schedule, list(shares)))
    indices = draw_passes(images.train, n_experiences, samples_per_experience, seed)
    train = plan_split(images.train, indices, changes=range(n_experiences))
    test = plan_split(images.test, changes=[-1] * n_experiences)
    relabel = partial(_with_wrong_labels, shares=shares[schedule], n_images=n_images, n_classes=n_classes, seed=seed)
    return ImagePlan(train, test, n_classes, relabel=relabel)


def _with_wrong_labels(plan: Plan, shares: Sequence[float], n_images: int, n_classes: int, seed: int) -> Plan:
    """Draw wrong labels; a sample's change is the number of the experience whose share it has.

    The draw depends on image, experience and on how often the image came before in that experience, not on the place in
    the stream, so that stationary variants and blurred boundaries keep it.
    """
    occurrence, label = plan.occurrence(), plan.label.copy()
    for experience, share in enumerate(shares):
        of_experience = np.flatnonzero(plan.change == experience)
        for count in range(occurrence[of_experience].max(initial=-1) + 1):
            state = random_state(seed, LABEL_NOISE, experience, count)
            is_wrong = state.random_sample(n_images) < share
            other = state.randint(n_classes - 1, size=n_images, dtype=np.int64)  # the same draws on every platform
            steps = of_experience[occurrence[of_experience] == count]
            steps = steps[is_wrong[plan.index[steps]]]
            drawn = other[plan.index[steps]]
            label[steps] = drawn + (drawn >= label[steps])
    return replace(plan, label=label, change=np.full_like(plan.change, -1))
