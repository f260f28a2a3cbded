"""Permuted inputs. On coded images a pixel's value tells its place before the permutation."""

import pickle

import numpy as np
import pytest

from continual_metaopt.streams import plan_stream
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


def permuted(colour=False, **options):
    return plan_stream("permuted_inputs", source=coded_source(colour), **{"n_experiences": 3, **options})


def read(samples):
    """Numbers of the images, labels, and the one permutation of all samples."""
    x, labels = samples.batch(slice(None))
    flat = stored_bytes(x)[:, 0].reshape(len(x), -1)
    numbers, places = flat // N_PIXELS, flat % N_PIXELS
    assert (numbers == numbers[:, :1]).all(), "pixels of different images mixed"
    assert (places == places[:1]).all(), "the same for all images"
    return numbers[:, 0].tolist(), labels.tolist(), tuple(places[0].tolist())


@pytest.mark.parametrize("seed", [0, 4])
def test_one_permutation_for_each_experience(seed):
    stream = permuted(seed=seed)
    found = [read(samples)[2] for samples in stream.train]
    assert all(sorted(places) == list(range(N_PIXELS)) for places in found), "true permutations"
    assert [read(samples)[2] for samples in stream.test] == found
    assert len(set(found)) == 3, "another one in each experience"
    assert tuple(range(N_PIXELS)) not in found, "the first experience is permuted too"
    assert read(permuted(seed=seed + 1).train[0])[2] != found[0], "seeds differ in permutations"


def test_every_experience_is_one_pass_in_a_new_order_with_the_sources_labels():
    stream = permuted()
    orders = [read(samples)[0] for samples in stream.train]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(16)]}) == 4
    assert [sorted(read(samples)[0]) for samples in stream.test] == [[16, 17, 18, 19]] * 3
    for samples in (*stream.train, *stream.test):
        numbers, labels, _ = read(samples)
        assert labels == [number % 4 for number in numbers]


def test_all_channels_are_permuted_alike():
    grey, colour = permuted(), permuted(colour=True)
    for one, other in zip((*grey.train, *grey.test), (*colour.train, *colour.test), strict=True):
        (images, labels), (coloured, same_labels) = one.batch(slice(None)), other.batch(slice(None))
        red = stored_bytes(images)[:, 0]
        np.testing.assert_array_equal(stored_bytes(coloured), np.stack([red, 255 - red, red ^ 1], axis=1))
        np.testing.assert_array_equal(labels, same_labels)


def test_info():
    info = permuted(samples_per_experience=5).info
    assert info.definition == "permuted_inputs v1"
    assert info.boundaries == [0, 5, 10]
    assert [experience.n_seen_before for experience in info.experiences] == [0, 0, 0]
    sizes = info.for_learner
    assert (sizes.n_outputs, sizes.n_samples, sizes.input_shape) == (4, 15, (1, HEIGHT, WIDTH))


def test_permutations_that_come_again():
    stream, anew = permuted(n_experiences=7, n_permutations=3), permuted(n_experiences=7)
    first = [read(samples)[2] for samples in anew.train]
    for split in (stream.train, stream.test):
        assert [read(samples)[2] for samples in split] == [*first[:3], *first[:3], first[0]]
    assert [read(samples)[:2] for samples in stream.train] == [read(samples)[:2] for samples in anew.train]
    assert [e.n_seen_before for e in stream.info.experiences] == [0, 0, 0, 16, 16, 16, 16]


@pytest.mark.parametrize(("n_experiences", "n", "n_passes"), [(8, 6, 3), (2, 40, 5)])
def test_images_drawn_on_through_the_source(n_experiences, n, n_passes):
    """Passes over 16 images end within experiences, and no image comes again before the pass has ended."""
    stream = permuted(n_experiences=n_experiences, samples_per_experience=n, continued=True)
    found = [read(samples) for samples in stream.train]
    assert [len(numbers) for numbers, _, _ in found] == [n] * n_experiences
    assert len({places for _, _, places in found}) == n_experiences
    numbers = [number for part, _, _ in found for number in part]
    passes = [numbers[start : start + 16] for start in range(0, len(numbers), 16)]
    assert all(sorted(one) == list(range(16)) for one in passes)
    assert len({tuple(one) for one in passes}) == n_passes
    assert [number % 4 for number in numbers] == [label for _, labels, _ in found for label in labels]


def test_without_drawing_on_an_experience_is_at_most_one_pass():
    assert [len(samples) for samples in permuted(samples_per_experience=40).train] == [16, 16, 16]


def test_thousands_of_permutations_are_not_kept():
    few, many = (pickle.dumps(permuted(n_experiences=n).train[1]) for n in (2, 2000))
    assert abs(len(few) - len(many)) < 10


def test_a_permuted_stream_goes_to_another_process():
    samples = permuted().train[1]
    assert read(pickle.loads(pickle.dumps(samples))) == read(samples)
