"""Writes runs for other tools."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from continual_metaopt.analysis.files import real_folder
from continual_metaopt.commands.printing import EXIT_USAGE, PROGRAM, complain, complain_of_left_out, show


def export(
    directory: Annotated[Path, tyro.conf.Positional],
    /,
    format: Literal["csv", "parquet", "tensorboard", "wandb"] = "csv",
    out: Path | None = None,
    purpose: Literal["report", "selection", "all"] = "report",
) -> int:
    """Write runs in another tool's format: tidy tables, TensorBoard's event files, or offline runs for wandb sync.

    Args:
        directory: a study's folder, or any folder with run directories in it.
        format: of what is written.
        out: a folder, which an earlier export may have written; DIRECTORY/export/FORMAT if not given.
        purpose: which runs; "selection" are those that only served to choose a setting.
    """
    from continual_metaopt.analysis.export import export as write_export
    from continual_metaopt.analysis.runs import load_runs

    runs = load_runs(directory, purpose=None if purpose == "all" else purpose).readable()
    complain_of_left_out(runs)
    try:
        for path in write_export(runs, out or real_folder(directory / "export") / format, format):
            show(f"wrote {path}")
    except ModuleNotFoundError as error:
        complain(f"{PROGRAM}: {error}")
        return EXIT_USAGE
    return 0
