"""Studies of one stream and one network, as the command loads and runs them."""

from pathlib import Path
from typing import Any

from continual_metaopt.study.backends import Backend
from continual_metaopt.study.config import StudyConfig
from continual_metaopt.study.load import load_studies
from continual_metaopt.study.running import PoolOptions, StudyResult, run_studies


def load_study(study: str | Path, **instead: Any) -> StudyConfig:
    """Read a study; ``instead`` as for ``load_studies``."""
    (part,) = load_studies(study, **instead).values()
    return part


def run_study(
    study: StudyConfig,
    out: Path,
    workers: int | None = None,
    show_progress: bool = False,
    threads: bool = False,
    backend: Backend | None = None,
) -> StudyResult:
    """Run a study; the arguments are attributes of ``PoolOptions``."""
    (result,) = run_studies({"": study}, out, PoolOptions(workers, show_progress, threads, backend)).values()
    return result
