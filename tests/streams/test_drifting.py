"""Input drift: levels over the experiences, stationary variants, random access, fingerprints."""

import numpy as np
import pytest

from continual_metaopt.streams import plan_stream
from continual_metaopt.streams.input_changes import Brightness, Noise, Rotation
from continual_metaopt.streams.samples import scale

CHANGES = {"drifting_rotation": Rotation(), "drifting_brightness": Brightness(), "drifting_noise": Noise(0)}


def source():
    """Sixteen training and four test images of four classes, all different, in colour."""
    x = np.random.RandomState(1).randint(256, size=(20, 6, 5, 3)).astype(np.uint8)
    return x[:16], np.arange(16) % 4, x[16:], np.arange(4)


def drifting(name, **options):
    return plan_stream(name, source=source(), **{"n_experiences": 4, **options})


def arrays(samples):
    """Bytes [n, H, W, C] and labels of an experience."""
    x, y = samples.batch(slice(None))
    return np.rint((x.astype(float) * 0.5 + 0.5) * 255).astype(np.uint8).transpose(0, 2, 3, 1), y


LEVELS = [
    ("drifting_rotation", {}, [0, 6000, 12_000, 18_000]),
    ("drifting_rotation", {"degrees": -90.0}, [0, 33_000, 30_000, 27_000]),
    ("drifting_rotation", {"degrees": 0.1}, [0, 3, 7, 10]),
    ("drifting_rotation", {"degrees": 360.0, "n_experiences": 2}, [0, 0]),
    ("drifting_brightness", {}, [1000, 733, 467, 200]),
    ("drifting_brightness", {"factor": 2.5, "n_experiences": 3}, [1000, 1750, 2500]),
    ("drifting_noise", {}, [0, 2133, 4267, 6400]),
    ("drifting_noise", {"deviation": 0.5, "n_experiences": 2}, [0, 50]),
]


@pytest.mark.parametrize(("name", "options", "levels"), LEVELS)
def test_the_change_grows_from_nothing_to_its_maximum(name, options, levels):
    """Every experience shows all images, changed by its level: training and held-out images alike."""
    stream, (x, y, x_test, y_test) = drifting(name, **options), source()
    first = 0
    for level, train, test in zip(levels, stream.train, stream.test, strict=True):
        found, labels = arrays(train)
        order = drawn_order(stream, first, labels)
        steps = np.arange(first, first + 16)
        np.testing.assert_array_equal(found, CHANGES[name].apply(x[order], np.full(16, level), steps))
        np.testing.assert_array_equal(labels, y[order])
        found, labels = arrays(test)
        held_out = -1 - 4 * (first // 16) - np.arange(4)
        np.testing.assert_array_equal(found, CHANGES[name].apply(x_test.copy(), np.full(4, level), held_out))
        np.testing.assert_array_equal(labels, y_test)
        first += 16


def drawn_order(stream, first, labels):
    """Which images an experience shows: NumPy's permutation, from the seed's sequence of that experience."""
    order = np.random.RandomState([0, 1, first // 16]).permutation(16)
    assert (order % 4 == labels).all()
    return order


@pytest.mark.parametrize("name", CHANGES)
def test_repeat_stays_at_the_first_level_and_frozen_at_the_last_one(name):
    changing, x = drifting(name), source()[0]
    originals = {image.tobytes() for image in x}
    repeat = drifting(name, stationary="repeat")
    for samples in repeat.train:
        assert {image.tobytes() for image in arrays(samples)[0]} == originals

    frozen = drifting(name, stationary="frozen", frozen_after=2)
    for i in range(3):
        np.testing.assert_array_equal(arrays(frozen.train[i])[0], arrays(changing.train[i])[0])
    shown = [{image.tobytes() for image in arrays(frozen.train[i])[0]} for i in (2, 3)]
    assert shown[0].isdisjoint(originals)
    if name == "drifting_noise":  # the images are the same, but each has new noise
        assert shown[0].isdisjoint(shown[1])
    else:
        assert shown[0] == shown[1]
    assert [e.n_seen_before for e in frozen.info.experiences] == [0, 0, 0, 16]


@pytest.mark.parametrize("stationary", [None, "shuffled"])
@pytest.mark.parametrize("name", CHANGES)
def test_samples_are_the_same_in_whatever_portions_they_are_read(name, stationary):
    stream = drifting(name, stationary=stationary, transition_width=6)
    for samples in (*stream.train, *stream.test):
        whole, labels = samples.batch(slice(None))
        for steps in (slice(1, 3), slice(3, 4), slice(-3, None), slice(None, None, -2), slice(2, 2)):
            x, y = samples.batch(steps)
            np.testing.assert_array_equal(x, whole[steps])
            np.testing.assert_array_equal(y, labels[steps])


@pytest.mark.parametrize("name", CHANGES)
def test_a_source_is_not_changed(name):
    images = source()
    stream = plan_stream(name, source=images, n_experiences=3)
    for samples in (*stream.train, *stream.test):
        samples.batch(slice(None))
    np.testing.assert_array_equal(images[0], source()[0])
    np.testing.assert_array_equal(images[2], source()[2])


def test_noise_is_new_for_every_presentation_and_held_out_sample():
    """The same image at the same level: in training twice, and as a held-out image."""
    x = np.full((4, 8, 8, 1), 128, np.uint8)
    stream = plan_stream(
        "drifting_noise", source=(x, range(4), x, range(4)), n_experiences=3, stationary="frozen", frozen_after=1
    )
    shown = [image.tobytes() for split in (stream.train, stream.test) for e in split[1:] for image in arrays(e)[0]]
    assert len(shown) == len(set(shown)) == 16


def test_seeds_differ_in_noise():
    x = np.full((1, 8, 8, 1), 128, np.uint8)
    streams = [plan_stream("drifting_noise", source=(x, [0], x, [0]), n_experiences=2, seed=seed) for seed in (0, 1)]
    one, other = (arrays(stream.train[1])[0] for stream in streams)
    assert (one != other).mean() > 0.9


@pytest.mark.parametrize("name", CHANGES)
def test_info(name):
    info = drifting(name, samples_per_experience=5).info
    assert info.definition == f"{name} v1"
    assert info.boundaries == [0, 5, 10, 15]
    assert [experience.n_seen_before for experience in info.experiences] == [0, 0, 0, 0]
    assert (info.for_learner.n_outputs, info.for_learner.input_shape) == (4, (3, 6, 5))


def test_pixels_are_scaled_after_the_change():
    stream = drifting("drifting_brightness", factor=0.0)
    assert (stream.train[-1].batch(slice(None))[0] == scale(np.zeros(1, np.uint8))).all()
