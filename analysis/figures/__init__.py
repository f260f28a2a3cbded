"""Figures for a paper, in one style. Each function returns a Matplotlib figure; `save` writes it.

Nothing here touches pyplot, so a user's backend and settings stay as they are.
"""

from continual_metaopt.analysis.field.control_dots import control_dots
from continual_metaopt.analysis.field.figures import (
    accuracy_against_time,
    family_styles,
    initial_step_sizes,
    ranking_dots,
)
from continual_metaopt.analysis.figures.accuracy import (
    cumulative_accuracy,
    online_accuracy_by_experience,
    sliding_accuracy,
    sliding_squared_error,
    test_accuracy_by_experience,
)
from continual_metaopt.analysis.figures.boundaries import ALIGNED, around_boundaries
from continual_metaopt.analysis.figures.ranks import rank_diagram
from continual_metaopt.analysis.figures.settings import sensitivity_curves, sensitivity_maps
from continual_metaopt.analysis.figures.style import COLOURS, WIDTHS, Format, Width, caption_of, draw_and_save, save
from continual_metaopt.analysis.figures.teeth import folded_sawtooth
from continual_metaopt.analysis.figures.trajectories import (
    MetaParameter,
    has_meta_parameter,
    has_trajectories,
    meta_parameter_trajectories,
    step_size_trajectories,
)
from continual_metaopt.analysis.paper.figure import gaps_beside_the_papers
from continual_metaopt.analysis.paper.published_figures import (
    published_cumulative_accuracy,
    published_step_sizes,
    published_test_accuracy,
)
