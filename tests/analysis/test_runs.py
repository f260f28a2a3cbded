import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from continual_metaopt import analysis
from continual_metaopt.analysis import Runs, load_runs
from continual_metaopt.analysis import runs as runs_module

from .synthetic import write_run, write_study


def exactly(message: object) -> str:
    return f"^{re.escape(str(message))}$"


def test_table_holds_one_row_per_run(tmp_path):
    run = write_run(tmp_path, "AdamW", 3, status={"reason": "as planned"}, stream_info={"stationary": "shuffled"})
    runs = load_runs(tmp_path)
    assert isinstance(runs, Runs)
    assert len(runs) == 1
    assert ", ".join(runs.table.columns) == (
        "run_id, path, study, label, seed, purpose, state, reason, step, learned_step_sizes, definition, fingerprint, "
        "stationary, n_experiences, n_samples, n_outputs, n_parameters, wall_time, samples_per_second, "
        "record_samples_every, n_correct"
    )
    row = runs.table.iloc[0]
    assert row["path"] == str(run)
    assert list(runs.configs) == [str(run)]
    assert (row["label"], row["seed"], row["state"], row["reason"]) == ("AdamW", 3, "finished", "as planned")
    assert (row["definition"], row["stationary"], row["n_samples"]) == ("class_split v1", "shuffled", 4)
    assert (row["wall_time"], row["samples_per_second"]) == (2.0, 103.0)


def test_order_is_study_order_label_seed(tmp_path):
    write_run(tmp_path, "b", 1)
    write_run(tmp_path, "b", 0)
    write_run(tmp_path, "a", 0)
    write_run(tmp_path, "z", 0, config={"order": 0})
    write_run(tmp_path, "y", 0, config={"study": "earlier"})
    table = load_runs(tmp_path).table
    expected = [("y", 0), ("z", 0), ("a", 0), ("b", 0), ("b", 1)]
    assert list(table[["label", "seed"]].itertuples(index=False, name=None)) == expected
    assert load_runs(tmp_path).labels == ["y", "z", "a", "b"]


def test_a_run_reached_twice_is_one_run(tmp_path):
    run = write_run(tmp_path)
    assert len(load_runs(tmp_path, run, tmp_path / "." / run.name)) == 1


def test_purpose_selects(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, config={"purpose": "selection"})
    assert list(load_runs(tmp_path).table["seed"]) == [0]
    assert list(load_runs(tmp_path, purpose="selection").table["seed"]) == [1]
    assert len(load_runs(tmp_path, purpose=None)) == 2
    message = (
        "none of the 2 runs found has the purpose 'final' (found: report, selection); purpose=None loads all of them"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        load_runs(tmp_path, purpose="final")


def test_missing_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=exactly(f"{tmp_path / 'none'}: no such directory")):
        load_runs(tmp_path / "none")
    message = f"{tmp_path}: no run directory (a directory with config.json) here or below"
    with pytest.raises(FileNotFoundError, match=exactly(message)):
        load_runs(tmp_path)
    with pytest.raises(ValueError, match="at least one path"):
        load_runs()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "config.json",
            '{"schema_version": 2}',
            "schema_version 2 is not supported, only 1; use the version of this package that wrote the run$",
        ),
        ("config.json", '{"schema_version": 1, "seed": 0}', "lacks run_id, study, .*stream_info.definition"),
        ("config.json", '{"model": "other"}', ".*has no schema_version, so it is not a run's"),
        ("config.json", '{"schema', "cannot be read .*; repair it, or move the"),
        ("status.json", '{"state": "lost"}', "state .lost. is none of running, finished"),
        ("status.json", "", "cannot be read"),
    ],
)
def test_records_that_cannot_be_understood(tmp_path, name, text, message):
    path = write_run(tmp_path) / name
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}"):
        load_runs(tmp_path)


def test_a_run_without_status_has_just_started(tmp_path):
    (write_run(tmp_path) / "status.json").unlink()
    row = load_runs(tmp_path).table.iloc[0]
    assert (row["state"], row["step"]) == ("running", 0)
    assert np.isnan(row["wall_time"])


@pytest.mark.parametrize("parts", [0, 3])
def test_tables_are_concatenated_whole_or_in_parts(tmp_path, parts):
    sizes = {"conv": [1e-3, 2e-3], "head": [3e-3, 4e-3]}
    write_run(tmp_path, "A", 0, [1, 0, 1, 1], parts=parts, step_sizes=sizes)
    write_run(tmp_path, "A", 1, [0, 0, 0, 1], parts=parts, step_sizes=sizes)
    runs = load_runs(tmp_path)
    assert list(runs.samples.columns) == ["label", "seed", "run", "step", "experience", "correct", "loss"]
    assert runs.samples["correct"].astype(int).tolist() == [1, 0, 1, 1, 0, 0, 0, 1]
    assert runs.samples["seed"].tolist() == [0] * 4 + [1] * 4
    assert runs.samples["run"].astype(str).unique().tolist() == runs.table["path"].tolist()
    assert runs.samples is runs.samples
    head = runs.step_sizes[(runs.step_sizes["block"] == "head") & (runs.step_sizes["seed"] == 1)]
    assert head["step_size"].tolist() == [3e-3, 4e-3]
    assert runs.experiences["n_correct"].tolist() == [1, 2, 0, 1]
    assert list(runs.experiences["classes"].iloc[1]) == [2, 3]
    assert runs.measurements.empty
    assert list(runs.measurements.columns)[:4] == ["label", "seed", "run", "step"]


