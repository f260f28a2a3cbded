"""How many samples and runs a study has."""

from pathlib import Path

from continual_metaopt.analysis.records import read_status
from continual_metaopt.runs.components import Component, ConfigError, resolve
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.streams import plan_stream
from continual_metaopt.streams.stream import LearnerInfo
from continual_metaopt.study.config import LearnerEntry, StudyConfig

ENDED = ("finished", "diverged")  # states of runs that are not repeated


def selection_length(study: StudyConfig) -> int | None:
    """Number of samples of a selection run; None if it is as long as a reported one.

    Raises:
        ConfigError: it is not what the study says.
    """
    if not study.tuning or not study.selection_seeds:
        return None
    shorter = Component(name=study.stream.name, **study.stream.options | study.tuning.stream)
    length = stream_length(shorter, study.selection_seeds[0])
    if length != study.tuning.samples:
        raise ConfigError(
            f"tuning.samples is {study.tuning.samples}, but selection runs have {length} samples: choose "
            "options of the stream under tuning.stream that make them so long"
        )
    return length


def stream_length(stream: Component, seed: int) -> int:
    """Number of samples of a stream."""
    return stream_sizes(stream, seed).n_samples


def stream_sizes(stream: Component, seed: int) -> LearnerInfo:
    """What learners and networks are sized from; it is the same for all seeds, so the stream is made for one only."""
    return _about(stream, seed)[0]


def splits_of(stream: Component, seed: int) -> str:
    """Which files of a stream's source were taken for which split, as a line of text; empty for other sources."""
    return _about(stream, seed)[1]


def _about(stream: Component, seed: int) -> tuple[LearnerInfo, str]:
    resolved = resolve("stream", stream, "stream")
    content = resolved.model_dump_json()
    if content not in _known:
        info = plan_stream(resolved.name, **resolved.options, seed=seed).info
        _known[content] = info.for_learner, info.said_of_splits()
    return _known[content]


_known: dict[str, tuple[LearnerInfo, str]] = {}


def n_samples_of(config: RunConfig) -> int:
    """Number of samples of a run; 0 if its stream cannot be made here."""
    try:
        return stream_length(config.stream, config.seed)
    except Exception:  # the run itself says what is wrong
        return 0


def n_done_before(path: Path, config: RunConfig) -> int:
    """Number of samples that earlier attempts at a run have learned from."""
    try:
        status = read_status(path)
    except ValueError:
        return 0
    return n_samples_of(config) if status["state"] in ENDED else int(status.get("step", 0))


def size_of(study: StudyConfig) -> tuple[int, int]:
    """Number of runs of a study, and of samples of all of them together, as far as its stream can be made here.

    Raises:
        ConfigError: selection runs have another length than the study says.
    """
    shorter = selection_length(study)
    try:
        reported = stream_length(study.stream, study.seeds[0])
    except Exception:  # its runs say what is wrong
        reported = 0
    n_runs = n_runs_of_study(study)
    n_selection = sum(n_selection_runs(study, entry) for entry in study.learners)
    length_of_selection = reported if shorter is None else shorter
    return n_runs, n_selection * length_of_selection + (n_runs - n_selection) * reported


def n_selection_runs(study: StudyConfig, entry: LearnerEntry) -> int:
    """Runs that serve to choose a learner's setting; there may be fewer if its space has no more settings."""
    search = study.search(entry)
    return (search.trials or 0) * len(study.selection_seeds) if search else 0


def n_reported_runs(study: StudyConfig, entry: LearnerEntry) -> int:
    """Runs of a learner that are reported: with its chosen setting, with its untuned one, or both.

    Where the study reports the chosen settings of its best learners alone, those runs are not among them.
    """
    return len(study.seeds) * (study.reports_untuned(entry) + (study.is_tuned(entry) and not _n_best(study)))


def n_runs_of_study(study: StudyConfig) -> int:
    """All runs of a study; there may be fewer if a search space has no more settings."""
    of_learners = (n_selection_runs(study, entry) + n_reported_runs(study, entry) for entry in study.learners)
    return sum(of_learners) + _n_best(study) * len(study.seeds)


def _n_best(study: StudyConfig) -> int:
    """Of how many learners the chosen settings are reported, where these are not all; else 0."""
    best = study.tuning.best if study.tuning else None
    return 0 if best is None else min(best, sum(map(study.is_tuned, study.learners)))
