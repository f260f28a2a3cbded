"""The HTML report: what it says, that nothing of a run's is executed, and how it works in a browser."""

import itertools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from continual_metaopt.analysis import comparison_table, load_runs
from continual_metaopt.analysis.figures.style import new_figure, save
from continual_metaopt.analysis.html.html_report import (
    Section,
    comparison_rows,
    configurations,
    html_page,
    learner_settings,
    write_html,
)
from continual_metaopt.analysis.report import by_stream_and_network, split_by_stream
from tests.analysis.synthetic import write_counts, write_run, write_study

CHROMIUM = Path("/usr/bin/chromium")
EVIL = "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">{{ [7] * 3 }}"


def page_of(folder: Path, **options: Any) -> str:
    return html_page(
        [
            Section(title, part, comparison_table(part), **options)
            for title, part in by_stream_and_network(load_runs(folder)).items()
        ]
    )


class Elements(HTMLParser):
    """Names and attributes of all elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def data_of(page: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_cells_sort_by_their_numbers_and_have_their_intervals(tmp_path):
    write_counts(tmp_path, {"AdamW": (3, 2)}, 4)
    write_counts(tmp_path, {"Meta": (1, 1)}, 4, config={"order": 1}, learned=True)
    runs = load_runs(tmp_path)
    table = comparison_rows(runs, comparison_table(runs))
    assert table.headings[:4] == ["learner", "seeds", "online accuracy (%)", "− best fixed"]
    (adamw, meta) = table.rows
    assert [cell.sort for cell in adamw.cells[:4]] == ["adamw", 2.0, 62.5, None]
    assert [cell.sort for cell in meta.cells[2:4]] == [25.0, -37.5]
    assert meta.cells[2].interval == (38.67, 38.67, 38.67, None)
    assert adamw.cells[2].interval[:3] == (50.0, 2.0, 98.0)


def test_of_single_seeds_a_cell_shows_the_least_and_the_largest(tmp_path):
    write_counts(tmp_path, {"A (told, by, b)": (10, 90, 11, 91)}, 100)
    runs = load_runs(tmp_path)
    ((learner, _, accuracy, *_),) = (row.cells for row in comparison_rows(runs, comparison_table(runs)).rows)
    assert (learner.text, learner.title) == ("A (told, by, b)", None)
    assert accuracy.text == "median 50.5 (10.0 … 91.0)"
    assert accuracy.title == "median 50.5 (10.0, 11.0, 90.0, 91.0)"


def test_a_tuned_learner_has_its_twins_colour_and_other_dashes(tmp_path):
    for order, label in enumerate(("A", "A (tuned)", "B")):
        write_run(tmp_path, label, 0, config={"order": order})
    page = page_of(tmp_path)
    (a, dash), (tuned, other), (b, _) = data_of(page)["sections"][0]["lines"]
    assert (a, tuned, b) == (0, 0, 1)
    assert dash != other
    swatches = [line["class"] for line in Elements(page).of("line") if line["x2"] == "25"]
    assert set(swatches) == {"colour-0", "colour-1"}


def test_versions_that_are_not_known_are_left_out(tmp_path):
    write_run(tmp_path, "A", 0, config={"versions": {"torch": "2.0", "source_revision": None}})
    page = page_of(tmp_path)
    assert "torch 2.0" in page
    assert "source_revision" not in page


def test_runs_that_differ_in_seeds_only_share_a_configuration(tmp_path):
    for seed in (0, 1, 2, 7):
        write_run(tmp_path, "A", seed, config={"learner": {"name": "fixed", "lr": 0.1}})
    write_run(tmp_path, "B", 0, config={"learner": {"name": "fixed", "lr": 0.2, "base": "sgd"}})
    runs = load_runs(tmp_path)
    first, second = configurations(runs, "s0")
    assert (first["seeds"], first["learner"], second["learner"]) == ("0–2, 7", 0, 1)
    assert ("learner.lr", "0.1") in first["settings"]
    assert ("stream_info.boundaries", "[0, 2]") in first["settings"]
    assert learner_settings(runs) == [("A", "fixed", "lr = 0.1"), ("B", "fixed", "lr = 0.2, base = sgd")]


def test_a_page_says_what_failed_and_why(tmp_path):
    write_run(tmp_path, "A", 0)
    write_run(tmp_path, "A", 1, [1], n_samples=4, state="diverged", status={"reason": "the loss is not finite"})
    write_run(tmp_path, "A", 2, [1, 0], n_samples=4, state="failed", status={"reason": "out of memory"})
    write_run(tmp_path, "A", 3, [1], n_samples=4, state="running", parts=1)
    page = page_of(tmp_path)
    for text in ("the loss is not finite", "out of memory", "1 of 4", "last sign of life: 2026-01-01T00:00:00Z"):
        assert text in page


@pytest.mark.parametrize(
    ("options", "titles"),
    [
        (
            {"stream_info": {"stationary": "repeat"}},
            ["class_split v1, stationary=none", "class_split v1, stationary=repeat"],
        ),
        ({"config": {"network": {"name": "cnn"}}}, ["class_split v1, cnn", "class_split v1, mlp"]),
    ],
    ids=["streams", "networks"],
)
def test_several_streams_or_networks_have_sections_and_folders(tmp_path, options, titles):
    write_run(tmp_path, "A", 0)
    write_run(tmp_path, "A", 0, folder="other", **options)
    assert sorted(re.findall(r'<h2 id="s\d-title">(.*?)</h2>', page_of(tmp_path))) == titles
    folders = {folder.name for _, folder in split_by_stream(load_runs(tmp_path), tmp_path)}
    assert folders == {re.sub(r"[^\w.]+", "-", title) for title in titles}


def test_nothing_that_runs_bring_along_becomes_part_of_the_page(tmp_path):
    write_run(
        tmp_path, EVIL, 0, [1, 0], n_samples=4, state="failed", learned=True, step_sizes={EVIL: [0.1, 0.2]},
        config={"study": EVIL, "learner": {"name": EVIL, "lr": EVIL}, "versions": {EVIL: EVIL}},
        status={"reason": EVIL, "engine": {"name": EVIL, "reason": EVIL}}, folder="run",
    )  # fmt: skip
    page = page_of(tmp_path)
    elements = Elements(page)
    assert elements.of("img") == []
    assert [script.get("type") for script in elements.of("script")] == ["application/json", None, None]
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert data_of(page)["sections"][0]["labels"] == [EVIL]
    assert "[7, 7, 7]" not in re.sub(r"<script.*", "", page, flags=re.DOTALL)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(study) -> str:
    return page_of(study)


def test_a_page_needs_nothing_else(page):
    elements = Elements(page)
    assert elements.of("link") == []
    outside = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action") and not (value or "").startswith(("#", "data:"))
    ]
    assert outside == []
    (policy,) = [meta["content"] for meta in elements.of("meta") if meta.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "unsafe" not in policy.partition("script-src")[2]
    assert page.startswith("<!DOCTYPE html>")
    assert "Permission is hereby granted" in page  # uPlot's licence


def test_headings_tables_and_places_are_in_order(page):
    elements = Elements(page)
    levels = [int(name[1]) for name, _ in elements.found if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(heading.get("scope") in ("col", "row") for heading in elements.of("th"))
    identifiers = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {link["href"][1:] for link in elements.of("a") if link["href"].startswith("#")} <= set(identifiers)


def test_figures_are_there_without_scripts_where_they_are_small(study, tmp_path):
    small, large = tmp_path / "online_accuracy.png", tmp_path / "ranks.png"
    small.write_bytes(b"small")
    large.write_bytes(b"x" * 300_001)
    only_drawn = tmp_path / "folded.png"
    only_drawn.write_bytes(b"teeth")
    images = {path.stem: path for path in (small, large, only_drawn)}
    page = page_of(study, images=images)
    sources = [image["src"] for image in Elements(page).of("img")]
    assert sources == ["data:image/png;base64,c21hbGw=", "data:image/png;base64,dGVldGg="]
    assert all(image["alt"] for image in Elements(page).of("img"))
    assert "sliding_accuracy.pdf beside this file" in page


# --------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    off = ("background-networking", "component-update", "sync", "gpu")
    arguments = ["--headless", "--no-sandbox", *(f"--disable-{name}" for name in off)]
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report about three learners, one run of which diverged."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    write_run(folder, EVIL, 0, [1] * 50, n_samples=200, n_experiences=4, state="diverged", folder="bad",
              status={"reason": EVIL}, config={"order": 3})  # fmt: skip
    runs = load_runs(folder)
    (picture,) = save(new_figure("page", 2), folder, "sawtooth", ["png"])
    section = Section(
        "class_split v1", runs, comparison_table(runs), images={"sawtooth": picture}, captions={"sawtooth": "Folded."}
    )
    return write_html([section], folder / "report.html")


class Page:
    """A page in a browser that notes errors and requests."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "request", lambda request: self.wrong.append(request.url) if request.url != path.as_uri() else None
        )
        self.page.goto(path.as_uri())
        self.page.locator("figure[data-view]").nth(2).wait_for()  # all three charts are made

    def rows(self, table: str) -> list[str]:
        return self.page.locator(f"{table} tbody tr:visible th .named").all_inner_texts()

    def wait_for_count(self, text: str) -> None:
        from playwright.sync_api import expect

        expect(self.page.locator("#shown")).to_have_text(text)

    def view(self) -> list[float]:
        return [float(edge) for edge in self.page.locator(".trajectories").get_attribute("data-view").split()]


