"""How many samples streams, runs and studies have."""

from continual_metaopt.analysis.records import read_status
from continual_metaopt.analysis.run_directory import ENDED
from continual_metaopt.runs.components import ConfigError
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.streams import plan_stream
from continual_metaopt.streams.stream import LearnerInfo
from continual_metaopt.study.expand import Study
from continual_metaopt.study.jobs import Job


def check_selection_length(study: Study) -> None:
    """Check that selection runs are as long as the study says.

    Raises:
        ConfigError: they are not.
    """
    tuning, selection = study.config.tuning, study.runs.get("selection")
    if tuning and selection and (length := stream_sizes(selection).n_samples) != tuning.samples:
        raise ConfigError(
            f"tuning.samples is {tuning.samples}, but selection runs have {length} samples: choose "
            "options of the stream under tuning.stream that make them so long"
        )


def stream_sizes(run: RunConfig) -> LearnerInfo:
    """Say what learners and networks are sized from; it is the same for all seeds, so one stream is made for all.

    Raises:
        Exception: whatever the stream raises.

    Example:
        >>> stream_sizes(RunConfig(stream={"name": "tracking", "n_samples": 500})).n_samples
        500
    """
    return _about(run)[0]


def splits_of(run: RunConfig) -> str:
    """Say which files of a stream's source were taken for which split, in a line; empty for other sources."""
    return _about(run)[1]


def _about(run: RunConfig) -> tuple[LearnerInfo, str]:
    content = run.stream.model_dump_json()
    if content not in _known:
        info = plan_stream(run.stream.name, **run.stream.options, seed=run.seed).info
        _known[content] = info.for_learner, info.said_of_splits()
    return _known[content]


_known: dict[str, tuple[LearnerInfo, str]] = {}


def n_samples_of(config: RunConfig) -> int:
    """Count the samples of a run; 0 if its stream cannot be made here."""
    try:
        return stream_sizes(config).n_samples
    except Exception:  # the run itself says what is wrong
        return 0


def n_done_before(job: Job) -> int:
    """Count the samples that earlier attempts at a run have learned from."""
    config, path = job
    try:
        status = read_status(path)
    except ValueError:
        return 0
    return n_samples_of(config) if status["state"] in ENDED else int(status.get("step", 0))


def n_samples_of_study(study: Study) -> int:
    """Count the samples of all runs of a study, as far as its streams can be made here."""
    n_selection = sum(learner.n_selection_runs for learner in study.learners)
    lengths = {purpose: n_samples_of(run) for purpose, run in study.runs.items()}
    return n_selection * lengths.get("selection", 0) + (study.n_runs - n_selection) * lengths["report"]
