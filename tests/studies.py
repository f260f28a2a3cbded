"""Studies of one stream and one network, as the command loads and runs them."""

from pathlib import Path
from typing import Any

from continual_metaopt.study.backends import Backend
from continual_metaopt.study.expand import Study, expand
from continual_metaopt.study.load import load_studies
from continual_metaopt.study.running import PoolOptions, StudyResult, run_studies


def load_study(study: str | Path, **instead: Any) -> Study:
    """Read a study; ``instead`` as for ``load_studies``."""
    (part,) = load_studies(study, **instead).values()
    return part


def changed(study: Study, **changes: Any) -> Study:
    """The study with other values of some fields."""
    return expand(study.config.model_copy(update=changes))


def run_study(
    study: Study,
    out: Path,
    workers: int | None = None,
    show_progress: bool = False,
    threads: bool = False,
    backend: Backend | None = None,
) -> StudyResult:
    """Run a study; the arguments are attributes of ``PoolOptions``."""
    (result,) = run_studies({"": study}, out, PoolOptions(workers, show_progress, threads, backend)).values()
    return result
