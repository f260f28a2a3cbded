"""Draw the online accuracy in a sliding window."""

from continual_metaopt.analysis.figures import sliding_accuracy
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, drawing, option

WINDOW = option(
    "--window", type=int, metavar="SAMPLES", help="length of the window (default: by the length of experiences)"
)

main = drawing(__name__, sliding_accuracy, WINDOW, LEARNERS, DIVERGED, *FIGURE)
