import math
import re

import numpy as np
import pandas as pd
import pytest

from continual_metaopt.analysis import load_runs, statistics
from continual_metaopt.analysis.statistics import GAMMA, aligned, around_boundaries, mean_interval, sample_scores

from .synthetic import write_counts, write_regression, write_run, write_table

T_2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom
T_1 = 12.706204736432095


def test_mean_interval_by_hand():
    mean, half_width = mean_interval([1, 2, 3])
    assert mean == 2
    assert half_width == pytest.approx(T_2 / math.sqrt(3))  # the standard deviation is 1
    assert mean_interval([1, 2, 3], confidence=0.9)[1] == pytest.approx(2.919985580353726 / math.sqrt(3))


def test_mean_interval_over_the_first_axis():
    mean, half_width = mean_interval([[0, 5], [2, 5]])
    np.testing.assert_allclose(mean, [1, 5])
    np.testing.assert_allclose(half_width, [T_1, 0])  # standard deviation sqrt(2), divided by sqrt(2)


def test_mean_interval_of_too_few():
    mean, half_width = mean_interval([4])
    assert mean == 4
    assert math.isnan(half_width)
    assert all(math.isnan(value) for value in mean_interval([]))
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, not 95"):
        mean_interval([1, 2], confidence=95)


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        ([38, 39, 40, 41, 42], False),
        ([35.5, 40, 40.1, 40.2, 40.3], False),  # an outlier by less than 5 points
        ([30, 36, 38, 40, 42], False),  # a gap of 6 points, which is no more than half of 12
        ([9.3, 9.5, 25.4, 39.8, 40.2], True),
        ([30, 37, 38, 39, 40], True),
        ([10.1, 10.2, 39.9, 40.0, 40.1], True),
        ([40, 9.8, 40.2, 40.1, 39.9], True),
        ([10, 40], False),
        ([10, 40, np.nan], False),
        ([], False),
    ],
)
def test_seeds_in_two_groups(percent, expected):
    assert statistics.is_bimodal(percent) is expected
    assert statistics.numbers_of(statistics.seeds_if_bimodal(percent)) == (sorted(percent) if expected else [])


