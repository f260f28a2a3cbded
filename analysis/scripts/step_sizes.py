"""Draw the step sizes of each learner and block."""

from continual_metaopt.analysis.figures import step_size_trajectories
from continual_metaopt.analysis.scripts._arguments import STEPS, blocks, drawing, figure, learners

OPTIONS = (learners("those with learned step sizes"), blocks(), STEPS)

main = drawing(__name__, step_size_trajectories, *OPTIONS, *figure("page"))
