"""Permuted labels: the same images in every experience, their labels permuted anew, as in UPGD's experiments.

Elsayed and Mahmood, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning", ICLR 2024, and
its code, github.com/mohmdelsayed/upgd, core/task.
"""

from continual_metaopt.streams.class_groups import draw_passes, plan_split
from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.options import require_at_least_one
from continual_metaopt.streams.plan import LABEL_PERMUTATIONS, random_state
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
        seed: decides the permutations and the order of samples.
        n_experiences: number of permutations.
        samples_per_experience: number of samples in each experience, drawn in passes over all images, each in a new
            order; None for one pass.

    Example:
        >>> stream = permuted_labels("digits", n_experiences=3)
        >>> [samples.labels[:3].tolist() for samples in stream.test]
        [[4, 8, 4], [2, 5, 2], [8, 2, 8]]
    """
    require_at_least_one(n_experiences=n_experiences, samples_per_experience=samples_per_experience)
    n_classes = len(images.classes)
    tables = [random_state(seed, LABEL_PERMUTATIONS, i).permutation(n_classes) for i in range(n_experiences)]
    indices = draw_passes(images.train, n_experiences, samples_per_experience, seed)
    return ImagePlan(plan_split(images.train, indices, tables), plan_split(images.test, tables=tables), n_classes)
