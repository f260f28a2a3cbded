"""One self-contained HTML page about a set of runs: it needs no network and opens from disk."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from continual_metaopt.analysis.figures import COLOURS
from continual_metaopt.analysis.figures.style import places_of_line
from continual_metaopt.analysis.files import write_text
from continual_metaopt.analysis.html import html_charts
from continual_metaopt.analysis.html.commands import Study, run_command, studies_of
from continual_metaopt.analysis.records import read_status
from continual_metaopt.analysis.runs import Runs
from continual_metaopt.analysis.statistics import Diverged, average_score, held_out_accuracy
from continual_metaopt.analysis.tables import (
    BITS,
    DISCOUNTED_LOSS,
    HELD_OUT,
    caption,
    rounded_columns,
    shortened,
    stretches,
)

MAX_IMAGE_BYTES = 300_000
_ASSETS = ("uPlot.iife.min.js", "uPlot.min.css", "uPlot-LICENSE.txt", "report.js", "report.css")
DASHES = ("", "6 3", "2 2", "6 2 2 2", "4 3")  # one per learner in turn, as colours are
_OF_ONE_RUN = (
    "run_id",
    "seed",
    "order",
    "purpose",
    "study",
    "label",
    "schema_version",
    "entry",
    "tuned",
    "imports",
    "resumed",
)
_COLUMNS_WITH_INTERVALS = {
    "online accuracy (%)": "online_accuracy",
    "mean squared error": "squared_error",
    HELD_OUT: "held_out_accuracy",
    "final accuracy, all (%)": "final_accuracy",
    "forgetting (%)": "forgetting",
    BITS: "bits_per_byte",
    "loss": "loss",
    DISCOUNTED_LOSS: "discounted_loss",
}
_MAX_ITEMS = 12  # of a list that is shown


class Section(NamedTuple):
    """What the page says about one stream and network.

    `table` is from `analysis.tables.comparison_table`, `selection` are the runs that served to choose settings,
    `images` the figures' PNG files by name, and `captions` are of those that the page shows as pictures.
    """

    title: str
    runs: Runs
    table: pd.DataFrame
    diverged: Diverged = "chance"
    selection: Runs | None = None
    images: Mapping[str, Path] = {}
    captions: Mapping[str, str] = {}


class Interval(NamedTuple):
    """Places between 0 and 100 of a mean, of the ends of its interval, and of zero if that is in sight."""

    mean: float
    low: float
    high: float
    zero: float | None


class Cell(NamedTuple):
    """A cell of a table: what is written, and what its column is sorted by, None being last.

    It may have a mean with its interval to be drawn, a place on the page that it leads to, and a further explanation.
    """

    text: str
    sort: float | str | None
    interval: Interval | None = None
    href: str | None = None
    title: str | None = None


class Row(NamedTuple):
    """A row of a table, and the place of its learner among the labels."""

    learner: int
    cells: Sequence[Cell]


class Table(NamedTuple):
    """Headings and rows."""

    headings: Sequence[str]
    rows: Sequence[Row]


def write_html(sections: Sequence[Section], path: str | os.PathLike[str]) -> Path:
    """Write the page."""
    return write_text(Path(path), html_page(sections))


def html_page(sections: Sequence[Section]) -> str:
    """The page as text.

    Everything that runs have brought along (labels, reasons, options) is escaped, and the page's content security
    policy lets no other script run than its own, and nothing be loaded.

    Raises:
        ValueError: the runs of a section cannot be combined.
        OSError: an image cannot be read.
    """
    assets = resources.files("continual_metaopt.analysis.html") / "assets"
    texts = {name: (assets / name).read_text(encoding="utf-8") for name in _ASSETS}
    library = f"/*! uPlot. {texts['uPlot-LICENSE.txt'].strip()} */\n{texts['uPlot.iife.min.js']}"
    scripts = [_inline(library), _inline(texts["report.js"])]
    n_points = html_charts.points_per_line([section.runs for section in sections])
    facts = [_facts(section, place, n_points) for place, section in enumerate(sections)]
    data = [{"labels": part["labels"], "lines": part["lines"], "charts": part["charts"]} for part in facts]
    environment = Environment(
        loader=PackageLoader("continual_metaopt.analysis.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    studies = list(dict.fromkeys(study["name"] for part in facts for study in part["studies"]))
    return (
        environment.get_template("report.html")
        .render(
            title=", ".join(studies) or ", ".join(part["title"] for part in facts),
            sections=facts,
            totals=_totals([section.runs for section in sections]),
            colours=COLOURS,
            dashes=DASHES,
            styles=Markup(texts["uPlot.min.css"] + texts["report.css"]),
            scripts=scripts,
            policy="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
            + " ".join(f"'sha256-{_digest(script)}'" for script in scripts),
            data=htmlsafe_json_dumps({"sections": data, "dashes": DASHES}, separators=(",", ":"), allow_nan=False),
        )
        .lstrip()
    )


def _inline(script: str) -> Markup:
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError("a script that is written into a page must contain neither '</script' nor '<!--'")
    return Markup(script)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _facts(section: Section, place: int, n_points: int) -> dict[str, Any]:
    """All that the template shows of a section."""
    runs = section.runs
    statuses = {path: read_status(Path(path)) for path in runs.table["path"]}
    charts = html_charts.score_charts(runs, section.diverged)
    trajectories = (html_charts.trajectory_chart(runs, quantity, n_points) for quantity in html_charts.QUANTITIES)
    charts += [chart for chart in trajectories if chart is not None]
    images = {name: _data_uri(path) for name, path in section.images.items() if path.stat().st_size <= MAX_IMAGE_BYTES}
    section_id = f"s{place}"
    described = configurations(runs, section_id)
    anchors = {path: configuration["id"] for configuration in described for path in configuration["paths"]}
    return {
        "id": section_id,
        "title": section.title,
        "labels": runs.labels,
        "lines": [line_of(runs.labels, label) for label in runs.labels],
        "studies": [_with_download(study) for study in studies_of(runs)],
        "description": description(runs, section.selection),
        "learners": learner_settings(runs),
        "comparison": comparison_rows(runs, section.table),
        "caption": caption(section.table),
        "charts": charts,
        "images": images,
        "captions": section.captions,
        "drawn_only": [name for name in images if name not in {chart["name"] for chart in charts}],
        "runs": run_rows(runs, statuses, section.diverged, anchors),
        "not_finished": not_finished(runs, statuses),
        "configurations": described,
    }


def line_of(all_labels: Sequence[str], label: str) -> tuple[int, int]:
    """Places of a learner's colour in `COLOURS` and of its line style in `DASHES`."""
    colour, dash = places_of_line(all_labels, label)
    return colour % len(COLOURS), dash % len(DASHES)


