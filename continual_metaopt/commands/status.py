"""Shows how runs are getting on."""

from pathlib import Path
from typing import Annotated

import tyro

from continual_metaopt.commands.printing import EXIT_FAILED, show


def status(directory: Annotated[Path, tyro.conf.Positional], /) -> int:
    """Say how a study, or the runs in any folder, are getting on: what runs and how fast, what failed and why.

    The exit status is 1 if runs failed or are damaged, and 0 otherwise: a run that diverged has a result, and one that
    was interrupted can go on.

    Args:
        directory: a study's folder, or any folder with run directories in it.
    """
    from continual_metaopt.study.overview import overview

    found = overview(directory)
    show(found.text())
    return 0 if found.is_sound else EXIT_FAILED
