"""Bit flipping: slow and random bits, targets by a plain reference, variants, random access, memory."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from continual_metaopt.streams import make_stream, plan_stream
from continual_metaopt.streams.bit_flipping import BLOCK

N_INPUTS, N_SLOW, FLIP_EVERY = 8, 5, 300


def bit_flipping(**options):
    sizes = {"n_inputs": N_INPUTS, "n_slow": N_SLOW, "flip_every": FLIP_EVERY, "n_samples": 3100, "n_target_units": 20}
    return plan_stream("bit_flipping", **sizes | options)


def arrays(stream):
    """All inputs and targets."""
    x, y = zip(*(samples.batch(slice(None)) for samples in stream.train), strict=True)
    return np.concatenate(x), np.concatenate(y)


def slow_bits(stream):
    """The slow bits of each experience, after checking that they stay within it."""
    found = []
    for samples in stream.train:
        x = samples.batch(slice(None))[0][:, :N_SLOW]
        assert (x == x[0]).all()
        found.append(x[0])
    return np.array(found)


def test_one_of_the_slow_bits_flips_with_every_experience():
    found = slow_bits(bit_flipping(n_samples=100 * FLIP_EVERY))
    changes = np.abs(np.diff(found, axis=0))
    assert (changes.sum(axis=1) == 1).all()
    assert np.bincount(changes.argmax(axis=1), minlength=N_SLOW).min() > 5
    firsts = {tuple(slow_bits(bit_flipping(n_samples=1, seed=seed))[0]) for seed in range(40)}
    assert len(firsts) > 15, "the first ones are random"


def test_the_other_bits_are_random_and_independent():
    """Correlations of 31,000 samples have a standard deviation of 0.006."""
    x = arrays(bit_flipping(n_samples=31_000))[0][:, N_SLOW:]
    assert set(np.unique(x)) == {0.0, 1.0}
    neighbours = np.hstack([x[1:], x[:-1]])
    assert np.abs(np.corrcoef(neighbours.T) - np.eye(6)).max() < 0.025
    assert np.abs(x.mean(axis=0) - 0.5).max() < 0.0125


def target_by_hand(x, seed, n_units, agreement):
    """What the network says, unit by unit, with its signs drawn as the definition does."""
    state = np.random.RandomState([seed, 123, 0])
    weights, constants, signs, constant = (
        2 * state.randint(2, size=shape) - 1 for shape in ((len(x), n_units), n_units, (n_units, 1), ())
    )
    total = constant
    for unit in range(n_units):
        agreeing = sum((bit == 1) == (weight == 1) for bit, weight in zip(x, weights[:, unit], strict=True))
        agreeing += constants[unit] == 1  # the constant input is 1
        if agreeing >= agreement * (len(x) + 1):
            total += signs[unit, 0]
    return total


@pytest.mark.parametrize(("agreement", "seed"), [(0.7, 0), (0.7, 3), (0.5, 0), (0.8, 1)])
def test_targets_are_those_of_a_network_of_threshold_units(agreement, seed):
    x, y = arrays(bit_flipping(agreement=agreement, seed=seed, n_samples=700))
    assert [float(target) for (target,) in y[::7]] == [target_by_hand(one, seed, 20, agreement) for one in x[::7]]
    assert len(np.unique(y)) > 1


def test_a_share_of_agreement_is_not_lost_to_rounding():
    """0.28 · 25 is a little more than 7 in floating point."""
    assert 0.28 * 25 > 7
    x, y = arrays(bit_flipping(n_inputs=24, agreement=0.28, n_samples=200))
    assert [float(target) for (target,) in y] == [target_by_hand(one, 0, 20, 0.28 - 1e-12) for one in x]


def test_defaults_are_the_authors():
    """About half a percent to six percent of 100 units are on: 14 or 15 of 20 random bits agree."""
    info = (stream := plan_stream("bit_flipping", n_samples=50_000)).info
    assert (info.definition, info.source, info.boundaries) == (
        "bit_flipping v1",
        "generated",
        [*range(0, 50_000, 10_000)],
    )
    sizes = info.for_learner
    assert (sizes.n_outputs, sizes.input_shape, sizes.task, sizes.n_samples) == (1, (20,), "regression", 50_000)
    x, y = arrays(stream)
    assert all((x[k : k + 10_000, :15] == x[k, :15]).all() for k in info.boundaries)
    assert (x[:10_000, 15:].std(axis=0) > 0.49).all()
    assert (y == np.rint(y)).all()
    assert 0.2 < y.std() < 5


def test_samples_are_float_vectors_with_one_target():
    benchmark = make_stream("bit_flipping", n_samples=30, flip_every=20)
    x, y, task = benchmark.train_stream[1].dataset[3]
    assert (x.dtype, x.shape, y.dtype, y.shape, task) == (torch.float32, (20,), torch.float32, (1,), 0)
    assert [len(experience.dataset) for experience in benchmark.train_stream] == [20, 10]
    assert [len(experience.dataset) for experience in benchmark.test_stream] == [0, 0]


# --- stationary variants ---------------------------------------------------------------------------------------------


def test_repeat_never_flips_a_bit():
    changing, repeat = bit_flipping(), bit_flipping(stationary="repeat")
    assert (slow_bits(repeat) == slow_bits(changing)[0]).all()
    np.testing.assert_array_equal(arrays(repeat)[0][:, N_SLOW:], arrays(changing)[0][:, N_SLOW:])
    assert repeat.info.stationary == "repeat"
    assert repeat.info.for_learner == changing.info.for_learner


def test_frozen_flips_no_bit_after_an_experience():
    changing, frozen = slow_bits(bit_flipping()), slow_bits(bit_flipping(stationary="frozen", frozen_after=4))
    np.testing.assert_array_equal(frozen[:5], changing[:5])
    assert (frozen[5:] == changing[4]).all()


def test_shuffled_draws_the_time_of_each_samples_slow_bits():
    """Each setting as often as it is in the stream: 300 times or so, the last one a third of that."""
    changing, shuffled = bit_flipping(), bit_flipping(stationary="shuffled")
    settings = [tuple(bits) for bits in slow_bits(changing)]
    x, y = arrays(shuffled)
    for portion in (x, x[:600]):
        for setting in set(settings):
            share = (portion[:, :N_SLOW] == setting).all(axis=1).mean()
            weight = sum(n for n, other in zip([300] * 10 + [100], settings, strict=True) if other == setting) / 3100
            assert abs(share - weight) < 4 * math.sqrt(weight / len(portion))
    assert [float(target) for (target,) in y[:50]] == [target_by_hand(one, 0, 20, 0.7) for one in x[:50]]


# --- generated when asked for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stationary", [None, "shuffled"])
def test_samples_are_the_same_in_whatever_portions_they_are_read(stationary):
    """Across the blocks in which they are made."""
    stream = bit_flipping(n_samples=3 * BLOCK, flip_every=2 * BLOCK + 5, stationary=stationary)
    for samples in stream.train:
        whole, targets = samples.batch(slice(None))
        edges = [slice(BLOCK - 3, BLOCK + 2), slice(0, 1), slice(-4, None), slice(None, None, -500), slice(7, 7)]
        for steps in edges:
            x, y = samples.batch(steps)
            assert x.tobytes() == whole[steps].tobytes()
            assert y.tobytes() == targets[steps].tobytes()
            assert (x.shape[1:], y.shape[1:], x.dtype, y.dtype) == ((8,), (1,), np.float32, np.float32)


def test_samples_belong_to_the_caller():
    samples = bit_flipping().train[0]
    before = samples.batch(slice(5))[0].copy()
    samples.batch(slice(5))[0][:] = 7
    np.testing.assert_array_equal(samples.batch(slice(5))[0], before)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("bit_flipping", {}), ("tracking", {"noise": 0.5})])
def test_long_streams_take_little_memory(name, options):
    """The inputs of a million samples alone are 80 MB."""
    tracemalloc.start()
    stream = plan_stream(name, n_samples=1_000_000, **options)
    for samples in stream.train[:200]:
        samples.batch(slice(None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6


# --- options and seeds -----------------------------------------------------------------------------------------------


def test_a_seed_means_these_very_samples():
    """Recorded once, seed 0."""
    x, y = arrays(bit_flipping(n_samples=4))
    assert x.astype(int).tolist() == [
        [0, 0, 1, 0, 1, 0, 0, 0],
        [0, 0, 1, 0, 1, 0, 0, 0],
        [0, 0, 1, 0, 1, 1, 1, 1],
        [0, 0, 1, 0, 1, 1, 1, 0],
    ]
    assert y.ravel().tolist() == [1.0, 1.0, 0.0, 1.0]
