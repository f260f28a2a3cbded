"""The paper's tables beside ours: on runs whose accuracies are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit
from scipy.stats import ttest_1samp

from continual_metaopt.analysis import Runs, load_runs
from continual_metaopt.analysis.paper import reproduction
from continual_metaopt.analysis.paper.figures import gaps_beside_the_papers
from continual_metaopt.analysis.paper.reproduction import BASES, PAPER, Row, Table
from continual_metaopt.analysis.paper.reproduction_report import Experiment, write_reproduction
from continual_metaopt.analysis.scripts.reproduction import main
from tests.analysis.synthetic import sawtooth, write_counts, write_run

CORRECT = {  # of 10, for two seeds
    "AdamW, fixed": (4, 5),
    "AdamW, scalar, no discount": (6, 7),
    "AdamW, blockwise, no discount": (5, 7),
    "AdamW, blockwise, chosen": (1, 2),
    "Lion, fixed": (3, 3),
}


def write_study(root: Path, table: Table) -> Path:
    for order, (label, of_seeds) in enumerate(CORRECT.items()):  # of which the entry has no chosen values
        config = {"study": table, "entry": label, "order": order}
        write_counts(root, {f"{label}, lr = 0.001": of_seeds}, config=config)
    return root


@pytest.fixture(scope="module")
def table2(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return load_runs(write_study(tmp_path_factory.mktemp("table2"), "table2"))


def test_accuracies_stand_beside_the_papers(table2: Runs) -> None:
    table = reproduction.paper_comparison(table2, "table2")

    rows = {Row(row["base"], row["step_sizes"], row["settings"]): row for row in table.to_dict("records")}
    fixed, scalar = rows[Row("AdamW", "fixed", "")], rows[Row("AdamW", "scalar", "no discount")]
    assert (fixed["seeds"], fixed["online_accuracy"], fixed["paper"]) == (2, pytest.approx(45), 36.59)
    assert pd.isna(fixed["gap"])
    assert pd.isna(fixed["paper_gap"])
    assert (scalar["gap"], scalar["gap_ci"]) == (pytest.approx(20), pytest.approx(0, abs=1e-9))
    assert scalar["paper_gap"] == pytest.approx(37.77 - 36.59)
    # Student's t with one degree of freedom, times the standard error of (40, 50)
    assert fixed["online_accuracy_ci"] == pytest.approx(12.7062 * 5, rel=1e-4)


def test_claims_are_the_papers_orderings(table2: Runs) -> None:
    claims = reproduction.paper_claims(table2, "table2")

    found = {(row["claim"], row["settings"]): row for row in claims.to_dict("records")}
    assert {key: row["verdict"] for key, row in found.items()} == {
        ("AdamW: scalar above fixed", "no discount"): "holds",
        ("AdamW: blockwise above fixed", "no discount"): "undecided",
        ("AdamW: blockwise above fixed", "chosen"): "does not hold",
        ("AdamW: blockwise above scalar", "no discount"): "undecided",
        ("fixed: AdamW above Lion", ""): "undecided",
    }
    assert found["AdamW: blockwise above scalar", "no discount"]["difference"] == pytest.approx(-5)
    assert found["fixed: AdamW above Lion", ""]["paper"] == pytest.approx(36.59 - 24.19)


def test_a_claim_follows_the_papers_order(tmp_path: Path) -> None:
    """In table 3 AdamW's scalar step size is above its blockwise ones."""
    claims = set(reproduction.paper_claims(load_runs(write_study(tmp_path, "table3")), "table3")["claim"])

    assert "AdamW: scalar above blockwise" in claims
    assert "AdamW: blockwise above scalar" not in claims


def test_markdown(table2: Runs) -> None:
    lines = reproduction.comparison_markdown(reproduction.paper_comparison(table2, "table2")).splitlines()

    assert [cell.strip() for cell in lines[0].split("|")[1:4]] == ["", "AdamW, ours", "AdamW, paper"]
    assert " 45.00 ± 63.53 " in lines[2]
    assert "65.00 ± 63.53 (+20.00 ± 0.00) | 37.77 (+1.18)" in " ".join(lines[3].split())
    assert "does not hold: −30.00 ± 0.00" in reproduction.claims_markdown(reproduction.paper_claims(table2, "table2"))


@pytest.mark.parametrize(
    ("difference", "p", "expected"),
    [
        (2.0, 0.05, "holds"),
        (-2.0, 0.05, "does not hold"),
        (2.0, 0.051, "undecided"),
        (-2.0, 0.051, "undecided"),
        (2.0, float("nan"), "undecided"),
    ],
)
def test_verdicts(difference: float, p: float, expected: str) -> None:
    assert reproduction.verdict(difference, p) == expected


