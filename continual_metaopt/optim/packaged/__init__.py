"""Optimizers of other packages as learners, one file per package, with the defaults of their authors.

A file imports its package at the top, and is itself imported when its learner is first asked for, so that a missing
package matters to nobody else. Each class adds what this package wants to know of an optimizer and nothing to its rule.
"""

from typing import Any


def options_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take the options of a learner out of its function's ``locals()``."""
    return {name: value for name, value in arguments.items() if name != "model"}
