"""The paper's continual experiments: packaged studies on images of CIFAR-100's shape."""

from collections.abc import Sequence
from pathlib import Path

from continual_metaopt.config import StudyConfig, load_studies
from continual_metaopt.streams.sources import NAMED_SOURCES, load_source

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