def test_the_merged_file_goes_before_its_parts(tmp_path):
    run = write_run(tmp_path, correct=[1, 0], parts=2)
    whole = pd.DataFrame({"step": [0, 1], "experience": 0, "correct": [True, True], "loss": 0.5})
    whole.to_parquet(run / "samples.parquet")
    assert load_runs(run).samples["correct"].tolist() == [True, True]


def test_parts_that_vanish_while_they_are_read_have_been_merged(tmp_path, monkeypatch):
    run = write_run(tmp_path, correct=[1, 0], parts=2)
    runs = load_runs(run)
    folder, open_regular = run / "samples", runs_module.open_regular

    def merge_first(path):
        monkeypatch.undo()
        pd.concat(map(pd.read_parquet, sorted(folder.iterdir()))).to_parquet(run / "samples.parquet")
        shutil.rmtree(folder)
        return open_regular(path)

    monkeypatch.setattr(runs_module, "open_regular", merge_first)
    assert runs.samples["correct"].tolist() == [True, False]
    assert not folder.exists()


def test_folder_names_do_not_become_columns(tmp_path):
    write_run(tmp_path, correct=[1, 0], folder="label=x/seed=7")
    assert load_runs(tmp_path).samples["seed"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n_samples": 4, "correct": [1, 0]}, "4 samples"),
        (
            {"n_samples": 12, "correct": [1] * 4, "config": {"record_samples_every": 3}, "status": {"n_correct": 4}},
            "12 samples, of which 4 are recorded",
        ),
    ],
)
def test_a_finished_run_must_have_all_samples_that_are_recorded(tmp_path, options, expected):
    run = write_run(tmp_path, **options)
    message = (
        f"{run}: the run is finished and its stream has {expected}, but 2 are recorded; "
        "repair it, or move the run directory elsewhere and repeat the run"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        load_runs(run).correct(str(run))


def test_select(tmp_path):
    write_study(tmp_path)
    runs = load_runs(tmp_path)
    assert runs.select(label="Meta").table["seed"].tolist() == [0, 1]
    assert runs.select(label=["Meta", "AdamW"], seed=1).labels == ["Meta", "AdamW"]
    assert len(runs.select(stationary=None)) == 6
    assert len(runs.select(label="none")) == 0
    with pytest.raises(ValueError, match="no column 'colour'"):
        runs.select(colour="red")


def test_by_stream(tmp_path):
    write_run(tmp_path, "A", 0)
    write_run(tmp_path, "A", 1)
    write_run(tmp_path, "A", 2, stream_info={"stationary": "shuffled"})
    write_run(tmp_path, "A", 3, stream={"labels": "global"})
    runs = load_runs(tmp_path)
    streams = runs.by_stream()
    assert {title: part.table["seed"].tolist() for title, part in streams.items()} == {
        "class_split v1, stationary=none, labels=none": [0, 1],
        "class_split v1, stationary=shuffled, labels=none": [2],
        "class_split v1, stationary=none, labels=global": [3],
    }
    assert list(runs.select(seed=[0, 1]).by_stream()) == ["class_split v1"]
    runs.select(seed=[0, 1]).require_one_stream()
    with pytest.raises(ValueError, match=r"from 3 different streams .*analyse them separately"):
        runs.require_one_stream()
    with pytest.raises(ValueError, match="no runs"):
        runs.select(seed=9).require_one_stream()


def test_public_names_are_lazy():
    assert set(analysis.__all__) <= set(dir(analysis))
    assert callable(analysis.write_report)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = analysis.nothing


def test_importing_stays_light(tmp_path):
    write_study(tmp_path)
    code = (
        "import sys, analysis, analysis.runs, analysis.tables, analysis.figures, analysis.report\n"
        "from analysis.scripts import comparison_table, online_accuracy, sliding_accuracy, step_sizes\n"
        f"runs = analysis.load_runs({str(tmp_path)!r}); runs.samples; runs.step_sizes\n"
        "ours = {name.split('.')[1] for name in sys.modules if name.startswith('continual_metaopt.')}\n"
        "print([name for name in ('torch', 'avalanche', 'matplotlib', 'scipy') if name in sys.modules], sorted(ours))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['analysis', 'streams']"  # of which the short name itself


def test_quantiles_of_step_sizes_are_missing_where_they_were_not_recorded(tmp_path):
    factors = {"q05": 0.1, "q25": 0.5, "q75": 2.0, "q95": 10.0}
    write_run(tmp_path, "new", step_sizes={"all": [1e-3]}, quantiles=factors)
    write_run(tmp_path, "old", step_sizes={"all": [1e-3]})
    sizes = load_runs(tmp_path).step_sizes.set_index("label")[list(factors)]
    assert sizes.loc["new"].tolist() == pytest.approx([1e-4, 5e-4, 2e-3, 1e-2])
    assert sizes.loc["old"].isna().all()
