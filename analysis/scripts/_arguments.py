"""What the commands have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.runs import Runs, load_runs


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


def add_width(parser: argparse.ArgumentParser, default: str = "column") -> None:
    """Add `--width`."""
    parser.add_argument(
        "--width", choices=["column", "full"], default=default, help="width on the page (default: %(default)s)"
    )


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
    arguments = parser.parse_args(argv)
    try:
        purpose = None if arguments.purpose == "all" else arguments.purpose
        for path in write(load_runs(*arguments.paths, purpose=purpose), arguments):
            print(path)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
