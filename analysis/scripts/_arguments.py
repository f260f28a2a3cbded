"""What the scripts have in common: their options, reading runs, writing tables and figures, and telling errors."""

from __future__ import annotations

import argparse
import functools
import inspect
import io
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from continual_metaopt.analysis.comparisons import Test
from continual_metaopt.analysis.escaping import csv_text, for_terminal, one_line
from continual_metaopt.analysis.figures import WIDTHS, Format, caption_of, save
from continual_metaopt.analysis.files import begin_command, print_to_reader, write_text
from continual_metaopt.analysis.report import SUFFIXES, split_by_stream, write_texts
from continual_metaopt.analysis.runs import Runs, load_runs
from continual_metaopt.analysis.tables import format_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Option = tuple[str, dict[str, Any]]


def option(name: str, **settings: Any) -> Option:
    """Describe an option of a script; settings as of `argparse.ArgumentParser.add_argument`.

    An option that is named like an argument of the script's figure is handed to it by `draw`.
    """
    return name, settings


def learners(default: str = "all") -> Option:
    """`--learners`, with what is drawn without it."""
    return option(
        "--learners", dest="labels", nargs="+", metavar="LABEL", help=f"learners to draw (default: {default})"
    )


def blocks(at_most: int = 12) -> Option:
    """`--blocks`, with how many are drawn without it."""
    return option("--blocks", nargs="+", metavar="BLOCK", help=f"blocks to draw (default: all, at most {at_most})")


def shifts(default: int) -> Option:
    """`--shifts` of boundaries."""
    return option(
        "--shifts", type=int, default=default, metavar="N", help="random sets of boundaries (default: %(default)s)"
    )


def figure(width: str = "column") -> tuple[Option, ...]:
    """What all figures have: `--width` and `--format`."""
    sizes = ", ".join(f"{name} = {25.4 * size:.0f} mm" for name, size in WIDTHS.items())
    return (
        option(
            "--width", choices=list(WIDTHS), default=width, help=f"width on the page: {sizes} (default: %(default)s)"
        ),
        option(
            "--format",
            nargs="+",
            choices=list(get_args(Format)),
            default=["png", "pdf"],
            help="kinds of files to write (default: png pdf)",
        ),
    )


LEARNERS, FIGURE = learners(), figure()
BASELINE = option(
    "--baseline", metavar="LABEL", help="compare with this learner (default: the best with fixed step sizes)"
)
STEPS = option(
    "--steps", nargs=2, type=int, metavar=("FIRST", "LAST"), help="the part of the stream to draw (default: all)"
)
TEST = option(
    "--test",
    choices=list(get_args(Test)),
    default="sign_flip",
    help="of paired differences: exact, by random signs, or Student's t-test, which takes them as normally "
    "distributed (default: %(default)s)",
)
DIVERGED = option(
    "--diverged",
    choices=["chance", "exclude"],
    default="chance",
    help="count what a diverged run did not see as chance, or exclude diverged runs (default: %(default)s)",
)


def command(*options: Option) -> Callable[[Callable[[Namespace], Iterable[object]]], Callable[..., int]]:
    """Make a command of a function that is given the arguments and returns lines to print.

    The command has the name of the function's module and is described by its docstring. `python -m` runs it at once, so
    it stands last in the module. It takes arguments (those of the process if None), prints, and returns the exit code:
    0, or 2 after an error that is told in one line.
    """

    def make(work: Callable[[Namespace], Iterable[object]]) -> Callable[..., int]:
        module = sys.modules[inspect.unwrap(work).__module__]
        name = _name_of(module)

        def main(argv: Sequence[str] | None = None, program: str = f"python -m analysis.scripts.{name}") -> int:
            given = begin_command(argv)
            os.environ["MPLBACKEND"] = "agg"  # no window is opened; a notebook names a backend that only it can use
            parser = argparse.ArgumentParser(prog=program, description=module.__doc__)
            for flag, settings in options:
                parser.add_argument(flag, **settings)
            arguments = parser.parse_args(given)
            status, said = 0, io.StringIO()  # which is printed when all files have been written, whoever reads it
            try:
                with redirect_stdout(said):
                    for line in list(work(arguments)):
                        print(line)
            except (OSError, ValueError) as error:
                print(f"{parser.prog}: error: {one_line(' '.join(str(error).split()))}", file=sys.stderr)
                status = 2
            print_to_reader(for_terminal(said.getvalue()))
            return status

        if module.__name__ == "__main__":
            raise SystemExit(main())
        return main

    return make


