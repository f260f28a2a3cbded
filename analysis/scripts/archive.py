"""Write all runs of a folder, without the losses of single samples, into one file."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from continual_metaopt.analysis.archive import SUFFIX, archive
from continual_metaopt.analysis.scripts._arguments import command, option

FOLDER = option("folder", type=Path, metavar="DIR", help="a study's folder, or a folder of run directories")
OUT = option("--out", type=Path, metavar="FILE", help=f"the file (default: NAME{SUFFIX}, after the folder)")


@command(FOLDER, OUT)
def main(arguments: Namespace) -> Iterator[str]:
    path = archive(arguments.folder, arguments.out or Path(f"{arguments.folder.resolve().name}{SUFFIX}"))
    yield f"{path} ({path.stat().st_size / 1e6:.2f} MB)"
