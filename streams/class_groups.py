"""What plans of labelled images have in common: which images belong to some classes, and how labels are numbered."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from continual_metaopt.streams.images import ImageSet, ImageSource
from continual_metaopt.streams.plan import SAMPLE_ORDER, Integers, Plan, in_passes, plan_of, random_state
from continual_metaopt.streams.registry import unknown_name
from continual_metaopt.streams.stream import ImagePlan

Labels = Literal["within", "global", "appearance"]
Classes = NDArray[np.int64]
ALL_CLASSES = {  # phrases for lists
    "when": "with every experience",
    "length": "n_experiences × samples_per_experience, or × all images",
    "head": "one output for each class of the source",
}


def chosen_classes(classes: Sequence[int] | None, n_classes: int) -> Classes:
    """Number the classes that a stream is to use; None for all.

    Raises:
        ValueError: a class is not there or given twice.

    Example:
        >>> chosen_classes([7, 2], 10).tolist()
        [7, 2]
    """
    chosen = np.arange(n_classes) if classes is None else np.array(classes, dtype=np.int64)
    unknown = sorted({int(number) for number in chosen if not 0 <= number < n_classes})
    if unknown:
        raise ValueError(f"the source has classes 0 to {n_classes - 1}, but not {unknown}")
    if len(np.unique(chosen)) < len(chosen):
        raise ValueError("a class is given twice in classes")
    return chosen


def deal(
    chosen: Classes, classes_per_experience: int, names: Sequence[object], state: np.random.RandomState
) -> Classes:
    """Deal classes at random into groups of equal size, [groups, classes_per_experience].

    ``names`` are the source's own labels of all its classes, for messages.

    Raises:
        ValueError: the classes do not divide into groups of this size.

    Example:
        >>> deal(np.arange(4), 2, "abcd", random_state(0, 0)).tolist()
        [[0, 2], [1, 3]]
    """
    n_classes = len(chosen)
    if n_classes < 2:
        available = [names[number] for number in chosen]
        raise ValueError(f"a class split needs at least two classes; there are only {available}")
    if classes_per_experience < 2 or n_classes % classes_per_experience:
        fitting = [str(k) for k in range(2, n_classes + 1) if n_classes % k == 0]
        raise ValueError(
            f"{n_classes} classes do not divide into experiences of {classes_per_experience}; "
            f"classes_per_experience must be one of {', '.join(fitting)}"
        )
    return state.permutation(chosen).reshape(-1, classes_per_experience)


def members(split: ImageSet, classes: Classes) -> NDArray[np.int64]:
    """Find the images of some classes: their positions, ascending."""
    return np.flatnonzero(np.isin(split.y, classes))


def draw_passes(split: ImageSet, n_experiences: int, n: int | None, seed: int) -> list[Integers]:
    """Draw ``n`` images for each experience, in new passes over all of them; None for one pass."""
    everything = np.arange(len(split.y))
    n = len(everything) if n is None else n
    return [in_passes(everything, n, random_state(seed, SAMPLE_ORDER, i)) for i in range(n_experiences)]


def plan_split(
    split: ImageSet,
    indices: Sequence[Integers] | None = None,
    tables: Sequence[Integers] | None = None,
    changes: Sequence[int] | None = None,
) -> Plan:
    """Plan a split, given at least one of these, each with an entry for each experience.

    Args:
        split: the images.
        indices: positions of the images that are presented, in order; None for all in each experience.
        tables: label of each of the source's classes; None for its number.
        changes: number of the change of the input; None for no change.
    """
    n = len(indices or tables or changes or ())
    indices = indices or [np.arange(len(split.y))] * n
    labels = [split.y[i] if tables is None else tables[k][split.y[i]] for k, i in enumerate(indices)]
    return plan_of(zip(indices, labels, changes or [-1] * n, strict=True))


def plan_classes(
    images: ImageSource, groups: Sequence[Classes], train: Sequence[Integers], labels: Labels, seed: int
) -> ImagePlan:
    """Plan a stream whose experiences are groups of classes.

    Args:
        images: of the source.
        groups: numbers of the classes of each experience.
        train: positions of the training images that each experience presents, in order.
        labels: "within" numbers the labels 0 … k−1 anew in each experience; "global" keeps the source's numbering;
            "appearance" numbers classes in the order of their first experience, and within it in the group's order.
        seed: of the order of test images, which are all those of the classes.

    Raises:
        ValueError: unknown kind of labels.
    """
    tables = _label_tables(groups, labels, len(images.classes))
    test = [random_state(seed, SAMPLE_ORDER, i).permutation(members(images.test, g)) for i, g in enumerate(groups)]
    n_outputs = len(images.classes) if labels == "global" else max(int(table.max()) for table in tables) + 1
    return ImagePlan(plan_split(images.train, train, tables), plan_split(images.test, test, tables), n_outputs)


def _label_tables(groups: Sequence[Classes], labels: Labels, n_classes: int) -> list[NDArray[np.int64]]:
    """Number the source's classes in each experience, with −1 for classes that are not in it."""
    if labels == "within":
        return [numbered(group, n_classes) for group in groups]
    if labels == "global":
        return [np.arange(n_classes)] * len(groups)
    if labels == "appearance":
        every, first = np.unique(np.concatenate(groups), return_index=True)
        return [numbered(every[np.argsort(first)], n_classes)] * len(groups)
    raise ValueError(unknown_name("kind of labels", labels, ["within", "global", "appearance"]))


def numbered(classes: Classes, n_classes: int) -> NDArray[np.int64]:
    """Number some of the source's classes in their order, and give all others −1.

    Example:
        >>> numbered(np.array([2, 0]), 3).tolist()
        [1, -1, 0]
    """
    table = np.full(n_classes, -1)
    table[classes] = np.arange(len(classes))
    return table
