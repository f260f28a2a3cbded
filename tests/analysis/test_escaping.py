import csv
import io

import pandas as pd
import pytest

from continual_metaopt.analysis.escaping import csv_text, for_terminal, no_formula, one_line
from continual_metaopt.analysis.export import export
from continual_metaopt.analysis.report import write_tables
from continual_metaopt.analysis.runs import load_runs
from continual_metaopt.analysis.scripts import comparison_table as script
from continual_metaopt.analysis.tables import comparison_table, format_columns

from .synthetic import write_run

EVIL = "\x1b]0;x\x07a\n\\input{x}\r%b\u202e\x9b2J"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("α₀ = 1e-3, “é” ±\t∞\n", "α₀ = 1e-3, “é” ±\t∞\n"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\r\nb\rc", "a\nb\\rc"),
        ("\x00\x7f\x85\x9b", "\\x00\\x7f\\x85\\x9b"),
        ("\u202eabc\u2066\u200b\u2028\ufeff", "\\u202eabc\\u2066\\u200b\\u2028\\ufeff"),
        ("\ud800", "\\ud800"),
    ],
    ids=["plain", "escape sequences", "carriage return", "controls of 8 bits", "directions", "half a character"],
)
def test_text_for_a_terminal(text, expected):
    assert for_terminal(text) == expected
    assert for_terminal(expected) == expected


def test_text_in_one_line():
    assert one_line("a\r\n\tb\nc\x0bd") == "a b c\\x0bd"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "\t=1", "\r=1", " =1", "\n=1", "＝1"])
def test_text_that_begins_like_a_formula_gets_an_apostrophe(text):
    assert no_formula(text) == "'" + one_line(text)


@pytest.mark.parametrize("value", ["AdamW, lr = -1", "a=b", "− AdamW", "", -1.5, None, True])
def test_what_is_no_formula_stays(value):
    assert no_formula(value) is value or no_formula(value) == value


def test_numbers_of_a_csv_table_stay_numbers():
    table = pd.DataFrame({"=x": ["-a", None], "n": [-1.5, 2.0], "kind": pd.Categorical(["@a", "b"])})
    assert list(csv.reader(io.StringIO(csv_text(table)))) == [
        ["'=x", "n", "kind"],
        ["'-a", "-1.5", "'@a"],
        ["", "2.0", "b"],
    ]


def test_a_label_stays_in_its_cell_of_every_table():
    columns = {"learner": [EVIL], "− a\nb": ["1"]}
    for fmt in ("terminal", "markdown", "latex"):
        text = format_columns(columns, fmt)
        assert text == for_terminal(text)
        assert sum("1 " in line + " " for line in text.splitlines() if "a" in line) == 1
    assert "\\textbackslash{}input\\{x\\}" in format_columns(columns, "latex")
    assert "&lt;script>" in format_columns({"learner": ["<script>"]}, "markdown")


def test_what_a_run_is_called_reaches_no_file_raw(tmp_path, capsys):
    write_run(tmp_path / "runs", EVIL, 0, [1, 0], folder="a")
    write_run(tmp_path / "runs", "=1+1", 0, [1, 1], folder="b")
    runs = load_runs(tmp_path / "runs")
    table = comparison_table(runs, baseline=EVIL)
    written = {path.suffix: path.read_text() for path in write_tables(table, tmp_path / "out")}
    assert [line[:1] for line in written[".tex"].splitlines() if "input" in line] == ["%", " ", " "]
    assert all("\x1b" not in text and "\r" not in text for text in written.values())
    assert [row[0] for row in csv.reader(io.StringIO(written[".csv"]))][1:] == [one_line(EVIL), "'=1+1"]
    exported = (tmp_path / "csv" / "runs.csv").read_text() if export(runs, tmp_path / "csv", "csv") else ""
    assert "\x1b" not in exported
    assert '"\'=1+1"' in exported
    assert script.main([str(tmp_path / "runs"), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "\\x1b]0;x" in printed
    assert printed == for_terminal(printed)
