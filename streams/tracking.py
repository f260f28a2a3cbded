"""Tracking: linear regression on a target that keeps changing, from Sutton's experiment of 1992 with IDBD.

Sutton, "Adapting Bias by Gradient Descent: An Incremental Version of Delta-Bar-Delta", AAAI 1992.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from streams.plan import TRACKED_INPUTS, TRACKED_NOISE, TRACKED_SIGNS, random_state
from streams.stream import Stream, about_stream, regression_stream

DEFINITION = "tracking v1"


@about_stream(
    source="generated: independent standard normal inputs",
    changes="the sign of one of the relevant inputs",
    when="every flip_every samples",
    length="n_samples",
    head="one output, the target of a regression",
)
def tracking(
    *,
    n_inputs: int = 20,
    n_relevant: int = 5,
    flip_every: int = 20,
    n_samples: int = 30_000,
    samples_per_experience: int = 1000,
    noise: float = 0.0,
    seed: int = 0,
) -> Stream:
    """The target is a sum of the first few inputs, each with a sign; every so often one of the signs flips.

    Inputs are independent and standard normal. All signs are +1 at first. The changes come far too often to be
    experiences: an experience is a mere portion of the stream, as marks for tables and figures. There are no held-out
    samples.

    Args:
        n_inputs: number of inputs.
        n_relevant: how many of them, the first ones, enter into the target.
        flip_every: number of samples after which one of the relevant inputs, drawn uniformly, changes its sign.
        n_samples: length of the stream.
        samples_per_experience: length of an experience; the last one may be shorter.
        noise: standard deviation of normal noise on the target.
        seed: decides inputs, flips and noise.

    Raises:
        ValueError: an option's value is out of range.
    """
    numbers = {"n_inputs": n_inputs, "n_relevant": n_relevant, "flip_every": flip_every, "n_samples": n_samples}
    for name, value in (numbers | {"samples_per_experience": samples_per_experience}).items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if n_relevant > n_inputs:
        raise ValueError(f"n_relevant must be at most n_inputs, {n_inputs}, not {n_relevant}")
    if not noise >= 0:
        raise ValueError(f"noise must not be negative, but is {noise}")
    inputs = random_state(seed, TRACKED_INPUTS).standard_normal((n_samples, n_inputs)).astype(np.float32)
    signs = _signs(n_samples, n_relevant, flip_every, seed)
    targets = np.zeros(n_samples)
    for relevant in range(n_relevant):  # one by one, so that sums are rounded alike everywhere
        targets += signs[:, relevant] * inputs[:, relevant].astype(np.float64)
    if noise:
        targets += noise * random_state(seed, TRACKED_NOISE).standard_normal(n_samples)
    lengths = [min(samples_per_experience, n_samples - start) for start in range(0, n_samples, samples_per_experience)]
    content = hashlib.sha256(signs.astype("<i1").tobytes())
    return regression_stream(
        DEFINITION, inputs, targets.astype(np.float32)[:, None], lengths, content_hash=content.hexdigest()
    )


def _signs(n_samples: int, n_relevant: int, flip_every: int, seed: int) -> NDArray[np.int64]:
    """The sign of each relevant input at each sample, [samples, relevant]."""
    n_flips = (n_samples - 1) // flip_every
    flipped = random_state(seed, TRACKED_SIGNS).randint(n_relevant, size=n_flips)
    signs = np.ones((n_flips + 1, n_relevant), np.int64)
    signs[np.arange(1, n_flips + 1), flipped] = -1
    return signs.cumprod(axis=0).repeat(flip_every, axis=0)[:n_samples]