def test_verdicts_are_corrected_for_the_number_of_orderings(tmp_path: Path) -> None:
    """A difference that one 95 % interval holds apart from zero is undecided among others."""
    counts = {
        "AdamW, fixed": (40, 40, 40),
        "AdamW, scalar, chosen": (50, 51, 53),
        "AdamW, blockwise, chosen": (43, 42, 44),
        "RMSProp, fixed": (40, 41, 39),
        "Lion, fixed": (41, 39, 40),
    }
    runs = load_runs(write_counts(tmp_path, counts, 100, config={"study": "table2"}))
    claims = reproduction.paper_claims(runs, "table2").set_index("claim")

    assert len(claims) == 6
    uncorrected = ttest_1samp([3, 2, 4], 0).pvalue
    row = claims.loc["AdamW: blockwise above fixed"]
    assert row["difference"] - row["half_width"] > 0
    assert row["p_holm"] == pytest.approx(4 * uncorrected)  # two others are smaller
    assert row["verdict"] == "undecided"
    row = claims.loc["AdamW: scalar above fixed"]
    assert (row["p_holm"], row["verdict"]) == (pytest.approx(6 * ttest_1samp([10, 11, 13], 0).pvalue), "holds")


def test_seeds_in_two_groups_are_shown_one_by_one(tmp_path: Path) -> None:
    counts = {"AdamW, fixed": (50, 50, 50), "AdamW, scalar, chosen": (10, 60, 61)}
    table = reproduction.paper_comparison(
        load_runs(write_counts(tmp_path, counts, 100, config={"study": "table2"})), "table2"
    )

    assert table["gap_seeds"].tolist() == ["", "-40 10 11"]
    text = " ".join(reproduction.comparison_markdown(table).split())
    assert "| median 60.00 (10.00, 60.00, 61.00); gap median +10.00 (−40.00, +10.00, +11.00) |" in text
    points = [line.get_xydata().tolist() for line in gaps_beside_the_papers(table).axes[0].lines]
    assert [[0, -40], [0, 10], [0, 11]] in points
    assert [[0, 10]] in points  # the median


@pytest.mark.slow
def test_every_learner_of_the_studies_has_a_row() -> None:
    from tests.studies import load_study

    for table in PAPER:
        rows = [reproduction.row_of(entry.label) for entry in load_study(table).learners]
        assert None not in rows
        assert {(row.base, row.step_sizes) for row in rows if row} == {
            (base, kind) for base in BASES for kind in ("fixed", "scalar", "blockwise")
        }
    assert reproduction.row_of("AdamW, blockwise, chosen") == Row("AdamW", "blockwise", "chosen")
    assert reproduction.row_of("SGD, fixed") is None
    assert reproduction.row_of("AdamW tuned") is None


def test_two_networks_are_not_mixed(tmp_path: Path) -> None:
    """Their labels differ by the chosen settings, which a row of the table leaves out."""
    for setting, network in {"lr = 0.001": "paper_cnn", "lr = 0.01": "mlp"}.items():
        config = {"study": "table2", "entry": "AdamW, fixed", "network": {"name": network}}
        write_run(tmp_path, f"AdamW, fixed, {setting}", 0, [1, 0], config=config)

    with pytest.raises(ValueError, match="are both 'AdamW, fixed' with seed 0: give one of their folders alone"):
        reproduction.paper_comparison(load_runs(tmp_path), "table2")


def test_one_seed_has_no_intervals(table2: Runs) -> None:
    runs = table2.select(seed=0)

    text = reproduction.comparison_markdown(
        reproduction.paper_comparison(runs, "table2")
    ) + reproduction.claims_markdown(reproduction.paper_claims(runs, "table2"))

    assert "nan" not in text
    assert "60.00 (+20.00)" in text
    assert "undecided: +20.00" in text


def block(**changes: Any) -> dict[str, Any]:
    """A row of the sawtooth table, of a block whose step size rises early and falls after a boundary."""
    plain = {"learner": "L", "block": "b", "amplitude": 0.5, "amplitude_ci": 0.1, "p_holm": 0.01}
    return {**plain, "peak": 0.1, "fall": 0.4, "slope": 0.0, "slope_ci": 0.01, "seeds": 5, **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "holds"),
        ({"p_holm": 0.06}, "undecided"),
        ({"peak": 0.9}, "does not hold"),
        ({"fall": -0.1}, "does not hold"),
    ],
)
def test_a_sawtooth_is_larger_than_by_chance_and_of_the_papers_shape(changes: dict[str, Any], expected: str) -> None:
    findings = reproduction.sawtooth_findings(pd.DataFrame([block(**changes)]))
    assert findings[["finding", "block", "verdict"]].to_numpy().tolist() == [["sawtooth", "b", expected]]


