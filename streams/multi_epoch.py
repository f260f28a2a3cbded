"""Multi-epoch training: ordinary mini-batches in several passes over a source, without any change.

The stationary setting that most optimizers are made for, MetaOptimize's stationary experiments among them (arXiv
2402.02342; CIFAR-10 there in batches of 100).
"""

import numpy as np

from continual_metaopt.streams.class_groups import chosen_classes, members, numbered, plan_split
from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.input_changes import CropAndFlip
from continual_metaopt.streams.options import require_at_least_one, require_between
from continual_metaopt.streams.plan import SAMPLE_ORDER, random_state
from continual_metaopt.streams.stream import ImagePlan, image_stream


@image_stream(
    "multi_epoch v1",
    changes="nothing",
    when="never: one experience, in mini-batches",
    length="epochs × all images that fill batches",
    head="one output for each class of the source",
)
def multi_epoch(
    images: ImageSource,
    seed: int,
    *,
    batch_size: int = 100,
    epochs: int = 10,
    augment: bool = False,
    classes: list[int] | None = None,
) -> ImagePlan:
    """One experience of several passes over the images, in mini-batches; nothing changes.

    Each pass takes the images in a new order, and leaves out the few last ones that do not fill a batch; which ones
    these are changes from pass to pass. Runs record the accuracy on the test images after each pass. Online accuracy
    is of predictions before learning from the batch; from the second pass on, the samples were seen before.

    Args:
        seed: decides the order of samples.
        batch_size: number of samples that are learned from at once.
        epochs: number of passes.
        augment: move training images by up to four pixels, and mirror half of them, anew in each pass, as is usual for
            CIFAR.
        classes: use only these classes of the source, by number, labelled in this order; None for all.

    Example:
        >>> multi_epoch("digits", epochs=3).info.test_at
        [1400, 2800, 4200]
    """
    chosen = chosen_classes(classes, len(images.classes))
    available = members(images.train, chosen)
    require_between(1, len(available), "the number of training images, {}", batch_size=batch_size)
    require_at_least_one(epochs=epochs)
    n = len(available) // batch_size * batch_size
    index = np.concatenate([random_state(seed, SAMPLE_ORDER, i).permutation(available)[:n] for i in range(epochs)])
    tables = [numbered(chosen, len(images.classes))]
    train = plan_split(images.train, [index], tables, [0 if augment else -1])
    test = plan_split(images.test, [members(images.test, chosen)], tables)
    test_at = tuple(n * done for done in range(1, epochs + 1))
    return ImagePlan(train, test, len(chosen), CropAndFlip(seed) if augment else None, batch_size, test_at)
