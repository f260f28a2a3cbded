"""What a study hands to a backend: runs and where they are recorded; and what may come back instead of a result."""

import re
from pathlib import Path

from continual_metaopt.config import RunConfig

Job = tuple[RunConfig, Path]


class BackendError(ValueError):
    """Runs cannot be done where they were to be done; the message says what to do."""


class StudyInterrupted(Exception):
    """The study was asked to stop; the same command goes on with it."""


class RunsFailed(RuntimeError):
    """Some runs did not come to an end; the message says which and why."""


def title(config: RunConfig) -> str:
    """How progress calls a run."""
    return f"{config.label or config.learner.name}, seed {config.seed}"


def run_folder_name(config: RunConfig) -> str:
    """A folder name that tells people the learner and the seed, and programs the identity of the run."""
    label = re.sub(r"[^a-z0-9.]+", "-", (config.label or config.learner.name).lower()).strip("-")
    return f"{label}-seed{config.seed}-{config.run_id}"
