"""The paper's tables beside ours: on runs whose accuracies are known."""

from pathlib import Path

import pandas as pd
import pytest

from analysis import load_runs
from analysis.reproduction import (
    BASES,
    PAPER,
    Row,
    Table,
    claims_markdown,
    comparison_markdown,
    paper_claims,
    paper_comparison,
    row_of,
    verdict,
)

from .synthetic import write_run

CORRECT = {  # of 10, for two seeds
    "AdamW, fixed": (4, 5),
    "AdamW, scalar, no discount": (6, 7),
    "AdamW, blockwise, no discount": (5, 7),
    "AdamW, blockwise, as in the paper": (1, 2),
    "Lion, fixed": (3, 3),
}


def write_study(root: Path, table: Table) -> Path:
    for order, (label, of_seeds) in enumerate(CORRECT.items()):
        for seed, n_correct in enumerate(of_seeds):
            correct = [1] * n_correct + [0] * (10 - n_correct)
            with_setting = f"{label}, lr = 0.001"  # the entry has no chosen values
            write_run(root, with_setting, seed, correct, config={"study": table, "entry": label, "order": order})
    return root


def test_accuracies_stand_beside_the_papers(tmp_path: Path) -> None:
    table = paper_comparison(load_runs(write_study(tmp_path, "table2")), "table2")

    rows = {Row(row["base"], row["step_sizes"], row["settings"]): row for row in table.to_dict("records")}
    fixed, scalar = rows[Row("AdamW", "fixed", "")], rows[Row("AdamW", "scalar", "no discount")]
    assert (fixed["seeds"], fixed["online_accuracy"], fixed["paper"]) == (2, pytest.approx(45), 36.59)
    assert pd.isna(fixed["gap"])
    assert pd.isna(fixed["paper_gap"])
    assert (scalar["gap"], scalar["gap_ci"]) == (pytest.approx(20), pytest.approx(0, abs=1e-9))
    assert scalar["paper_gap"] == pytest.approx(37.77 - 36.59)
    # Student's t with one degree of freedom, times the standard error of (40, 50)
    assert fixed["online_accuracy_ci"] == pytest.approx(12.7062 * 5, rel=1e-4)


def test_claims_are_the_papers_orderings(tmp_path: Path) -> None:
    claims = paper_claims(load_runs(write_study(tmp_path, "table2")), "table2")

    found = {(row["claim"], row["settings"]): row for row in claims.to_dict("records")}
    assert {key: row["verdict"] for key, row in found.items()} == {
        ("AdamW: scalar above fixed", "no discount"): "holds",
        ("AdamW: blockwise above fixed", "no discount"): "undecided",
        ("AdamW: blockwise above fixed", "as in the paper"): "does not hold",
        ("AdamW: blockwise above scalar", "no discount"): "undecided",
        ("fixed: AdamW above Lion", ""): "undecided",
    }
    assert found["AdamW: blockwise above scalar", "no discount"]["difference"] == pytest.approx(-5)
    assert found["fixed: AdamW above Lion", ""]["paper"] == pytest.approx(36.59 - 24.19)


def test_a_claim_follows_the_papers_order(tmp_path: Path) -> None:
    """In table 3 AdamW's scalar step size is above its blockwise ones."""
    claims = set(paper_claims(load_runs(write_study(tmp_path, "table3")), "table3")["claim"])

    assert "AdamW: scalar above blockwise" in claims
    assert "AdamW: blockwise above scalar" not in claims


def test_markdown(tmp_path: Path) -> None:
    runs = load_runs(write_study(tmp_path, "table2"))
    lines = comparison_markdown(paper_comparison(runs, "table2")).splitlines()

    assert [cell.strip() for cell in lines[0].split("|")[1:4]] == ["", "AdamW, ours", "AdamW, paper"]
    assert " 45.00 ± 63.53 " in lines[2]
    assert "65.00 ± 63.53 (+20.00 ± 0.00) | 37.77 (+1.18)" in " ".join(lines[3].split())
    assert "does not hold: −30.00 ± 0.00" in claims_markdown(paper_claims(runs, "table2"))


@pytest.mark.parametrize(("difference", "expected"), [(2.0, "holds"), (-2.0, "does not hold"), (0.5, "undecided")])
def test_verdicts(difference: float, expected: str) -> None:
    assert verdict(difference, 1.0) == expected


def test_every_learner_of_the_studies_has_a_row() -> None:
    from continual_metaopt.config import load_study

    for table in PAPER:
        rows = [row_of(entry.label) for entry in load_study(table).learners]
        assert None not in rows
        assert {(row.base, row.step_sizes) for row in rows if row} == {
            (base, kind) for base in BASES for kind in ("fixed", "scalar", "blockwise")
        }
    assert row_of("AdamW, blockwise, chosen") == Row("AdamW", "blockwise", "chosen")
    assert row_of("SGD, fixed") is None
    assert row_of("AdamW tuned") is None


def test_other_runs_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "AdamW, fixed")
    with pytest.raises(ValueError, match="none of these runs is of the study table2: run `continual-metaopt reproduce"):
        paper_comparison(load_runs(tmp_path), "table2")
