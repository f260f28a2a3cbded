import tarfile

import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from continual_metaopt.analysis import comparison_table, load_runs
from continual_metaopt.analysis.run_directory import TABLES
from continual_metaopt.analysis.scripts import archive

from .synthetic import write_regression, write_run

SIZES, GRADIENTS = {"first": [0.1, 0.2], "last": [0.3, 0.4]}, {"meta_gradient": {"first": [1.5, -2.5]}}


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    options = {"step_sizes": SIZES, "measurements": GRADIENTS, "record_every": 2}
    write_run(folder / "runs", "Meta", 0, [1, 0, 1, 1], test_accuracy=[0.5, None], **options)
    write_run(folder / "runs", "Meta", 1, [0, 1], n_samples=4, state="diverged", **options)
    write_run(folder / "selection", "Meta", 100, [0, 1, 1, 0], config={"purpose": "selection"}, **options)
    (folder / "study.json").write_text('{"name": "synthetic"}')
    return folder


def test_all_but_the_losses_is_kept(study, tmp_path, capsys):
    out = tmp_path / "kept" / "records.tar.xz"
    assert archive.main([str(study), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out} ({out.stat().st_size / 1e6:.2f} MB)\n"
    with tarfile.open(out) as file:
        file.extractall(tmp_path / "again", filter="data")
    before, after = (load_runs(place / "study", purpose=None) for place in (tmp_path, tmp_path / "again"))
    assert len(after) == 3
    assert_frame_equal(before.table.drop(columns="path"), after.table.drop(columns="path"))
    assert list(before.configs.values()) == list(after.configs.values())
    for ours, theirs in zip(after.table["path"], before.table["path"], strict=True):
        for name in TABLES:
            kept, original = after.read(ours, name), before.read(theirs, name)
            assert_frame_equal(
                kept.drop(columns="loss", errors="ignore"), original.drop(columns="loss", errors="ignore")
            )
        assert after.read(ours, "samples")["loss"].isna().all()
        assert pq.read_schema(f"{ours}/samples.parquet") == pq.read_schema(f"{theirs}/samples.parquet")
    assert (tmp_path / "again" / "study" / "study.json").read_text() == '{"name": "synthetic"}'


def test_links_do_not_bring_other_files_into_an_archive(study, tmp_path, capsys):
    (tmp_path / "private.json").write_text('{"password": 1}')
    (study / "study.json").unlink()
    (study / "study.json").symlink_to("../private.json")
    write_run(tmp_path / "private", "Secret", 0)
    (study / "runs" / "linked").symlink_to(tmp_path / "private")
    out = tmp_path / "records.tar.xz"
    assert archive.main([str(study), "--out", str(out)]) == 0
    with tarfile.open(out) as file:
        names = file.getnames()
    assert len(names) == 18
    assert not [name for name in names if "study.json" in name or "linked" in name]

    capsys.readouterr()
    table = study / "runs" / "Meta-0" / "measurements.parquet"
    table.unlink()
    table.symlink_to(tmp_path / "private.json")
    assert archive.main([str(study), "--out", str(tmp_path / "other.tar.xz")]) == 2
    assert f"'{table}' is a link, not a file" in capsys.readouterr().err
    assert not (tmp_path / "other.tar.xz").exists()


def test_losses_of_a_regression_are_its_score_and_kept(tmp_path):
    for label, errors in {"A": [1.0, 0.5], "B": [0.8, 0.2]}.items():
        write_regression(tmp_path / "study", label, 0, errors)
    assert archive.main([str(tmp_path / "study"), "--out", str(tmp_path / "records.tar.xz")]) == 0
    with tarfile.open(tmp_path / "records.tar.xz") as file:
        file.extractall(tmp_path / "again", filter="data")
    before, after = (comparison_table(load_runs(place / "study")) for place in (tmp_path, tmp_path / "again"))
    assert_frame_equal(before, after)
    assert after["squared_error"].tolist() == pytest.approx([0.75, 0.5])


def test_the_same_runs_make_the_same_file(study, tmp_path):
    files = [tmp_path / f"{name}.tar.xz" for name in "ab"]
    for file in files:
        assert archive.main([str(study), "--out", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_be_archived(study, tmp_path, capsys):
    assert archive.main([str(study), "--out", str(tmp_path / "records.zip")]) == 2
    assert "error: the archive is a .tar.xz file, but 'records.zip' was given" in capsys.readouterr().err
    for state, folder in (("running", study), ("failed", tmp_path / "failed")):
        run = write_run(folder, "Meta", 2, [0, 1], n_samples=4, state=state, parts=2)
        assert archive.main([str(folder), "--out", str(tmp_path / "records.tar.xz")]) == 2
        message = f"runs that have not ended: 1, {run} first; finish them or move them elsewhere"
        assert message in capsys.readouterr().err
    (study / "empty").mkdir()
    assert archive.main([str(study / "empty")]) == 2
    assert "empty: no run directory (a directory with config.json) here or below" in capsys.readouterr().err
