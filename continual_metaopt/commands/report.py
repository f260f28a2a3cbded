"""Reports finished runs: table, figures, HTML page."""

import math
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from continual_metaopt.analysis.files import real_folder
from continual_metaopt.analysis.records import read_status
from continual_metaopt.commands.interrupts import ctrl_c_raises
from continual_metaopt.commands.printing import PROGRAM, complain, complain_of_left_out, show, show_written
from continual_metaopt.study.jobs import StudyInterrupted

if TYPE_CHECKING:
    import pandas as pd


def report(
    directory: Annotated[Path, tyro.conf.Positional],
    others: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    /,
    out: Path | None = None,
    diverged: Literal["chance", "exclude"] = "chance",
    learners: tuple[str, ...] = (),
    columns: tuple[str, ...] = (),
) -> int:
    """Print the comparison of finished runs, and write its table and figures.

    Args:
        directory: a study's folder, or any folder with run directories in it.
        others: more folders, whose runs are compared with those of the first.
        out: where to write; if not given, DIRECTORY/report, or report here for several folders.
        diverged: count what a diverged run did not see as chance, or exclude diverged runs from all averages.
        learners: report only those whose names begin with one of these.
        columns: of the table printed here, by the beginnings of their headings, instead of those that have room.
    """
    chosen = _Chosen(diverged, learners, columns)
    from continual_metaopt.study.overview import studies_in

    ctrl_c_raises()
    if others:
        _report([directory, *others], out or real_folder(Path("report")), (), chosen)
        return 0
    parts = [path.parent for path in studies_in(directory)]
    for part in parts if directory not in parts else ():
        show(f"\n{part.name}")
        folder = out / part.name if out else part / "report"
        _report([part], real_folder(folder), (), chosen)
    if not parts or directory in parts:
        _report([directory], out or real_folder(directory / "report"), (), chosen)
    return 0


def report_study(runs: list[Path], folder: Path, selection: list[Path]) -> None:
    """Print and write the comparison of a study's runs, and say after Ctrl-C how to have it later."""
    try:
        _report(runs, real_folder(folder / "report"), selection, _Chosen())
    except KeyboardInterrupt:
        again = shlex.join([PROGRAM, "report", str(folder)])
        raise StudyInterrupted(f"All runs are recorded; this command writes their report: {again}") from None
    for path in (*runs, *selection):
        try:
            notes = read_status(path).get("notes", [])
        except ValueError:  # which the report has left out, and said so
            continue
        for note in notes:
            complain(f"noted: {note}")


class _Chosen(NamedTuple):
    """What is reported, and how."""

    diverged: Literal["chance", "exclude"] = "chance"
    learners: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def _report(runs: list[Path], out: Path, selection: Sequence[Path], chosen: _Chosen) -> None:
    """Print and write the comparison of runs; those at or below the paths that chose settings tell what that took."""
    from continual_metaopt.analysis import format_table, load_runs, write_report
    from continual_metaopt.analysis.tables import caption

    found = load_runs(*runs, *selection, purpose=None).readable()
    loaded, tried = found.select(purpose="report"), found.select(purpose="selection")
    if not len(loaded):
        load_runs(*runs)  # which says what is missing
    if chosen.learners:
        labels = [label for label in loaded.labels if label.startswith(chosen.learners)]
        if not labels:
            raise ValueError(f"no learner's name begins so; there are {'; '.join(loaded.labels)}")
        loaded = loaded.select(label=labels)
    tables: dict[str, pd.DataFrame] = {}
    paths = write_report(loaded, out, diverged=chosen.diverged, selection=tried, tables=tables)
    for title, table in tables.items():  # whatever becomes of what is printed
        if len(tables) > 1:
            show(f"\n{title}\n")
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
        show(format_table(table, "terminal", width, chosen.columns))
        show(re.sub(r"\s+", " ", caption(table)))
    show_written(paths)
    complain_of_left_out(found)
    if n := found.n_superseded:
        complain(f"left out: {n} run{'s' * (n != 1)} of earlier versions of the study")
