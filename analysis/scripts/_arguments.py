"""What the commands have in common."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from continual_metaopt.analysis.comparisons import Test
from continual_metaopt.analysis.escaping import csv_text, for_terminal, one_line
from continual_metaopt.analysis.figures import WIDTHS, Format, caption_of, save
from continual_metaopt.analysis.files import print_with_replacements, with_home, write_whole
from continual_metaopt.analysis.report import SUFFIXES, split_by_stream, write_texts
from continual_metaopt.analysis.runs import Runs, load_runs
from continual_metaopt.analysis.tables import format_columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Make a parser that knows the run directories, `--out` and `--purpose`.

    Args:
        name: of the module in `analysis.scripts`.
        description: what the command does.

    Returns:
        The parser, to which a command adds its own options.
    """
    parser = argparse.ArgumentParser(prog=f"python -m analysis.scripts.{name}", description=description)
    parser.add_argument("paths", nargs="+", metavar="RUN_DIR", help="a run directory, or a folder of run directories")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")
    parser.add_argument(
        "--purpose", choices=["report", "selection", "all"], default="report", help="which runs (default: %(default)s)"
    )
    return parser


def add_learners(parser: argparse.ArgumentParser, default: str = "all") -> None:
    """Add `--learners`."""
    parser.add_argument("--learners", nargs="+", metavar="LABEL", help=f"learners to draw (default: {default})")


def add_test(parser: argparse.ArgumentParser) -> None:
    """Add `--test`."""
    parser.add_argument(
        "--test",
        choices=list(get_args(Test)),
        default="sign_flip",
        help="of paired differences: exact, by random signs, or Student's t-test, which takes them as normally "
        "distributed (default: %(default)s)",
    )


def write_table(table: pd.DataFrame, columns: dict[str, list[str]], note: str, folder: Path, name: str) -> list[Path]:
    """Print a table, and write it as CSV, Markdown and LaTeX.

    Args:
        table: with all columns, unrounded, for the CSV file.
        columns: what all others show: heading → texts.
        note: sentences below the table.
        folder: where to write.
        name: file name without suffix.

    Returns:
        The paths of the files.
    """
    print(f"{format_columns(columns, 'terminal')}\n{note}\n")
    csv = csv_text(table, float_format="%.10g")  # without rounding errors
    texts = {fmt: csv if fmt == "csv" else format_columns(columns, fmt) for fmt in SUFFIXES}
    return write_texts(texts, note, folder, name)


def add_figure(parser: argparse.ArgumentParser, default: str = "column") -> None:
    """Add what all figures have: `--width`, `--format` and `--caption`."""
    parser.add_argument(
        "--width",
        choices=list(WIDTHS),
        default=default,
        help=f"width on the page: {', '.join(f'{name} = {25.4 * size:.0f} mm' for name, size in WIDTHS.items())} "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        nargs="+",
        choices=list(get_args(Format)),
        default=["png", "pdf"],
        help="kinds of files to write (default: png pdf)",
    )
    parser.add_argument("--caption", action="store_true", help="write the figure's caption beside it, as text")


def save_figure(
    draw: Callable[..., Figure],
    runs: Runs,
    figure: Figure,
    folder: Path,
    name: str,
    arguments: argparse.Namespace,
    note: str = "",
) -> list[Path]:
    """Write a figure as the options of `add_figure` say.

    Args:
        draw: the function that drew it, whose docstring holds the caption.
        runs: what it shows.
        figure: the figure.
        folder: where to write.
        name: file name without suffix.
        arguments: the command's.
        note: what the caption says of this figure beside what it says of all such figures.

    Returns:
        The paths of the files.
    """
    paths = save(figure, folder, name, arguments.format)
    if arguments.caption:
        text = f"{caption_of(draw, runs)} {note}".rstrip() + "\n"
        paths.append(write_whole(folder / f"{name}.txt", partial(Path.write_text, data=text, encoding="utf-8")))
    return paths


def draw_each_stream(
    draw: Callable[..., Figure], runs: Runs, name: str, arguments: argparse.Namespace, **options: Any
) -> list[Path]:
    """Draw a figure of each stream, and write it as the options of `add_figure` say.

    Args:
        draw: draws the runs of one stream, given `options` and the width.
        runs: the runs.
        name: file name without suffix.
        arguments: the command's.
        **options: for `draw`.

    Returns:
        The paths of the files.
    """
    paths = []
    for part, folder in split_by_stream(runs, arguments.out):
        figure = draw(part, width=arguments.width, **options)
        paths += save_figure(draw, part, figure, folder, name, arguments)
    return paths


def add_diverged(parser: argparse.ArgumentParser) -> None:
    """Add `--diverged`."""
    parser.add_argument(
        "--diverged",
        choices=["chance", "exclude"],
        default="chance",
        help="count what a diverged run did not see as chance, or exclude diverged runs (default: %(default)s)",
    )


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    write: Callable[[Runs, argparse.Namespace], Sequence[Path]],
) -> int:
    """Load the runs, let the command write its files, and print their paths.

    Args:
        parser: from `make_parser`.
        argv: the arguments; those of the process if None.
        write: called with the runs and the arguments; returns the paths written.

    Returns:
        The exit code: 0, or 2 after an error that is told in one line.
    """
    print_with_replacements()
    os.environ["MPLBACKEND"] = "agg"  # no window is opened; a notebook names a backend that only it can use
    arguments = parser.parse_args(with_home(sys.argv[1:] if argv is None else argv))
    status, said = 0, io.StringIO()  # which is printed when all files have been written, whoever reads it
    try:
        purpose = None if arguments.purpose == "all" else arguments.purpose
        runs = load_runs(*arguments.paths, purpose=purpose).readable()
        for reason in runs.left_out.values():
            print(f"left out: {one_line(reason)}", file=sys.stderr)
        with redirect_stdout(said):
            for path in write(runs, arguments):
                print(path)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {one_line(' '.join(str(error).split()))}", file=sys.stderr)
        status = 2
    try:
        print(for_terminal(said.getvalue()), end="", flush=True)
    except BrokenPipeError:  # as in `… | head`, which has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
