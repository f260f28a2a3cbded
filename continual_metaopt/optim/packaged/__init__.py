"""Optimizers of other packages as learners, one file per package, with the defaults of their authors.

A file imports its package at the top, and is itself imported when its learner is first asked for, so that a missing
package matters to nobody else. Each class adds what this package wants to know of an optimizer and nothing to its rule.
"""

import io
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any


def options_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a learner out of its function's ``locals()``; no limit of growth is an infinite one."""
    options = {name: value for name, value in arguments.items() if name != "model"}
    if options.get("growth_rate", 0.0) is None:
        options["growth_rate"] = math.inf
    return options


class EstimatesDistance:
    """Tell the step size of an optimizer that estimates the distance d to the solution."""

    param_groups: list[dict[str, Any]]

    def step_size_report(self) -> dict[str, float]:
        """Give d·α, the factor on the direction of each group; bias corrections are not in it."""
        return {group["name"]: float(group["d"] * group["lr"]) for group in self.param_groups}


_one_at_a_time = threading.Lock()  # two threads would take each other's silence for what was there before


@contextmanager
def silence() -> Iterator[None]:
    """Hide what a package prints while it makes an optimizer."""
    with _one_at_a_time, redirect_stdout(io.StringIO()):
        yield
