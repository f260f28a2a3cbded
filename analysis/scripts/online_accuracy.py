"""Draw the online accuracy in each experience."""

from continual_metaopt.analysis.figures import online_accuracy_by_experience
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, LEARNERS, drawing

main = drawing(__name__, online_accuracy_by_experience, LEARNERS, DIVERGED, *FIGURE)
