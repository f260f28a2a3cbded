"""Reports, tables and explanations of runs."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from continual_metaopt.analysis import Runs
from continual_metaopt.analysis.files import real_folder
from continual_metaopt.analysis.records import read_status
from continual_metaopt.commands.interrupts import ctrl_c_raises
from continual_metaopt.commands.printing import EXIT_FAILED, EXIT_USAGE, PROGRAM, _complain, _print
from continual_metaopt.study.jobs import StudyInterrupted


def _report_study(runs: list[Path], folder: Path, selection: list[Path]) -> None:
    """Print and write the comparison of a study's runs, and say after Ctrl-C how to have it later."""
    try:
        _show_report(runs, real_folder(folder / "report"), selection)
    except KeyboardInterrupt:
        again = shlex.join([PROGRAM, "report", str(folder)])
        raise StudyInterrupted(f"All runs are recorded; this command writes their report: {again}") from None
    for path in (*runs, *selection):
        try:
            notes = read_status(path).get("notes", [])
        except ValueError:  # which the report has left out, and said so
            continue
        for note in notes:
            _complain(f"noted: {note}")


def status(directory: Annotated[Path, tyro.conf.Positional], /) -> int:
    """Say how a study, or the runs in any folder, are getting on: what runs and how fast, what failed and why.

    The exit status is 1 if runs failed or are damaged, and 0 otherwise: a run that diverged has a result, and one that
    was interrupted can go on.

    Args:
        directory: a study's folder, or any folder with run directories in it.
    """
    from continual_metaopt.study.overview import overview

    found = overview(directory)
    _print(found.text())
    return 0 if found.is_sound else EXIT_FAILED


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
        _show_report([directory, *others], out or real_folder(Path("report")), diverged=diverged)
        return 0
    parts = [path.parent for path in studies_in(directory)]
    for part in parts if directory not in parts else ():
        _print(f"\n{part.name}")
        folder = out / part.name if out else part / "report"
        _show_report([part], real_folder(folder), diverged=diverged)
    if not parts or directory in parts:
        _show_report([directory], out or real_folder(directory / "report"), diverged=diverged)
    return 0


def explain(run: Annotated[Path, tyro.conf.Positional], /) -> int:
    """Say in words what happened to a run: how it ended, what went wrong first, how its step sizes moved.

    Args:
        run: a run directory.
    """
    from continual_metaopt.analysis.explain import explain as in_words

    _print(in_words(run).rstrip("\n"))
    return 0


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
    _say_left_out(runs)
    try:
        for path in write_export(runs, out or real_folder(directory / "export") / format, format):
            _print(f"wrote {path}")
    except ModuleNotFoundError as error:
        _complain(f"{PROGRAM}: {error}")
        return EXIT_USAGE
    return 0


def _show_report(
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
            _print(f"\n{title}\n")
        _print(format_table(table, "terminal"))
        _print(re.sub(r"\s+", " ", caption(table)))
    _print("\n".join(f"wrote {path}" for path in paths))
    _say_left_out(found)
    if n := found.n_superseded:
        _complain(f"left out: {n} run{'s' * (n != 1)} of earlier versions of the study")


def _say_left_out(runs: "Runs") -> None:
    for reason in runs.left_out.values():
        _complain(f"left out: {reason}")
