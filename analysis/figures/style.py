"""The style that all figures have in common: sizes, colours, axes, legends, files."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

import numpy as np

from continual_metaopt.analysis.files import write_whole
from continual_metaopt.analysis.runs import TUNED, Runs
from continual_metaopt.analysis.statistics import common_boundaries
from continual_metaopt.analysis.tables import seeds_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


P = ParamSpec("P")
Width = Literal["column", "text", "page"]
Format = Literal["png", "pdf", "svg"]

# A column of two, a page of one column, and both columns: 84, 140 and 173 mm. In inches:
WIDTHS: dict[str, float] = {"column": 3.3, "text": 5.5, "page": 6.8}
# Rows of names take at most so many inches, so that a figure with its legend fits on a page; so many are legible there.
ROWS_HEIGHT, MAX_ROWS = 7.6, 76
# Okabe and Ito's colours; grey instead of their yellow, which is too faint for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
LINE_STYLES: tuple[Any, ...] = (  # one fewer than colours, so that both together come again late
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1)),
    (0, (5, 1.2, 1.2, 1.2)),
    (0, (2.5, 1)),
    (0, (5, 1, 1.2, 1, 1.2, 1)),
    (0, (9, 2)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "pdf.fonttype": 42,
    "svg.hashsalt": "the same names in every file",
    "text.parse_math": False,  # labels are people's: a dollar in them is a dollar
}
_LEFT_ALONE = ("backend",)  # of Matplotlib's settings: it says where windows open, and cannot be put back
_POWERS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_WITHOUT_DATE: dict[Format, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


# Arguments that several figures have. Their docstrings need not describe them.
_ARGUMENTS = {
    "runs": "runs of one stream.",
    "labels": "the learners to draw; all if None. Colours do not depend on the choice among up to eight.",
    "blocks": "the blocks to draw; if None, all of them, or 12 from first to last where a learner has more.",
    "steps": "the first and the last step to draw; the whole stream if None.",
    "diverged": '`"chance"` counts what diverged runs did not see as chance; `"exclude"` leaves them out.',
    **dict.fromkeys(("bins", "skip", "shifts", "seed"), "as of `analysis.sawtooth.sawtooth`."),
    "title": "of the figure.",
    "width": '`"column"`, `"text"` or `"page"`.',
}
_UNFIT = (
    "the runs come from several streams, none has recorded what is drawn, or an argument names something that they "
    "do not have."
)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this module's style, whatever the user's settings, and describe what several figures have in common."""

    @functools.wraps(draw)
    def draw_in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    draw_in_style.__doc__ = _whole_docstring(draw)
    return draw_in_style


def _whole_docstring(draw: Callable[..., Figure]) -> str:
    """The docstring of a figure, with what figures have in common where it does not describe it."""
    head, *parts = re.split(r"\n\n(?=Args:|Returns:|Raises:)", inspect.getdoc(draw) or "")
    parameters = list(inspect.signature(draw).parameters)
    sections = {"Args": "Args:", "Returns": "Returns:\n    The figure."} | {part.split(":")[0]: part for part in parts}
    if "runs" in parameters:
        sections.setdefault("Raises", f"Raises:\n    ValueError: {_UNFIT}")
    own = re.findall(r"^    (\w+): ", sections["Args"], re.MULTILINE)
    shared = [name for name in parameters if name in _ARGUMENTS and name not in own]
    sections["Args"] = "\n".join([sections["Args"], *(f"    {name}: {_ARGUMENTS[name]}" for name in shared)])
    return "\n\n".join([head, *sections.values()])


def _style() -> AbstractContextManager[None]:
    """Matplotlib's own settings with this module's, in place of the user's."""
    from matplotlib import rc_context, rcParamsDefault

    return rc_context({name: value for name, value in rcParamsDefault.items() if name not in _LEFT_ALONE} | _STYLE)


