"""Hard and easy experiences. On coded images a sample's number tells its class."""

import pytest

from continual_metaopt.streams import plan_stream
from tests.streams.synthetic import N_CLASSES, coded_arrays, numbers_and_labels

SOURCE = coded_arrays()  # 12 classes, four training images and one test image each


def made(**options):
    return plan_stream("hard_and_easy", source=SOURCE, **options)


def numbers(samples):
    return numbers_and_labels(samples)[0].tolist()


def classes(samples):
    return {number % N_CLASSES for number in numbers(samples)}


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [5, 1, 5, 1]),  # 5+1 twice
        ({"hard_classes": 3}, [3, 1, 3, 1, 3, 1]),
        ({"hard_classes": 4, "easy_classes": 2}, [4, 2, 4, 2]),
        ({"hard_classes": 9}, [9, 1]),  # two classes are left over
        ({"hard_classes": 5, "easy_classes": 2}, [5, 2, 5]),  # ends with a hard one
        ({"hard_classes": 3, "n_experiences": 3}, [3, 1, 3]),
        ({"hard_classes": 2, "easy_classes": 1, "classes": [0, 3, 5, 7, 11]}, [2, 1, 2]),
        ({"hard_classes": 1, "easy_classes": 1, "n_experiences": 1}, [1]),
    ],
)
@pytest.mark.parametrize("seed", [0, 3])
def test_experiences_of_many_and_of_few_classes_take_turns(options, sizes, seed):
    stream = made(seed=seed, **options)
    found = [classes(samples) for samples in stream.train]
    assert [len(one) for one in found] == sizes
    assert [classes(samples) for samples in stream.test] == found
    assert len(set().union(*found)) == sum(sizes), "no class comes in two experiences"
    assert set().union(*found) <= set(options.get("classes", range(N_CLASSES)))


def test_an_experience_is_ten_passes_over_the_images_of_a_hard_one():
    """As the paper's 780 batches of 32 are for 2,500 images; here 5 classes of 4 images."""
    stream = made()
    assert stream.info.boundaries == [0, 200, 400, 600]
    for samples, n_images in zip(stream.train, [20, 4, 20, 4], strict=True):
        found = numbers(samples)
        passes = [tuple(found[start : start + n_images]) for start in range(0, 200, n_images)]
        assert len(passes) == 200 // n_images
        assert all(len(set(one)) == n_images for one in passes), "each image once in each pass"
        assert len(set(passes)) > 9, "in new orders"
    assert [e.n_seen_before for e in stream.info.experiences] == [180, 196, 180, 196]


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"hard_samples": 7}, [7, 7, 7, 7]),
        ({"easy_samples": 9}, [200, 9, 200, 9]),
        ({"hard_samples": 33, "easy_samples": 2}, [33, 2, 33, 2]),
    ],
)
def test_lengths(options, lengths):
    assert [len(samples) for samples in made(**options).train] == lengths


@pytest.mark.parametrize(
    ("labels", "n_outputs", "expected"),
    [
        ("within", 5, [set(range(5)), {0}, set(range(5)), {0}]),
        ("appearance", 12, [set(range(5)), {5}, set(range(6, 11)), {11}]),
    ],
)
def test_labels(labels, n_outputs, expected):
    stream = made(labels=labels)
    assert stream.info.for_learner.n_outputs == n_outputs
    assert [set(numbers_and_labels(samples)[1].tolist()) for samples in stream.train] == expected
    assert [set(numbers_and_labels(samples)[1].tolist()) for samples in stream.test] == expected


def test_by_default_labels_are_the_sources():
    for samples in made().train:
        found, labels = numbers_and_labels(samples)
        assert labels.tolist() == (found % N_CLASSES).tolist()
