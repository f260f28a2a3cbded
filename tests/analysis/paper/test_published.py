"""The published experiment beside ours: on runs whose accuracies and step sizes are known."""

from pathlib import Path

import numpy as np
import pytest

from continual_metaopt.analysis import Runs, load_runs
from continual_metaopt.analysis.paper import figures, published
from continual_metaopt.analysis.paper.published import ACCURACY, NO_RUNS, Row
from continual_metaopt.analysis.paper.reproduction_report import write_reproduction
from tests.analysis.synthetic import sawtooth, write_run

N_TASKS, N_SAMPLES, EVERY = 5, 1_000, 10
CORRECT = {  # of ten, on two seeds
    ("published", "released, fixed, decades"): (4, 5),
    ("published", "released, fixed, finer grid"): (5, 5),
    ("published", "released, scalar, γ = 0.999"): (6, 7),
    ("published", "released, two blocks, γ = 0.999"): (3, 4),
    ("published", "released, scalar, γ = 1"): (1, 2),
    ("published", "as it comes"): (9, 9),
    ("published_global", "normalised, fixed, 1e-4"): (2, 2),
    ("published_global", "normalised, two blocks, γ = 0.999"): (4, 4),
}


def write_studies(root: Path) -> Path:
    teeth = sawtooth(N_SAMPLES, N_TASKS, 1e-5, 1e-4, record_every=EVERY)
    level = np.repeat(10.0 ** (np.arange(N_TASKS) / 4), N_SAMPLES // N_TASKS // EVERY)  # a quarter of a decade per task
    for order, ((study, label), of_seeds) in enumerate(CORRECT.items()):
        for seed, n_correct in enumerate(of_seeds):
            correct = ([1] * n_correct + [0] * (10 - n_correct)) * (N_SAMPLES // 10)
            blocks = {
                "conv1+conv2+linear1": teeth / level * (1 + seed / 10 * level),
                "linear2": teeth * level ** (1 + seed / 10),
            }
            write_run(
                root,
                f"{label}, lr = 0.0001" if "grid" in label or "decades" in label else label,
                seed,
                correct,
                n_experiences=N_TASKS,
                learned="γ" in label,
                step_sizes=blocks if "two blocks" in label else None,
                record_every=EVERY,
                test_accuracy=[n_correct / 10] * N_TASKS,
                config={
                    "study": study,
                    "entry": label,
                    "order": order,
                    "learner": {"name": "fixed", "lr": 1e-4},
                    "stream": {"name": "class_split", "labels": study},
                },
            )
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return load_runs(write_studies(tmp_path_factory.mktemp("studies")))


def test_a_label_is_a_row() -> None:
    assert published.row_of("released, two blocks, γ = 0.999") == Row("released", "two blocks", "γ = 0.999")
    assert published.row_of("as it comes") is None
    assert published.row_of("AdamW, fixed, decades") is None


@pytest.mark.slow
def test_every_learner_of_the_studies_has_a_row_but_the_default() -> None:
    from tests.studies import load_study

    for study, n_fixed in (("published", 5), ("published_global", 2)):
        entries = load_study(study).config.learners
        rows = {entry.label: published.row_of(entry.label) for entry in entries if entry.label != "as it comes"}
        assert None not in rows.values()
        assert sum(row.step_sizes == "fixed" for row in rows.values() if row) == n_fixed
        for entry in entries:
            row = rows.get(entry.label)
            if row is not None:
                base, meta = {"released": ("adamw_released", "adam_released"), "normalised": ("adamw", "adam")}[
                    row.form
                ]
                options = entry.options
                assert (options["base"], options["weight_decay"]) == (base, 0.1)
                if row.step_sizes != "fixed":  # what the published paper prints
                    assert (options["meta"], options["lr"], options["meta_lr"]) == (meta, 1e-4, 1e-3)
                    assert row.setting == f"γ = {options['gamma']:g}"
                    assert options["trace"] == "hessian_free"


def test_accuracies_stand_beside_the_papers(runs: Runs) -> None:
    table = published.published_table(runs)

    rows = {(row["labels"], row["form"], row["step_sizes"], row["setting"]): row for row in table.to_dict("records")}
    assert len(rows) == len(CORRECT) - 1  # without the one that is named otherwise
    decades = rows["within", "released", "fixed", "decades"]
    assert (decades["online_accuracy"], decades["lr"], decades["paper"]) == (pytest.approx(45), 1e-4, ACCURACY["fixed"])
    assert decades["test_accuracy"] == pytest.approx(45)
    # Student's t with one degree of freedom, times the standard error of (40, 50)
    assert decades["online_accuracy_ci"] == pytest.approx(12.7062 * 5, rel=1e-4)
    assert np.isnan(rows["within", "released", "fixed", "finer grid"]["paper"])
    assert rows["global", "normalised", "fixed", "1e-4"]["paper"] == ACCURACY["fixed"]
    lines = published.table_markdown(table).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[2:5]] == [
        "the paper",
        "released, labels within",
        "normalised, labels within",
    ]
    assert [cell.strip() for cell in lines[2].split("|")[1:4]] == ["fixed, decades", "36.59", "45.0 ± 63.5 (0.0001)"]


def test_the_best_decade_stands_for_the_papers_step_size_where_that_was_not_run(runs: Runs) -> None:
    released = published.papers_rows(published.learners_of(runs, "within"), "released")
    assert {name: learner.row.setting for name, learner in released.items()} == {
        "fixed": "decades",
        "scalar": "γ = 0.999",
        "two blocks": "γ = 0.999",
    }
    assert published.papers_rows(published.learners_of(runs, "global"), "normalised")["fixed"].row.setting == "1e-4"


def test_claims_are_decided_by_corrected_tests(runs: Runs) -> None:
    claims = published.published_claims(runs, shifts=199)

    found = {(row["labels"], row["claim"]): row for row in claims.to_dict("records")}
    assert set(claims["form"]) == {"released", "normalised"}
    scalar = found["within", "online accuracy: scalar above fixed"]
    assert (scalar["value"], scalar["verdict"], scalar["paper"]) == (pytest.approx(20), "holds", "+1.18")
    assert found["within", "online accuracy: two blocks above fixed"]["verdict"] == "does not hold"
    assert found["within", "γ = 0.999 better than 1, scalar"]["value"] == pytest.approx(50)
    assert ("within", "γ = 0.999 better than 1, two blocks") not in found
    assert found["global", "online accuracy: two blocks above fixed"]["value"] == pytest.approx(20)
    assert ("global", "online accuracy: scalar above fixed") not in found
    tooth = found["within", "the first block's step size rises after a change of task and falls until the next"]
    assert (tooth["p"], tooth["p_holm"] > tooth["p"]) == (pytest.approx(1 / 200), True)
    rise = found["within", "the last layer's step size rises from task to task"]
    assert rise["value"] == pytest.approx(0.25 * 1.05)
    assert 0 < rise["p"] <= rise["p_holm"]
    # as many corrections as there are cells: the smallest p-value is multiplied by their number
    positive = claims[claims["p"] > 0]
    first = positive.loc[positive["p"].idxmin()]
    n_zero = int((claims["p"] == 0).sum())
    assert first["p_holm"] == pytest.approx(min(1, first["p"] * (len(claims) - n_zero)))
    text = published.claims_markdown(claims)
    assert "| online accuracy: scalar above fixed (points) " in text
    assert "holds: +20.00 ± 0.00" in text


def test_the_page_has_tables_and_figures(runs: Runs, tmp_path: Path) -> None:
    text, paths = write_reproduction(runs, "published", tmp_path, shifts=99)

    assert text.startswith("# The published continual experiment")
    assert "## All columns, labels within" in text
    assert "as it comes" in text
    assert {path.name for path in paths} >= {
        "published.md",
        "published_accuracy.csv",
        "published_claims.csv",
        "published_cumulative_accuracy.png",
        "published_step_sizes.pdf",
        "published_test_accuracy.png",
    }


def test_figures_show_the_papers_values(runs: Runs) -> None:
    figure = figures.published_cumulative_accuracy(runs)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [
        "released momentum, labels within",
        "normalised momentum, labels global",
    ]
    ends = {float(y) for line in shown[0].get_lines() for x, y in [line.get_xydata()[-1]] if x == N_SAMPLES}
    assert set(ACCURACY.values()) <= ends
    blocks = figures.published_step_sizes(runs)
    assert [text.get_text() for text in blocks.legends[0].get_texts()] == ["first block", "last block", "the paper"]


def test_unequal_streams_are_refused(tmp_path: Path) -> None:
    paths = sorted(write_studies(tmp_path).glob("released, scalar, γ = 0.999-0/config.json"))
    paths[0].write_text(paths[0].read_text().replace("stream-0", "another"))
    runs = load_runs(tmp_path)
    for ask in (
        published.published_table,
        published.published_claims,
        figures.published_cumulative_accuracy,
        figures.published_step_sizes,
        figures.published_test_accuracy,
    ):
        with pytest.raises(ValueError, match="did not see the same samples in the same order"):
            ask(runs)


def test_other_runs_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "AdamW, fixed")
    runs = load_runs(tmp_path)
    for ask in (published.published_table, published.published_claims, figures.published_step_sizes):
        with pytest.raises(ValueError, match=NO_RUNS):
            ask(runs)
