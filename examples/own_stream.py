"""A stream of one's own: images whose brightness is turned down from experience to experience."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from continual_metaopt import MLP, MetaOptimizeStrategy
from streams import make_stream, register_stream
from streams.benchmark import build_benchmark
from streams.plan import plan_of, random_state
from streams.sources import load_source


@register_stream("fading", "every experience shows the images darker than the one before")
def fading(*, n_experiences: int = 4, samples_per_experience: int = 400, seed: int = 0):
    """Make the stream: all versions of the images are one source, and each experience draws from its own version."""
    digits = load_digits()
    versions = [(digits.images * 15.9 / 2**k).astype(np.uint8) for k in range(n_experiences)]
    n = len(digits.target)
    x, y = np.concatenate(versions), np.tile(digits.target, n_experiences)
    images = load_source((x, y, x, y))
    order = [random_state(seed, 0, k).permutation(n)[:samples_per_experience] + k * n for k in range(n_experiences)]
    plan = plan_of([(index, images.train.y[index], -1) for index in order])
    return build_benchmark("fading v1", images, plan, plan, n_outputs=10, seed=seed, stationary=None)


torch.manual_seed(0)
benchmark = make_stream("fading", seed=0)
strategy = MetaOptimizeStrategy(model=MLP(10, benchmark.info.for_learner.input_shape), lr=1e-3)
for experience in benchmark.train_stream:
    before = strategy.n_correct
    strategy.train(experience)
    step_sizes = {block: f"{value:.2e}" for block, value in strategy.optimizer.step_size_report().items()}
    print(f"online accuracy {(strategy.n_correct - before) / len(experience.dataset):.1%}, then {step_sizes}")
