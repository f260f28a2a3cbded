"""Files of strangers, names of files, and what is printed."""

import io
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from continual_metaopt.analysis.files import (
    file_names,
    is_regular,
    open_regular,
    print_with_replacements,
    read_regular,
    with_home,
)


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # a long path has no room there


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a pipe"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("/etc/hosts"), "a link"),
        (lambda path: path.symlink_to("/dev/zero"), "a link"),
        (lambda path: path.symlink_to("nowhere"), "a link"),
        (a_socket, "a socket"),
    ],
)
def test_only_files_are_read(tmp_path: Path, make: Callable[[Path], object], kind: str) -> None:
    path = tmp_path / "status.json"
    make(path)

    assert not is_regular(path)
    for read in (read_regular, open_regular):
        with pytest.raises(ValueError, match=exactly(f"'{path}' is {kind}, not a file")):
            read(path)


def test_a_device_is_not_read() -> None:
    with pytest.raises(ValueError, match=exactly("'/dev/zero' is a device, not a file")):
        read_regular(Path("/dev/zero"))


def test_files_are_read_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(b"0123456789")

    assert is_regular(path)
    assert read_regular(path, 10) == b"0123456789"
    with pytest.raises(ValueError, match=exactly(f"'{path}' has 10 bytes, and at most 9 are read")):
        read_regular(path, 9)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nothing")
    assert not is_regular(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--out=~/x y", "--out={home}/x y"),
        ("~", "{home}"),
        ("~/x", "{home}/x"),
        ("--stream.data-root=~", "--stream.data-root={home}"),
        *((text, text) for text in ("a~/b", "--label=a ~/b", "--label=~ 5", "~no-such-user/x", "", "--out", "x=~/y")),
    ],
)
def test_the_home_is_spelt_out(argument: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/the/home")
    assert with_home([argument]) == [expected.format(home="/the/home")]


def test_names_of_files_differ_where_labels_do() -> None:
    labels = ["AdamW, lr = 0.1", "AdamW (lr 0.1)", "adamw lr 0.1", "α₀ / x"]
    assert list(file_names(labels).values()) == ["AdamW_lr_0.1", "AdamW_lr_0.1_2", "adamw_lr_0.1_3", "alpha0_x"]
    assert file_names(["a b", "a, b"], "-") == {"a b": "a-b", "a, b": "a-b-2"}
    assert list(file_names(["Caféteria, γ = 0.9, 学"]).values()) == ["Cafeteria_gamma_0.9"]
    assert list(file_names(["a b", "a-b", "a b 2", "+", "-"]).values()) == [
        *("a_b", "a_b_2", "a_b_2_2", "unnamed", "unnamed_2"),
    ]


@pytest.mark.parametrize(
    "label", ["..", ".", "...", "../..", "/", "\\", "~", ".hidden", "-rf", "a/../b", "x\0y", "\n", ""]
)
def test_names_of_files_lead_nowhere_else(label: str) -> None:
    for separator in "_-":
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?", file_names([label], separator)[label])


def test_names_of_files_are_not_too_long() -> None:
    names = file_names([f"{'α' * 300} {number}" for number in range(2)])
    assert list(names.values()) == ["alpha" * 24, f"{'alpha' * 24}_2"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_an_encoding_lacks_is_printed_as_a_question_mark(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding, errors="strict"))

    print_with_replacements()

    print("α₀ = 1", flush=True)
    print("− 2", file=sys.stderr, flush=True)
    assert written.getvalue() == b"?? = 1\n? 2\n"
