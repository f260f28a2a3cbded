"""Numbers on the pages are those of the committed records."""

import json
import re
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from continual_metaopt.analysis import load_runs
from continual_metaopt.analysis.field.ranking import columns_of, ranking
from continual_metaopt.analysis.paper import reproduction
from continual_metaopt.analysis.paper.published import (
    claims_markdown,
    published_claims,
    published_table,
    table_markdown,
)
from continual_metaopt.analysis.run_directory import ADDED
from continual_metaopt.analysis.scripts.bits_per_byte import main as bits_per_byte
from continual_metaopt.analysis.scripts.comparison_table import main as comparison_table
from continual_metaopt.analysis.scripts.initial_step_size import main as initial_step_size
from continual_metaopt.analysis.scripts.sensitivity import spread_over_last
from continual_metaopt.analysis.tables import format_columns
from continual_metaopt.runs.config import RunConfig
from tests.studies import load_study

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RECORDS = DOCS / "records"
SAMPLE_RUNS = ROOT / "analysis" / "sample_runs"


def page(name: str) -> str:
    """The text of a page in one line, with a plain sign for minus."""
    return " ".join((DOCS / name).read_text(encoding="utf-8").replace("−", "-").split())


def numbers(name: str, pattern: str) -> list[float]:
    """The numbers that a pattern with groups finds, in the one place of a page where it fits."""
    (found,) = re.findall(pattern, page(name))
    return [float(number) for number in ([found] if isinstance(found, str) else found)]


def cells(table: Path) -> dict[str, list[str]]:
    """First cell → other cells of a Markdown table, and of lines such as "name: value ± interval"."""
    text = table.read_text(encoding="utf-8").replace("−", "-")
    if table.suffix == ".txt":
        return {name: [value] for name, value in re.findall(r"^(.+): (\d[^:]*)$", text, flags=re.MULTILINE)}
    return {name: others for name, *others in table_rows(text)}


def table_rows(text: str) -> list[list[str]]:
    """The cells of all Markdown tables, without the lines below headings."""
    rows = [
        line.strip().removeprefix("|").removesuffix("|").split("|") for line in text.splitlines() if line[:1] == "|"
    ]
    return [[cell.strip() for cell in row] for row in rows if set("".join(row)) - set("-: ")]


def value(cell: str) -> float:
    return float(cell.partition("±")[0])


PAGES = [*sorted(path.name for path in DOCS.glob("*.md")), "../README.md"]


@pytest.mark.parametrize("name", PAGES)
def test_the_papers_discount_is_1_in_its_stationary_experiments_only(name: str) -> None:
    sentences = re.split(r"(?<=[.;|]) ", page(name))
    wrong = [text for text in sentences if re.search(r"γ = 1(?![.\d])", text) and re.search(r"paper\b", text)]
    assert [text for text in wrong if "stationary" not in text] == []


@pytest.fixture(scope="module")
def spread() -> pd.DataFrame:
    return spread_over_last(pd.read_csv(RECORDS / "robustness" / "sensitivity.csv"))


def test_the_spread_over_the_initial_step_size(spread: pd.DataFrame) -> None:
    of_adamw = spread[spread["label"] == "AdamW, Adam, blockwise"].set_index(["gamma", "meta_lr"])
    even_less, recommended = of_adamw.loc[(0.9995, 1e-3)], of_adamw.loc[(0.999, 1e-3)]

    assert numbers("robustness.md", r"gives ([\d.]+) to ([\d.]+) from any α₀ blockwise") == [
        round(recommended["worst"], 1),
        round(recommended["best"], 1),
    ]
    found = r"spreads over ([\d.]+) points blockwise \(([\d.]+) to ([\d.]+)\), where this one spreads over ([\d.]+)"
    assert numbers("robustness.md", found) == [
        round(number, 1) for number in [*even_less[["spread", "worst", "best"]], recommended["spread"]]
    ]


def test_how_often_the_largest_initial_step_size_is_best(spread: pd.DataFrame) -> None:
    of_pair = spread.groupby(spread["label"].str.partition(",")[0])["largest_is_best"]
    n_best, n_rows = of_pair.sum(), of_pair.size()
    found = r"the best, or level with the best, in (\d+) \((\d+) %\): in (\d+) of (\d+) for RMSProp, (\d+) of (\d+) for"
    found += r" AdamW, (\d+) of (\d+) for Lion"
    expected = [n_best.sum(), round(100 * n_best.sum() / n_rows.sum())]
    expected += [counts[pair] for pair in ("RMSProp", "AdamW", "Lion") for counts in (n_best, n_rows)]

    assert numbers("robustness.md", found) == expected
    assert numbers("robustness.md", r"Of the (\d+) rows of the map") == [n_rows.sum()]
    found = r"or level with it, in (\d+) of the map's (\d+) rows \((\d+) %\)"
    assert numbers("settings.md", found) == [n_best.sum(), n_rows.sum(), expected[1]]


