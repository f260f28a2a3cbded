"""Folders that nobody else can write, and what is done without a home."""

import json
import os
import sys
import tempfile
from pathlib import Path

from continual_metaopt.streams.quiet_avalanche import home_for_avalanche

import pytest

from continual_metaopt.streams.decoded_images import cache_folder
from continual_metaopt.streams.private_folders import private_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders have other rights there")


def test_a_folder_is_made_for_this_user_alone(tmp_path: Path) -> None:
    made = private_folder(tmp_path / "a" / "b")

    assert made == tmp_path / "a" / "b"
    assert made.stat().st_mode & 0o777 == 0o700
    assert private_folder(made) == made
    assert list(made.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("link", "it is a link"),
        ("others can write", "others may write to it; take that from them with chmod go-w '{}'"),
        ("another user's", "it belongs to another user"),
    ],
)
def test_a_folder_that_others_may_have_filled_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, why: str
) -> None:
    folder = tmp_path / "folder"
    if kind == "link":
        folder.symlink_to(tmp_path)
    else:
        folder.mkdir()
        folder.chmod(0o777 if kind == "others can write" else 0o700)
    if kind == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)

    with pytest.raises(PermissionError) as caught:
        private_folder(folder)

    assert str(caught.value) == why.format(folder)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


@pytest.fixture
def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no entry in the list of users."""
    for name in ("HOME", "XDG_CACHE_HOME", "CONTINUAL_METAOPT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


@pytest.mark.usefixtures("without_home")
def test_without_a_home_caches_are_in_a_temporary_folder(temporary: Path) -> None:
    assert cache_folder() == temporary / f"continual-metaopt-{os.geteuid()}-cache" / "decoded_images"


def test_avalanche_has_its_file_in_a_home_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    for _ in range(2):
        with home_for_avalanche():
            assert os.environ["HOME"] == str(tmp_path)

    (file,) = (tmp_path / ".avalanche").iterdir()
    assert json.loads(file.read_text()) == {"dataset_location": str(tmp_path / ".avalanche" / "data")}


@pytest.mark.parametrize("home", ["a file", "no home", "a damaged file of Avalanche's", "one of another form"])
def test_avalanche_has_its_file_elsewhere_where_the_home_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path, home: str
) -> None:
    if home == "no home":
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home directory")))
    elif home == "a file":
        (tmp_path / "home").write_text("")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    else:
        (tmp_path / "home" / ".avalanche").mkdir(parents=True)
        (tmp_path / "home" / ".avalanche" / "config.json").write_text("" if "damaged" in home else "[]")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = os.environ.get("HOME")

    with home_for_avalanche():
        ours = Path(os.environ["HOME"])
        assert ours == temporary / f"continual-metaopt-{os.geteuid()}-home"
        settings = json.loads((ours / ".avalanche" / "config.json").read_text())

    assert os.environ.get("HOME") == before
    assert str(temporary) not in settings["dataset_location"]
