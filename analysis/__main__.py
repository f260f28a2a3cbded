"""Run a script by its name, `python -m analysis NAME RUN_DIR …`; without a name, list them all."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from continual_metaopt.analysis import scripts
from continual_metaopt.analysis.files import print_to_reader, print_with_replacements

# what the commands "table" and "test" of the program do; "figure" does all others that draw
TABLES = ("comparison_table", "ranking", "reproduction", "initial_step_size", "test_accuracy")
TESTS = ("comparisons", "controls", "sawtooth")
NOT_DRAWN = ("archive", "comparison_table", "comparisons", "reproduction")


def names_of(kind: str | None) -> list[str]:
    """The scripts of a kind, `"figure"`, `"table"` or `"test"`; all if None."""
    names = [module.name for module in pkgutil.iter_modules(scripts.__path__) if not module.name.startswith("_")]
    if kind == "figure":
        return [name for name in names if name not in NOT_DRAWN]
    return names if kind is None else list({"table": TABLES, "test": TESTS}[kind])


def main(argv: Sequence[str], kind: str | None = None, program: str = "python -m analysis") -> int:
    """Run the script of a kind that the first argument names with the others; returns its exit code."""
    print_with_replacements()
    names = names_of(kind)
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, names))
        lines = [f"  {name:<{width}}  {_module(name).__doc__}\n" for name in names]
        usage = f"usage: {program} NAME RUNS …, or NAME --help for its options; NAME is one of\n\n"
        print_to_reader(usage + "".join(lines))
        return 0
    name = argv[0].replace("-", "_")
    if name not in names:
        print(f"{program}: error: there is no {argv[0]!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    status: int = _module(name).main(argv[1:], f"{program} {name}")
    return status


def _module(name: str) -> Any:
    return import_module(f"{scripts.__name__}.{name}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
