"""Recurring experiences: a cycle of tasks that come again and again."""

import numpy as np

from continual_metaopt.streams.class_groups import Labels, chosen_classes, deal, members, plan_classes
from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.options import require_at_least_one, require_between
from continual_metaopt.streams.plan import CLASS_ORDER, SAMPLE_ORDER, TASK_ORDER, in_passes, random_state
from continual_metaopt.streams.stream import ImagePlan, image_stream


@image_stream(
    "recurring v1",
    changes="the classes, in a cycle of tasks that come again",
    when="with every experience",
    length="n_cycles × all images of the tasks, or × samples_per_experience of each",
    head="shared by all tasks (labels within), one output per class (global), or growing (appearance)",
)
def recurring(
    images: ImageSource,
    seed: int,
    *,
    classes_per_experience: int = 2,
    n_tasks: int | None = None,
    n_cycles: int = 5,
    new_order: bool = False,
    classes: list[int] | None = None,
    labels: Labels = "within",
    samples_per_experience: int | None = None,
) -> ImagePlan:
    """The tasks of a class split come again in cycles: what was learned before is of use once more.

    Each class of the source is dealt to one task, as in ``class_split``. A cycle has one experience for each task.
    When a task comes again, its images go on where they stopped: none comes again before all of the task have come, and
    each pass over them has a new order. The alberta-framework has cyclic targets in synthetic regressions; here the
    tasks are classifications.

    Args:
        seed: decides which classes go together, the order of samples and that of tasks.
        classes_per_experience: number of classes in each task.
        n_tasks: number of tasks in a cycle, the first ones; None for all.
        n_cycles: number of cycles.
        new_order: whether tasks come in a new random order in each cycle, rather than always in the same.
        classes: use only these classes of the source, by number; None for all.
        labels: "within" numbers the labels 0 … k−1 in each task, "global" keeps the source's numbering, "appearance"
            numbers classes in the order in which they first come.
        samples_per_experience: number of samples of an experience; None for one pass over its task's images.

    Example:
        >>> stream = recurring("digits", classes_per_experience=5, n_cycles=2)
        >>> [experience.n_seen_before for experience in stream.info.experiences]
        [0, 0, 717, 721]
    """
    require_at_least_one(n_cycles=n_cycles, samples_per_experience=samples_per_experience)
    chosen = chosen_classes(classes, len(images.classes))
    dealt = deal(chosen, classes_per_experience, images.classes, random_state(seed, CLASS_ORDER))
    require_between(1, len(dealt), n_tasks=n_tasks)
    tasks = dealt[:n_tasks]
    visits = []
    for number, task in enumerate(tasks):
        available = members(images.train, task)
        n = len(available) if samples_per_experience is None else samples_per_experience
        drawn = in_passes(available, n_cycles * n, random_state(seed, SAMPLE_ORDER, number))
        visits.append(np.array_split(drawn, n_cycles))
    groups, train = [], []
    for cycle in range(n_cycles):
        order = random_state(seed, TASK_ORDER, cycle).permutation(len(tasks)) if new_order else np.arange(len(tasks))
        groups += [tasks[number] for number in order]
        train += [visits[number][cycle] for number in order]
    return plan_classes(images, groups, train, labels, seed)
