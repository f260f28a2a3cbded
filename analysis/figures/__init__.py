"""Figures for a paper, in one style. Each function returns a Matplotlib figure; `save` writes it.

Nothing here touches pyplot, so a user's backend and settings stay as they are.
"""

from continual_metaopt.analysis.figures.accuracy import (
    cumulative_accuracy,
    online_accuracy_by_experience,
    sliding_accuracy,
    sliding_bits_per_byte,
    sliding_squared_error,
    test_accuracy_by_experience,
)
from continual_metaopt.analysis.figures.boundaries import ALIGNED, around_boundaries, folded_sawtooth
from continual_metaopt.analysis.figures.ranks import rank_diagram
from continual_metaopt.analysis.figures.settings import sensitivity_curves, sensitivity_maps
from continual_metaopt.analysis.figures.style import COLOURS, WIDTHS, Format, Width, caption_of, draw_and_save, save
from continual_metaopt.analysis.figures.trajectories import (
    MetaParameter,
    has_meta_parameter,
    has_trajectories,
    meta_parameter_trajectories,
    step_size_trajectories,
)
