"""Where the runs of a study are done."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from continual_metaopt.study.jobs import Job


class Pool(Protocol):
    """Do runs by some workers."""

    def run(self, jobs: Sequence[Job], stage: str) -> None:
        """Do runs; returns when all have ended.

        Args:
            jobs: the runs, of which some may have ended before.
            stage: what progress calls them.

        Raises:
            StudyInterrupted: after Ctrl-C; nothing recorded is lost.
            RunsFailed: some runs failed; the others have been run.
        """
        ...


# Makes workers, given the number of runs in all and the study's folder
Backend = Callable[[int, Path], AbstractContextManager[Pool]]