@pytest.mark.parametrize(
    ("slope", "half_width", "falls", "stays"),
    [
        (-0.2, 0.1, "holds", "does not hold"),
        (0.2, 0.1, "does not hold", "does not hold"),
        (-0.02, 0.01, "holds", "holds"),
        (0.0, 0.04, "undecided", "holds"),
        (0.0, 0.06, "undecided", "undecided"),
        (0.0, float("nan"), "undecided", "undecided"),
    ],
)
def test_trends_of_the_first_and_the_last_block(slope: float, half_width: float, falls: str, stays: str) -> None:
    table = pd.DataFrame([block(block=name, slope=slope, slope_ci=half_width) for name in ("first", "mid", "last")])

    findings = reproduction.sawtooth_findings(table).set_index(["finding", "block"])["verdict"]

    assert findings["first block falls", "first"] == falls
    assert findings["last block stays", "last"] == stays
    assert len(findings) == 5


@pytest.mark.parametrize(("n_learners", "falls", "stays"), [(1, "holds", "holds"), (4, "undecided", "undecided")])
def test_trends_are_corrected_for_the_number_of_learners(n_learners: int, falls: str, stays: str) -> None:
    learners = [f"L{number}" for number in range(n_learners)]
    first = [block(learner=name, block="first", slope=-0.04, slope_ci=0.035) for name in learners]
    last = [block(learner=name, block="last", slope_ci=0.045) for name in learners]

    findings = reproduction.sawtooth_findings(pd.DataFrame(first + last)).set_index(["learner", "finding"])

    row = findings.loc["L0", "first block falls"]
    assert (row["verdict"], row["half_width"]) == (falls, 0.035)
    standard_error = 0.035 / stdtrit(4, 0.975)
    p = ttest_1samp([-0.04 + standard_error * side * np.sqrt(5) for side in (-1, -1, 0, 1, 1)], 0).pvalue
    assert row["p_holm"] == pytest.approx(n_learners * p)
    assert findings.loc[("L0", "last block stays"), "verdict"] == stays


def test_findings_as_markdown() -> None:
    table = pd.DataFrame([block(block="first", slope=-0.2), block(block="last", p_holm=0.5)])
    text = " ".join(reproduction.findings_markdown(reproduction.sawtooth_findings(table)).split())
    assert "1 of 2: first × 3.16, last × 3.16 (undecided)" in text
    assert "| holds: first −0.20 ± 0.01 | holds: last +0.00 ± 0.01 |" in text


def write_map(root: Path) -> Path:
    """Blockwise step sizes lose 10 and 20 points where fixed ones lose 50 and 60, by seed; at another η, 0 and 10."""
    tried = {"study": "robustness", "purpose": "selection"}
    for seed in range(2):
        for lr, fixed, paper, best in ((1e-6, 1, 4, 7), (1e-4, 6, 5, 7)):
            setting = {"gamma": 1.0, "meta_lr": 1e-3, "lr": lr}
            rows = [
                ("AdamW, fixed", {"lr": lr}, fixed - seed * (lr == 1e-6), False),
                ("AdamW, Adam, blockwise", setting, paper - seed * (lr == 1e-6), True),
                ("AdamW, Adam, blockwise", setting | {"meta_lr": 1e-2}, best - seed * (lr == 1e-6), True),
            ]
            for label, options, n_correct, learned in rows:
                named = ", ".join([label, *(f"{name} = {value}" for name, value in options.items())])
                config = {**tried, "entry": label, "learner": {"name": label, **options}}
                correct = [1] * n_correct + [0] * (10 - n_correct)
                write_run(root, named, 100 + seed, correct, learned=learned, config=config)
    return root


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return load_runs(write_map(tmp_path_factory.mktemp("map")), purpose="selection")


def test_initial_step_sizes_lose_less_than_fixed_ones(tried: Runs) -> None:
    table = reproduction.initial_step_sizes(tried)

    rows = {row["settings"]: row for row in table.to_dict("records")}
    assert (rows[""]["worst"], rows[""]["best"], rows[""]["lost"]) == pytest.approx((5, 60, 55))
    paper, best = rows["γ = 1, η = 1e-3"], rows["best"]
    assert (paper["lost"], paper["fixed_lost"], paper["saved"]) == pytest.approx((15, 55, 40))
    assert paper["verdict"] == "holds"
    assert (best["gamma"], best["meta_lr"], best["lost"]) == pytest.approx((1, 1e-2, 5))
    text = " ".join(reproduction.initial_step_sizes_markdown(table).split())
    assert "| γ = 1, η = 1e-3 | 1e-06 – 0.0001 (× 100) | 35.0 – 50.0 | 15.0 |" in text
    assert "| best: γ = 1, η = 0.01 |" in text


