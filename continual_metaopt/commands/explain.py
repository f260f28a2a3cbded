"""Explains a run."""

from pathlib import Path
from typing import Annotated

import tyro

from continual_metaopt.commands.printing import show


def explain(run: Annotated[Path, tyro.conf.Positional], /) -> int:
    """Say in words what happened to a run: how it ended, what went wrong first, how its step sizes moved.

    Args:
        run: a run directory.
    """
    from continual_metaopt.analysis.explain import explain as in_words

    show(in_words(run).rstrip("\n"))
    return 0
