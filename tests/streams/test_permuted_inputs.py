"""Permuted inputs. On coded images a pixel's value tells its place before the permutation."""

import pickle
import re

import numpy as np
import pytest

from continual_metaopt.streams import make_stream, plan_stream
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


def planned(**options):
    return plan_stream("permuted_inputs", source=coded_source(), **options)


def read(samples):
    """Numbers of the images, labels, and the one permutation of all samples."""
    x, labels = samples.batch(slice(None))
    flat = np.rint((x.reshape(len(x), -1).astype(float) * 0.5 + 0.5) * 255).astype(np.int64)
    numbers, places = flat // N_PIXELS, flat % N_PIXELS
    assert (numbers == numbers[:, :1]).all()
    assert (places == places[:1]).all()
    return numbers[:, 0].tolist(), labels.tolist(), tuple(places[0].tolist())


def test_permutations_that_come_again():
    stream, anew = planned(n_experiences=7, n_permutations=3), planned(n_experiences=7)
    first = [read(samples)[2] for samples in anew.train]
    for split in (stream.train, stream.test):
        assert [read(samples)[2] for samples in split] == [*first[:3], *first[:3], first[0]]
    assert [read(samples)[:2] for samples in stream.train] == [read(samples)[:2] for samples in anew.train]
    assert [e.n_seen_before for e in stream.info.experiences] == [0, 0, 0, 16, 16, 16, 16]


def test_images_drawn_on_through_the_source():
    """Experiences of 6 of 16 images: passes end within them, and no image comes again before the pass has ended."""
    stream = planned(n_experiences=8, samples_per_experience=6, continued=True)
    found = [read(samples) for samples in stream.train]
    assert [len(numbers) for numbers, _, _ in found] == [6] * 8
    assert len({places for _, _, places in found}) == 8
    numbers = [number for part, _, _ in found for number in part]
    passes = [numbers[start : start + 16] for start in range(0, 48, 16)]
    assert all(sorted(one) == list(range(16)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert [number % 4 for number in numbers] == [label for _, labels, _ in found for label in labels]


def test_experiences_of_several_passes():
    found = [read(samples)[0] for samples in planned(n_experiences=2, samples_per_experience=40, continued=True).train]
    assert [len(numbers) for numbers in found] == [40, 40]
    passes = [tuple((found[0] + found[1])[start : start + 16]) for start in range(0, 80, 16)]
    assert all(sorted(one) == list(range(16)) for one in passes)
    assert len(set(passes)) == 5


def test_without_drawing_on_an_experience_is_at_most_one_pass():
    assert [len(samples) for samples in planned(n_experiences=2, samples_per_experience=40).train] == [16, 16]


def test_thousands_of_permutations_are_not_kept():
    few, many = (pickle.dumps(planned(n_experiences=n).train[1]) for n in (2, 2000))
    assert abs(len(few) - len(many)) < 10


def test_a_permuted_stream_goes_to_another_process():
    samples = planned(n_experiences=2).train[1]
    assert read(pickle.loads(pickle.dumps(samples))) == read(samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_experiences": 0}, "n_experiences must be at least 1, not 0"),
        ({"n_permutations": 0}, "n_permutations must be at least 1, not 0"),
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
