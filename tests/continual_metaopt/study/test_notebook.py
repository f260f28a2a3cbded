"""The progress bar in a notebook."""

import queue
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from continual_metaopt.study import notebook
from continual_metaopt.study.notebook import NotebookBar, notebook_bar
from continual_metaopt.study.progress import ProgressDisplay


class Handle:
    def __init__(self, drawn: list[str]) -> None:
        self.drawn = drawn

    def update(self, shown: str) -> None:
        self.drawn.append(shown)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook has been given to show, one after the other."""
    shown: list[str] = []

    def display(html: str, display_id: bool) -> Handle:
        shown.append(html)
        return Handle(shown)

    of_ipython, of_display = ModuleType("IPython"), ModuleType("IPython.display")
    of_ipython.get_ipython = lambda: SimpleNamespace(kernel=None)  # type: ignore[attr-defined]
    of_display.HTML, of_display.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", of_ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", of_display)
    return shown


def test_only_a_kernel_has_one(drawn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(notebook_bar(), NotebookBar)
    for shell in (None, SimpleNamespace()):  # a script that has imported IPython, and IPython in a terminal
        monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda shell=shell: shell)
        assert notebook_bar() is None
    monkeypatch.delitem(sys.modules, "IPython")
    assert notebook_bar() is None


def test_it_draws_twice_a_second_and_at_the_end(drawn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(notebook.time, "monotonic", lambda: now)
    bar = NotebookBar()
    for now in (10.0, 10.2, 10.6):
        bar.draw(now, 20, "a < b")
    bar.draw(20, 20, "done", last=True)
    assert [html.partition(" max")[0] for html in drawn] == [
        '<progress value="10"',
        '<progress value="10.6"',
        '<progress value="20"',
    ]
    assert drawn[0].endswith("</progress> a &lt; b")


def test_a_study_shows_it(drawn: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    messages: Any = queue.SimpleQueue()
    display = ProgressDisplay(2, messages, True, n_samples=200)
    display.start()
    display.stage("reported runs")
    messages.put(("one", 50, 100))
    display.update(n_ended=1, n_samples=100)
    display.stop()
    assert '<progress value="150" max="200"' in drawn[0]
    assert "reported runs: 1 of 2 runs, " in drawn[0]
    assert '<progress value="1" max="2"' in drawn[-1]
    assert drawn[-1].endswith("1 of 2 runs, 0 s")
    assert capsys.readouterr() == ("", "")
    ProgressDisplay(1, messages, False).stop()
    assert len(drawn) == 2
