"""Bits per byte in tables, figures and reports."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from continual_metaopt.analysis import figures
from continual_metaopt.analysis.report import write_report
from continual_metaopt.analysis.runs import Runs, load_runs
from continual_metaopt.analysis.scripts import bits_per_byte
from continual_metaopt.analysis.tables import caption, comparison_table, format_table
from continual_metaopt.analysis.text import bits_by_domain, is_text, sample_bits
from tests.analysis.synthetic import write_run, write_table

HALF_A_NAT = 0.5 / math.log(2) / 2  # of symbols with two bytes, in bits per byte
INFO = {"bytes_per_sample": 2.0, "definition": "text v1"}


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """Two learners of text; losses are 0.5 in the first domain, and 0.5 or 1 in the second."""
    for order, (label, loss) in enumerate({"A": 0.5, "B": 1.0}.items()):
        for seed in range(2):
            folder = write_run(
                tmp_path, label, seed, [1, 0] * 10, n_experiences=2, stream_info=INFO, config={"order": order}
            )
            samples = pd.read_parquet(folder / "samples.parquet")
            samples.loc[samples["experience"] == 1, "loss"] = np.float32(loss)
            write_table(folder, "samples", samples, 0)
            experiences = pd.read_parquet(folder / "experiences.parquet")
            experiences["classes"], experiences["mean_loss"] = [["de"], ["fr"]], [0.5, loss]
            write_table(folder, "experiences", experiences, 0)
    return load_runs(tmp_path)


def test_the_table_has_bits_per_byte(runs: Runs) -> None:
    table = comparison_table(runs)

    assert table["bits_per_byte"].tolist() == pytest.approx([HALF_A_NAT, 1.5 * HALF_A_NAT])
    headings, _, first, *_ = format_table(table, "terminal").splitlines()
    assert re.split(r"  +", headings.strip())[:4] == ["learner", "seeds", "online accuracy (%)", "bits per byte"]
    assert re.split(r"  +", first.strip())[3] == "0.361 ± 0.000"
    assert r"\textbf{0.361 $\pm$ 0.000}" in format_table(table, "latex")
    assert "“Bits per byte” is the loss in bits for each byte of the text." in caption(table)


def test_other_tables_have_none(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, [1, 0] * 10)
    runs = load_runs(tmp_path)
    table = comparison_table(runs)

    assert not is_text(runs)
    assert "bits_per_byte" not in table
    assert "bits" not in caption(table)
    message = "these runs are not of text; sliding_accuracy shows how they went"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        figures.sliding_bits_per_byte(runs)


def test_bits_of_each_domain(runs: Runs) -> None:
    bits = bits_by_domain(runs).set_index(["label", "seed", "domain"])["bits_per_byte"]

    assert len(bits) == 8
    assert bits["A", 0, "fr"] == pytest.approx(HALF_A_NAT)
    assert bits["B", 1, "fr"] == pytest.approx(2 * HALF_A_NAT)


def test_bits_of_each_symbol_where_losses_were_not_kept(runs: Runs) -> None:
    path = runs.table.loc[runs.table["label"] == "B", "path"].iloc[0]
    kept = sample_bits(runs, path)
    samples = pd.read_parquet(Path(path) / "samples.parquet")
    samples["loss"] = np.float32(np.nan)
    write_table(Path(path), "samples", samples, 0)

    assert kept == pytest.approx([HALF_A_NAT] * 10 + [2 * HALF_A_NAT] * 10)
    assert sample_bits(load_runs(Path(path).parent), path) == pytest.approx(kept)


def test_the_line_of_a_diverged_run_ends(tmp_path: Path) -> None:
    write_run(tmp_path, "A", 0, [1] * 10, state="diverged", stream_info=INFO | {"n_samples": 20})
    runs = load_runs(tmp_path)

    assert np.isfinite(sample_bits(runs, runs.table["path"].iloc[0])).tolist() == [True] * 10 + [False] * 10


def test_the_figure(runs: Runs) -> None:
    (axes,) = figures.sliding_bits_per_byte(runs, 5).axes

    assert axes.get_ylabel() == "bits per byte,\nlast 5 symbols"
    first, second = axes.get_lines()[:2]
    assert first.get_ydata()[[0, -1]].tolist() == pytest.approx([HALF_A_NAT] * 2)
    assert second.get_ydata()[[0, -1]].tolist() == pytest.approx([HALF_A_NAT, 2 * HALF_A_NAT])


def test_the_command_prints_and_writes_the_domains(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bits_per_byte.main([str(tmp_path), "--window", "5", "--learners", "B", "--out", str(tmp_path / "out")]) == 0

    printed = capsys.readouterr().out
    assert re.search(r"^\| fr +\| +0\.721 ± 0\.000 \|$", printed, re.MULTILINE)
    assert re.search(r"^\| mean of domains +\| +0\.541 ± 0\.000 \|$", printed, re.MULTILINE)
    assert "Online bits per byte in each domain: mean over seeds ± half width of a 95 % Student-t interval." in printed
    written = pd.read_csv(tmp_path / "out" / "bits_per_byte.csv")
    assert written.columns.tolist() == ["label", "seed", "domain", "bits_per_byte"]
    assert set(written["label"]) == {"B"}


def test_the_report_draws_them(runs: Runs, tmp_path: Path) -> None:
    names = {path.name for path in write_report(runs, tmp_path / "report")}

    assert {"bits_per_byte.png", "bits_per_byte.txt", "report.html"} <= names
    assert "Bits per byte over the stream" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
