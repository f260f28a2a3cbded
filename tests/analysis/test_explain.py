import textwrap
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from continual_metaopt.analysis.explain import explain

from .synthetic import write_regression, write_run, write_table

FINISHED = {"wall_time": 15.0, "samples_per_second": 10.0, "engine": {"name": "fused", "reason": "asked for"}}
BEGINNING = "Meta, seed 0 (learner metaoptimize, network mlp, stream class_split), run ID.\n"
CONFIG = {"run_id": "ID", "learner": {"name": "metaoptimize", "lr_bounds": [1e-4, 1.0]}}


def write(root, correct, **options):
    options = {"config": CONFIG, "learned": True, "n_experiences": 3, **options}
    return write_run(root, "Meta", 0, correct, **options)


def test_a_finished_run(tmp_path):
    tooth = [0.01, 0.04, 0.02, 0.01]
    sizes = {"first": [0.01] * 4 + tooth + tooth, "last": [0.1, 0.01, 1e-3, *[1e-4] * 9]}
    path = write(tmp_path, [1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0], step_sizes=sizes, status=FINISHED)
    assert explain(path) == BEGINNING + (
        "Finished: all 12 samples in 15.0 s (10 a second by the fused engine, 14 s of them not spent on\n"
        "learning).\n"
        "Online accuracy 50.0 %: 25.0 % in the first experience, 75.0 % in the last, worst 25.0 % in\n"
        "experience 1; chance is 50.0 %.\n"
        "Step sizes:\n"
        "- first: from 0.01 to 0.01, least 0.01 at sample 0, most 0.04 at sample 5; a sawtooth: up 4-fold\n"
        "  after a boundary, and down again, in 2 of 2 experiences.\n"
        "- last: from 0.1 to 0.0001, least 0.0001 at sample 3, most 0.1 at sample 0; at its lower bound at 75\n"
        "  % of the recorded steps.\n"
    )


def test_samples_recorded_in_part_count_exactly(tmp_path):
    """All recorded samples are right, and no other is."""
    options = {"config": CONFIG | {"record_samples_every": 4}, "status": FINISHED | {"n_correct": 3}}
    path = write(tmp_path, [1, 0, 0, 0] * 3, step_sizes={"all": [0.01] * 12}, **options)
    assert "Online accuracy 25.0 %: 25.0 % in the first experience, 25.0 % in the last" in explain(path)


def test_a_regression(tmp_path):
    path = write_regression(tmp_path, "LMS", 0, [9] * 10 + [1] * 10, n_experiences=1)
    assert explain(path).splitlines()[2:] == [
        "Mean squared error 5: 9 in the first tenth, 1 in the last.",
        "No step sizes have been recorded.",
    ]


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("interrupted by the user", "The same command goes on from the last checkpoint."),
        ("OSError: no space. Make room; the same command then goes on from the last checkpoint", ""),
        ("KeyError: 'x'", "The same command tries the run again, from its last checkpoint if it has one."),
    ],
)
def test_a_failed_run(tmp_path, reason, remedy):
    path = write(tmp_path, [1, 0, 0, 1, 1], n_samples=12, state="failed", status={"reason": reason}, parts=2)
    beginning = f"Failed at sample 5 of 12, 1 sample into experience 2 of 3: {reason}."
    assert explain(path) == BEGINNING + (
        f"{textwrap.fill(beginning, 100, break_on_hyphens=False)}\n"
        "Online accuracy 60.0 %: 50.0 % in the first experience, 100.0 % in the last, worst 50.0 % in\n"
        "experience 1; chance is 50.0 %.\n"
        "No step sizes have been recorded.\n" + (f"{remedy}\n" if remedy else "")
    )


@pytest.mark.parametrize(("minutes", "end"), [("1 minute", "."), ("60 minutes", ": it was probably")])
def test_a_running_run(tmp_path, minutes, end):
    heartbeat = (datetime.now(UTC) - timedelta(minutes=int(minutes.split()[0]), seconds=2)).isoformat()
    path = write(tmp_path, [], n_samples=12, state="running", status={"heartbeat": heartbeat})
    text = explain(path)
    assert f"The last sign of life, of process 1 on host, came {minutes} ago{end}" in text
    assert "Nothing has been recorded." in text


def diverging(tmp_path, losses, step_sizes, meta_gradients, at_end=(), **options):
    path = write(
        tmp_path,
        [0] * len(losses),
        n_samples=2 * len(losses),
        state="diverged",
        status={"reason": f"the loss is inf at sample {len(losses)}"},
        step_sizes={"all": step_sizes},
        measurements={"meta_gradient": {"all": meta_gradients}},
        record_every=10,
        **options,
    )
    samples = pd.read_parquet(path / "samples.parquet")
    samples["loss"] = np.asarray(losses, dtype="float32")
    write_table(path, "samples", samples, 0)
    measured = pd.read_parquet(path / "measurements.parquet")
    rows = pd.DataFrame(list(at_end), columns=["quantity", "block", "statistic", "value"])
    rows.insert(0, "step", len(losses))
    write_table(path, "measurements", pd.concat([measured, rows]), 0)
    return explain(path).splitlines()


def test_what_grew_first_is_named_first(tmp_path):
    at_end = [
        ("not_finite", None, "loss", 1.0),
        ("not_finite", "0.weight", "weights", 12.0),
        ("not_finite", "0.weight", "trace", 11.0),
        ("largest", "0.weight", "weights", 1e30),
    ]
    lines = diverging(
        tmp_path,
        [1.0] * 20 + [100.0] + [1.0] * 109 + [50.0] * 20,  # one large loss is not growth
        [0.01] * 12 + [0.2] * 3,
        [1.0, -1.0] * 5 + [-200.0] * 5,
        at_end,
    )
    assert lines[1:8] == [
        "Diverged at sample 150 of 300, 50 samples into experience 2 of 3: the loss is inf.",
        "Weights were not finite after 150 updates: 12 of 0.weight.",
        "Not finite in the trace h: 11 of 0.weight.",
        "First went the meta gradient of block 'all'. What had grown, first to last:",
        "- the meta gradient of block 'all': usually 1, more than 100 times that between samples 90 and 100,",
        "  up to 2e+02.",
        "- the step size of block 'all': usually 0.01, more than 10 times that between samples 110 and 120,",
    ]
    assert lines[9] == ("- the loss: above 6.93 again and again from sample 130 on, 1e+02 at worst, 50 at last.")


def test_records_of_earlier_versions_say_less(tmp_path):
    lines = diverging(tmp_path, [1.0] * 30, [0.01] * 3, [1.0] * 3)
    assert lines[2:4] == [
        "Nothing on the record had grown before.",
        "Look for inputs or targets that are not finite; if there are none, a smaller step size (lr) is the",
    ]


def test_one_run_at_a_time(tmp_path):
    write_run(tmp_path, "A")
    diverged = write_run(tmp_path, "B", state="diverged")
    with pytest.raises(ValueError, match=f"{tmp_path} holds 2 runs; name one of them, such as {diverged} .diverged.$"):
        explain(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        explain(tmp_path / "nowhere")
