"""Class split. On coded images a sample's number tells its class: the number modulo the number of classes."""

from collections import Counter
from itertools import pairwise

import continual_metaopt.streams.quiet_avalanche  # noqa: F401

import numpy as np
import pytest
from avalanche.models import IncrementalClassifier

from continual_metaopt.streams import make_stream, plan_stream
from tests.streams.synthetic import N_CLASSES, coded_arrays, coded_images, numbers_and_labels

SOURCE = coded_arrays()  # 12 classes, 48 training images (numbers 0–47) and 12 test images (48–59)


def split(source=SOURCE, make=plan_stream, **options):
    return make("class_split", source=source, **{"classes_per_experience": 3, **options})


def samples(part):
    """(number of the image, label) of all samples of an experience, in order."""
    return list(zip(*(values.tolist() for values in numbers_and_labels(part)), strict=True))


def stream_samples(parts):
    return [samples(part) for part in parts]


def mapping(pairs):
    """Which label each class got; fails if a class got two."""
    labels = {}
    for number, label in pairs:
        assert labels.setdefault(number % N_CLASSES, label) == label
    return labels


@pytest.mark.parametrize("classes_per_experience", [2, 3, 4, 6, 12])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_class_and_every_sample_exactly_once(classes_per_experience, seed):
    stream = split(classes_per_experience=classes_per_experience, seed=seed)
    n_experiences = N_CLASSES // classes_per_experience
    for parts, numbers in ((stream.train, range(48)), (stream.test, range(48, 60))):
        experiences = stream_samples(parts)
        assert len(experiences) == n_experiences
        classes = [{number % N_CLASSES for number, _ in experience} for experience in experiences]
        assert all(len(found) == classes_per_experience for found in classes)
        assert sorted(c for found in classes for c in found) == list(range(N_CLASSES))
        assert sorted(number for experience in experiences for number, _ in experience) == list(numbers)


@pytest.mark.parametrize("seed", [0, 7])
def test_labels_within_the_experience(seed):
    stream = split(seed=seed)
    for train, test in zip(stream.train, stream.test, strict=True):
        labels = mapping(samples(train))
        assert sorted(labels.values()) == [0, 1, 2], "a bijection onto 0 … k−1"
        assert mapping(samples(test)) == labels
        assert Counter(label for _, label in samples(train)) == {0: 4, 1: 4, 2: 4}


def test_global_labels_are_the_sources_own_numbering():
    stream = split(labels="global")
    for parts in (stream.train, stream.test):
        assert all(label == number % N_CLASSES for experience in parts for number, label in samples(experience))


def test_the_kind_of_labels_changes_nothing_else():
    within, everywhere = split(seed=3), split(seed=3, labels="global")
    for one, other in ((within.train, everywhere.train), (within.test, everywhere.test)):
        numbers = [[[number for number, _ in e] for e in stream_samples(stream)] for stream in (one, other)]
        assert numbers[0] == numbers[1]


def arrays(**options):
    """Numbers of the images and labels, of each experience of both splits."""
    stream = split(**options)
    return stream, *([numbers_and_labels(samples) for samples in part] for part in (stream.train, stream.test))


@pytest.mark.parametrize("options", [{}, {"n_experiences": 3}, {"classes": [7, 0, 4, 2, 9, 1]}], ids=str)
def test_labels_in_the_order_of_appearance(options):
    stream, train, test = arrays(labels="appearance", seed=2, **options)
    label_of = {}
    for i, (numbers, labels) in enumerate(train):
        assert sorted(set(labels)) == [3 * i, 3 * i + 1, 3 * i + 2], (
            "the labels of an experience follow the earlier ones"
        )
        label_of.update(mapping(zip(numbers.tolist(), labels.tolist(), strict=True)))
    assert len(label_of) == len(set(label_of.values())) == stream.info.for_learner.n_outputs == 3 * len(train)
    for numbers, labels in test:
        assert [label_of[number % N_CLASSES] for number in numbers] == labels.tolist()
    _, same_images, _ = arrays(labels="global", seed=2, **options)
    assert [numbers.tolist() for numbers, _ in train] == [numbers.tolist() for numbers, _ in same_images]


def test_with_replacement_each_experience_draws_its_classes_anew():
    """Each of the 12 classes is in an experience of 3 with probability 1/4, whatever came before."""
    stream, train, test = arrays(replacement=True, n_experiences=400, labels="global")
    drawn = [frozenset(labels.tolist()) for _, labels in train]
    assert all(len(classes) == 3 for classes in drawn)
    assert [set(labels.tolist()) for _, labels in test] == drawn
    for (numbers, _), classes in zip(train, drawn, strict=True):
        assert sorted(numbers.tolist()) == members_of(classes)
    counts = Counter(label for classes in drawn for label in classes)
    assert set(counts) == set(range(N_CLASSES))
    assert all(70 <= count <= 130 for count in counts.values()), "100 expected, with a standard deviation of 8.7"
    again = sum(len(one & other) for one, other in pairwise(drawn))
    assert 0.6 <= again / 399 <= 0.9, "3/4 of a class expected in common with the experience before"
    assert len(set(drawn)) > 150, "of 220 possible ones"
    assert sum(e.n_seen_before for e in stream.info.experiences) == 400 * 12 - 48


def members_of(classes):
    return [number for number in range(48) if number % N_CLASSES in classes]


def test_images_that_come_again_with_replacement_come_in_another_order():
    _, train, _ = arrays(replacement=True, n_experiences=20, classes_per_experience=12)
    assert len({tuple(numbers.tolist()) for numbers, _ in train}) == 20


