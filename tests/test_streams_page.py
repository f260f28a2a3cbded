"""The page about streams is what the streams say about themselves; ``python -m tests.test_streams_page`` renews it."""

import re
from inspect import signature
from pathlib import Path

import pytest

from continual_metaopt.commands import main as cli
from continual_metaopt.streams import STREAMS, make_stream

PAGE = Path(__file__).parents[1] / "docs" / "streams.md"
TABLE = re.compile(r"(?<=<!-- streams: begin -->\n).*?(?=<!-- streams: end -->)", flags=re.DOTALL)
NAMES = STREAMS.own


def table() -> str:
    rows = ["| stream | source | what changes | when | length | head |", "|---|---|---|---|---|---|"]
    for name in NAMES:
        about = STREAMS[name].about
        cells = (about.source, about.changes, about.when, about.length, about.head)
        rows.append("| " + " | ".join([f"`{name}`", *(cell.replace("|", r"\|") for cell in cells)]) + " |")
    return "\n".join(rows) + "\n"


def test_the_table_is_what_streams_say_about_themselves() -> None:
    (found,) = TABLE.findall(PAGE.read_text(encoding="utf-8"))
    assert found == table(), "renew the table with: python -m tests.test_streams_page"


def test_the_options_that_the_page_names_are_there() -> None:
    _, _, section = PAGE.read_text(encoding="utf-8").partition("| stream | options |\n|---|---|\n")
    rows = [row.strip("| ").split(" | ") for row in section.partition("\n\n")[0].splitlines()]
    of_row = [(re.findall(r"`(\w+)`", names), re.findall(r"`(\w+)`", options)) for names, options in rows]
    assert [name for names, _ in of_row for name in names] == NAMES
    for names, options in of_row:
        assert set(options) <= {option for name in names for option in signature(STREAMS[name]).parameters}


@pytest.fixture
def _streams_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STREAMS, "_entries", dict(STREAMS._entries))


@pytest.mark.usefixtures("_streams_as_they_were")
def test_a_stream_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(text.splitlines()) <= 20
    exec(text, {})
    benchmark = make_stream("in_focus", source="digits", seed=1)
    assert len(benchmark.train_stream) == 10
    for k, experience in enumerate(benchmark.train_stream):
        labels = list(experience.dataset.targets)
        assert len(labels) == 100
        assert labels.count(k) == 50
    frozen = make_stream("in_focus", stationary="frozen", frozen_after=2, seed=1)
    assert list(frozen.train_stream[9].dataset.targets).count(2) == 50
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["preview", "in_focus", "--help"])
    options = capsys.readouterr().out
    assert "--transition-width" in options
    assert "--samples-per-experience" in options


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), text), encoding="utf-8")
