"""Hankel dynamic mode decomposition: known linear systems, a pseudo-inverse, PyDMD."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from continual_metaopt.optim.peers.koopman import dynamic_modes, lasting, limit
from tests.continual_metaopt.conftest import exactly

Array = NDArray[np.float64]

LASTING, FADING = np.array([1.0, 0.5, -0.3]), np.array([2.0, -1.0, 0.7])
TIMES = np.arange(40)[:, np.newaxis]


def noisy(seed: int = 0) -> Array:
    noise = np.random.RandomState(seed).standard_normal((len(TIMES), 3))
    return np.asarray(LASTING + 0.9**TIMES * FADING + 0.2 * noise)


@pytest.mark.parametrize("delays", [2, 10])
def test_the_modes_of_a_known_system(delays: int) -> None:
    modes = dynamic_modes(LASTING + 0.9**TIMES * FADING, delays)
    order = np.argsort(-modes.eigenvalues.real)
    np.testing.assert_allclose(modes.eigenvalues[order], [1, 0.9], atol=1e-10)
    terms = (modes.vectors * modes.amplitudes)[:, order]
    np.testing.assert_allclose(terms[:, 0], LASTING, atol=1e-10)
    np.testing.assert_allclose(terms[:, 1], 0.9**39 * FADING, atol=1e-10)
    np.testing.assert_allclose(lasting(modes, 0.01), LASTING, atol=1e-10)


@pytest.mark.parametrize(("delays", "found"), [(10, 2), (4, 2), (2, 1), (1, 1)])
def test_there_must_be_about_twice_as_many_delayed_numbers_as_terms(delays: int, found: int) -> None:
    """The threshold takes half of the singular values for noise."""
    eigenvalues = dynamic_modes(2 + 0.8**TIMES, delays).eigenvalues.real
    assert len(eigenvalues) == found
    if found == 2:
        np.testing.assert_allclose(np.sort(eigenvalues), [0.8, 1], atol=1e-9)


def test_the_tolerance_decides_what_lasts() -> None:
    sequence = LASTING + 0.9**TIMES * FADING
    np.testing.assert_allclose(limit(sequence, 5, 0.2), sequence[-1], atol=1e-10)
    assert limit(0.9**TIMES * FADING, 5, 0.05) is None
    np.testing.assert_allclose(limit(0.9**TIMES * FADING, 5, 0.1 + 1e-9), 0.9**39 * FADING, atol=1e-12)


@pytest.mark.parametrize(("keep", "oscillation"), [("modulus", True), ("one", False)])
def test_oscillations_last_by_modulus_only(keep: Any, oscillation: bool) -> None:
    waves = np.cos(0.7 * TIMES) * FADING
    expected = LASTING + waves[-1] if oscillation else LASTING
    np.testing.assert_allclose(limit(LASTING + waves, 6, 0.01, keep), expected, atol=1e-9)


def test_growing_terms_are_left_out() -> None:
    np.testing.assert_allclose(limit(LASTING + 1.2**TIMES * FADING / 100, 5, 0.05), LASTING, atol=1e-6)
    explosion = 1.5 ** np.arange(1500.0)[:, np.newaxis]  # up to 1e264
    modes = dynamic_modes(explosion, 3)
    np.testing.assert_allclose(modes.eigenvalues, [1.5], rtol=1e-9)
    np.testing.assert_allclose((modes.vectors * modes.amplitudes)[0], explosion[-1], rtol=1e-6)
    assert lasting(modes, 0.1) is None


def test_nothing_has_no_limit() -> None:
    assert dynamic_modes(np.zeros((20, 2)), 3).eigenvalues.size == 0
    assert limit(np.zeros((20, 2)), 3, 0.5) is None


def test_a_number_that_is_always_zero_does_not_matter() -> None:
    with_zero = np.insert(noisy(), 1, 0.0, axis=1)
    found, expected = limit(with_zero, 10, 0.1), limit(noisy(), 10, 0.1)
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found, np.insert(expected, 1, 0.0), rtol=1e-9)


def test_units_do_not_matter() -> None:
    units = np.array([1e-200, 1.0, 1e200])
    expected = limit(noisy(), 10, 0.1)
    assert expected is not None
    np.testing.assert_allclose(limit(noisy() * units, 10, 0.1), expected * units, rtol=1e-7)


def eigenvalues_by_pseudo_inverse(snapshots: Array, delays: int, rank: int) -> Array:
    """Of the map of least squares on the leading singular vectors, as a whole matrix."""
    scaled = snapshots / np.sqrt((snapshots**2).mean(axis=0))
    columns = [scaled[t : t + delays].ravel() for t in range(len(scaled) - delays + 1)]
    before, after = np.array(columns[:-1]).T, np.array(columns[1:]).T
    left, sizes, right = np.linalg.svd(before, full_matrices=False)
    truncated = (left[:, :rank] * sizes[:rank]) @ right[:rank]
    found = np.linalg.eigvals(after @ np.linalg.pinv(truncated, rcond=1e-9))
    leading: Array = found[np.argsort(-np.abs(found))][:rank]
    return leading


@pytest.mark.parametrize(("delays", "seed"), [(1, 0), (4, 1), (10, 2)])
def test_eigenvalues_are_those_of_the_map_of_least_squares(delays: int, seed: int) -> None:
    modes = dynamic_modes(noisy(seed), delays)
    expected = eigenvalues_by_pseudo_inverse(noisy(seed), delays, len(modes.eigenvalues))
    np.testing.assert_allclose(np.sort_complex(modes.eigenvalues), np.sort_complex(expected), atol=1e-9)


def test_amplitudes_are_closest_to_all_snapshots() -> None:
    snapshots = noisy()
    modes = dynamic_modes(snapshots, 10)
    scale = np.sqrt((snapshots**2).mean(axis=0))

    def distance(amplitudes: Any) -> float:
        powers = modes.eigenvalues ** (TIMES - len(TIMES) + 1)
        difference = snapshots - (powers * amplitudes) @ modes.vectors.T
        return float((np.abs(difference / scale) ** 2).sum())

    least = distance(modes.amplitudes)
    assert all(distance(modes.amplitudes * (1 + sign * 0.01 * k)) > least for sign in (1, -1) for k in (1, 1j))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyDMD, about how well conditioned delayed snapshots are
@pytest.mark.parametrize("delays", [2, 10])
def test_pydmd_has_the_same_modes(delays: int) -> None:
    pydmd = pytest.importorskip("pydmd")
    scale = np.sqrt((noisy() ** 2).mean(axis=0))
    theirs = pydmd.HankelDMD(svd_rank=0, d=delays).fit((noisy() / scale).T)
    ours = dynamic_modes(noisy(), delays)
    np.testing.assert_allclose(np.sort_complex(ours.eigenvalues), np.sort_complex(theirs.eigs), atol=1e-9)
    their_vectors = theirs.modes[:3] * scale[:, np.newaxis]
    for eigenvalue, vector in zip(theirs.eigs, their_vectors.T, strict=True):
        own = ours.vectors[:, np.abs(ours.eigenvalues - eigenvalue).argmin()]
        cosine = np.abs(np.vdot(own, vector)) / np.linalg.norm(own) / np.linalg.norm(vector)
        assert cosine == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("n", "delays", "needed"), [(5, 5, 6), (1, 1, 2), (5, 0, 2)])
def test_too_few_snapshots_are_refused(n: int, delays: int, needed: int) -> None:
    message = f"{delays} delays need at least {needed} snapshots, but there are {n}"
    with pytest.raises(ValueError, match=exactly(message)):
        dynamic_modes(np.ones((n, 1)), delays)
