"""Changes of pixels by hand, beside a plain reference, and the same on every platform."""

import hashlib
import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from continual_metaopt.streams.input_changes import (
    Brightness,
    CropAndFlip,
    Noise,
    Rotation,
    fixed_sine,
    normal_quantiles,
)

UNCHANGED = {"rotation": (Rotation(), 0), "brightness": (Brightness(), 1000), "noise": (Noise(0), 0)}
CHANGES = {
    "rotation": (Rotation(), 3300),
    "brightness": (Brightness(), 1700),
    "noise": (Noise(5), 2000),
    "crops": (CropAndFlip(1), 0),
}


def photograph(n=6, height=5, width=7, channels=3):
    return np.random.RandomState(0).randint(256, size=(n, height, width, channels)).astype(np.uint8)


def changed(change, images, numbers, steps=None):
    numbers = np.broadcast_to(np.array(numbers, np.int32), len(images))
    steps = np.arange(len(images)) if steps is None else np.array(steps)
    return change.apply(images.copy(), numbers, steps)


# --- rotation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quarter", range(4))
@pytest.mark.parametrize("channels", [1, 3])
def test_quarter_turns_are_exact(quarter, channels):
    images = photograph(height=6, width=6, channels=channels)
    expected = np.rot90(images, quarter, axes=(1, 2))
    np.testing.assert_array_equal(changed(Rotation(), images, 9000 * quarter), expected)


def test_a_quarter_turn_by_hand():
    """Counter-clockwise: the right column becomes the top row."""
    images = np.array([[1, 2], [3, 4]], np.uint8).reshape(1, 2, 2, 1)
    assert changed(Rotation(), images, 9000).ravel().tolist() == [2, 4, 1, 3]
    assert changed(Rotation(), images, 27_000).ravel().tolist() == [3, 1, 4, 2]


def test_what_comes_from_outside_is_black():
    """A quarter turn of an image that is not square: 1 × 3, of which only the middle stays inside."""
    images = np.array([10, 20, 30], np.uint8).reshape(1, 1, 3, 1)
    assert changed(Rotation(), images, 9000).ravel().tolist() == [0, 20, 0]


def test_an_eighth_turn_by_hand():
    """Of a 3 × 3 image with nothing but a bright pixel on the right, one pixel from the centre.

    Turned by 45°, the corners come from √2 pixels away, 106/256 of which are beyond the edge; the pixels beside
    the corners come from (±181, ±181)/256.
    """
    image = np.zeros((1, 3, 3, 1), np.uint8)
    image[0, 1, 2] = 255
    right_up = 255 * (256 - 106) * 256  # the upper right corner: 362/256 to the right of the centre
    side = 255 * 181 * (256 - 181)  # up, and right: 181/256 to the right, and as much up or down
    corner, edge = ((value + 2**15) >> 16 for value in (right_up, side))
    assert changed(Rotation(), image, 4500)[0, :, :, 0].tolist() == [[0, edge, corner], [0, 0, edge], [0, 0, 0]]
    assert (corner, edge) == (149, 53)


@pytest.mark.parametrize("angle", [1, 777, 3000, 12_345, 35_999])
def test_rotation_is_bilinear_interpolation(angle):
    """Against interpolation in floating point at exact coordinates, which differ by up to 1/512 pixel each way."""
    images = photograph()
    radians = math.radians(angle / 100)
    n, height, width, channels = images.shape
    framed = np.zeros((n, height + 40, width + 40, channels))
    framed[:, 20:-20, 20:-20] = images
    found = changed(Rotation(), images, angle)
    for i in range(height):
        for j in range(width):
            down, right = i - (height - 1) / 2, j - (width - 1) / 2
            y = math.sin(radians) * right + math.cos(radians) * down + (height - 1) / 2 + 20
            x = math.cos(radians) * right - math.sin(radians) * down + (width - 1) / 2 + 20
            (y0, dy), (x0, dx) = ((math.floor(v), v - math.floor(v)) for v in (y, x))
            expected = (
                (1 - dy) * (1 - dx) * framed[:, y0, x0]
                + (1 - dy) * dx * framed[:, y0, x0 + 1]
                + dy * (1 - dx) * framed[:, y0 + 1, x0]
                + dy * dx * framed[:, y0 + 1, x0 + 1]
            )
            assert np.abs(found[:, i, j] - expected).max() <= 255 * 2 / 512 + 0.51


def test_sines_are_rounded_alike_on_every_platform():
    """None of them is so near to the middle between two integers that an inexact sine could change it."""
    exact = [math.sin(math.radians(angle / 100)) * 65536 for angle in range(Rotation.FULL_TURN)]
    assert min(abs(sine % 1 - 0.5) for sine in exact) > 1e-6
    assert [fixed_sine(angle) for angle in (0, 3000, 9000, 18_000, 27_000)] == [0, 32768, 65536, 0, -65536]


# --- brightness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1000, [0, 1, 2, 100, 200, 255]),
        (0, [0, 0, 0, 0, 0, 0]),
        (250, [0, 0, 1, 25, 50, 64]),  # 0.25, 0.5, …, 63.75
        (1500, [0, 2, 3, 150, 255, 255]),  # 300 and 382.5 are brighter than white
        (255_000, [0, 255, 255, 255, 255, 255]),
    ],
)
def test_brightness_by_hand(factor, expected):
    images = np.array([0, 1, 2, 100, 200, 255], np.uint8).reshape(1, 2, 3, 1)
    assert changed(Brightness(), images, factor).ravel().tolist() == expected


