"""Gradual transitions: boundaries between experiences that are blurred over a given width."""

import numpy as np

from continual_metaopt.streams.plan import TRANSITIONS, Plan, random_state, take


def blur_boundaries(plan: Plan, width: int, seed: int) -> Plan:
    """Mix neighbouring experiences around their boundary.

    Every sample moves by a random distance, uniform within ±width/2, and the samples are put in that order. Around a
    boundary the share of the new experience's samples thus rises linearly: d samples after it, it is 1/2 + d/width, and
    what is farther away than width/2 stays unmixed. The transitions of MOA and CapyMOA draw each sample from the new
    concept with the probability 1 / (1 + exp(−4 d/width)), which has the same slope at the boundary but no end. Here
    every sample is presented exactly once, and experiences keep their lengths: their boundaries are the middle of the
    transitions, and some samples are presented in the experience beside their own.

    Args:
        plan: of a stream whose order within an experience has no meaning.
        width: of the transition, in samples; 0 leaves the plan as it is.
        seed: of the distances.

    Raises:
        ValueError: the width is negative or longer than the shortest experience.

    Example:
        >>> from continual_metaopt.streams.plan import plan_of
        >>> plan = plan_of([(np.arange(5), np.zeros(5), -1), (np.arange(5), np.ones(5), -1)])
        >>> blur_boundaries(plan, 5, seed=7).label.tolist()
        [0, 0, 0, 0, 1, 1, 0, 1, 1, 1]
    """
    if not 0 <= width <= min(plan.lengths):
        raise ValueError(
            f"transition_width must be between 0 and the length of the shortest experience, {min(plan.lengths)}, "
            f"not {width}"
        )
    if width == 0:
        return plan
    n = len(plan.index)
    # Draws are exact fractions, and NumPy rounds each operation by itself, so this is the same on every platform.
    distance = random_state(seed, TRANSITIONS).random_sample(n) * width - width / 2
    moved = np.arange(n) + distance
    return take(plan, np.argsort(moved, kind="stable"), plan.lengths)
