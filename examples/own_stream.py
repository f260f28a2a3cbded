"""A stream of one's own: images whose brightness is turned down from experience to experience."""

import torch

from continual_metaopt import MLP, MetaOptimizeStrategy
from continual_metaopt.streams import make_stream, register_stream
from continual_metaopt.streams.plan import plan_of, random_state
from continual_metaopt.streams.stream import ImagePlan, image_stream


class Darken:
    """Change k of an image: its bytes, shifted right by k bits."""

    def apply(self, images, change, steps):
        """Darker images."""
        return images >> change[:, None, None, None].astype("uint8")

    def content(self):
        """What enters into the stream's fingerprint."""
        return b"shifted right"


@register_stream("fading", "every experience shows the images darker than the one before")
@image_stream("fading v1")
def fading(images, seed, *, n_experiences: int = 4, samples_per_experience: int = 400):
    """Every experience shows the images darker than the one before.

    Args:
        images: of the source.
        seed: decides the order of samples.
        n_experiences: number of degrees of darkness.
        samples_per_experience: number of images in each.
    """

    def experience(y, k):
        index = random_state(seed, 0, k).permutation(len(y))[:samples_per_experience]
        return index, y[index], k

    train, test = (
        plan_of([experience(split.y, k) for k in range(n_experiences)]) for split in (images.train, images.test)
    )
    return ImagePlan(train, test, len(images.classes), Darken())


torch.manual_seed(0)
benchmark = make_stream("fading", seed=0)
strategy = MetaOptimizeStrategy(model=MLP(10, benchmark.info.for_learner.input_shape), lr=1e-3)
for experience in benchmark.train_stream:
    before = strategy.n_correct
    strategy.train(experience)
    step_sizes = {block: f"{value:.2e}" for block, value in strategy.optimizer.step_size_report().items()}
    print(f"online accuracy {(strategy.n_correct - before) / len(experience.dataset):.1%}, then {step_sizes}")