# --- noise -----------------------------------------------------------------------------------------------------------


def noise_of(seed=0, deviation=2000, n=50, steps=None):
    """The noise on grey images 32 × 32 × 3, [n, 3072]; byte 128 is 6.4 deviations of 20 away from black and white."""
    images = np.full((n, 32, 32, 3), 128, np.uint8)
    return changed(Noise(seed), images, deviation, steps).reshape(n, -1).astype(int) - 128


def test_noise_is_normal_with_the_deviation_asked_for():
    noise = noise_of()
    assert abs(noise.mean()) < 4 * 20 / math.sqrt(noise.size)
    assert noise.std() == pytest.approx(20, rel=4 / math.sqrt(2 * noise.size))
    for beyond in (1, 2, 3):  # halves, because noise is rounded to bytes
        expected = 2 * NormalDist().cdf(-(20 * beyond + 0.5) / 20)
        share = (np.abs(noise) > 20 * beyond).mean()
        assert abs(share - expected) < 4 * math.sqrt(expected / noise.size)


def test_noise_is_independent_of_other_samples_places_and_seeds():
    """Correlations of 150,000 numbers have a standard deviation of 0.0026."""
    noise, other = noise_of(), noise_of(seed=1)
    held_out = noise_of(steps=~np.arange(50))
    for one, two in [
        (noise[1:], noise[:-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[:, 4:], noise[:, :-4]),
        (noise, other),
        (noise, held_out),
    ]:
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.011


def test_noise_depends_on_the_step_alone():
    """Not on which other samples are asked for, on the image, or on the number of pixels before it."""
    every = noise_of(n=8)
    some = noise_of(n=3, steps=[5, 2, 5])
    np.testing.assert_array_equal(some, every[[5, 2, 5]])
    far = noise_of(n=2, steps=[10_000_000_000, 3])
    np.testing.assert_array_equal(far[1], every[3])
    assert (far[0] != every[0]).mean() > 0.9


def test_noise_beyond_black_and_white_is_cut():
    images = np.repeat(np.array([0, 255], np.uint8), 3072).reshape(2, 32, 32, 3)
    black, white = changed(Noise(0), images, 20_000)
    for image, bound in ((black, 0), (white, 255)):
        assert (image == bound).mean() == pytest.approx(0.5, abs=0.04)
        assert np.abs(image.astype(int) - bound).max() > 250


def test_quantiles_are_rounded_alike_on_every_platform():
    exact = [4096 * NormalDist().inv_cdf((u + 0.5) / 65536) for u in range(0, 65536)]
    assert min(abs(value % 1 - 0.5) for value in exact) > 1e-6
    quantiles = normal_quantiles()
    np.testing.assert_array_equal(quantiles, -quantiles[::-1])
    assert (quantiles / 4096).var() == pytest.approx(1, abs=1e-4)


# --- crops and mirrors -----------------------------------------------------------------------------------------------


def test_images_are_moved_and_mirrored_in_all_ways_equally_often():
    """Each of 9 × 9 places and its mirror image, of 5,000 draws; what comes into sight is black."""
    (image,) = photograph(1, height=6, width=6) // 2 + 1  # nothing is black
    framed = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    parts = [framed[down : down + 6, right : right + 6] for down in range(9) for right in range(9)]
    ways = {part[:, ::turn].tobytes(): way for way, (part, turn) in enumerate(product(parts, (1, -1)))}
    found = changed(CropAndFlip(0), np.repeat(image[None], 5000, axis=0), 0)
    counts = np.bincount([ways[one.tobytes()] for one in found], minlength=162)
    expected = 5000 / 162
    assert ((counts - expected) ** 2 / expected).sum() < 161 + 4 * math.sqrt(2 * 161)  # a chi-squared variable
    again = changed(CropAndFlip(0), np.repeat(image[None], 2, axis=0), 0, steps=[40, 7])
    np.testing.assert_array_equal(again, found[[40, 7]])
    assert (changed(CropAndFlip(1), np.repeat(image[None], 50, axis=0), 0) != found[:50]).any()


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNCHANGED)
def test_a_level_of_no_change(name):
    change, number = UNCHANGED[name]
    np.testing.assert_array_equal(changed(change, photograph(), number), photograph())


@pytest.mark.parametrize("name", CHANGES)
def test_each_image_is_changed_by_its_own_number(name):
    change, number = CHANGES[name]
    images, numbers = photograph(), np.array([number, -1, number + 100, number, -1, number + 200])
    found = changed(change, images, numbers)
    for i, one in enumerate(numbers):
        expected = images[i] if one < 0 else changed(change, images[i : i + 1], one, [i])[0]
        np.testing.assert_array_equal(found[i], expected)
        assert (one < 0) == (found[i] == images[i]).all()


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("rotation", "1f03b4fe3207a75ad69b952d922825e9"),
        ("brightness", "80c36e1b0f304cef90ea60955855599d"),
        ("noise", "0f78be1921888baeff0932e351b76e9a"),
        ("crops", "a1338c5bbde655b97647da09c81e64fd"),
    ],
)
def test_these_very_bytes_on_every_platform(name, recorded):
    change, number = CHANGES[name]
    found = changed(change, photograph(height=32, width=32), number + 10 * np.arange(6))
    assert hashlib.sha256(found.tobytes()).hexdigest()[:32] == recorded


def test_contents_differ():
    """So that fingerprints do."""
    changes = Rotation(), Brightness(), Noise(0), Noise(1), CropAndFlip(0), CropAndFlip(1)
    assert len({change.content() for change in changes}) == len(changes)
