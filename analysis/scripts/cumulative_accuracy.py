"""Draw the online accuracy over all samples so far."""

from continual_metaopt.analysis.figures import cumulative_accuracy
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, drawing

main = drawing(__name__, cumulative_accuracy, LEARNERS, DIVERGED, *FIGURE)
