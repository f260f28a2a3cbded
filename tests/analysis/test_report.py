"""Where a report is written, and what it leaves alone."""

import re
from pathlib import Path

import pytest

from continual_metaopt.analysis import Runs, load_runs, write_report
from continual_metaopt.analysis.files import real_folder
from continual_metaopt.analysis.report import split_by_stream

from .synthetic import write_regression, write_run


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def two_streams(root: Path, definition: str) -> Path:
    """Runs that have not ended, so that a report has nothing to draw."""
    for label, info in {"A": {}, "B": {"definition": definition}}.items():
        write_run(root / "runs", label, 0, [1], n_samples=4, state="running", parts=1, stream_info=info)
    return root / "runs"


@pytest.mark.parametrize("definition", ["..", ".", "../../mine", "/", "a/../../mine", "~", ".hidden", "a\n\\..\\b"])
def test_a_definition_leads_nowhere_else(tmp_path: Path, definition: str) -> None:
    parts = split_by_stream(load_runs(two_streams(tmp_path, definition)), tmp_path / "out")

    folders = [folder for _, folder in parts]
    assert len(set(folders)) == 2
    assert {folder.parent for folder in folders} == {tmp_path / "out"}
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", folder.name) for folder in folders)


def test_each_stream_has_a_folder_in_that_of_the_report(tmp_path: Path) -> None:
    paths = write_report(load_runs(two_streams(tmp_path, "..")), tmp_path / "mine" / "out")

    assert paths[-1] == tmp_path / "mine" / "out" / "report.html"
    assert {path.parent.name for path in paths[:-1]} == {"class_split-v1", "unnamed"}
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["out"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return load_runs(write_run(tmp_path_factory.mktemp("runs")))


@pytest.mark.parametrize("name", ["report.html", "comparison.csv", "online_accuracy.pdf"])
def test_files_that_no_report_has_written_are_not_overwritten(ended: Runs, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")

    message = f"'{tmp_path}' holds '{name}', which no report has written; choose another folder with --out"
    with pytest.raises(FileExistsError, match=exactly(message)):
        write_report(ended, tmp_path)

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_a_report_replaces_an_earlier_one(tmp_path: Path) -> None:
    runs = load_runs(write_regression(tmp_path / "runs", "LMS", 0, [2, 1]))  # which has a single figure
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    first = write_report(runs, out)
    (out / "comparison.csv").write_text("old")

    assert write_report(runs, out) == first

    assert "old" not in (out / "comparison.csv").read_text()
    assert {path.name for path in out.iterdir()} == {"thesis.tex", *(path.name for path in first)}


def test_a_report_that_was_not_finished_may_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = load_runs(two_streams(tmp_path, "other"))

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr("continual_metaopt.analysis.report.write_html", killed)
        with pytest.raises(KeyboardInterrupt):
            write_report(runs, tmp_path / "report")
    assert "has not finished" in (tmp_path / "report" / "report.html").read_text()

    write_report(runs, tmp_path / "report")
    assert "has not finished" not in (tmp_path / "report" / "report.html").read_text()


def test_a_report_is_not_written_through_links(tmp_path: Path) -> None:
    runs = load_runs(two_streams(tmp_path, "other"))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "report").mkdir()
    link = tmp_path / "report" / "other"
    link.symlink_to("../theirs")

    message = f"'{link}' is a link, and nothing is written through it; put a folder in its place"
    for write in (lambda: write_report(runs, tmp_path / "report"), lambda: real_folder(link)):
        with pytest.raises(FileExistsError, match=exactly(message)):
            write()

    assert not any((tmp_path / "theirs").iterdir())