def test_what_the_initial_step_size_decides_is_told_by_means_and_not_by_each_seed_s_luck(tmp_path: Path) -> None:
    """Each seed's best and worst are a point apart by noise alone; the means over seeds are equal."""
    config = {"study": "robustness", "purpose": "selection", "entry": "AdamW, fixed"}
    for seed, counts in enumerate([(4, 5, 6), (6, 5, 4)]):
        for lr, n_correct in zip((1e-4, 1e-3, 1e-2), counts, strict=True):
            for label, learned, options in (
                ("AdamW, fixed", False, {"lr": lr}),
                ("AdamW, Adam, blockwise", True, {"lr": lr, "gamma": 1.0, "meta_lr": 1e-3}),
            ):
                if (learned, seed, lr) == (True, 1, 1e-2):
                    continue  # a step size that not all seeds have does not count
                learner = {"name": label, **options}
                correct = [1] * n_correct + [0] * (10 - n_correct)
                write_run(
                    *(tmp_path, f"{label}, lr = {lr}", 100 + seed, correct),
                    learned=learned,
                    config=config | {"entry": label, "learner": learner},
                )

    fixed, paper, _ = reproduction.initial_step_sizes(load_runs(tmp_path, purpose="selection")).to_dict("records")

    assert (fixed["lost"], fixed["worst"], fixed["best"]) == pytest.approx((0, 50, 50))
    assert (paper["highest"], paper["lost"]) == pytest.approx((1e-3, 0))
    with pytest.raises(ValueError, match=r"^there are no selection runs with learned step sizes$"):
        reproduction.initial_step_sizes(load_runs(tmp_path, purpose="selection").select(learned_step_sizes=False))


def test_a_single_seed_decides_nothing(tried: Runs) -> None:
    assert reproduction.initial_step_sizes(tried.select(seed=100))["verdict"].tolist() == ["", "undecided", "undecided"]


def write_teeth(root: Path, study: str) -> Path:
    """A tuned fixed step size beside blockwise ones with teeth, that fall in the first block."""
    n, n_experiences = 400, 8
    teeth = sawtooth(n, n_experiences, 1e-4, 1e-2, record_every=2)
    blocks = {
        "AdamW, fixed": {"all": teeth**0},
        "AdamW, blockwise, no discount": {"a": teeth * np.geomspace(1, 1e-4, len(teeth)), "b": teeth},
    }
    for order, (label, step_sizes) in enumerate(blocks.items()):
        options = {"n_experiences": n_experiences, "learned": order == 1, "step_sizes": step_sizes, "record_every": 2}
        counts = {label: (200 + 10 * order, 201 + 10 * order)}
        write_counts(root, counts, n, config={"study": study, "order": order}, **options)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["table2", "trajectories"])
def test_an_experiment_is_written_with_tables_and_figures(
    tmp_path: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = write_teeth(tmp_path / "runs", experiment)
    arguments = [str(runs), "--table", experiment, "--out", str(tmp_path / "out"), "--shifts", "99"]

    assert main(arguments) == 0

    page = (tmp_path / "out" / f"{experiment}.md").read_text()
    assert capsys.readouterr().out.startswith(page)
    assert "2 of 2: a × " in page
    assert "holds: a −" in page
    names = {path.name for path in (tmp_path / "out").iterdir()}
    name = "AdamW_blockwise_no_discount"
    expected = {"accuracy.csv", "sawtooth.csv", f"step_sizes_{name}.png", f"sawtooth_{name}.png"}
    expected |= {"claims.csv", "gaps.png"} if experiment == "table2" else set()
    assert {f"{experiment}_{name}" for name in expected} <= names


@pytest.mark.slow
def test_a_stream_that_is_too_short_for_a_sawtooth_says_so(table2: Runs, tmp_path: Path) -> None:
    text, paths = write_reproduction(table2, "table2", tmp_path)
    assert "Not checked: " in text
    assert "table2_sawtooth.csv" not in {path.name for path in paths}


@pytest.mark.parametrize("experiment", ["robustness", "trajectories", "table3"])
def test_runs_of_another_experiment_are_refused(table2: Runs, tmp_path: Path, experiment: Experiment) -> None:
    expected = f"none of these runs is of the study {experiment}: run `continual-metaopt reproduce {experiment}` first"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        write_reproduction(table2, experiment, tmp_path / "out")


def test_gaps_need_a_fixed_step_size(tmp_path: Path) -> None:
    write_run(tmp_path, "AdamW, scalar, no discount", config={"study": "table2"})
    runs = load_runs(tmp_path)
    message = "no learner has a tuned fixed step size of the same base update to be compared with"
    with pytest.raises(ValueError, match=f"^{message}$"):
        gaps_beside_the_papers(reproduction.paper_comparison(runs, "table2"))
    names = [path.name for path in write_reproduction(runs, "table2", tmp_path / "out")[1]]
    assert "table2.md" in names
    assert "table2_gaps.png" not in names
