"""How fast this machine does a run, measured on its first samples."""

import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.directory import RunDirectory
from continual_metaopt.runs.outcome import never
from continual_metaopt.runs.preparing import prepare
from continual_metaopt.runs.run import under_way

SECONDS = 0.5  # of learning that are measured


class _Enough(Exception):
    """The run has shown how fast it is."""


def measured_speed(config: RunConfig, seconds: float = SECONDS) -> float:
    """Begin a run as it would be done, and measure its speed; what it records is thrown away.

    The first portion of samples, of half a second at most, is not measured if more follow. Held-out samples are not
    looked at.

    Args:
        config: a resolved description.
        seconds: of learning that are measured, without start-up and compilation; fewer if the stream ends before.

    Returns:
        Samples per second of learning, as finished runs record them.

    Raises:
        Exception: whatever a run raises that fails or diverges.
    """
    portions = [(0, 0.0)]  # samples and seconds of learning after each

    def note(n_samples: int, _: int) -> None:
        portions.append((n_samples, directory.learning_time))
        if len(portions) > 2 and portions[-1][1] - portions[1][1] >= seconds:
            raise _Enough

    config = config.model_copy(update={"evaluate": False})
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself will say it
        directory = RunDirectory(Path(folder) / "run")
        prepared = prepare(config, directory.path)
        with suppress(_Enough):
            under_way(config, prepared, directory, note, never).learn()
    (n_before, before), (n, after) = portions[len(portions) > 2], portions[-1]
    return (n - n_before) / max(after - before, 1e-6)
