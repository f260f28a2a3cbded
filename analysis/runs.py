"""Read run directories into data frames. `docs/run-directory.md` says what a run directory holds."""

from __future__ import annotations

import collections
import contextlib
import html
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from continual_metaopt.analysis.files import open_regular
from continual_metaopt.analysis.records import REPAIR, open_table, read_config, read_status
from continual_metaopt.analysis.run_directory import CONFIG, ENDED, MAX_TEXT, TABLES, TEXTS

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

T = TypeVar("T")

MOST_SHOWN = 20  # learners and seeds in a notebook
TUNED = " (tuned)"  # ends the label of a learner whose setting was chosen

SMALL, KEPT = 2**16, 2**28  # bytes of the file of a table that is kept in memory, and of all that are kept

# Options of a stream that do not decide what it presents: where files lie, and how they are read.
_NOT_DECISIVE = ("name", "seed", "data_root", "memory_limit")


@dataclass(frozen=True, eq=False)
class Runs:
    """A set of runs. Their tables are read when first asked for, and kept.

    Attributes:
        table: one row per run, ordered by study, by the configuration's `order` where it has one, by label and by seed.
            A learner whose setting was chosen is labelled "… (tuned)", see `chosen_setting`.
            Columns: run_id, path, study, label, seed, purpose, state, reason, step, learned_step_sizes, definition,
            fingerprint, stationary, n_experiences, n_samples, n_outputs, n_parameters, wall_time (seconds),
            samples_per_second, record_samples_every, n_correct (exact count; None in runs of earlier versions and in
            regressions).
        configs: the content of `config.json` of each run, by path.
        n_superseded: how many runs of earlier versions of a study were left out.
        left_out: what is wrong with directories that were left out because they cannot be read, by path.
    """

    table: pd.DataFrame
    configs: dict[str, dict[str, Any]]
    n_superseded: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    _kept: _Kept = field(default_factory=lambda: _Kept(), repr=False)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        if not len(self):
            return "Runs(no runs)"
        states = ", ".join(f"{n} {state}" for state, n in self.table["state"].value_counts().items())
        streams = ", ".join(dict.fromkeys(self.table["definition"]))
        seeds = sorted(map(int, set(self.table["seed"])))
        named = ", ".join(map(str, seeds[:MOST_SHOWN])) + ", …" * (len(seeds) > MOST_SHOWN)
        counted = [f"{n:,} {what}{'s' * (n != 1)}" for what, n in (("run", len(self)), ("learner", len(self.labels)))]
        return f"Runs({' of '.join(counted)} on {streams}, seed{'s' * (len(seeds) != 1)} {named}; {states})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.summary()[:MOST_SHOWN].to_html(index=False, na_rep='')}"

    def summary(self) -> pd.DataFrame:
        """One row per learner: label, number of runs, and means over those that finished.

        The means are online_accuracy (%; NaN of regressions, and where samples cannot be read) and samples_per_second.
        `comparison_table` has intervals and differences.
        """
        finished = self.table["state"] == "finished"
        rows = self.table.assign(online_accuracy=np.nan)
        with contextlib.suppress(OSError, ValueError):
            counts = self.correct_counts.astype(float)
            rows["online_accuracy"] = rows["path"].map(100 * counts["n_correct"] / counts["n_rows"]).astype(float)
        means = rows[finished].groupby("label", sort=False)[["online_accuracy", "samples_per_second"]].mean()
        counted = rows.groupby("label", sort=False).size().rename("runs")
        joined = counted.to_frame().join(means).reset_index()
        return joined.round({"online_accuracy": 1, "samples_per_second": 0})

    @cached_property
    def labels(self) -> list[str]:
        """The labels, in the order of `table`."""
        return list(dict.fromkeys(self.table["label"]))

    def paths_of(self, label: str) -> list[str]:
        """The paths of a learner's runs, in the order of `table`."""
        return list(self.table.loc[self.table["label"] == label, "path"])

    def first_config(self, label: str | None = None) -> dict[str, Any]:
        """The configuration of the first run, or of a learner's first run."""
        return self.configs[self.table["path"].iloc[0] if label is None else self.paths_of(label)[0]]

    @cached_property
    def samples(self) -> pd.DataFrame:
        """All samples: label, seed, run, step, experience, correct, loss."""
        return self._concatenate("samples")

    @cached_property
    def step_sizes(self) -> pd.DataFrame:
        """All recorded step sizes: label, seed, run, step, block, step_size, and their quantiles q05, q25, q75, q95."""
        return self._concatenate("step_sizes")

    @cached_property
    def measurements(self) -> pd.DataFrame:
        """All other measurements: label, seed, run, step, quantity, block, statistic, value."""
        return self._concatenate("measurements")

    @cached_property
    def experiences(self) -> pd.DataFrame:
        """All experiences: label, seed, run, and the columns of the table `experiences`."""
        return self._concatenate("experiences")

    @cached_property
    def correct_counts(self) -> pd.DataFrame:
        """Samples and correct predictions of each finished or diverged run, indexed by path.

        Columns: n_rows, n_correct (NaN for regression). They are exact where only some samples have been recorded.

        Raises:
            ValueError: the samples of a run do not agree with its state.
        """
        ended = self.table[self.table["state"].isin(ENDED)]
        rows = []
        counts = ended[["path", "record_samples_every", "step", "n_correct"]]
        for path, every, step, n_correct in counts.itertuples(index=False, name=None):
            counted = self.once(path, "counts", partial(self._counts, path))
            rows.append(counted if every == 1 else (step, n_correct))
        return pd.DataFrame(rows, index=pd.Index(ended["path"], name="run"), columns=["n_rows", "n_correct"])

    def _counts(self, run: str) -> tuple[int, float]:
        correct = self.correct(run)
        return len(correct), float(correct.sum())

    def once(self, run: str, name: str, compute: Callable[[], T]) -> T:
        """Compute a small fact about a run once, also for the sets of runs that are made of this one.

        Returns:
            The fact; computed anew each time for a run that has not ended.
        """
        if self._states[run] not in ENDED:
            return compute()
        facts = self._kept.facts
        if (run, name) not in facts:
            facts[run, name] = compute()
        fact: T = facts[run, name]
        return fact

    @cached_property
    def _states(self) -> dict[str, str]:
        return dict(zip(self.table["path"], self.table["state"], strict=True))

    def correct(self, run: str) -> np.ndarray:
        """Whether each prediction of one run was correct.

        Returns:
            Array of float64 [number of recorded samples]: 1 or 0, NaN for regression. Where only some samples have
            been recorded, they are those at multiples of `record_samples_every`.

        Raises:
            ValueError: a finished run lacks samples, or a run has more samples than its stream.
        """
        correct = _numbers(self._arrow(run, "samples", ["correct"]).column("correct"))
        state = self._states[run]
        n_samples, every = self.configs[run]["stream_info"]["n_samples"], record_samples_every(self.configs[run])
        expected = -(-n_samples // every)
        if len(correct) > expected or (state == "finished" and len(correct) != expected):
            of_them = "" if every == 1 else f", of which {expected} are recorded"
            raise ValueError(
                f"{run}: the run is {state} and its stream has {n_samples} samples{of_them}, but {len(correct)} are "
                f"recorded; {REPAIR}"
            )
        return correct

    def read(self, run: str, table: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read one table of one run, from the merged file or from its parts.

        Args:
            run: the path of the run, as in `table`.
            table: `"samples"`, `"step_sizes"`, `"measurements"` or `"experiences"`.
            columns: the columns to read; all if None.

        Returns:
            The table; without rows if nothing has been written yet.

        Raises:
            ValueError: a file cannot be read, or lacks a column.
        """
        return _frame(self._arrow(run, table, list(columns or TABLES[table])))

    def read_together(self, paths: Sequence[str], table: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read one table of several runs, see `read`; the column `run` says whose a row is, by its place in `paths`."""
        chosen = list(columns or TABLES[table])
        tables = [self._arrow(path, table, chosen) for path in paths]
        lengths = np.array([len(of_run) for of_run in tables], dtype=int)
        return _frame(_joined(tables, chosen)).assign(run=np.repeat(np.arange(len(paths)), lengths))

    def _arrow(self, run: str, table: str, columns: list[str]) -> pa.Table:
        read = self._kept.read if self._states[run] in ENDED else _read
        return read(Path(run), self.configs[run], table, columns)

    def batches(self, run: str, table: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read one table of one run piece by piece, in flat memory; arguments and errors as for `read`.

        Yields:
            Batches of at most 65,536 rows, with null for columns that runs of earlier versions lack.
        """
        yield from _batches(Path(run), self.configs[run], table, list(columns or TABLES[table]))

    def select(self, **equals: Any) -> Runs:
        """Keep the runs whose columns equal the given values.

        Args:
            **equals: column of `table` = a value, a collection of values, or None for a missing value.

        Returns:
            The runs that fulfil all conditions, in the same order; possibly none.

        Raises:
            ValueError: there is no such column.
        """
        keep = pd.Series(True, index=self.table.index)
        for column, value in equals.items():
            if column not in self.table:
                raise ValueError(f"runs have no column {column!r}; they have {', '.join(self.table.columns)}")
            if value is None:
                keep &= self.table[column].isna()
            elif isinstance(value, Collection) and not isinstance(value, str):
                keep &= self.table[column].isin(list(value))
            else:
                keep &= self.table[column] == value
        return self.among(self.table.loc[keep, "path"])

    def among(self, paths: Iterable[str]) -> Runs:
        """Keep the runs with some of these paths, in the order of `table`."""
        table = self.table[self.table["path"].isin(set(paths))].reset_index(drop=True)
        return Runs(table, {path: self.configs[path] for path in table["path"]}, _kept=self._kept)

    def readable(self) -> Runs:
        """Leave out runs of which a table cannot be read; `left_out` says which and why.

        Returns:
            The others, in the same order.

        Raises:
            ValueError: there is no other.
        """
        left_out = {}
        for path, state in self._states.items():
            try:
                for name in TABLES:
                    if _is_small(Path(path), name):
                        self._arrow(path, name, list(TABLES[name]))
                    else:
                        collections.deque(self.batches(path, name), maxlen=0)
                if state in ENDED:
                    self.correct(path)
            except (OSError, ValueError) as error:
                left_out[path] = str(error)
        if left_out and len(left_out) == len(self):
            raise ValueError(next(iter(left_out.values())))
        kept = self.among(path for path in self.table["path"] if path not in left_out)
        return replace(kept, n_superseded=self.n_superseded, left_out={**self.left_out, **left_out})

    def by_stream(self) -> dict[str, Runs]:
        """Split into sets that ran on the same stream, apart from its seed.

        Returns:
            Title of the stream → its runs. The title is the stream's definition and whatever differs between the
            streams, such as `"class_split v1, stationary=shuffled"`.
        """
        descriptions = {path: _stream_description(self.configs[path]) for path in self.table["path"]}
        keys = dict.fromkeys(key for description in descriptions.values() for key in description)
        differing = [key for key in keys if len({d.get(key) for d in descriptions.values()}) > 1]
        groups: dict[str, list[str]] = {}
        for path, description in descriptions.items():
            parts = [f"{key}={description.get(key, 'none')}" for key in differing if key != "definition"]
            groups.setdefault(", ".join([description["definition"], *parts]), []).append(path)
        return {title: self.among(paths) for title, paths in groups.items()}

    def require_one_stream(self) -> None:
        """Check that the runs may be averaged over seeds, paired by seed, and drawn together.

        Raises:
            ValueError: there is no run, the runs come from different streams or from different images under one name,
                or two runs with the same seed did not see the same samples in the same order.
        """
        if not len(self):
            raise ValueError("there are no runs to analyse")
        streams = self.by_stream()
        if len(streams) > 1:
            raise ValueError(
                f"the runs come from {len(streams)} different streams ({'; '.join(streams)}): "
                "analyse them separately, for instance with Runs.by_stream()"
            )
        self._require_equal_fingerprints()
        self._require_equal_sources()

    def _require_equal_fingerprints(self) -> None:
        kinds = self.table.groupby("seed", sort=False)["fingerprint"].nunique()
        for seed in kinds.index[kinds > 1]:
            group = self.table[self.table["seed"] == seed].drop_duplicates("fingerprint")
            first, second = group["path"].iloc[:2]
            raise ValueError(
                f"{first} and {second} both have seed {seed}, but did not see the same samples in the same order: "
                f"{_differences(self.configs[first], self.configs[second])}. They cannot be compared: leave one of "
                "them out, or move it elsewhere and repeat the run"
            )

    def _require_equal_sources(self) -> None:
        hashes = {path: self.configs[path]["stream_info"].get("source_hash") for path in self.table["path"]}
        known = {path: value for path, value in hashes.items() if value is not None}  # earlier versions lack it
        for path, value in known.items():
            first = next(iter(known))
            if value != known[first]:
                source = self.configs[path]["stream_info"]["source"]
                raise ValueError(
                    f"{first} and {path} saw different images: what was stored as source {source!r} has changed "
                    f"between them (source_hash {known[first]} and {value}). They cannot be averaged: leave one of "
                    "them out, or move it elsewhere and repeat the run"
                )

    def _concatenate(self, name: str) -> pd.DataFrame:
        frame = self.read_together(list(self.table["path"]), name)
        # Categories keep the repeated texts small: a study has millions of samples.
        whose = frame.pop("run").to_numpy()
        labels = pd.Categorical(self.table["label"], self.labels).codes[whose]
        frame.insert(0, "label", pd.Series(pd.Categorical.from_codes(labels, pd.Index(self.labels))))
        frame.insert(1, "seed", self.table["seed"].to_numpy()[whose])
        frame.insert(2, "run", pd.Series(pd.Categorical.from_codes(whose, pd.Index(self.table["path"]))))
        return frame


def load_runs(*paths: str | os.PathLike[str], purpose: str | None = "report") -> Runs:
    """Find all run directories at or below some paths and read what was run and how it went.

    Runs of an earlier version of a study, whose learner has other options now, are left out unless a path names them.
    So are directories whose descriptions cannot be read, as long as others can: `Runs.left_out` says which and why.

    Args:
        *paths: directories. A run directory is one that holds `config.json`. Links below them are not followed.
        purpose: keep only runs with this purpose: `"report"`, or `"selection"` for runs that only served to choose a
            setting. None keeps all.

    Returns:
        The runs; their tables are read later, when needed.

    Raises:
        FileNotFoundError: a path does not exist, or there is no run directory.
        ValueError: no description can be understood, or no run has this purpose.
    """
    if not paths:
        raise ValueError("load_runs needs at least one path")
    # A run that is reached through two of the paths is one run.
    directories = list({found.resolve(): found for path in paths for found in _run_directories(Path(path))}.values())
    named = {Path(path) for path in paths}
    read: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    left_out: dict[str, str] = {}
    n_superseded = 0
    for directory in directories:
        try:
            status = read_status(directory)
            if status.get("superseded") and directory not in named:
                n_superseded += 1
                continue
            read[str(directory)] = read_config(directory), status
        except ValueError as error:
            left_out[str(directory)] = str(error)
    if left_out and not read:
        raise ValueError(next(iter(left_out.values())))
    kept = {path: config for path, (config, _) in read.items() if purpose in (None, config["purpose"])}
    if not kept:
        found = ", ".join(sorted({config["purpose"] for config, _ in read.values()}))
        raise ValueError(
            f"none of the {len(read)} runs found has the purpose {purpose!r} (found: {found}); "
            "purpose=None loads all of them"
        )
    ordered = sorted(kept, key=lambda path: _sort_key(path, kept[path]))
    labels = _shown_labels(kept)
    table = pd.DataFrame([_row(path, labels[path], kept[path], read[path][1]) for path in ordered])
    return Runs(table, {path: kept[path] for path in ordered}, n_superseded, left_out)


def record_samples_every(config: Mapping[str, Any]) -> int:
    """Distance in steps between the samples that a run has recorded one by one, given its configuration."""
    return int(config.get("record_samples_every", 1))


def chosen_setting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a reported run's learner whose values were chosen by tuning.

    Returns:
        Option → value; empty for a learner that was not tuned, and for runs of versions that did not record it.
    """
    return {name: config["learner"][name] for name in config.get("tuned", ())}


def _shown_labels(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What learners are called in tables and figures, by the path of a run: "AdamW (tuned)" if its setting was chosen.

    The setting stands in the label, as it was recorded, where that would not say which one is meant: of runs that serve
    to choose, and of a learner that has several settings on one stream.
    """
    labels = {path: config["label"] for path, config in configs.items()}
    reported = {path: config for path, config in configs.items() if config["purpose"] == "report"}
    tuned = {path: config for path, config in reported.items() if chosen_setting(config) and config.get("entry")}
    settings = collections.defaultdict(set)
    places = {path: (c["entry"], json.dumps([_stream_description(c), c["network"]])) for path, c in tuned.items()}
    for path, place in places.items():
        settings[place].add(json.dumps(chosen_setting(tuned[path])))
    taken = {label for path, label in labels.items() if path not in tuned}
    for path, place in places.items():
        short = place[0] if place[0].endswith("tuned") else place[0] + TUNED
        if len(settings[place]) == 1 and short not in taken:
            labels[path] = short
    return labels


def _run_directories(root: Path) -> Iterator[Path]:
    """Yield the run directories at or below `root`, in order of their names; links below it are not followed."""
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such directory")
    found = False
    for directory, subdirectories, files in os.walk(root):
        subdirectories.sort()
        if CONFIG in files:
            subdirectories.clear()  # what lies below belongs to the run
            found = True
            yield Path(directory)
    if not found:
        raise FileNotFoundError(f"{root}: no run directory (a directory with config.json) here or below")


def _sort_key(path: str, config: Mapping[str, Any]) -> tuple[Any, ...]:
    order = config.get("order")
    return (config["study"], float("inf") if order is None else order, config["label"], config["seed"], path)


def _row(path: str, label: str, config: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    stream = config["stream_info"]
    return {
        "run_id": config["run_id"],
        "path": path,
        "study": config["study"],
        "label": label,
        "seed": config["seed"],
        "purpose": config["purpose"],
        "state": status["state"],
        "reason": status.get("reason"),
        "step": status.get("step", 0),
        "learned_step_sizes": config["learned_step_sizes"],
        "definition": stream["definition"],
        "fingerprint": stream["fingerprint"],
        "stationary": stream.get("stationary"),
        "n_experiences": stream["n_experiences"],
        "n_samples": stream["n_samples"],
        "n_outputs": stream["n_outputs"],
        "n_parameters": config["n_parameters"],
        "wall_time": _number(status.get("wall_time")),
        "samples_per_second": _number(status.get("samples_per_second")),
        "record_samples_every": record_samples_every(config),
        "n_correct": status.get("n_correct"),
    }


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _stream_description(config: Mapping[str, Any]) -> dict[str, str]:
    """Say in comparable texts which stream a run used, apart from its seed."""
    info = config["stream_info"]
    description = {key: info.get(key) for key in ("definition", "source", "stationary", "n_experiences")}
    for key, value in config["stream"].items():
        if key not in _NOT_DECISIVE:
            description.setdefault(key, value)
    return {
        key: "none" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in description.items()
    }


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Say in which recorded fields the streams of two runs differ."""
    texts = []
    for part in ("stream_info", "stream"):
        ours, theirs = first[part], second[part]
        for key in dict.fromkeys([*ours, *theirs]):
            if key not in _NOT_DECISIVE and ours.get(key) != theirs.get(key):
                texts.append(f"{part}.{key} is {_shortened(ours.get(key))} and {_shortened(theirs.get(key))}")
    if len(texts) == 1:  # the fingerprint
        texts.append("nothing else that is recorded differs, so the stored images or the stream's code have changed")
    return "; ".join(texts)


def _shortened(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _files(directory: Path, name: str) -> list[Path]:
    """The merged file of a table, or its parts."""
    whole, folder = directory / f"{name}.parquet", directory / name
    if os.path.lexists(whole):
        return [whole]
    found = [] if folder.is_symlink() else folder.glob("part-*.parquet")
    parts = sorted(found, key=lambda part: (len(part.name), part.name))
    # once more, since parts are removed as soon as the merged file exists
    return [whole] if os.path.lexists(whole) else parts


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column as float64, NaN for null."""
    import pyarrow as pa

    numbers: np.ndarray = np.array(column.cast(pa.float64()).to_numpy())
    return numbers


class _Kept:
    """What a report asks for again and again: small tables, up to so many bytes in all, and facts about runs."""

    def __init__(self) -> None:
        self.facts: dict[tuple[str, str], Any] = {}
        self._tables: dict[tuple[Path, str], pa.Table] = {}
        self._n_bytes = 0

    def read(self, directory: Path, config: Mapping[str, Any], name: str, columns: list[str]) -> pa.Table:
        """A table of a run that has ended, as `_read` gives it."""
        table = self._tables.get((directory, name))
        if table is None:
            if not _is_small(directory, name):
                return _read(directory, config, name, columns)
            try:
                table = _read(directory, config, name, list(TABLES[name]))
            except ValueError:  # of a column, perhaps, that is not asked for
                return _read(directory, config, name, columns)
            if self._n_bytes + table.nbytes <= KEPT:
                self._tables[directory, name] = table
                self._n_bytes += table.nbytes
        return table.select(columns)


def _is_small(directory: Path, name: str) -> bool:
    try:
        return sum(file.lstat().st_size for file in _files(directory, name)) <= SMALL
    except FileNotFoundError:  # the run has ended meanwhile
        return False


def read_table(directory: Path, config: Mapping[str, Any], name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Read one table of a run, from the merged file or from its parts, if it can be one of this run.

    Returns:
        The table; without rows if nothing has been written yet.

    Raises:
        ValueError: a file cannot be read, lacks a column, or holds other types or more rows than such a run has.
    """
    return _frame(_read(directory, config, name, list(columns)))


def _frame(table: pa.Table) -> pd.DataFrame:
    if not len(table):
        return pd.DataFrame(columns=table.column_names)
    return table.to_pandas(ignore_metadata=True, use_threads=False)


def _read(directory: Path, config: Mapping[str, Any], name: str, columns: list[str]) -> pa.Table:
    """A table of a run as Arrow has it; arguments and errors as for `read_table`."""
    for attempt in range(2):
        try:
            parts = [_read_file(file, config, name, columns) for file in _files(directory, name)]
            return _joined(parts, columns)
        except FileNotFoundError:
            # The run has ended meanwhile, and its parts have been merged.
            if attempt:
                raise
    raise AssertionError("unreachable")


def _joined(tables: Sequence[pa.Table], columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    if len(tables) == 1:
        return tables[0]
    nothing = pa.table({column: pa.nulls(0) for column in columns})
    return pa.concat_tables([nothing, *tables], promote_options="permissive")


def _read_file(file: Path, config: Mapping[str, Any], name: str, columns: list[str]) -> pa.Table:
    texts = [column for column in columns if column in TEXTS]
    with _opened(file, config, name, columns, texts) as content:
        table = content.read(columns=columns, use_threads=False)
        for column in texts:
            place = table.schema.get_field_index(column)
            table = table.set_column(place, column, _short_texts(table.column(column), column))
        return _with_all(columns, table)


@contextlib.contextmanager
def _opened(
    file: Path, config: Mapping[str, Any], name: str, columns: Sequence[str], as_categories: Sequence[str] = ()
) -> Iterator[parquet.ParquetFile]:
    """Open a table; what goes wrong with it is told with its path, but for a file that is not there."""
    try:
        with open_regular(file) as opened, open_table(opened, config, name, columns, as_categories) as content:
            yield content
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"{file}: cannot be read as a table with {', '.join(columns)} ({reason}); {REPAIR}"
        raise ValueError(message) from error


def _with_all(columns: Sequence[str], rows: Any) -> Any:
    """A table or a batch with these columns, null for those that runs of earlier versions lack."""
    import pyarrow as pa

    for column in set(columns) - set(rows.schema.names):
        rows = rows.append_column(column, pa.nulls(len(rows), pa.float64()))
    return rows.select(columns)


def _short_texts(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A column of text as such, whose values are names: a short file could repeat a long text a million times."""
    import pyarrow as pa
    from pyarrow import compute

    for chunk in column.chunks:
        known = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        if len(known) and (compute.max(compute.binary_length(known)).as_py() or 0) > MAX_TEXT:
            raise ValueError(f"its column {name} holds a text of more than {MAX_TEXT:,} bytes")
    return column.cast(pa.string())


def _batches(directory: Path, config: Mapping[str, Any], name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    n_given = 0
    for attempt in range(2):
        try:
            n_to_skip = n_given
            for file in _files(directory, name):
                for batch in _batches_of_file(file, config, name, columns):
                    new = batch.slice(min(n_to_skip, len(batch)))
                    n_to_skip -= len(batch) - len(new)
                    n_given += len(new)
                    if len(new):
                        yield new
            return
        except FileNotFoundError:
            # The run has ended meanwhile, and its parts have been merged: the rest of the rows is there.
            if attempt:
                raise


def _batches_of_file(file: Path, config: Mapping[str, Any], name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with _opened(file, config, name, columns) as content:
        for batch in content.iter_batches(columns=columns):
            yield _with_all(columns, batch)