def save(
    figure: Figure, out_dir: str | os.PathLike[str], name: str, formats: Sequence[Format] = ("png", "pdf")
) -> list[Path]:
    """Write a figure, once in each format.

    Args:
        figure: the figure.
        out_dir: the folder, made if it does not exist.
        name: file name without suffix.
        formats: `"png"` (200 dots per inch), `"pdf"` or `"svg"`.

    Raises:
        OSError: a file cannot be written.
    """
    paths = []
    with _style():
        for suffix in formats:

            def write(path: Path, suffix: Format = suffix) -> None:
                figure.savefig(path, format=suffix, dpi=200, metadata=_WITHOUT_DATE[suffix])

            paths.append(write_whole(Path(out_dir) / f"{name}.{suffix}", write))
    return paths


def draw_and_save(draw: Callable[[], Figure], out_dir: str | os.PathLike[str], name: str) -> list[Path]:
    """Draw a figure and write it; one that cannot be drawn is a warning, so that what comes after it is written."""
    try:
        return save(draw(), out_dir, name)
    except Exception as error:  # whatever Matplotlib, its fonts and its settings make of it
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        warnings.warn(f"the figure '{Path(out_dir) / name}' cannot be drawn and is left out ({reason})", stacklevel=2)
        return []


def caption_of(draw: Callable[..., Figure], runs: Runs | None = None) -> str:
    """The caption of a figure: what its lines and bands are, and of how many seeds.

    Args:
        draw: a function of `analysis.figures` that draws, whose docstring has a paragraph that begins with "Caption:".
        runs: what was drawn; None to say nothing of seeds.

    Raises:
        ValueError: the function has no caption.
    """
    for paragraph in (inspect.getdoc(draw) or "").split("\n\n"):
        if paragraph.startswith("Caption:"):
            text = " ".join(paragraph.removeprefix("Caption:").split())
            return text if runs is None else f"{text} {seeds_of(runs)}."
    raise ValueError(f"{draw.__name__} has no caption: its docstring needs a paragraph that begins with “Caption:”")


def new_figure(width: Width, height: float) -> Figure:
    """An empty figure of a preset width; `height` is in inches."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from continual_metaopt.analysis.figures.shown import ShownFigure

    return ShownFigure(figsize=(inches(width), height), layout=ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.03))


def inches(width: Width) -> float:
    """A preset width in inches."""
    if width not in WIDTHS:
        raise ValueError(f"width must be one of {', '.join(WIDTHS)}, not {width!r}")
    return WIDTHS[width]


def panel_columns(width: Width) -> int:
    """How many panels beside each other are still legible."""
    return max(2, int(inches(width) / 1.3))


def line_of(all_labels: Sequence[str], label: str) -> dict[str, Any]:
    """Colour and line style of a learner: they depend on its place among all labels alone.

    A learner whose setting was tuned has the colour of the untuned one, and another line style.
    """
    colour, dash = places_of_line(all_labels, label)
    return {"color": COLOURS[colour % len(COLOURS)], "linestyle": LINE_STYLES[dash % len(LINE_STYLES)]}


def places_of_line(all_labels: Sequence[str], label: str) -> tuple[int, int]:
    """Places of a learner's colour and of its line style, which come again in turn; see `line_of`."""
    names = list(dict.fromkeys(one.removesuffix(TUNED) for one in all_labels))
    place = names.index(label.removesuffix(TUNED))
    is_second = label.endswith(TUNED) and label.removesuffix(TUNED) in all_labels
    return place, place + 2 * is_second


def draw_single_seeds(
    axes: Axes,
    values: Sequence[float],
    place: float,
    colour: str,
    marker: str,
    along: Literal["horizontal", "vertical"],
    filled: str | None = None,
) -> None:
    """Draw single seeds along an axis as small markers with a tick at their median, at one place of the other axis."""
    style: dict[str, Any] = {"color": colour, "markersize": 2.2, "markeredgewidth": 0.6, "linestyle": ""}
    style |= {"marker": marker, "markerfacecolor": colour if filled is None else filled}
    tick: dict[str, Any] = {"color": colour, "markersize": 7, "markeredgewidth": 1.2}
    median, places = float(np.median(values)), [place] * len(values)
    if along == "horizontal":
        axes.plot(values, places, **style)
        axes.plot(median, place, marker="|", **tick)
    else:
        axes.plot(places, values, **style)
        axes.plot(place, median, marker="_", **tick)


