"""Permuted labels: the same images in every experience, their labels permuted anew, as in UPGD's experiments.

Elsayed and Mahmood, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning", ICLR 2024, and
its code, github.com/mohmdelsayed/upgd, core/task.
"""

import numpy as np

from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.plan import LABEL_PERMUTATIONS, SAMPLE_ORDER, in_passes, plan_of, random_state
from continual_metaopt.streams.stream import ImagePlan, image_stream


@image_stream(
    "permuted_labels v1",
    changes="which label each class has",
    when="with every experience",
    length="n_experiences × samples_per_experience",
    head="one output for each class of the source",
)
def permuted_labels(
    images: ImageSource,
    seed: int,
    *,
    n_experiences: int = 10,
    samples_per_experience: int | None = 2500,
) -> ImagePlan:
    """Every experience gives the classes other labels; images stay.

    UPGD does so every 2,500 samples in a million samples of EMNIST (47 classes), CIFAR-10 and mini-ImageNet, with
    batches of one, and so does weight-clipping. As there, an experience begins a new pass over the images in a new
    order, and labels are permuted from the first experience on. UPGD permutes the labels as they are after the last
    change; here each experience draws a permutation of its own. Both mean the same stream in distribution: a uniform
    permutation of labels permuted in any way is uniform, and independent of what they were.

    With "shuffled" the labels of all experiences contradict each other: accuracy cannot exceed the share of a class's
    most frequent label, and is near chance with many experiences. The variants to compare with are "repeat" and
    "frozen".

    Args:
        images: of the source.
        seed: decides the permutations and the order of samples.
        n_experiences: number of permutations.
        samples_per_experience: number of samples in each experience, drawn in passes over all images, each in a new
            order; None for one pass.

    Raises:
        ValueError: an option's value is out of range.
    """
    for name, value in {"n_experiences": n_experiences, "samples_per_experience": samples_per_experience}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    n_images = len(images.train.y)
    train, test = [], []
    for i in range(n_experiences):
        label = random_state(seed, LABEL_PERMUTATIONS, i).permutation(len(images.classes))
        n = n_images if samples_per_experience is None else samples_per_experience
        index = in_passes(np.arange(n_images), n, random_state(seed, SAMPLE_ORDER, i))
        train.append((index, label[images.train.y[index]], -1))
        test.append((np.arange(len(images.test.y)), label[images.test.y], -1))
    return ImagePlan(plan_of(train), plan_of(test), len(images.classes))
