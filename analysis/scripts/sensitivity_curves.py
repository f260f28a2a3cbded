"""Draw how accuracy depends on one setting."""

from continual_metaopt.analysis.figures import sensitivity_curves
from continual_metaopt.analysis.scripts._arguments import DIVERGED, FIGURE, drawing, option

SETTING = option("--setting", default="lr", metavar="OPTION", help="an option of the learner (default: %(default)s)")

main = drawing(__name__, sensitivity_curves, SETTING, DIVERGED, *FIGURE)
