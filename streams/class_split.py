"""Class split: every experience has classes of its own, as in the paper's continual CIFAR-100."""

from continual_metaopt.streams.class_groups import Labels, chosen_classes, deal, members, plan_classes
from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.options import require_at_least_one, require_between
from continual_metaopt.streams.plan import CLASS_ORDER, SAMPLE_ORDER, in_passes, random_state
from continual_metaopt.streams.stream import ImagePlan, image_stream


@image_stream(
    "class_split v1",
    changes="the classes",
    when="with every experience",
    length="all images of the source, once each; with replacement n_experiences × the images of an experience",
    head="shared by all experiences (labels within), one output per class (global), or growing (appearance)",
)
def class_split(
    images: ImageSource,
    seed: int,
    *,
    classes_per_experience: int = 10,
    classes: list[int] | None = None,
    labels: Labels = "within",
    replacement: bool = False,
    n_experiences: int | None = None,
    samples_per_experience: int | None = None,
) -> ImagePlan:
    """Every experience brings classes that were not there before, or, with replacement, classes drawn anew.

    Each class of the source is dealt to one experience, and each of its images is met once: 10 experiences of 10
    classes of CIFAR-100 in MetaOptimize's experiments (arXiv 2402.02342), 20 experiences in ocl_survey. With labels
    "appearance" it is class-incremental learning with one head, to which the loss of plasticity experiments (Dohare et
    al., Nature 2024) add 5 classes of CIFAR-100 at a time; there, earlier classes stay.

    With replacement, each experience draws its classes from all of them, so a stream can have any number of
    experiences, and classes and images recur: compare Continual ImageNet of the same authors, 2,000 tasks of 2 classes.

    With labels "within", the stationary variant "shuffled" mixes one class of every experience under each label: its
    accuracy is not comparable with the other variants'.

    Args:
        seed: decides which classes go together and the order of samples.
        classes_per_experience: number of classes in each experience.
        classes: use only these classes of the source, by number; None for all.
        labels: "within" numbers the labels 0 … k−1 anew in each experience, so that one small head serves all;
            "global" keeps the source's numbering; "appearance" numbers classes in the order in which they first come,
            so that a head can grow with them.
        replacement: draw the classes of each experience from all classes, instead of dealing each class once.
        n_experiences: use only this many experiences, the first ones; None for all. With replacement, any number.
        samples_per_experience: use only this many samples of each experience, the first ones; None for all.

    Example:
        >>> stream = class_split("digits", classes_per_experience=2, n_experiences=3)
        >>> [experience.classes for experience in stream.info.experiences]
        [[2, 8], [3, 4], [0, 6]]
    """
    require_at_least_one(samples_per_experience=samples_per_experience)
    chosen = chosen_classes(classes, len(images.classes))
    if replacement:
        if n_experiences is None or n_experiences < 1:
            raise ValueError(f"with replacement, n_experiences must be given and at least 1, not {n_experiences}")
        n_classes = "the number of classes, {}"
        require_between(2, len(chosen), n_classes, classes_per_experience=classes_per_experience)
        groups = [
            random_state(seed, CLASS_ORDER, i).permutation(chosen)[:classes_per_experience]
            for i in range(n_experiences)
        ]
    else:
        dealt = deal(chosen, classes_per_experience, images.classes, random_state(seed, CLASS_ORDER))
        require_between(1, len(dealt), n_experiences=n_experiences)
        groups = list(dealt[:n_experiences])
    train = []
    for i, group in enumerate(groups):
        available = members(images.train, group)
        n = len(available) if samples_per_experience is None else min(samples_per_experience, len(available))
        train.append(in_passes(available, n, random_state(seed, SAMPLE_ORDER, i)))
    return plan_classes(images, groups, train, labels, seed)
