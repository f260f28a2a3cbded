"""Put the records of a study into one small file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.analysis.archive import SUFFIX, archive
from continual_metaopt.analysis.escaping import one_line
from continual_metaopt.analysis.files import print_with_replacements, with_home


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.scripts.archive",
        description="Write all runs of a folder, without the losses of single samples, into one file.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a study's folder, or a folder of run directories")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the file (default: NAME{SUFFIX}, after the folder)")
    print_with_replacements()
    arguments = parser.parse_args(with_home(sys.argv[1:] if argv is None else argv))
    out = arguments.out or Path(f"{arguments.folder.resolve().name}{SUFFIX}")
    try:
        path = archive(arguments.folder, out)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {one_line(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
