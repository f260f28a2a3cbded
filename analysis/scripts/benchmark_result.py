"""Write a result file of a benchmark from run directories, or compare result files in a table: `compare A B …`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.analysis.benchmark_result import (
    DEFINITIONS,
    compare_results,
    comparison_columns,
    make_result,
    read_result,
    write_result,
)
from continual_metaopt.analysis.escaping import one_line
from continual_metaopt.analysis.files import print_with_replacements, with_home
from continual_metaopt.analysis.runs import load_runs
from continual_metaopt.analysis.scripts import _arguments

NAME = "python -m analysis.scripts.benchmark_result"
NOTE = (
    "Average online accuracy over all seeds of the definition; ± is the half width of a 95 % Student-t interval over "
    "seeds. Differences are in percentage points and paired by seed. What a diverged run did not see counts as chance. "
    "A learner that is told where experiences begin has an advantage."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    print_with_replacements()
    given = with_home(sys.argv[1:] if argv is None else argv)
    comparing = given[:1] == ["compare"]
    try:
        paths = _compare(given[1:]) if comparing else _make(given)
    except (OSError, ValueError) as error:
        print(f"{NAME}: error: {one_line(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    return 0


def _make(argv: Sequence[str]) -> list[Path]:
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Write a result file from run directories; with `compare A.json B.json …`, compare such files.",
    )
    parser.add_argument("paths", nargs="+", metavar="RUN_DIR", help="a study's folder, or a folder of run directories")
    parser.add_argument(
        "--definition", default=next(iter(DEFINITIONS)), choices=list(DEFINITIONS), help="(default: %(default)s)"
    )
    parser.add_argument("--label", help="which learner (default: the only one)")
    parser.add_argument("--out", type=Path, default=Path("result.json"), help="the file (default: %(default)s)")
    arguments = parser.parse_args(argv)
    runs = load_runs(*arguments.paths, purpose=None).readable()
    selection = runs.select(purpose="selection")
    result = make_result(runs.select(purpose="report"), selection, arguments.definition, arguments.label)
    return [write_result(result, arguments.out)]


def _compare(argv: Sequence[str]) -> list[Path]:
    parser = argparse.ArgumentParser(prog=f"{NAME} compare", description="Compare result files of one benchmark.")
    parser.add_argument("files", nargs="+", metavar="RESULT.json", help="a result file")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")
    arguments = parser.parse_args(argv)
    table = compare_results({file: read_result(file) for file in arguments.files})
    return _arguments.write_table(table, comparison_columns(table), NOTE, arguments.out, "benchmark")


if __name__ == "__main__":
    raise SystemExit(main())
