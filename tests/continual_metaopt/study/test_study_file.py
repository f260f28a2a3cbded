import math
import re
from pathlib import Path

import pytest

from continual_metaopt.runs.components import ConfigError
from continual_metaopt.study.load import load_studies
from continual_metaopt.study.study_file import MAX_BYTES, StudyFileError, parse_study, read_study_text

TENFOLD = "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)
MERGES = "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)

REFUSED = {
    "key twice": ("a: 1\nb: {c: 1, d: 2,\n  c: 3}\n", "line 3: 'c' is given twice, first in line 2; keep one of them"),
    "key twice at the top": ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is given twice, first in line 1; keep one of them"),
    "same key, written otherwise": ("yes: 1\ntrue: 2\n", "line 2: 'true' is given twice, first in line 1; keep one"),
    "two merges": ("a: &a {k: 1}\nb: {<<: *a, <<: *a}\n", "line 2: '<<' is given twice, first in line 2"),
    "inf": ("a: [{b: -.inf}]", "a.0.b: a setting is a finite number (given: -inf)"),
    "nan": ("a: .nan", "a: a setting is a finite number (given: nan)"),
    "hexadecimal": ("a: 0x" + "f" * 99_999, "a: the whole number is too large"),
    "sexagesimal": ("a: 1:" + "9:" * 3000 + "1", "a: the whole number is too large"),
    "many digits": ("a: " + "1" * 5000, "is not valid YAML: Exceeds the limit"),
    "date": ("a: 2026-13-45", "is not valid YAML: month must be in 1..12"),
    "itself": ("a: &a [*a]", "line 1: what begins there contains itself"),
    "aliases": (
        f"a: &a [1, 1, 1]\n{TENFOLD}",
        "with its aliases written out, it has over 250,000 values",
    ),
    "merged aliases": (f"a: &a {{k: 1}}\n{MERGES}", "with its aliases written out, it has over 250,000 values"),
    "deep": ("a: " + "[" * 45 + "]" * 45, "line 1: is nested more than 40 levels deep"),
    "deep blocks": ("".join(f"{' ' * n}a:\n" for n in range(60)), "is nested more than 40 levels deep"),
    "Python": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
    "control character": ("a: \x00", "is not valid YAML: unacceptable character"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_yaml_that_no_study_needs(case: str) -> None:
    text, message = REFUSED[case]
    with pytest.raises(StudyFileError, match=re.escape(message)):
        parse_study(text)


def test_merged_mappings_may_be_overridden() -> None:
    text = "a: &a {lr: 1, base: x}\nb: &b {<<: *a, lr: 2}\nc: [{<<: *b, lr: 3}, {<<: *b}]\n"
    assert parse_study(text)["c"] == [{"lr": 3, "base": "x"}, {"lr": 2, "base": "x"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named_with_a_remedy(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "my study.yaml"
    path.write_text("name: x\n", encoding=encoding)
    message = (
        f"{path}: is not in UTF-8 but, as it seems, in UTF-16; save it as UTF-8 in your editor, or convert it: "
        "iconv -f UTF-16 -t UTF-8 'my study.yaml' > utf8.yaml"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_studies(path)


def test_other_encodings_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes("name: x\nlabel: \N{LATIN SMALL LETTER E WITH ACUTE}\n".encode("latin-1"))
    with pytest.raises(StudyFileError, match=r"^line 2 is not in UTF-8; save the file as UTF-8 in your editor$"):
        read_study_text(path)


def test_a_mark_of_utf_8_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: x\n", encoding="utf-8-sig")
    assert parse_study(read_study_text(path)) == {"name": "x"}


def test_a_study_file_has_a_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(StudyFileError, match=r"at most 1,048,576 bytes"):
        read_study_text(path)


def test_what_is_finite_stays_as_it_is() -> None:
    assert parse_study("a: [1, -2.5, 1.0e-3, x, null, true]") == {"a": [1, -2.5, 1e-3, "x", None, True]}
    assert math.isfinite(parse_study("a: 1.0e+300")["a"])
