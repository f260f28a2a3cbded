"""All streams of images, each with options that fit tiny synthetic images.

A new stream, or a new option of one, is a new line of ``IMAGE_STREAMS``; the tests in ``test_image_streams`` then hold
for it.
"""

from typing import Any, NamedTuple

from continual_metaopt.streams import plan_stream
from continual_metaopt.streams.stream import Stream
from tests.streams.synthetic import coded_arrays

SOURCE = coded_arrays()  # 12 classes, 48 training images and 12 test images
VARIANTS: dict[str, dict[str, Any]] = {
    "changing": {},
    "shuffled": {"stationary": "shuffled"},
    "repeat": {"stationary": "repeat"},
    "frozen": {"stationary": "frozen", "frozen_after": 1},
    "gradual": {"transition_width": 6},
}


class Case(NamedTuple):
    """A stream with options.

    Attributes:
        name: of the stream.
        options: its own options; every experience must have at least 7 samples, and there must be at least 3.
        version: of its definition.
        redraws_labels: whether an image is given another label when it comes again without a change.
    """

    name: str
    options: dict[str, Any]
    version: int = 1
    redraws_labels: bool = False


IMAGE_STREAMS = {
    "class_split": Case("class_split", {"classes_per_experience": 3}),
    "class_split, global": Case("class_split", {"classes_per_experience": 3, "labels": "global"}),
    "class_split, growing": Case("class_split", {"classes_per_experience": 4, "labels": "appearance"}),
    "class_split, part": Case("class_split", {"classes_per_experience": 3, "samples_per_experience": 7}),
    "class_split, replacement": Case(
        "class_split", {"classes_per_experience": 4, "replacement": True, "n_experiences": 5}
    ),
    "drifting_rotation": Case("drifting_rotation", {"n_experiences": 4, "degrees": 270}),
    "drifting_brightness": Case("drifting_brightness", {"n_experiences": 4, "samples_per_experience": 20}),
    "hard_and_easy": Case("hard_and_easy", {"hard_classes": 3, "hard_samples": 30}),
    "hard_and_easy, 10 passes": Case("hard_and_easy", {"easy_samples": 9}),
    "label_noise": Case("label_noise", {"n_experiences": 4}, redraws_labels=True),
    "label_noise, alternating": Case(
        "label_noise",
        {"n_experiences": 4, "schedule": "alternating", "samples_per_experience": 60, "wrong": 0.7},
        redraws_labels=True,
    ),
    "label_noise, fixed": Case(
        "label_noise", {"n_experiences": 3, "schedule": "fixed", "samples_per_experience": 20}, redraws_labels=True
    ),
    "permuted_inputs": Case("permuted_inputs", {"n_experiences": 4}),
    "permuted_inputs, part": Case("permuted_inputs", {"n_experiences": 4, "samples_per_experience": 7}),
    "permuted_inputs, recurring": Case("permuted_inputs", {"n_experiences": 5, "n_permutations": 2}),
    "permuted_inputs, continued": Case(
        "permuted_inputs", {"n_experiences": 4, "samples_per_experience": 30, "continued": True}
    ),
    "permuted_labels": Case("permuted_labels", {"n_experiences": 4, "samples_per_experience": 20}),
    "permuted_labels, passes": Case("permuted_labels", {"n_experiences": 3, "samples_per_experience": 100}),
    "recurring": Case("recurring", {"classes_per_experience": 4, "n_cycles": 2}),
    "recurring, new order": Case(
        "recurring",
        {
            "classes_per_experience": 3,
            "n_tasks": 3,
            "n_cycles": 3,
            "new_order": True,
            "labels": "appearance",
            "samples_per_experience": 10,
        },
    ),
}


def planned(case: str, **options: Any) -> Stream:
    """The stream of a case."""
    return plan_stream(IMAGE_STREAMS[case].name, **{"source": SOURCE, **IMAGE_STREAMS[case].options, **options})