@pytest.fixture
def opened(browser, report) -> Iterator[Page]:
    page = Page(browser, report, viewport={"width": 1280, "height": 900})
    yield page
    assert page.wrong == []  # neither errors nor requests
    assert page.page.title() == "synthetic – continual-metaopt"
    page.page.context.close()


COMPARISON = "[aria-label='Comparison of learners']"


@pytest.mark.slow
def test_it_renders(opened, tmp_path):
    assert opened.rows(COMPARISON) == ["Meta", "Scalar", "AdamW", EVIL]
    assert opened.page.locator(".trajectories .panel canvas").count() == 3  # two blocks, and one
    drawn = opened.page.evaluate(
        "[...document.querySelectorAll('canvas')].every(canvas => canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data.some(byte => byte))"
    )
    assert drawn
    opened.page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert (tmp_path / "report.png").stat().st_size > 50_000


@pytest.mark.slow
@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_sorting(opened, by):
    button = opened.page.locator(f"{COMPARISON} th button", has_text="online accuracy")
    heading = button.locator("xpath=..")

    def press() -> None:
        if by == "mouse":
            button.click()
        else:
            button.focus()
            opened.page.keyboard.press("Enter")

    assert heading.get_attribute("aria-sort") == "none"
    press()
    assert (heading.get_attribute("aria-sort"), opened.rows(COMPARISON)[0]) == ("descending", "Meta")
    press()
    assert (heading.get_attribute("aria-sort"), opened.rows(COMPARISON)[-1]) == ("ascending", "Meta")
    opened.page.locator(f"{COMPARISON} th button", has_text="best fixed").click()
    assert opened.rows(COMPARISON)[-1] == "AdamW"  # the best fixed one has no difference; what has no value is last
    assert heading.get_attribute("aria-sort") == "none"


