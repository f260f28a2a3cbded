"""Permuted labels. On coded images a sample's number tells its class: the number modulo the number of classes."""

from collections import Counter
from itertools import pairwise

import pytest

from continual_metaopt.streams import plan_stream
from tests.streams.synthetic import N_CLASSES, coded_arrays, numbers_and_labels

SOURCE = coded_arrays()  # 12 classes, 48 training images and 12 test images


def permuted(**options):
    return plan_stream("permuted_labels", source=SOURCE, **options)


def read(samples):
    """Numbers of the images, and the label of each class, −1 for classes that do not occur."""
    numbers, labels = numbers_and_labels(samples)
    label_of = {}
    for number, label in zip(numbers.tolist(), labels.tolist(), strict=True):
        assert label_of.setdefault(number % N_CLASSES, label) == label, "one label for a class"
    return numbers.tolist(), tuple(label_of.get(k, -1) for k in range(N_CLASSES))


def test_one_permutation_of_the_labels_for_each_experience():
    stream = permuted(n_experiences=5, samples_per_experience=None)
    found = []
    for train, test in zip(stream.train, stream.test, strict=True):
        numbers, labels = read(train)
        assert sorted(numbers) == list(range(48)), "one pass"
        assert sorted(labels) == list(range(N_CLASSES)), "a true permutation"
        assert read(test) == (list(range(48, 60)), labels), "and the same for the test images"
        found.append(labels)
    assert len(set(found)) == 5
    assert tuple(range(N_CLASSES)) not in found, "labels of the first experience are permuted too"
    assert len({tuple(read(samples)[0]) for samples in stream.train}) == 5, "in a new order each time"
    assert stream.info.for_learner.n_outputs == N_CLASSES
    assert [e.n_seen_before for e in stream.info.experiences] == [0, 48, 48, 48, 48], "images stay as they are"


def test_a_class_gets_every_label_equally_often_whatever_it_had_before():
    """As it would if permutations were applied one upon the other, as UPGD does: 600 changes, 12 labels."""
    stream = permuted(n_experiences=601, samples_per_experience=None)
    labels = [read(samples)[1] for samples in stream.test]
    moved = [Counter((b[k] - a[k]) % N_CLASSES for a, b in pairwise(labels)) for k in (0, 5)]
    for counts in (Counter(one[3] for one in labels), *moved):
        assert set(counts) == set(range(N_CLASSES))
        assert all(22 <= count <= 78 for count in counts.values()), "50 expected, with a standard deviation of 6.8"


@pytest.mark.parametrize("n", [7, 48, 100])
def test_an_experience_draws_its_samples_in_passes_of_its_own(n):
    for samples in permuted(n_experiences=3, samples_per_experience=n).train:
        numbers = read(samples)[0]
        assert len(numbers) == n
        passes = [tuple(numbers[start : start + 48]) for start in range(0, n, 48)]
        assert all(len(set(one)) == len(one) for one in passes)
        assert len(set(passes)) == len(passes)


def test_by_default_labels_change_as_often_as_in_upgds_experiments():
    assert permuted().info.boundaries == list(range(0, 25_000, 2500))