@pytest.mark.parametrize(
    ("pattern", "table", "rows"),
    [
        (
            r"([\d.]+) against ([\d.]+) % without it",
            "horizons/class_split_10.md",
            ("Dutch, γ = 0.999", "γ = 0.999"),
        ),
        (
            r"and ([\d.]+) against ([\d.]+) % \(\[guards.md\]",
            "variants/guards.md",
            ("γ = 0.999, Dutch trace", "γ = 0.999, no guard"),
        ),
        (
            r"error was ([\d.]+) against ([\d.]+) with SGD",
            "variants/tracking_last_1000.txt",
            ("SGD, weight, Dutch", "SGD, weight, Hessian-free"),
        ),
        (
            r"and ([\d.]+) against ([\d.]+) with Adam at η = 0.03",
            "variants/tracking_last_1000.txt",
            ("Adam, weight, Dutch, η = 0.03", "Adam, weight, Hessian-free, η = 0.03"),
        ),
    ],
)
def test_where_dutch_traces_do_not_help(pattern: str, table: str, rows: tuple[str, str]) -> None:
    """The page says so with these numbers, and in each the Dutch trace is the worse one."""
    content = cells(RECORDS / table)
    score = 0 if table.endswith(".txt") else 1
    digits = 2 if table.endswith(".txt") else 1
    with_dutch, without = (value(content[row][score]) for row in rows)

    assert numbers("dutch-traces.md", pattern) == [round(with_dutch, digits), round(without, digits)]
    assert (with_dutch > without) == table.endswith(".txt")  # errors and accuracies


def test_the_default_on_images_that_it_was_not_developed_on() -> None:
    found = (
        r"by ([+-][\d.]+) ± ([\d.]+) points with 10 classes in each experience, by ([+-][\d.]+) ± ([\d.]+) with 20, and"
    )
    found += r" by ([+-][\d.]+) ± ([\d.]+) where nothing changes"
    expected: list[float] = []
    for study in ("class_split_10", "class_split_20", "shuffled"):
        difference, half_width = cells(RECORDS / "horizons" / f"{study}.md")["Dutch, auto"][2].split(" ± ")
        expected += [round(float(difference), 1), round(float(half_width), 1)]

    assert numbers("results.md", found) == expected


def test_gains_over_the_best_single_discount_are_differences_of_means() -> None:
    found = r"([+-][\d.]+) on 10 classes, ([+-][\d.]+) on 20, ([+-][\d.]+) where nothing changes, ([+-][\d.]+) and"
    found += r" ([+-][\d.]+) on permuted digits"
    gains = []
    for study, start in (
        ("class_split_10", ""),
        ("class_split_20", ""),
        ("shuffled", ""),
        ("permuted_digits", ", α₀ = 1e-3"),
        ("permuted_digits", ", α₀ = 1e-5"),
    ):
        scores = {name: row[1] for name, row in cells(RECORDS / "horizons" / f"{study}.md").items()}
        single = [value(score) for name, score in scores.items() if re.fullmatch(rf"γ = [\d.]+{start}", name)]
        gains.append(round(value(scores[f"Dutch, auto{start}"]) - max(single), 1))

    assert numbers("robustness.md", found) == gains
    found = r"paired by seed, they are ([+-][\d.]+) ± ([\d.]+) and ([+-][\d.]+) ± ([\d.]+)"
    paired: list[float] = []
    for start in ("1e-3", "1e-5"):
        rows = pd.read_csv(RECORDS / "horizons" / f"permuted_digits_from_{start}.csv").set_index("learner")
        paired += [
            round(number, 1) for number in rows.loc[f"Dutch, auto, α₀ = {start}"][["difference", "difference_ci"]]
        ]
    assert numbers("robustness.md", found) == paired


def test_what_learning_step_sizes_costs() -> None:
    table = pd.read_csv(RECORDS / "overhead.csv").set_index(["engine", "learner"])["time_ratio"]
    default, single = (
        {engine: round(100 * (table[engine, name] - 1)) for engine in ("compiled", "fused", "torch")}
        for name in ("adamw, blockwise, no discount", "adamw, blockwise")
    )
    both = [
        round(100 * (table[engine, f"adamw, {kind}"] - 1))
        for engine in ("compiled", "fused")
        for kind in ("scalar", "blockwise")
    ]

    found = r"default adds (\d+) % to the time of AdamW's step in compiled code, (\d+) % in fused code and (\d+) % with"
    assert numbers("optimizer.md", found) == [*default.values()]
    assert numbers("optimizer.md", r"fixed γ adds (\d+) to (\d+) % in compiled and fused") == [min(both), max(both)]
    assert numbers("engines.md", r"fixed γ adds (\d+) % to the time of a compiled step") == [single["compiled"]]
    found = (
        r"trace of the ready-made learner add (\d+) %; with the fused engine (\d+) %, with PyTorch's operations (\d+) %"
    )
    assert numbers("engines.md", found) == [*default.values()]


