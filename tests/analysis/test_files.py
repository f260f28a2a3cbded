"""Names of files, and what is printed."""

import io
import sys

import pytest

from analysis.files import file_names, print_with_replacements


def test_names_of_files_differ_where_labels_do() -> None:
    labels = ["AdamW, lr = 0.1", "AdamW (lr 0.1)", "adamw lr 0.1", "α₀ / x"]
    assert list(file_names(labels).values()) == ["AdamW_lr_0.1", "AdamW_lr_0.1_2", "adamw_lr_0.1_3", "alpha0_x"]
    assert file_names(["a b", "a, b"], "-") == {"a b": "a-b", "a, b": "a-b-2"}
    assert list(file_names(["Caféteria, γ = 0.9, 学"]).values()) == ["Cafeteria_gamma_0.9"]
    assert list(file_names(["a b", "a-b", "a b 2", "+", "-"]).values()) == [
        *("a_b", "a_b_2", "a_b_2_2", "unnamed", "unnamed_2"),
    ]


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
