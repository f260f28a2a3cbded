"""Tracking: inputs, flips, experiences, options, and that a seed goes on meaning the same stream."""

import numpy as np
import pytest

from continual_metaopt.streams import make_stream, plan_stream
from continual_metaopt.streams.benchmark import read_samples
from continual_metaopt.streams.tracking import BLOCK


def tracking(**options):
    return make_stream("tracking", **{"n_samples": 100, "samples_per_experience": 40, **options})


def arrays(benchmark):
    """All inputs and targets, sample by sample."""
    items = [item for experience in benchmark.train_stream for item in experience.dataset]
    return np.stack([x.numpy() for x, _, _ in items]), np.stack([y.numpy() for _, y, _ in items])


def signs(benchmark, n_relevant, flip_every):
    """The signs within each stretch between two flips, found by least squares."""
    x, y = arrays(benchmark)
    found = []
    for start in range(0, len(x), flip_every):
        part = slice(start, start + flip_every)
        solution, *_ = np.linalg.lstsq(x[part].astype(float), y[part, 0].astype(float), rcond=None)
        np.testing.assert_allclose(solution[n_relevant:], 0, atol=1e-3)
        found.append(solution[:n_relevant])
    np.testing.assert_allclose(np.abs(found), 1, atol=1e-3)
    return np.rint(found)


@pytest.mark.parametrize(("n_inputs", "n_relevant", "flip_every"), [(20, 5, 20), (4, 1, 5), (3, 3, 7)])
def test_one_sign_of_the_relevant_inputs_flips_every_so_often(n_inputs, n_relevant, flip_every):
    n = 30 * flip_every
    benchmark = tracking(n_inputs=n_inputs, n_relevant=n_relevant, flip_every=flip_every, n_samples=n)
    found = signs(benchmark, n_relevant, flip_every)
    assert found[0].tolist() == [1] * n_relevant
    assert (np.abs(np.diff(found, axis=0)).sum(axis=1) == 2).all(), "one sign at a time"
    assert {int(np.flatnonzero(change)[0]) for change in np.diff(found, axis=0)} == set(range(n_relevant))


def test_inputs_are_standard_normal():
    x, _ = arrays(tracking(n_samples=5000))
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert np.abs(np.corrcoef(x.T) - np.eye(20)).max() < 0.06


def test_experiences_are_portions_that_do_not_change_the_samples():
    cut, whole = tracking(), tracking(samples_per_experience=1000)
    assert [len(experience.dataset) for experience in cut.train_stream] == [40, 40, 20]
    assert cut.info.boundaries == [0, 40, 80]
    assert len(whole.train_stream) == 1
    for one, other in zip(arrays(cut), arrays(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    assert cut.info.fingerprint != whole.info.fingerprint


def test_many_samples_at_once_are_the_same():
    benchmark = tracking()
    x, y = read_samples(benchmark.train_stream[1].dataset, slice(5, 9))
    for i, (inputs, target, _) in enumerate([benchmark.train_stream[1].dataset[i] for i in range(5, 9)]):
        np.testing.assert_array_equal(x[i], inputs)
        np.testing.assert_array_equal(y[i], target)
    x[:] = 0
    assert benchmark.train_stream[1].dataset[5][0].abs().sum() > 0, "the arrays are the caller's own"


def test_there_are_no_held_out_samples():
    benchmark = tracking()
    assert [len(experience.dataset) for experience in benchmark.test_stream] == [0, 0, 0]


def test_noise_is_added_to_the_targets_alone():
    (x, y), (same_x, noisy) = arrays(tracking(n_samples=5000)), arrays(tracking(n_samples=5000, noise=0.5))
    np.testing.assert_array_equal(x, same_x)
    assert (noisy - y).std() == pytest.approx(0.5, rel=0.05)


def test_samples_are_the_same_in_whatever_portions_they_are_read():
    """Across the blocks in which they are made; a row has an odd number of normal numbers, which come in pairs."""
    benchmark = plan_stream("tracking", n_inputs=3, n_relevant=2, n_samples=2 * BLOCK + 50, noise=0.5)
    reference = np.random.RandomState([0, 100, 0]).standard_normal((2 * BLOCK + 50, 3)).astype(np.float32)
    whole = [np.concatenate(parts) for parts in zip(*(s.batch(slice(None)) for s in benchmark.train), strict=True)]
    np.testing.assert_array_equal(whole[0], reference)
    for number, steps in [
        (8, slice(90, 120)),
        (4, slice(96, 97)),
        (0, slice(None)),
        (4, slice(90, 100)),
        (8, slice(0, 0)),
    ]:
        for found, every in zip(benchmark.train[number].batch(steps), whole, strict=True):
            np.testing.assert_array_equal(found, every[1000 * number : 1000 * (number + 1)][steps])


@pytest.mark.parametrize(("stationary", "n_flips"), [(None, 9), ("repeat", 0), ("frozen", 7)])
def test_signs_stop_flipping_where_the_stream_is_stationary(stationary, n_flips):
    """Frozen after the second of three experiences of 40 samples: the flip at sample 80 is the first that stays out."""
    options = {"n_relevant": 2, "n_inputs": 3, "flip_every": 10}
    if stationary == "frozen":
        options["frozen_after"] = 1
    changing, found = tracking(**options | {"frozen_after": 0}), tracking(**options, stationary=stationary)
    expected, signs_found = signs(changing, 2, 10), signs(found, 2, 10)
    np.testing.assert_array_equal(signs_found[: n_flips + 1], expected[: n_flips + 1])
    assert (signs_found[n_flips:] == expected[n_flips]).all()
    np.testing.assert_array_equal(arrays(found)[0], arrays(changing)[0])
    assert found.info.stationary == stationary
    assert found.info.for_learner == changing.info.for_learner


def test_info():
    info = tracking(n_inputs=7).info
    assert (info.definition, info.source, info.stationary) == ("tracking v1", "generated", None)
    sizes = info.for_learner
    assert (sizes.n_outputs, sizes.input_shape, sizes.task, sizes.n_samples) == (1, (7,), "regression", 100)
    assert [experience.classes for experience in info.experiences] == [[], [], []]


def test_a_seed_means_these_very_samples():
    """Recorded once, seed 0."""
    benchmark = tracking(n_inputs=3, n_relevant=2, flip_every=10)
    x, y = arrays(benchmark)
    np.testing.assert_allclose(x[0], [1.004885, 1.280275, 0.5550242], rtol=1e-6)
    np.testing.assert_allclose(y[99], [2.483093], rtol=1e-6)
    assert signs(benchmark, 2, 10).tolist() == [
        [1, 1],
        [1, -1],
        [1, 1],
        [-1, 1],
        [1, 1],
        [1, -1],
        [1, 1],
        [1, -1],
        [-1, -1],
        [1, -1],
    ]
