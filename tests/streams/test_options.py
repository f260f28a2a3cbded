"""Options that do not fit, of each stream, and what the messages say; those of all streams: ``test_image_streams``."""

import re
from typing import Any

import numpy as np
import pytest

from continual_metaopt.streams import plan_stream
from tests.streams.synthetic import coded_arrays, coded_images

SOURCE = coded_arrays()  # 12 classes, 48 training images and 12 test images
SMALL: dict[str, dict[str, Any]] = {
    "class_split": {"classes_per_experience": 3},
    "hard_and_easy": {},
    "recurring": {"classes_per_experience": 3},
    "permuted_inputs": {},
    "permuted_labels": {},
    "label_noise": {},
    "drifting_rotation": {},
    "drifting_brightness": {},
    "drifting_noise": {},
    "multi_epoch": {"batch_size": 4},
    "tracking": {"n_samples": 100, "samples_per_experience": 40},
    "bit_flipping": {"n_inputs": 8, "n_slow": 5, "flip_every": 300, "n_samples": 3100},
}
AT_LEAST_ONE = {
    "class_split": ["samples_per_experience"],
    "hard_and_easy": ["hard_classes", "easy_classes", "hard_samples", "easy_samples"],
    "recurring": ["n_cycles", "samples_per_experience"],
    "permuted_inputs": ["n_experiences", "n_permutations", "samples_per_experience"],
    "permuted_labels": ["n_experiences", "samples_per_experience"],
    "label_noise": ["n_experiences", "samples_per_experience"],
    "drifting_rotation": ["samples_per_experience"],
    "drifting_brightness": ["samples_per_experience"],
    "drifting_noise": ["samples_per_experience"],
    "multi_epoch": ["epochs"],
    "tracking": ["n_inputs", "n_relevant", "flip_every", "n_samples", "samples_per_experience"],
    "bit_flipping": ["n_inputs", "flip_every", "n_samples", "n_target_units"],
}
# stream, option, least and greatest as messages say them, values that are neither
RANGES = [
    ("class_split", "n_experiences", "1 and 4", [0, 5]),
    ("hard_and_easy", "n_experiences", "1 and 4", [0, 5]),
    ("recurring", "n_tasks", "1 and 4", [0, 5]),
    ("drifting_rotation", "degrees", "-360 and 360", [361.0, float("nan")]),
    ("drifting_brightness", "factor", "0 and 255", [-0.5]),
    ("drifting_noise", "deviation", "0 and 255 bytes", [256.0]),
    ("multi_epoch", "batch_size", "1 and the number of training images, 48", [0, 49]),
    ("bit_flipping", "n_slow", "1 and n_inputs, 8", [0, 9]),
]
DRIFTS = ["drifting_rotation", "drifting_brightness", "drifting_noise"]
DIVISION = "12 classes do not divide into experiences of {}; classes_per_experience must be one of 2, 3, 4, 6, 12"
DRAWN = "classes_per_experience must be between 2 and the number of classes, 12, not {}"
TOO_MANY = "{} classes for a hard experience and 1 for an easy one are more than there are: {}"
LABELS = "Known: appearance, global, within"
VARIANTS = "Did you mean 'frozen'? Known: frozen, repeat, shuffled"
OTHERS = [
    *(("class_split", {"classes_per_experience": k}, DIVISION.format(k)) for k in (5, 1, 24)),
    ("class_split", {"classes": [0, 12, -1]}, "the source has classes 0 to 11, but not [-1, 12]"),
    ("class_split", {"classes": [0, 1, 1]}, "a class is given twice in classes"),
    *(
        (
            "class_split",
            {"replacement": True, "n_experiences": n},
            f"with replacement, n_experiences must be given and at least 1, not {n}",
        )
        for n in (None, 0)
    ),
    *(
        ("class_split", {"replacement": True, "n_experiences": 2, "classes_per_experience": k}, DRAWN.format(k))
        for k in (13, 1)
    ),
    ("class_split", {"labels": "withn"}, f"unknown kind of labels 'withn'. Did you mean 'within'? {LABELS}"),
    (
        "class_split",
        {"source": (coded_images(range(5)), np.full(5, 8))},
        "a class split needs at least two classes; there are only [8]",
    ),
    ("hard_and_easy", {"hard_classes": 12}, TOO_MANY.format(12, 12)),
    ("hard_and_easy", {"classes": [0, 1, 2]}, TOO_MANY.format(5, 3)),
    ("hard_and_easy", {"classes": [0, 12]}, "the source has classes 0 to 11, but not [12]"),
    ("hard_and_easy", {"labels": "globl"}, f"unknown kind of labels 'globl'. Did you mean 'global'? {LABELS}"),
    ("recurring", {"classes_per_experience": 5}, DIVISION.format(5)),
    ("recurring", {"classes": [3, 3]}, "a class is given twice in classes"),
    ("recurring", {"classes": [3]}, "a class split needs at least two classes; there are only [3]"),
    ("recurring", {"labels": "new"}, f"unknown kind of labels 'new'. {LABELS}"),
    *(("label_noise", {"wrong": x}, f"wrong must be a share between 0 and 1, not {x}") for x in (-0.1, 1.5, np.nan)),
    (
        "label_noise",
        {"schedule": "grow"},
        "unknown schedule 'grow'. Did you mean 'growing'? Known: alternating, fixed, growing",
    ),
    (
        "label_noise",
        {"source": (np.zeros((20, 2, 2), np.uint8), [7] * 20)},
        "wrong labels need at least two classes; there are only [7]",
    ),
    *((name, {"n_experiences": 1}, "n_experiences must be at least 2 for a drift, not 1") for name in DRIFTS),
    ("tracking", {"n_inputs": 3, "n_relevant": 4}, "n_relevant must be at most n_inputs, 3, not 4"),
    ("tracking", {"noise": -0.5}, "noise must not be negative, but is -0.5"),
    (
        "tracking",
        {"stationary": "shuffled"},
        "stationary='shuffled' is not possible: with signs in random order the target would be mere noise; use "
        "'repeat' or 'frozen'",
    ),
    *(
        (
            name,
            {"stationary": "frozen", "frozen_after": n},
            f"frozen_after must be the number of an experience, 0 to {n - 1}, not {n}",
        )
        for name, n in (("tracking", 3), ("bit_flipping", 11))
    ),
    *(("bit_flipping", {"agreement": x}, f"agreement must be above 0 and at most 1, not {x}") for x in (0.0, 1.1)),
    ("bit_flipping", {"frozen_after": 2}, "frozen_after=2 goes with stationary='frozen', not with None"),
    ("bit_flipping", {"stationary": "freeze"}, f"unknown stationary variant 'freeze'. {VARIANTS}"),
]
CASES = [
    *(
        (name, {option: value}, f"{option} must be at least 1, not {value}")
        for name, options in AT_LEAST_ONE.items()
        for option in options
        for value in (0, -3)
    ),
    *(
        (name, {option: value}, f"{option} must be between {limits}, not {value}")
        for name, option, limits, values in RANGES
        for value in values
    ),
    *OTHERS,
]


@pytest.mark.parametrize(("name", "options", "message"), CASES, ids=[f"{name} {message}" for name, _, message in CASES])
def test_options_that_do_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    source = {} if name in ("tracking", "bit_flipping") else {"source": SOURCE}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plan_stream(name, **source | SMALL[name] | options)
