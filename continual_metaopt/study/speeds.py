"""Speeds of learners on this machine: measured once, then kept in the user's cache folder."""

import functools
import hashlib
import json
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import track

from continual_metaopt.analysis.escaping import for_terminal
from continual_metaopt.analysis.records import read_object
from continual_metaopt.runs.config import RunConfig
from continual_metaopt.runs.facts import describe_platform, describe_software
from continual_metaopt.runs.files import write_json
from continual_metaopt.runs.outcome import reason_of
from continual_metaopt.runs.process_settings import THREADS
from continual_metaopt.streams.decoded_images import cache_folder
from continual_metaopt.streams.private_folders import private_folder
from continual_metaopt.study.lengths import stream_sizes
from continual_metaopt.study.plan import FASTEST, kind_of

PACKAGE = Path(__file__).parents[1]
ROOMS = ("streams", "networks", "optim", "engines", "learner", "runs")  # whose code decides how fast a run is
SPEED = "samples_per_second"


def speeds_here(
    runs: Mapping[str, RunConfig], measure: Callable[[RunConfig], float] | None = None, show: bool = True
) -> dict[str, float]:
    """Tell how fast runs are on this machine, as far as that has been measured.

    Args:
        runs: resolved descriptions, by the labels of their learners.
        measure: measures what is not known yet, in samples per second, which is then kept; None to look up only.
        show: whether to show progress on standard error, and what could not be measured.

    Returns:
        Samples per second, by the same labels; what is not known is left out.
    """
    folder, keys = _folder(), {label: _key(run) for label, run in runs.items()}
    speeds = {key: speed for key in keys.values() if folder and (speed := _read(folder / f"{key}.json"))}
    unknown = {key: label for label, key in keys.items() if key not in speeds}  # the last of those that are alike
    if measure and unknown:
        console = Console(stderr=True, quiet=not show, soft_wrap=True)
        which = f"{len(unknown)} learner{'s' * (len(unknown) != 1)}"
        console.print(f"measuring the speed of {which}, about 2 s each; it is kept for the next time", highlight=False)
        hidden = not (show and console.is_terminal)
        for key, label in track([*unknown.items()], "measuring", console=console, transient=True, disable=hidden):
            try:
                speeds[key] = measure(runs[label])
            except Exception as error:  # whatever a learner raises; its runs will say so too
                text = f"{label}: its speed cannot be measured: {reason_of(error)}"
                console.print(for_terminal(text), style="yellow", markup=False, highlight=False)
                continue
            with suppress(OSError):  # such as of a full disk; it is measured anew the next time
                if folder:
                    write_json(folder / f"{key}.json", {SPEED: float(speeds[key])})
    return {label: speeds[key] for label, key in keys.items() if key in speeds}


def _folder() -> Path | None:
    """The folder where speeds are kept; None if there is none that only this user can write."""
    try:
        return private_folder(cache_folder().parent.resolve() / "speeds")
    except OSError:
        return None


def _read(file: Path) -> float | None:
    try:
        speed = read_object(file)[SPEED]
    except (OSError, ValueError, KeyError):  # not measured yet, or damaged
        return None
    return speed if isinstance(speed, float) and 0 < speed <= FASTEST else None


def _key(run: RunConfig) -> str:
    """Hash what a run's speed depends on: machine, code, learner, network, samples, engine and what is recorded."""
    sizes = stream_sizes(run)
    content = [
        *(socket.gethostname(), describe_platform(THREADS), _code(tuple(run.imports))),
        *(kind_of(run.learner.model_dump(mode="json")), run.network.model_dump(mode="json"), run.stream.name),
        *(sizes.input_shape, sizes.n_outputs, sizes.task, sizes.batch_size),
        run.model_dump(mode="json", include={"engine", "device", "record_every", "diagnostics", "diagnostics_every"}),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _code(imports: tuple[str, ...]) -> str:
    """Hash the sources of this package's runs and of modules of one's own, and versions of other packages."""
    versions = {name: value for name, value in describe_software().items() if name != "source_revision"}
    digest = hashlib.sha256(json.dumps(versions, sort_keys=True).encode())
    sources = [file for room in ROOMS for file in sorted((PACKAGE / room).rglob("*.py"))]
    sources += [Path(getattr(sys.modules.get(name), "__file__", None) or "") for name in imports]
    for source in filter(Path.is_file, sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()
