"""Gradual transitions of plans; those of all streams of images are in ``test_image_streams``."""

from itertools import pairwise

import numpy as np
import pytest

from continual_metaopt.streams.plan import plan_of
from continual_metaopt.streams.transitions import blur_boundaries


def plan(*lengths):
    """Experiences whose samples' labels tell the experience; every sample is another image."""
    spans = pairwise(np.cumsum([0, *lengths]).tolist())
    return plan_of([(np.arange(start, end), np.full(end - start, i), i) for i, (start, end) in enumerate(spans)])


def test_width_0_leaves_the_plan_as_it_is():
    before = plan(5, 3)
    assert blur_boundaries(before, 0, seed=0) is before


@pytest.mark.parametrize("width", [1, 2, 10, 60])
def test_samples_and_lengths_stay(width):
    before = plan(60, 100, 80)
    after = blur_boundaries(before, width, seed=0)
    assert after.lengths == before.lengths
    assert sorted(after.index) == sorted(before.index)
    assert after.digest() != before.digest() or width == 1
    np.testing.assert_array_equal(before.label[after.index], after.label), "label and change go with their image"
    np.testing.assert_array_equal(before.change[after.index], after.change)


@pytest.mark.parametrize("width", [40, 100, 400])
def test_the_share_of_the_new_experience_rises_linearly_over_the_width(width):
    """300 boundaries between experiences of 400: the share d samples after a boundary is 1/2 + d/width."""
    n, n_experiences = 400, 301
    after = blur_boundaries(plan(*[n] * n_experiences), width, seed=1)
    around = after.label.reshape(n_experiences, n)
    offsets = np.arange(-n // 2, n // 2)
    windows = np.concatenate([around[:-1, n // 2 :], around[1:, : n // 2]], axis=1)
    new = (windows == np.arange(1, n_experiences)[:, None]).mean(axis=0)
    expected = np.clip(0.5 + (offsets + 0.5) / width, 0, 1)
    # a binomial share has a standard deviation of at most 0.029; at the ends, samples move by few places in rank
    np.testing.assert_allclose(new, expected, atol=0.13)
    assert np.abs(new - expected).mean() < 0.025
    inner, outer = np.abs(offsets) < width // 2 - 2, np.abs(offsets) > width / 2 + 12
    assert np.polyfit(offsets[inner], new[inner], 1)[0] == pytest.approx(1 / width, rel=0.08)
    assert set(new[outer]) <= {0.0, 1.0}, "nothing is mixed farther away"


def test_samples_move_by_half_the_width_at_most():
    """In rank, those that overtake come on top: a few times the square root of the width."""
    n, width = 20_000, 2000
    after = blur_boundaries(plan(n // 2, n // 2), width, seed=0)
    moved = np.arange(n) - after.index
    assert np.abs(moved).max() <= width / 2 + 4 * np.sqrt(width)
    assert np.abs(moved).max() > 0.9 * width / 2


def test_a_sample_presented_beside_its_experience_is_counted_where_it_is_presented():
    """The second experience repeats the images of the first; the earlier presentation counts as the first one."""
    twice = plan_of([(np.arange(100), np.zeros(100), -1), (np.arange(100), np.ones(100), -1)])
    after = blur_boundaries(twice, 50, seed=0)
    assert twice.seen_before == (0, 100)
    again = [after.index[i] in after.index[:i] for i in range(200)]
    assert after.seen_before == (sum(again[:100]), sum(again[100:]))
    assert after.seen_before[0] > 0
    assert sum(after.seen_before) == 100


def test_seeds_decide_which_samples_are_mixed():
    one, same, other = (blur_boundaries(plan(50, 50), 20, seed) for seed in (0, 0, 1))
    assert one.index.tolist() == same.index.tolist()
    assert one.index.tolist() != other.index.tolist()


@pytest.mark.parametrize("width", [-1, 4])
def test_widths_that_do_not_fit(width):
    with pytest.raises(ValueError, match="transition_width") as error:
        blur_boundaries(plan(5, 3), width, seed=0)
    assert str(error.value) == (
        f"transition_width must be between 0 and the length of the shortest experience, 3, not {width}"
    )