def comparison_rows(runs: Runs, table: pd.DataFrame) -> Table:
    """The comparison table with what its columns are sorted by, and intervals of means: one row per learner."""
    columns = rounded_columns(table)
    cells = []
    for heading, texts in columns.items():
        column = "difference" if heading.startswith("− ") else _COLUMNS_WITH_INTERVALS.get(heading)
        intervals = _intervals(table, column) if column else [None] * len(texts)
        by_text = heading == "learner"
        cells.append(
            [
                _cell(text, text.casefold() if by_text else _number(text), interval)
                for text, interval in zip(texts, intervals, strict=True)
            ]
        )
    places = [runs.labels.index(label) for label in table["learner"]]
    return Table(list(columns), [Row(place, row) for place, row in zip(places, zip(*cells, strict=True), strict=True)])


def run_rows(
    runs: Runs, statuses: Mapping[str, Mapping[str, Any]], diverged: Diverged, anchors: Mapping[str, str]
) -> Table:
    """One row per run: how it went."""
    scores, score = average_score(runs, diverged)
    percent = 1 if score == "squared_error" else 100
    held_out = 100 * held_out_accuracy(runs, diverged)
    of_run = scores.set_index("run")[score] * percent
    score_heading = next(heading for heading, column in _COLUMNS_WITH_INTERVALS.items() if column == score)
    headings = ["learner", "seed", "state", score_heading]
    headings += [HELD_OUT] if held_out.notna().any() else []
    headings += ["samples", "seconds", "samples/s", "engine", "run"]
    rows = []
    for run in runs.table.to_dict("records"):
        path = run["path"]
        engine = statuses[path].get("engine") or {}
        cells = [
            Cell(run["label"], run["label"].casefold()),
            _number_cell(run["seed"], "d"),
            Cell(run["state"], run["state"]),
            _number_cell(of_run[path], ".2f" if percent == 100 else ".4g"),
            *([_number_cell(held_out[path], ".2f")] if HELD_OUT in headings else []),
            _number_cell(run["step"], ",d"),
            _number_cell(run["wall_time"], ",.1f"),
            _number_cell(run["samples_per_second"], ",.0f"),
            Cell(str(engine.get("name", "")), str(engine.get("name", "")), title=engine.get("reason")),
            Cell(run["run_id"], run["run_id"], href=f"#{anchors[path]}"),
        ]
        rows.append(Row(runs.labels.index(run["label"]), cells))
    return Table(headings, rows)


