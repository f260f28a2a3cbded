"""Reports finished runs: table, figures, HTML page."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from continual_metaopt.analysis.files import real_folder
from continual_metaopt.analysis.records import read_status
from continual_metaopt.commands.interrupts import ctrl_c_raises
from continual_metaopt.commands.printing import PROGRAM, complain, complain_of_left_out, show, show_written
from continual_metaopt.study.jobs import StudyInterrupted


def report(
    directory: Annotated[Path, tyro.conf.Positional],
    others: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    /,
    out: Path | None = None,
    diverged: Literal["chance", "exclude"] = "chance",
) -> int:
    """Print the comparison of finished runs, and write its table and figures.

    Args:
        directory: a study's folder, or any folder with run directories in it.
        others: more folders, whose runs are compared with those of the first.
        out: where to write; if not given, DIRECTORY/report, or report here for several folders.
        diverged: count what a diverged run did not see as chance, or exclude diverged runs from all averages.
    """
    from continual_metaopt.study.overview import studies_in

    ctrl_c_raises()
    if others:
        _report([directory, *others], out or real_folder(Path("report")), diverged=diverged)
        return 0
    parts = [path.parent for path in studies_in(directory)]
    for part in parts if directory not in parts else ():
        show(f"\n{part.name}")
        folder = out / part.name if out else part / "report"
        _report([part], real_folder(folder), diverged=diverged)
    if not parts or directory in parts:
        _report([directory], out or real_folder(directory / "report"), diverged=diverged)
    return 0


def report_study(runs: list[Path], folder: Path, selection: list[Path]) -> None:
    """Print and write the comparison of a study's runs, and say after Ctrl-C how to have it later."""
    try:
        _report(runs, real_folder(folder / "report"), selection)
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


def _report(
    runs: list[Path], out: Path, selection: Sequence[Path] = (), diverged: Literal["chance", "exclude"] = "chance"
) -> None:
    """Print and write the comparison of runs; those at or below the paths that chose settings tell what that took."""
    from continual_metaopt.analysis import comparison_table, format_table, load_runs, write_report
    from continual_metaopt.analysis.report import by_stream_and_network
    from continual_metaopt.analysis.tables import caption

    found = load_runs(*runs, *selection, purpose=None).readable()
    loaded, tried = found.select(purpose="report"), found.select(purpose="selection")
    if not len(loaded):
        load_runs(*runs)  # which says what is missing
    paths = write_report(loaded, out, diverged=diverged, selection=tried)  # whatever becomes of what is printed
    parts = by_stream_and_network(loaded)
    for title, part in parts.items():
        table = comparison_table(part, diverged=diverged, selection=tried)
        if len(parts) > 1:
            show(f"\n{title}\n")
        show(format_table(table, "terminal"))
        show(re.sub(r"\s+", " ", caption(table)))
    show_written(paths)
    complain_of_left_out(found)
    if n := found.n_superseded:
        complain(f"left out: {n} run{'s' * (n != 1)} of earlier versions of the study")
