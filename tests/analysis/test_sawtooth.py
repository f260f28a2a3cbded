import re
from pathlib import Path

import numpy as np
import pytest

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.sawtooth import Trajectory, block_trajectories, sawtooth, sawtooth_table, trend

from .synthetic import write_run

EQUAL = np.arange(0, 10_001, 1000)
UNEQUAL = np.cumsum([0, 700, 1300, 1000, 600, 1400, 1000, 900, 1100, 1000, 1000])
EVERY = 10


def folded(edges):
    """Steps, the number of the experience and the position within it."""
    steps = np.arange(0, edges[-1], EVERY)
    number = np.searchsorted(edges, steps, side="right") - 1
    return steps, number, (steps - edges[number]) / np.diff(edges)[number]


def trajectory(logs, edges=EQUAL):
    return Trajectory(np.arange(0, edges[-1], EVERY), 10.0 ** np.asarray(logs), list(edges[:-1]), int(edges[-1]))


def walk(random, edges=EQUAL, memory=1.0, size=0.05):
    noise = random.normal(0, size, edges[-1] // EVERY)
    values = np.empty_like(noise)
    last = 0.0
    for place, change in enumerate(noise):
        last = values[place] = memory * last + change
    return values


@pytest.mark.parametrize("edges", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("drift", [0.0, 0.3, -0.5])
def test_a_clean_sawtooth(edges, drift):
    """It falls by one decade in each experience, on top of a drift in decades per 1,000 samples."""
    steps, _, position = folded(edges)
    tooth = sawtooth([trajectory(-3 - position + drift * steps / 1000, edges)], bins=20)
    assert tooth.amplitude == pytest.approx(0.95, abs=0.03)  # between the centres of the first and the last of 20 bins
    np.testing.assert_allclose(tooth.profile, 0.475 - 0.05 * np.arange(20), atol=0.03)
    assert (tooth.peak, tooth.trough) == (0.025, 0.975)
    assert tooth.p == 0.001
    assert tooth.chance_amplitude < 0.7
    assert np.isnan(tooth.amplitude_ci)
    assert tooth.rise - tooth.fall == pytest.approx(drift, abs=0.03)
    assert tooth.teeth.shape == (9, 20)
    assert tooth.experiences.tolist() == list(range(1, 10))


def test_rise_and_fall_by_hand():
    """Up by 0.6 in the first quarter, then down by 0.4: a drift of 0.2 per experience."""
    _, number, position = folded(EQUAL)
    logs = np.interp(position, [0, 0.25, 1], [0, 0.6, 0.2]) + 0.2 * number
    tooth = sawtooth([trajectory(logs)], bins=4)
    # The mean of the second quarter is 0.6 − 0.4/6; that of the last is 0.2 + 0.4/6, or 0.2 less before the boundary.
    assert tooth.peak == 0.375
    assert tooth.fall == pytest.approx(0.4 - 0.4 / 3, abs=0.01)
    assert tooth.rise == pytest.approx(0.6 - 0.4 / 3, abs=0.01)


def test_a_tooth_upside_down_shows_in_peak_and_trough():
    _, _, position = folded(EQUAL)
    tooth = sawtooth([trajectory(position)])
    assert (tooth.peak, tooth.trough, tooth.p) == (0.975, 0.025, 0.001)


@pytest.mark.parametrize(
    "logs",
    [
        pytest.param(lambda t: 0 * t - 3, id="constant"),
        pytest.param(lambda t: -3 - 4 * t, id="drift"),
        pytest.param(lambda t: -5 + 2 * t**2, id="curved drift"),
        pytest.param(lambda t: -5 + 3 * (1 - np.exp(-8 * t)), id="approach"),
        pytest.param(lambda t: np.minimum(-3, -5 + 6 * t), id="approach with a kink"),
    ],
)
@pytest.mark.parametrize("edges", [EQUAL, UNEQUAL])
def test_drift_alone_is_no_sawtooth(logs, edges):
    tooth = sawtooth([trajectory(logs(np.linspace(0, 1, edges[-1] // EVERY)), edges)])
    assert tooth.amplitude < 0.05
    assert tooth.p > 0.05


def test_a_period_that_is_not_that_of_the_experiences_is_no_sawtooth():
    steps, _, _ = folded(EQUAL)
    tooth = sawtooth([trajectory(np.sin(2 * np.pi * steps / 730))])
    assert tooth.p > 0.05


def p_values(seeds, logs, n):
    return np.array([sawtooth([trajectory(logs()) for _ in range(seeds)], shifts=99, seed=i).p for i in range(n)])


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("memory", [1.0, 0.9, 0.0])
@pytest.mark.slow
def test_p_is_about_uniform_without_boundaries(memory, seeds):
    random = np.random.default_rng(0)
    p = p_values(seeds, lambda: walk(random, memory=memory), 100)
    assert 0 <= (p <= 0.05).mean() <= 0.12  # 0.05, give or take three standard deviations
    assert 0.4 < p.mean() < 0.65
    assert p.min() < 0.3 < 0.8 < p.max()


@pytest.mark.parametrize(
    ("shared", "memory"),
    [
        pytest.param(lambda t: -3 * np.exp(-t / 1.5), 1.0, id="approach"),
        pytest.param(lambda t: -3 * np.exp(-t / 0.7), 0.0, id="quick approach"),
        pytest.param(lambda t: np.minimum(0, -2 + 2 * t / 1.4), 0.0, id="ramp"),
        pytest.param(lambda t: -0.8 * np.maximum(0, t - 5.5), 1.0, id="collapse"),
    ],
)
def test_what_seeds_have_in_common_is_no_sawtooth(shared, memory):
    """The share of small p-values is that of chance, though all seeds make the same transient at the same time."""
    random = np.random.default_rng(0)
    t = np.arange(0, EQUAL[-1], EVERY) / 1000
    p = p_values(5, lambda: shared(t) + walk(random, memory=memory, size=0.003), 40)
    assert (p <= 0.05).mean() <= 0.15  # 0.05 and three standard deviations


def test_a_small_tooth_is_found_under_noise_by_many_seeds():
    random = np.random.default_rng(0)
    _, _, position = folded(EQUAL)
    tooth = sawtooth([trajectory(walk(random, memory=0.9) - 0.2 * position) for _ in range(5)])
    assert tooth.p < 0.01
    assert tooth.seeds == 5
    assert tooth.amplitude - tooth.amplitude_ci < 0.19 < tooth.amplitude + tooth.amplitude_ci
    np.testing.assert_allclose(tooth.profile.mean(), 0, atol=0.01)


def test_the_amplitude_is_the_difference_of_means_with_its_interval():
    _, _, position = folded(EQUAL)
    tooth = sawtooth([trajectory(-size * position) for size in (1.0, 1.2, 1.4)])
    assert tooth.amplitude == pytest.approx(1.2 * 0.95)
    assert tooth.amplitude_ci == pytest.approx(4.302653 * 0.2 * 0.95 / np.sqrt(3), rel=1e-3)


def test_shifts_are_seeded():
    logs = walk(np.random.default_rng(5))
    results = [sawtooth([trajectory(logs)], seed=seed).p for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize(("slope", "verdict"), [(-0.2, "falls"), (0.1, "rises")])
def test_trend(slope, verdict):
    _, number, position = folded(UNEQUAL)
    course = trend([trajectory(-position + slope * number + 0.001 * s * number, UNEQUAL) for s in (-1, 0, 1)])
    assert course.slope == pytest.approx(slope, abs=1e-3)
    assert course.slope_ci == pytest.approx(4.302653 * 0.001 / np.sqrt(3), rel=1e-3)
    assert course.verdict == verdict
    assert course.means.shape == (3, 9)


def test_a_trend_that_is_not_sure_is_undecided():
    _, number, _ = folded(EQUAL)
    assert trend([trajectory(slope * number) for slope in (-0.1, 0.12)]).verdict == "undecided"
    assert trend([trajectory(0.1 * number)]).verdict == "undecided"  # one seed has no interval


def test_runs_that_stopped_early_or_hold_zeros():
    _, _, position = folded(EQUAL)
    whole = trajectory(-position)
    half = Trajectory(whole.steps[:500], whole.step_size[:500], whole.boundaries, whole.n_samples)
    assert sawtooth([half]).experiences.tolist() == [1, 2, 3, 4]
    sizes = np.where(np.arange(1000) % 7 == 0, 0.0, whole.step_size)
    assert sawtooth([Trajectory(whole.steps, sizes, whole.boundaries, whole.n_samples)]).amplitude > 0.9


@pytest.mark.parametrize(
    ("trajectories", "options", "message"),
    [
        ([], {}, "there is no trajectory to fold"),
        (
            [trajectory(np.zeros(200), EQUAL[:3])],
            {},
            "fewer than two complete experiences follow the first 1: the sawtooth needs a longer stream",
        ),
        (
            [trajectory(np.zeros(21), np.arange(0, 211, 70))],
            {},
            "an experience has fewer than eight recorded step sizes: record them more often (record_every)",
        ),
        (
            [trajectory(np.where(np.arange(1000) % 100 < 30, -np.inf, 0.0))],
            {},
            "at some position within experiences, none of them has a positive step size",
        ),
        ([trajectory(np.zeros(1000))], {"skip": 0}, "needs bins ≥ 4, skip ≥ 1 and shifts ≥ 19, not 20, 0 and 999"),
    ],
)
def test_what_cannot_be_folded(trajectories, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sawtooth(trajectories, **options)


def test_sawtooth_table(tmp_path):
    _, number, position = folded(EQUAL)
    for seed in range(2):
        sizes = {"early": 10 ** (-position - (0.1 + 0.01 * seed) * number), "last": np.full(1000, 1e-3)}
        write_run(tmp_path, "A", seed, [1] * 10_000, n_experiences=10, learned=True, step_sizes=sizes, record_every=10)
    write_run(tmp_path, "Fixed", 0, [1] * 10_000, n_experiences=10, step_sizes={"all": [1e-3] * 1000}, record_every=10)
    runs = load_runs(tmp_path)
    table = sawtooth_table(runs, shifts=99)
    assert table[["learner", "block", "seeds", "experiences"]].to_numpy().tolist() == [
        ["A", "early", 2, 9],
        ["A", "last", 2, 9],
    ]
    assert table["p"].tolist() == [0.01, 1]
    assert table["p_holm"].tolist() == [0.02, 1]
    assert table["trend"].tolist() == ["falls", "undecided"]
    assert (table["change"] - 8 * table["slope"]).abs().max() < 0.02  # nine experiences
    assert sawtooth_table(runs, ["Fixed"], shifts=99)["p"].tolist() == [1]
    with pytest.raises(ValueError, match="no learner of these runs has recorded learned step sizes"):
        sawtooth_table(runs.select(label="Fixed"))


def test_the_sawtooth_of_the_records():
    """On real runs over permuted digits the first layer follows the experiences."""
    runs = load_runs(Path(__file__).parents[2] / "analysis" / "sample_runs").select(
        label="MetaOptimize blockwise, α₀ = 1e-3"
    )
    tooth = sawtooth(block_trajectories(runs, runs.labels[0])["linear1"])
    assert tooth.p < 0.01
    assert tooth.amplitude > 1.5 * tooth.chance_amplitude
    assert 0 < tooth.peak < 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("stationary", "found"), [(None, True), ("shuffled", False)])
def test_a_real_run(stationary, found, tmp_path):
    """The same images, with and without experiences: only then is there a sawtooth."""
    from continual_metaopt.runs.config import RunConfig
    from continual_metaopt.runs.run import run_one

    stream = {"name": "permuted_inputs", "source": "digits", "n_experiences": 6, "samples_per_experience": 500}
    for seed in range(2):
        config = RunConfig(
            stream={**stream, "stationary": stationary},
            network={"name": "mlp", "hidden": [32]},
            learner={"name": "metaoptimize", "lr": 1e-3, "step_sizes": "blockwise"},
            seed=seed,
            record_every=10,
            engine="fused",
        )
        run_one(config, tmp_path / str(seed))
    table = sawtooth_table(load_runs(tmp_path)).set_index("block")
    assert (table["p_holm"].min() < 0.05) == found
