"""The stationary variants of plans; those of all streams of images are in ``test_image_streams``."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from continual_metaopt.streams.plan import plan_of
from continual_metaopt.streams.stationary import make_stationary
from tests.streams.image_streams import planned


def test_shuffled_mixes_the_experiences():
    """Each quarter of the shuffled stream has classes of several experiences, and says so."""
    changing, shuffled = (planned("class_split, global", stationary=kind) for kind in (None, "shuffled"))
    groups = [set(e.classes) for e in changing.info.experiences]
    for samples, info in zip(shuffled.train, shuffled.info.experiences, strict=True):
        classes = set(samples.batch(slice(None))[1].tolist())
        assert info.classes == sorted(classes)
        assert sum(bool(group & classes) for group in groups) > 1


@pytest.mark.parametrize("seed_of_split", ["train", "test"])
def test_the_shuffled_order_is_uniform(seed_of_split):
    """Three samples, 600 seeds: each of the six orders about 100 times, with a standard deviation of 9."""
    index = np.arange(3)
    plan = plan_of([(index[:2], index[:2], -1), (index[2:], index[2:], -1)])
    which = ["train", "test"].index(seed_of_split)
    orders = Counter(tuple(make_stationary(plan, plan, "shuffled", seed)[which].index.tolist()) for seed in range(600))
    assert set(orders) == set(permutations(range(3)))
    assert all(60 <= count <= 140 for count in orders.values())


def test_training_and_test_samples_are_shuffled_independently():
    index = np.arange(20)
    plan = plan_of([(index, index, -1)])
    train, test = make_stationary(plan, plan, "shuffled", 0)
    assert train.index.tolist() != test.index.tolist()
