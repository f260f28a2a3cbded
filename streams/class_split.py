"""Class split: each class of a source is dealt to one experience, as in the paper's continual CIFAR-100."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streams.images import ImageSet, ImageSource
from streams.plan import CLASS_ORDER, SAMPLE_ORDER, plan_of, random_state
from streams.registry import unknown_name
from streams.stream import ImagePlan, image_stream


@image_stream(
    "class_split v1",
    changes="the classes",
    when="with every experience",
    length="all images of the source's training split, once each",
    head="classes_per_experience outputs shared by all experiences, or one for each class of the source",
)
def class_split(
    images: ImageSource,
    seed: int,
    *,
    classes_per_experience: int = 10,
    classes: list[int] | None = None,
    labels: Literal["within", "global"] = "within",
    n_experiences: int | None = None,
    samples_per_experience: int | None = None,
) -> ImagePlan:
    """Every experience brings classes that were not there before.

    With labels "within", the stationary variant "shuffled" mixes one class of every experience under each label: its
    accuracy is not comparable with the other variants'.

    Args:
        images: of the source.
        seed: decides which classes go together and the order of samples.
        classes_per_experience: number of classes in each experience.
        classes: use only these classes of the source, by number; None for all.
        labels: "within" numbers the labels 0 … k−1 anew in each experience, so that one small head serves all;
            "global" keeps the source's numbering.
        n_experiences: use only this many experiences, the first ones; None for all.
        samples_per_experience: use only this many samples of each experience, the first ones; None for all.

    Raises:
        ValueError: the classes do not divide into experiences of this size, some are not there or given twice, or an
            option's value is unknown.
    """
    if labels not in ("within", "global"):
        raise ValueError(unknown_name("kind of labels", labels, ["within", "global"]))
    if samples_per_experience is not None and samples_per_experience < 1:
        raise ValueError(f"samples_per_experience must be at least 1, not {samples_per_experience}")
    chosen = _chosen_classes(classes, len(images.classes))
    n_classes = len(chosen)
    if n_classes < 2:
        available = [images.classes[number] for number in chosen]
        raise ValueError(f"a class split needs at least two classes; there are only {available}")
    if classes_per_experience < 2 or n_classes % classes_per_experience:
        fitting = [str(k) for k in range(2, n_classes + 1) if n_classes % k == 0]
        raise ValueError(
            f"{n_classes} classes do not divide into experiences of {classes_per_experience}; "
            f"classes_per_experience must be one of {', '.join(fitting)}"
        )
    dealt = random_state(seed, CLASS_ORDER).permutation(chosen).reshape(-1, classes_per_experience)
    if n_experiences is not None:
        if not 1 <= n_experiences <= len(dealt):
            raise ValueError(f"n_experiences must be between 1 and {len(dealt)}, not {n_experiences}")
        dealt = dealt[:n_experiences]
    train, test = (
        plan_of([_experience(split, classes, labels, limit, seed, i) for i, classes in enumerate(dealt)])
        for split, limit in ((images.train, samples_per_experience), (images.test, None))
    )
    return ImagePlan(train, test, classes_per_experience if labels == "within" else len(images.classes))


def _chosen_classes(classes: list[int] | None, n_classes: int) -> NDArray[np.int64]:
    chosen = np.arange(n_classes) if classes is None else np.array(classes, dtype=np.int64)
    unknown = sorted({int(number) for number in chosen if not 0 <= number < n_classes})
    if unknown:
        raise ValueError(f"the source has classes 0 to {n_classes - 1}, but not {unknown}")
    if len(np.unique(chosen)) < len(chosen):
        raise ValueError("a class is given twice in classes")
    return chosen


def _experience(
    split: ImageSet, classes: NDArray[np.int64], labels: str, limit: int | None, seed: int, experience: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Index, label and change of the samples of one experience, in a random order."""
    members = np.flatnonzero(np.isin(split.y, classes))
    index = random_state(seed, SAMPLE_ORDER, experience).permutation(members)[:limit]
    label = split.y[index]
    if labels == "within":
        position = np.empty(int(classes.max()) + 1, dtype=np.int64)
        position[classes] = np.arange(len(classes))
        label = position[label]
    return index, label, -1
