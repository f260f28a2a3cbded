"""Two horizons in place of one: a surrogate meta gradient that needs no discount to be tuned (``gamma="auto"``).

A short horizon alone asks for step sizes that are too small: what a step wins only later, it does not see. That bias is
a nearly constant share of the size of its meta gradients, so it can be taken off. A long horizon alone holds what the
weights owe to an earlier task long after a change, and then asks for ever smaller steps: so it is brought to the size
of the short one, and counts half. Both are needed: with the share taken off alone, step sizes run away upwards where
the short horizon does not see that they are too large, which the long one does.
"""

from typing import Any

SHORT_GAMMA = 0.99
LONG_GAMMA = 0.9999
SHARE = 0.3  # of the short horizon's typical size that is bias
WEIGHT = 0.5  # of the long horizon
KEEP = 0.999  # of the past in typical sizes
TINY = 1e-30  # in place of a typical size of 0

AUTO = "auto"


def two_horizons_rule(step: Any, short_size: Any, long_size: Any, short: Any, long: Any) -> tuple[Any, Any, Any, Any]:
    """Combine: z = z_s − c â_s + w (â_s / â_l) z_l, with typical sizes â of |z_s| and |z_l|.

    Args:
        step: number of earlier calls.
        short_size: running mean of |z_s|, 0 before the first call; â is this with its bias corrected.
        long_size: that of |z_l|.
        short: z_s, the surrogate meta gradient with the short horizon.
        long: z_l, that with the long one.

    Returns:
        z and the new step, short_size and long_size; all are numbers, or tensors with one number per step size.
    """
    step = step + 1.0
    short_size = KEEP * short_size + (1.0 - KEEP) * abs(short)
    long_size = KEEP * long_size + (1.0 - KEEP) * abs(long)
    correction = 1.0 - KEEP**step
    typical = short_size / correction
    scale = short_size / (long_size + TINY)
    return short - SHARE * typical + WEIGHT * scale * long, step, short_size, long_size