def test_windowed_accuracy_looks_back():
    np.testing.assert_allclose(statistics.windowed_accuracy([1, 0, 0, 1], 2), [np.nan, 0.5, 0, 0.5])
    np.testing.assert_allclose(statistics.windowed_accuracy([1, 0], 1), [1, 0])
    np.testing.assert_allclose(statistics.windowed_accuracy([1, 0], 2), [np.nan, 0.5])
    np.testing.assert_allclose(statistics.windowed_accuracy([1, np.nan, 1, 2, 2], 2), [np.nan, np.nan, np.nan, 1.5, 2])
    errors = np.full(1000, 0.01)
    errors[5] = 1e18  # which leaves nothing of what follows in a cumulative sum
    np.testing.assert_allclose(statistics.windowed_accuracy(errors, 100)[105:], 0.01)
    for window in (0, 3):
        with pytest.raises(ValueError, match=f"the window must have 1 to 2 samples, not {window}"):
            statistics.windowed_accuracy([1, 0], window)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Finished at 3/4, diverged after 1 of 2 correct, running and failed."""
    root = tmp_path_factory.mktemp("mixed")
    write_run(root, "A", 0, [1, 0, 1, 1])
    for seed, (state, correct) in enumerate({"diverged": [1, 0], "running": [1, 1], "failed": [1]}.items(), 1):
        write_run(root, "A", seed, correct, n_samples=4, state=state, parts=1)
    return load_runs(root)


def test_online_accuracy_with_diverged_runs(mixed):
    chance = statistics.online_accuracy(mixed)
    np.testing.assert_allclose(chance["online_accuracy"], [3 / 4, (1 + 2 / 2) / 4, np.nan, np.nan])
    assert chance["state"].tolist() == ["finished", "diverged", "running", "failed"]
    assert chance["run"].tolist() == mixed.table["path"].tolist()
    exclude = statistics.online_accuracy(mixed, "exclude")
    np.testing.assert_allclose(exclude["online_accuracy"], [3 / 4, np.nan, np.nan, np.nan])
    with pytest.raises(ValueError, match="diverged must be 'chance' or 'exclude', not 'zero'"):
        statistics.online_accuracy(mixed, "zero")


def test_a_run_that_diverged_at_once_is_at_chance(tmp_path):
    run = write_run(tmp_path, correct=[], n_samples=4, n_outputs=4, state="diverged")
    assert statistics.online_accuracy(load_runs(run))["online_accuracy"].tolist() == [0.25]


def test_sample_scores(mixed):
    assert sample_scores(mixed, mixed.table["path"][1]).tolist() == [1, 0, 0.5, 0.5]


def test_regression_has_no_accuracy(tmp_path):
    run = write_run(tmp_path, correct=[None, None])
    message = f"^{re.escape(str(run))}: has no accuracy, since its stream is a regression$"
    with pytest.raises(ValueError, match=message):
        statistics.online_accuracy(load_runs(run))
    with pytest.raises(ValueError, match=message):
        sample_scores(load_runs(run), str(run))


def test_the_same_seed_twice_is_an_error(tmp_path):
    first = write_run(tmp_path, "A", 0, folder="first")
    second = write_run(tmp_path, "A", 0, folder="second")
    message = f"{first} and {second} are both 'A' with seed 0: leave one of them out"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        statistics.counted_runs(load_runs(tmp_path))


def test_held_out_accuracy(tmp_path):
    write_run(tmp_path, "A", 0, test_accuracy=[0.8, 0.6])
    write_run(tmp_path, "A", 1, [1, 0], n_samples=4, state="diverged", test_accuracy=[0.9, None])
    write_run(tmp_path, "B", 0)
    write_run(tmp_path, "C", 0, [1, 0], n_samples=4, state="running", test_accuracy=[0.9, None])
    runs = load_runs(tmp_path)
    np.testing.assert_allclose(statistics.held_out_accuracy(runs), [0.7, (0.9 + 0.5) / 2, np.nan, np.nan])
    np.testing.assert_allclose(statistics.held_out_accuracy(runs, "exclude"), [0.7, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("write", [write_run, write_regression])
def test_what_nobody_measured_is_no_held_out_accuracy_of_diverged_runs(tmp_path, write):
    write(tmp_path, "A", 0, [1, 0, 1, 1], test_accuracy=[None, None])
    write(tmp_path, "B", 0, [1, 0], n_samples=4, state="diverged", test_accuracy=[None, None])
    assert statistics.held_out_accuracy(load_runs(tmp_path)).isna().all()


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """B minus A is 1/4, 2/4 and 3/4; C has one common seed; D none."""
    root = write_counts(tmp_path_factory.mktemp("paired"), {"A": (1, 1, 1)}, 4)
    write_counts(root, {"B": (2, 3, 4)}, 4, learned=True)
    for label, seed, correct in (("C", 0, [0, 0, 0, 0]), ("C", 7, [1, 1, 1, 1]), ("D", 8, [1, 0, 1, 1])):
        write_run(root, label, seed, correct, config={"order": 0})
    return load_runs(root)


def test_paired_differences_by_hand(paired):
    differences = statistics.paired_differences(paired, "A")
    assert differences.index.tolist() == ["B", "C", "D"]
    assert differences["pairs"].tolist() == [3, 1, 0]
    np.testing.assert_allclose(differences["difference"], [0.5, -0.25, np.nan])
    np.testing.assert_allclose(differences["half_width"], [T_2 * 0.25 / math.sqrt(3), np.nan, np.nan])
    with pytest.raises(ValueError, match="no run is labelled 'E'; the labels are: A; B; C; D"):
        statistics.paired_differences(paired, "E")


def test_best_fixed(paired):
    assert statistics.best_fixed(paired) == "A"  # B is better, but learns its step sizes; C and D have fewer seeds
    assert statistics.best_fixed(paired.select(label=["B", "C", "D"])) == "C"  # two seeds
    assert statistics.best_fixed(paired.select(label="B")) is None


FIXED = ("fixed", "fixed_per_block", "torch:SGD", "of_ones_own")
OTHERS = ("replayed_step_sizes", "reinitialised_told", "cosine", "continual_backprop", "schedulefree_sgd")


@pytest.mark.parametrize("name", [*FIXED, *OTHERS])
def test_fixed_step_sizes_and_nothing_else_are_compared_with(tmp_path, name):
    write_run(tmp_path, "plain", 0, [1, 0, 0, 0], config={"learner": {"name": "fixed"}})
    write_run(tmp_path, "other", 0, [1, 1, 1, 0], config={"learner": {"name": name}})
    assert statistics.best_fixed(load_runs(tmp_path)) == ("other" if name in FIXED else "plain")


def test_mean_squared_error_is_twice_the_loss_after_the_burn_in(tmp_path):
    write_regression(tmp_path, "LMS", 0, [9, 1, 2, 3])
    write_regression(tmp_path, "LMS", 1, [9], n_samples=4, state="diverged")
    runs = load_runs(tmp_path)
    assert statistics.is_regression(runs)
    assert statistics.mean_squared_error(runs)["squared_error"].tolist() == [3.75, np.inf]
    assert statistics.mean_squared_error(runs, burn_in=1)["squared_error"].tolist() == [2.0, np.inf]
    excluded = statistics.mean_squared_error(runs, "exclude")["squared_error"]
    assert excluded.iloc[0] == 3.75
    assert np.isnan(excluded.iloc[1])
    with pytest.raises(ValueError, match=r"^the burn-in must have 0 to 3 samples, not 4$"):
        statistics.mean_squared_error(runs, burn_in=4)


@pytest.fixture
def losses(tmp_path):
    """A run that finished with the losses 4, 1, 0 and 2, and one that diverged."""
    for seed, state in enumerate(("finished", "diverged")):
        run = write_run(tmp_path, "A", seed, n_samples=4 + seed, state=state)
        samples, experiences = (pd.read_parquet(run / f"{name}.parquet") for name in ("samples", "experiences"))
        samples["loss"] = np.float32([4, 1, 0, 2])
        write_table(run, "samples", samples, 0)
        write_table(run, "experiences", experiences.assign(mean_loss=[2.5, 1.0]), 0)
    return tmp_path


def test_the_discounted_loss_is_the_mean_of_what_metaoptimize_minimises(losses):
    def mean_of_discounted_sums(loss):
        sums = [sum(GAMMA ** (tau - t) * loss[tau] for tau in range(t, 4)) for t in range(4)]
        return (1 - GAMMA) * sum(sums) / 4

    table = statistics.online_loss(load_runs(losses))

    expected = mean_of_discounted_sums([4, 1, 0, 2]) / mean_of_discounted_sums([1] * 4)
    np.testing.assert_allclose(table, [[7 / 4, expected], [np.nan, np.nan]])
    assert expected == pytest.approx((4 * 1 + 1 * 2 + 0 * 3 + 2 * 4) / (1 + 2 + 3 + 4), rel=1e-2)  # γ is nearly 1


@pytest.mark.parametrize(("recorded", "loss"), [([None] * 4, 7 / 4), ([4, 1, 0, np.inf], np.nan)])
def test_losses_that_were_not_kept_and_infinite_ones(losses, recorded, loss):
    run = losses / "A-0"
    samples = pd.read_parquet(run / "samples.parquet")
    write_table(run, "samples", samples.assign(loss=np.array(recorded, dtype="float32")), 0)

    np.testing.assert_equal(statistics.online_loss(load_runs(losses)).iloc[0].to_numpy(), [loss, np.nan])


def test_alignment_by_hand():
    """Boundaries at 10 and 20; bins of 2 samples from 4 before to 4 after."""
    steps, values = np.arange(30), np.arange(30.0)
    values[20:] += 100
    table = aligned(steps, values, [10, 20], before=4, after=4, width=2)
    assert table.index.tolist() == [-2, -1, 0, 1]
    assert table["offset"].tolist() == [-3.5, -1.5, 0.5, 2.5]
    # samples 6 and 7 with 16 and 17; 8, 9 with 18, 19; 10, 11 with 120, 121; 12, 13 with 122, 123
    assert table["value"].tolist() == [11.5, 13.5, 65.5, 67.5]


def test_each_boundary_counts_the_same_in_a_bin():
    table = aligned([10, 11, 12, 20], [1, 1, 1, 5], [10, 20], before=0, after=5, width=5)
    assert table["value"].tolist() == [3]
    assert table["offset"].tolist() == [0.5]


@pytest.mark.parametrize("width", [1, 3, 7])
def test_no_bin_reaches_over_the_boundary(width):
    steps = np.arange(100)
    table = aligned(steps, steps >= 50, [50], before=20, after=20, width=width)
    assert table["value"].tolist() == [float(number >= 0) for number in table.index]
    assert table["offset"].between(-20, 19).all()


def test_a_sawtooth_is_found_whatever_the_level_of_its_teeth():
    """Values that fall by half every 10 samples after each boundary; every tooth ten times the one before."""
    steps = np.arange(0, 300, 5)
    values = 10.0 ** (steps // 100) * 0.5 ** (steps % 100 / 10)
    table = aligned(steps, values, [100, 200], before=50, after=100, width=5, geometric=True)
    after = table[table.index >= 0]
    assert after["offset"].tolist() == list(range(0, 100, 5))
    np.testing.assert_allclose(after["value"] / after["value"].iloc[0], 0.5 ** (after["offset"] / 10))
    assert after["value"].iloc[0] == pytest.approx(10**1.5)
    assert table["value"].loc[-1] == pytest.approx(10**0.5 * 0.5**9.5)


def test_what_has_no_value_is_left_out():
    table = aligned([9, 10, 11], [np.nan, 0.0, 4.0], [10], before=1, after=2, width=1, geometric=True)
    assert table["value"].to_dict() == {1: pytest.approx(4.0)}
    assert aligned([], [], [10], before=1, after=2, width=1).empty
    assert aligned([1, 2], [1.0, 1.0], [10], before=1, after=2, width=1).empty
    assert aligned([1, 2], [1.0, 1.0], [], before=1, after=2, width=1).empty


@pytest.mark.parametrize("part", [{"width": 0}, {"before": -1}, {"after": -1}, {"before": 0, "after": 0}])
def test_alignment_needs_samples_to_look_at(part):
    options = {"before": 1, "after": 2, "width": 1} | part
    message = (
        f"cannot look at {options['before']} samples before and {options['after']} after a boundary "
        f"in bins of {options['width']}"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        aligned([1], [1], [1], **options)


@pytest.fixture(scope="module")
def stepping(tmp_path_factory):
    """Two seeds whose accuracy, step sizes and diagnostics jump at 40 and 80 of 120 samples."""
    root = tmp_path_factory.mktemp("stepping")
    for seed in range(2):
        jump = np.arange(120) // 40
        steps = np.arange(0, 120, 10)
        write_run(
            root,
            "A",
            seed,
            ((np.arange(120) % 40 >= 20) | (seed == 1)).astype(int),
            n_experiences=3,
            step_sizes={"all": 1e-3 * 10.0 ** jump[::10]},
            measurements={
                "weight_norm": {"linear1": steps + seed, "linear2": 0 * steps},
                "plasticity": {None: steps % 40 / 40},
            },
            record_every=10,
        )
    return load_runs(root)


def test_runs_are_aligned_and_averaged_over_seeds(stepping):
    accuracy = around_boundaries(stepping, "A", "online_accuracy", before=20, after=20, width=10)
    assert accuracy["offset"].tolist() == [-15.5, -5.5, 4.5, 14.5]
    assert accuracy["value"].tolist() == [1, 1, 0.5, 0.5]
    np.testing.assert_allclose(accuracy["high"] - accuracy["value"], [0, 0, T_1 / 2, T_1 / 2])

    sizes = around_boundaries(stepping, "A", "step_size", "all", before=20, after=20, width=1, geometric=True)
    assert sizes["offset"].tolist() == [-20, -10, 0, 10]  # the bins are as wide as the recorded values are apart
    np.testing.assert_allclose(sizes["value"], [10**-2.5, 10**-2.5, 10**-1.5, 10**-1.5])
    np.testing.assert_allclose(sizes["low"], sizes["high"])

    norms = around_boundaries(stepping, "A", "weight_norm", "linear1", before=0, after=20, width=10)
    assert norms["value"].tolist() == [60.5, 70.5]
    np.testing.assert_allclose(norms["value"] - norms["low"], T_1 / 2)
    plasticity = around_boundaries(stepping, "A", "plasticity", before=0, after=40, width=10)
    assert plasticity["value"].tolist() == [0, 0.25, 0.5, 0.75]

    assert around_boundaries(stepping, "A", "plasticity", "linear1", before=0, after=40, width=10).empty
    one_seed = stepping.select(seed=0)
    assert around_boundaries(one_seed, "A", "plasticity", before=0, after=40, width=10)["low"].isna().all()


def test_what_was_recorded_of_which_blocks(stepping):
    assert statistics.recorded_blocks(stepping, "A") == {
        "step_size": ["all"],
        "weight_norm": ["linear1", "linear2"],
        "plasticity": [None],
    }


def test_one_experience_has_no_boundary(tmp_path):
    path = write_run(tmp_path, "A", n_experiences=1)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: its stream has one experience, and so no boundary"):
        around_boundaries(load_runs(tmp_path), "A", "online_accuracy", before=1, after=1, width=1)
    with pytest.raises(ValueError, match="no run is labelled 'B'; the labels are: A"):
        around_boundaries(load_runs(tmp_path), "B", "online_accuracy", before=1, after=1, width=1)


def test_thinned_runs_are_scored_by_their_exact_counts(tmp_path):
    correct = np.array([1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0])  # recorded: 1 1 | 0 1
    thinned = {"config": {"record_samples_every": 3}, "status": {"n_correct": 7}}
    run = str(write_run(tmp_path, "A", 0, correct, n_samples=12, **thinned))
    runs = load_runs(tmp_path)
    assert runs.correct_counts.loc[run].tolist() == [12, 7]
    assert statistics.online_accuracy(runs)["online_accuracy"].tolist() == [7 / 12]
    np.testing.assert_allclose(sample_scores(runs, run), [*[4 / 6] * 6, *[0.0] * 3, *[1.0] * 3])
    assert sample_scores(runs, run).mean() == pytest.approx(7 / 12)


def test_a_thinned_run_that_diverged_counts_what_it_saw(tmp_path):
    thinned = {"config": {"record_samples_every": 3}, "status": {"n_correct": 3}}
    run = str(write_run(tmp_path, "A", 0, [1, 0, 1, 1], n_samples=12, state="diverged", **thinned))
    runs = load_runs(tmp_path)
    assert runs.correct_counts.loc[run].tolist() == [4, 3]
    assert statistics.online_accuracy(runs)["online_accuracy"].tolist() == [(3 + 8 / 2) / 12]


def test_scores_of_a_thinned_run_that_diverged_have_the_exact_mean(tmp_path):
    """The experience in which it diverged has no row; what is missing to the exact count belongs to that one."""
    correct = [1, 0, 1, 0, 1, 1, 1, 0, 1, 0]  # five of six, then one of four: recorded are 1, 1, 1, 1, 1
    config = {"record_samples_every": 2}
    path = write_run(tmp_path, "A", 0, correct, n_samples=12, state="diverged", config=config, status={"n_correct": 6})
    rows = pd.read_parquet(path / "experiences.parquet")
    write_table(path, "experiences", rows[:1], 0)
    runs = load_runs(tmp_path)

    scores = sample_scores(runs, str(path))

    assert (
        scores.mean()
        == pytest.approx(statistics.online_accuracy(runs)["online_accuracy"].item())
        == pytest.approx(7 / 12)
    )
    assert scores[:6].mean() == pytest.approx(4 / 6)
    assert scores[6:10].mean() == pytest.approx(2 / 4)


def test_an_error_that_is_no_number_is_infinite(tmp_path):
    """The loss with which a run diverged may be NaN; the run counts all the same."""
    path = write_regression(tmp_path, "A", 0, [1.0, 2.0, math.nan], n_samples=6, state="diverged")
    runs = load_runs(tmp_path)

    assert statistics.mean_squared_error(runs)["squared_error"].item() == math.inf
    assert not np.isnan(statistics.squared_errors(runs, str(path))).any()


def test_curves_over_a_setting_are_told_apart(tmp_path):
    """Labels of settings tried have in common what is before the first option that differs."""
    for rate in (0.001, 0.01):
        for decay, right in ((0.1, 1), (0.01, 0)):
            learner = {"name": "fixed", "lr": rate, "weight_decay": decay}
            write_run(tmp_path, f"A, lr = {rate}, weight_decay = {decay}", 0, [right, 1], config={"learner": learner})

    curves = statistics.accuracy_over_setting(load_runs(tmp_path), "lr")

    accuracies = curves.groupby("learner")["online_accuracy"].apply(list).to_dict()
    assert accuracies == {"A, weight_decay = 0.1": [1, 1], "A, weight_decay = 0.01": [0.5, 0.5]}


def test_shares_of_steps_at_a_bound(tmp_path):
    sizes = {"a": [1e-3, 1e-4, 1e-4 * (1 + 1e-9), 1.0], "b": [0.01] * 4}
    config = {"learner": {"name": "metaoptimize", "lr_bounds": [1e-4, 1.0]}}
    path = str(write_run(tmp_path, "A", step_sizes=sizes, learned=True, config=config))
    # where a block holds many step sizes, a quarter of them has to be there
    many = str(write_run(tmp_path, "B", step_sizes=sizes, learned=True, config=config, quantiles={"q25": 0.01}))
    fixed = str(write_run(tmp_path, "C", step_sizes=sizes, config=config))
    boundless = str(write_run(tmp_path, "D", step_sizes=sizes, learned=True))
    runs = load_runs(tmp_path)
    assert statistics.at_bounds(runs, path).to_dict("index") == {
        "a": {"lower": 0.5, "upper": 0.25},
        "b": {"lower": 0, "upper": 0},
    }
    assert statistics.at_bounds(runs, many).to_dict("index") == {
        "a": {"lower": 0.75, "upper": 0.25},
        "b": {"lower": 1, "upper": 0},
    }
    assert len(statistics.at_bounds(runs, fixed)) == len(statistics.at_bounds(runs, boundless)) == 0
    assert [statistics.is_at_bound(runs, run) for run in (path, many, fixed, boundless)] == [True, True, False, False]


def test_a_step_size_that_hardly_ever_was_at_a_bound_does_not_count(tmp_path):
    config = {"learner": {"name": "metaoptimize", "lr_bounds": [1e-4, 1.0]}}
    for label, n in (("A", 1), ("B", 2)):
        sizes = {"a": [1.0] * n + [0.1] * (20 - n)}
        write_run(tmp_path, label, correct=[1] * 20, step_sizes=sizes, learned=True, config=config)
    runs = load_runs(tmp_path)
    assert [statistics.is_at_bound(runs, run) for run in runs.table["path"]] == [False, True]