def _name_of(module: ModuleType) -> str:
    """A module's own name, also where `python -m` runs it."""
    return module.__spec__.name.rpartition(".")[2] if module.__spec__ else Path(str(module.__file__)).stem


def script(
    *options: Option, purpose: str = "report", each_stream: bool = True
) -> Callable[[Callable[[Runs, Namespace], Iterable[Path]]], Callable[..., int]]:
    """Make a command, as of `command`, of a function that is given runs and returns the paths of files.

    Args:
        *options: beside run directories, `--out` and `--purpose`.
        purpose: default of `--purpose`.
        each_stream: call the function for the runs of each stream, with `folder` in the arguments for its files; else
            once, with all runs.
    """
    common = (
        option("paths", nargs="+", metavar="RUN_DIR", help="a run directory, or a folder of run directories"),
        option("--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)"),
        option(
            "--purpose",
            choices=["report", "selection", "all"],
            default=purpose,
            help="which runs (default: %(default)s)",
        ),
    )

    def make(write: Callable[[Runs, Namespace], Iterable[Path]]) -> Callable[..., int]:
        @functools.wraps(write)
        def write_all(arguments: Namespace) -> Iterable[Path]:
            wanted = None if arguments.purpose == "all" else arguments.purpose
            runs = load_runs(*arguments.paths, purpose=wanted).readable()
            for reason in runs.left_out.values():
                print(f"left out: {one_line(reason)}", file=sys.stderr)
            parts = split_by_stream(runs, arguments.out) if each_stream else [(runs, arguments.out)]
            for part, folder in parts:
                arguments.folder = folder
                yield from write(part, arguments)

        return command(*common, *options)(write_all)

    return make


def drawing(module: str, draw_figure: Callable[..., Figure], *options: Option) -> Callable[..., int]:
    """Make a command, as of `script`, of a module that draws one figure; its files have the module's name."""

    def write(runs: Runs, arguments: Namespace) -> list[Path]:
        return draw(draw_figure, runs, arguments, _name_of(sys.modules[module]))

    write.__module__ = module
    return script(*options)(write)


def selection_runs(arguments: Namespace) -> Runs:
    """The runs that served to choose settings, whatever `--purpose` says."""
    if "selection" not in arguments:
        arguments.selection = load_runs(*arguments.paths, purpose=None).readable().select(purpose="selection")
    selection: Runs = arguments.selection
    return selection


def costs_of_steps(arguments: Namespace) -> pd.DataFrame | None:
    """What `--costs` names."""
    return None if arguments.costs is None else pd.read_csv(arguments.costs)


def write_table(
    table: pd.DataFrame, columns: dict[str, list[str]], note: str, arguments: Namespace, name: str
) -> list[Path]:
    """Print a table, and write it as CSV, Markdown and LaTeX."""
    print(f"{format_columns(columns, 'terminal')}\n{note}\n")
    csv = csv_text(table, float_format="%.10g")  # without rounding errors
    texts = {fmt: csv if fmt == "csv" else format_columns(columns, fmt) for fmt in SUFFIXES}
    return write_texts(texts, note, arguments.folder, name)


def draw(
    draw_figure: Callable[..., Figure], runs: Runs, arguments: Namespace, name: str, *drawn: Any, note: str = ""
) -> list[Path]:
    """Draw a figure, and write it as the options of `figure` say, with its caption as text.

    Args:
        draw_figure: draws it, and holds the caption in its docstring.
        runs: what it shows.
        arguments: of the script; those that the function takes are handed to it.
        name: file name without suffix.
        *drawn: what the function is given first; the runs if nothing.
        note: what the caption says of this figure beside what it says of all such figures.
    """
    taken = list(inspect.signature(draw_figure).parameters)[len(drawn or (runs,)) :]
    options = {key: value for key, value in vars(arguments).items() if key in taken}
    paths = save(draw_figure(*(drawn or (runs,)), **options), arguments.folder, name, arguments.format)
    text = f"{caption_of(draw_figure, runs)} {note}".rstrip() + "\n"
    return [*paths, write_text(arguments.folder / f"{name}.txt", text)]
