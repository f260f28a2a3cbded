"""Where compiled code is kept, and that nothing that happens to it stops a run."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numba
import pytest

from continual_metaopt.optim import compiling
from continual_metaopt.optim.compiling import PACKAGE, SOURCES, compiled

where: Callable[[], Path | None] = compiling.compiled_code_folder.__wrapped__


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the user's cache folder is "cache", and that of temporary files "tmp"."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path


def test_every_file_with_compiled_functions_is_a_source() -> None:
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "streams").rglob("*.py")]
    found = {file.relative_to(PACKAGE).as_posix() for file in files if re.search(r"^@compiled", file.read_text(), re.M)}
    plain = {file.relative_to(PACKAGE).as_posix() for file in files if "njit" in file.read_text()}
    assert found | {"optim/meta_updates.py", "optim/two_horizons.py"} == set(SOURCES)
    assert plain == {"optim/compiling.py", "engines/compiled/passes.py"}


def test_it_is_in_the_users_cache_folder(places: Path) -> None:
    folder = where()
    assert folder is not None
    assert folder.parent == places / "cache" / "compiled"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert where() == folder


def test_numbas_own_variable_is_respected(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(places / "numba"))
    folder = where()
    assert folder is not None
    assert folder.parent == places / "numba" / "continual-metaopt"


@pytest.mark.usefixtures("places")
def test_other_sources_have_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "rules.py"
    monkeypatch.setattr(compiling, "SOURCES", [*SOURCES, str(source)])
    folders = []
    for text in ("a = 1", "a = 2", "a = 1"):
        source.write_text(text)
        folders.append(where())
    assert folders[0] == folders[2] != folders[1]


@pytest.mark.parametrize("temporary", [True, False])
def test_where_it_cannot_be_kept_is_said(places: Path, monkeypatch: pytest.MonkeyPatch, temporary: bool) -> None:
    (places / "file").write_text("")
    monkeypatch.setenv("CONTINUAL_METAOPT_CACHE", str(places / "file"))
    if not temporary:
        monkeypatch.setattr(tempfile, "tempdir", str(places / "file"))

    with pytest.warns(UserWarning, match="compiled code") as caught:
        folder = where()

    refused = f"compiled code cannot be kept in '{places / 'file' / 'compiled'}' ([Errno 20] Not a directory: "
    advice = "set CONTINUAL_METAOPT_CACHE or NUMBA_CACHE_DIR to a folder that can be written"
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith(refused)
    if temporary:
        assert folder is not None
        assert folder.parent.parent == places / "tmp"
        assert message.endswith(f", so it is kept in '{folder}'; {advice}")
    else:
        assert folder is None
        assert message.endswith(f", so every process compiles anew, which takes about 20 seconds; {advice}")


def _add_one(x: int) -> int:
    return x + 1


def _hits(function: object) -> int:
    assert compiled(function)(1) == 2  # type: ignore[arg-type]
    again = compiled(function)  # type: ignore[arg-type]
    assert again(1) == 2
    return sum(again.stats.cache_hits.values())


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damaged_code_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(compiling, "compiled_code_folder", lambda: tmp_path)
    assert _hits(_add_one) == 1
    (damaged,) = (file for file in tmp_path.iterdir() if file.suffix == suffix)
    damaged.write_bytes(b"")
    assert _hits(_add_one) == 1


def test_code_that_cannot_be_kept_is_compiled_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiling, "compiled_code_folder", lambda: tmp_path / "file")
    assert _hits(_add_one) == 0
    monkeypatch.setattr(compiling, "compiled_code_folder", lambda: None)
    assert _hits(_add_one) == 0
