"""Label noise. On coded images a sample's number tells its class: the number modulo the number of classes."""

from collections import Counter

import numpy as np
import pytest

from continual_metaopt.streams import plan_stream
from tests.streams.synthetic import N_CLASSES, coded_arrays, numbers_and_labels

SOURCE = coded_arrays()  # 12 classes, 48 training images and 12 test images


def noisy(**options):
    return plan_stream("label_noise", source=SOURCE, **options)


def wrong(samples):
    """Which of the samples have a wrong label."""
    numbers, labels = numbers_and_labels(samples)
    return labels != numbers % N_CLASSES


def shares(stream):
    return np.array([wrong(samples).mean() for samples in stream.train])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("fixed", [0.6, 0.6, 0.6, 0.6]),
        ("growing", [0, 0.2, 0.4, 0.6]),
        ("alternating", [0, 0.6, 0, 0.6]),
    ],
)
def test_the_share_of_wrong_labels(schedule, expected):
    """Within four standard deviations, at most 0.022 each in 8,000 samples; exactly none where there are to be none."""
    stream = noisy(schedule=schedule, wrong=0.6, n_experiences=4, samples_per_experience=8000)
    found = shares(stream)
    np.testing.assert_allclose(found, expected, atol=0.022)
    assert (found[np.array(expected) == 0] == 0).all()
    assert not any(wrong(samples).any() for samples in stream.test), "test labels are right"
    assert stream.info.for_learner.n_outputs == N_CLASSES


@pytest.mark.parametrize(("share", "expected"), [(0, 0), (1, 1)])
def test_none_and_all(share, expected):
    assert (shares(noisy(wrong=share, schedule="fixed", n_experiences=2)) == expected).all()


def test_a_wrong_label_is_any_other_class_equally_often():
    (samples,) = noisy(wrong=1.0, schedule="fixed", n_experiences=1, samples_per_experience=11 * 12 * 100).train
    numbers, labels = numbers_and_labels(samples)
    for k in (0, 5, 11):
        counts = Counter(labels[numbers % N_CLASSES == k].tolist())
        assert set(counts) == set(range(N_CLASSES)) - {k}
        assert all(60 <= count <= 140 for count in counts.values()), "100 expected, with a standard deviation of 9.5"


def test_noise_is_drawn_for_each_presented_sample():
    """An image that comes 40 times has several labels, and being wrong once does not tell whether it is so again."""
    (samples,) = noisy(wrong=0.5, schedule="fixed", n_experiences=1, samples_per_experience=48 * 40).train
    numbers, labels = numbers_and_labels(samples)
    assert min(len(set(labels[numbers == number].tolist())) for number in range(48)) > 5
    in_passes = np.stack([wrong(samples)[numbers == number] for number in range(48)])
    both = (in_passes[:, 1:] & in_passes[:, :-1]).mean()
    assert 0.2 < both < 0.3, "1/4 expected, with a standard deviation of about 0.013"


@pytest.mark.parametrize(
    ("stationary", "expected"),
    [
        ({"stationary": "frozen", "frozen_after": 2}, [0, 0.2, 0.4, 0.4]),
        ({"stationary": "repeat"}, [0, 0, 0, 0]),
        ({"stationary": "shuffled"}, [0.3, 0.3, 0.3, 0.3]),
    ],
    ids=str,
)
def test_stationary_variants_keep_the_share_and_draw_wrong_labels_anew(stationary, expected):
    stream = noisy(wrong=0.6, n_experiences=4, samples_per_experience=4800, **stationary)
    np.testing.assert_allclose(shares(stream), expected, atol=0.03)
    if stationary["stationary"] == "frozen":
        third, fourth = (
            wrong(samples)[np.argsort(numbers_and_labels(samples)[0], kind="stable")] for samples in stream.train[2:]
        )
        assert 0.45 < (third == fourth).mean() < 0.6, "0.4² + 0.6² = 0.52 expected of independent draws"


def test_images_count_as_seen_before():
    stream = noisy(n_experiences=3)
    assert [e.n_seen_before for e in stream.info.experiences] == [0, 48, 48]
    assert [len(samples) for samples in stream.train] == [48] * 3
    orders = {tuple(numbers_and_labels(samples)[0].tolist()) for samples in stream.train}
    assert len(orders) == 3


def test_a_gradual_transition_mixes_the_shares():
    """From none to all wrong over the 8,000 samples around the boundary: a quarter in their first half."""
    options = {"wrong": 1.0, "n_experiences": 2, "samples_per_experience": 8000, "transition_width": 8000}
    first, second = noisy(**options).train
    assert not wrong(first)[:3900].any()
    assert wrong(second)[4100:].all()
    assert abs(wrong(first)[4000:].mean() - 0.25) < 0.03
    assert abs(wrong(second)[:4000].mean() - 0.75) < 0.03
