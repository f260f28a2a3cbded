"""Draw the ranks of the learners over seeds."""

from continual_metaopt.analysis.figures import rank_diagram
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, TEST, drawing

main = drawing(__name__, rank_diagram, LEARNERS, TEST, DIVERGED, *FIGURE)
