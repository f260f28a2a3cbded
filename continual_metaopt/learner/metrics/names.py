"""Names of the diagnostics, for descriptions of runs, which never import torch."""

from typing import Literal

Diagnostic = Literal[
    "plasticity",
    "dormant_units",
    "effective_rank",
    "stable_rank",
    "weight_norm",
    "gradient_norm",
    "distance_from_initialisation",
    "update_ratio",
    "trace_cosine",
    "retention",
]
