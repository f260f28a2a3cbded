"""Stationary variants: the controls that share a stream's samples but not its change."""

import numpy as np

from continual_metaopt.streams.plan import STATIONARY_ORDER, Plan, Stationary, random_state, take
from continual_metaopt.streams.registry import unknown_name


def make_stationary(train: Plan, test: Plan, kind: Stationary, seed: int, frozen_after: int = 0) -> tuple[Plan, Plan]:
    """Take the change out of a stream.

    "shuffled" presents the same samples with the same labels and inputs in one uniformly shuffled order. Where labels
    are numbered within the experience, each label then stands for one class of every experience, so the level of
    accuracy cannot be compared with the original stream's.

    "repeat" stays with the first experience for as many experiences: new passes over its samples in new orders. From
    the second pass on the samples count as seen before. "frozen" does so from a later experience on.

    Returns the stationary training and test plan, in new orders by the seed. Boundaries remain, as marks without
    meaning to the data.

    Raises:
        ValueError: unknown kind, or no such experience.

    Example:
        >>> from continual_metaopt.streams.plan import plan_of
        >>> plan = plan_of([([0, 1, 2], [0, 0, 0], -1), ([3, 4, 5], [1, 1, 1], -1)])
        >>> make_stationary(plan, plan, "repeat", seed=0)[0].index.tolist()
        [0, 1, 2, 1, 0, 2]
    """
    if kind == "shuffled":
        train, test = (
            take(plan, random_state(seed, STATIONARY_ORDER, i).permutation(len(plan.index)), plan.lengths)
            for i, plan in enumerate((train, test))
        )
        return train, test
    n = len(train.lengths)
    last = last_change(kind, frozen_after, n)
    passes = [random_state(seed, STATIONARY_ORDER, i).permutation(train.lengths[last]) for i in range(last + 1, n)]
    return (
        _stay_with(train, last, passes),
        _stay_with(test, last, [np.arange(test.lengths[last])] * (n - last - 1)),
    )


def last_change(kind: Stationary | None, frozen_after: int, n_experiences: int) -> int:
    """Return the number of the last experience that brings a change, in a stationary variant or (None) without one.

    Raises:
        ValueError: unknown kind, no such experience, or one is given for another kind.

    Example:
        >>> last_change("frozen", 3, 10), last_change(None, 0, 10)
        (3, 9)
    """
    if frozen_after != 0 and kind != "frozen":
        raise ValueError(f"frozen_after={frozen_after} goes with stationary='frozen', not with {kind!r}")
    if kind is None or kind == "shuffled":
        return n_experiences - 1
    if kind not in ("repeat", "frozen"):
        raise ValueError(unknown_name("stationary variant", kind, ["shuffled", "repeat", "frozen"]))
    last = 0 if kind == "repeat" else frozen_after
    if not 0 <= last < n_experiences:
        raise ValueError(f"frozen_after must be the number of an experience, 0 to {n_experiences - 1}, not {last}")
    return last


def _stay_with(plan: Plan, last: int, passes: list[np.ndarray]) -> Plan:
    """Keep the plan up to its experience ``last``, and then that experience's samples in the orders ``passes``."""
    first = plan.boundaries[last]
    order = [np.arange(first + plan.lengths[last]), *(first + order for order in passes)]
    return take(plan, np.concatenate(order), plan.lengths[: last + 1] + plan.lengths[last : last + 1] * len(passes))
