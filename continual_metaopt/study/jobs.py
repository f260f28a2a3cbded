"""What a study hands to a backend: runs and where they are recorded; and what may come back instead of a result."""

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from continual_metaopt.runs.config import RunConfig

Job = tuple[RunConfig, Path]

MAX_LABEL = 120  # characters of a label in a folder's name; most file systems allow 255 bytes in all


class BackendError(ValueError):
    """Runs cannot be done where they were to be done; the message says what to do."""


class StudyInterrupted(Exception):
    """The study was asked to stop; the same command goes on with it."""


class RunsFailed(RuntimeError):
    """Some runs did not come to an end; the message says which and why, grouped by reason.

    Args:
        failures: why each failed, by run directory; also an attribute.
        n_runs: number of runs in all, failed and others.
        consequences: sentences about what was left undone therefore.
        runs, selection: directories of all of a study's reported runs, failed and others, and of its selection runs;
            attributes, too.
    """

    def __init__(
        self,
        failures: Mapping[Path, str],
        n_runs: int,
        consequences: Sequence[str] = (),
        runs: Sequence[Path] = (),
        selection: Sequence[Path] = (),
    ) -> None:
        self.failures, self.runs, self.selection = dict(failures), list(runs), list(selection)
        counted = f"{len(failures)} of {n_runs} runs failed:"
        super().__init__("\n".join([counted, *lines_by_reason(failures), *consequences]))


def lines_by_reason(reasons: Mapping[Path, str]) -> list[str]:
    """Write a line for each reason, the most frequent first: one of its runs, and how many more.

    Example:
        >>> lines_by_reason({Path("a"): "no memory", Path("b"): "a is damaged", Path("c"): "no memory"})
        ['a and 1 more: no memory', 'b: a is damaged']
    """
    by_reason: dict[str, list[Path]] = {}
    for path, reason in reasons.items():
        # runs of several folders may have the same reason but for their own folder in it
        by_reason.setdefault(reason.replace(str(path), "the run's folder"), []).append(path)
    lines = []
    for paths in sorted(by_reason.values(), key=len, reverse=True):
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        lines.append(f"{paths[0]}{others}: {reasons[paths[0]]}")
    return lines


def title(config: RunConfig) -> str:
    """Name a run in the display of progress."""
    return f"{config.label or config.learner.name}, seed {config.seed}"


def run_folder_name(config: RunConfig, others: Iterable[str] = ()) -> str:
    """Name a run's folder: readable learner and seed, then the run id.

    Where its label differs in signs only from one of ``others``, which come before it in its study, a few digits of its
    hash tell them apart.

    Example:
        >>> run_folder_name(RunConfig(label="AdamW, lr = 0.01", seed=3)).rpartition("-")[0]
        'adamw-lr-0.01-seed3'
    """
    label = config.label or config.learner.name
    plain = _plain(label)
    if any(label != other and plain == _plain(other) for other in others):
        plain += f"-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
    return f"{plain}-seed{config.seed}-{config.run_id}"


@functools.lru_cache(maxsize=4096)  # a study compares each label with all before it, for each of its runs
def _plain(label: str) -> str:
    """A label as a part of a name."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")[:MAX_LABEL] or "run"
