"""Multi-epoch training: ordinary mini-batches in several passes over a source, without any change.

The stationary setting that most optimizers are made for, MetaOptimize's stationary experiments among them (arXiv
2402.02342; CIFAR-10 there in batches of 100).
"""

import numpy as np

from continual_metaopt.streams.images import ImageSource
from continual_metaopt.streams.plan import SAMPLE_ORDER, plan_of, random_state
from continual_metaopt.streams.stream import ImagePlan, image_stream


@image_stream(
    "multi_epoch v1",
    changes="nothing",
    when="never: one experience, in mini-batches",
    length="epochs × all images that fill batches",
    head="one output for each class of the source",
)
def multi_epoch(images: ImageSource, seed: int, *, batch_size: int = 100, epochs: int = 10) -> ImagePlan:
    """One experience of several passes over the images, in mini-batches; nothing changes.

    Each pass takes the images in a new order, and leaves out the few last ones that do not fill a batch; which ones
    these are changes from pass to pass. Runs record the accuracy on the test images after each pass. Online accuracy
    is of predictions before learning from the batch; from the second pass on, the samples were seen before.

    Args:
        images: of the source.
        seed: decides the order of samples.
        batch_size: number of samples that are learned from at once.
        epochs: number of passes.

    Raises:
        ValueError: an option's value is out of range.
    """
    n_images = len(images.train.y)
    if not 1 <= batch_size <= n_images:
        raise ValueError(
            f"batch_size must be between 1 and the number of training images, {n_images}, not {batch_size}"
        )
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
    n = n_images // batch_size * batch_size
    index = np.concatenate([random_state(seed, SAMPLE_ORDER, i).permutation(n_images)[:n] for i in range(epochs)])
    train = plan_of([(index, images.train.y[index], -1)])
    test = plan_of([(np.arange(len(images.test.y)), images.test.y, -1)])
    test_at = tuple(n * done for done in range(1, epochs + 1))
    return ImagePlan(train, test, len(images.classes), batch_size=batch_size, test_at=test_at)
