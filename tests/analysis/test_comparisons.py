import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest

from continual_metaopt.analysis import comparisons, load_runs
from continual_metaopt.analysis.comparisons import paired_comparisons, sign_flip_test, smallest_p
from continual_metaopt.analysis.statistics import paired_differences

from .synthetic import write_counts, write_regression, write_run


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 2, 3], 2), ([9, 1, 2, 3, -50], 2), ([1, 2, 3, 10], 2.5), ([4], 4), (range(9), 4)]
)
def test_interquartile_mean(values, expected):
    assert comparisons.interquartile_mean(values) == expected


def test_bootstrap_of_two_values_by_hand():
    # The mean of two draws from 0 and 1 is 0, ½ or 1, with probabilities ¼, ½ and ¼.
    assert comparisons.bootstrap_interval([0, 1], confidence=0.95) == (0, 1)
    assert comparisons.bootstrap_interval([0, 1], confidence=0.4) == (0.5, 0.5)
    assert comparisons.bootstrap_interval([3, 3, 3]) == (3, 3)
    assert all(math.isnan(edge) for edge in comparisons.bootstrap_interval([3]))


def test_bootstrap_of_many_values_is_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    expected = values.mean() + np.array([-1, 1]) * 1.959964 * values.std() / 20
    first, again, other = (comparisons.bootstrap_interval(values, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_allclose(first, expected, atol=0.006)
    assert first == again != other


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5], 2 / 32),  # the least that five pairs can give
        ([-1, -2, -3, -4, -5], 2 / 32),
        ([-1, 2, 3, 4, 5], 4 / 32),
        ([1, -1], 1),
        ([0.5], 1),
        ([0, 0, 0], 1),
        ([1, 2, 3, 4, 5, 6], 2 / 64),
    ],
)
def test_sign_flips_by_hand(differences, p):
    assert sign_flip_test(differences) == pytest.approx(p)


def test_sign_flips_of_many_pairs_are_drawn():
    differences = np.random.default_rng(0).normal(0.3, size=40)
    assert sign_flip_test(differences) == sign_flip_test(differences)
    assert sign_flip_test(differences) == pytest.approx(comparisons.paired_t_test(differences), abs=0.02)
    assert sign_flip_test(np.ones(40)) == 2 / 10_000  # counts the observed signs, and both sides
    assert math.isnan(sign_flip_test([np.nan, 1]))
    assert math.isnan(sign_flip_test([]))


def test_an_infinite_difference_outweighs_all_others():
    assert sign_flip_test([np.inf, 1, 2]) == 0.25
    assert sign_flip_test([np.inf, -1, -2, -3]) == 1.0  # as many signs give a mean beyond as before
    assert sign_flip_test([np.inf, -np.inf]) == 1.0


def test_paired_t_test():
    # t = 2 / (1 / √3) = 3.4641 with two degrees of freedom, whose distribution has the closed form ½ + t / (2√(2 + t²))
    assert comparisons.paired_t_test([1, 2, 3]) == pytest.approx(1 - math.sqrt(12 / 14))
    assert comparisons.paired_t_test([0, 0]) == 1
    assert math.isnan(comparisons.paired_t_test([1]))


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Holm's procedure by hand
        ([0.6, 0.7], [1, 1]),
        ([np.nan, 0.02, 0.03], [np.nan, 0.04, 0.04]),
        ([], []),
    ],
)
def test_holm(p, expected):
    np.testing.assert_allclose(comparisons.holm(p), expected)


def test_effect_size():
    size, low, high = comparisons.paired_effect_size([1, 2, 3])
    assert size == 2
    assert low < 2 < high
    # Of zero effect, t is 0, and P(T < 0) is that of a normal variable below minus the noncentrality.
    np.testing.assert_allclose(
        comparisons.paired_effect_size([-1, 1, 0, 0]), [0, -1.959964 / 2, 1.959964 / 2], rtol=1e-5
    )
    assert comparisons.paired_effect_size([2, 2, 2])[0] == math.inf
    assert all(math.isnan(value) for value in comparisons.paired_effect_size([0, 0]))


def test_effect_size_intervals_hold_the_true_one():
    random = np.random.default_rng(3)
    intervals = [comparisons.paired_effect_size(random.normal(1.0, 1.0, 5))[1:] for _ in range(1000)]
    assert np.mean([low <= 1 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1, 2, 3, 4, 5], (1, 0.025**0.2, 1)),  # Clopper and Pearson's lower edge of n of n is (α/2)^(1/n)
        ([-1, -2], (0, 0, 1 - 0.025**0.5)),
        ([0, 0], (0.5, 0, 1)),
        ([1, np.nan], (1, 0.025, 1)),
    ],
)
def test_probability_of_improvement(differences, expected):
    np.testing.assert_allclose(comparisons.probability_of_improvement(differences), expected)


