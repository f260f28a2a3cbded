"""Run a script by its name, `python -m analysis NAME RUN_DIR …`; without a name, list them all."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from continual_metaopt.analysis import scripts
from continual_metaopt.analysis.files import print_to_reader, print_with_replacements


def main(argv: Sequence[str]) -> int:
    """Run the script that the first argument names with the others; returns its exit code."""
    print_with_replacements()
    names = [module.name for module in pkgutil.iter_modules(scripts.__path__) if not module.name.startswith("_")]
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, names))
        lines = [f"  {name:<{width}}  {_module(name).__doc__}\n" for name in names]
        usage = "usage: python -m analysis NAME …, or NAME --help for its options; NAME is one of\n\n"
        print_to_reader(usage + "".join(lines))
        return 0
    if argv[0] not in names:
        print(f"python -m analysis: error: there is no {argv[0]!r}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    status: int = _module(argv[0]).main(argv[1:])
    return status


def _module(name: str) -> Any:
    return import_module(f"{scripts.__name__}.{name}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