def configurations(runs: Runs, section_id: str) -> list[dict[str, Any]]:
    """What was run, once for all runs that differ in their seeds only.

    Each has id, learner (place of its label), label, settings (names and values, without versions and platform),
    versions, platform, command (which repeats its first run; None if flags cannot express it), seeds, paths.
    """
    groups: dict[str, list[str]] = {}
    for path in runs.table["path"]:
        groups.setdefault(json.dumps(_without_seed(runs.configs[path]), sort_keys=True), []).append(path)
    found = []
    labels = dict(zip(runs.table["path"], runs.table["label"], strict=True))
    for number, paths in enumerate(groups.values()):
        config = runs.configs[paths[0]]
        shown = {
            key: value for key, value in _without_seed(config).items() if key not in ("versions", "platform", "label")
        }
        found.append(
            {
                "id": f"{section_id}-c{number}",
                "learner": runs.labels.index(labels[paths[0]]),
                "label": labels[paths[0]],
                "settings": list(_flattened(shown)),
                "versions": _listed(_known(config.get("versions", {})), " "),
                "platform": _listed(config.get("platform", {})),
                "command": run_command(config),
                "seeds": _ranges(runs.configs[path]["seed"] for path in paths),
                "first_seed": config["seed"],
                "paths": paths,
            }
        )
    return found


def description(runs: Runs, selection: Runs | None = None) -> dict[str, str]:
    """What was run, in words: term → text."""
    first = runs.first_config()
    info = first["stream_info"]
    options = {
        key: value for key, value in first["stream"].items() if value is not None and key not in ("name", "source")
    }
    n_samples, n_experiences = int(runs.table["n_samples"].max()), int(runs.table["n_experiences"].max())
    shape = " × ".join(map(str, info.get("input_shape", [])))
    network = {key: value for key, value in first["network"].items() if key != "name"}
    facts = {
        "Stream": f"{info['definition']}, images of {info['source']}" if info.get("source") else info["definition"],
        "Images of": _listed(info.get("splits") or {}, ": "),
        "Stream’s options": _listed(options),
        "Length": f"{n_samples:,} samples, {n_experiences:,} experience{'s' * (n_experiences != 1)}",
        "Inputs and outputs": f"{shape} → {info['n_outputs']}" if shape else f"{info['n_outputs']} outputs",
        "Network": ", ".join(filter(None, [first["network"].get("name", ""), _listed(network)])),
        "Parameters": _ranges(runs.table["n_parameters"], ","),
        "Seeds": _ranges(runs.table["seed"]),
        "Settings chosen on": "" if selection is None or not len(selection) else _chosen_on(selection),
        "Versions": _differing(runs, "versions", " "),
        "Machine": _differing(runs, "platform", " = "),
    }
    return {term: text for term, text in facts.items() if text}


def learner_settings(runs: Runs) -> list[tuple[str, str, str]]:
    """What distinguishes the learners: for each its label, registered name and options.

    Options are its step size, its base update, and those in which it differs from another learner of this name.
    """
    learners = {label: runs.first_config(label)["learner"] for label in runs.labels}
    rows = []
    for label, learner in learners.items():
        namesakes = [other for other in learners.values() if other["name"] == learner["name"]]
        shown = {
            key: value
            for key, value in learner.items()
            if key != "name" and (key in ("lr", "base") or any(other.get(key) != value for other in namesakes))
        }
        rows.append((label, learner["name"], _listed(shown)))
    return rows