def rows_of_names(axes: Axes, names: Sequence[str]) -> None:
    """Let the vertical axis name rows at 0, 1, 2, … from top to bottom."""
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="0.92", linewidth=0.5)
    axes.set_axisbelow(True)


def label_lowest(grid: np.ndarray) -> list[Axes]:
    """Label the horizontal axis of the lowest visible panel of each column, and of no other; returns these panels."""
    lowest = [[axes for axes in column if axes.get_visible()][-1] for column in grid.T]
    for axes in grid.flat:
        axes.tick_params(labelbottom=axes in lowest)
    return lowest


def log_ticks(low: float, high: float) -> list[float]:
    """About three to five ticks of a logarithmic axis: multiples of powers of ten, or equally spaced on a short one."""
    from matplotlib.ticker import MaxNLocator

    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: Iterable[float] = ()
    for multiples in (("1",), ("1", "3"), ("1", "2", "5")):
        ticks = [float(f"{multiple}e{power}") for power in powers for multiple in multiples]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 5)]
    return [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis, whose limits are set, in plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(log_ticks(*axis.get_view_interval())))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend_below(
    axes: Axes, labels: Sequence[str], handles: Sequence[Any] | None = None, handle_length: float = 2.2
) -> None:
    """Put the legend below the axes, in as many columns as fit, and make the figure higher by as much."""
    from matplotlib.textpath import TextPath

    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    size = _STYLE["legend.fontsize"]
    texts = [textwrap.fill(label, int((width - 0.5) / 0.065)) for label in labels]  # inches of a wide letter
    widths = [max(TextPath((0, 0), line, size=size).get_extents().width for line in text.split("\n")) for text in texts]

    def total_width(n_columns: int) -> float:
        """Of the texts, and the handles and gaps of Matplotlib's legends, in inches."""
        columns = [max(column) for column in np.array_split(widths, n_columns)]
        return float(sum(columns) + size * (n_columns * (handle_length + 2) + 1)) / 72

    n_columns = next((n for n in range(len(texts), 1, -1) if total_width(n) <= width), 1)
    n_lines = math.ceil(len(texts) / n_columns) * max(text.count("\n") + 1 for text in texts)
    figure.set_size_inches(width, height + 0.14 * n_lines + 0.05)
    lines = axes.get_lines() if handles is None else handles
    figure.legend(
        lines, texts, loc="outside lower center", ncols=n_columns, handlelength=handle_length, columnspacing=1.2
    )


def draw_boundaries(axes: Axes, runs: Runs) -> None:
    """Mark the starts of experiences, where all runs agree on them."""
    common = common_boundaries(runs)
    width = float(np.clip(8 / max(1, len(common)), 0.2, 0.4))
    axes.vlines(common, 0, 1, transform=axes.get_xaxis_transform(), color="0.75", linewidth=width, zorder=0)


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Make the vertical axis logarithmic, with a few labelled ticks and no others."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_ylim(low, high)  # before the scale, which would complain of data without positive values
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    label_powers(axes.yaxis, minor_thresholds=(math.inf, math.inf))
    axes.yaxis.set_minor_locator(NullLocator())


def label_powers(axis: Axis, **options: Any) -> None:
    """Label a logarithmic axis in powers of ten as plain text, such as 3×10⁻⁴; options as `LogFormatterSciNotation`."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        def __call__(self, x: float, pos: int | None = None) -> str:
            text = super().__call__(x, pos).removeprefix(r"$\mathdefault{").removesuffix("}$")
            text = re.sub(r"\^\{(-?\d+)\}", lambda match: match[1].translate(_POWERS), text)
            return text.replace(r"\times", "×")

    axis.set_major_formatter(Plain(**options))
    axis.set_minor_formatter(Plain(**options, labelOnlyBase=False))


def thousands(axes: Axes, n_ticks: int) -> None:
    """Write 20000 as 20k, so that narrow panels have room for it."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(n_ticks))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
