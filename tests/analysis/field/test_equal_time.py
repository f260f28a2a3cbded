"""What learners reach in the same time, with hand-computed budgets."""

from pathlib import Path

import pandas as pd
import pytest

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.field.equal_time import accuracy_at_equal_time, seconds_per_sample
from tests.analysis.field.test_ranking import write_learner
from tests.analysis.synthetic import write_trial


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Streams of 10 samples: SGD, tuned on 20; a learner with nothing to tune that is always right at first."""
    root = tmp_path_factory.mktemp("runs")
    write_learner(root, "SGD", 0, [4, 6])
    write_learner(root, "SGD", 0, [8, 8], tuned=0.3)
    write_learner(root, "slow", 1, [10, 10], name="cocob")
    for lr, n_correct in ((0.1, 4), (0.3, 7)):
        write_trial(root, "SGD", 100, n_correct, lr=lr)
    return root


@pytest.mark.parametrize(
    ("slow", "in_stream_time", "in_tuned_time"),
    [
        (1.0, 100, 100),
        (2.0, 75, 100),  # 5 samples right, 5 at the chance of two classes; all 10 in three times the stream's time
        (6.0, 55, 75),  # 1 sample, and 5 samples
    ],
)
def test_samples_that_a_learner_does_not_come_to_count_as_chance(
    study: Path, slow: float, in_stream_time: float, in_tuned_time: float
) -> None:
    selection = load_runs(study, purpose="selection")

    table = accuracy_at_equal_time(load_runs(study), {"SGD": 1.0, "slow": slow}, selection, reference="SGD")

    table = table.set_index(["learner", "setting"])
    assert list(table.index) == [("SGD", "untuned"), ("SGD", "tuned"), ("slow", "untuned")]
    assert table["seconds"].tolist() == [10, 30, 10 * slow]  # two selection runs of 10 samples
    assert table["relative_time"].tolist() == [1, 3, slow]
    assert table["online_accuracy"].tolist() == [50, 80, 100]
    # its tuning alone takes longer than the stream
    assert table["in_stream_time"].tolist() == pytest.approx([50, 50, in_stream_time])
    assert table["in_tuned_time"].tolist() == pytest.approx([50, 80, in_tuned_time])


def test_the_reference_must_have_been_tuned(study: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^'slow' is no learner with selection runs and a known time; these are: SGD$"
    ):
        accuracy_at_equal_time(
            load_runs(study),
            {"SGD": 1.0, "slow": 1.0},
            load_runs(study, purpose="selection"),
            reference="slow",
        )


def test_times_are_of_the_costs_or_else_of_the_runs(study: Path) -> None:
    columns = ["learner", "engine", "step_us"]
    rows = [("SGD", "torch", 2000.0), ("SGD", "compiled", 1.0), ("slow", float("nan"), float("nan"))]
    costs = pd.DataFrame(rows, columns=columns)

    assert seconds_per_sample(load_runs(study), costs) == {"SGD": 0.002}
    assert seconds_per_sample(load_runs(study)) == pytest.approx({"SGD": 1 / 100.5, "slow": 1 / 100.5})
