"""Pictures of a stream: a contact sheet of its samples, and a timeline of what changes."""

import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from pydantic import BaseModel, Field, create_model

from continual_metaopt.commands.printing import show, show_written
from continual_metaopt.commands.run import given
from continual_metaopt.runs.components import factory_of, import_modules, options_model
from continual_metaopt.streams.preview import (
    N_PORTIONS,
    FirstSamples,
    consecutive,
    course_changes,
    course_means,
    equal_portions,
    first_samples,
    image_course,
)
from continual_metaopt.streams.stream import Stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES: dict[str, Literal["png", "pdf", "svg"]] = {".png": "png", ".pdf": "pdf", ".svg": "svg"}
N_ZOOMS, ZOOM = 3, 100  # changes of a regression that are shown from near, and number of samples around each
MAX_CHANGES = 60  # in the timeline of a regression
COURSE_PORTIONS = 1500  # of what changes behind a regression
TARGETS = 500  # of each of fewer portions, of which median and spread are drawn


def write_previews(stream: Stream, name: str, out: Path) -> list[Path]:
    """Draw a stream as two files, whose names end with ``_samples`` and ``_timeline``; returns their paths.

    Args:
        stream: of any kind.
        name: what the files' names begin with.
        out: a folder for PNG files; or a file name that ends with .png, .pdf or .svg, whose stem replaces ``name``.

    Raises:
        ValueError: the samples are neither images nor those of a regression.
        OSError: a file cannot be written.
    """
    from continual_metaopt.analysis.figures import save

    sizes = stream.info.for_learner
    if sizes.task == "classification" and len(sizes.input_shape) != 3:
        raise ValueError(f"pictures show images or a regression, not inputs of the shape {sizes.input_shape}")
    folder, suffix = out, ".png"
    if out.suffix.lower() in SUFFIXES:
        folder, name, suffix = out.parent, out.stem, out.suffix.lower()
    draw = _of_images if sizes.task == "classification" else _of_regression
    paths = []
    for what, figure in draw(stream):
        paths += save(figure, folder, f"{name}_{what}", [SUFFIXES[suffix]])
    return paths


def _title(stream: Stream) -> str:
    info = stream.info
    kind = [info.definition, f"source {info.source}"] + ([f"stationary: {info.stationary}"] if info.stationary else [])
    n = len(info.experiences)
    return f"{', '.join(kind)}: {info.for_learner.n_samples:,} samples in {n:,} experience{'s' * (n != 1)}"


def _of_images(stream: Stream) -> Iterator[tuple[str, "Figure"]]:
    from continual_metaopt.analysis.previews import SheetRow, contact_sheet, image_timeline

    first = first_samples(stream)
    n = len(stream.train)
    rows = [SheetRow(_row_title(row, n), _pictures(row.inputs), _captions(row)) for row in first]
    which = f"{len(first)} of {n:,} experiences, evenly chosen, each" if len(first) < n else "Every experience"
    bracketed = any("(" in caption for row in rows for caption in row.captions)
    brackets = "; in brackets, its class in the source where that is named otherwise" if bracketed else ""
    note = f"{which} with its first samples in order. Above each image: the label that a learner is given{brackets}."
    yield "samples", contact_sheet(rows, _title(stream), note)

    course = image_course(stream)
    lines: dict[str, NDArray[Any]] = {}
    if course.other_labels.any():
        lines["other labels\nthan usual (%)"] = 100 * course.other_labels
    if (course.changes >= 0).any():
        lines["input change\n(number)"] = course.changes
        lines["changed by\n(% of range)"] = 100 * course.difference
    if course.seen_before.any():
        lines["seen before\n(%)"] = 100 * course.seen_before
    yield (
        "timeline",
        image_timeline(
            course.edges,
            course.classes,
            course.class_share,
            course.labels if course.relabelled else None,
            lines,
            stream.info.boundaries[1:],
            _title(stream),
        ),
    )


def _row_title(row: FirstSamples, n_experiences: int) -> str:
    return f"experience {row.experience + 1:,} of {n_experiences:,}\nfrom sample {row.first_step:,}"


