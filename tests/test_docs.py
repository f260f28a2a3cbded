"""Pages link to what exists, and the site leaves out what is no page."""

import importlib
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import torch

from continual_metaopt import blocks
from continual_metaopt.networks import NETWORKS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub and the site call the sections of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        path, _, section = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists() or (section and section not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_a_dead_link_and_a_dead_section_would_be_found(tmp_path: Path) -> None:
    assert LINK.findall("[a](b.md#c), [d](https://e.f), ![g](h.png)") == ["b.md#c", "h.png"]
    page = tmp_path / "page.md"
    page.write_text("# The paper's *first* section\n\n```bash\n# no heading\n```\n")
    assert anchors(page) == {"the-papers-first-section"}


@pytest.fixture(scope="module")
def configuration() -> dict[str, object]:
    pytest.importorskip("sphinx")
    return runpy.run_path(str(DOCS / "conf.py"))


@pytest.mark.parametrize(
    ("folder", "link", "on_the_site"),
    [
        (DOCS, "[streams](streams.md#writing-one)", "[streams](streams.md#writing-one)"),
        (DOCS, "![a picture](images/tracking.png)", "![a picture](images/tracking.png)"),
        (DOCS, "[speed](../README.md#extending)", "[speed](index.md#extending)"),
        (DOCS, "[digits.md](records/variants/digits.md)", "`docs/records/variants/digits.md`"),
        (ROOT, "[docs/streams.md](docs/streams.md)", "[](docs/streams.md)"),
        (ROOT, "[own stream](examples/own_stream.py)", "own stream (`examples/own_stream.py`)"),
        (ROOT, "[examples/](examples)", "`examples`"),
    ],
)
def test_the_site_names_files_that_it_does_not_hold(
    configuration: dict, folder: Path, link: str, on_the_site: str
) -> None:
    assert configuration["name_files_that_are_no_pages"](link, folder) == on_the_site


@pytest.mark.parametrize("package", ["continual_metaopt", "streams", "analysis"])
def test_the_reference_has_all_public_names(package: str) -> None:
    described = re.findall(rf"\b{package}\.(\w+)\b(?!\.)", (DOCS / "api.md").read_text(encoding="utf-8"))
    assert sorted(set(described)) == sorted(importlib.import_module(package).__all__)


def test_the_page_about_figures_names_every_script() -> None:
    scripts = {path.stem for path in (ROOT / "analysis" / "scripts").glob("[!_]*.py")}
    assert scripts - set(re.findall(r"`(\w+)`", (DOCS / "figures.md").read_text(encoding="utf-8"))) == set()


def test_the_index_names_every_page_and_no_records(configuration: dict) -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    others = configuration["pages_that_are_not_in"](index)
    named = {line for line in index.splitlines() if re.fullmatch(r"[\w-]+", line)}
    assert sorted(named | set(others) | {"index"}) == sorted(path.stem for path in DOCS.glob("*.md"))
    assert configuration["exclude_patterns"] == ["records"]


def test_the_network_of_the_page_about_extending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NETWORKS, "_entries", dict(NETWORKS._entries))
    examples = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (text,) = [example for example in examples if "@register_network" in example]
    exec(text, {})
    network = NETWORKS["two_layers"](3, (1, 4, 4), width=5)
    assert network(torch.zeros(2, 1, 4, 4)).shape == (2, 3)
    assert len(blocks(network, "blockwise")) == 2


def test_the_house_on_the_page_about_extending_is_the_one_that_is_checked() -> None:
    text = (DOCS / "extending.md").read_text(encoding="utf-8")
    floors: list[list[str]] = []
    for floor, room in re.findall(r"^\| (\d?) ?\| `(\w+)` \|", text, flags=re.MULTILINE):
        if floor:
            floors.append([])
        floors[-1].append(room)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(one for one in project["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    assert floors == [floor.split(" | ") for floor in contract["layers"]]
    named = re.findall(r"`(\w+/[\w/]+\.py)`", text)
    assert len(named) > 10
    assert [path for path in named if not (ROOT / "continual_metaopt" / path).is_file()] == []
