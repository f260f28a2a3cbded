"""Read run directories into data frames. `docs/run-directory.md` says what a run directory holds."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd

from analysis.files import open_regular, read_regular

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
STATES = ("running", "finished", "diverged", "failed")
TABLES: Mapping[str, tuple[str, ...]] = {
    "samples": ("step", "experience", "correct", "loss"),
    "step_sizes": ("step", "block", "step_size", "q05", "q25", "q75", "q95"),
    "measurements": ("step", "quantity", "block", "statistic", "value"),
    "experiences": (
        "experience",
        "classes",
        "first_step",
        "n_samples",
        "n_seen_before",
        "n_correct",
        "online_accuracy",
        "mean_loss",
        "test_accuracy",
    ),
}

# that runs of earlier versions lack; NaN there
_ADDED_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "step_sizes": ("q05", "q25", "q75", "q95"),
    "experiences": ("mean_loss",),
}

_CONFIG_KEYS = (
    "run_id",
    "study",
    "label",
    "purpose",
    "stream",
    "seed",
    "evaluate",
    "learned_step_sizes",
    "stream_info",
    "blocks",
    "n_parameters",
)
REPAIR = "repair it, or move the run directory elsewhere and repeat the run"  # advice about what cannot be read
# Options of a stream that do not decide what it presents: where files lie, and how they are read.
_NOT_DECISIVE = ("name", "seed", "data_root", "memory_limit")
_STREAM_KEYS = ("definition", "fingerprint", "source", "n_experiences", "n_samples", "n_outputs", "boundaries")


@dataclass(frozen=True, eq=False)
class Runs:
    """A set of runs. Their tables are read when first asked for, and kept.

    Attributes:
        table: one row per run, ordered by study, by the configuration's `order` where it has one, by label and by seed.
            Columns: run_id, path, study, label, seed, purpose, state, reason, step, learned_step_sizes, definition,
            fingerprint, stationary, n_experiences, n_samples, n_outputs, n_parameters, wall_time (seconds),
            samples_per_second, record_samples_every, n_correct (exact count; None in runs of earlier versions and in
            regressions).
        configs: the content of `config.json` of each run, by path.
        n_superseded: how many runs of earlier versions of a study were left out.
    """

    table: pd.DataFrame
    configs: dict[str, dict[str, Any]]
    n_superseded: int = 0

    def __len__(self) -> int:
        return len(self.table)

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of `table`."""
        return list(dict.fromkeys(self.table["label"]))

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
        ended = self.table[self.table["state"].isin(["finished", "diverged"])]
        rows = []
        counts = ended[["path", "record_samples_every", "step", "n_correct"]]
        for path, every, step, n_correct in counts.itertuples(index=False, name=None):
            correct = self.correct(path)
            rows.append((len(correct), correct.sum()) if every == 1 else (step, n_correct))
        return pd.DataFrame(rows, index=pd.Index(ended["path"], name="run"), columns=["n_rows", "n_correct"])

    def correct(self, run: str) -> np.ndarray:
        """Whether each prediction of one run was correct.

        Args:
            run: the path of the run, as in `table`.

        Returns:
            Array of float64 [number of recorded samples]: 1 or 0, NaN for regression. Where only some samples have
            been recorded, they are those at multiples of `record_samples_every`.

        Raises:
            ValueError: a finished run lacks samples, or a run has more samples than its stream.
        """
        correct = self.read(run, "samples", ["correct"])["correct"].to_numpy(dtype=float, na_value=np.nan)
        state = self.table.loc[self.table["path"] == run, "state"].item()
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
        return _read_table(Path(run), table, list(columns or TABLES[table]))

    def batches(self, run: str, table: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Read one table of one run piece by piece, in flat memory; arguments and errors as for `read`.

        Yields:
            Batches of at most 65,536 rows, with null for columns that runs of earlier versions lack.
        """
        yield from _batches(Path(run), table, list(columns or TABLES[table]))

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
        """Keep some of the runs.

        Args:
            paths: of the runs to keep, as in `table`; others are passed over.

        Returns:
            These runs, in the order of `table`.
        """
        table = self.table[self.table["path"].isin(list(paths))].reset_index(drop=True)
        return Runs(table, {path: self.configs[path] for path in table["path"]})

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
        # Categories keep the repeated texts small: a study has millions of samples.
        labels = pd.CategoricalDtype(self.labels)
        paths = pd.CategoricalDtype(list(self.table["path"]))
        frames = []
        for run in self.table[["path", "label", "seed"]].to_dict("records"):
            frame = self.read(run["path"], name)
            if len(frame):
                frame.insert(0, "run", pd.Series([run["path"]] * len(frame), dtype=paths))
                frame.insert(0, "seed", run["seed"])
                frame.insert(0, "label", pd.Series([run["label"]] * len(frame), dtype=labels))
                frames.append(frame)
        if not frames:
            return pd.DataFrame(columns=["label", "seed", "run", *TABLES[name]])
        return pd.concat(frames, ignore_index=True)


def load_runs(*paths: str | os.PathLike[str], purpose: str | None = "report") -> Runs:
    """Find all run directories at or below some paths and read what was run and how it went.

    Runs of an earlier version of a study, whose learner has other options now, are left out unless a path names them.

    Args:
        *paths: directories. A run directory is one that holds `config.json`. Links below them are not followed.
        purpose: keep only runs with this purpose: `"report"`, or `"selection"` for runs that only served to choose a
            setting. None keeps all.

    Returns:
        The runs; their tables are read later, when needed.

    Raises:
        FileNotFoundError: a path does not exist, or there is no run directory.
        ValueError: a file cannot be understood, or no run has this purpose.
    """
    if not paths:
        raise ValueError("load_runs needs at least one path")
    # A run that is reached through two of the paths is one run.
    directories = list({found.resolve(): found for path in paths for found in _run_directories(Path(path))}.values())
    named = {Path(path) for path in paths}
    current = [found for found in directories if found in named or not is_superseded(found)]
    configs = {str(directory): _read_config(directory) for directory in current}
    kept = {path: config for path, config in configs.items() if purpose in (None, config["purpose"])}
    if not kept:
        found = ", ".join(sorted({config["purpose"] for config in configs.values()}))
        raise ValueError(
            f"none of the {len(configs)} runs found has the purpose {purpose!r} (found: {found}); "
            "purpose=None loads all of them"
        )
    ordered = sorted(kept, key=lambda path: _sort_key(path, kept[path]))
    table = pd.DataFrame([_row(path, kept[path], read_status(Path(path))) for path in ordered])
    return Runs(table, {path: kept[path] for path in ordered}, len(directories) - len(current))


def record_samples_every(config: Mapping[str, Any]) -> int:
    """Distance in steps between the samples that a run has recorded one by one, given its configuration."""
    return int(config.get("record_samples_every", 1))


def _run_directories(root: Path) -> Iterator[Path]:
    """Yield the run directories at or below `root`, in order of their names; links below it are not followed."""
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such directory")
    found = False
    for directory, subdirectories, files in os.walk(root):
        subdirectories.sort()
        if "config.json" in files:
            subdirectories.clear()  # what lies below belongs to the run
            found = True
            yield Path(directory)
    if not found:
        raise FileNotFoundError(f"{root}: no run directory (a directory with config.json) here or below")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {REPAIR}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is not a JSON object; {REPAIR}")
    return content


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    config = _read_json(path)
    version = config.get("schema_version")
    if version is None:
        raise ValueError(f"{path}: has no schema_version, so it is not a run's; pass only directories of runs")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema_version {version} is not supported, only {SCHEMA_VERSION}; "
            "use the version of this package that wrote the run"
        )
    missing = [key for key in _CONFIG_KEYS if key not in config]
    missing += [f"stream_info.{key}" for key in _STREAM_KEYS if key not in config.get("stream_info", {})]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; {REPAIR}")
    return config


def read_status(directory: Path) -> dict[str, Any]:
    """Read how a run went.

    Args:
        directory: of the run.

    Returns:
        The content of `status.json`; the state "running" if it has not been written yet.

    Raises:
        ValueError: the file cannot be understood.
    """
    path = directory / "status.json"
    if not path.exists():
        # The two files are not written at the same instant: such a run has only just started.
        return {"state": "running", "reason": "status.json has not been written yet"}
    status = _read_json(path)
    if status.get("state") not in STATES:
        raise ValueError(f"{path}: state {status.get('state')!r} is none of {', '.join(STATES)}; {REPAIR}")
    return status


def is_superseded(directory: Path) -> bool:
    """Whether a run has been replaced by another of the same learner and seed, in a later version of its study.

    Args:
        directory: of the run.

    Returns:
        What its `status.json` says; False where that cannot be read.
    """
    try:
        return bool(_read_json(directory / "status.json").get("superseded"))
    except ValueError:
        return False


def _sort_key(path: str, config: Mapping[str, Any]) -> tuple[Any, ...]:
    order = config.get("order")
    return (config["study"], float("inf") if order is None else order, config["label"], config["seed"], path)


def _row(path: str, config: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any]:
    stream = config["stream_info"]
    return {
        "run_id": config["run_id"],
        "path": path,
        "study": config["study"],
        "label": config["label"],
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
    # The parts are listed first: they are removed only after the merged file exists.
    folder = directory / name
    found = [] if folder.is_symlink() else folder.glob("part-*.parquet")
    parts = sorted(found, key=lambda part: (len(part.name), part.name))
    whole = directory / f"{name}.parquet"
    return [whole] if os.path.lexists(whole) else parts


def _read_table(directory: Path, name: str, columns: list[str]) -> pd.DataFrame:
    for attempt in range(2):
        try:
            return _read_files(_files(directory, name), columns, _ADDED_COLUMNS.get(name, ()))
        except FileNotFoundError:
            # The run has ended meanwhile, and its parts have been merged.
            if attempt:
                raise
    raise AssertionError("unreachable")


def _batches(directory: Path, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    n_given = 0
    for attempt in range(2):
        try:
            n_to_skip = n_given
            for file in _files(directory, name):
                for batch in _batches_of_file(file, columns, _ADDED_COLUMNS.get(name, ())):
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


def _batches_of_file(file: Path, columns: list[str], added: Collection[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with open_regular(file) as opened, parquet.ParquetFile(opened) as content:
            known = content.schema_arrow.names
            absent = [column for column in columns if column not in known]
            if not set(absent) <= set(added):
                raise ValueError(f"it lacks {absent[0]}")
            for batch in content.iter_batches(columns=[column for column in columns if column in known]):
                for column in absent:
                    batch = batch.append_column(column, pa.nulls(len(batch), pa.float64()))
                yield batch.select(columns)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(file, columns, error) from error


def _unreadable(file: Path, columns: Sequence[str], error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(f"{file}: cannot be read as a table with {', '.join(columns)} ({reason}); {REPAIR}")


def _read_files(files: Sequence[Path], columns: list[str], added: Collection[str]) -> pd.DataFrame:
    frames = []
    for file in files:
        try:
            # Without partitioning=None, a folder called "seed=1" would become a column.
            with open_regular(file) as opened:
                present = _present(opened, columns, added)
                frame = pd.read_parquet(opened, columns=present, partitioning=None, page_checksum_verification=True)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable(file, columns, error) from error
        if len(frame):
            frames.append(frame.reindex(columns=columns))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _present(file: BinaryIO, columns: list[str], added: Collection[str]) -> list[str]:
    """The columns to read of a file, which may lack those that later versions have added."""
    if not any(column in added for column in columns):
        return columns
    from pyarrow import parquet

    known = parquet.read_schema(file).names
    return [column for column in columns if column in known or column not in added]
