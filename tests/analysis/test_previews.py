"""Pictures of streams, drawn from made-up arrays."""

import numpy as np
import pytest

from continual_metaopt.analysis.figures import save
from continual_metaopt.analysis.previews import (
    SheetRow,
    Zoom,
    contact_sheet,
    image_timeline,
    regression_timeline,
    regression_zooms,
)


def texts(figure):
    """All texts of a figure that are shown."""
    from matplotlib.text import Text

    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def sheet(n_rows=2, n_columns=3, colour=False):
    shape = (n_columns, 4, 6, 3) if colour else (n_columns, 4, 6)
    rows = [
        SheetRow(f"row {k}", np.full(shape, k / n_rows), [f"{k}.{i}" for i in range(n_columns)]) for k in range(n_rows)
    ]
    return contact_sheet(rows, "the title", "a note")


def timeline(n_classes=3, labels=None, lines=None, boundaries=(20,)):
    share = np.full((n_classes, 4), 1 / n_classes)
    return image_timeline(
        np.array([0, 10, 20, 30, 40]), range(n_classes), share, labels, lines or {}, boundaries, "title"
    )


@pytest.mark.parametrize("colour", [False, True])
def test_a_contact_sheet_shows_every_image_with_its_caption(colour):
    figure = sheet(colour=colour)
    (axes,) = figure.axes
    assert len(axes.images) == 6
    assert {"the title", "a note", "row 0", "row 1", "0.0", "1.2"} <= set(texts(figure))
    # images keep their shape and lie within the page
    width, height = figure.get_size_inches()
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        assert (bottom - top) / (right - left) == pytest.approx(4 / 6)
        assert 0 < left < right < width
        assert 0 < top < bottom < height


def test_a_timeline_has_a_panel_for_each_thing():
    labels = np.array([[0, 0, -1, -1], [1, 1, 0, 0], [-1, -1, 1, 1]])
    lines = {"plain": np.arange(4.0), "band": np.array([[0, 1, 1, 2], [1, 2, 2, 3], [2, 3, 3, 4]])}
    figure = timeline(labels=labels, lines=lines)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert [axes.get_ylabel() for axes in panels] == ["class", "class", "plain", "band"]
    assert panels[1].collections[-1].get_array().mask.sum() == 4, "absent classes have no label"
    assert all(axes.get_xlim() == (0, 40) for axes in panels)
    assert {"title", "label", "33%", "sample; vertical lines: starts of experiences"} <= set(texts(figure))


def test_many_classes_are_named_in_round_steps_and_many_experiences_are_not_marked():
    figure = timeline(n_classes=100, boundaries=range(1, 70))
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == [str(k) for k in range(0, 100, 10)]
    assert "sample; experiences are not marked" in texts(figure)


def test_regressions():
    random = np.random.default_rng(0)
    zooms = [
        Zoom(start, random.normal(size=(30, 5)), random.normal(size=(30, 1)), {"signs": np.ones((30, 2))}, [start + 5])
        for start in (0, 500)
    ]
    figure = regression_zooms(zooms, "title")
    assert {"title", "signs", "5 inputs", "target", "sample; vertical lines: changes"} <= set(texts(figure))
    course = {"signs": np.ones((10, 2)), "level": np.arange(10.0)}
    figure = regression_timeline(
        np.arange(0, 101, 10), course, np.array([0, 50, 100]), [np.ones((5, 1))] * 2, [50], "title"
    )
    assert {"signs", "level", "target: median\nand middle 90 %"} <= set(texts(figure))
    assert "number" not in texts(figure)


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_files_of_each_kind_are_the_same_every_time(suffix, start, tmp_path):
    (first,) = save(sheet(), tmp_path / "a", "sheet", [suffix])
    (second,) = save(sheet(), tmp_path / "b", "sheet", [suffix])
    assert first.name == f"sheet.{suffix}"
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == second.read_bytes()
