import csv
import io
import math

import numpy as np
import pandas as pd
import pytest

from continual_metaopt.analysis import comparison_table, format_table, load_runs, statistics
from continual_metaopt.analysis.tables import caption, columns_by_experience, seeds_text

from .synthetic import write_counts, write_regression, write_run, write_table

T_1 = 12.706204736432095


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Per learner two seeds of 10 samples, with so many correct."""
    root = write_counts(tmp_path_factory.mktemp("runs"), {"Meta_1 (100 %)": (7, 9)}, learned=True)
    write_counts(root, {"AdamW|a": (6, 6)}, config={"order": 1})
    return write_counts(root, {"SGD": (1, 2)}, config={"order": 2})


@pytest.fixture(scope="module")
def table(root):
    return comparison_table(load_runs(root))


def test_comparison_table_by_hand(table):
    assert table["learner"].tolist() == ["Meta_1 (100 %)", "AdamW|a", "SGD"]
    assert table["seeds"].tolist() == [2, 2, 2]
    np.testing.assert_allclose(table["online_accuracy"], [80, 60, 15])
    np.testing.assert_allclose(table["online_accuracy_ci"], [10 * T_1, 0, 5 * T_1])
    np.testing.assert_allclose(table["difference"], [20, np.nan, -45])
    np.testing.assert_allclose(table["difference_ci"], [10 * T_1, np.nan, 5 * T_1])
    assert table["pairs"].tolist() == [2, 0, 2]
    assert table["held_out_accuracy"].isna().all()
    assert table["samples_per_second"].tolist() == [100.5] * 3
    assert table["p_holm"].fillna(0).tolist() == [1, 0, 1]  # of 2 / 2² each, times 2
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["final_accuracy"].isna().all()
    attrs = dict(table.attrs)
    assert attrs.pop("tests").startswith("Exact sign-flip tests: with 2 seeds p cannot be less than 0.5")
    assert attrs == {
        "baseline": "AdamW|a",
        "best_fixed": True,
        "diverged": "chance",
        "score": "online_accuracy",
        "seeds": [0, 1],
    }


def test_diverged_and_incomplete_runs_are_reported(root, tmp_path):
    write_run(tmp_path, "SGD", 2, [1, 1], n_samples=10, state="diverged", config={"order": 2})
    write_run(tmp_path, "SGD", 3, [1], n_samples=10, state="running", parts=1, config={"order": 2})
    runs = load_runs(root, tmp_path)
    chance = comparison_table(runs).iloc[2]
    assert (chance["seeds"], chance["diverged"], chance["incomplete"]) == (3, 1, 1)
    assert chance["online_accuracy"] == pytest.approx((10 + 20 + 60) / 3)
    table = comparison_table(runs, diverged="exclude")
    assert table.iloc[2]["online_accuracy"] == pytest.approx(15)
    assert table["seeds"].tolist() == [2, 2, 2]
    assert "Diverged runs are left out of the means." in caption(table)
    assert caption(table).endswith("Not counted: 1 run that did not come to an end.")


def test_runs_with_a_step_size_at_its_bound_are_counted(root, tmp_path):
    config = {"learner": {"name": "metaoptimize", "lr_bounds": [1e-4, 1.0]}}
    write_run(tmp_path, "Meta_1 (100 %)", 2, [1] * 10, step_sizes={"all": [1e-4] * 10}, learned=True, config=config)
    table = comparison_table(load_runs(root, tmp_path))
    assert table.set_index("learner")["at_bound"].to_dict() == {"Meta_1 (100 %)": 1, "AdamW|a": 0, "SGD": 0}
    assert "at bound" in format_table(table, "terminal")
    assert "“At bound” counts runs in which a step size was at its bound at 10 % of the recorded" in caption(table)


def test_explicit_baseline(root):
    table = comparison_table(load_runs(root), baseline="SGD")
    np.testing.assert_allclose(table["difference"], [65, 45, np.nan])
    assert "− SGD" in format_table(table, "terminal")
    assert "Differences from “SGD” are in percentage points" in caption(table)
    with pytest.raises(ValueError, match="no run is labelled 'Adam'"):
        comparison_table(load_runs(root), baseline="Adam")


def test_without_fixed_learner_there_are_no_differences(root):
    table = comparison_table(load_runs(root).select(learned_step_sizes=True))
    assert math.isnan(table["difference"][0])
    assert "best fixed" not in format_table(table, "terminal")
    assert "Differences" not in caption(table)


def test_streams_are_not_mixed(root, tmp_path):
    write_run(tmp_path, "SGD", 5, stream_info={"stationary": "shuffled"})
    with pytest.raises(ValueError, match="2 different streams"):
        comparison_table(load_runs(root, tmp_path))


def test_terminal(table):
    lines = format_table(table, "terminal").splitlines()
    assert lines[0].split("  ")[0] == "learner"
    assert [cell.strip() for cell in lines[2].split("  ") if cell.strip()] == [
        "Meta_1 (100 %)",
        "2",
        "80.0 ± 127.1",
        "+20.0 ± 127.1",
        "1",
        "1.0",
        "0.500 ± 0.000",
        "0.500 ± 0.000",
        "100",
    ]
    assert "−45.0 ± 63.5" in lines[4]


def test_a_narrow_terminal_has_fewer_columns_and_says_which(table):
    lines = format_table(table, "terminal", width=90).splitlines()
    assert max(map(len, lines[:-1])) <= 90
    assert "rank" in lines[0]
    assert lines[-1] == "Too wide for this terminal: loss, γ = 0.999, samples/s, loss; --columns NAME … shows them."
    lines = format_table(table, "terminal", width=20, columns=["samples", "loss, γ"]).splitlines()
    assert lines[0].split() == ["learner", "samples/s", "loss,", "γ", "=", "0.999"]
    with pytest.raises(ValueError, match="the table has no column that begins with 'speed'; it has learner, seeds, "):
        format_table(table, "terminal", columns=["speed"])


def test_single_seeds_are_cut_short_in_a_terminal(tmp_path):
    table = comparison_table(load_runs(write_counts(tmp_path, {"A": (1, 1, 9, 10)})))
    assert "median 50.0 (10.0, 10.0, 90.0, 100.0)" in format_table(table, "markdown")
    assert "median 50.0 (10.0 … 100.0)" in format_table(table, "terminal", width=120)


def test_what_is_known_of_all_experiences_at_the_end(tmp_path):
    """Two runs of three experiences, whose record of retention ends at the end of the stream."""
    for seed, last in enumerate((0.5, 0.7)):
        path = write_run(tmp_path, "A", seed, [1] * 6, n_experiences=3)
        rows = [(4, "retention", f"experience {n}", v) for n, v in ((0, 0.2), (1, 0.9))]
        rows += [(6, "retention", f"experience {n}", v) for n, v in ((0, 0.0), (1, 0.1), (2, last))]
        rows += [(6, "retention", "value", 0.05), (4, "forgetting", "value", 0.7), (6, "forgetting", "value", 0.8)]
        frame = pd.DataFrame(rows, columns=["step", "quantity", "statistic", "value"]).assign(block=None)
        write_table(path, "measurements", frame.astype({"step": "int32", "block": "str"}), 0)
    table = comparison_table(load_runs(tmp_path))
    assert table["final_accuracy"].tolist() == pytest.approx([100 * (0.6 / 3 + 0.8 / 3) / 2])
    assert table["forgetting"].tolist() == pytest.approx([80])
    assert "forgetting (%)" in format_table(table, "terminal")
    assert "“Forgetting” is the mean over earlier experiences" in caption(table)


def test_columns_with_content_appear(tmp_path):
    write_run(tmp_path, test_accuracy=[0.5, 0.75])
    write_run(tmp_path, seed=1, correct=[1], n_samples=4, state="failed", test_accuracy=[0.5])
    text = format_table(comparison_table(load_runs(tmp_path)), "terminal")
    assert "62.5" in text
    assert "±" not in text  # a single seed has no interval
    assert "held-out at each end (%)" in text
    assert "incomplete" in text
    assert "diverged" not in text


def test_small_intervals_get_a_second_decimal(tmp_path):
    runs = load_runs(write_counts(tmp_path, {"A": (5000, 5001)}, 100_000))
    assert "5.00 ± 0.01" in format_table(comparison_table(runs), "terminal")


def test_markdown(table):
    lines = format_table(table, "markdown").splitlines()
    assert lines[0].startswith("| learner")
    assert set(lines[1]) <= set("|-:")
    assert lines[3].startswith(r"| AdamW\|a")


def test_latex(table):
    text = format_table(table, "latex")
    assert text.startswith("\\begin{tabular}{lrrrrrrr}\n\\toprule\n")
    assert r"\textbf{80.0 $\pm$ 127.1}" in text
    assert text.count(r"\textbf{") == 1 + 1 + 3 + 3  # accuracy, rank, losses
    assert "samples/s" not in text
    assert "\\bottomrule\n\\end{tabular}\n" in text
    assert r"Meta\_1 (100 \%)" in text
    assert r"online accuracy (\%)" in text
    assert r"$-$45.0 $\pm$ 63.5" in text
    assert text.isascii()
    rows = [line for line in text.splitlines() if "&" in line]
    assert {line.count("&") for line in rows} == {7}
    assert r"loss, $\gamma$ = 0.999" in text
    assert all(line.endswith(r"\\") for line in rows)


def test_csv_is_complete_and_unrounded(table):
    rows = list(csv.DictReader(io.StringIO(format_table(table, "csv"))))
    assert list(rows[0]) == list(table.columns)
    assert float(rows[0]["online_accuracy_ci"]) == table["online_accuracy_ci"][0]
    assert rows[1]["difference"] == ""


def test_columns_by_experience(tmp_path):
    for seed, accuracy in enumerate(([0.5, 0.75], [0.5, 0.25])):
        write_run(tmp_path, "A", seed, test_accuracy=accuracy, config={"order": 0})
    write_run(tmp_path, "B", 0, test_accuracy=[0.5, None], config={"order": 1})
    columns = columns_by_experience(statistics.test_accuracy_by_experience(load_runs(tmp_path)))
    assert columns == {
        "learner": ["A", "B"],
        "task 1": ["50.0 ± 0.0", "50.0"],
        "task 2": [f"50.0 ± {25 * T_1:.1f}", ""],
    }


@pytest.mark.parametrize(
    ("fewest", "most", "seeds", "text"),
    [
        (1, 1, [3], "1 seed (3)"),
        (5, 5, [4, 0, 1, 2, 3], "5 seeds (0–4)"),
        (2, 5, [0, 1, 2, 3, 7, 100, 101], "2 to 5 seeds per learner (0–3, 7, 100–101)"),
        (5, 5, [], "5 seeds"),
    ],
)
def test_seeds_in_words(fewest, most, seeds, text):
    assert seeds_text(fewest, most, seeds) == text


def test_unknown_format(table):
    with pytest.raises(ValueError, match="fmt must be one of terminal, markdown, latex, csv, not 'html'"):
        format_table(table, "html")


def test_caption(table, root, tmp_path):
    assert caption(table) == (
        "Mean over 2 seeds (0–1); ± is the half width of a 95 % Student-t interval over seeds. Losses are means over "
        "the stream and over the runs that finished with finite losses; each sample's loss is that of its prediction, "
        "made before learning from it. “loss, γ = 0.999” is the discounted loss that MetaOptimize minimises, averaged "
        "over the stream, with the same γ for all learners. Differences from “AdamW|a”, the best learner with fixed "
        "step sizes in this table, are in percentage points and paired by seed: both runs of a pair saw the same "
        "samples in the same order. “p (Holm)” compares with “AdamW|a”. Exact sign-flip tests: with 2 seeds p cannot "
        "be less than 0.5, and corrected for 2 comparisons (Holm) not less than 1. So no difference can be significant "
        "at 5 % here, however large; it takes 7 seeds. “Rank” is the mean rank over the seeds that all have in common; "
        "1 is best. No run diverged. “samples/s” is the median over runs."
    )
    for seed in (0, 2):
        write_run(tmp_path, "Other", seed, [1] * 10)
    write_run(tmp_path, "Other", 1, [1], n_samples=10, state="diverged")
    text = caption(comparison_table(load_runs(root, tmp_path)))
    assert text.startswith("Mean over 2 to 3 seeds per learner (0–2);")
    assert "What a diverged run did not see counts as chance, 1 / number of outputs." in text


def test_seeds_in_two_groups_have_a_median_and_no_interval(tmp_path):
    """The tuned learner's five seeds are far apart, and so are the differences from the other's."""
    counts = {"Prodigy": (101, 401, 400, 102, 399), "AdamW": (350, 351, 352, 353, 354)}
    write_counts(tmp_path, counts, 1000, config={"learner": {"name": "fixed"}})
    table = comparison_table(load_runs(tmp_path), baseline="AdamW")
    assert table["online_accuracy_seeds"].tolist() == ["10.1 10.2 39.9 40 40.1", ""]
    assert table["online_accuracy"][0] == pytest.approx(28.06)
    text = format_table(table, "markdown")
    assert "median 39.9 (10.1, 10.2, 39.9, 40.0, 40.1)" in text
    assert "median +4.5 (−25.1, −24.9, +4.5, +4.8, +5.0)" in text
    assert "35.2 ± 0.2" in text
    assert "28.1" not in text
    assert "the median and the single seeds in brackets stand instead of a mean" in caption(table)
    assert "median and the single seeds" not in caption(table[1:])


def test_regressions_are_compared_by_squared_errors(tmp_path):
    errors = {"LMS": ([2, 4], [4, 6]), "LMS 2": ([8, 8], [8, 8]), "IDBD": ([1, 2], [1, 4])}
    for order, (label, seeds) in enumerate(errors.items()):
        for seed, error in enumerate(seeds):
            write_regression(tmp_path, label, seed, error, learned=label == "IDBD", config={"order": order})
    table = comparison_table(load_runs(tmp_path))
    np.testing.assert_allclose(table["squared_error"], [4, 8, 2])
    np.testing.assert_allclose(table["squared_error_ci"], [T_1, 0, 0.5 * T_1])
    np.testing.assert_allclose(table["difference"], [np.nan, 4, -2])
    text = format_table(table, "terminal")
    assert "mean squared error" in text
    assert "online accuracy" not in text
    assert "4.00 ± 12.71" in text
    assert caption(table) == (
        "Mean over 2 seeds (0–1); ± is the half width of a 95 % Student-t interval over seeds. Differences from “LMS”, "
        "the best learner with fixed step sizes in this table, are paired by seed: both runs of a pair saw the same "
        "samples in the same order. “p (Holm)” compares with “LMS”. Exact sign-flip tests: with 2 seeds p cannot be "
        "less than 0.5, and corrected for 2 comparisons (Holm) not less than 1. So no difference can be significant "
        "at 5 % here, however large; it takes 7 seeds. “Rank” is the mean rank over the seeds that all have in common; "
        "1 is best. No run diverged. “samples/s” is the median over runs."
    )


def test_the_error_of_a_diverged_regression_is_infinite(tmp_path):
    write_regression(tmp_path, "LMS", 0, [2, 4])
    write_regression(tmp_path, "IDBD", 0, [2, 4])
    write_regression(tmp_path, "IDBD", 1, [2], n_samples=2, state="diverged")
    table = comparison_table(load_runs(tmp_path))
    assert table.set_index("learner").loc["IDBD", "squared_error"] == np.inf
    assert "∞" in format_table(table, "markdown")
    assert "The error of a diverged run is infinite." in caption(table)
    excluded = comparison_table(load_runs(tmp_path), diverged="exclude").set_index("learner")
    assert excluded.loc["IDBD", "squared_error"] == 3
