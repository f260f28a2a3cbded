"""The compiled forward view and learners of the study are those of the plain reference."""

import itertools

import numpy as np
import pytest

from benchmarks.dutch_traces import (
    EACH,
    MOMENTS_AND_TRACE,
    ONE,
    SHARED,
    USUAL,
    Setting,
    gain,
    gaps,
    order,
    problem,
    shown,
    tracking,
)
from tests.continual_metaopt.optim.forward_view import forward_view
from tests.continual_metaopt.optim.test_dutch_traces import STEPS, N, learn_separate, learn_shared, separate_problem

pytestmark = pytest.mark.slow  # compiles


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(("block", "of_weights"), [(EACH, np.eye(4)), (ONE, np.ones((4, 1)))])
def test_the_forward_view_is_that_of_brute_force(log: bool, block: np.ndarray, of_weights: np.ndarray) -> None:
    x, y = problem(0, separate=False, steps=20)
    meta_lr = 0.02 if log else 0.001
    setting = Setting("", block, gamma=0.8, log=log, diagonal=False)
    _, weights, beta = setting.view(x, y, 0.1, meta_lr, window=20)
    expected = forward_view(x, y, setting.beta(0.1), of_weights, meta_lr, 0.8, log=log, quadratic=True)
    np.testing.assert_allclose(weights, expected[0], rtol=1e-10)
    np.testing.assert_allclose(beta, expected[1], rtol=1e-10)


@pytest.mark.parametrize(("revision", "dutch"), [(USUAL, False), (MOMENTS_AND_TRACE, True)])
def test_separate_step_sizes_are_learned_as_by_the_package(revision: int, dutch: bool) -> None:
    x, y = separate_problem()
    _, *learned = Setting("", np.arange(N), gamma=0.9).learn(x, y, 0.1, 0.05, revision)
    expected = learn_separate(x, y, 0.05, 0.9, log=True, quadratic=True, dutch=dutch)
    np.testing.assert_allclose(learned, expected, rtol=1e-12)


def test_a_shared_step_size_is_learned_as_by_the_package_to_first_order() -> None:
    # the study makes the meta update first, the package's optimizer the base update
    random = np.random.RandomState(3)
    x, y = random.standard_normal((STEPS, N)), random.standard_normal(STEPS)
    setting = Setting("", np.zeros(N, dtype=np.int64), gamma=0.9, diagonal=False)

    def gap(meta_lr: float) -> float:
        ours, theirs = setting.learn(x, y, 0.1, meta_lr, SHARED), learn_shared(x, y, meta_lr, 0.9, dutch=True)
        return float(np.abs(ours[1] - theirs[0]).max())

    meta_lrs = 1e-3 * 2.0 ** np.arange(4)
    assert order(np.array([gap(meta_lr) for meta_lr in meta_lrs]), meta_lrs) == pytest.approx(2, abs=0.2)


def test_a_gap_of_rounding_has_no_order() -> None:
    meta_lrs = 1e-5 * 2.0 ** np.arange(3)
    gap = gaps(Setting("", EACH, log=False, quadratic=0.0), MOMENTS_AND_TRACE, meta_lrs)
    assert order(gap[:, 0], meta_lrs) == np.inf


def test_one_sign_of_the_tracking_task_flips_every_twenty_examples() -> None:
    x, y = tracking(0, 200)
    signs = [np.linalg.lstsq(x[i : i + 20, :5], y[i : i + 20], rcond=None)[0] for i in range(0, 200, 20)]
    np.testing.assert_allclose(np.abs(signs), 1)
    assert [int(np.sum(np.abs(a - b) > 1)) for a, b in itertools.pairwise(signs)] == [1] * 9


def test_failed_seeds_are_counted_and_left_out() -> None:
    errors = np.array([1.0, 2.0, np.nan, 7.0])
    assert shown(errors) == "1.500 ± 0.707 (2 failed)"
    assert shown(np.full(3, np.inf)) == "– (3 failed)"
    assert gain(errors, np.array([0.9, 1.8, 1.0, 1.0])) == "-10.00 ± 0.00"
