"""The paper's continual experiments: packaged studies on images of CIFAR-100's shape."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from continual_metaopt.analysis.files import real_folder
from continual_metaopt.commands.compare import _run_parts
from continual_metaopt.commands.printing import PROGRAM, _complain, _print
from continual_metaopt.streams.sources import NAMED_SOURCES, load_source
from continual_metaopt.study.config import StudyConfig
from continual_metaopt.study.load import load_studies

# experiments of several studies, by the label of each; all others are a packaged study of their name
STUDIES = {"published": {"within": "published", "global": "published_global"}}

N_CLASSES, IMAGE_SHAPE = 100, (3, 32, 32)  # of CIFAR-100


def load_parts(
    experiment: str, *, source: str | None, data_root: Path | None, seeds: Sequence[int] | None
) -> dict[str, StudyConfig]:
    """Read the studies of an experiment.

    Args:
        experiment: which one.
        source: the images, instead of CIFAR-100.
        data_root: folder of the files of torchvision's data sets.
        seeds: the reported seeds, instead of the studies' own.

    Returns:
        Each study by its label, which is empty for the only one.

    Raises:
        ConfigError: the seeds do not fit a study.
    """
    studies = STUDIES.get(experiment, {"": experiment})
    return {
        label: load_studies(study, source=source, data_root=data_root, seeds=seeds)[""]
        for label, study in studies.items()
    }


def check_images(study: StudyConfig) -> str | None:
    """Look at the images of an experiment before anything runs.

    Args:
        study: whose stream is of images.

    Returns:
        What the images lack for the paper's experiment, as a sentence; None if they have CIFAR-100's shape.

    Raises:
        FileNotFoundError: there are none; the message says what to give instead.
    """
    options = study.stream.options
    source = str(options["source"])
    try:
        images = load_source(source, Path(options.get("data_root", "data")))
    except FileNotFoundError as error:
        if source not in NAMED_SOURCES:
            raise
        raise FileNotFoundError(
            f"{error} The experiment takes any images of CIFAR-100's shape with --source, {N_CLASSES} classes of "
            "about 500 colour images of 32 × 32: --source parquet:FOLDER for Hugging Face's layout, or "
            "--source folder:DIR for DIR/CLASS/IMAGE"
        ) from error
    n_classes, shape = len(images.classes), images.input_shape
    if (n_classes, shape) == (N_CLASSES, IMAGE_SHAPE):
        return None
    height_width = " × ".join(map(str, shape[1:]))
    return (
        f"the source '{source}' has {n_classes} classes of images of {height_width} with {shape[0]} channel"
        f"{'s' * (shape[0] != 1)}, and CIFAR-100 {N_CLASSES} of 32 × 32 with 3: results are not comparable with the "
        "paper's"
    )


def reproduce(
    experiment: Annotated[Literal["published", "table2", "table3", "robustness", "trajectories"], tyro.conf.Positional],
    /,
    out: Path | None = None,
    source: str | None = None,
    data_root: Path | None = None,
    seeds: tuple[int, ...] | None = None,
    workers: int | None = None,
    quiet: bool = False,
    plan: bool = False,
) -> int:
    """Repeat an experiment of the MetaOptimize paper, and show its numbers beside ours.

    Runs that have ended in the output folder are not repeated.

    Args:
        experiment: published (the continual experiment of the published paper), table2 and table3 (10 and 20 classes
            per task, three base updates), robustness (the initial step size), or trajectories (the six blocks of a
            ResNet-18, here a narrow one).
        out: folder of the runs and the report; runs/EXPERIMENT if not given.
        source: images in place of CIFAR-100, such as parquet:FOLDER.
        data_root: folder of the files of torchvision's data sets.
        seeds: reported seeds, instead of the study's own.
        workers: runs at a time; one per processor if not given.
        quiet: show neither what the study will take nor progress.
        plan: only say what the experiment will take, in runs, samples, hours and disk space; run nothing.
    """
    folder = out or Path("runs") / experiment
    parts = load_parts(experiment, source=source, data_root=data_root, seeds=seeds)
    for warning in dict.fromkeys(map(check_images, parts.values())):
        if warning and not quiet:
            _complain(f"{PROGRAM}: {warning}")
    done: dict[str, list[Path]] = {}

    def show(label: str, runs: list[Path], selection: list[Path]) -> None:
        from continual_metaopt.analysis import load_runs
        from continual_metaopt.analysis.paper.reproduction_report import write_reproduction

        done[label] = [*runs, *selection]
        if len(done) < len(parts):
            return
        loaded = load_runs(*(path for paths in done.values() for path in paths), purpose=None)
        if loaded.table["state"].isin(["running", "failed"]).any():
            return  # an error says so
        text, paths = write_reproduction(loaded, experiment, real_folder(folder / "report"))
        _print("\n".join([text, *(f"wrote {path}" for path in paths)]))

    return _run_parts(experiment, parts, folder, workers, quiet, show, plan)
