"""What workers that need torch have in common when they are started, imported once for all of them.

An error here would end the process that starts them, so each of them raises it again.
"""

import contextlib

from continual_metaopt.runs.run import imported

with contextlib.suppress(Exception):
    imported("continual_metaopt.runs.learner_run")
