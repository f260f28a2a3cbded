"""Import Avalanche without the warnings of packages that it imports in turn.

qpsolvers, which only some of Avalanche's strategies use, warns at import that no solver is installed.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="no QP solver found", category=UserWarning)
    import avalanche.benchmarks
    import avalanche.training  # noqa: F401