def test_the_sample_runs_are_those_of_the_packaged_study() -> None:
    """With today's defaults: whoever changes one makes the runs anew, and the table of the page with them."""
    study = load_study("quick")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(SAMPLE_RUNS.glob("*/config.json"))]
    expected = {}
    for learner in study.learners:
        (chosen,) = {record["learner"]["lr"] for record in records if record["entry"] == learner.label}
        known = [one for one in learner.candidates if one.setting["lr"] == chosen] or [learner.untuned]
        for seed in study.config.seeds:
            config = learner.run(seed, known[0])
            content = config.model_dump(mode="json")
            content["learner"] = {name: value for name, value in content["learner"].items() if name not in ADDED}
            expected[config.run_id] = content

    recorded = {record["run_id"]: {name: record[name] for name in RunConfig.model_fields} for record in records}
    assert recorded == expected


def test_the_table_of_the_main_job_is_that_of_the_sample_runs(tmp_path: Path) -> None:
    assert comparison_table([str(SAMPLE_RUNS), "--out", str(tmp_path)]) == 0

    columns = ["online accuracy (%)", "− best fixed", "held-out at each end (%)"]
    check_table(tmp_path / "comparison.md", columns, DOCS / "studies.md", columns)


def check_table(made: Path, columns: list[str], page: Path, on_page: list[str]) -> None:
    """A page's table, found by the heads of its columns, has the cells of the columns of one that was made."""
    heading, *rows = table_rows(made.read_text(encoding="utf-8"))
    places = [heading.index(name) for name in columns]
    shown = table_rows(page.read_text(encoding="utf-8"))
    first = shown.index(["learner", *on_page]) + 1
    assert [row[1:] for row in shown[first : first + len(rows)]] == [[row[place] for place in places] for row in rows]


def unpacked(archive: str, folder: Path) -> Path:
    with tarfile.open(RECORDS / f"{archive}.tar.xz") as file:
        file.extractall(folder, filter="data")
    return folder / archive


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


@pytest.mark.slow
def test_the_table_of_cifar_100_in_the_readme_is_that_of_the_archived_runs(tmp_path: Path) -> None:
    assert comparison_table([str(unpacked("class_split", tmp_path)), "--out", str(tmp_path)]) == 0

    columns = ["online accuracy (%)", "− best fixed", "held-out at each end (%)", "loss"]
    in_readme = ["online accuracy (%)", "− AdamW tuned", "test accuracy (%)", "loss"]
    check_table(tmp_path / "comparison.md", columns, ROOT / "README.md", in_readme)


@pytest.mark.slow
def test_the_published_experiment_on_its_page_is_that_of_the_archived_runs(tmp_path: Path) -> None:
    runs = load_runs(unpacked("published", tmp_path), purpose=None)

    table, claims = published_table(runs), published_claims(runs, shifts=9_999)

    lines = [*table_lines(table_markdown(table)), *table_lines(claims_markdown(claims))]
    assert len(lines) > 20
    assert set(lines) <= set(table_lines((DOCS / "reproduction.md").read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("table", ["table2", "table3"])
def test_the_reviewers_tables_on_their_page_are_those_of_the_archived_runs(
    table: reproduction.Table, tmp_path: Path
) -> None:
    runs = load_runs(unpacked(table, tmp_path))

    lines = table_lines(reproduction.comparison_markdown(reproduction.paper_comparison(runs, table)))
    lines += table_lines(reproduction.claims_markdown(reproduction.paper_claims(runs, table)))
    assert len(lines) == 8 + 19
    assert set(lines) <= set(table_lines((DOCS / "reproduction.md").read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_ranking_is_that_of_the_archived_runs(tmp_path: Path) -> None:
    folder = unpacked("field", tmp_path)
    runs, selection = (load_runs(folder, purpose=purpose) for purpose in ("report", "selection"))
    costs = pd.read_csv(RECORDS / "field" / "cost.csv")

    table = ranking(runs, selection=selection, costs=costs, baseline="AdamW by TPE (tuned)")

    rows = table_lines(format_columns(columns_of(table), "markdown"))
    assert len(rows) == 46
    assert set(rows) <= set(table_lines((DOCS / "results.md").read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_initial_step_sizes_are_those_of_the_archived_runs(tmp_path: Path) -> None:
    folder = unpacked("initial_step_size", tmp_path)

    assert initial_step_size([str(folder), "--out", str(tmp_path), "--format", "png"]) == 0

    rows = table_lines((tmp_path / "initial_step_size.md").read_text(encoding="utf-8"))
    assert len(rows) == 24
    assert set(rows) <= set(table_lines((DOCS / "results.md").read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_bits_per_byte_of_text_are_those_of_the_archived_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bits_per_byte([str(unpacked("text", tmp_path)), "--out", str(tmp_path), "--format", "png"]) == 0

    rows = table_lines(capsys.readouterr().out)
    assert len(rows) == 10
    assert set(rows) <= set(table_lines((DOCS / "text.md").read_text(encoding="utf-8")))
