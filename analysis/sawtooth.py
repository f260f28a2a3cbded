"""Do step sizes follow the experiences? The sawtooth statistic, and the trend from one experience to the next.

A learner is not told where an experience begins. If the step size of a block nevertheless rises after each boundary and
falls until the next, laying all experiences over each other shows a tooth; if it does not, the same averages over
stretches that begin anywhere look the same. That is the test here: nothing but the place of the boundaries is
randomised, for all seeds alike, so drift, noise and transients count on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from continual_metaopt.analysis.comparisons import holm
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import counted_runs, mean_interval, require_labels

BINS = 20
SKIP = 1  # experiences at the beginning: no boundary precedes the first one
SHIFTS = 999

Array = NDArray[np.float64]


class Sawtooth(NamedTuple):
    """The folded trajectory of one block. Intervals are half widths of 95 % Student-t intervals, NaN for one seed."""

    position: Array  # centres of the bins, as fractions of an experience, [n_bins]
    experiences: NDArray[np.int64]  # numbers of those that are laid over each other, [n_experiences]
    teeth: Array  # log10 step sizes without level and drift, mean over seeds, [n_experiences, n_bins]
    profile: Array  # mean of `teeth` over experiences, [n_bins]
    profile_ci: Array  # its interval over seeds, [n_bins]
    chance: Array  # 2.5 % and 97.5 % quantile of profiles when boundaries are shifted at random, [2, n_bins]
    amplitude: float  # maximum minus minimum of `profile`, in decades (1 is a factor of 10)
    amplitude_ci: float  # interval over seeds of the difference between these two bins
    chance_amplitude: float  # 95 % quantile of amplitudes when boundaries are shifted at random
    peak: float  # position of the maximum, as a fraction of an experience
    trough: float  # position of the minimum
    rise: float  # from the last bin of an experience to the peak of the next, in decades, drift included
    fall: float  # from the peak to the last bin of the same experience; rise minus fall is the drift per experience
    p: float  # share of amplitudes at least as large, among those of shifted boundaries and the observed one
    seeds: int  # number of runs


class Trajectory(NamedTuple):
    """Recorded step sizes of one block in one run: steps [n], increasing, and sizes [n], of which positive ones count.

    `boundaries` are the first steps of experiences, and `n_samples` is the length of the stream.
    """

    steps: ArrayLike
    step_size: ArrayLike
    boundaries: Sequence[int]
    n_samples: int


def sawtooth(
    trajectories: Sequence[Trajectory],
    *,
    bins: int = BINS,
    skip: int = SKIP,
    shifts: int = SHIFTS,
    seed: int = 0,
) -> Sawtooth:
    """Lay the experiences of trajectories over each other, and compare with boundaries shifted at random.

    Each experience is cut into equal bins, so that experiences of unequal length fit over each other. Of the logarithms
    in an experience, their mean is subtracted, and the straight line whose slope is that between the means of the
    experiences before and after: a steady drift leaves nothing, a regular sawtooth all of itself.

    Under the null hypothesis, each experience is replaced by an equally long stretch that begins up to half its length
    earlier or later, uniformly at random, with neighbours as long as the experience's; everything else is computed as
    before. All seeds are shifted alike: what they have in common without knowing boundaries, such as the way up from
    the initial step size, would otherwise be smeared by the shifts and sharp without. (A common circular shift of all
    boundaries would not do: with equal lengths it merely rotates the profile, and leaves its amplitude as it is.) Where
    the trajectories know nothing of boundaries, and what they do next does not depend on their level, as in a random
    walk or in noise with a memory, both have nearly the same distribution.

    Args:
        trajectories: of one block, one for each seed.
        bins: number of bins; fewer where fewer than two values per bin were recorded.
        skip: experiences at the beginning that are left out, at least the first.
        shifts: number of random sets of boundaries.
        seed: of the shifts.

    Returns:
        The result; the smallest possible p is 1 / (shifts + 1).

    Raises:
        ValueError: there is no trajectory, fewer than two complete experiences remain, experiences were recorded fewer
            than eight times, a part of all experiences has no positive step size, or an argument is out of range.
    """
    if not trajectories:
        raise ValueError("there is no trajectory to fold")
    if bins < 4 or skip < 1 or shifts < 19:
        raise ValueError(f"needs bins ≥ 4, skip ≥ 1 and shifts ≥ 19, not {bins}, {skip} and {shifts}")
    folders, observed = _laid_out(trajectories, bins, skip)
    n_experiences, n_bins = observed.shape[1:]
    random = np.random.default_rng(seed)
    places = random.random((shifts, max(len(folder.numbers) for folder in folders)))
    shifted = [folder.rows(folder.shifted(places), n_bins)[:, :n_experiences] for folder in folders]
    profiles = np.nanmean(np.stack(shifted), axis=(0, 2))
    amplitudes = np.nanmax(profiles, axis=1) - np.nanmin(profiles, axis=1)

    of_seeds = np.nanmean(observed, axis=1)
    profile, profile_ci = mean_interval(of_seeds)
    peak, trough = int(profile.argmax()), int(profile.argmin())
    amplitude, amplitude_ci = mean_interval(of_seeds[:, peak] - of_seeds[:, trough])
    raw = np.stack([folder.levels(n_bins)[: n_experiences + 1] for folder in folders])
    # Rounding errors of a constant trajectory are no sawtooth.
    p = (1 + np.count_nonzero(amplitudes >= amplitude - 1e-9)) / (1 + shifts)
    return Sawtooth(
        position=(np.arange(n_bins) + 0.5) / n_bins,
        experiences=folders[0].numbers[:n_experiences],
        teeth=np.nanmean(observed, axis=0),
        profile=profile,
        profile_ci=profile_ci,
        chance=np.quantile(profiles, [0.025, 0.975], axis=0),
        amplitude=float(amplitude),
        amplitude_ci=float(amplitude_ci),
        chance_amplitude=float(np.quantile(amplitudes, 0.95)),
        peak=(peak + 0.5) / n_bins,
        trough=(trough + 0.5) / n_bins,
        rise=float(np.nanmean(raw[:, 1:, peak] - raw[:, :-1, -1])),
        fall=float(np.nanmean(raw[:, 1:, peak] - raw[:, 1:, -1])),
        p=float(p),
        seeds=len(trajectories),
    )


class Trend(NamedTuple):
    """How the step size of a block changes from experience to experience."""

    means: Array  # mean log10 step size of each experience, [n_seeds, n_experiences]
    slope: float  # mean over seeds of the least-squares slope, in decades per experience
    slope_ci: float  # half width of its 95 % Student-t interval over seeds; NaN for one seed

    @property
    def slopes(self) -> Array:
        """Least-squares slope of each seed, in decades per experience, [n_seeds]."""
        return np.polyfit(np.arange(self.means.shape[1]), self.means.T, 1)[0]

    @property
    def change(self) -> float:
        """From the first of these experiences to the last, in decades, mean over seeds."""
        return float((self.means[:, -1] - self.means[:, 0]).mean())

    @property
    def verdict(self) -> str:
        """`"falls"`, `"rises"`, or `"undecided"` where the interval holds zero or there is none."""
        # Rounding errors of constant step sizes are no trend.
        if abs(self.slope) < 1e-9 or not abs(self.slope) > self.slope_ci:
            return "undecided"
        return "falls" if self.slope < 0 else "rises"


def trend(trajectories: Sequence[Trajectory], *, skip: int = SKIP) -> Trend:
    """The trend across experiences of one block's trajectories, without the first `skip` experiences.

    It is the slope of the mean log10 step size of each experience over its number.

    Raises:
        ValueError: there is no trajectory, or fewer than two complete experiences remain.
    """
    if not trajectories:
        raise ValueError("there is no trajectory")
    folders = [_Folder.of(trajectory, skip) for trajectory in trajectories]
    n_experiences = min(len(folder.numbers) for folder in folders)
    if n_experiences < 2:
        raise ValueError(f"fewer than two complete experiences follow the first {skip}: there is no trend")
    means = np.stack([folder.levels(1)[1 : n_experiences + 1, 0] for folder in folders])
    slope, slope_ci = mean_interval(Trend(means, np.nan, np.nan).slopes)
    return Trend(means, float(slope), float(slope_ci))


def block_trajectories(runs: Runs, label: str) -> dict[str, list[Trajectory]]:
    """The trajectories of a learner's step sizes: block → one for each of its finished runs that recorded any.

    Raises:
        ValueError: there is no such label, or a seed occurs twice.
    """
    require_labels(runs, [label])
    found: dict[str, list[Trajectory]] = {}
    for path in counted_runs(runs.select(label=label), "exclude")["path"]:
        config = runs.configs[path]
        info = config["stream_info"]
        record = runs.read(path, "step_sizes", ["step", "block", "step_size"])
        steps, values = record["step"].to_numpy(), record["step_size"].to_numpy()
        blocks = record["block"].to_numpy(dtype=object)
        for block in config["blocks"]:
            of_block = blocks == block
            if of_block.any():
                trajectory = Trajectory(steps[of_block], values[of_block], info["boundaries"], info["n_samples"])
                found.setdefault(block, []).append(trajectory)
    return found


def can_fold(trajectories: Sequence[Trajectory], *, bins: int = BINS, skip: int = SKIP) -> bool:
    """Whether `sawtooth` has enough experiences, with enough records in each; arguments as there."""
    try:
        _laid_out(trajectories, bins, skip)
    except ValueError:
        return False
    return True


def sawtooth_table(
    runs: Runs,
    labels: Sequence[str] | None = None,
    *,
    bins: int = BINS,
    skip: int = SKIP,
    shifts: int = SHIFTS,
    seed: int = 0,
) -> pd.DataFrame:
    """The sawtooth statistic and the trend of each block, on one stream; options as of `sawtooth`.

    Args:
        runs: runs of one stream.
        labels: the learners; those with learned step sizes if None.

    Returns:
        One row per learner and block: learner, block, seeds, experiences (number of those laid over each other),
        amplitude, amplitude_ci, chance_amplitude, peak, trough, rise, fall, p, p_holm (corrected for the number of
        blocks of all learners in the table), slope, slope_ci, change (`Trend.change`), trend (`Trend.verdict`).
        Amplitudes, rises, falls, slopes and changes are in decades.

    Raises:
        ValueError: a label does not occur, nothing was recorded, or a trajectory cannot be folded.
    """
    runs.require_one_stream()
    if labels is None:
        labels = runs.select(learned_step_sizes=True).labels
    rows = []
    for label in labels:
        for block, trajectories in block_trajectories(runs, label).items():
            tooth = sawtooth(trajectories, bins=bins, skip=skip, shifts=shifts, seed=seed)
            course = trend(trajectories, skip=skip)
            row = {"learner": label, "block": block, "seeds": tooth.seeds, "experiences": len(tooth.experiences)}
            names = ("amplitude", "amplitude_ci", "chance_amplitude", "peak", "trough", "rise", "fall", "p")
            row |= {name: getattr(tooth, name) for name in names}
            slope = {"slope": course.slope, "slope_ci": course.slope_ci, "change": course.change}
            rows.append(row | slope | {"trend": course.verdict})
    if not rows:
        raise ValueError("no learner of these runs has recorded learned step sizes; name learners to see fixed ones")
    table = pd.DataFrame(rows)
    table.insert(list(table.columns).index("p") + 1, "p_holm", holm(table["p"]))
    return table


def _laid_out(trajectories: Sequence[Trajectory], bins: int, skip: int) -> tuple[list[_Folder], Array]:
    """The trajectories, and the experiences after the first that all have: [n_seeds, n_experiences, n_bins]."""
    folders = [_Folder.of(trajectory, skip) for trajectory in trajectories]
    n_experiences = min((len(folder.numbers) for folder in folders), default=0)
    if n_experiences < 2:
        raise ValueError(
            f"fewer than two complete experiences follow the first {skip}: the sawtooth needs a longer stream"
        )
    n_bins = min(bins, *(folder.fewest // 2 for folder in folders))
    if n_bins < 4:
        raise ValueError(
            "an experience has fewer than eight recorded step sizes: record them more often (record_every)"
        )
    observed = np.stack([folder.rows(folder.starts[None], n_bins)[0, :n_experiences] for folder in folders])
    if np.isnan(observed).all(axis=1).any():
        raise ValueError("at some position within experiences, none of them has a positive step size")
    return folders, observed


class _Folder(NamedTuple):
    """Running totals of one trajectory, from which the mean over any stretch is a difference."""

    steps: Array  # [n]
    totals: Array  # of log10 step sizes, [n + 1]
    step_totals: Array  # [n + 1]
    edges: Array  # first step of each complete experience, and the end of the last: [n_complete + 1]
    skip: int

    @classmethod
    def of(cls, trajectory: Trajectory, skip: int) -> _Folder:
        steps = np.asarray(trajectory.steps, dtype=float)
        sizes = np.asarray(trajectory.step_size, dtype=float)
        known = np.isfinite(sizes) & (sizes > 0)
        steps, logs = steps[known], np.log10(sizes[known])
        if len(steps) < 2:
            raise ValueError("a trajectory has fewer than two positive step sizes")
        edges = np.array([*trajectory.boundaries, trajectory.n_samples], dtype=float)
        distance = float(np.median(np.diff(steps)))
        complete = int(np.searchsorted(edges, steps[-1] + distance, side="right"))  # a run may have stopped early
        totals, step_totals = (np.concatenate([[0.0], np.cumsum(values)]) for values in (logs, steps))
        return cls(steps, totals, step_totals, edges[:complete], skip)

    @property
    def numbers(self) -> NDArray[np.int64]:
        return np.arange(self.skip, max(self.skip, len(self.edges) - 1))

    @property
    def starts(self) -> Array:
        return self.edges[self.numbers]

    @property
    def lengths(self) -> Array:
        """Of all complete experiences."""
        return np.diff(self.edges)

    @property
    def fewest(self) -> int:
        """Recorded values in the experience that has fewest."""
        return int(np.diff(np.searchsorted(self.steps, self.edges[self.skip :])).min())

    def shifted(self, places: Array) -> Array:
        """Starts in place of those of the experiences, [n, n_experiences], at `places` in [0, 1), [n, ≥ n_experiences].

        They are within half a length of the experience's start; none reaches over the end.
        """
        lengths = self.lengths[self.numbers]
        low = np.minimum(self.starts - lengths / 2, self.edges[-1] - 2 * lengths)
        return np.maximum(low, 0) + places[:, : len(lengths)] * lengths

    def mean(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Mean logarithm, and mean step, of what was recorded in [low, high); NaN if nothing was."""
        first, last = np.searchsorted(self.steps, low), np.searchsorted(self.steps, high)
        count = np.where(last > first, last - first, np.nan)
        return (
            (self.totals[last] - self.totals[first]) / count,
            (self.step_totals[last] - self.step_totals[first]) / count,
        )

    def rows(self, starts: Array, n_bins: int) -> Array:
        """Logarithms without level and drift, in bins: [n, n_experiences, n_bins] for starts [n, n_experiences]."""
        lengths = self.lengths[self.numbers]
        before = self.lengths[self.numbers - 1]
        after = np.append(self.lengths[self.numbers[1:]], lengths[-1])
        level, middle = self.mean(starts, starts + lengths)
        earlier, earlier_middle = self.mean(np.maximum(starts - before, 0), starts)
        end = self.edges[-1]
        # Without a whole neighbour on one side, the slope is that between the stretch itself and the other neighbour.
        whole = starts + lengths + after <= end
        later, later_middle = self.mean(starts + lengths, np.minimum(starts + lengths + after, end))
        later, later_middle = np.where(whole, later, level), np.where(whole, later_middle, middle)
        slope = (later - earlier) / (later_middle - earlier_middle)
        edges = starts[..., None] + lengths[:, None] * np.linspace(0, 1, n_bins + 1)
        logs, steps = self.mean(edges[..., :-1], edges[..., 1:])
        return logs - level[..., None] - slope[..., None] * (steps - middle[..., None])

    def levels(self, n_bins: int) -> Array:
        """Logarithms in bins, of the experience before the first that counts and of all that do."""
        numbers = np.append(self.numbers[0] - 1, self.numbers)
        edges = self.edges[numbers][:, None] + self.lengths[numbers][:, None] * np.linspace(0, 1, n_bins + 1)
        return self.mean(edges[:, :-1], edges[:, 1:])[0]
