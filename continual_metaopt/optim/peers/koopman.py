"""Where a sequence is going: its limit, from the modes of a linear map of delayed copies (Hankel DMD).

Snapshots x_1 … x_n of q numbers each are stacked with their successors to y_t = (x_t, …, x_{t+d−1}), and the linear map
that takes y_t to y_{t+1} with the least squared error is decomposed into modes (Schmid 2010; Arbabi & Mezić 2017). The
sequence is then a sum of terms b λᵗ v, of which those with |λ| = 1 are left for large t. So Hataya & Kawahara ("Glocal
Hypergradient Estimation with Koopman Operator", arXiv 2402.02741) estimate the hypergradient after long training from
those of a few steps.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
Keep = Literal["modulus", "one"]


class Modes(NamedTuple):
    """Terms of a sequence of n snapshots: x_{n+s} ≈ Σ_j amplitudes_j · eigenvalues_jˢ · vectors_j, s = 0 the last one.

    Attributes:
        eigenvalues: λ, of shape [r].
        vectors: v, of shape [q, r].
        amplitudes: b, of shape [r].
    """

    eigenvalues: ComplexArray
    vectors: ComplexArray
    amplitudes: ComplexArray


def delayed(snapshots: Array, delays: int) -> Array:
    """Make the Hankel matrix: column t holds snapshots t … t + delays − 1, one below the other.

    Args:
        snapshots: of shape [n, q].
        delays: d.

    Returns:
        Array of shape [d q, n − d + 1].

    Example:
        >>> delayed(np.array([[1.0], [2.0], [3.0]]), 2)
        array([[1., 2.],
               [2., 3.]])
    """
    columns = len(snapshots) - delays + 1
    return np.concatenate([snapshots[delay : delay + columns].T for delay in range(delays)])


def dynamic_modes(snapshots: Array, delays: int) -> Modes:
    """Find the modes of a sequence by Hankel dynamic mode decomposition.

    Each of the q numbers is divided by its root mean square while the map is fitted, so that the truncation treats them
    alike. The map is fitted within the leading left singular vectors of the Hankel matrix, those whose singular values
    are beyond Gavish & Donoho's threshold for noise of unknown size (2014), as PyDMD does by default; it takes half of
    them for noise, so that d q should be at least twice the number of terms. The amplitudes are those with which the
    terms are closest to all snapshots.

    Args:
        snapshots: of shape [n, q], finite.
        delays: d; 1 for plain DMD.

    Returns:
        The modes; none where all snapshots are 0.

    Raises:
        ValueError: there are not enough snapshots for a single pair of delayed ones.
    """
    n_snapshots, n_numbers = snapshots.shape
    if not 1 <= delays < n_snapshots:
        raise ValueError(f"{delays} delays need at least {max(delays, 1) + 1} snapshots, but there are {n_snapshots}")
    largest = np.abs(snapshots).max(axis=0)
    present = largest > 0
    if not present.any():
        nothing = np.zeros(0, dtype=np.complex128)
        return Modes(nothing, np.zeros((n_numbers, 0), dtype=np.complex128), nothing)
    scaled = snapshots[:, present] / largest[present]
    root_mean_square = np.sqrt(np.square(scaled).mean(axis=0))  # after the largest, whose square may overflow
    scaled /= root_mean_square
    stacked = delayed(scaled, delays)
    before, after = stacked[:, :-1], stacked[:, 1:]
    left, sizes, right = np.linalg.svd(before, full_matrices=False)
    rank = _rank(sizes, before.shape)
    left, sizes, right = left[:, :rank], sizes[:rank], right[:rank]
    eigenvalues, coordinates = np.linalg.eig((left.T @ after @ right.T / sizes).astype(np.complex128))
    vectors = (left @ coordinates)[: scaled.shape[1]]
    grows = np.abs(eigenvalues) > 1
    times = np.arange(n_snapshots)[:, np.newaxis] - np.where(grows, n_snapshots - 1, 0)  # so that no power overflows
    terms = ((eigenvalues**times)[:, np.newaxis, :] * vectors).reshape(scaled.size, rank)
    amplitudes = np.linalg.lstsq(terms, scaled.reshape(-1).astype(np.complex128))[0]
    amplitudes = amplitudes * np.where(grows, 1.0, eigenvalues ** (n_snapshots - 1))
    all_vectors = np.zeros((n_numbers, rank), dtype=np.complex128)
    all_vectors[present] = vectors * (largest[present] * root_mean_square)[:, np.newaxis]
    return Modes(eigenvalues, all_vectors, amplitudes)


def lasting(modes: Modes, tolerance: float, keep: Keep = "modulus") -> Array | None:
    """Sum the terms that last, as they are at the last snapshot.

    Args:
        modes: of a sequence.
        tolerance: how far from 1 the eigenvalue of a lasting term may be.
        keep: which distance that is, "modulus" for ||λ| − 1|, with which oscillations last too, or "one" for |λ − 1|.

    Returns:
        Array of shape [q]; None where no term lasts.
    """
    eigenvalues = modes.eigenvalues
    lasts = np.abs((np.abs(eigenvalues) if keep == "modulus" else eigenvalues) - 1) <= tolerance
    if not lasts.any():
        return None
    total: Array = (modes.vectors[:, lasts] @ modes.amplitudes[lasts]).real
    return total


def limit(snapshots: Array, delays: int, tolerance: float, keep: Keep = "modulus") -> Array | None:
    """Estimate where a sequence is going: the lasting terms of its modes.

    Args:
        snapshots: of shape [n, q], finite.
        delays: as of ``dynamic_modes``.
        tolerance: as of ``lasting``.
        keep: as of ``lasting``.

    Returns:
        Array of shape [q]; None where no term lasts.

    Raises:
        ValueError: there are not enough snapshots.

    Example:
        >>> t = np.arange(30)
        >>> limit((2 + 0.8**t)[:, np.newaxis], 10, 0.01).round(6)
        array([2.])
    """
    return lasting(dynamic_modes(snapshots, delays), tolerance, keep)


def _rank(sizes: Array, shape: tuple[int, ...]) -> int:
    """How many singular values are more than noise; at least 1."""
    aspect = min(shape) / max(shape)
    noise = (0.56 * aspect**3 - 0.95 * aspect**2 + 1.82 * aspect + 1.43) * np.median(sizes)
    rounding = sizes[0] * max(shape) * np.finfo(np.float64).eps
    return max(int((sizes > max(noise, rounding)).sum()), 1)
