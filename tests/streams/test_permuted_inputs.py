"""Permuted inputs. On coded images a pixel's value tells its place before the permutation."""

import re

import numpy as np
import pytest

from streams import make_stream
from tests.streams.synthetic import coded_images, stored_bytes

HEIGHT, WIDTH = 3, 4
N_PIXELS = HEIGHT * WIDTH


def coded_source(colour=False):
    """Sixteen training and four test images of four classes; image i has class i modulo four."""
    x = coded_images(range(20), HEIGHT, WIDTH)
    if colour:  # three channels that differ, each telling the pixel's place
        x = np.stack([x, 255 - x, x ^ 1], axis=-1)
    y = np.arange(20) % 4
    return x[:16], y[:16], x[16:], y[16:]


def permuted(source=None, **options):
    return make_stream("permuted_inputs", source=source or coded_source(), **{"n_experiences": 3, **options})


def decode(experience):
    """Numbers, labels, and the place from which each pixel of each image came: [N, pixels]."""
    flat = np.stack([stored_bytes(image)[0].ravel() for image, _, _ in experience.dataset])
    numbers, places = flat // N_PIXELS, flat % N_PIXELS
    assert (numbers == numbers[:, :1]).all(), "pixels of different images mixed"
    return numbers[:, 0].tolist(), [label for _, label, _ in experience.dataset], places


@pytest.mark.parametrize("seed", [0, 4])
def test_one_permutation_for_each_experience(seed):
    benchmark = permuted(seed=seed)
    found = []
    for train, test in zip(benchmark.train_stream, benchmark.test_stream, strict=True):
        places, test_places = decode(train)[2], decode(test)[2]
        assert sorted(places[0].tolist()) == list(range(N_PIXELS)), "a true permutation"
        assert (places == places[0]).all(), "the same for all images"
        assert (test_places == places[0]).all(), "and for the test images"
        found.append(tuple(places[0].tolist()))
    assert len(set(found)) == 3, "another one in each experience"
    assert tuple(range(N_PIXELS)) not in found, "the first experience is permuted too"


def test_seeds_differ_in_permutations():
    found = {tuple(decode(permuted(seed=seed).train_stream[0])[2][0].tolist()) for seed in range(10)}
    assert len(found) == 10


def test_every_experience_is_one_pass_in_a_new_order_with_the_sources_labels():
    benchmark = permuted()
    orders = []
    for experience in benchmark.train_stream:
        numbers, labels, _ = decode(experience)
        assert sorted(numbers) == list(range(16))
        assert labels == [number % 4 for number in numbers]
        orders.append(tuple(numbers))
    assert len(set(orders)) == 3
    assert tuple(range(16)) not in orders
    for experience in benchmark.test_stream:
        numbers, labels, _ = decode(experience)
        assert sorted(numbers) == [16, 17, 18, 19]
        assert labels == [number % 4 for number in numbers]


def test_all_channels_are_permuted_alike():
    for stream in ((benchmark := permuted(coded_source(colour=True))).train_stream, benchmark.test_stream):
        for experience in stream:
            for image, _, _ in experience.dataset:
                red, green, blue = stored_bytes(image)
                assert image.shape == (3, HEIGHT, WIDTH)
                np.testing.assert_array_equal(green, 255 - red)
                np.testing.assert_array_equal(blue, red ^ 1)


def test_colour_and_grey_streams_use_the_same_permutations():
    grey, colour = permuted(), permuted(coded_source(colour=True))
    for one, other in zip(grey.train_stream, colour.train_stream, strict=True):
        for (image, label, _), (coloured, same_label, _) in zip(one.dataset, other.dataset, strict=True):
            np.testing.assert_array_equal(stored_bytes(image)[0], stored_bytes(coloured)[0])
            assert label == same_label


def test_info():
    info = permuted(samples_per_experience=5).info
    assert info.definition == "permuted_inputs v1"
    assert info.boundaries == [0, 5, 10]
    assert [experience.n_seen_before for experience in info.experiences] == [0, 0, 0]
    assert info.for_learner.n_outputs == 4
    assert info.for_learner.n_samples == 15
    assert info.for_learner.input_shape == (1, HEIGHT, WIDTH)


def test_fewer_samples_are_the_first_ones_of_each_experience():
    whole, part = permuted(), permuted(samples_per_experience=5)
    for one, other in zip(whole.train_stream, part.train_stream, strict=True):
        assert decode(one)[0][:5] == decode(other)[0]
        np.testing.assert_array_equal(decode(one)[2][:5], decode(other)[2])


def test_more_experiences_leave_the_first_ones_as_they_were():
    for one, other in zip(permuted(n_experiences=2).train_stream, permuted(n_experiences=5).train_stream, strict=False):
        assert decode(one)[0] == decode(other)[0]
        np.testing.assert_array_equal(decode(one)[2], decode(other)[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_experiences": 0}, "n_experiences must be at least 1, not 0"),
        ({"samples_per_experience": 0}, "samples_per_experience must be at least 1, not 0"),
        ({"samples_per_experience": -3}, "samples_per_experience must be at least 1, not -3"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        permuted(**options)
    assert str(error.value) == message


RECORDED = [
    ({}, "1b9134e97d5af58c8700256b59ccc578"),
    ({"seed": 1}, "17fdf2e825d8f44ab3c8f890b3935559"),
    ({"n_experiences": 2, "samples_per_experience": 7}, "1e81dd2bdfcc415f7df82f18c27e35e5"),
    ({"stationary": "shuffled"}, "89ec2ab880ffa195b5b7b2fbf61246f8"),
    ({"stationary": "repeat"}, "43844e78adafee21b7dfa248395631bd"),
    ({"samples_per_experience": 1000}, "1b9134e97d5af58c8700256b59ccc578"),
    ({"n_experiences": 1}, "c2aaf936dd5538eae5472af15c594be8"),
    ({"stationary": "frozen", "frozen_after": 1}, "5d2d3d87856dd215c8ccd79e660625c5"),
    ({"transition_width": 6}, "9c53d90603fd09d5351d60f58670fb67"),
    ({"source": coded_source(colour=True)}, "21cb831f63b50663dddf0600f7bc189d"),
]


@pytest.mark.parametrize(("options", "fingerprint"), RECORDED)
def test_fingerprints_of_earlier_versions_still_hold(options, fingerprint):
    assert permuted(**options).info.fingerprint == fingerprint


def test_a_seed_means_these_very_permutations():
    """Recorded once, seed 0."""
    train = permuted(seed=0).train_stream
    assert decode(train[0])[2][0].tolist() == [2, 10, 11, 0, 5, 8, 6, 7, 9, 4, 1, 3]
    assert decode(train[1])[2][0].tolist() == [8, 2, 3, 6, 4, 0, 5, 9, 10, 7, 1, 11]
    assert decode(train[0])[0] == [7, 0, 3, 12, 8, 4, 15, 10, 13, 11, 5, 9, 6, 14, 1, 2]
