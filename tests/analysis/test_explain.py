import textwrap
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from continual_metaopt.analysis.explain import _oscillation, explain

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


def synthetic_step_sizes(kind, n=240):
    """Step sizes about 0.001 that stay, rise, have teeth, walk at random, or oscillate."""
    steps, noise = np.arange(n), np.random.default_rng(3).normal(size=n)
    logarithms = {
        "steady": 0.01 * noise,
        "trend": steps / 60 + 0.2 * noise,
        "falling trend": -steps / 60,
        "sawtooth": 1.5 - 3 * (steps % 80) / 80 + 0.02 * noise,
        "random walk": 0.2 * noise.cumsum(),
        "slow oscillation": np.sin(2 * np.pi * steps / 40),
        "constant": 0.0 * steps,
        "mostly at a bound": np.maximum(noise - 1, 0.0),
        "oscillation": 0.5 * np.sin(2 * np.pi * steps / 2.7),
        "two values": 0.5 * (-1.0) ** steps,
        "noise about a level": 0.3 * noise,
    }
    return (1e-3 * np.exp(logarithms[kind])).tolist()


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        *((kind, "") for kind in ("steady", "trend", "falling trend", "sawtooth", "random walk", "slow oscillation")),
        *((kind, "") for kind in ("constant", "mostly at a bound")),
        ("oscillation", "about 0.001: it turns at 74 % of the records"),
        ("two values", "about 0.001: it turns at 100 % of the records"),
        ("noise about a level", "about 0.001: it turns at 68 % of the records"),
    ],
)
def test_only_step_sizes_that_swing_quickly_about_a_level_oscillate(tmp_path, kind, found):
    path = write(tmp_path, [1] * 240, step_sizes={"all": synthetic_step_sizes(kind)}, status=FINISHED)
    said = " ".join(explain(path).split())
    assert ("an oscillation" in said) == bool(found)
    assert found in said
    assert kind != "sawtooth" or "a sawtooth" in said


def test_hardly_a_random_walk_counts_as_an_oscillation():
    walks = np.exp(0.2 * np.random.default_rng(0).normal(size=(1000, 200)).cumsum(axis=1))
    assert sum(bool(_oscillation(pd.DataFrame({"step_size": walk}))) for walk in walks) <= 3


def test_an_oscillation_is_told_with_its_numbers(tmp_path):
    sizes = [1e-3, 4e-3] * 15
    path = write(tmp_path, [1] * 30, step_sizes={"all": sizes}, status=FINISHED)
    assert explain(path).endswith(
        "- all: from 0.001 to 0.004, least 0.001 at sample 0, most 0.004 at sample 1; an oscillation about\n"
        "  0.002: it turns at 100 % of the records, where a random walk turns at 50 %, and changes 4-fold\n"
        "  between records.\n"
    )
    few = write(tmp_path, [1] * 30, step_sizes={"all": [*sizes[:18], *[1e-3] * 12]}, status=FINISHED, folder="few")
    assert "oscillation" not in explain(few)
