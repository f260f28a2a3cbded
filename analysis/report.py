"""All tables and figures of a set of runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

from continual_metaopt.analysis import figures
from continual_metaopt.analysis.escaping import one_line
from continual_metaopt.analysis.files import file_names, open_regular, real_folder, write_text
from continual_metaopt.analysis.html.html_report import Section, write_html
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.sawtooth import block_trajectories, can_fold
from continual_metaopt.analysis.statistics import Diverged, counted_runs, is_regression
from continual_metaopt.analysis.tables import Format, caption, comparison_table, format_table
from continual_metaopt.analysis.text import is_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_DRAWN = 8  # learners whose step sizes are drawn
_PAGE = "report.html"
_MARK = "continual-metaopt</title>"  # in each page
SUFFIXES: Mapping[Format, str] = {"csv": "csv", "markdown": "md", "latex": "tex"}


def write_report(
    runs: Runs,
    out_dir: str | os.PathLike[str],
    *,
    diverged: Diverged = "chance",
    baseline: str | None = None,
    width: figures.Width = "column",
    selection: Runs | None = None,
    tables: dict[str, pd.DataFrame] | None = None,
) -> list[Path]:
    """Write the comparison table and all figures that apply, and one HTML page with everything.

    Tables and figures have a folder of their own for each stream and network, if there are several. Accuracies and
    errors need a run that has come to an end, trajectories a learner with learned step sizes. Of the best of these, all
    experiences are laid over each other, where there are enough.

    Args:
        runs: the runs.
        out_dir: the folder, made if it does not exist.
        diverged: how diverged runs count, see `analysis.statistics`.
        baseline: the label that the others are compared with; if None, the best one with fixed step sizes.
        width: width of the accuracy figures; the trajectories take the full width of the page.
        selection: runs that served to choose settings; the table tells what that took then.
        tables: filled with the comparison table of each stream and network, by its title.

    Returns:
        The paths of the files written. A figure that cannot be drawn is left out with a warning.

    Raises:
        ValueError: the runs cannot be compared, see `analysis.tables.comparison_table`.
        FileExistsError: the folder holds a file that no report has written, in whose place one would be written.
        OSError: a file cannot be written.
    """
    paths: list[Path] = []
    sections = []
    for title, (part, folder) in zip(by_stream_and_network(runs), split_by_stream(runs, out_dir), strict=True):
        table = comparison_table(part, diverged=diverged, baseline=baseline, selection=selection)
        if tables is not None:
            tables[title] = table
        if not paths:  # and nothing has been written
            _require_own(Path(out_dir))
        paths += write_tables(table, folder)
        drawings: dict[str, partial[Figure]] = {}
        notes: dict[str, str] = {}
        ended = len(counted_runs(part, diverged)) > 0
        if ended and is_regression(part):
            window = min(1000, int(part.table["n_samples"].min()))
            drawings["squared_error"] = partial(
                figures.sliding_squared_error, part, window, diverged=diverged, width=width
            )
        elif ended:
            drawings["online_accuracy"] = partial(
                figures.online_accuracy_by_experience, part, diverged=diverged, width=width
            )
            drawings["sliding_accuracy"] = partial(figures.sliding_accuracy, part, diverged=diverged, width=width)
        if ended and is_text(part):
            drawings["bits_per_byte"] = partial(figures.sliding_bits_per_byte, part, diverged=diverged, width=width)
        learned = _best_learned(part, table)
        if figures.has_trajectories(part):
            few = [label for label in part.labels if label in learned[:MAX_DRAWN]]
            drawings["step_sizes"] = partial(figures.step_size_trajectories, part, few)
            if len(few) < len(learned):
                notes["step_sizes"] = f" The best {MAX_DRAWN} of {len(learned)} learners with learned step sizes."
        for quantity in get_args(figures.MetaParameter):
            if figures.has_meta_parameter(part, quantity):
                drawings[quantity] = partial(figures.meta_parameter_trajectories, part, quantity)
        folded = _first_with_teeth(part, learned)
        if folded is not None:
            drawings["sawtooth"] = partial(figures.folded_sawtooth, part, folded)
        images, captions = {}, {}
        for name, draw in drawings.items():
            files = figures.draw_and_save(draw, folder, name)
            if files:
                images[name] = files[0]
                captions[name] = figures.caption_of(draw.func, part) + notes.get(name, "")
                files.append(write_text(folder / f"{name}.txt", f"{captions[name]}\n"))
            paths += files
        sections.append(Section(title, part, table, diverged, selection, images, captions))
    return [*paths, write_html(sections, Path(out_dir) / _PAGE)]


def _require_own(folder: Path) -> None:
    """Check that no files but a report's are overwritten, and mark the folder as a report's by a page."""
    page = folder / _PAGE
    with suppress(FileNotFoundError, ValueError), open_regular(page) as file:
        if _MARK.encode() in file.read(2**16):
            return
    stems = ("squared_error", "online_accuracy", "sliding_accuracy", "bits_per_byte", "step_sizes", "sawtooth")
    drawn = [
        f"{stem}.{suffix}" for stem in (*stems, *get_args(figures.MetaParameter)) for suffix in ("png", "pdf", "txt")
    ]
    for name in (_PAGE, *(f"comparison.{suffix}" for suffix in SUFFIXES.values()), *drawn):
        if os.path.lexists(folder / name):
            raise FileExistsError(
                f"'{folder}' holds '{name}', which no report has written; choose another folder with --out"
            )
    text = f"<!DOCTYPE html>\n<title>Not finished – {_MARK}\n<p>The command that writes this report has not finished.\n"
    write_text(page, text)


def _best_learned(runs: Runs, table: pd.DataFrame) -> list[str]:
    """The learners with learned step sizes, the best first."""
    learned, score = runs.select(learned_step_sizes=True).labels, table.attrs["score"]
    ranked = table.sort_values(score, ascending=score == "squared_error", kind="stable")["learner"]
    return [str(label) for label in ranked[ranked.isin(learned)]]


def _first_with_teeth(runs: Runs, labels: Sequence[str]) -> str | None:
    """The first of some learners whose experiences can be laid over each other; None without one."""
    for label in labels:
        trajectories = block_trajectories(runs, label)
        if trajectories and all(map(can_fold, trajectories.values())):
            return label
    return None


def write_tables(table: pd.DataFrame, out_dir: str | os.PathLike[str]) -> list[Path]:
    """Write a comparison table as CSV, Markdown and LaTeX.

    Returns:
        The paths of `comparison.csv`, `comparison.md` and `comparison.tex`. The latter two hold the caption as well.
    """
    return write_texts({fmt: format_table(table, fmt) for fmt in SUFFIXES}, caption(table), out_dir, "comparison")


def write_texts(
    texts: Mapping[Format, str], explanation: str, out_dir: str | os.PathLike[str], name: str
) -> list[Path]:
    """Write the forms of a table, with what explains it in those that can hold it.

    Args:
        texts: the table as `"csv"`, `"markdown"` and `"latex"`.
        explanation: put below in Markdown, and in a comment in LaTeX.
        out_dir: the folder, made if it does not exist.
        name: file name without suffix.
    """
    before, behind = {"latex": f"% {one_line(explanation)}\n"}, {"markdown": f"\n{one_line(explanation)}\n"}
    return [
        write_text(Path(out_dir) / f"{name}.{SUFFIXES[fmt]}", before.get(fmt, "") + text + behind.get(fmt, ""))
        for fmt, text in texts.items()
    ]


def split_by_stream(runs: Runs, out_dir: str | os.PathLike[str]) -> list[tuple[Runs, Path]]:
    """Give each stream and network a folder of its own, or `out_dir` itself if there is only one.

    Returns:
        Pairs of the runs of one stream and network and their folder, which is named after these.

    Raises:
        FileExistsError: such a folder is a link.
    """
    parts = by_stream_and_network(runs)
    if len(parts) == 1:
        return [(runs, Path(out_dir))]
    names = file_names(parts, "-")
    return [(part, real_folder(Path(out_dir) / names[title])) for title, part in parts.items()]


def by_stream_and_network(runs: Runs) -> dict[str, Runs]:
    """Split into sets that ran on the same stream, apart from its seed, with the same network.

    Returns:
        Title → runs. The title is that of `Runs.by_stream`, and the network where a stream was met by several.
    """
    parts = {}
    for title, part in runs.by_stream().items():
        networks: dict[str, list[str]] = {}
        for path in part.table["path"]:
            networks.setdefault(_network_title(part.configs[path]["network"]), []).append(path)
        if len(networks) == 1:
            parts[title] = part
        else:
            parts |= {f"{title}, {network}": part.among(paths) for network, paths in networks.items()}
    return parts


def _network_title(network: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in network.items() if key != "name")
    return f"{network['name']} ({options})" if options else network["name"]