def not_finished(runs: Runs, statuses: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """The runs that diverged, failed or have not ended: learner, seed, state, samples, reason, folder."""
    rows = []
    states = ("diverged", "failed", "running")
    chosen = runs.table[runs.table["state"].isin(states)]
    for run in sorted(chosen.to_dict("records"), key=lambda run: states.index(run["state"])):
        status = statuses[run["path"]]
        reason = status.get("reason") or "no reason was recorded"
        if run["state"] == "running" and not status.get("reason"):
            reason = f"last sign of life: {status.get('heartbeat', 'none')}"
        samples = f"{run['step']:,} of {run['n_samples']:,}"
        cells = [run["label"], str(run["seed"]), run["state"], samples, reason, Path(run["path"]).name]
        rows.append(Row(runs.labels.index(run["label"]), [Cell(text, text) for text in cells]))
    return rows


def _with_download(study: Study) -> dict[str, Any]:
    """A study's facts, and its `study.json` as a link."""
    record = None if study.record is None else json.dumps(study.record, ensure_ascii=False, indent=1)
    link = None if record is None else f"data:application/json;base64,{base64.b64encode(record.encode()).decode()}"
    return study._asdict() | {"description": (study.record or {}).get("description", ""), "link": link}


def _totals(parts: Sequence[Runs]) -> dict[str, str]:
    table = pd.concat([part.table for part in parts])
    states = table["state"].value_counts()
    counts = {state: f"{states[state]:,}" for state in ("finished", "diverged", "failed", "running") if state in states}
    hours = table["wall_time"].sum() / 3600
    return {
        "runs": f"{len(table):,}",
        **counts,
        "samples": f"{table['step'].sum():,}",
        "of computing": f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:,.1f} min",
    }


def _intervals(table: pd.DataFrame, column: str) -> list[Interval | None]:
    """Means and intervals of a column as places on an axis that shows all of them; None where seeds are bimodal."""
    mean = table[column].to_numpy(dtype=float)
    if f"{column}_seeds" in table:
        mean = np.where(table[f"{column}_seeds"] == "", mean, np.nan)
    half_width = np.nan_to_num(table[f"{column}_ci"].to_numpy(dtype=float), nan=0.0, posinf=0.0)
    known = np.isfinite(mean)
    if known.sum() < 2:
        return [None] * len(table)
    low, high = (mean - half_width)[known].min(), (mean + half_width)[known].max()
    if column == "difference":
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return [None] * len(table)

    def place(value: float) -> float:
        return round(float(2 + 96 * (value - low) / (high - low)), 2)

    zero = place(0.0) if column == "difference" else None
    return [
        Interval(place(middle), place(middle - width), place(middle + width), zero) if finite else None
        for middle, width, finite in zip(mean, half_width, known, strict=True)
    ]


def _cell(text: str, sort: float | str | None, interval: Interval | None) -> Cell:
    """A cell; of single seeds, the page shows the least and the largest, and all of them in an explanation."""
    short = shortened(text)
    return Cell(short, sort, interval, title=text if short != text else None)


def _number(text: str) -> float | None:
    """The number that a text such as "−1,234.5 ± 0.6" or "median 39.9 (…)" begins with."""
    text = text.removeprefix("median ")
    if text.startswith("∞"):
        return math.inf
    found = re.match(r"[−+-]?[\d,]*\.?\d+(e[+-]?\d+)?", text)
    return float(found[0].replace("−", "-").replace(",", "")) if found else None


def _number_cell(value: float, form: str) -> Cell:
    if value is None or math.isnan(value):
        return Cell("", None)
    return Cell(f"{value:{form}}".replace("inf", "∞"), float(value))


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    content = {key: value for key, value in config.items() if key not in _OF_ONE_RUN}
    stream_info = {key: value for key, value in config["stream_info"].items() if key != "fingerprint"}
    return content | {"stream_info": stream_info}


def _flattened(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names such as "stream.source", and values as short texts."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _short(value)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > _MAX_ITEMS:
        return f"{', '.join(map(_short, value[:_MAX_ITEMS]))}, … ({len(value):,} in all)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _known(content: Mapping[str, Any]) -> dict[str, Any]:
    """What has a value: a package that came without its source has no `source_revision`."""
    return {key: value for key, value in content.items() if value is not None}


def _listed(content: Mapping[str, Any], between: str = " = ") -> str:
    return ", ".join(f"{key}{between}{_short(value)}" for key, value in content.items())


def _differing(runs: Runs, key: str, between: str) -> str:
    """What all runs recorded under a key, each content once."""
    attempts = (attempt for config in runs.configs.values() for attempt in (config, *config.get("resumed", ())))
    return "; ".join(dict.fromkeys(_listed(_known(attempt.get(key, {})), between) for attempt in attempts))


def _ranges(numbers: Iterable[int], form: str = "") -> str:
    """Whole numbers as text: 0–4, 7."""
    return ", ".join(
        f"{part[0]:{form}}–{part[-1]:{form}}" if len(part) > 2 else ", ".join(f"{number:{form}}" for number in part)
        for part in stretches(map(int, numbers))
    )


def _chosen_on(selection: Runs) -> str:
    return f"seeds {_ranges(selection.table['seed'])}, with {len(selection):,} further runs"


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
