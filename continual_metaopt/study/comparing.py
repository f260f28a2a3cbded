"""``compare``: run a study from Python, in a script or a notebook."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from continual_metaopt.analysis.runs import Runs, load_runs
from continual_metaopt.engines import Engine
from continual_metaopt.runs.components import Component, ConfigError, factory_of
from continual_metaopt.runs.process_settings import available_device
from continual_metaopt.streams.array_files import save_arrays
from continual_metaopt.study.check import check_study
from continual_metaopt.study.expand import Study
from continual_metaopt.study.jobs import StudyInterrupted
from continual_metaopt.study.load import folder_of, load_studies
from continual_metaopt.study.running import PoolOptions, run_studies


def compare(
    study: str | Path | Mapping[str, Any] = "quick",
    *,
    out: str | Path | None = None,
    source: Any = None,
    data_root: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    engine: Engine | None = None,
    device: str | None = None,
    workers: int | None = None,
    threads: bool | None = None,
    progress: bool = True,
) -> Runs:
    """Run a study, or what is left of it, and return its runs; a notebook shows them as a table.

    ``analysis.comparison_table``, the figures of ``analysis.figures`` and ``analysis.write_report`` take the result.
    A script must call this below ``if __name__ == "__main__":``, since the processes that do the runs import it.

    Args:
        study: the content of a study file as a dictionary, its path, or the name of a packaged study. In a dictionary,
            the stream may be a benchmark of Avalanche or of this package, or {"benchmark": …} with options of
            ``array_stream``, which is presented as it is for all seeds; and a stream's source may be arrays. Both are
            written into the study's folder, as ``npz:FILE``.
        out: folder of the study's runs; runs/NAME if not given. Runs that have ended there are not repeated.
        source: the streams' source, instead of those in the study; also arrays (x, y) or (x, y, x_test, y_test).
        data_root: folder of the files of torchvision's data sets.
        seeds: the reported seeds, instead of the study's own.
        engine: how steps are executed, instead of the study's own way.
        device: where the learners are: "cpu", "cuda", "cuda:N" or "mps".
        workers: runs at a time; None for one per processor.
        threads: do the runs in threads of this process, which needs less memory and knows what a notebook has
            registered. If None, it is so where a notebook itself defines a stream, network or learner of the study.
            Learners that draw random numbers, as for dropout, can't be repeated then.
        progress: show a bar with the time left, in a terminal or a notebook.

    Returns:
        The reported runs.

    Raises:
        ConfigError: the study is not valid; the message names the field.
        FileNotFoundError: there is no such file.
        RunsFailed: some runs failed; all others have been run.
        KeyboardInterrupt: after Ctrl-C; nothing recorded is lost, and the same call goes on.

    Example:
        >>> import tempfile
        >>> study = {
        ...     "name": "first",
        ...     "stream": {"name": "permuted_inputs", "n_experiences": 2, "samples_per_experience": 100},
        ...     "network": {"name": "linear"},
        ...     "learners": [{"name": "metaoptimize", "lr": 0.001}, {"name": "fixed", "lr": 0.001}],
        ...     "seeds": [0],
        ... }
        >>> compare(study, out=tempfile.mkdtemp(), threads=True, progress=False)
        Runs(2 runs of 2 learners on permuted_inputs v1, seed 0; 2 finished)
    """
    folder = _folder_of(study) if out is None else Path(out)
    if isinstance(study, Mapping):
        study = _with_files(study, folder / "sources")
    if source is not None and not isinstance(source, str):
        source = save_arrays(folder / "sources", *source)
    parts = load_studies(study, source=source, data_root=data_root, seeds=seeds, engine=engine, device=device)
    for label, part in parts.items():
        try:
            check_study(part)
        except ConfigError as error:
            raise ConfigError(f"{label}: {error}" if label else str(error)) from error
        available_device(part.config.device)
    if threads is None:
        threads = any(map(_is_known_here_alone, parts.values()))
    try:
        results = run_studies(parts, folder, PoolOptions(workers, progress, threads))
    except StudyInterrupted:
        raise KeyboardInterrupt("what is recorded is kept; the same call goes on") from None
    return load_runs(*(path for result in results.values() for path in result.runs))


def _folder_of(study: str | Path | Mapping[str, Any]) -> Path:
    """The folder of a study's runs, as the command line names it."""
    if isinstance(study, Mapping):
        return Path("runs") / str(study.get("name", "study"))
    return folder_of(load_studies(study))


def _with_files(study: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The content of a study with the names of files in place of arrays and benchmarks."""
    content = dict(study)
    if "stream" in content:
        content["stream"] = _stream_of_files(content["stream"], folder)
    if "streams" in content:
        content["streams"] = [_stream_of_files(stream, folder) for stream in content["streams"]]
    return content


def _stream_of_files(stream: Any, folder: Path) -> Any:
    if hasattr(stream, "train_stream"):
        return _as_arrays(stream, folder)
    if isinstance(stream, Mapping) and hasattr(stream.get("benchmark"), "train_stream"):
        others = {name: value for name, value in stream.items() if name not in ("benchmark", "name")}
        return _as_arrays(stream["benchmark"], folder) | others
    if isinstance(stream, Mapping) and not isinstance(stream.get("source", ""), str):
        return dict(stream) | {"source": save_arrays(folder, *stream["source"])}
    return stream


def _as_arrays(benchmark: Any, folder: Path) -> dict[str, Any]:
    """Describe a benchmark as a stream of the samples that it presents, once each, which are written to a file."""
    import numpy as np

    from continual_metaopt.streams.benchmark import read_samples

    arrays, boundaries = [], []
    for experiences in (benchmark.train_stream, benchmark.test_stream):
        datasets = [experience.dataset for experience in experiences]
        parts = [read_samples(dataset, slice(0, len(dataset))) for dataset in datasets if len(dataset)]
        arrays += [np.concatenate(part) for part in zip(*parts, strict=True)]
        boundaries.append(np.cumsum([len(dataset) for dataset in datasets])[:-1].tolist())
    edges = dict(zip(("boundaries", "test_boundaries"), boundaries, strict=True))
    if len(arrays) < 4 or len(boundaries[0]) != len(boundaries[1]):
        del edges["test_boundaries"]
    return {"name": "array_stream", "source": save_arrays(folder, *arrays)} | edges


def _is_known_here_alone(study: Study) -> bool:
    """Whether a notebook has registered something that the study names, which other processes would not know."""
    if hasattr(sys.modules["__main__"], "__file__"):
        return False
    learners: list[tuple[Any, Component]] = [("learner", learner.entry.untuned) for learner in study.learners]
    run = study.runs["report"]
    named = [("stream", run.stream), ("network", run.network), *learners]
    return any(getattr(factory_of(kind, one.name), "__module__", "") == "__main__" for kind, one in named)