def _pictures(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images [n, H, W] or [n, H, W, 3] with values from 0 to 1."""
    images = (inputs.transpose(0, 2, 3, 1) * 0.5 + 0.5).clip(0, 1)
    return images if images.shape[-1] == 3 else images[..., 0]


def _captions(row: FirstSamples) -> list[str]:
    labels = [str(label) for label in row.targets.tolist()]
    if row.classes is None:
        return labels
    names = [textwrap.shorten(str(name), 9, placeholder="…") or str(name)[:8] for name in row.classes]
    return [label if label == name else f"{label} ({name})" for label, name in zip(labels, names, strict=True)]


def _of_regression(stream: Stream) -> Iterator[tuple[str, "Figure"]]:
    from continual_metaopt.analysis.previews import Zoom, regression_timeline, regression_zooms

    n = stream.info.for_learner.n_samples
    changes = course_changes(stream)
    chosen = changes[np.unique(np.linspace(0, len(changes) - 1, N_ZOOMS).round().astype(int))] if len(changes) else [0]
    starts = np.unique(np.clip(np.array(chosen) - ZOOM // 2, 0, max(0, n - ZOOM))).tolist()
    zooms = []
    for start in starts:
        stop = min(start + ZOOM, n)
        marks = changes[(changes > start) & (changes < stop)].tolist()
        course = {name: read(start, stop) for name, read in stream.course.items()}
        zooms.append(Zoom(start, *consecutive(stream, start, stop), course, marks))
    around = f"around {len(starts)} of {len(changes):,} changes" if len(changes) else "the first samples"
    yield "samples", regression_zooms(zooms, f"{_title(stream)}; {around}")

    end = int(changes[MAX_CHANGES]) if len(changes) > MAX_CHANGES else n
    course_edges, means = course_means(stream, end, COURSE_PORTIONS)
    edges = equal_portions(end, N_PORTIONS)
    targets = [consecutive(stream, a, min(b, a + TARGETS))[1] for a, b in itertools.pairwise(edges.tolist())]
    axis = "sample; vertical lines: starts of experiences" if end == n else f"sample; the first {end:,} of {n:,}"
    boundaries = [step for step in stream.info.boundaries[1:] if step < end]
    yield "timeline", regression_timeline(course_edges, means, edges, targets, boundaries, _title(stream), axis)


def preview_command(arguments: list[str]) -> Any:
    """The subcommand ``preview``, with the options of the stream that the arguments name."""
    from continual_metaopt.streams import STREAMS

    model: type[BaseModel] = BaseModel
    if arguments[:1] == ["preview"]:
        import_modules(given(arguments, "imports"))
        words = [argument for argument in arguments[1:] if not argument.startswith("-")]
        name = next((word for word in words if word in STREAMS), next(iter(words), None))
        if name is not None:
            options = options_model("stream", name, factory_of("stream", name))
            seed = (int, Field(0, ge=0, description="of the stream"))
            model = create_model("Preview", __base__=options, seed=seed)

    def preview(
        stream: Annotated[str, tyro.conf.Positional],
        /,
        options: Annotated[Any, tyro.conf.arg(name="")],
        out: Path = Path("preview"),
        imports: tuple[str, ...] = (),
    ) -> int:
        from continual_metaopt.streams import plan_stream

        planned = plan_stream(stream, **options.model_dump())
        show_written(write_previews(planned, stream, out))
        sizes = planned.info.for_learner
        counts = {"sample": sizes.n_samples, "experience": len(planned.train), "output": sizes.n_outputs}
        facts = [f"{n:,} {what}{'s' * (n != 1)}" for what, n in counts.items()]
        show(", ".join([*facts, f"fingerprint {planned.info.fingerprint}"]))
        if planned.info.splits:
            show(planned.info.said_of_splits())
        return 0

    preview.__doc__ = """Draw a stream: samples of each experience, and a timeline of what changes.

    The options are those of the stream, which is named first; `preview STREAM --help` shows them.

    Args:
        stream: name of the stream.
        options: of the stream.
        out: a folder for two PNG files, or a file name ending with .png, .pdf or .svg, whose stem begins both names.
        imports: modules that register streams of one's own.
    """
    preview.__annotations__["options"] = Annotated[model, tyro.conf.arg(name="")]
    return preview