def test_labels_of_experiences_that_share_classes():
    options = {"replacement": True, "n_experiences": 8, "seed": 1}
    _, train, _ = arrays(**options, labels="within")
    assert all(sorted(set(labels.tolist())) == [0, 1, 2] for _, labels in train)
    stream, train, _ = arrays(**options, labels="appearance")
    label_of, known = {}, 0
    for numbers, labels in train:
        for number, label in zip(numbers.tolist(), labels.tolist(), strict=True):
            assert label_of.setdefault(number % N_CLASSES, label) == label, "a class keeps its label"
        assert set(label_of.values()) == set(range(len(label_of))), "new classes take the next labels"
        assert set(labels.tolist()) & set(range(known, len(label_of))) == set(range(known, len(label_of)))
        known = len(label_of)
    assert stream.info.for_learner.n_outputs == known


def test_the_first_experience_is_the_same_with_and_without_replacement():
    (_, dealt, _), (_, drawn, _) = arrays(seed=4), arrays(seed=4, replacement=True, n_experiences=3)
    assert [part.tolist() for part in dealt[0]] == [part.tolist() for part in drawn[0]]


def test_source_labels_need_not_be_consecutive():
    x, y, x_test, y_test = SOURCE
    stream = split((x, 10 * y + 50, x_test, 10 * y_test + 50))
    for experience, info in zip(stream.train, stream.info.experiences, strict=True):
        assert info.classes == sorted({10 * (number % N_CLASSES) + 50 for number, _ in samples(experience)})
    assert stream_samples(stream.train) == stream_samples(split().train)


def test_seeds_differ_in_classes_and_in_the_order_of_samples():
    classes = {str([info.classes for info in split(seed=seed).info.experiences]) for seed in range(10)}
    assert len(classes) == 10
    # with one experience of all classes, only the order of samples is left to the seed
    orders = {
        str([number for number, _ in samples(split(classes_per_experience=12, seed=seed).train[0])])
        for seed in range(10)
    }
    assert len(orders) == 10


def test_samples_of_the_classes_of_an_experience_are_interleaved():
    """If the classes came one after another, each would be met in one block of four."""
    for experience in split().train:
        labels = [label for _, label in samples(experience)]
        assert sum(a != b for a, b in pairwise(labels)) > 2


def test_only_some_classes():
    stream = split(classes=[1, 4, 5, 9, 10, 11])
    assert len(stream.train) == 2
    numbers = [number for experience in stream_samples(stream.train) for number, _ in experience]
    assert sorted(numbers) == [n for n in range(48) if n % N_CLASSES in (1, 4, 5, 9, 10, 11)]
    assert split(classes=list(range(N_CLASSES))).info.fingerprint == split().info.fingerprint


@pytest.mark.parametrize("missing", [[11], [0, 1, 2], list(range(1, 12))], ids=["last", "first three", "all but one"])
@pytest.mark.parametrize("stationary", [None, "shuffled", "repeat"])
@pytest.mark.parametrize("seed", range(3))
def test_the_test_split_may_lack_classes(missing, stationary, seed):
    """Even all classes of an experience, whose test experience is then empty."""
    x, y, x_test, y_test = SOURCE
    kept = ~np.isin(y_test, missing)
    # pairs of classes and only one class left: most test experiences are empty
    source, options = (x, y, x_test[kept], y_test[kept]), {"classes_per_experience": 2, "stationary": stationary}
    assert len(split(source, make_stream, seed=seed, **options).test_stream) == 6
    if stationary is None:
        stream = split(source, seed=seed, **options)
        tested = [samples(part) for part in stream.test]
        assert sorted(number for pairs in tested for number, _ in pairs) == sorted(48 + y_test[kept])
        for train, pairs in zip(stream.train, tested, strict=True):
            labels = mapping(samples(train))
            assert all(labels[number % N_CLASSES] == label for number, label in pairs)


def test_classes_of_one_image_each_have_nothing_to_hold_out():
    benchmark = split((coded_images(range(6)), np.arange(6)), make_stream)
    assert [len(experience.dataset) for experience in benchmark.train_stream] == [3, 3]
    assert [len(experience.dataset) for experience in benchmark.test_stream] == [0, 0]


@pytest.mark.parametrize("place", range(4), ids=["x", "y", "x_test", "y_test"])
def test_any_changed_value_of_the_source_changes_the_fingerprint(place):
    arrays = [array.copy() for array in SOURCE]
    arrays[place].flat[-1] ^= 1
    assert split(tuple(arrays)).info.fingerprint != split().info.fingerprint


def test_a_changed_shape_changes_the_fingerprint():
    x, y, x_test, y_test = SOURCE
    reshaped = (x.reshape(-1, 1, 4), y, x_test.reshape(-1, 1, 4), y_test)
    assert split(reshaped).info.fingerprint != split().info.fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"data_root": "elsewhere"},
        {"skip_unreadable": True},
        {"n_experiences": 4},
        {"samples_per_experience": 12},
        {"source": tuple(array.tolist() if array.ndim == 1 else array[..., None] for array in SOURCE)},
        {"source": tuple(np.asfortranarray(array) for array in SOURCE)},
    ],
    ids=["data_root", "skip_unreadable", "all experiences", "all samples", "same values", "other memory layout"],
)
def test_what_changes_no_sample_leaves_the_fingerprint(options):
    assert split(**options).info.fingerprint == split().info.fingerprint


def test_a_head_grows_with_the_classes_in_their_order_of_appearance():
    """With any other numbering, Avalanche's growing head has outputs for classes that have not come yet."""
    benchmark = split(make=make_stream, labels="appearance", classes_per_experience=4)
    head = IncrementalClassifier(4, initial_out_features=2)
    sizes = []
    for experience in benchmark.train_stream:
        head.adaptation(experience)
        sizes.append(head.classifier.out_features)
    assert sizes == [4, 8, 12]
    assert benchmark.info.for_learner.n_outputs == 12
