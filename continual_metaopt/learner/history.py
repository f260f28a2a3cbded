"""What a learner has gone through, as a data frame."""

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from continual_metaopt.engines.observations import Observations, recorded_steps

if TYPE_CHECKING:
    import pandas as pd

STEP_SIZE = "step_size/"  # begins the names of the columns of step sizes, which end with the block's


class History:
    """Keep what an ``OnlineLearner`` observes, in one row for every so many samples; takes the place of a recorder.

    Args:
        every: distance in samples between two rows, where the optimizer has no step sizes that say so.

    Example:
        >>> history = History(every=2)
        >>> step_sizes = [(0, "all", 0.1), (2, "all", 0.2)]
        >>> history.observe(Observations(0, 0, [True, False, True], [0.5, 1.0, 0.25], step_sizes))
        >>> history.frame({"all": 0.4})[["step", "accuracy", "loss", "step_size/all"]].values.tolist()
        [[0.0, nan, nan, 0.1], [2.0, 0.5, 0.75, 0.2], [3.0, 1.0, 0.25, 0.4]]
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._steps, self._experiences, self._n_seen = array("q"), array("q"), array("q")
        self._n_correct, self._losses = array("d"), array("d")  # sums over the samples before each step
        self._step_sizes: dict[str, array[float]] = {}
        self._now = (0, 0, 0, 0.0, 0.0)  # step, experience, samples, right predictions and losses so far

    def observe(self, observations: Observations) -> None:
        """Take observations, in the order of their steps."""
        first, n = observations.first_step, len(observations)
        by_step: dict[int, dict[str, float]] = {}
        for step, block, value in observations.step_sizes:
            by_step.setdefault(step, {})[block] = value
        _, _, n_seen, n_correct, losses = self._now
        is_correct = np.array([np.nan if right is None else right for right in observations.correct], float)
        corrects = np.cumsum([n_correct, *is_correct])
        sums = np.cumsum([losses, *observations.loss])
        for step in sorted(by_step) or recorded_steps(first, n, self._every):
            before = step - first
            self._n_correct.append(corrects[before])
            self._losses.append(sums[before])
            self._n_seen.append(n_seen + before)
            for block, value in by_step.get(step, {}).items():
                column = self._step_sizes.setdefault(block, array("d"))
                column.extend([np.nan] * (len(self._steps) - len(column)))
                column.append(value)
            self._steps.append(step)
            self._experiences.append(observations.experience)
        self._now = (first + n, observations.experience, n_seen + n, corrects[-1], sums[-1])

    def frame(self, step_sizes: Mapping[str, float]) -> "pd.DataFrame":
        """Give the rows, the last of which is about all samples so far and the present step size of each block.

        ``OnlineLearner.history`` describes the columns.
        """
        import pandas as pd

        step, experience, n_seen, n_correct, losses = self._now
        steps, seen = np.append(self._steps, step), np.append(self._n_seen, n_seen)
        corrects, sums = np.append(self._n_correct, n_correct), np.append(self._losses, losses)
        new = np.diff(seen, prepend=0)
        with np.errstate(invalid="ignore", divide="ignore"):  # nothing comes before the first row
            columns = {
                "step": steps,
                "experience": np.append(self._experiences, experience),
                "online_accuracy": corrects / seen,
                "accuracy": np.diff(corrects, prepend=0.0) / new,
                "loss": np.diff(sums, prepend=0.0) / new,
            }
        for block, column in self._step_sizes.items():
            lacking = [np.nan] * (len(steps) - 1 - len(column))
            columns[STEP_SIZE + block] = np.concatenate([column, lacking, [step_sizes.get(block, np.nan)]])
        if n_seen and np.isnan(n_correct):  # a regression
            del columns["online_accuracy"], columns["accuracy"]
        return pd.DataFrame(columns) if n_seen else pd.DataFrame(columns)[:0]
