"""Comparing learners: averages with bootstrap intervals, paired comparisons, ranks, and how many seeds it takes.

Runs with equal seeds saw equal samples in equal order, so learners are compared seed by seed. Scores are those of
`analysis.statistics.average_score`; differences are those of the pairs, [n], turned so that positive ones are
improvements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import Diverged, average_score, best_fixed, mean_interval, require_labels

Test = Literal["sign_flip", "t"]
RESAMPLES = 9999
MAX_SEEDS = 10_000  # of `seeds_needed`

Array = NDArray[np.float64]


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Any:
    """Mean without the lowest and the highest quarter of the values, rounded down: of three of five, of all of three.

    Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".
    """
    from scipy.stats import trim_mean

    return trim_mean(np.asarray(values, dtype=float), 0.25, axis=axis)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval: quantiles of a statistic of values [n] that are drawn again with replacement.

    With few observations the interval is too short: for the mean of five normal values, "95 %" holds it about 84 times
    in a hundred. Student's t (`mean_interval`) does not have that flaw.

    Args:
        values: independent observations, [n].
        statistic: takes an array and `axis`.
        resamples: how often to draw, with `seed`.

    Returns:
        Lower and upper edge, in the unit of `values`; NaN for fewer than two observations.
    """
    observations = np.asarray(values, dtype=float)
    if len(observations) < 2:
        return math.nan, math.nan
    from scipy.stats import bootstrap

    interval = bootstrap(
        (observations,),
        statistic,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def sign_flip_test(differences: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of paired differences, without assuming a shape of their distribution.

    If neither learner is better, each difference might as well have had the other sign. The p-value is the share of all
    2ⁿ ways to choose signs that give a mean at least as far from zero. It cannot fall below 2 / 2ⁿ: 0.0625 for five
    pairs, so that five seeds never reach 5 %; it takes six. Of more ways than `resamples`, so many are drawn, and p
    counts the observed one.

    Returns:
        The p-value; NaN for no pairs, or where a difference is missing. Infinite ones, as of regressions that diverged,
        outweigh all others together.
    """
    observed = np.asarray(differences, dtype=float)
    if not len(observed) or np.isnan(observed).any():
        return math.nan
    largest = 1 + np.abs(observed[np.isfinite(observed)]).sum()
    observed = np.clip(observed, -largest, largest)
    from scipy.stats import permutation_test

    # SciPy wants two values at least; one has two signs, which are equally far from zero.
    if len(observed) == 1:
        return 1.0
    return float(
        permutation_test(
            (observed,),
            np.mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def paired_t_test(differences: ArrayLike) -> float:
    """Two-sided p-value of Student's t-test of paired differences, which takes them as normally distributed.

    It is NaN for fewer than two pairs, or where a difference is not finite.
    """
    observed = np.asarray(differences, dtype=float)
    if len(observed) < 2 or not np.isfinite(observed).all():
        return math.nan
    from scipy.special import stdtr

    with np.errstate(divide="ignore", invalid="ignore"):
        t = observed.mean() / observed.std(ddof=1) * math.sqrt(len(observed))
    return 1.0 if math.isnan(t) else float(2 * stdtr(len(observed) - 1, -abs(t)))


_TESTS: dict[Test, Callable[[ArrayLike], float]] = {"sign_flip": sign_flip_test, "t": paired_t_test}


def holm(p_values: ArrayLike) -> Array:
    """Correct p-values for their number: the chance of any false discovery stays below the level that they are held to.

    Args:
        p_values: of all comparisons that were made, [n]; NaN where none was possible, which does not count.

    Returns:
        Holm's step-down p-values, [n]: the k-th smallest times n − k + 1, no less than the one before, at most 1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, dtype=float)
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN come last
    stepped = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected


class Estimate(NamedTuple):
    """A value, and the edges of its interval."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def paired_effect_size(differences: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of paired differences over their standard deviation (d_z), with its interval.

    Returns:
        The effect size and its interval, exact for normally distributed differences: √n d_z has a noncentral t
        distribution, and the edges are the noncentralities at which the observed value lies at its quantiles. d_z
        itself is on average too large, by 25 % for five pairs; the interval is not. NaN for fewer than two pairs;
        infinite, with no interval, where all differences are equal but not zero, and NaN where they are zero.
    """
    observed = np.asarray(differences, dtype=float)
    n = len(observed)
    if n < 2 or not np.isfinite(observed).all():
        return UNKNOWN
    mean, deviation = float(observed.mean()), float(observed.std(ddof=1))
    if deviation <= 1e-12 * abs(mean) or deviation == 0:
        return Estimate(math.copysign(math.inf, mean) if mean else math.nan, math.nan, math.nan)
    size = mean / deviation
    t = size * math.sqrt(n)
    from scipy.special import nctdtrinc

    low, high = (float(nctdtrinc(n - 1, (1 + side * confidence) / 2, t)) / math.sqrt(n) for side in (1, -1))
    return Estimate(size, low, high)


def probability_of_improvement(differences: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Probability that one learner beats another on the same stream, dealt from a new seed.

    Returns:
        The share of pairs with an improvement, ties counted half, and its Clopper-Pearson interval, whose lower edge
        takes ties as losses and whose upper edge takes them as wins: at least 0.48 and at most 1 for five wins of five.
        NaN without pairs.
    """
    observed = np.asarray(differences, dtype=float)
    observed = observed[~np.isnan(observed)]
    n = len(observed)
    if not n:
        return UNKNOWN
    from scipy.stats import binomtest

    wins, ties = int((observed > 0).sum()), int((observed == 0).sum())
    low = binomtest(wins, n).proportion_ci(confidence, "exact").low
    high = binomtest(wins + ties, n).proportion_ci(confidence, "exact").high
    return Estimate((wins + ties / 2) / n, float(low), float(high))


def seeds_needed(effect_size: float, *, power: float = 0.8, level: float = 0.05) -> int | None:
    """Seeds at which a paired two-sided t-test finds an effect of this size (`paired_effect_size`) with this power.

    Returns:
        The smallest number of pairs, at least 2; None if it takes more than 10,000, or if there is no effect size.
        The size seen in a few seeds is itself uncertain: what was found because it happened to be large needs more.

    Raises:
        ValueError: `power` or `level` is not between 0 and 1.
    """
    if not (0 < power < 1 and 0 < level < 1):
        raise ValueError(f"power and level must lie between 0 and 1, not {power} and {level}")
    if math.isnan(effect_size) or effect_size == 0:
        return None
    if math.isinf(effect_size):
        return 2
    low, high = 1, 2  # too few, and perhaps enough
    while paired_t_power(effect_size, high, level) < power:
        low, high = high, 2 * high
        if low > MAX_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if paired_t_power(effect_size, middle, level) >= power else (middle, high)
    return high if high <= MAX_SEEDS else None


def paired_t_power(effect_size: float, n: int, level: float = 0.05) -> float:
    """Probability that a paired two-sided t-test finds a difference, from the noncentral t distribution."""
    from scipy.special import stdtrit
    from scipy.stats import nct

    critical = float(stdtrit(n - 1, 1 - level / 2))
    noncentrality = abs(effect_size) * math.sqrt(n)
    # SciPy has no number for the other tail where it is far away.
    far = float(np.nan_to_num(nct.cdf(-critical, n - 1, noncentrality)))
    return float(nct.sf(critical, n - 1, noncentrality)) + far


def smallest_p(n_pairs: int, test: Test = "sign_flip") -> float:
    """The least p-value that a test can give.

    2 / 2ⁿ for random signs, and 2 of 10,000 where 9,999 of them are drawn; 0 for Student's t; NaN for too few pairs.
    """
    if n_pairs < 1 or (test == "t" and n_pairs < 2):
        return math.nan
    if test == "t":
        return 0.0
    return 2.0 ** (1 - n_pairs) if 2**n_pairs <= RESAMPLES else 2 / (1 + RESAMPLES)


def scores_by_seed(runs: Runs, diverged: Diverged = "chance") -> pd.DataFrame:
    """Scores of the counted runs of one stream, turned so that more is better.

    Returns:
        One row per seed, one column per label in the order of `runs.labels`; accuracies in percent, or squared errors
        with a minus. NaN where there is no run. `attrs["score"]` says which.
    """
    runs.require_one_stream()
    scores, name = average_score(runs, diverged)
    known = scores.dropna(subset=name)
    by_seed = known.pivot(index="seed", columns="label", values=name)
    labels = [label for label in runs.labels if label in by_seed.columns]
    table = by_seed[labels] * (-1 if name == "squared_error" else 100)
    table.attrs["score"] = name
    return table


def summary_table(runs: Runs, *, diverged: Diverged = "chance", seed: int = 0) -> pd.DataFrame:
    """Averages of each learner on one stream, with intervals.

    Returns:
        One row per learner: learner, seeds, mean, mean_ci (half width of the 95 % Student-t interval), bootstrap_low,
        bootstrap_high (of the mean), iqm (interquartile mean), iqm_low, iqm_high (bootstrap). In percent, or in squared
        errors.
    """
    scores = scores_by_seed(runs, diverged)
    sign = -1 if scores.attrs["score"] == "squared_error" else 1
    rows = []
    for label in scores:
        values = sign * scores[label].dropna().to_numpy()
        mean, half_width = mean_interval(values)
        means = bootstrap_interval(values, seed=seed)
        middles = bootstrap_interval(values, interquartile_mean, seed=seed)
        rows.append((label, len(values), mean, half_width, *means, interquartile_mean(values), *middles))
    columns = ["learner", "seeds", "mean", "mean_ci", "bootstrap_low", "bootstrap_high", "iqm", "iqm_low", "iqm_high"]
    table = pd.DataFrame(rows, columns=columns)
    table.attrs["score"] = scores.attrs["score"]
    return table


def paired_comparisons(
    runs: Runs,
    baseline: str | None = None,
    *,
    diverged: Diverged = "chance",
    test: Test = "sign_flip",
    power: float = 0.8,
) -> pd.DataFrame:
    """Compare learners with a baseline, seed by seed.

    Args:
        runs: runs of one stream.
        baseline: the label that the others are compared with; the best learner with fixed step sizes if None. Every
            learner is compared with every other if it is `"all"`.
        diverged: how diverged runs count.
        test: `"sign_flip"`, which assumes no distribution, or `"t"`, which assumes a normal one.
        power: of `seeds_needed`.

    Returns:
        One row per comparison: learner, baseline, pairs (common seeds), difference (positive where the learner is
        better; percentage points, or squared error), difference_ci (half width of the 95 % Student-t interval),
        effect_size, effect_low, effect_high (`paired_effect_size`), improvement, improvement_low, improvement_high
        (`probability_of_improvement`), p, p_holm (corrected for all rows), seeds_needed (missing if it is beyond
        10,000). `attrs` hold score, test, power, and smallest_p and smallest_p_holm: the least the tests could give.

    Raises:
        ValueError: there is no such label, test or baseline, or see `scores_by_seed`.
    """
    if test not in get_args(Test):
        raise ValueError(f"test must be one of {', '.join(get_args(Test))}, not {test!r}")
    scores = scores_by_seed(runs, diverged)
    if baseline == "all":
        pairs = list(itertools.combinations(scores.columns, 2))
    else:
        reference = best_fixed(runs, diverged=diverged) if baseline is None else baseline
        if reference is None:
            raise ValueError("no learner has fixed step sizes: name the one that the others are compared with")
        require_labels(runs, [reference])
        pairs = [(label, reference) for label in scores.columns if label != reference]
    rows = []
    for label, reference in pairs:
        differences = (scores[label] - scores[reference]).dropna().to_numpy() if reference in scores else np.empty(0)
        mean, half_width = mean_interval(differences)
        effect = paired_effect_size(differences)
        chance = probability_of_improvement(differences)
        needed = seeds_needed(effect.value, power=power)
        p = _TESTS[test](differences)
        rows.append((label, reference, len(differences), mean, half_width, *effect, *chance, p, needed))
    columns = ["learner", "baseline", "pairs", "difference", "difference_ci"]
    columns += ["effect_size", "effect_low", "effect_high", "improvement", "improvement_low", "improvement_high"]
    columns += ["p", "seeds_needed"]
    table = pd.DataFrame(rows, columns=columns).astype({"seeds_needed": "Int64"})
    table.insert(list(table.columns).index("p") + 1, "p_holm", holm(table["p"]))
    least = [smallest_p(pairs, test) for pairs in table["pairs"]]
    table.attrs = {
        "score": scores.attrs["score"],
        "test": test,
        "power": power,
        "smallest_p": float(np.nanmin(least)) if np.isfinite(least).any() else math.nan,
        "smallest_p_holm": float(np.nanmin(holm(least))) if np.isfinite(least).any() else math.nan,
    }
    return table


def limits_of(comparisons: pd.DataFrame, level: float = 0.05) -> str:
    """What the tests of a table can show at all with so many seeds, in a sentence or two."""
    n = len(comparisons)
    if not n:
        return "There is nothing to compare."
    pairs = int(comparisons["pairs"].max())
    if comparisons.attrs["test"] == "t":
        return f"Paired t-tests, which take differences as normal; p_holm is corrected for {n} comparisons (Holm)."
    least, corrected = comparisons.attrs["smallest_p"], comparisons.attrs["smallest_p_holm"]
    if not pairs:
        return "No two learners have a seed in common, so nothing was tested."
    kind = "Exact sign-flip tests" if 2**pairs <= RESAMPLES else f"Sign-flip tests with {RESAMPLES:,} random signs"
    text = (
        f"{kind}: with {pairs} seeds p cannot be less than {least:.3g}, and corrected for "
        f"{n} comparison{'s' * (n != 1)} (Holm) not less than {corrected:.3g}."
    )
    if not corrected > level:
        return text
    text = f"{text} So no difference can be significant at {100 * level:g} % here, however large"
    if n * smallest_p(MAX_SEEDS) > level:
        return f"{text}, with any number of seeds; make fewer comparisons."
    needed = next(seeds for seeds in itertools.count(1) if n * smallest_p(seeds) <= level)
    return f"{text}; it takes {needed} seeds."


class Ranks(NamedTuple):
    """Ranks of learners. The table, the best first, has learner, seeds, rank (mean; 1 is best) and rank_ci.

    rank_ci is the half width of the 95 % Student-t interval over seeds.
    """

    table: pd.DataFrame
    by_seed: pd.DataFrame  # rank of each learner (columns, in the order of `table`) on each seed
    p: float  # of Friedman's test that all ranks are equal, by permutations within seeds
    comparisons: pd.DataFrame  # of every pair, from `paired_comparisons(runs, "all")`

    def groups(self, level: float = 0.05) -> list[tuple[int, int]]:
        """Stretches of learners, by their places in `table`, within which no pair differs after the correction.

        Returns:
            First and last place of each stretch that is not part of another, with two learners or more.
        """
        labels = list(self.table["learner"])
        differ = {
            frozenset(pair)
            for *pair, p in self.comparisons[["learner", "baseline", "p_holm"]].itertuples(index=False, name=None)
            if p <= level
        }
        stretches: list[tuple[int, int]] = []
        for first in range(len(labels)):
            last = first
            while last + 1 < len(labels) and not any(
                frozenset((labels[place], labels[last + 1])) in differ for place in range(first, last + 1)
            ):
                last += 1
            if last > first and not (stretches and stretches[-1][1] >= last):
                stretches.append((first, last))
        return stretches


def rank_learners(
    runs: Runs,
    labels: Sequence[str] | None = None,
    *,
    diverged: Diverged = "chance",
    test: Test = "sign_flip",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ranks:
    """Rank learners, or all, on the seeds that they have in common, and compare every pair as of `paired_comparisons`.

    Args:
        resamples: permutations for Friedman's test, drawn with `seed`; all of them where they are fewer.

    Returns:
        The ranks; equal scores share their mean rank.

    Raises:
        ValueError: fewer than two learners, or no common seed.
    """
    require_labels(runs, list(labels or []))
    chosen = runs if labels is None else runs.select(label=list(labels))
    ranks = ranks_by_seed(scores_by_seed(chosen, diverged))
    if len(ranks.columns) < 2 or not len(ranks):
        raise ValueError("ranks need two learners or more that have come to an end with the same seeds")
    order = ranks.mean().sort_values(kind="stable").index
    ranks = ranks[order]
    means, half_widths = mean_interval(ranks.to_numpy())
    table = pd.DataFrame({"learner": list(order), "seeds": len(ranks), "rank": means, "rank_ci": half_widths})
    comparisons = paired_comparisons(chosen, "all", diverged=diverged, test=test)
    return Ranks(table, ranks, _friedman_p(ranks.to_numpy(), resamples, seed), comparisons)


def ranks_by_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Rank of each learner, 1 is best, on the seeds that all have in common; scores as of `scores_by_seed`."""
    return scores.dropna().rank(axis=1, ascending=False)


def _friedman_p(ranks: Array, resamples: int, seed: int) -> float:
    """Share of permutations within seeds (rows) whose rank sums are at least as unequal."""
    if len(ranks) < 2:
        return math.nan
    from scipy.stats import permutation_test

    def inequality(*columns: Array, axis: int) -> Any:
        return sum(column.sum(axis=axis) ** 2 for column in columns)

    return float(
        permutation_test(
            tuple(ranks.T),
            inequality,
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            alternative="greater",
            rng=np.random.default_rng(seed),
        ).pvalue
    )