@pytest.mark.slow
def test_filtering(opened):
    page = opened.page
    page.get_by_label("Filter").fill("meta")
    opened.wait_for_count("1 of 4 learners, 2 of 7 runs")
    assert opened.rows(COMPARISON) == ["Meta"]
    assert page.locator(".trajectories .group").count() == 1
    page.get_by_label("Filter").fill("diverged")
    opened.wait_for_count("0 of 4 learners, 1 of 7 runs")
    assert opened.rows("[aria-label='All runs']") == [EVIL]
    assert "No learner is chosen" in page.locator(".trajectories .plots").inner_text()
    page.get_by_label("Filter").fill("")
    opened.wait_for_count("")
    assert len(opened.rows("[aria-label='All runs']")) == 7
    assert page.locator(".trajectories .group").count() == 2


@pytest.mark.slow
def test_hovering_shows_values_and_dragging_zooms(opened):
    page = opened.page
    figure = page.locator(".trajectories")
    figure.scroll_into_view_if_needed()
    box = figure.locator(".u-over").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    assert figure.locator(".readout").inner_text() == "sample 100, experience 3 of 4"
    values = [value for value in figure.locator(".panel-title .value").all_inner_texts() if value]
    assert values == ["0.01 (0.01 to 0.01)", "0.03 (0.03 to 0.03)", "0.01 (0.01 to 0.01)"]  # a tooth's top
    page.mouse.move(box["x"] + box["width"] / 4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, middle, steps=4)
    page.mouse.up()
    assert opened.view() == pytest.approx([50, 100], abs=2)
    page.mouse.dblclick(box["x"] + 5, middle)
    assert opened.view() == [0, 200]
    figure.get_by_label("Show one experience").select_option(label="experience 4")
    assert opened.view() == [150, 200]
    figure.get_by_role("button", name="Show the whole stream").click()
    figure.get_by_role("checkbox", name="Scalar").uncheck()
    assert figure.locator(".group").count() == 1


@pytest.mark.slow
def test_the_keyboard_alone_is_enough(opened):
    page = opened.page
    page.locator(".trajectories .plots").focus()
    for key, view in {"+": [50, 150], "Shift+ArrowRight": [75, 175], "-": [0, 200], "Escape": [0, 200]}.items():
        page.keyboard.press(key)
        assert opened.view() == view
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator(".trajectories .readout").inner_text() == "sample 10, experience 1 of 4"
    assert (
        page.locator(".trajectories [aria-live]").inner_text().startswith("sample 10, experience 1 of 4: Meta, conv ")
    )
    page.keyboard.press("Tab")
    seen = set()
    page.locator("#filter").focus()
    for _ in range(80):  # everything that can be used comes by, and the way leads on
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.closest('th, figure, summary, .command')?.tagName"))
    assert {"TH", "FIGURE", "SUMMARY", "DIV"} <= seen


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser, report, tmp_path, scheme):
    opened = Page(browser, report, viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    smallest = opened.page.evaluate(
        "Math.min(...[...document.querySelectorAll('td, th, p, dd, label, button')].filter(e => e.checkVisibility())"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 12
    picture = opened.page.locator(".picture[tabindex='0']")
    assert picture.locator("img").evaluate("image => image.width") == 800  # letters of 10 to 13 pixels, as on a desktop
    picture.evaluate("region => region.scrollLeft = 1000")
    assert picture.evaluate("region => region.scrollLeft") > 400
    opened.page.screenshot(path=tmp_path / f"phone-{scheme}.png", full_page=True)
    assert opened.wrong == []


@pytest.mark.slow
def test_a_link_to_a_configuration_opens_it(opened):
    opened.page.locator("[aria-label='All runs'] a").first.click()
    assert opened.page.locator("details.configuration[open]").count() == 1
    assert "continual-metaopt run" in opened.page.locator("details.configuration[open] pre").inner_text()
