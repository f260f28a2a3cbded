"""Stationary variants: the controls that share a stream's samples but not its change."""

import numpy as np

from streams.plan import STATIONARY_ORDER, Plan, Stationary, random_state, take
from streams.registry import unknown_name


def make_stationary(train: Plan, test: Plan, kind: Stationary, seed: int) -> tuple[Plan, Plan]:
    """Take the change out of a stream.

    "shuffled" presents the same samples with the same labels and inputs in one uniformly shuffled order. Where labels
    are numbered within the experience, each label then stands for one class of every experience, so the level of
    accuracy cannot be compared with the original stream's.

    "repeat" stays with the first experience for as many experiences: new passes over its samples in new orders. From
    the second pass on the samples count as seen before.

    Args:
        train: the training plan of the changing stream.
        test: its test plan.
        kind: "shuffled" or "repeat".
        seed: of the new order.

    Returns:
        The stationary plans. Boundaries remain, as marks without meaning to the data.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "shuffled":
        return tuple(  # type: ignore[return-value]
            take(
                plan,
                random_state(seed, STATIONARY_ORDER, i).permutation(len(plan.index)),
                plan.lengths,
                plan.seen_before,
            )
            for i, plan in enumerate((train, test))
        )
    if kind == "repeat":
        n = len(train.lengths)
        passes = [random_state(seed, STATIONARY_ORDER, i).permutation(train.lengths[0]) for i in range(1, n)]
        order = np.concatenate([np.arange(train.lengths[0]), *passes])
        lengths = train.lengths[:1] * n
        test_order = np.tile(np.arange(test.lengths[0]), n)
        return (
            take(train, order, lengths, (0, *lengths[1:])),
            take(test, test_order, test.lengths[:1] * n, (0, *test.lengths[:1] * (n - 1))),
        )
    raise ValueError(unknown_name("stationary variant", kind, ["shuffled", "repeat"]))