@pytest.mark.parametrize(
    ("effects", "n"),  # Cohen's and G*Power's numbers of pairs for a two-sided paired t-test at 5 % with power 0.8
    [([0.2], 199), ([0.5, -0.5], 34), ([0.8], 15), ([1.0], 10), ([math.inf], 2), ([1e-3, 0.0, math.nan], None)],
)
def test_seeds_needed(effects, n):
    assert {comparisons.seeds_needed(effect) for effect in effects} == {n}


def test_power():
    assert comparisons.paired_t_power(0.5, 34) == pytest.approx(0.8078, abs=1e-4)  # G*Power
    assert comparisons.paired_t_power(0.0, 7) == pytest.approx(0.05)
    assert comparisons.paired_t_power(20.0, 5) == pytest.approx(1)
    assert comparisons.seeds_needed(0.5, power=0.9) == 44
    with pytest.raises(ValueError, match=r"^power and level must lie between 0 and 1, not 80 and 0\.05$"):
        comparisons.seeds_needed(0.5, power=80)


def test_smallest_p():
    assert [smallest_p(n) for n in (1, 5, 6)] == [1, 0.0625, 0.03125]
    assert smallest_p(5, "t") == 0
    assert math.isnan(smallest_p(0))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Five seeds of three learners with so many of ten samples right."""
    root = tmp_path_factory.mktemp("three")
    write_counts(root, {"C": (5, 4, 3, 2, 1)})
    write_counts(root, {"B": (8, 8, 7, 8, 7)}, config={"order": 1}, learned=True)
    write_counts(root, {"A": (9, 9, 8, 9, 8)}, config={"order": 2}, learned=True)
    return load_runs(root)


def test_paired_comparisons(three):
    table = paired_comparisons(three)  # with C, the only one with fixed step sizes
    assert table[["learner", "baseline", "pairs"]].to_numpy().tolist() == [["B", "C", 5], ["A", "C", 5]]
    np.testing.assert_allclose(table["difference"], [46, 56])
    assert table["p"].tolist() == [2 / 32, 2 / 32]
    assert table["p_holm"].tolist() == [4 / 32, 4 / 32]
    assert table["improvement"].tolist() == [1, 1]
    assert table["effect_size"].iloc[0] == pytest.approx(46 / np.std([30, 40, 40, 60, 60], ddof=1))
    everyone = paired_comparisons(three, "all", test="t")
    assert len(everyone) == 3
    best = everyone.set_index(["learner", "baseline"]).loc[("B", "A")]
    assert (best["difference"], best["effect_size"], best["p"]) == (pytest.approx(-10), -math.inf, pytest.approx(0))
    with pytest.raises(ValueError, match="test must be one of sign_flip, t, not 'sign'"):
        paired_comparisons(three, test="sign")
    with pytest.raises(ValueError, match="no learner has fixed step sizes: name the one that"):
        paired_comparisons(three.select(label=["A", "B"]))


def test_the_limits_of_few_seeds_are_told(three):
    assert comparisons.limits_of(paired_comparisons(three)) == (
        "Exact sign-flip tests: with 5 seeds p cannot be less than 0.0625, and corrected for 2 comparisons (Holm) not "
        "less than 0.125. So no difference can be significant at 5 % here, however large; it takes 7 seeds."
    )
    assert smallest_p(7) * 2 <= 0.05 < smallest_p(6) * 2
    assert comparisons.limits_of(paired_comparisons(three), level=0.2).endswith("(Holm) not less than 0.125.")
    assert comparisons.limits_of(paired_comparisons(three, test="t")).startswith("Paired t-tests")


def test_drawn_signs_cannot_give_less_than_one_of_all_draws():
    """From 14 pairs on there are more signs than draws, and the observed signs count as one of the draws."""
    improvements = np.linspace(1, 2, 20)
    assert sign_flip_test(improvements) == smallest_p(20) == 2 / 10_000
    assert sign_flip_test(improvements[:13]) == smallest_p(13) == 2 / 2**13


@pytest.mark.parametrize(
    ("pairs", "n", "least", "end"),
    [
        (5, 10, 2 / 32, "it takes 9 seeds."),
        (5, 231, 2 / 32, "it takes 14 seeds."),
        (20, 231, 2 / 10_000, "not less than 0.0462."),
        (20, 595, 2 / 10_000, "however large, with any number of seeds; make fewer comparisons."),
        (5, 595, 2 / 32, "however large, with any number of seeds; make fewer comparisons."),
    ],
)
def test_limits_of_many_comparisons(pairs, n, least, end):
    table = pd.DataFrame({"pairs": [pairs] * n})
    table.attrs = {"test": "sign_flip", "smallest_p": least, "smallest_p_holm": min(1, n * least)}
    assert comparisons.limits_of(table).endswith(end)


def test_a_learner_without_common_seeds_does_not_hide_the_limits(tmp_path):
    for label, seeds in {"A": (7,), "B": range(2), "C": range(2)}.items():
        for seed in seeds:
            write_run(tmp_path, label, seed, [1, 0])
    table = paired_comparisons(load_runs(tmp_path), "B")
    assert table["pairs"].tolist() == [0, 2]
    assert table.attrs["smallest_p"] == table.attrs["smallest_p_holm"] == 0.5
    assert "nan" not in comparisons.limits_of(table)


def test_ranks(three):
    ranks = comparisons.rank_learners(three)
    assert ranks.table["learner"].tolist() == ["A", "B", "C"]
    assert ranks.table["rank"].tolist() == [1, 2, 3]
    assert ranks.table["rank_ci"].tolist() == [0, 0, 0]
    # Of 6⁵ ways to permute within seeds (fewer than are drawn, so all), 6 have the same order everywhere.
    assert ranks.p == pytest.approx(6 / 6**5)
    assert ranks.groups() == [(0, 2)]  # five seeds cannot show a difference
    assert comparisons.rank_learners(three, ["A", "C"]).table["learner"].tolist() == ["A", "C"]
    with pytest.raises(ValueError, match="ranks need two learners or more"):
        comparisons.rank_learners(three, ["A"])


def test_equal_scores_share_their_rank(tmp_path):
    write_counts(tmp_path, {"A": [1], "B": [1], "C": [0]}, 2)
    assert comparisons.rank_learners(load_runs(tmp_path)).table["rank"].tolist() == [1.5, 1.5, 3]


def test_groups_are_the_longest_stretches_without_a_difference():
    labels = ["A", "B", "C", "D"]
    differ = {("A", "C"), ("A", "D"), ("B", "D")}
    pairs = list(itertools.combinations(labels, 2))
    compared = pd.DataFrame(
        [(*pair, 0.01 if pair in differ else 0.5) for pair in pairs], columns=["learner", "baseline", "p_holm"]
    )
    ranks = comparisons.Ranks(pd.DataFrame({"learner": labels}), pd.DataFrame(), 0.01, compared)
    assert ranks.groups() == [(0, 1), (1, 2), (2, 3)]
    assert ranks.groups(level=0.001) == [(0, 3)]


def test_summary(three):
    table = comparisons.summary_table(three).set_index("learner")
    assert table.loc["A", "mean"] == pytest.approx(86)
    assert table.loc["A", "iqm"] == pytest.approx(260 / 3)
    assert 80 <= table.loc["A", "bootstrap_low"] < 86 < table.loc["A", "bootstrap_high"] <= 90
    np.testing.assert_allclose(table.loc["C", "iqm"], 30)


def test_less_error_is_better(tmp_path):
    for seed in range(2):
        write_regression(tmp_path, "Small", seed, [1 + seed, 1])
        write_regression(tmp_path, "Large", seed, [4 + seed, 4])
    runs = load_runs(tmp_path)
    (row,) = paired_comparisons(runs, "Large").to_dict("records")
    assert row["difference"] == pytest.approx(3)
    assert row["improvement"] == 1
    assert comparisons.rank_learners(runs).table["learner"].tolist() == ["Small", "Large"]
    assert comparisons.summary_table(runs).set_index("learner").loc["Small", "mean"] == pytest.approx(1.25)


def test_errors_that_are_infinite(tmp_path):
    for seed in range(6):
        write_regression(tmp_path, "Small", seed, [1, 1])
        write_regression(tmp_path, "Diverged", seed, [1], n_samples=2, state="diverged")
    runs = load_runs(tmp_path)
    (row,) = paired_comparisons(runs, "Diverged").to_dict("records")
    assert row["difference"] == math.inf
    assert row["p"] == row["p_holm"] == 2 / 2**6
    assert math.isnan(row["effect_size"])
    assert row["improvement"] == 1
    ranks = comparisons.rank_learners(runs)
    assert ranks.table["rank"].tolist() == [1, 2]
    assert ranks.groups() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired_differences(runs, "Small").loc["Diverged", "difference"] == math.inf


def test_nothing_to_compare_is_said(tmp_path):
    write_run(tmp_path, "A", 0)
    assert comparisons.limits_of(paired_comparisons(load_runs(tmp_path), "A")) == "There is nothing to compare."
