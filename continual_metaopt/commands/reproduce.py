"""The paper's continual experiments: packaged studies on images of CIFAR-100's shape."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from continual_metaopt.analysis.files import real_folder
from continual_metaopt.commands.compare import run_parts
from continual_metaopt.commands.printing import PROGRAM, complain, show_written
from continual_metaopt.streams.sources import NAMED_SOURCES, load_source
from continual_metaopt.study.expand import Study
from continual_metaopt.study.load import load_studies

# experiments of several studies, by the label of each; all others are a packaged study of their name
STUDIES = {"published": {"within": "published", "global": "published_global"}}

IMAGE_SHAPE = (3, 32, 32)
CIFAR10, ANY_IMAGES = "cifar10", ("cifar10_small", "imagenet")  # studies; all others are of CIFAR-100


def _check_images(study: Study) -> str | None:
    """Say what the images lack for the paper's experiment; None if they have the shape of the paper's data.

    Raises:
        FileNotFoundError: there are none; the message says what to give instead.
    """
    options, name = study.runs["report"].stream.options, study.config.name
    wanted, dataset = (10, "CIFAR-10") if name == CIFAR10 else (100, "CIFAR-100")
    source = str(options["source"])
    try:
        images = load_source(source, Path(options.get("data_root", "data")))
    except FileNotFoundError as error:
        if source not in NAMED_SOURCES:
            raise
        raise FileNotFoundError(
            f"{error} The experiment takes any images of {dataset}'s shape with --source, {wanted} classes of "
            f"about {50_000 // wanted} colour images of 32 × 32: --source parquet:FOLDER for Hugging Face's layout, or "
            "--source folder:DIR for DIR/CLASS/IMAGE"
        ) from error
    n_classes, shape = len(images.classes), images.input_shape
    if name in ANY_IMAGES or (n_classes, shape) == (wanted, IMAGE_SHAPE):
        return None
    height_width = " × ".join(map(str, shape[1:]))
    return (
        f"the source '{source}' has {n_classes} classes of images of {height_width} with {shape[0]} channel"
        f"{'s' * (shape[0] != 1)}, and {dataset} {wanted} of 32 × 32 with 3: results are not comparable with the "
        "paper's"
    )


def reproduce(
    experiment: Annotated[
        Literal[
            "published",
            "table2",
            "table3",
            "robustness",
            "trajectories",
            "cifar10",
            "cifar10_small",
            "imagenet",
            "overhead",
        ],
        tyro.conf.Positional,
    ],
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

    Runs that have ended in the output folder are not repeated. "overhead" measures time and memory of a step on random
    images, and takes no images, seeds, workers or plan.

    Args:
        experiment: published (the continual experiment of the published paper), table2 and table3 (10 and 20 classes
            per task, three base updates), robustness (the initial step size), trajectories (the six blocks of a
            ResNet-18, here a narrow one), cifar10 and imagenet (stationary experiments) and cifar10_small (an analogue
            for a CPU), or overhead.
        out: folder of the runs and the report; runs/EXPERIMENT if not given.
        source: images in place of CIFAR-100, such as parquet:FOLDER.
        data_root: folder of the files of torchvision's data sets.
        seeds: reported seeds, instead of the study's own.
        workers: runs at a time; one per processor if not given.
        quiet: show neither what the study will take nor progress.
        plan: only say what the experiment will take, in runs, samples, hours and disk space; measures
            speeds that are not known.
    """
    folder = out or Path("runs") / experiment
    if experiment == "overhead":
        given = {"source": source, "data-root": data_root, "seeds": seeds, "workers": workers, "plan": plan or None}
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise ValueError(f"overhead is measured on random images, one learner at a time; leave out --{unused[0]}")
        from continual_metaopt.commands import overhead

        table = real_folder(folder / "report") / "overhead.csv"
        text, _ = overhead.measured(overhead.overhead(), table)
        table.with_suffix(".md").write_text(f"{text}\n", encoding="utf-8")
        show_written([table, table.with_suffix(".md")], text)
        return 0
    studies = STUDIES.get(experiment, {"": experiment})
    parts = {
        label: load_studies(name, source=source, data_root=data_root, seeds=seeds)[""]
        for label, name in studies.items()
    }
    for warning in dict.fromkeys(map(_check_images, parts.values())):
        if warning and not quiet:
            complain(f"{PROGRAM}: {warning}")
    done: dict[str, list[Path]] = {}

    def report(label: str, runs: list[Path], selection: list[Path]) -> None:
        from continual_metaopt.analysis import load_runs
        from continual_metaopt.analysis.paper.reproduction_report import write_reproduction

        done[label] = [*runs, *selection]
        if len(done) < len(parts):
            return
        loaded = load_runs(*(path for paths in done.values() for path in paths), purpose=None)
        if loaded.table["state"].isin(["running", "failed"]).any():
            return  # an error says so
        text, paths = write_reproduction(loaded, experiment, real_folder(folder / "report"))
        show_written(paths, text)

    from continual_metaopt.study.running import PoolOptions

    return run_parts(experiment, parts, folder, PoolOptions(workers, not quiet), report, plan)
